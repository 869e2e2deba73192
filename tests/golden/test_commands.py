"""The commands golden and compare: what they print, write and return."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ports import port

from npgemma import sample_picture
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.cli import main
from npgemma.golden import read_golden
from npgemma.golden.chart import SIZE
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.judge import LIMITS
from npgemma.golden.names import TABLES

SAMPLE = str(sample_picture())


@pytest.fixture(scope="module")
def tensors(model: VisionLanguageModel) -> dict[str, np.ndarray]:
    """What a port dumps for the golden file in the package."""
    golden = read_golden(EMBEDDED_GOLDEN)
    found = port(model, golden)
    return {name: found[name] for name in golden.taps}


@pytest.fixture
def dumped(tensors: dict, tmp_path: Path) -> Path:
    np.savez(tmp_path / "dump.npz", **tensors)
    return tmp_path / "dump.npz"


@pytest.fixture
def broken(tensors: dict, tmp_path: Path) -> Path:
    np.savez(tmp_path / "broken.npz", **tensors | {"text.norm": 2 * tensors["text.norm"]})
    return tmp_path / "broken.npz"


def test_golden_writes_the_selected_taps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.safetensors"
    arguments = ["golden", SAMPLE, "caption en", "-o", str(path), "--level", "ops", "--steps", "1"]
    assert main([*arguments, "--taps", "text.*", "--taps", "logits", "--rounding", "hf_sdpa"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {path}, {path.stat().st_size:,} bytes" in captured.err
    found = read_golden(path)
    assert found.metadata["schedules"]["bfloat16"]["name"] == "hf_sdpa"
    assert "text.layers.0.mid" in found.taps
    assert "projector" not in found.taps


def test_list_has_every_tap_with_axes_level_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", "--list"]) == 0
    fields = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    lines = ([e.pattern, e.axes or "-", e.level, e.meaning] for table in TABLES.values() for e in table)
    assert [field for field in fields if field[1:]] == list(lines)
    assert [field[0] for field in fields if not field[1:]] == [f"{kind}:" for kind in TABLES]
    assert ["text.scale", "-", "ops", "sqrt(D), the factor of text embeddings"] in fields


@pytest.mark.parametrize("arguments", [[], [SAMPLE], [SAMPLE, "caption en"], [SAMPLE, "x", "-o", "f", "--steps", "-1"]])
def test_golden_with_missing_or_invalid_arguments_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["golden", *arguments])
    assert stop.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["picture", "folder", "model"])
def test_golden_of_a_missing_file_is_an_error(missing: str, tmp_path: Path) -> None:
    picture = "none.png" if missing == "picture" else SAMPLE
    output = tmp_path / ("none/g.safetensors" if missing == "folder" else "g.safetensors")
    model = ["-m", "none"] if missing == "model" else []
    assert main(["golden", picture, "caption en", "-o", str(output), *model]) == 1
    assert list(tmp_path.iterdir()) == []


def test_explained_dump_returns_0(dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "embedded", str(dumped)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("EXPLAINED: rounding in float32 explains ")
    for block in ("pixel_values", "vision.layers.3", "text.layers.0", "steps.2.logits"):
        assert f"\n{block} " in out


def test_wrong_dump_returns_1_and_names_block_rows_and_reason(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "embedded", str(broken), "--replay"]) == 1
    out = capsys.readouterr().out
    assert "FIRST DIVERGENCE in block text.norm" in out
    assert "CULPRIT block text.norm" in out
    assert "rows 0-39" in out
    assert "it is the truth times 2" in out
    assert "NOT EXPLAINED" in out


def test_json_report_names_the_wrong_tap(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "embedded", str(broken), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "not explained"
    assert found["first_divergence"]["name"] == "text.norm"
    assert LIMITS.items() <= found["limits"].items()
    wrong = [tap["name"] for tap in found["taps"] if not tap["explained"]]
    assert wrong == ["text.norm"]
    assert found["taps"][0].keys() >= {"name", "theirs", "block", "ratios", "limits", "error", "floor", "diagnosis"}


def test_json_report_has_null_for_an_infinite_error(tensors: dict, tmp_path: Path, capsys) -> None:
    """A tensor of the wrong shape has one."""
    np.savez(tmp_path / "dump.npz", **tensors | {"logits": np.ones((3, 3))})
    assert main(["compare", "embedded", str(tmp_path / "dump.npz"), "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert next(tap for tap in found["taps"] if tap["name"] == "logits")["error"] is None


def test_missing_tap_returns_3(tensors: dict, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "dump.npz", **{name: x for name, x in tensors.items() if name != "projector"})
    arguments = ["compare", "embedded", str(tmp_path / "dump.npz")]
    assert main(arguments) == 3
    assert "would allow (1): projector" in capsys.readouterr().out
    assert main([*arguments, "--allow-missing", "proj*"]) == 0


@pytest.mark.parametrize("what", ["golden", "dump", "map", "chart", "exchanged"])
def test_unreadable_file_returns_2_with_a_message(what: str, dumped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = "none.safetensors" if what == "golden" else str(EMBEDDED_GOLDEN)
    dump = "none.npz" if what == "dump" else str(dumped)
    more = {"map": ["--map", "none.json"], "chart": ["--chart", "none/x.png"]}.get(what, [])
    if what == "exchanged":
        golden, dump = str(dumped), golden
    assert main(["compare", golden, dump, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("npgemma: ")
    assert captured.err.count("\n") == 1


def test_embedded_golden_file_can_be_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "dump.npz", logits=np.ones((1, 1792), np.float32))
    assert main(["compare", "embedded", str(tmp_path / "dump.npz"), "--allow-missing", "*"]) == 1
    assert "FIRST DIVERGENCE in block logits" in capsys.readouterr().out


def test_chart_is_red_where_a_tap_is_wrong(dumped: Path, broken: Path, tmp_path: Path, capsys) -> None:
    red = (0xD6, 0x27, 0x28)
    for dump, is_red in ((dumped, False), (broken, True)):
        assert main(["compare", "embedded", str(dump), "--chart", str(tmp_path / "chart.png")]) == is_red
        with Image.open(tmp_path / "chart.png") as chart:
            assert chart.size == SIZE
            assert (red in {color for _, color in chart.getcolors(1 << 20)}) == is_red


def test_suggested_mapping_is_right_and_can_be_used(
    golden_path: Path, float32_port: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a port with other names, a leading head axis and interleaved RoPE pairs."""

    def pairs(x: np.ndarray) -> np.ndarray:
        return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)

    kept = ("text.embedding", "text.layers.1.attn.q_rope", "text.layers.1.attn.v", "text.layers.1.out", "logits")
    x = {name: float32_port[name] for name in kept}
    changed = {
        "a": x["text.embedding"][None],
        "b(1)": pairs(x["text.layers.1.attn.q_rope"]),
        "c": x["text.layers.1.attn.v"].transpose(1, 0, 2),
        "d": x["text.layers.1.out"],
        "e": x["logits"],
    }
    np.savez(tmp_path / "dump.npz", **changed)
    path = tmp_path / "map.json"
    arguments = ["compare", str(golden_path), str(tmp_path / "dump.npz")]
    assert main([*arguments, "--suggest-map", str(path)]) == 0
    found = {rule["ours"]: rule for rule in json.loads(path.read_text())["rules"]}
    assert found["text.layers.1.attn.q_rope"]["theirs"] == r"b\(1\)"
    assert found["text.layers.1.attn.q_rope"]["interleaved"]
    assert {"text.embedding", "text.layers.1.out", "logits"} <= set(found)
    assert main([*arguments, "--map", str(path), "--allow-missing", "*"]) == 0
    assert "explains 5 of 5 taps" in capsys.readouterr().out


def test_suggestion_that_cannot_be_written_returns_2(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", a=np.ones((1, 1792), np.float32))
    path = tmp_path / "none" / "map.json"
    assert main(["compare", "embedded", str(tmp_path / "dump.npz"), "--suggest-map", str(path)]) == 2

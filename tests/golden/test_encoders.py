"""Golden files of encoders: every tap, the policy of the kind, and the same verdicts, replays and commands."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ports import port
from random_encoders import CLIP, SIGLIP, VIT, Written, write_encoder

import npgemma
from npgemma.commands.cli import main
from npgemma.golden import Dump, Golden, Report, compare, preset, read_golden, record, replay
from npgemma.golden.names import TABLES, block_of, row_axes
from npgemma.layers.taps import Tap

# Two runs in float64 that sum in another order: rounding errors of 1e-16 grow to 1e-14 in four layers.
FLOAT64_ERROR = 1e-12
SAMPLE = str(npgemma.sample_picture())
SCORES = {SIGLIP: "logits_per_image", CLIP: "logits_per_image", VIT: "logits"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory):
    """By kind: a random model and what it runs on, and its golden file with every tap."""

    @cache
    def make(kind: str) -> tuple[Written, Golden]:
        folder = tmp_path_factory.mktemp("encoder")
        written = write_encoder(folder / "model", kind)
        return written, written.record(folder / "g.safetensors")

    return make


@pytest.fixture(params=(SIGLIP, CLIP, VIT))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def judged(written: Written, golden: Golden, dump: dict, dtype: str = "float32") -> Report:
    found = Dump(dump)
    return replay(written.model, golden, found, compare(golden, found, dtype=dtype))


def louder(tap: str) -> Tap:
    """The tap of a port that makes a mistake of one percent."""
    return lambda name, x, axes: np.asarray(x * np.float32(1.01)) if name == tap else x


def test_a_run_has_the_taps_of_the_table_with_their_axes(encoders, kind: str) -> None:
    golden = encoders(kind)[1]
    patterns = {re.sub(r"\b\d+\b", "#", name): axes for name, axes in golden.taps.items()}
    assert patterns == {re.sub(r"{.}", "#", entry.pattern): entry.axes for entry in TABLES[kind]}


def test_a_name_has_one_level_in_all_tables() -> None:
    entries = [entry for table in TABLES.values() for entry in table]
    assert len({(entry.pattern, entry.level) for entry in entries}) == len({entry.pattern for entry in entries})


def test_truth_is_what_the_api_computes_in_float64(encoders, kind: str) -> None:
    written, golden = encoders(kind)
    model = npgemma.load(written.model.folder, "float64")
    if kind == VIT:
        found = {"logits": model.forward(golden.truth["pixel_values"])}
        best = [labels[0].probability for labels in model.classify(written.images, top=1)]
        np.testing.assert_allclose(golden.truth["probabilities"].max(-1), best, rtol=FLOAT64_ERROR)
    else:
        pair = written.images, written.texts
        found = {"logits_per_image": model.logits(*pair), "probabilities": model.classify(*pair)}
        found |= {"image_embeds": model.encode_images(pair[0]), "text_embeds": model.encode_texts(pair[1])}
        found |= {"loss": np.array(model.loss(*pair))}
    for name, x in found.items():
        np.testing.assert_allclose(golden.truth[name], x, rtol=0, atol=FLOAT64_ERROR, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_honest_port_is_explained_and_has_no_culprit(encoders, kind: str, dtype: str) -> None:
    written, golden = encoders(kind)
    report = judged(written, golden, port(written.model, golden, dtype), dtype)
    assert (report.status, report.culprits) == (0, [])
    assert len(report.verdicts) == len(golden.taps)
    assert {SCORES[kind], "probabilities"} <= {verdict.name for verdict in report.replayed}


@pytest.mark.parametrize(
    ("kind", "tap"),
    [
        (SIGLIP, "vision.head.attn.heads"),
        (SIGLIP, "text.last"),
        (SIGLIP, "logits_per_image"),
        (CLIP, "vision.pre_norm"),
        (CLIP, "text.end"),
        (CLIP, "text_embeds"),
        (CLIP, "scale"),
        (CLIP, "loss"),
        (VIT, "layers.1.mlp.hidden"),
        (VIT, "class"),
        (VIT, "probabilities"),
    ],
)
def test_tap_of_a_mistake_is_the_first_divergence(encoders, kind: str, tap: str) -> None:
    written, golden = encoders(kind)
    report = compare(golden, Dump(port(written.model, golden, change=louder(tap))))
    assert report.first_divergence.name == tap


@pytest.mark.parametrize(("kind", "tap"), [(SIGLIP, "text.head"), (CLIP, "vision.class"), (VIT, "layers.0.mid")])
def test_tap_of_a_mistake_is_the_only_culprit(encoders, kind: str, tap: str) -> None:
    written, golden = encoders(kind)
    report = judged(written, golden, port(written.model, golden, change=louder(tap)))
    assert [verdict.name for verdict in report.culprits] == [tap]


def test_numbers_of_pictures_and_texts_may_differ_and_then_there_is_no_loss(encoders, tmp_path: Path) -> None:
    written = encoders(CLIP)[0]
    record(written.model, written.images[:1], written.texts, tmp_path / "g.safetensors", "io")
    golden = read_golden(tmp_path / "g.safetensors")
    assert golden.truth["logits_per_image"].shape == (1, 3)
    assert "loss" not in golden.taps
    dump = {name: np.asarray(x, x.dtype if x.dtype.kind != "f" else "f4") for name, x in golden.truth.items()}
    assert judged(written, golden, dump).status == 0


# ------------------------------------------------------------------------------------------------------------ metadata

FACTS = {
    SIGLIP: ("none in either tower: padding is seen", "sigmoid of each score", "bicubic, antialiased"),
    CLIP: ("none for pictures; causal for texts", "softmax over the texts", "bicubic"),
    VIT: ("none", "softmax over the labels", "bilinear"),
}
TOWERS = {
    SIGLIP: {"activation": "gelu, tanh form", "layer_norm_eps": 1e-6},
    CLIP: {"activation": "x / (1 + e^(-1.702 x))", "layer_norm_eps": 1e-5},
    VIT: {"activation": "gelu, erf form", "layer_norm_eps": 1e-12},
}


def test_metadata_say_what_the_kind_computes(encoders, kind: str) -> None:
    written, golden = encoders(kind)
    policy, preprocessing = (golden.metadata[key] for key in ("policy", "preprocessing"))
    mask, probabilities, resample = FACTS[kind]
    assert (policy["mask"], policy["probabilities"]) == (mask, probabilities)
    assert policy["towers"]["vision"] == TOWERS[kind]
    assert preprocessing["resample"].startswith(resample)
    assert ("the square in the middle" in str(preprocessing.get("crop"))) == (kind == CLIP)
    assert golden.metadata["case"].get("texts", []) == written.texts
    assert (golden.metadata["tokenizer"] is None) == (kind == VIT)
    assert "q_rope" not in golden.metadata["schedules"]["bfloat16"]["rounds"]


# ------------------------------------------------------------------------------------------------------------ commands


def test_commands_record_and_replay_the_embedded_pair(tmp_path: Path, capsys) -> None:
    path, dump = tmp_path / "g.safetensors", tmp_path / "dump.npz"
    assert main(["golden", SAMPLE, SAMPLE, "a star", "a cat", "-m", "tiny-siglip", "-o", str(path)]) == 0
    model, golden = npgemma.DualEncoder.load(), read_golden(path)
    assert golden.metadata["case"]["texts"] == ["a star", "a cat"]
    wrong = port(model, golden, change=lambda name, x, axes: x[::-1] if name == "text.last" else x)
    np.savez(dump, **{name: wrong[name] for name in golden.taps})
    assert main(["compare", str(path), str(dump), "--replay"]) == 1
    out = capsys.readouterr().out
    assert "golden   'a star', 'a cat' and 2 pictures" in out
    assert "FIRST DIVERGENCE in block text.last" in out
    assert "CULPRIT block text.last" in out


@pytest.mark.parametrize(
    ("kind", "case", "message"),
    [
        (VIT, [SAMPLE, "a cat"], "a cat is not a file; .* reads pictures alone"),
        (VIT, [SAMPLE, "--steps", "2"], "--steps: .* writes no tokens"),
        (CLIP, [SAMPLE, "a cat", "--steps", "2"], "--steps: .* writes no tokens"),
        (CLIP, [SAMPLE], "compares pictures with texts; give texts after the pictures"),
        (SIGLIP, ["a cat"], "compares pictures with texts; name a picture before the texts"),
        (SIGLIP, [SAMPLE, "no/dog.jpg", "a cat"], "no/dog.jpg is not a file"),
        (CLIP, [SAMPLE, "a cat", SAMPLE], "name pictures before the first text"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_usage_errors(
    encoders, tmp_path: Path, capsys, kind: str, case: list[str], message: str
) -> None:
    arguments = ["golden", *case, "-m", str(encoders(kind)[0].model.folder), "-o", str(tmp_path / "g.safetensors")]
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "images", "text", "steps", "message"),
    [
        (CLIP, [], ["a cat"], None, "give at least one of both"),
        (SIGLIP, [SAMPLE], [], None, "give at least one of both"),
        (VIT, [SAMPLE], ["a cat"], None, "reads pictures and no texts"),
        (VIT, [SAMPLE], [], 2, "its run has no steps"),
    ],
)
def test_cases_that_do_not_fit_the_model_are_refused(
    encoders, tmp_path: Path, kind: str, images: list, text: list, steps: int | None, message: str
) -> None:
    with pytest.raises(npgemma.BadPrompt, match=message):
        record(encoders(kind)[0].model, images, text, tmp_path / "g.safetensors", steps=steps)


def test_the_debugger_has_no_preset_for_encoders(encoders, kind: str) -> None:
    golden = encoders(kind)[1]
    assert preset("transformers", golden).rules
    with pytest.raises(npgemma.BadGolden, match=f"is not for a {kind.lower()}; dump it with hooks"):
        preset("transformers-debugger", golden)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("vision.head.attn.pictures.0.probs", "vision.head"),
        ("vision.layers.1.attn.q", "vision.layers.1"),
        ("layers.11.mlp.fc1", "layers.11"),
        ("embedding.patches", "embedding"),
        ("image_embeds.length", "image_embeds"),
        ("vision.class", "vision.class"),
    ],
)
def test_block_of_a_tap(name: str, block: str) -> None:
    assert block_of(name) == block


@pytest.mark.parametrize(
    ("axes", "rows"), [("U T N H", (0, 1)), ("B U", (0,)), ("U E", (0,)), ("N Q S", (1,)), ("B Q D", (0, 1))]
)
def test_rows_are_pictures_texts_and_their_tokens(axes: str, rows: tuple[int, ...]) -> None:
    assert row_axes(axes) == rows

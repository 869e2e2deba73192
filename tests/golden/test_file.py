"""A golden file is read as a whole or refused; arrays are written correctly however they lie in memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from npgemma import BadGolden, sample_picture
from npgemma.golden import Golden, read_golden, record
from npgemma.golden.file import EMBEDDED, EMBEDDED_GOLDEN, KEY, Spool, digest, write_golden
from npgemma.golden.judge import BORDERLINE, limits_of, rms

X = np.arange(24.0).reshape(2, 3, 4)
VIEWS = {
    "plain": X,
    "transposed": X.transpose(2, 0, 1),
    "strided": X[:, ::2, 1::2],
    "reversed": X[::-1, :, ::-1],
    "broadcast": np.broadcast_to(X[0, 0], (5, 4)),
    "scalar": np.array(1.5),
    "empty": X[:0],
    "fortran": np.asfortranarray(X[0]),
}


def test_views_are_written_as_their_numbers(tmp_path: Path) -> None:
    """safetensors.numpy.save_file writes the memory of a view and ignores its strides (safetensors issue 825)."""
    with Spool(tmp_path) as spool:
        for name, x in VIEWS.items():
            spool.put(name, x)
            np.testing.assert_array_equal(spool[name], x, strict=True)
        write_golden(spool, {}, tmp_path / "views.safetensors")
    with safe_open(tmp_path / "views.safetensors", "numpy") as file:
        for name, x in VIEWS.items():
            np.testing.assert_array_equal(file.get_tensor(name), x, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["views.safetensors"]


def test_name_that_is_recorded_twice_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put("q", X)
        with pytest.raises(ValueError, match="recorded twice"):
            spool.put("q", X)


def test_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_text("old")
    with Spool(tmp_path) as spool:
        spool.put("q", X.astype(np.complex128))
        with pytest.raises(Exception, match="complex128"):
            write_golden(spool, {}, tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_file_has_the_permissions_of_any_new_file(golden_path: Path, tmp_path: Path) -> None:
    """safetensors alone would write a file that only its owner can read."""
    (tmp_path / "plain").touch()
    assert golden_path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def differences(found: Golden, expected: Golden) -> list[str]:
    """The tensors and facts of two recordings that differ by more than BLAS and versions explain.

    BLAS adds in another order on another processor. The truth is then the same after rounding to float32. The error of
    the honest run is another number of the same size: their ratio stays below the limit by which ports are judged, and
    in a tap of one row, whose error is a single draw, below that of borderline errors.
    """
    wrong = [
        f"metadata {key}" for key in expected.metadata if key != "versions" and fact(found, key) != fact(expected, key)
    ]
    for tap, truth in expected.truth.items():
        if found.truth[tap].dtype != truth.dtype or (found.truth[tap].astype("f4") != truth.astype("f4")).any():
            wrong.append(tap)
    for dtype, envelopes in expected.envelopes.items():
        for tap, envelope in envelopes.items():
            ratio = rms(found.envelopes[dtype][tap]) / rms(envelope) if envelope.any() else 1
            rows = envelope.shape[1]
            limit = limits_of(expected.truth[tap].size, rows)["rms"] if rows > 1 else BORDERLINE
            if found.envelopes[dtype][tap].shape != envelope.shape or not 1 / limit < ratio < limit:
                wrong.append(f"{dtype} {tap}")
    return wrong


def fact(golden: Golden, key: str) -> object:
    """A fact of the metadata, without the version of Pillow."""
    value = golden.metadata[key]
    return {**value, "pillow": None} if key == "preprocessing" else value


def test_embedded_golden_file_is_a_new_recording(model, tmp_path: Path) -> None:
    record(model, [sample_picture()], "caption en", tmp_path / "g.safetensors")
    found, expected = read_golden(tmp_path / "g.safetensors"), read_golden(EMBEDDED_GOLDEN)
    assert list(found.taps.items()) == list(expected.taps.items())
    assert {dtype: set(each) for dtype, each in found.envelopes.items()} == {
        dtype: set(each) for dtype, each in expected.envelopes.items()
    }
    assert differences(found, expected) == []


def test_long_golden_file_is_a_new_recording(model, tmp_path: Path) -> None:
    """300 rows and 8 steps, of pictures that tools/draw_shapes.py draws."""
    draw = [sys.executable, str(Path(__file__).parents[2] / "tools" / "draw_shapes.py"), str(tmp_path / "shapes"), "8"]
    assert subprocess.run(draw, timeout=60).returncode == 0
    pictures, prompt = sorted((tmp_path / "shapes").iterdir()), "detect star ; ring ; cross ; circle ; square"
    taps = ["projector", "text.layers.*", "steps.*", "logits"]
    record(model, pictures, prompt, tmp_path / "g.safetensors", patterns=taps, steps=8, truth="float32")
    found, expected = read_golden(tmp_path / "g.safetensors"), read_golden(EMBEDDED["embedded-long"])
    assert list(found.taps.items()) == list(expected.taps.items())
    assert (len(found.truth["prompts.0.input_ids"]), len(found.truth["generated_ids"])) == (300, 9)
    assert found.truth["projector"].dtype == np.float32
    assert differences(found, expected) == []


def test_changed_recording_differs_from_the_embedded_golden_file() -> None:
    """So the test above can fail."""
    expected = read_golden(EMBEDDED_GOLDEN)
    truth = {**expected.truth, "logits": np.nextafter(expected.truth["logits"].astype("f4"), 99).astype("f8")}
    envelopes = {**expected.envelopes["float32"], "projector": 2.1 * expected.envelopes["float32"]["projector"]}
    metadata = {**expected.metadata, "policy": {}}
    changed = Golden(metadata, expected.taps, truth, {**expected.envelopes, "float32": envelopes})
    assert differences(changed, expected) == ["metadata policy", "logits", "float32 projector"]


# -------------------------------------------------------------------------------------------------------------- damage


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match="missing"):
        read_golden(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999999])
def test_truncated_file_is_refused(golden_path: Path, tmp_path: Path, share: float) -> None:
    data = golden_path.read_bytes()
    (tmp_path / "g.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadGolden, match=r"g\.safetensors"):
        read_golden(tmp_path / "g.safetensors")


@settings(max_examples=40)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_changed_byte_is_found(tmp_path_factory, place: float, flip: int) -> None:
    """Anywhere: in the tensors, in the metadata, in the names."""
    data = bytearray(EMBEDDED_GOLDEN.read_bytes())
    at = int(place * len(data))
    data[at] ^= flip
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(data)
    if chr(data[at] ^ flip) != " ":  # the padding of the header
        with pytest.raises(BadGolden, match=r"flipped\.safetensors"):
            read_golden(path)


def written(path: Path, facts: object, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path, {KEY: json.dumps(facts)})
    return path


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match="format 99, but this npgemma reads format 1"):
        read_golden(written(tmp_path / "g.safetensors", {"format": 99}, {"logits": X}))


def test_safetensors_file_without_metadata_is_refused(tmp_path: Path) -> None:
    save_file({"logits": X}, tmp_path / "dump.safetensors")
    with pytest.raises(BadGolden, match="not a golden file"):
        read_golden(tmp_path / "dump.safetensors")


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        3,
        {},
        {"format": 1},
        {"format": 1, "taps": 5},
        {"format": 1, "taps": [["logits"]]},
        {"format": 1, "taps": [["no.tap", ""]]},
        {"format": 1, "taps": [[5, "B V"]]},
        {"format": 1, "taps": [["projector", "B P D"]]},
        {"format": 1, "taps": [[["logits"], "B V"]]},
    ],
)
def test_invalid_metadata_is_refused_even_with_a_valid_checksum(tmp_path: Path, facts: object) -> None:
    tensors = {"logits": X}
    if isinstance(facts, dict):
        facts = facts | {"sha256": digest(tensors, facts)}
    with pytest.raises(BadGolden, match=r"g\.safetensors"):
        read_golden(written(tmp_path / "g.safetensors", facts, tensors))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("B V", r"axes 'B V', but its tensor has the shape \[2, 3, 4\]"),
        ("", r"axes '', but its tensor"),
        ("B T 3", "invalid axes 'B T 3'"),
        ("B  T V", "invalid axes"),
        ("BTV", "invalid axes"),
        (" B T V", "invalid axes"),
        (["B", "T", "V"], "invalid axes"),
        (None, "invalid axes None"),
    ],
)
def test_axes_must_be_a_letter_for_each_axis(tmp_path: Path, axes: object, message: str) -> None:
    facts = {"format": 1, "taps": [["logits", axes]]}
    path = written(tmp_path / "g.safetensors", facts | {"sha256": digest({"logits": X}, facts)}, {"logits": X})
    with pytest.raises(BadGolden, match=rf"g\.safetensors: tap 'logits' has the .*{message}"):
        read_golden(path)


def test_tensors_are_memory_maps(golden: Golden) -> None:
    base = golden.truth["text.layers.0.out"]
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)

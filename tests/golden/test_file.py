"""A golden file is read whole or refused; what is written is what the arrays say, however they lie in memory."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from npgemma import BadGolden
from npgemma.golden import Golden, read_golden, record
from npgemma.golden.file import EMBEDDED_GOLDEN, KEY, Spool, digest, write_golden

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


def test_views_are_written_as_the_numbers_they_show(tmp_path: Path) -> None:
    """safetensors' own NumPy side writes the memory of a view, whatever its strides: a bug upstream."""
    with Spool(tmp_path) as spool:
        for name, x in VIEWS.items():
            spool.put(name, x)
            np.testing.assert_array_equal(spool[name], x, strict=True)
        write_golden(spool, {}, tmp_path / "views.safetensors")
    with safe_open(tmp_path / "views.safetensors", "numpy") as file:
        for name, x in VIEWS.items():
            np.testing.assert_array_equal(file.get_tensor(name), x, strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["views.safetensors"]


def test_a_name_is_recorded_once(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put("q", X)
        with pytest.raises(ValueError, match="recorded twice"):
            spool.put("q", X)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_text("old")
    with Spool(tmp_path) as spool:
        spool.put("q", X.astype(np.complex128))
        with pytest.raises(Exception, match="complex128"):
            write_golden(spool, {}, tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_file_can_be_read_by_others(golden_path: Path, tmp_path: Path) -> None:
    """By every user of the machine whom the umask lets, as any file."""
    (tmp_path / "plain").touch()
    assert golden_path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_embedded_golden_file_is_a_fresh_recording(model, tmp_path: Path) -> None:
    """To the bit of float32, on any processor; but for the versions of what made it."""
    record(model, [EMBEDDED_GOLDEN.parent / "sample.png"], "caption en", tmp_path / "g.safetensors")
    found, expected = read_golden(tmp_path / "g.safetensors"), read_golden(EMBEDDED_GOLDEN)
    assert found.taps == expected.taps
    for tap in found.taps:
        np.testing.assert_array_equal(found.truth[tap].astype("f4"), expected.truth[tap].astype("f4"), tap)
    for metadata in (found.metadata, expected.metadata):
        metadata.pop("versions")
        metadata["preprocessing"].pop("pillow")
    assert found.metadata == expected.metadata


# -------------------------------------------------------------------------------------------------------------- damage


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match="missing"):
        read_golden(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999999])
def test_a_file_that_was_cut_is_refused(golden_path: Path, tmp_path: Path, share: float) -> None:
    data = golden_path.read_bytes()
    (tmp_path / "g.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadGolden, match=r"g\.safetensors"):
        read_golden(tmp_path / "g.safetensors")


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_is_seen(golden_path: Path, tmp_path_factory, place: float, flip: int) -> None:
    """Anywhere: in the tensors, in the facts, in the names."""
    data = bytearray(EMBEDDED_GOLDEN.read_bytes())
    at = int(place * len(data))
    data[at] ^= flip
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(data)
    if chr(data[at] ^ flip) != " ":  # the filling of the header, which carries nothing
        with pytest.raises(BadGolden, match=r"flipped\.safetensors"):
            read_golden(path)


def written(path: Path, facts: object, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path, {KEY: json.dumps(facts)})
    return path


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match="format 99, this npgemma reads 1"):
        read_golden(written(tmp_path / "g.safetensors", {"format": 99}, {"logits": X}))


def test_any_other_safetensors_file_is_no_golden_file(tmp_path: Path) -> None:
    save_file({"logits": X}, tmp_path / "dump.safetensors")
    with pytest.raises(BadGolden, match="no golden file"):
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
        {"format": 1, "taps": [["projector", "B P D"]]},
        {"format": 1, "taps": [[["logits"], "B V"]]},
    ],
)
def test_facts_that_make_no_sense_are_refused_even_if_signed(tmp_path: Path, facts: object) -> None:
    tensors = {"logits": X}
    if isinstance(facts, dict):
        facts = facts | {"sha256": digest(tensors, facts)}
    with pytest.raises(BadGolden, match=r"g\.safetensors"):
        read_golden(written(tmp_path / "g.safetensors", facts, tensors))


def test_a_golden_file_is_mapped(golden: Golden) -> None:
    base = golden.truth["text.layers.0.out"]
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)

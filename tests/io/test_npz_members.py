"""Arrays of an .npz file: stored ones are mapped, compressed ones unpacked."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from npgemma.errors import BadModel
from npgemma.io.npz_members import read_members

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("x", [X, np.asfortranarray(X), X.astype(np.float16), X[:0], X[0, 0, 0]], ids=str)
def test_a_written_array_is_read_back(save, x: np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", first=np.ones(5, np.float32), **{"dir/x": x})
    members = read_members(tmp_path / "a.npz")
    assert members["dir/x"].shape == x.shape
    with members["dir/x"].open(tmp_path) as found:
        np.testing.assert_array_equal(found, x)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_stored_bfloat16_array_is_mapped_as_uint16(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(5, dtype=np.uint16).view("V2"))
    with read_members(tmp_path / "a.npz")["x"].open(tmp_path) as found:
        np.testing.assert_array_equal(found, np.arange(5, dtype=np.uint16), strict=True)
        assert not found.flags.owndata


def test_a_local_extra_field_of_any_length_is_skipped(tmp_path: Path) -> None:
    """The field of the central directory may have another length."""
    np.save(tmp_path / "x.npy", X)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        info.extra = b"\x99\x99\x07\x00" + b"padding"
        archive.writestr(info, (tmp_path / "x.npy").read_bytes())
    with read_members(tmp_path / "a.npz")["x"].open(tmp_path) as found:
        np.testing.assert_array_equal(found, X, strict=True)


def test_a_repeated_name_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(BadModel, match="contains 'x' twice"):
        read_members(tmp_path / "a.npz")


@pytest.mark.parametrize("change", [-8, 8])
def test_bytes_that_do_not_fit_the_shape_are_refused(change: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    content = (tmp_path / "x.npy").read_bytes() + bytes(8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content[: len(content) - 8 + change])
    with pytest.raises(BadModel, match=rf"'x' has {X.nbytes + change} bytes, which do not fit its shape \[2, 3, 4\]"):
        read_members(tmp_path / "a.npz")


def test_negative_sizes_are_refused(tmp_path: Path) -> None:
    """The product of two negative sizes is positive, so the number of bytes fits."""
    np.save(tmp_path / "x.npy", X[0])
    content = (tmp_path / "x.npy").read_bytes().replace(b"(3, 4), }  ", b"(-3, -4), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(BadModel, match=r"'x' has 48 bytes, which do not fit its shape \[-3, -4\]"):
        read_members(tmp_path / "a.npz")


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(BadModel, match=r"'x' is object; weights are float32, float16, or bfloat16 \(\|V2\)"):
        read_members(tmp_path / "a.npz")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[6] |= 1  # flag bit 0, encryption, in the local header and in the central directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BadModel, match="encrypted"):
        read_members(tmp_path / "a.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_changed_byte_is_refused_when_the_array_is_opened(compressed: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", x=x)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    member = read_members(tmp_path / "a.npz")["x"]
    with pytest.raises(BadModel, match=r"a\.npz: x\.npy is damaged \(.+\); .*download it again"), member.open(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

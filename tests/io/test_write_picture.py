"""Writing pictures: completely or not at all, in the format of the suffix."""

from pathlib import Path

import numpy as np
import pytest
from pictures import NOISE, noise, rgb
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import read_picture, write_picture


def files(folder: Path) -> dict[str, bytes]:
    """The content of the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_written_picture_is_read_back(tmp_path):
    write_picture(NOISE, tmp_path / "picture.png")
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), noise(5, 7, 3), strict=True)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_the_suffix_determines_the_format(suffix, kind, tmp_path):
    write_picture(NOISE, tmp_path / f"picture{suffix}")
    with Image.open(tmp_path / f"picture{suffix}") as image:
        assert (image.format, image.size) == (kind, (7, 5))


def test_an_existing_picture_is_replaced(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"old")
    write_picture(NOISE, tmp_path / "picture.png")
    assert read_picture(tmp_path / "picture.png").size == (7, 5)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failed_write_keeps_the_old_picture_and_leaves_no_other_file(error, monkeypatch, tmp_path):
    def save(self, path, *rest):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    (tmp_path / "picture.png").write_bytes(b"old")
    with pytest.raises(BadPicture if isinstance(error, OSError) else KeyboardInterrupt):
        write_picture(NOISE, tmp_path / "picture.png")
    assert files(tmp_path) == {"picture.png": b"old"}


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.", ".png", "picture.txt", ".."])
def test_an_unknown_suffix_is_refused(name, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: its name must end in \.png, \.jpg"):
        write_picture(NOISE, tmp_path / name)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("suffix", [".psd", ".fli", ".mpg"])
def test_the_suffix_of_a_format_that_pillow_only_reads_is_refused(suffix, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: its name must end in \.png, \.jpg"):
        write_picture(NOISE, tmp_path / f"picture{suffix}")


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_file_name_is_refused(path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, Path(path))


def test_a_file_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, tmp_path / ("a" * 300 + ".png"))


def test_the_longest_possible_file_name_is_written(tmp_path):
    name = "a" * 251 + ".png"
    write_picture(NOISE, tmp_path / name)
    assert files(tmp_path).keys() == {name}


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: No such file or directory"):
        write_picture(NOISE, tmp_path / "nowhere" / "picture.png")


def test_a_folder_in_place_of_the_picture_is_refused(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(BadPicture, match="cannot be written"):
        write_picture(NOISE, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]

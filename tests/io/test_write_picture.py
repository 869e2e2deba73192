"""Writing pictures: completely or not at all, in the format of the suffix."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import read_picture, write_picture

ORIENTATION = 0x0112  # the EXIF tag


def grays(values: list, dtype: type) -> np.ndarray:
    return np.array([values], dtype)


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image that must be RGB already."""
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(picture: object) -> list[int]:
    """The first row of a picture that comes out gray: its three channels must be one."""
    pixels = rgb(read_picture(picture))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


NOISE = Image.fromarray(noise(5, 7, 3))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_written_is_read_back(tmp_path):
    write_picture(NOISE, tmp_path / "picture.png")
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), noise(5, 7, 3), strict=True)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_the_ending_names_the_format(ending, kind, tmp_path):
    write_picture(NOISE, tmp_path / f"picture{ending}")
    with Image.open(tmp_path / f"picture{ending}") as image:
        assert (image.format, image.size) == (kind, (7, 5))


def test_a_picture_that_is_there_is_replaced(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"old")
    write_picture(NOISE, tmp_path / "picture.png")
    assert read_picture(tmp_path / "picture.png").size == (7, 5)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_the_old_picture_and_no_litter(error, monkeypatch, tmp_path):
    def save(self, path, *rest):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    (tmp_path / "picture.png").write_bytes(b"old")
    with pytest.raises(BadPicture if isinstance(error, OSError) else KeyboardInterrupt):
        write_picture(NOISE, tmp_path / "picture.png")
    assert files(tmp_path) == {"picture.png": b"old"}


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.", ".png", "picture.txt", ".."])
def test_an_ending_that_names_no_format_is_refused(name, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: its name must end in \.png, \.jpg"):
        write_picture(NOISE, tmp_path / name)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("ending", [".psd", ".fli", ".mpg"])
def test_an_ending_of_a_format_that_is_only_read_is_refused(ending, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: its name must end in \.png, \.jpg"):
        write_picture(NOISE, tmp_path / f"picture{ending}")


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, Path(path))


def test_a_name_too_long_is_refused(tmp_path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, tmp_path / ("a" * 300 + ".png"))


def test_a_name_that_is_just_short_enough_is_written(tmp_path):
    name = "a" * 251 + ".png"
    write_picture(NOISE, tmp_path / name)
    assert files(tmp_path).keys() == {name}


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: No such file or directory"):
        write_picture(NOISE, tmp_path / "nowhere" / "picture.png")


def test_a_folder_in_the_pictures_place_is_refused(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(BadPicture, match="cannot be written"):
        write_picture(NOISE, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]

"""Pictures -> RGB images.

A file is turned upright by its EXIF tag, as viewers show it; a PIL image or an array is used as it is. Everything is
converted to RGB: transparency is composited over white, and 16 bits are scaled to 8, not clipped.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from npgemma.errors import BadPicture, shortened
from npgemma.io.atomic_write import replace_file
from npgemma.io.foreign import Damaged, parsing
from npgemma.io.picture_kinds import HEAD, RAW, check_kind, is_picture, url_problem
from npgemma.io.picture_metadata import check_png, check_tiff, exif_orientation, without_metadata
from npgemma.io.picture_modes import from_array, to_rgb
from npgemma.io.regular_files import open_regular
from npgemma.io.system_memory import available_memory
from npgemma.io.system_memory import size as memory
from npgemma.layers.shapes import Array

# Pillow's other decoders can start programs, or have had many security holes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_000_000  # Pillow's limit, where it only warns; a larger file is probably a decompression bomb
HINT = "raise the limit with --max-pixels (in Python: model.processor.max_pixels), or make the picture smaller"
# A picture of more pixels than PLAIN has at most DENSEST for each byte of its file, as many as a white sheet has in a
# PNG of one bit; photos have 2 to 50.
PLAIN, DENSEST = 20_000_000, 8256
BYTES_PER_PIXEL = 8  # in memory: as the file has it, and as RGB
MAX_BYTES = 100_000_000  # of a damaged file that is read into memory; a larger one counts as cut short there
# TIFF tags of RAW photos, whose first picture is a thumbnail: DNG says so by its version, others by the picture's kind.
DNG_VERSION, SUBFILE_TYPE, SUB_DIRECTORIES = 50706, 254, 330
# The transposition that turns a picture upright, by its EXIF orientation; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Picture: TypeAlias = str | Path | Image.Image | Array


def read_picture(picture: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image of a path, a PIL image, or a uint8 array [H W], [H W 1], [H W 3] or [H W 4].

    BadPicture for anything else, for a damaged file, and for a file of more than `max_pixels`.
    """
    if isinstance(picture, np.ndarray):
        return to_rgb(from_array(picture))
    if not isinstance(picture, (str, Path, Image.Image)):
        raise BadPicture(f"a picture must be a path, a PIL image or a uint8 array, not a {type(picture).__name__}")
    name = shortened(picture)
    try:
        with parsing():
            return to_rgb(picture) if isinstance(picture, Image.Image) else read_file(Path(picture), max_pixels)
    except (Damaged, FileNotFoundError) as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise BadPicture(f"{name} is not a picture in a format that npgemma reads ({', '.join(FORMATS)})") from None
        if not isinstance(picture, Image.Image) and (problem := url_problem(str(picture))):
            raise BadPicture(problem) from None
        if isinstance(error, FileNotFoundError):
            raise BadPicture(f"{name} was not found") from None
        raise BadPicture(f"{name} cannot be read: {error}") from None


def read_file(path: Path, max_pixels: int) -> Image.Image:
    """The upright RGB image in a file. BadPicture if it is of another kind or too large; anything if damaged.

    If the file cannot be read as it is, it is read without metadata, which does not affect pixels.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        check_kind(shortened(path), head, path.suffix)
        try:
            with parsing():
                return decode(file, path, max_pixels)
        except Damaged as error:
            file.seek(0)
            for content in without_metadata(file.read(MAX_BYTES)):
                with suppress(Damaged), parsing():
                    return decode(io.BytesIO(content), path, max_pixels)
            if isinstance(error.__cause__, UnidentifiedImageError) and is_picture(head):
                raise ValueError("its header is damaged") from None
            raise


def decode(file: IO[bytes], path: Path, max_pixels: int) -> Image.Image:
    """The upright RGB image in an open file. BadPicture if it is too large; anything if it is damaged."""
    file.seek(0)
    with warnings.catch_warnings(), bomb_limit(max_pixels):
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
        with open_image(file, path) as image:
            check_size(image, path, max_pixels)
            tags = getattr(image, "tag_v2", {})
            if DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == 1 and SUB_DIRECTORIES in tags):
                raise BadPicture(f"{shortened(path)} {RAW.problem()}")
            position = file.tell()
            if image.format == "PNG":
                check_png(file)
            elif image.format == "TIFF":
                check_tiff(file, tags)
            file.seek(position)
            rgb = to_rgb(image) if image.format != "JPEG" or image.mode != "RGB" else loaded(image)
            # after reading the pixels: for some formats Pillow turns the picture itself then, and removes the tag
            exif, raw = image.getexif(), image.info.get("exif", b"")
            orientation = exif.get(ExifTags.Base.Orientation) or exif_orientation(raw)
            if raw and not exif and orientation == 1:
                raise ValueError("its EXIF data cannot be read")
            turn = UPRIGHT.get(orientation)
            return rgb if turn is None else rgb.transpose(turn)


def open_image(file: IO[bytes], path: Path) -> Image.Image:
    """Pillow's image of an open file. BadPicture if Pillow finds it too large before it tells the size."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture(f"{shortened(path)} has too many pixels: {HINT}") from None


def loaded(image: Image.Image) -> Image.Image:
    """An image whose pixels have been read. It is the image itself: a copy would take as much memory again."""
    image.load()
    return image


def check_size(image: Image.Image, path: Path, max_pixels: int) -> None:
    """BadPicture if an image, whose pixels have not been read, is too large for the limit, its file or the memory."""
    pixels, size = image.width * image.height, f"{image.width} x {image.height} pixels"
    if pixels > max_pixels:
        raise BadPicture(f"{shortened(path)} has {size}; the limit is {max_pixels:,}: {HINT}")
    if pixels <= PLAIN:
        return
    if pixels > DENSEST * path.stat().st_size:
        file = f"a file of {path.stat().st_size:,} bytes"
        raise BadPicture(f"{shortened(path)} has {size} in {file}: it is damaged, or made to fill memory")
    available = available_memory()
    if available is not None and pixels * BYTES_PER_PIXEL > available:
        needed = f"reading them needs {memory(pixels * BYTES_PER_PIXEL)}, and {memory(available)} are available"
        raise BadPicture(f"{shortened(path)} has {size}; {needed}: make the picture smaller")


@contextmanager
def bomb_limit(max_pixels: int) -> Iterator[None]:
    """Raise Pillow's own limit, which is a global, while a larger `max_pixels` applies."""
    before = Image.MAX_IMAGE_PIXELS
    if before is not None and max_pixels > before:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def written_format(path: Path) -> str:
    """The format for the suffix of `path`. BadPicture if it is unknown, or the folder does not exist."""
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(path.suffix.lower())
    if kind is None:
        raise BadPicture(f"{path} cannot be written: its name must end in .png, .jpg, .webp or .bmp")
    if not path.parent.is_dir():
        raise BadPicture(f"{path} cannot be written: No such file or directory")
    return kind


def write_picture(image: Image.Image, path: Path) -> None:
    """Save `image` in the format for the suffix of `path`, completely or not at all.

    BadPicture if the suffix is unknown or the file cannot be written.
    """
    kind = written_format(path)
    try:
        with replace_file(path) as temporary:
            image.save(temporary, kind)
    except (OSError, ValueError) as error:
        raise BadPicture(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None

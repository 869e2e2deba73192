"""Pictures -> RGB images.

A file is turned upright by its EXIF tag, as viewers show it; a PIL image or an array is used as it is. Everything is
converted to RGB: transparency is composited over white, and 16 bits are scaled to 8, not clipped.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

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
ALLOW = "allow more (max_memory, --max-memory)"
HINT = "raise the limit with --max-pixels (in Python: model.processor.max_pixels), or make the picture smaller"
# Bytes a pixel that reading takes at most: as the file has it, as RGB, and turned; RGB takes four in Pillow. A JPEG may
# hold all its coefficients, and the decoder of WebP holds three pictures of its own.
FEWEST_BYTES = 8
BYTES_OF_FORMAT = {"JPEG": 12, "WEBP": 16}
BYTES_OF_MODE = {"I": 13, "F": 13, "I;16": 10, "I;16B": 10, "I;16L": 10}
# What a small file may take, and how much more for each byte of it: photos take 30 to 800.
PLAIN, DENSEST = 200_000_000, 1000
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


class Limits(NamedTuple):
    """How many pixels a file may have, and how many bytes reading it may take; None means what is available."""

    pixels: int = MAX_PIXELS
    memory: int | None = None


DEFAULT = Limits()


def read_picture(picture: Picture, limits: Limits = DEFAULT) -> Image.Image:
    """An RGB image of a path, a PIL image, or a uint8 array [H W], [H W 1], [H W 3] or [H W 4].

    BadPicture for anything else, for a damaged file, and for a file beyond the limits. Such a file is refused, and not
    read at a lower resolution, as a JPEG could be: the pixels would be others than those of transformers.
    """
    if isinstance(picture, np.ndarray):
        return to_rgb(from_array(picture))
    if not isinstance(picture, (str, Path, Image.Image)):
        raise BadPicture(f"a picture must be a path, a PIL image or a uint8 array, not a {type(picture).__name__}")
    name = shortened(picture)
    try:
        with parsing():
            return to_rgb(picture) if isinstance(picture, Image.Image) else read_file(Path(picture), limits)
    except (Damaged, FileNotFoundError) as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise BadPicture(f"{name} is not a picture in a format that npgemma reads ({', '.join(FORMATS)})") from None
        if not isinstance(picture, Image.Image) and (problem := url_problem(str(picture))):
            raise BadPicture(problem) from None
        if isinstance(error, FileNotFoundError):
            raise BadPicture(f"{name} was not found") from None
        raise BadPicture(f"{name} cannot be read: {error}") from None


def read_file(path: Path, limits: Limits) -> Image.Image:
    """The upright RGB image in a file. BadPicture if it is of another kind or too large; anything if damaged.

    If the file cannot be read as it is, it is read without metadata, which does not affect pixels.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        check_kind(shortened(path), head, path.suffix)
        try:
            with parsing():
                return decode(file, path, limits)
        except Damaged as error:
            file.seek(0)
            for content in without_metadata(file.read(MAX_BYTES)):
                with suppress(Damaged), parsing():
                    return decode(io.BytesIO(content), path, limits)
            if isinstance(error.__cause__, UnidentifiedImageError) and is_picture(head):
                raise ValueError("its header is damaged") from None
            raise


def decode(file: IO[bytes], path: Path, limits: Limits) -> Image.Image:
    """The upright RGB image in an open file. BadPicture if it is too large; anything if it is damaged."""
    rgb, turn = decode_stored(file, path, limits)
    return rgb if turn is None else rgb.transpose(turn)  # the image as it is stored is no longer in memory


def decode_stored(file: IO[bytes], path: Path, limits: Limits) -> tuple[Image.Image, Image.Transpose | None]:
    """The RGB image as it is stored, and what turns it upright. Errors as for `decode`."""
    file.seek(0)
    with warnings.catch_warnings(), bomb_limit(limits.pixels):
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
        with open_image(file, path) as image:
            check_size(image, path, limits)
            tags = getattr(image, "tag_v2", {})
            if DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == 1 and SUB_DIRECTORIES in tags):
                raise BadPicture(f"{shortened(path)} {RAW.problem()}")
            position = file.tell()
            if image.format == "PNG":
                check_png(file)
            elif image.format == "TIFF":
                check_tiff(file, tags)
            file.seek(position)
            image.load()
            is_rgb = image.mode == "RGB" and not image.has_transparency_data
            rgb = image if is_rgb else to_rgb(image)  # a copy would take as much memory again
            # after reading the pixels: for some formats Pillow turns the picture itself then, and removes the tag
            exif, raw = image.getexif(), image.info.get("exif", b"")
            orientation = exif.get(ExifTags.Base.Orientation) or exif_orientation(raw)
            if raw and not exif and orientation == 1:
                raise ValueError("its EXIF data cannot be read")
            return rgb, UPRIGHT.get(orientation)


def open_image(file: IO[bytes], path: Path) -> Image.Image:
    """Pillow's image of an open file. BadPicture if Pillow finds it too large before it tells the size."""
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture(f"{shortened(path)} has too many pixels: {HINT}") from None


def check_size(image: Image.Image, path: Path, limits: Limits) -> None:
    """BadPicture if an image, whose pixels have not been read, is too large for the limits, its file or the memory."""
    pixels, name = image.width * image.height, f"{shortened(path)} has {image.width} x {image.height} pixels"
    if pixels > limits.pixels:
        raise BadPicture(f"{name}; the limit is {limits.pixels:,}: {HINT}")
    stored = path.stat().st_size
    needed = planned_bytes(image, path)
    if needed > PLAIN + DENSEST * stored:
        raise BadPicture(f"{name} in a file of {stored:,} bytes: it is damaged, or made to fill memory")
    takes = f"{name}; reading them takes up to {memory(needed)}"
    if limits.memory is not None:
        if needed > limits.memory:
            left = f"{memory(max(limits.memory, 0))} that the model leaves of the memory allowed"
            raise BadPicture(f"{takes}, more than the {left}: make the picture smaller, or {ALLOW}")
    elif needed > PLAIN and (available := available_memory()) is not None and needed > available:
        raise BadPicture(f"{takes}, and {memory(available)} are available: make the picture smaller")


def planned_bytes(image: Image.Image, path: Path) -> int:
    """How many bytes reading the image in a file takes at most; some formats are read into memory as a whole."""
    each = max(FEWEST_BYTES, BYTES_OF_FORMAT.get(image.format or "", 0), BYTES_OF_MODE.get(image.mode, 0))
    return image.width * image.height * each + path.stat().st_size


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

"""Pictures -> RGB images.

A file is turned upright by its EXIF tag, as viewers show it; a PIL image or an array is used as it is. Everything is
converted to RGB: transparency is composited over white, and 16 bits are scaled to 8, not clipped.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from npgemma.errors import BadPicture, shortened
from npgemma.io.atomic_write import replace_file
from npgemma.io.picture_kinds import HEAD, RAW, check_kind, is_picture, url_problem
from npgemma.io.picture_metadata import check_png, check_tiff, exif_orientation, without_metadata
from npgemma.io.regular_files import open_regular
from npgemma.layers.shapes import Array

# Pillow's other decoders can start programs, or have had many security holes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_000_000  # Pillow's limit, where it only warns; a larger file is probably a decompression bomb
HINT = "raise the limit with --max-pixels (in Python: model.processor.max_pixels), or make the picture smaller"
MAX_BYTES = 1 << 30  # of a damaged file that is read into memory; a larger one counts as cut short there
# TIFF tags of RAW photos, whose first picture is a thumbnail: DNG says so by its version, others by the picture's kind.
DNG_VERSION, SUBFILE_TYPE, SUB_DIRECTORIES = 50706, 254, 330

# What Pillow raises for a damaged file: the errors that its own fuzzers accept, and some found by the tests here.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    EOFError,
    MemoryError,
    AssertionError,
    struct.error,
    Image.DecompressionBombError,
)
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
        return to_rgb(picture) if isinstance(picture, Image.Image) else read_file(Path(picture), max_pixels)
    except UnidentifiedImageError:
        raise BadPicture(f"{name} is not a picture in a format that npgemma reads ({', '.join(FORMATS)})") from None
    except DAMAGE as error:
        if not isinstance(picture, Image.Image) and (problem := url_problem(str(picture))):
            raise BadPicture(problem) from None
        if isinstance(error, FileNotFoundError):
            raise BadPicture(f"{name} was not found") from None
        reason = getattr(error, "strerror", None) or str(error) or "it is damaged"
        raise BadPicture(f"{name} cannot be read: {reason}") from None


def read_file(path: Path, max_pixels: int) -> Image.Image:
    """The upright RGB image in a file. BadPicture if it is of another kind or too large; one of DAMAGE if damaged.

    If the file cannot be read as it is, it is read without metadata, which does not affect pixels.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        check_kind(shortened(path), head, path.suffix)
        try:
            return decode(file, path, max_pixels)
        except DAMAGE as error:
            file.seek(0)
            for content in without_metadata(file.read(MAX_BYTES)):
                try:
                    return decode(io.BytesIO(content), path, max_pixels)
                except DAMAGE:
                    continue
            if isinstance(error, UnidentifiedImageError) and is_picture(head):
                raise ValueError("its header is damaged") from None
            raise


def decode(file: IO[bytes], path: Path, max_pixels: int) -> Image.Image:
    """The upright RGB image in an open file. BadPicture if it is too large; one of DAMAGE if it is damaged."""
    file.seek(0)
    with warnings.catch_warnings(), bomb_limit(max_pixels):
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
        with open_image(file, path) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise BadPicture(f"{shortened(path)} has {size}; the limit is {max_pixels:,}: {HINT}")
            tags = getattr(image, "tag_v2", {})
            if DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == 1 and SUB_DIRECTORIES in tags):
                raise BadPicture(f"{shortened(path)} {RAW.problem()}")
            position = file.tell()
            if image.format == "PNG":
                check_png(file)
            elif image.format == "TIFF":
                check_tiff(file, tags)
            file.seek(position)
            rgb = to_rgb(image)
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


def from_array(array: Array) -> Image.Image:
    """A PIL image of a uint8 array. BadPicture for another dtype, whose range would be a guess, or another shape."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        found = f"{array.dtype} {list(array.shape)}"
        raise BadPicture(f"a picture array must be uint8 [H W], [H W 1], [H W 3] or [H W 4], not {found}")
    return Image.fromarray(np.ascontiguousarray(array))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit grays times 1/257, transparency over white, the rest as Pillow converts it."""
    if not image.width or not image.height:
        raise BadPicture(f"the picture has {image.width} x {image.height} pixels; it needs at least one")
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.asarray(image)
        transparent = gray == image.info.get("transparency", np.nan)
        return Image.fromarray(np.where(transparent, np.uint8(255), eight_bits(gray))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def eight_bits(gray: Array) -> Array:
    """Grays as 0 .. 255: times 1/257 if they have 16 bits or any exceeds 255; floats in 0 .. 1 times 255.

    BadPicture for values outside 0 .. 65535.
    """
    if not np.isfinite(gray).all() or gray.min() < 0 or gray.max() > 65535:
        raise BadPicture(f"the gray values range from {gray.min()} to {gray.max()}; npgemma reads 0 to 65535")
    if gray.dtype.kind == "f" and gray.max() <= 1:
        gray = gray * 255
    deep = gray.dtype.itemsize == 2 or gray.max() > 255
    return np.rint(gray / 257 if deep else gray).astype(np.uint8)


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

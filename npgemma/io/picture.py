"""Pictures -> RGB images.

A file is turned upright by its EXIF tag, as viewers show it; a PIL image or an array is used as it is. Everything is
converted to RGB: transparency is composited over white, and 16 bits are scaled to 8, not clipped.
"""

import struct
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from npgemma.errors import BadPicture
from npgemma.io.atomic_write import replace_file
from npgemma.layers.shapes import Array

# Pillow's other decoders can start programs, or have had many security holes.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_000_000  # Pillow's limit, where it only warns; a larger file is probably a decompression bomb

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
    try:
        return to_rgb(picture) if isinstance(picture, Image.Image) else read_file(Path(picture), max_pixels)
    except FileNotFoundError:
        raise BadPicture(f"{picture} was not found") from None
    except UnidentifiedImageError:
        raise BadPicture(f"{picture} is not a picture in a format that npgemma reads ({', '.join(FORMATS)})") from None
    except DAMAGE as error:
        raise BadPicture(f"{picture} cannot be read: {error}") from None


def read_file(path: Path, max_pixels: int) -> Image.Image:
    """The upright RGB image in a file. BadPicture if it is too large; one of DAMAGE if it is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, and about sizes, which are checked here
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadPicture(f"{path} has {image.width} x {image.height} pixels; the limit is {max_pixels:,}")
            rgb = to_rgb(image)
            # after reading the pixels: for some formats Pillow turns the picture itself then, and removes the tag
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return rgb if turn is None else rgb.transpose(turn)


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

"""Pictures -> pixel values; of an RGB picture bit for bit those of transformers' PIL backend.

A path is read as a person would see it: turned upright by its EXIF tag. A PIL image or an array is taken as it is. Both
are brought to RGB: transparency over white, 16 bits scaled to 8 and not clipped.
"""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from npgemma.errors import BadPicture
from npgemma.io.atomic_write import beside
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
)  # the rest can start programs or has been a door too often
MAX_PIXELS = 89_000_000  # Pillow only warns here; a larger picture is likelier an attack than a photograph

# What Pillow raises on a damaged file: the errors its own fuzzers take for a clean refusal, and some seen here.
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
# How to turn a picture upright, by its EXIF orientation; 1 is upright.
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


def read_picture(picture: Picture) -> Image.Image:
    """An RGB image of a path, a PIL image, or a uint8 array [H W], [H W 1], [H W 3] or [H W 4]; else BadPicture."""
    if isinstance(picture, np.ndarray):
        return to_rgb(from_array(picture))
    if not isinstance(picture, (str, Path, Image.Image)):
        raise BadPicture(f"a picture is a path, a PIL image or a uint8 array, not a {type(picture).__name__}")
    try:
        return to_rgb(picture) if isinstance(picture, Image.Image) else read_file(Path(picture))
    except FileNotFoundError:
        raise BadPicture(f"{picture} is missing: there is no such picture") from None
    except UnidentifiedImageError:
        raise BadPicture(f"{picture} is not a picture that npgemma reads ({', '.join(FORMATS)})") from None
    except DAMAGE as error:
        raise BadPicture(f"{picture} cannot be read: {error}") from None


def read_file(path: Path) -> Image.Image:
    """The RGB image in a file, upright. BadPicture if it is too large; whatever Pillow raises if it is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, and of sizes, which are checked here
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels"
                raise BadPicture(f"{path} has {size}; npgemma reads up to {MAX_PIXELS // 1_000_000} million")
            rgb = to_rgb(image)
            # only now: Pillow turns some formats itself while it reads their pixels, and takes the tag away
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return rgb if turn is None else rgb.transpose(turn)


def from_array(array: Array) -> Image.Image:
    """A PIL image of a uint8 array. BadPicture for another dtype or shape: guessing a range would be silently wrong."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
        or not array.size
    ):
        raise BadPicture(
            f"a picture array is uint8 [H W], [H W 1], [H W 3] or [H W 4], not {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grays scaled by 1/257, transparency over white, the rest as Pillow converts it."""
    if not image.width or not image.height:
        raise BadPicture(f"a picture of {image.width} x {image.height} pixels shows nothing")
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
    """Grays to 0 .. 255: 16-bit ones by 1/257, wider ones too if any exceeds 255; floats of 0 .. 1 by 255.

    BadPicture beyond 0 .. 65535.
    """
    if not np.isfinite(gray).all() or gray.min() < 0 or gray.max() > 65535:
        raise BadPicture(f"gray values run from {gray.min()} to {gray.max()}; npgemma reads 0 to 65535")
    if gray.dtype.kind == "f" and gray.max() <= 1:
        gray = gray * 255
    deep = gray.dtype.itemsize == 2 or gray.max() > 255
    return np.rint(gray / 257 if deep else gray).astype(np.uint8)


def pixel_values(images: Sequence[Image.Image], side: int, tap: Tap = silent) -> Float[Array, "B 3 Y X"]:
    """RGB images as float32 in -1 .. 1: squashed to a square (bicubic, antialiased, 8 bits), (u8/255 - 0.5) / 0.5.

    The aspect ratio is not kept: PaliGemma never saw it. The division by 255 is a product with 1/255 in float64,
    rounded to float32 once, as in transformers; anything else differs in the last bit.
    """
    values = np.empty((len(images), 3, side, side), np.float32)
    for i, image in enumerate(images):
        small = tap(f"pictures.{i}.resized", np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)), "Y X C")
        unit = (small.astype(np.float64) * (1 / 255)).astype(np.float32)
        values[i] = ((unit - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)
    return values


def written_format(path: Path) -> str:
    """The format that the ending of `path` names. BadPicture if it is none to write in, or there is no such folder."""
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(path.suffix.lower())
    if kind is None:
        raise BadPicture(f"{path} cannot be written: end its name in .png or .jpg")
    if not path.parent.is_dir():
        raise BadPicture(f"{path} cannot be written: No such file or directory")
    return kind


def write_picture(image: Image.Image, path: Path) -> None:
    """Save `image` in the format that the ending of `path` names.

    It is written beside `path` and then renamed, so no half picture is left. BadPicture if the ending names no format
    or the file cannot be written.
    """
    kind = written_format(path)
    try:
        with beside(path) as temporary:
            image.save(temporary, kind)
    except (OSError, ValueError) as error:
        raise BadPicture(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None

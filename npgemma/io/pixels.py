"""Pictures -> pixel values, bit for bit those of transformers' PIL backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import DEFAULT, MAX_PIXELS, Limits, Picture, read_picture
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, at, silent

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@dataclass(frozen=True)
class PixelSettings:
    """How a picture becomes numbers; the defaults are PaliGemma's.

    A step that is None is left out. A picture is resized to a square, or, if it keeps its shape, so that its shorter
    edge has `edge` pixels; None stands for the side of what the model reads. `crop` then takes the middle of it.
    """

    resample: Image.Resampling | None = BICUBIC
    keeps_shape: bool = False
    rescale_factor: float | None = 1 / 255
    mean_and_std: tuple[tuple[float, ...], tuple[float, ...]] | None = ((0.5,) * 3, (0.5,) * 3)
    edge: int | None = None
    crop: bool = False


PALIGEMMA = PixelSettings()


def pixel_values(
    pictures: Sequence[Picture],
    side: int,
    settings: PixelSettings = PALIGEMMA,
    limits: Limits = DEFAULT,
    tap: Tap = silent,
) -> Float[Array, "B 3 Y X"]:
    """Pictures as float32 [picture, channel, row, column]. BadPicture as for `read_picture` and `resized`.

    They are read one at a time: a photograph takes more memory than its pixel values.
    """
    values = np.empty((len(pictures), 3, side, side), np.float32)
    for i, picture in enumerate(pictures):
        values[i] = picture_values(read_picture(picture, limits), side, settings, at(tap, f"pictures.{i}"))
    return values


def picture_values(
    image: Image.Image, side: int, settings: PixelSettings = PALIGEMMA, tap: Tap = silent
) -> Float[Array, "3 Y X"]:
    """An RGB image as float32 [channel, row, column]. With PaliGemma's settings, its values are in -1 .. 1.

    Those resize to a square (bicubic, antialiased, 8 bits; the aspect ratio is not kept, as in PaliGemma's training),
    then compute (u8/255 - 0.5) / 0.5. The division by 255 is a product with 1/255 in float64, rounded to float32 once,
    as in transformers; anything else differs in the last bit. BadPicture as for `resized`.
    """
    small, factor = tap("resized", np.asarray(resized(image, side, settings)), "Y X C"), settings.rescale_factor
    values = (small if factor is None else small.astype(np.float64) * factor).astype(np.float32).transpose(2, 0, 1)
    if settings.mean_and_std is None:
        return values
    mean, std = (np.array(each, np.float32)[:, None, None] for each in settings.mean_and_std)
    return (values - mean) / std


def resized(image: Image.Image, side: int, settings: PixelSettings) -> Image.Image:
    """The picture with `side` rows and columns. BadPicture if the settings make another size of it."""
    columns, rows = size = resized_size(image, settings.edge or side, settings)
    what = f"a picture has {image.width} x {image.height} pixels, and the model's image processor"
    if not settings.crop and size != (side, side):
        step = (
            "does not resize pictures (do_resize)"
            if settings.resample is None
            else "resizes by the shorter edge (size)"
        )
        raise BadPicture(f"{what} {step}; give it pictures of {side} x {side} pixels")
    if columns * rows > MAX_PIXELS:
        raise BadPicture(f"{what} would make {columns} x {rows} of them (size); crop it, it is too narrow")
    if settings.resample is not None:
        image = image.resize(size, settings.resample)
    return middle(image, side) if settings.crop else image


def resized_size(image: Image.Image, edge: int, settings: PixelSettings) -> tuple[int, int]:
    """Columns and rows after resizing."""
    if settings.resample is None:
        return image.size
    if settings.keeps_shape:
        short = min(image.size)
        return edge * image.width // short, edge * image.height // short
    return edge, edge


def middle(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle; where half a pixel is too many, the one towards the top left.

    OpenAI's code rounds half a pixel to even: its square is one pixel further if the margins are 3, 7, 11 and so on.
    What lies outside a small picture is black.
    """
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))

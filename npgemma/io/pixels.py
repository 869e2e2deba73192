"""RGB pictures -> pixel values, bit for bit those of transformers' PIL backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent

BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class PixelSettings:
    """How a picture becomes numbers; the defaults are PaliGemma's.

    A step that is None is left out. `keeps_shape` resizes the shorter edge to the model's side, not both.
    """

    resample: Image.Resampling | None = BICUBIC
    keeps_shape: bool = False
    rescale_factor: float | None = 1 / 255
    mean_and_std: tuple[tuple[float, ...], tuple[float, ...]] | None = ((0.5,) * 3, (0.5,) * 3)


PALIGEMMA = PixelSettings()


def pixel_values(
    images: Sequence[Image.Image], side: int, settings: PixelSettings = PALIGEMMA, tap: Tap = silent
) -> Float[Array, "B 3 Y X"]:
    """RGB images as float32 [picture, channel, row, column]. With PaliGemma's settings they are in -1 .. 1.

    Those resize to a square (bicubic, antialiased, 8 bits; the aspect ratio is not kept, as in PaliGemma's training),
    then compute (u8/255 - 0.5) / 0.5. The division by 255 is a product with 1/255 in float64, rounded to float32 once,
    as in transformers; anything else differs in the last bit. BadPicture as for `resized`.
    """
    factor = settings.rescale_factor
    values = np.empty((len(images), 3, side, side), np.float32)
    for i, image in enumerate(images):
        small = tap(f"pictures.{i}.resized", np.asarray(resized(image, side, settings)), "Y X C")
        values[i] = (small if factor is None else small.astype(np.float64) * factor).transpose(2, 0, 1)
    if settings.mean_and_std is not None:
        mean, std = (np.array(each, np.float32)[:, None, None] for each in settings.mean_and_std)
        values -= mean
        values /= std
    return values


def resized(image: Image.Image, side: int, settings: PixelSettings) -> Image.Image:
    """The picture with `side` rows and columns. BadPicture if the settings make another size of it."""
    if settings.resample is None:
        size, why = image.size, "does not resize pictures (do_resize)"
    elif settings.keeps_shape:
        short = min(image.size)
        size, why = (side * image.width // short, side * image.height // short), "resizes by the shorter edge (size)"
    else:
        return image.resize((side, side), settings.resample)
    if size != (side, side):
        what = f"a picture has {image.width} x {image.height} pixels, and the model's image processor {why}"
        raise BadPicture(f"{what}; give it pictures of {side} x {side} pixels")
    return image if settings.resample is None else image.resize(size, settings.resample)

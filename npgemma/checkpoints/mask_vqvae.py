"""vae-oid.npz, the weights of the mask auto-encoder; the names are those of big_vision's file."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from npgemma.checkpoints.layout import Layout, Line, Part, make_layout, table
from npgemma.errors import BadModel
from npgemma.io.foreign import Damaged, parsing
from npgemma.io.npz import read_npz
from npgemma.layers.conv import Conv, ConvTranspose
from npgemma.layers.shapes import Array
from npgemma.layers.tree import SLOT
from npgemma.models.mask_vqvae import MaskDecoder, MaskEncoder, MaskVQVAE, ResidualBlock

CODEC = "vae-oid.npz"  # as big_vision publishes it; beside a model's weights
CODEBOOK = "_vq_vae._embedding"
SEGMENT_CODES = 128
MOST_BYTES = 100_000_000  # ten times what big_vision's file unpacks to

# Every layer in the order of computation: its field, its name, and the side of its kernels.
LAYERS = table("""
    decoder.ends[0]               decoder.0          1
    decoder.blocks[0].convs[0]    decoder.2.net.0    3
    decoder.blocks[0].convs[1]    decoder.2.net.2    3
    decoder.blocks[0].convs[2]    decoder.2.net.4    1
    decoder.blocks[1].convs[0]    decoder.3.net.0    3
    decoder.blocks[1].convs[1]    decoder.3.net.2    3
    decoder.blocks[1].convs[2]    decoder.3.net.4    1
    decoder.up[0]                 decoder.4          4
    decoder.up[1]                 decoder.6          4
    decoder.up[2]                 decoder.8          4
    decoder.up[3]                 decoder.10         4
    decoder.ends[1]               decoder.12         1
    encoder.down[0]               encoder.0          4
    encoder.down[1]               encoder.2          4
    encoder.down[2]               encoder.4          4
    encoder.down[3]               encoder.6          4
    encoder.blocks[0].convs[0]    encoder.8.net.0    3
    encoder.blocks[0].convs[1]    encoder.8.net.2    3
    encoder.blocks[0].convs[2]    encoder.8.net.4    1
    encoder.blocks[1].convs[0]    encoder.9.net.0    3
    encoder.blocks[1].convs[1]    encoder.9.net.2    3
    encoder.blocks[1].convs[2]    encoder.9.net.4    1
    encoder.last                  encoder.10         1
""")
CONV = table("""
    weight    weight    O I h w
    bias      bias      O
""")
UP = (Line("weight", "weight", "I O h w"), *CONV[1:])


def read_mask_codec(path: str | Path) -> MaskVQVAE:
    """Read the auto-encoder that turns mask codes into masks, in float32.

    Parameters
    ----------
    path : str or Path
        An .npz file with the names of big_vision's vae-oid.npz.

    Returns
    -------
    MaskVQVAE
        The weights that `object_masks` and `encode_object` take.

    Raises
    ------
    BadModel
        If the file is missing, damaged, or contains another architecture.

    Examples
    --------
    >>> import npgemma
    >>> codec = npgemma.read_mask_codec(npgemma.load().folder / "vae-oid.npz")
    >>> codec.codebook.shape
    (128, 32)
    """
    path = Path(path)
    try:
        with parsing():  # NumPy converts what is not a number, or refuses to
            tensors = {name: np.asarray(x, np.float32) for name, x in read_npz(path, MOST_BYTES).items()}
    except FileNotFoundError:
        raise BadModel(
            f"{path} is missing; masks need the weights of a decoder, such as big_vision's {CODEC}"
        ) from None
    except Damaged as error:
        raise BadModel(f"{path} is not a valid .npz file of numbers: {error}") from None
    return mask_codec(tensors, path)


def mask_codec(tensors: Mapping[str, Array], path: Path) -> MaskVQVAE:
    """The auto-encoder of named tensors; BadModel unless they are those of the architecture and fit together."""
    missing = [name for name in tensor_names() if name not in tensors]
    if missing:
        others = f" and {len(missing) - 1} other tensors are missing" if missing[1:] else " is missing"
        raise BadModel(f"{path} is not a mask auto-encoder: {missing[0]!r}{others}")
    layout = layout_of(tensors)
    for name, shape in layout.shapes.items():
        found = list(tensors[name].shape)
        if found != list(shape):
            raise BadModel(f"{path}: {name} has shape {found}; the other layers need {list(shape)}")
        if not np.isfinite(tensors[name]).all():
            raise BadModel(f"{path}: {name} contains NaN or infinity")
    return layout.fill(tensors)


def tensor_names() -> list[str]:
    """The names of all tensors in the file."""
    return [CODEBOOK, *(f"{layer.name}.{kind}" for layer in LAYERS for kind in ("weight", "bias"))]


def layout_of(tensors: Mapping[str, Array]) -> Layout[MaskVQVAE]:
    """The layout in which every layer takes what the one before it gives, with as many channels as the tensors say."""
    return make_layout(blank(), *parts_of(tensors))


def parts_of(tensors: Mapping[str, Array]) -> Iterator[Part]:
    """The codebook, and every layer in the order of computation."""
    width = tensors[CODEBOOK].shape[-1] if tensors[CODEBOOK].ndim else 0
    yield Part((Line("codebook", CODEBOOK, "128 E"),), {"E": width})
    yield from layer_parts(tensors, width)


def layer_parts(tensors: Mapping[str, Array], width: int) -> Iterator[Part]:
    """A part for each layer. Decoder and encoder end in one channel and in the width of the codebook."""
    lasts = {"decoder.ends[1]": 1, "encoder.last": width}
    channels = width
    for field, name, kernel in LAYERS:
        if field == "encoder.down[0]":
            channels = 1
        if field.endswith("convs[0]"):
            lasts[field.replace("convs[0]", "convs[2]")] = channels  # the block's input is added to its output
        lines = UP if ".up[" in field else CONV
        shape = tensors[f"{name}.weight"].shape
        out = lasts.get(field, shape[lines[0].axes.split().index("O")] if len(shape) == 4 else 0)
        sizes = {"I": channels, "O": out, "h": int(kernel), "w": int(kernel)}
        yield Part(lines, sizes, f"{field}.", f"{name}.")
        channels = out


def blank() -> MaskVQVAE:
    """The weights with a Slot in place of each array."""
    conv, up = Conv(SLOT, SLOT), ConvTranspose(SLOT, SLOT)
    blocks = (ResidualBlock((conv,) * 3),) * 2
    return MaskVQVAE(SLOT, MaskDecoder(blocks, (up,) * 4, (conv,) * 2), MaskEncoder((conv,) * 4, blocks, conv))

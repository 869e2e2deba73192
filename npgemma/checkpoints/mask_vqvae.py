"""vae-oid.npz, the mask auto-encoder's weights, as a `MaskVQVAE`; the names are those of big_vision's file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npgemma.errors import BadModel
from npgemma.io.npz import DAMAGE, read_npz
from npgemma.layers.conv import Conv, ConvTranspose
from npgemma.layers.shapes import Array
from npgemma.models.mask_vqvae import MaskDecoder, MaskEncoder, MaskVQVAE, ResidualBlock

CODEC = "vae-oid.npz"  # as big_vision publishes it; beside a model's weights
CODEBOOK = "_vq_vae._embedding"
DECODER_BLOCKS, DECODER_UP, DECODER_LAST = (2, 3), (4, 6, 8, 10), 12
ENCODER_DOWN, ENCODER_BLOCKS, ENCODER_LAST = (0, 2, 4, 6), (8, 9), 10
SEGMENT_CODES = 128
MOST_BYTES = 100_000_000  # ten times what big_vision's file unpacks to


def read_mask_codec(path: str | Path) -> MaskVQVAE:
    """The auto-encoder in an .npz file, in float32. BadModel if it is missing, damaged, or not of this architecture."""
    path = Path(path)
    try:
        tensors = {name: np.asarray(x, np.float32) for name, x in read_npz(path, MOST_BYTES).items()}
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: masks need a decoder's weights, such as big_vision's {CODEC}") from None
    except DAMAGE as error:
        raise BadModel(f"{path} is not a usable .npz file of numbers ({error})") from None
    return mask_codec(tensors, path)


def mask_codec(tensors: Mapping[str, Array], path: Path) -> MaskVQVAE:
    """The auto-encoder of named tensors; BadModel unless they are those of the architecture and fit together."""
    missing = [name for name in tensor_names() if name not in tensors]
    if missing:
        raise BadModel(f"{path} is not a mask auto-encoder: {missing[0]!r} and {len(missing) - 1} others are missing")

    def pair(name: str) -> tuple[Array, Array]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

    def blocks(part: str, numbers: tuple[int, ...]) -> tuple[ResidualBlock, ...]:
        return tuple(ResidualBlock(tuple(Conv(*pair(f"{part}.{i}.net.{j}")) for j in (0, 2, 4))) for i in numbers)

    check(tensors, path)
    return MaskVQVAE(
        tensors[CODEBOOK],
        MaskDecoder(
            blocks("decoder", DECODER_BLOCKS),
            tuple(ConvTranspose(*pair(f"decoder.{i}")) for i in DECODER_UP),
            tuple(Conv(*pair(f"decoder.{i}")) for i in (0, DECODER_LAST)),
        ),
        MaskEncoder(
            tuple(Conv(*pair(f"encoder.{i}")) for i in ENCODER_DOWN),
            blocks("encoder", ENCODER_BLOCKS),
            Conv(*pair(f"encoder.{ENCODER_LAST}")),
        ),
    )


def tensor_names() -> list[str]:
    """Every name in the file."""
    decoder = [f"decoder.{i}" for i in (0, *DECODER_UP, DECODER_LAST)]
    encoder = [f"encoder.{i}" for i in (*ENCODER_DOWN, ENCODER_LAST)]
    inner = [f"{part}.{i}.net.{j}" for part, numbers in BLOCKS.items() for i in numbers for j in (0, 2, 4)]
    return [CODEBOOK, *(f"{name}.{kind}" for name in (*decoder, *encoder, *inner) for kind in ("weight", "bias"))]


BLOCKS = {"decoder": DECODER_BLOCKS, "encoder": ENCODER_BLOCKS}


def check(tensors: Mapping[str, Array], path: Path) -> None:
    """BadModel unless each layer takes what the one before it gives, and kernels are of the sizes they must have."""
    for name in tensor_names():
        if not np.isfinite(tensors[name]).all():
            raise BadModel(f"{path}: {name} is not finite")
    codebook = tensors[CODEBOOK]
    if codebook.ndim != 2 or len(codebook) != SEGMENT_CODES:
        raise BadModel(f"{path}: the codebook is {list(codebook.shape)}; it has {SEGMENT_CODES} rows")
    width = codebook.shape[1]

    def follow(channels: int, kernel: int, *names: str, turned: bool = False) -> int:
        for name in names:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            out = weight.shape[1 if turned else 0] if weight.ndim == 4 else 0
            shape = (channels, out) if turned else (out, channels)
            if weight.shape != (*shape, kernel, kernel) or bias.shape != (out,):
                found = f"{list(weight.shape)} with a bias of {list(bias.shape)}"
                raise BadModel(f"{path}: {name} is {found}; {channels} channels and {kernel} x {kernel} pixels fit")
            channels = out
        return channels

    def blocks(channels: int, part: str) -> int:
        for i in BLOCKS[part]:
            channels = follow(channels, 3, f"{part}.{i}.net.0", f"{part}.{i}.net.2")
            channels = follow(channels, 1, f"{part}.{i}.net.4")
        return channels

    decoded = blocks(follow(width, 1, "decoder.0"), "decoder")
    decoded = follow(decoded, 4, *(f"decoder.{i}" for i in DECODER_UP), turned=True)
    decoded = follow(decoded, 1, f"decoder.{DECODER_LAST}")
    encoded = blocks(follow(1, 4, *(f"encoder.{i}" for i in ENCODER_DOWN)), "encoder")
    encoded = follow(encoded, 1, f"encoder.{ENCODER_LAST}")
    if (decoded, encoded) != (1, width):
        raise BadModel(f"{path}: decoder and encoder end in {decoded} and {encoded} channels, not 1 and {width}")

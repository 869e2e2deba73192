"""What determines a run, as golden files state it: hashes of everything read, versions, and npgemma's choices where
implementations differ. Times, host names and paths are left out, so that two recordings have the same bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from npgemma.api.generation import Model
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.rounding import FLOAT32, HEAD_NORMS, LATER, SCHEDULES, Schedule
from npgemma.io.picture import Picture, read_picture
from npgemma.io.pixels import PALIGEMMA
from npgemma.io.safetensors import weight_files
from npgemma.models.gemma import Decoder

# What npgemma computes where implementations differ. These texts are in golden files, whose bytes depend on them.
POLICY: dict[str, Any] = {
    "positions": "from 1",
    "mask": "the prefix sees all of itself, the suffix is causal",
    "norm": "rms_norm times (1 + weight); layer_norm with the biased variance",
    "scale": "text embeddings times sqrt(D), image features as they are; scores divided by sqrt(H)",
    "gelu": "tanh",
    "softmax": "largest score taken off first; rows not to be seen are exactly 0",
    "rope": "half-split pairs; angles in float64 for the truth, in float32 for the envelopes",
    "soft_caps": None,
}
# A Gemma without pictures.
LANGUAGE_MODEL = POLICY | {
    "positions": "from 0",
    "mask": "causal",
    "norm": "rms_norm times (1 + weight)",
    "scale": "embeddings times sqrt(D); scores divided by sqrt(H)",
}
# What the decoder of PaliGemma 2 adds.
POST_NORMS = "what attention and the MLP write is normed before it is added"
UNCAPPED = "big_vision does not cap logits: its likeliest tokens are the same, its probabilities are not"
PREFIX = (
    "sees all of itself in the first pass, whatever the window, as in transformers; later rows see the window alone"
)
# What differs elsewhere from a PaliGemma 2.
UNWINDOWED = "big_vision has no window: where a prompt is longer, its logits differ from the second new token on"
# What the decoder of Gemma 3 adds.
HEADS_NORMED = "each head of q and k, before RoPE"
PREPROCESSING = {
    "backend": "pillow",
    "resample": "bicubic, antialiased, 8 bits, aspect ratio not kept",
    "rescale": "u8 * (1/255) in float64, rounded to float32, then (x - 0.5) / 0.5 in float32",
}


def describe(
    model: Model,
    images: Sequence[Picture],
    prompt: str,
    axes: Mapping[str, str],
    schedule: str,
    wide: str,
) -> dict[str, Any]:
    """The metadata of a golden file: `axes` by tap, in execution order; `wide` is the dtype of floats."""
    return {
        "case": {"prompt": prompt, "images": [image_hash(image) for image in images], "seed": None},
        "model": model_hashes(model) | {"truth_stored_as": wide},
        "preprocessing": preprocessing(model) if isinstance(model, VisionLanguageModel) else None,
        "tokenizer": {"sha256": file_hash(model.tokenizer_file)},
        "policy": policy(model),
        "schedules": {
            "float32": {"name": "float32", "rounds": FLOAT32},
            "bfloat16": {"name": schedule, "rounds": rounds(schedule, model.decoder)},
        },
        "taps": [[name, letters] for name, letters in axes.items()],
        "versions": {"npgemma": installed_version(), "numpy": np.__version__, "blas": blas()},
    }


def policy(model: Model) -> dict[str, Any]:
    """POLICY or LANGUAGE_MODEL, with what the decoder of Gemma 2 or 3 adds or computes otherwise."""
    p, reads_pictures = model.decoder, isinstance(model, VisionLanguageModel)
    base, first = POLICY if reads_pictures else LANGUAGE_MODEL, p.blocks[0]
    if first.attn_post_norm is None:
        return base
    scale = first.attn.scale or first.attn.q.shape[2] ** -0.5
    caps: dict[str, Any] = {"scores": first.attn.cap, "logits": p.cap}
    layers = [i for i, block in enumerate(p.blocks) if block.attn.window is not None]
    window: dict[str, Any] = {"rows": p.window, "layers": layers}
    order = {"scores_before": "the mask"}
    if reads_pictures:
        order |= {"elsewhere": UNCAPPED}
        window |= {"prefix": PREFIX, "elsewhere": UNWINDOWED}
    found = base | {
        "scale": base["scale"].replace("divided by sqrt(H)", f"times {scale}"),
        "soft_caps": caps | order if any(caps.values()) else None,
        "post_norms": POST_NORMS,
        "window": window,
    }
    return found if first.attn.q_norm is None else found | {"head_norms": HEADS_NORMED, "rotation": rotation(p)}


def rotation(p: Decoder) -> list[dict[str, float]]:
    """The theta of each layer, and the factor that its positions are divided by."""
    return [{"theta": block.attn.theta, "factor": block.attn.factor} for block in p.blocks]


def rounds(schedule: str, p: Decoder) -> Schedule:
    """What a schedule rounds, without the tensors that only later decoders have."""
    first = p.blocks[0]
    absent = {*(LATER if first.attn_post_norm is None else ()), *(HEAD_NORMS if first.attn.q_norm is None else ())}
    return {name: dtype for name, dtype in SCHEDULES[schedule].items() if name not in absent}


def preprocessing(model: VisionLanguageModel) -> dict[str, Any]:
    """How pictures become pixel values: in words for PaliGemma's settings, else the settings of the model."""
    settings = model.config.pixels
    found = PREPROCESSING if settings == PALIGEMMA else {"backend": "pillow"} | asdict(settings)
    return found | {"pillow": PIL.__version__, "side": model.config.vision.image_size}


def model_hashes(model: Model) -> dict[str, Any]:
    """sha256 of the config, and of each file that weights are read from, by file name."""
    return {
        "config": file_hash(model.folder / "config.json"),
        "weights": {path.name: file_hash(path) for path in weight_files(model.path)},
    }


def is_recorded_from(recorded: Mapping[str, Any], model: Model) -> bool:
    """Whether every file of `model` has the checksum in `recorded`, the metadata "model" of a golden file.

    It may name further files: earlier releases listed every .safetensors file of the folder.
    """
    found = model_hashes(model)
    return recorded["config"] == found["config"] and recorded["weights"].items() >= found["weights"].items()


def file_hash(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_hash(image: Picture) -> Mapping[str, str]:
    """sha256 of a picture's file, or of its size and RGB pixels if it is not a file."""
    if isinstance(image, (str, Path)):
        return {"sha256": file_hash(Path(image)), "of": "file"}
    rgb = read_picture(image)
    return {"sha256": hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest(), "of": "pixels"}


def installed_version() -> str:
    """The version of npgemma, or 'not installed' in a checkout."""
    try:
        return version("npgemma")
    except PackageNotFoundError:
        return "not installed"


def blas() -> str:
    """Name and version of the library that computes NumPy's matrix products."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found['name']} {found['version']}"

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

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.rounding import FLOAT32, LATER, SCHEDULES, Schedule
from npgemma.io.picture import Picture, read_picture
from npgemma.io.pixels import PALIGEMMA
from npgemma.models.gemma import Decoder

# What npgemma computes where implementations differ. These texts are in every golden file: its bytes depend on them.
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
# What the decoder of PaliGemma 2 adds.
POST_NORMS = "what attention and the MLP write is normed before it is added"
UNCAPPED = "big_vision does not cap logits: its likeliest tokens are the same, its probabilities are not"
PREFIX = (
    "sees all of itself in the first pass, whatever the window, as in transformers; later rows see the window alone"
)
UNWINDOWED = "big_vision has no window: where a prompt is longer, its logits differ from the second new token on"
PREPROCESSING = {
    "backend": "pillow",
    "resample": "bicubic, antialiased, 8 bits, aspect ratio not kept",
    "rescale": "u8 * (1/255) in float64, rounded to float32, then (x - 0.5) / 0.5 in float32",
}


def describe(
    model: VisionLanguageModel,
    images: Sequence[Picture],
    prompt: str,
    axes: Mapping[str, str],
    schedule: str,
    wide: str,
) -> dict[str, Any]:
    """The metadata of a golden file: `axes` by tap, in execution order; `wide` is the dtype of floats."""
    return {
        "case": {"prompt": prompt, "images": [image_hash(image) for image in images], "seed": None},
        "model": model_hashes(model.folder) | {"truth_stored_as": wide},
        "preprocessing": preprocessing(model) | {"pillow": PIL.__version__, "side": model.config.vision.image_size},
        "tokenizer": {"sha256": file_hash(model.tokenizer_file)},
        "policy": policy(model.weights.text),
        "schedules": {
            "float32": {"name": "float32", "rounds": FLOAT32},
            "bfloat16": {"name": schedule, "rounds": rounds(schedule, model.weights.text)},
        },
        "taps": [[name, letters] for name, letters in axes.items()],
        "versions": {"npgemma": installed_version(), "numpy": np.__version__, "blas": blas()},
    }


def policy(p: Decoder) -> dict[str, Any]:
    """POLICY, with what the decoder of PaliGemma 2 adds or computes otherwise."""
    first = p.blocks[0]
    if first.attn_post_norm is None:
        return POLICY
    scale = first.attn.scale or first.attn.q.shape[2] ** -0.5
    caps = {"scores": first.attn.cap, "logits": p.cap}
    layers = [i for i, block in enumerate(p.blocks) if block.attn.window is not None]
    return POLICY | {
        "scale": POLICY["scale"].replace("divided by sqrt(H)", f"times {scale}"),
        "soft_caps": caps | {"scores_before": "the mask", "elsewhere": UNCAPPED} if any(caps.values()) else None,
        "post_norms": POST_NORMS,
        "window": {"rows": p.window, "layers": layers, "prefix": PREFIX, "elsewhere": UNWINDOWED},
    }


def rounds(schedule: str, p: Decoder) -> Schedule:
    """What a schedule rounds, without the tensors that the decoder of PaliGemma 1 does not have if it is that."""
    absent = LATER if p.blocks[0].attn_post_norm is None else ()
    return {name: dtype for name, dtype in SCHEDULES[schedule].items() if name not in absent}


def preprocessing(model: VisionLanguageModel) -> dict[str, Any]:
    """How pictures become pixel values: in words for PaliGemma's settings, else the settings of the model."""
    settings = model.config.pixels
    return PREPROCESSING if settings == PALIGEMMA else {"backend": "pillow"} | asdict(settings)


def model_hashes(folder: Path) -> dict[str, Any]:
    """sha256 of the config and of each weight file, by file name."""
    return {
        "config": file_hash(folder / "config.json"),
        "weights": {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))},
    }


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

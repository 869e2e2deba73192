"""What determines a run, as golden files state it: hashes of everything read, versions, schedules and `policy`.

Times, host names and paths are left out, so that two recordings have the same bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import KINDS, DualEncoder, as_texts
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.arithmetic import ARITHMETICS
from npgemma.golden.encoder_taps import CLIP, SIGLIP, VIT
from npgemma.golden.file import Spool
from npgemma.golden.policy import policy
from npgemma.golden.rounding import ENCODERS, HEAD_NORMS, LATER, SIXTEEN_BITS, Schedule, schedule_in
from npgemma.io.picture import Picture, read_picture
from npgemma.io.pixels import PALIGEMMA
from npgemma.io.regular_files import open_regular
from npgemma.io.safetensors import weight_files
from npgemma.layers.tree import arrays

CROP = "the square in the middle; of an odd margin, the smaller half is on the left and at the top"
# The truth of a model with fewer parameters is stored in float64; that of a larger one in float32, half the size.
SMALL = 100_000_000
PREPROCESSING = {
    "backend": "pillow",
    "resample": "bicubic, antialiased, 8 bits, aspect ratio not kept",
    "rescale": "u8 * (1/255) in float64, rounded to float32, then (x - 0.5) / 0.5 in float32",
}


def describe(
    model: AnyModel,
    images: Sequence[Picture],
    text: str | Sequence[str],
    spool: Spool,
    computed: Mapping[str, Any],
) -> dict[str, Any]:
    """The metadata of a golden file with the taps of `spool`; `computed` says how each dtype is computed."""
    return {
        "case": case(model, images, text),
        "model": model_hashes(model) | {"truth_stored_as": spool.wide.name} | encoder_type(model),
        "preprocessing": None if isinstance(model, LanguageModel) else preprocessing(model),
        "tokenizer": tokenizer(model),
        "policy": policy(model),
        "schedules": computed,
        "taps": [[name, letters] for name, letters in spool.axes.items()],
        "versions": {"npgemma": installed_version(), "numpy": np.__version__, "blas": blas()},
    }


def dtype_of_truth(model: AnyModel) -> str:
    """What the floats of a golden file are stored as, unless the user says."""
    return "float64" if sum(x.size for x in arrays(model.weights)) < SMALL else "float32"


def encoder_type(model: AnyModel) -> dict[str, str]:
    """The model_type of an encoder, which its names in other frameworks depend on."""
    return {"type": str(model.checkpoint.MODEL_TYPE)} if isinstance(model, DualEncoder | Classifier) else {}


def case(model: AnyModel, images: Sequence[Picture], text: str | Sequence[str]) -> dict[str, Any]:
    """What a run starts from, in words and as hashes of pictures."""
    hashes = [image_hash(image) for image in images]
    if isinstance(model, Classifier):
        return {"images": hashes}
    if isinstance(model, DualEncoder):
        return {"texts": list(as_texts(text)), "images": hashes}
    return {"prompt": text, "images": hashes, "seed": None}


def tokenizer(model: AnyModel) -> dict[str, Any] | None:
    """The sha256 of the file that the tokenizer is read from."""
    if isinstance(model, Classifier):
        return None
    if isinstance(model, DualEncoder):
        paths = [model.folder / name for name in KINDS[model.config.model_type].tokenizer_files]
        return {"sha256": file_hash(model.named_tokenizer or next(path for path in paths if path.exists()))}
    return {"sha256": file_hash(model.tokenizer_file)}


def schedules(model: AnyModel, schedule: str, overflows: Mapping[str, str]) -> dict[str, Any]:
    """How the runs of each precision compute: what they round, and their arithmetics; or the tap that overflows."""
    return {
        dtype: {
            "name": schedule if dtype in SIXTEEN_BITS else dtype,
            "rounds": rounds(schedule, dtype, model),
            "arithmetics": list(ARITHMETICS[dtype]),
        }
        | ({"overflows": tap} if tap else {})
        for dtype, tap in overflows.items()
    }


def rounds(schedule: str, dtype: str, model: AnyModel) -> Schedule:
    """What runs in a dtype round, without the tensors that only encoders or only later decoders have."""
    found = schedule_in(schedule, dtype)
    if isinstance(model, DualEncoder | Classifier):
        tapped = {entry.pattern.rpartition(".")[2] for entry in (*SIGLIP, *CLIP, *VIT)}
        return {name: dtype for name, dtype in found.items() if name in tapped}
    first = model.decoder.blocks[0]
    absent = {*(LATER if first.attn_post_norm is None else ()), *(HEAD_NORMS if first.attn.q_norm is None else ())}
    return {name: dtype for name, dtype in found.items() if name not in absent.union(ENCODERS)}


def preprocessing(model: VisionLanguageModel | DualEncoder | Classifier) -> dict[str, Any]:
    """How pictures become pixel values: in words for PaliGemma's settings, else the settings of the model."""
    settings = model.config.pixels
    found = PREPROCESSING
    if settings != PALIGEMMA:
        resample = None if settings.resample is None else settings.resample.name.lower()
        words = {"resample": resample, "crop": CROP if settings.crop else None}
        found = {"backend": "pillow"} | asdict(settings) | words
    return found | {"pillow": PIL.__version__, "side": model.config.vision.image_size}


def model_hashes(model: AnyModel) -> dict[str, Any]:
    """sha256 of the config, and of each file that weights are read from, by file name."""
    return {
        "config": file_hash(model.folder / "config.json"),
        "weights": {path.name: file_hash(path) for path in weight_files(model.path)},
    }


def is_recorded_from(recorded: Mapping[str, Any], model: AnyModel) -> bool:
    """Whether every file of `model` has the checksum in `recorded`, the metadata "model" of a golden file.

    It may name further files: earlier releases listed every .safetensors file of the folder.
    """
    found = model_hashes(model)
    return recorded["config"] == found["config"] and recorded["weights"].items() >= found["weights"].items()


def file_hash(path: Path) -> str:
    """The sha256 of a file."""
    with open_regular(path) as file:
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

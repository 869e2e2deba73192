"""`load`: from what a user calls a model to an object that runs it."""

from pathlib import Path

import numpy as np

from npgemma.api.guard import Budget
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints import paligemma
from npgemma.checkpoints.adapter import merged, read_adapter, untied
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.layout import in_memory
from npgemma.io.model_folder import EMBEDDED, find_adapter, find_model, folder_of
from npgemma.io.safetensors import weight_files


def load(
    path: str | Path | None = None,
    dtype: str = "float32",
    resident: bool = False,
    adapter: str | Path | None = None,
    max_memory: int | None = None,
) -> VisionLanguageModel:
    """The model that `path` names; without one, the small one that ships with npgemma.

    A path is a Hugging Face folder, a .safetensors file in one, or org/name[@revision] in the Hugging Face cache (see
    `io.model_folder.find_model`); nothing is downloaded. Matrices stay in the dtype they are stored in, memory-mapped;
    norms, biases and the position table become float32 here. `dtype` ("float32" or "float64") is what is computed in.
    `resident` makes matrices `dtype` at once, in memory: that takes longer and up to four times the space (12 GB for 3B
    parameters in float32), then tokens come sooner and the weight files may go. `adapter` is a LoRA adapter of PEFT's,
    named like a model; it is merged here. Raises BadModel if any of it cannot be used, ValueError for another dtype,
    TooLittleMemory, here or when asked, if the machine, or `max_memory` bytes, are not enough.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
    model, number = find_model(path), np.dtype(dtype)
    folder = folder_of(model)
    config = paligemma.read_config(folder)

    def require(weights: int, mapped: int = 0) -> None:
        """Room for these weights and for one picture."""
        run = Run(weights, number.itemsize, 1, [config.vision.num_patches])
        Budget(allowed=max_memory, mapped=mapped).require(paligemma.footprint(config, run))

    files = {path: path.stat() for path in weight_files(model)}
    require(sum(file.st_size for file in files.values()))
    tensors = paligemma.read_tensors(model, config)  # mapped: nothing of them is read yet
    stored = sum(w.nbytes for w in tensors.values())
    changes = None if adapter is None else read_adapter(find_adapter(adapter))
    if changes:
        tensors = untied(tensors, changes, *paligemma.head_and_table(config))
    copied = {*tensors} if resident else changes.changed if changes else set()
    held = sum(w.size * number.itemsize for name, w in tensors.items() if name in copied)
    weights = held + sum(w.nbytes for name, w in tensors.items() if name not in copied)
    require(weights, stored)
    if changes:
        tensors = merged(tensors, changes, number)
    if resident:
        tensors = in_memory(tensors, number)
    budget = Budget(weights, held, max_memory, weights - held)
    filled = paligemma.weights(tensors, config)
    return VisionLanguageModel(folder, config, filled, number, {} if resident else files, budget)


def sample_picture() -> Path:
    """The picture that ships with npgemma: a blue star, an orange ring and a green circle."""
    return EMBEDDED.parent / "sample.png"

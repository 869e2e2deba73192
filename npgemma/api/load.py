"""`load`: from what a user calls a model to an object that runs it."""

import os
from pathlib import Path

import numpy as np

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget, Guard
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints import paligemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.layout import in_memory
from npgemma.checkpoints.merging import merged, prepared
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED, find_adapter, find_model, folder_of
from npgemma.io.safetensors import weight_files


def load(
    path: str | Path | None = None,
    dtype: str = "float32",
    resident: bool = False,
    adapter: str | Path | None = None,
    max_memory: int | None = None,
    tokenizer: str | Path | None = None,
) -> VisionLanguageModel:
    """Load a model from disk. Nothing is downloaded.

    Matrices stay memory-mapped in the dtype they are stored in, so that loading takes a fraction of a second. Norms,
    biases and the position table become `dtype`.

    Parameters
    ----------
    path : str or Path, optional
        A Hugging Face folder, a .safetensors file in one, or org/name[@revision] in the Hugging Face cache. By default
        the embedded model, which knows drawn shapes and words alone (the commands say so about other pictures).
    dtype : {'float32', 'float64'}
        What is computed in; ValueError for another.
    resident : bool
        Widen all matrices to `dtype` in memory first. That takes longer and up to four times the space (12 GB for 3B
        parameters in float32); then tokens come sooner, and the files may be removed.
    adapter : str or Path, optional
        A LoRA or DoRA adapter as PEFT saves it, or a folder that contains one; it is merged into the weights.
    max_memory : int, optional
        The most bytes a run may take; by default what is available.
    tokenizer : str or Path, optional
        A tokenizer.model or tokenizer.json in place of the folder's.

    Returns
    -------
    VisionLanguageModel

    Raises
    ------
    BadModel
        If any of the files is missing, damaged, or does not fit.
    TooLittleMemory
        If the machine, or `max_memory`, has too little; later runs raise it, too.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.load()
    >>> model.generate(npgemma.sample_picture(), "caption en").text
    'a blue star, an orange ring and a green circle'
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
    return map_model(find_model(path), np.dtype(dtype), resident, adapter, max_memory, tokenizer)


def sample_picture() -> Path:
    """Where the picture is that ships with npgemma: a blue star, an orange ring and a green circle.

    Returns
    -------
    Path
        A PNG file.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.sample_picture().name
    'sample.png'
    """
    return EMBEDDED.parent / "sample.png"


@quiet()  # a weight that is not finite is an error of the run, which names it
def map_model(
    model: Path,
    dtype: np.dtype,
    resident: bool,
    adapter: str | Path | None,
    max_memory: int | None,
    tokenizer: str | Path | None,
) -> VisionLanguageModel:
    """Map, check and merge the weights of a model, once the memory for them and for one picture is known to suffice."""
    if tokenizer is not None and not os.path.isfile(tokenizer):
        raise BadModel(f"tokenizer {tokenizer} is not a file; name a tokenizer.model or a tokenizer.json")
    folder, pieces = folder_of(model), None if tokenizer is None else Path(tokenizer)
    config = paligemma.read_config(folder)

    def require(weights: int, mapped: int = 0) -> None:
        run = Run(weights, dtype.itemsize, 1, [config.vision.num_patches])
        Budget(allowed=max_memory, mapped=mapped).require(paligemma.footprint(config, run))

    files = {path: path.stat() for path in weight_files(model)}
    require(sum(file.st_size for file in files.values()))
    tensors = paligemma.read_tensors(model, config)  # mapped: nothing of them is read yet
    stored = sum(w.nbytes for w in tensors.values())
    changes = None if adapter is None else read_adapter(find_adapter(adapter))
    if changes:
        tensors = prepared(tensors, changes)
        config = paligemma.with_vocabulary(config, len(tensors[paligemma.TABLE]))
    copied = {*tensors} if resident else changes.changed if changes else set()
    held = sum(w.size * dtype.itemsize for name, w in tensors.items() if name in copied)
    held += sum(w.nbytes for name, w in tensors.items() if name not in copied and w.flags.owndata)
    weights = held + sum(w.nbytes for name, w in tensors.items() if name not in copied and not w.flags.owndata)
    require(weights, stored)
    if changes:
        tensors = merged(tensors, changes, dtype)
    if resident:
        tensors = in_memory(tensors, dtype)
    guard = Guard(config, dtype, {} if resident else files, Budget(weights, held, max_memory, weights - held))
    return VisionLanguageModel(folder, config, paligemma.weights(tensors, config, dtype), dtype, guard, pieces)

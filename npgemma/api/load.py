"""`load`: from what a user calls a model to an object that runs it."""

from pathlib import Path

import numpy as np

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget, Guard
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
    """Load a model from disk. Nothing is downloaded.

    Matrices stay memory-mapped in the dtype they are stored in, so that loading takes a fraction of a second. Norms,
    biases and the position table become float32.

    Parameters
    ----------
    path : str or Path, optional
        A Hugging Face folder, a .safetensors file in one, or org/name[@revision] in the Hugging Face cache. By default
        the embedded model, which knows drawn shapes and words alone (the commands say so about other pictures).
    dtype : {'float32', 'float64'}
        What is computed in.
    resident : bool
        Widen all matrices to `dtype` in memory first. That takes longer and up to four times the space (12 GB for 3B
        parameters in float32); then tokens come sooner, and the files may be removed.
    adapter : str or Path, optional
        A LoRA adapter as PEFT saves it, named like a model. It is merged into the weights.
    max_memory : int, optional
        The most bytes that a run may take; by default what the machine has available.

    Returns
    -------
    VisionLanguageModel
        The model, ready to answer.

    Raises
    ------
    BadModel
        If any of the files is missing, damaged, or does not fit.
    TooLittleMemory
        If the machine, or `max_memory`, has too little; later runs raise it, too.
    ValueError
        For another dtype.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.load()
    >>> model.generate(npgemma.sample_picture(), "caption en").text
    'a blue star, an orange ring and a green circle'
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
    return map_model(find_model(path), np.dtype(dtype), resident, adapter, max_memory)


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
    model: Path, dtype: np.dtype, resident: bool, adapter: str | Path | None, max_memory: int | None
) -> VisionLanguageModel:
    """Map, check and merge the weights of a model, once the memory for them and for one picture is known to suffice."""
    folder = folder_of(model)
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
        tensors = untied(tensors, changes, *paligemma.head_and_table(config))
    copied = {*tensors} if resident else changes.changed if changes else set()
    held = sum(w.size * dtype.itemsize for name, w in tensors.items() if name in copied)
    weights = held + sum(w.nbytes for name, w in tensors.items() if name not in copied)
    require(weights, stored)
    if changes:
        tensors = merged(tensors, changes, dtype)
    if resident:
        tensors = in_memory(tensors, dtype)
    guard = Guard(config, dtype, {} if resident else files, Budget(weights, held, max_memory, weights - held))
    return VisionLanguageModel(folder, config, paligemma.weights(tensors, config), dtype, guard)

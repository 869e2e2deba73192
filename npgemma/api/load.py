"""`load`: from what a user calls a model to an object that runs it."""

from pathlib import Path
from typing import TypeAlias, overload

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.language import LanguageModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.model_types import module_of
from npgemma.io.model_folder import EMBEDDED, find_model, folder_of
from npgemma.layers.retained import Resident

AnyModel: TypeAlias = VisionLanguageModel | LanguageModel | DualEncoder | Classifier
CLASSES: tuple[type[AnyModel], ...] = (VisionLanguageModel, LanguageModel, DualEncoder, Classifier)


@overload
def load(
    path: None = None,
    dtype: str = ...,
    resident: Resident = ...,
    adapter: str | Path | None = ...,
    max_memory: int | None = ...,
    tokenizer: str | Path | None = ...,
) -> VisionLanguageModel: ...


@overload
def load(
    path: str | Path | None,
    dtype: str = ...,
    resident: Resident = ...,
    adapter: str | Path | None = ...,
    max_memory: int | None = ...,
    tokenizer: str | Path | None = ...,
) -> AnyModel: ...


def load(
    path: str | Path | None = None,
    dtype: str = "float32",
    resident: Resident = False,
    adapter: str | Path | None = None,
    max_memory: int | None = None,
    tokenizer: str | Path | None = None,
) -> AnyModel:
    """Load a model from disk, of the class that its config.json asks for. Nothing is downloaded.

    Matrices stay memory-mapped in the dtype they are stored in, so that loading takes a fraction of a second. Norms,
    biases and the position table become `dtype`.

    Parameters
    ----------
    path : str or Path, optional
        A Hugging Face folder, a .safetensors file in one, or org/name[@revision] in the Hugging Face cache. By default
        the embedded model, which knows drawn shapes and words alone. `tiny-gemma` and `tiny-siglip` are others.
    dtype : {'float32', 'float64'}
        What is computed in; ValueError for another.
    resident : bool or 'auto'
        True widens all matrices to `dtype` in memory first: up to four times the space (12 GB for 3B parameters in
        float32), then faster tokens, and the files may be removed. 'auto' keeps those that 16 steps have widened, as
        many as fit: faster steps, and no other bits than without.
    adapter : str or Path, optional
        A LoRA or DoRA adapter of a PaliGemma or a Gemma, as PEFT saves it, or a folder that contains one.
    max_memory : int, optional
        The most bytes a run may take; by default what is available.
    tokenizer : str or Path, optional
        A tokenizer file in place of the folder's, such as a tokenizer.model or tokenizer.json.

    Returns
    -------
    VisionLanguageModel, LanguageModel, DualEncoder or Classifier
        For PaliGemma, Gemma, SigLIP or CLIP, and ViT. `VisionLanguageModel.load` and its kin return one class alone.

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
    return class_of(find_model(path)).load(path, dtype, resident, adapter, max_memory, tokenizer)


def class_of(model: Path) -> type[AnyModel]:
    """The class of a model. BadModel as for `module_of`."""
    module = module_of(folder_of(model))
    return next(each for each in CLASSES if module in each.checkpoints)


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

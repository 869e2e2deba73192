"""What all loaded models have in common: files, weights, and the checks before a run."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget, Guard
from npgemma.checkpoints.adapter import Adapter
from npgemma.checkpoints.layout import in_memory
from npgemma.checkpoints.merging import merged, prepared
from npgemma.checkpoints.model_types import module_of
from npgemma.errors import BadModel
from npgemma.io.model_folder import find_model, folder_of
from npgemma.io.safetensors import weight_files
from npgemma.layers.retained import Copies, Resident, retaining
from npgemma.layers.tree import arrays

Config = TypeVar("Config")
Weights = TypeVar("Weights")


class LoadedModel(Generic[Config, Weights]):
    """A model of one of the kinds below.

    `checkpoints` are the modules that read folders of this kind, `embedded` is the folder of this kind that comes with
    npgemma, if there is one, and `guard_type` the checks that its runs need.
    """

    checkpoints: ClassVar[tuple[ModuleType, ...]]
    embedded: ClassVar[Path | None]
    guard_type: ClassVar[type[Guard[Any]]]

    def __init__(
        self,
        path: Path,
        config: Config,
        weights: Weights,
        dtype: np.dtype,
        guard: Guard[Config] | None = None,
        tokenizer_file: Path | None = None,
    ) -> None:
        self.path = path  # a folder, or a .safetensors file
        self.folder = folder_of(path)
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.guard = guard or self.guard_type(config, dtype)
        self.named_tokenizer = tokenizer_file

    @property
    def checkpoint(self) -> ModuleType:
        """The module that reads folders of this model."""
        return self.checkpoints[0]

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str = "float32",
        resident: Resident = False,
        adapter: str | Path | None = None,
        max_memory: int | None = None,
        tokenizer: str | Path | None = None,
    ) -> Self:
        """Load a model of this class; `npgemma.load` loads one of any class.

        Parameters
        ----------
        path : str or Path, optional
            As for `npgemma.load`; by default the embedded model of this class.
        dtype, resident, adapter, max_memory, tokenizer
            As for `npgemma.load`.

        Returns
        -------
        A model of this class.

        Raises
        ------
        BadModel
            If the folder holds a model of another class, if there is no embedded one, and as for `npgemma.load`.
        TooLittleMemory, ValueError
            As for `npgemma.load`.

        Examples
        --------
        >>> import npgemma
        >>> npgemma.VisionLanguageModel.load().generate(npgemma.sample_picture(), "ocr").text
        'FNY'
        >>> npgemma.LanguageModel.load().generate("The capital of France is").text
        ' Paris.'
        >>> npgemma.DualEncoder.load().classify(npgemma.sample_picture(), ["a green circle", "a red square"]) > 0.5
        array([[ True, False]])
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
        if type(resident) is not bool and resident != "auto":
            raise ValueError(f"resident is {resident!r}; it must be True, False or 'auto'")
        model = cls.embedded if path is None else find_model(path)
        if model is None:
            raise BadModel(f"npgemma comes without a model for {cls.__name__}; give the path of one")
        checkpoint = module_of(folder_of(model))
        if checkpoint not in cls.checkpoints:
            raise BadModel(f"{folder_of(model)} does not hold a {cls.__name__}; npgemma.load loads any model")
        return cls.map(model, checkpoint, np.dtype(dtype), resident, adapter, max_memory, tokenizer)

    @classmethod
    @quiet()  # a weight that is not finite is an error of the run, which names it
    def map(
        cls,
        model: Path,
        checkpoint: ModuleType,
        dtype: np.dtype,
        resident: Resident,
        adapter: str | Path | None,
        max_memory: int | None,
        tokenizer: str | Path | None,
    ) -> Self:
        """Map, check and merge the weights of a model, once the memory for them and for a short run suffices."""
        if tokenizer is not None:
            cls.check_tokenizer(tokenizer)
        folder, pieces = folder_of(model), None if tokenizer is None else Path(tokenizer)
        config = checkpoint.read_config(folder)

        def require(weights: int, mapped: int = 0) -> None:
            run = checkpoint.shortest_run(config, weights, dtype.itemsize)
            Budget(allowed=max_memory, mapped=mapped).require(checkpoint.footprint(config, run))

        files = {path: path.stat() for path in weight_files(model)}
        require(sum(file.st_size for file in files.values()))
        tensors = checkpoint.read_tensors(model, config)  # mapped: nothing of them is read yet
        stored = sum(w.nbytes for w in tensors.values())
        changes = None if adapter is None else cls.changes(adapter, checkpoint)
        if changes:
            tensors = prepared(tensors, changes)
            config = checkpoint.with_vocabulary(config, len(tensors[checkpoint.TABLE]))
        copies = Copies() if resident == "auto" else None
        copied = {*tensors} if resident is True else changes.changed if changes else set()
        held = sum(w.size * dtype.itemsize for name, w in tensors.items() if name in copied)
        held += sum(w.nbytes for name, w in tensors.items() if name not in copied and w.flags.owndata)
        size = held + sum(w.nbytes for name, w in tensors.items() if name not in copied and not w.flags.owndata)
        require(size, stored)
        if changes:
            tensors = merged(tensors, changes, dtype)
        if resident is True:
            tensors = in_memory(tensors, dtype)
        mapped = {} if resident is True else files
        guard = cls.guard_type(config, dtype, mapped, Budget(size, held, max_memory, size - held), copies)
        weights = checkpoint.weights(tensors, config, dtype)
        for w in arrays(weights):
            w.flags.writeable = False  # as mapped ones are: training copies what it changes
        if copies:
            weights = retaining(weights, copies)
        return cls(model, config, weights, dtype, guard, pieces)

    @classmethod
    def check_tokenizer(cls, tokenizer: str | Path) -> None:
        """BadModel for a tokenizer that is not a file, and for a kind of model that reads no texts."""
        if not os.path.isfile(tokenizer):
            raise BadModel(f"tokenizer {tokenizer} is not a file; name a tokenizer.model or a tokenizer.json")

    @classmethod
    def changes(cls, adapter: str | Path, checkpoint: ModuleType) -> Adapter:
        """What an adapter changes. BadModel for a kind of model that takes none."""
        raise BadModel(f"adapter {adapter}: npgemma merges adapters into PaliGemma and Gemma only; load it without one")

"""What all loaded models have in common: files, weights, tokenizer, and the checks before a run."""

import os
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget, Guard
from npgemma.api.processor import Processor
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.gemma_config import DecoderConfig
from npgemma.checkpoints.layout import in_memory
from npgemma.checkpoints.merging import merged, prepared
from npgemma.checkpoints.model_types import module_of
from npgemma.errors import BadModel
from npgemma.io.added_tokens import Family
from npgemma.io.model_folder import find_adapter, find_model, folder_of
from npgemma.io.safetensors import weight_files
from npgemma.io.tokenizers import Tokenizer, read_tokenizer, tokenizer_of
from npgemma.models.gemma import Decoder

Config = TypeVar("Config", bound=DecoderConfig)
Weights = TypeVar("Weights")


class LoadedModel(ABC, Generic[Config, Weights]):
    """A model with its tokenizer, of one of the kinds below.

    `checkpoint` is the module that reads folders of this kind, `embedded` the folder of this kind that comes with
    npgemma, and `guard_type` the checks that its runs need.
    """

    checkpoint: ClassVar[ModuleType]
    embedded: ClassVar[Path]
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
        self.tokenizer_file = tokenizer_file or tokenizer_of(self.folder)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str = "float32",
        resident: bool = False,
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
            If the folder holds a model of another class, and as for `npgemma.load`.
        TooLittleMemory, ValueError
            As for `npgemma.load`.

        Examples
        --------
        >>> import npgemma
        >>> npgemma.VisionLanguageModel.load().generate(npgemma.sample_picture(), "ocr").text
        'FNY'
        >>> npgemma.LanguageModel.load().generate("The capital of France is").text
        ' Paris.'
        """
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
        model = cls.embedded if path is None else find_model(path)
        if module_of(folder_of(model)) is not cls.checkpoint:
            raise BadModel(f"{folder_of(model)} does not hold a {cls.__name__}; npgemma.load loads any model")
        return cls.map(model, np.dtype(dtype), resident, adapter, max_memory, tokenizer)

    @classmethod
    @quiet()  # a weight that is not finite is an error of the run, which names it
    def map(
        cls,
        model: Path,
        dtype: np.dtype,
        resident: bool,
        adapter: str | Path | None,
        max_memory: int | None,
        tokenizer: str | Path | None,
    ) -> Self:
        """Map, check and merge the weights of a model, once the memory for them and for a short run suffices."""
        if tokenizer is not None and not os.path.isfile(tokenizer):
            raise BadModel(f"tokenizer {tokenizer} is not a file; name a tokenizer.model or a tokenizer.json")
        folder, pieces, checkpoint = folder_of(model), None if tokenizer is None else Path(tokenizer), cls.checkpoint
        config = checkpoint.read_config(folder)

        def require(weights: int, mapped: int = 0) -> None:
            run = checkpoint.shortest_run(config, weights, dtype.itemsize)
            Budget(allowed=max_memory, mapped=mapped).require(checkpoint.footprint(config, run))

        files = {path: path.stat() for path in weight_files(model)}
        require(sum(file.st_size for file in files.values()))
        tensors = checkpoint.read_tensors(model, config)  # mapped: nothing of them is read yet
        stored = sum(w.nbytes for w in tensors.values())
        changes = None if adapter is None else read_adapter(find_adapter(adapter), checkpoint.NAMES)
        if changes:
            tensors = prepared(tensors, changes)
            config = checkpoint.with_vocabulary(config, len(tensors[checkpoint.TABLE]))
        copied = {*tensors} if resident else changes.changed if changes else set()
        held = sum(w.size * dtype.itemsize for name, w in tensors.items() if name in copied)
        held += sum(w.nbytes for name, w in tensors.items() if name not in copied and w.flags.owndata)
        weights = held + sum(w.nbytes for name, w in tensors.items() if name not in copied and not w.flags.owndata)
        require(weights, stored)
        if changes:
            tensors = merged(tensors, changes, dtype)
        if resident:
            tensors = in_memory(tensors, dtype)
        guard = cls.guard_type(
            config, dtype, {} if resident else files, Budget(weights, held, max_memory, weights - held)
        )
        return cls(model, config, checkpoint.weights(tensors, config, dtype), dtype, guard, pieces)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder, self.family, self.config.text.vocab_size, self.tokenizer_file)

    @property
    def family(self) -> Family:
        """What the tokenizer has beside the files of the folder."""
        found: Family = self.checkpoint.family(self.config)
        return found

    @property
    def bos_id(self) -> int:
        """The token that begins a text: the tokenizer's, as in transformers, or the config's if it has none."""
        return self.tokenizer.specials.get("<bos>", self.config.bos_token_id)

    @property
    @abstractmethod
    def processor(self) -> Processor:
        """Turns prompts, and pictures where the model reads any, into inputs."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """The Gemma decoder among the weights."""

    @property
    def never(self) -> tuple[int, ...]:
        """The tokens that stand for something else than text, such as pictures, and are never written."""
        return tuple(self.tokenizer.ids[text] for text in self.family.rowless if text in self.tokenizer.ids)

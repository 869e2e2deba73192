"""What the models that write have in common: a decoder, its tokenizer and what it never writes, and adapters."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from npgemma.api.guard import GenerativeGuard
from npgemma.api.lazy import lazy
from npgemma.api.model import LoadedModel
from npgemma.api.processor import Inputs, Processor
from npgemma.checkpoints.adapter import Adapter, read_adapter
from npgemma.checkpoints.gemma_config import DecoderConfig
from npgemma.io.added_tokens import Family
from npgemma.io.model_folder import find_adapter
from npgemma.io.tokenizers import Tokenizer, read_tokenizer, tokenizer_of
from npgemma.layers.taps import Tap
from npgemma.models.gemma import Decoder
from npgemma.models.prefix_lm import Prompt

Config = TypeVar("Config", bound=DecoderConfig)
Weights = TypeVar("Weights")


class GenerativeModel(LoadedModel[Config, Weights], ABC, Generic[Config, Weights]):
    """A model that writes text, with its tokenizer."""

    guard: GenerativeGuard[Config]

    @classmethod
    def changes(cls, adapter: str | Path, checkpoint: ModuleType) -> Adapter:
        """BadModel as for `read_adapter`."""
        return read_adapter(find_adapter(adapter), checkpoint.NAMES)

    @property
    def tokenizer_file(self) -> Path:
        """The file that the tokenizer's pieces come from, which may be missing."""
        return self.named_tokenizer or tokenizer_of(self.folder)

    @lazy
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
    @abstractmethod
    def embed(self) -> Callable[[Inputs, Tap], list[Prompt]]:
        """The function that makes of inputs the prompts that the decoder continues."""

    @property
    def never(self) -> tuple[int, ...]:
        """The tokens that stand for something else than text, such as pictures, and are never written."""
        return tuple(self.tokenizer.ids[text] for text in self.family.rowless if text in self.tokenizer.ids)

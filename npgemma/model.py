"""`load` and `Model`: a folder on disk as an object that answers questions about pictures."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np

from npgemma.errors import BadModel, BadPrompt
from npgemma.generate import Token, generate_tokens
from npgemma.io.checkpoint import load_paligemma
from npgemma.io.config import Config, read_config
from npgemma.io.picture import Picture, pixel_values, read_picture
from npgemma.io.processor import Pictures, Processor
from npgemma.io.tokenizer import Tokenizer, read_tokenizer
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, silent
from npgemma.models.paligemma import PaliGemma, Prompt, forward, image_features
from npgemma.sampling import Sampling, SamplingOptions
from npgemma.scoring import Score, score_suffixes

EMBEDDED = Path(__file__).parent / "assets" / "tiny"


@dataclass(frozen=True)
class Generation:
    """What was written to one prompt; `finish_reason` is 'stop' (`token_ids` ends with an end token) or 'length'."""

    text: str
    token_ids: list[int]
    finish_reason: str


class Model:
    """A PaliGemma and what `load` found beside its weights; its matrices are mapped, and read from disk when they are
    used.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        weights: PaliGemma,
        dtype: np.dtype,
        mapped: Mapping[Path, os.stat_result] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.mapped = mapped or {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """BadModel if the folder has none that fits the config."""
        return read_tokenizer(self.folder, self.config.image_token_index)

    @cached_property
    def processor(self) -> Processor:
        vision = self.config.vision
        return Processor(self.tokenizer, vision.image_size, vision.num_patches, self.config.bos_token_id)

    def forward(
        self,
        input_ids: Int[Array, "T"],
        pixel_values: Float[Array, "B 3 Y X"] | None = None,
        token_type_ids: Int[Array, "T"] | None = None,
        tap: Tap = silent,
    ) -> Float[Array, "T V"]:
        """The logits of every row: row t scores the token after input_ids[t].

        A token's type is 0 (prefix, which sees all of itself; the default) or 1 (suffix, causal). BadPrompt if ids,
        types and pixels do not fit the model and each other.
        """
        self.check_files()
        ids, pixels = self.check_inputs(input_ids, pixel_values)
        types = np.zeros_like(ids) if token_type_ids is None else as_array(token_type_ids, "token_type_ids")
        if types.shape != ids.shape or not np.isin(types, (0, 1)).all():
            raise BadPrompt(f"token_type_ids are 0 (prefix) or 1 (suffix), as many as the {len(ids)} input_ids")
        return forward(self.weights, ids, pixels, types.astype(np.int64), tap=tap)

    @overload
    def generate(
        self, images: Pictures, prompts: str, max_new_tokens: int = ..., **sampling: Unpack[SamplingOptions]
    ) -> Generation: ...

    @overload
    def generate(
        self,
        images: Sequence[Pictures],
        prompts: list[str],
        max_new_tokens: int = ...,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Generation]: ...

    def generate(
        self, images: Any, prompts: str | list[str], max_new_tokens: int = 256, **sampling: Unpack[SamplingOptions]
    ) -> Generation | list[Generation]:
        """One Generation a prompt; for a single string, the Generation itself.

        `images` holds for each prompt a picture or a list of pictures; for a single string it is that one entry.
        `sampling` is temperature, top_k, top_p and seed, as in `Sampling`; without, the likeliest token is taken.
        Tokens that the tokenizer has no text for are never chosen. Raises BadPicture, BadPrompt, ValueError.
        """
        if isinstance(prompts, str):
            return self.generate([images], [prompts], max_new_tokens, **sampling)[0]
        ids: list[list[int]] = [[] for _ in prompts]
        reasons = [""] * len(prompts)
        for token in self.tokens(images, prompts, max_new_tokens, Sampling(**sampling)):
            ids[token.row].append(token.id)
            reasons[token.row] = token.finish_reason or ""
        return [Generation(self.tokenizer.decode(row), row, reason) for row, reason in zip(ids, reasons, strict=True)]

    @overload
    def score(self, images: Pictures, prompts: str, suffixes: str) -> Score: ...

    @overload
    def score(self, images: Sequence[Pictures], prompts: list[str], suffixes: list[str]) -> list[Score]: ...

    def score(self, images: Any, prompts: str | list[str], suffixes: Any) -> Score | list[Score]:
        """How likely the model finds each suffix as the answer to its prompt; for single strings, the Score itself.

        The suffix is scored with the end token after it. Raises BadPicture, BadPrompt if they do not pair up.
        """
        if isinstance(prompts, str):
            return self.score([images], [prompts], [suffixes])[0]
        if len(suffixes) != len(prompts):
            raise BadPrompt(f"there are {len(prompts)} prompts and {len(suffixes)} suffixes; give one to each")
        if not prompts:
            return []
        inputs = self.processor(images, prompts)
        answers = [[*self.tokenizer.encode(suffix), self.config.eos_token_ids[0]] for suffix in suffixes]
        for prompt, answer in zip(inputs.input_ids, answers, strict=True):
            self.check_length([prompt], len(answer))
        made = self.make_prompts(inputs.input_ids, inputs.pixel_values, inputs.images)
        whole = [
            Prompt(
                np.concatenate([prompt.input_ids, answer]),
                np.repeat([0, 1], [len(prompt.input_ids), len(answer)]),
                prompt.image_rows,
            )
            for prompt, answer in zip(made, answers, strict=True)
        ]
        found = score_suffixes(self.weights, whole)
        return [Score(answer, row.tolist()) for answer, row in zip(answers, found, strict=True)]

    def image_features(self, images: Sequence[Picture]) -> Float[Array, "B P D"]:
        """Pictures as the decoder sees them: P rows of its width each, out of SigLIP and the projector."""
        self.check_files()
        read = [read_picture(image) for image in images]
        pixels = pixel_values(read, self.config.vision.image_size)
        return image_features(self.weights, pixels.astype(self.dtype, copy=False))

    def stream(
        self, image: Pictures, prompt: str, max_new_tokens: int = 256, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """The text of `generate` in pieces as they come; a character of several tokens waits until it is whole."""
        return self.pieces(self.tokens([image], [prompt], max_new_tokens, Sampling(**sampling)))

    def pieces(self, tokens: Iterator[Token]) -> Iterator[str]:
        """What each token adds to the text of those before it."""
        ids: list[int] = []
        sent = ""
        for token in tokens:
            ids.append(token.id)
            text = self.tokenizer.decode(ids)
            if token.finish_reason is None:
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            if len(text) > len(sent):
                yield text[len(sent) :]
                sent = text

    def generate_ids(
        self,
        input_ids: Int[Array, "T"],
        pixel_values: Float[Array, "B 3 Y X"] | None = None,
        max_new_tokens: int = 256,
        eos_ids: Sequence[int] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[int]:
        """The ids that follow `input_ids`, for people with ids and pixels of their own; any column may be chosen."""
        ids, pixels = self.check_inputs(input_ids, pixel_values)
        self.check_length([ids], max_new_tokens)
        prompts = self.make_prompts([ids], pixels, [len(pixels)])
        eos = self.config.eos_token_ids if eos_ids is None else eos_ids
        columns = self.config.text.vocab_size
        tokens = generate_tokens(self.weights, prompts, max_new_tokens, Sampling(**sampling), eos, columns)
        return [token.id for token in tokens]

    def tokens(
        self, images: Sequence[Pictures], prompts: Sequence[str], max_new_tokens: int, sampling: Sampling
    ) -> Iterator[Token]:
        """The tokens of all prompts as they are chosen, step by step."""
        if not prompts:
            return iter(())
        inputs = self.processor(images, prompts)
        self.check_length(inputs.input_ids, max_new_tokens)
        made = self.make_prompts(inputs.input_ids, inputs.pixel_values, inputs.images)
        # the image token and the rows that only fill up the table are no text
        return generate_tokens(
            self.weights, made, max_new_tokens, sampling, self.config.eos_token_ids, self.tokenizer.image_id
        )

    def make_prompts(
        self, input_ids: Sequence[Int[Array, "T"]], pixel_values: Float[Array, "B 3 Y X"], images: Sequence[int]
    ) -> list[Prompt]:
        """All pictures through the vision tower, then dealt out: `images[i]` of them to prompt i."""
        self.check_files()
        features = image_features(self.weights, pixel_values.astype(self.dtype, copy=False))
        prompts, first = [], 0
        for ids, count in zip(input_ids, images, strict=True):
            rows = features[first : first + count].reshape(-1, features.shape[-1])
            prompts.append(Prompt(ids, np.zeros_like(ids), rows))
            first += count
        return prompts

    def check_files(self) -> None:
        """BadModel if a mapped file has become shorter: reading what it lost would end the process, without a word.

        A file that was replaced by another, or unlinked, lives on for as long as it is mapped.
        """
        for path, was in self.mapped.items():
            with suppress(FileNotFoundError):
                found = path.stat()
                if found.st_ino == was.st_ino and found.st_size < was.st_size:
                    sizes = f"{found.st_size} bytes, {was.st_size} when it was loaded"
                    raise BadModel(f"{path} has been cut short ({sizes}); load the model anew once it is whole")

    def check_length(self, input_ids: Sequence[Int[Array, "T"]], max_new_tokens: int) -> None:
        """BadPrompt unless every prompt and its answer fit the positions the model has; ValueError for no answer."""
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it is a whole number from 1 up")
        longest, limit = max(map(len, input_ids)), self.config.text.max_position_embeddings
        if longest + max_new_tokens > limit:
            both = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
            raise BadPrompt(f"{both} are more than the {limit} positions of this model; ask for fewer")

    def check_inputs(
        self, input_ids: Int[Array, "T"], pixel_values: Float[Array, "B 3 Y X"] | None
    ) -> tuple[Int[Array, "T"], Float[Array, "B 3 Y X"]]:
        """Ids and pixels from a caller's hand, the pixels in the model's dtype; no pixels are a stack of no pictures.

        BadPrompt unless the ids are one row of tokens of this model with the image tokens of just these pictures.
        """
        rows, side = self.config.text.vocab_size, self.config.vision.image_size
        ids = as_array(input_ids, "input_ids")
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise BadPrompt(f"input_ids are one row of whole numbers, not {ids.dtype} {list(ids.shape)}")
        is_image = ids == self.config.image_token_index
        if ((ids < 0) | (ids >= rows))[~is_image].any():
            raise BadPrompt(f"input_ids run from {ids.min()} to {ids.max()}; this model has tokens 0 to {rows - 1}")
        pixels = np.empty((0, 3, side, side)) if pixel_values is None else as_array(pixel_values, "pixel_values")
        if pixels.shape[1:] != (3, side, side) or not np.issubdtype(pixels.dtype, np.floating):
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise BadPrompt(f"pixel_values are floats of shape [pictures, 3, {side}, {side}], not {found}")
        tokens, wanted = is_image.sum(), len(pixels) * self.config.vision.num_patches
        if tokens != wanted:
            raise BadPrompt(f"the ids hold {tokens} image tokens; {len(pixels)} pictures stand for {wanted}")
        return ids, pixels.astype(self.dtype, copy=False)


def as_array(value: Any, name: str) -> Array:
    """`value` as an array. BadPrompt for nested lists of unequal lengths, which are none."""
    try:
        return np.asarray(value)
    except ValueError:
        raise BadPrompt(f"{name} has rows of different lengths; give one prompt at a time") from None


def find_folder(path: str | Path | None) -> Path:
    """The folder that `path` names, the embedded model's if it names none. BadModel if there is no such folder."""
    folder = EMBEDDED if path is None else Path(path)
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a name that no folder can have
        raise BadModel(f"{folder} is no folder; a model is one that holds config.json, *.safetensors, tokenizer.model")
    return folder


def load(path: str | Path | None = None, dtype: str = "float32", resident: bool = False) -> Model:
    """The model in a Hugging Face folder; without a path, the small one that ships with npgemma.

    Matrices stay in the dtype they are stored in, memory-mapped; norms, biases and the position table become float32
    here. `dtype` ("float32" or "float64") is what is computed in. `resident` makes matrices `dtype` at once, in
    memory: that takes longer and up to four times the space (12 GB for 3B parameters in float32), then tokens come
    sooner and the weight files may go. Raises BadModel if the folder cannot be used, ValueError for another dtype,
    MemoryError.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; npgemma computes in 'float32' or 'float64'")
    folder = find_folder(path)
    config = read_config(folder)
    mapped = {} if resident else {path: path.stat() for path in folder.glob("*.safetensors")}
    weights = load_paligemma(folder, config, np.dtype(dtype) if resident else None)
    return Model(folder, config, weights, np.dtype(dtype), mapped)

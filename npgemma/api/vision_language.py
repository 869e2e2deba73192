"""`VisionLanguageModel`: weights, tokenizer and processor together, to answer questions about pictures."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
from PIL import Image

from npgemma.api.guard import UNLIMITED, Budget, as_array, check_inputs
from npgemma.api.processor import Pictures, Processor
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.checkpoints.paligemma import PaliGemmaConfig, footprint
from npgemma.decoding.beams import beam_search
from npgemma.decoding.loop import Limits, Token, generate_tokens
from npgemma.decoding.sampling import Sampling, SamplingOptions
from npgemma.decoding.scoring import Score, score_answers
from npgemma.decoding.text import Answers, Generation, checked_stops, pieces
from npgemma.errors import BadModel, BadPrompt
from npgemma.io.model_folder import member
from npgemma.io.picture import Picture, pixel_values, read_picture
from npgemma.io.tokenizers import Tokenizer, read_tokenizer
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, silent
from npgemma.models.mask_vqvae import MaskVQVAE
from npgemma.models.paligemma import PaliGemma, Prompt, forward, image_features


class VisionLanguageModel:
    """A PaliGemma and what `load` found beside its weights; its matrices are mapped, and read from disk when they are
    used.
    """

    def __init__(
        self,
        folder: Path,
        config: PaliGemmaConfig,
        weights: PaliGemma,
        dtype: np.dtype,
        mapped: Mapping[Path, os.stat_result] | None = None,
        budget: Budget = UNLIMITED,
    ) -> None:
        self.folder = folder
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.mapped = mapped or {}
        self.budget = budget

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """BadModel if the folder has none that fits the config."""
        return read_tokenizer(self.folder, self.config.image_token_index)

    @cached_property
    def mask_codec(self) -> MaskVQVAE:
        """What makes masks of the codes in answers. BadModel if the folder has none."""
        return read_mask_codec(member(self.folder, CODEC))

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
        ids, pixels = check_inputs(self.config, input_ids, pixel_values)
        self.check_memory([len(ids)], len(pixels), 0, logit_rows=len(ids))
        types = np.zeros_like(ids) if token_type_ids is None else as_array(token_type_ids, "token_type_ids")
        if types.shape != ids.shape or not np.isin(types, (0, 1)).all():
            raise BadPrompt(f"token_type_ids are 0 (prefix) or 1 (suffix), as many as the {len(ids)} input_ids")
        pixels = pixels.astype(self.dtype, copy=False)
        return forward(self.weights, ids, pixels, types.astype(np.int64), tap=tap)

    @overload
    def generate(
        self,
        images: Pictures,
        prompts: str,
        max_new_tokens: int = ...,
        stop: str | Sequence[str] = ...,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        images: Sequence[Pictures],
        prompts: list[str],
        max_new_tokens: int = ...,
        stop: str | Sequence[str] = ...,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Generation]: ...

    def generate(
        self,
        images: Any,
        prompts: str | list[str],
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """One Generation a prompt; for a single string, the Generation itself.

        `images` holds for each prompt a picture or a list of pictures; for a single string it is that one entry.
        `sampling` is temperature, top_k, top_p, min_p, repetition_penalty and seed, as in `Sampling`; without, the
        likeliest token is taken. An answer ends before the first `stop` string that it would hold.
        Tokens that the tokenizer has no text for are never chosen. Raises BadPicture, BadPrompt, TooLittleMemory,
        BadModel for logits that are not finite, ValueError for options that are none.
        """
        if isinstance(prompts, str):
            return self.generate([images], [prompts], max_new_tokens, stop, **sampling)[0]
        answers = self.answers(stop)
        tokens = self.tokens(images, prompts, max_new_tokens, Sampling(**sampling), answers)
        return answers.generations(tokens, len(prompts))

    def samples(
        self,
        image: Pictures,
        prompt: str,
        count: int,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """`count` answers to one prompt, each drawn on its own; the first is that of `generate` with the same seed.

        Picture and prompt are read once, then the answers are written side by side. Raises as `generate` does.
        """
        if type(count) is not int or count < 1:
            raise ValueError(f"the number of samples is {count}; it is a whole number from 1 up")
        answers = self.answers(stop)
        tokens = self.tokens([image], [prompt], max_new_tokens, Sampling(**sampling), answers, count)
        return answers.generations(tokens, count)

    def beams(
        self,
        image: Pictures,
        prompt: str,
        num_beams: int,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
    ) -> list[Generation]:
        """The best answers that beam search finds, at most `num_beams`, the likeliest first; see `beams.beam_search`.

        Raises as `generate` does.
        """
        answers = self.answers(stop)
        (made,) = self.read_prompts([image], [prompt], max_new_tokens, num_beams)
        limits = self.limits(max_new_tokens, answers)
        found = beam_search(self.weights, made, num_beams, limits)
        return [answers.generation(beam.ids, limits.reason_to_end(beam.ids), beam.logprobs) for beam in found]

    @overload
    def score(self, images: Pictures, prompts: str, suffixes: str) -> Score: ...

    @overload
    def score(self, images: Any, prompts: str | list[str], suffixes: list[str]) -> list[Score]: ...

    def score(self, images: Any, prompts: str | list[str], suffixes: str | list[str]) -> Score | list[Score]:
        """How likely the model finds each suffix as the answer to its prompt; for single strings, the Score itself.

        Several suffixes may be scored as answers to one prompt, whose pictures are then looked at once. A suffix is
        scored with the end token after it. Raises BadPicture, BadPrompt if they do not pair up, TooLittleMemory,
        BadModel for logits that are not finite.
        """
        if isinstance(suffixes, str):
            return self.score(images, prompts, [suffixes])[0]
        if isinstance(prompts, list) and len(suffixes) != len(prompts):
            raise BadPrompt(f"there are {len(prompts)} prompts and {len(suffixes)} suffixes; give one to each")
        if not suffixes:
            return []
        inputs = self.processor(*([images], [prompts]) if isinstance(prompts, str) else (images, prompts))
        answers = [[*self.tokenizer.encode(suffix), self.config.eos_token_ids[0]] for suffix in suffixes]
        times = len(answers) // len(inputs.input_ids)  # one prompt of all, or one of each
        pairs = zip(inputs.input_ids * times, answers, strict=True)
        lengths, limit = [len(ids) + len(answer) for ids, answer in pairs], self.config.text.max_position_embeddings
        if max(lengths) > limit:
            raise BadPrompt(f"a prompt with its suffix has {max(lengths)} tokens; this model has {limit} positions")
        self.check_memory(lengths, len(inputs.pixel_values), 0, logit_rows=max(map(len, answers)))
        made = self.make_prompts(inputs.input_ids, inputs.pixel_values, inputs.images)
        found = score_answers(self.weights, made * times, answers)
        return [Score(answer, row.tolist()) for answer, row in zip(answers, found, strict=True)]

    def image_features(self, images: Picture | Sequence[Picture]) -> Float[Array, "B P D"]:
        """Pictures (one is a stack of one) as the decoder sees them: P rows of its width each, out of SigLIP and the
        projector. Raises BadPicture, TooLittleMemory.
        """
        self.check_files()
        stack = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images
        read = [read_picture(image) for image in stack]
        self.check_memory([], len(read), 0)
        pixels = pixel_values(read, self.config.vision.image_size)
        return image_features(self.weights, pixels.astype(self.dtype, copy=False))

    def stream(
        self,
        image: Pictures,
        prompt: str,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """The text of `generate` in pieces as they come.

        A character of several tokens waits until it is whole, and what may be the beginning of a stop string until it
        is clear that it is none.
        """
        return pieces(self.growing(image, prompt, max_new_tokens, stop, **sampling))

    def growing(
        self,
        image: Pictures,
        prompt: str,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Generation]:
        """The Generation of `generate` after each token; `finish_reason` is '' until the last.

        The text holds what no later token can take back; see `stream`.
        """
        answers = self.answers(stop)
        tokens = self.tokens([image], [prompt], max_new_tokens, Sampling(**sampling), answers)
        return answers.growing(tokens)

    def generate_ids(
        self,
        input_ids: Int[Array, "T"],
        pixel_values: Float[Array, "B 3 Y X"] | None = None,
        max_new_tokens: int = 256,
        eos_ids: Sequence[int] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[int]:
        """The ids that follow `input_ids`, for people with ids and pixels of their own; any column may be chosen."""
        ids, pixels = check_inputs(self.config, input_ids, pixel_values)
        self.check_length([ids], max_new_tokens)
        self.check_memory([len(ids)], len(pixels), max_new_tokens)
        prompts = self.make_prompts([ids], pixels, [len(pixels)])
        eos = self.config.eos_token_ids if eos_ids is None else eos_ids
        limits = Limits(max_new_tokens, eos, self.config.text.vocab_size)
        return [token.id for token in generate_tokens(self.weights, prompts, limits, Sampling(**sampling))]

    def tokens(
        self,
        images: Sequence[Pictures],
        prompts: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling,
        answers: Answers,
        samples: int = 1,
    ) -> Iterator[Token]:
        """The tokens of all prompts as they are chosen, step by step; a row ends when its text holds a stop string."""
        if not prompts:
            return iter(())
        made = self.read_prompts(images, prompts, max_new_tokens, samples)
        return generate_tokens(self.weights, made, self.limits(max_new_tokens, answers), sampling, samples)

    def answers(self, stop: str | Sequence[str] = ()) -> Answers:
        """How ids read in this model's tokenizer. ValueError for stop strings that are none."""
        return Answers(self.tokenizer.decode, checked_stops(stop))

    def limits(self, max_new_tokens: int, answers: Answers) -> Limits:
        """Where an answer of this model ends. The image token and the rows that only fill up the table are no text."""
        return Limits(max_new_tokens, self.config.eos_token_ids, self.tokenizer.image_id, answers.ends)

    def read_prompts(
        self, images: Sequence[Pictures], prompts: Sequence[str], max_new_tokens: int, samples: int = 1
    ) -> list[Prompt]:
        """Pictures and texts as the decoder starts from them."""
        inputs = self.processor(images, prompts)
        self.check_length(inputs.input_ids, max_new_tokens)
        self.check_memory([len(ids) for ids in inputs.input_ids], len(inputs.pixel_values), max_new_tokens, samples)
        return self.make_prompts(inputs.input_ids, inputs.pixel_values, inputs.images)

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
            hint = "ask for fewer" if longest < limit else "give fewer pictures or words"
            raise BadPrompt(f"{both} are more than the {limit} positions of this model; {hint}")

    def check_memory(
        self, lengths: Sequence[int], pictures: int, max_new_tokens: int, samples: int = 1, logit_rows: int = 0
    ) -> None:
        """TooLittleMemory unless prompts of such lengths can be answered all at once; see `footprint`."""
        run = (self.dtype.itemsize, pictures, lengths, max_new_tokens, samples, logit_rows)
        self.budget.require(footprint(self.config, Run(self.budget.weights, *run)))

"""Pictures and prompts -> sequences of tokens -> Generations: what models, batches and commands share."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from npgemma.api.finite import finite, watched
from npgemma.api.guard import Guard
from npgemma.api.processor import Inputs, Pictures, Processor, check_pairs
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.decoding.beams import Beam, beam_search
from npgemma.decoding.loop import Limits, Token, generate_tokens
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.scoring import Score, score_answers
from npgemma.decoding.text import Detokenizer, Generation, Transcript
from npgemma.errors import BadPrompt
from npgemma.io.tokenizers import Tokenizer
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, silent
from npgemma.models.paligemma import PaliGemma, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt

DEFAULTS = GenerationOptions()


class LoadedModel(Protocol):
    """What these functions need of a model."""

    folder: Path
    config: PaliGemmaConfig
    weights: PaliGemma
    dtype: np.dtype
    guard: Guard

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def processor(self) -> Processor: ...


def generate(
    model: LoadedModel, images: Sequence[Pictures], prompts: Sequence[str], options: GenerationOptions
) -> list[Generation]:
    """The answers to all prompts, `num_return_sequences` of them for each, next to each other."""
    if options.num_beams > 1:
        check_pairs(images, prompts)
        pairs = zip(images, prompts, strict=True)
        return [answer for image, prompt in pairs for answer in search(model, image, prompt, options)]
    transcript = Transcript(detokenizer(model, options), len(prompts) * options.num_return_sequences)
    for token in tokens(model, images, prompts, options):
        transcript.add(token)
    return transcript.generations()


def tokens(
    model: LoadedModel, images: Sequence[Pictures], prompts: Sequence[str], options: GenerationOptions
) -> Iterator[Token]:
    """The tokens of all sequences as they are chosen, step by step."""
    if not prompts:
        return iter(())
    run = partial(run_tokens, model, read_inputs(model, images, prompts, options), limits(model, options), options)
    return watched(model, run(), partial(exhaust, run))


def run_tokens(
    model: LoadedModel, inputs: Inputs, ends: Limits, options: GenerationOptions, tap: Tap = silent
) -> Iterator[Token]:
    """Pictures through the vision tower, then token by token."""
    read = embed_pictures(model, inputs.input_ids, inputs.pixel_values, inputs.images, tap)
    yield from generate_tokens(model.weights.text, read, ends, options, options.num_return_sequences, tap)


def exhaust(run: Callable[..., Iterator[Token]], tap: Tap) -> None:
    """All of a run at once."""
    deque(run(tap=tap), maxlen=0)


def search(model: LoadedModel, image: Pictures, prompt: str, options: GenerationOptions) -> list[Generation]:
    """The best answers that beam search finds, the likeliest first."""
    ends, text = limits(model, options), detokenizer(model, options)
    run = partial(run_search, model, read_inputs(model, [image], [prompt], options), ends, options.num_beams)
    with finite(model, run):
        found = run()[: options.num_return_sequences]
    return [text.generation(beam.ids, ends.reason_to_end(beam.ids), beam.logprobs) for beam in found]


def run_search(model: LoadedModel, inputs: Inputs, ends: Limits, num_beams: int, tap: Tap = silent) -> list[Beam]:
    """Pictures through the vision tower, then all of a beam search."""
    (read,) = embed_pictures(model, inputs.input_ids, inputs.pixel_values, inputs.images, tap)
    return beam_search(model.weights.text, read, num_beams, ends, tap)


def generate_ids(
    model: LoadedModel,
    input_ids: Any,
    pixel_values: Any,
    eos_ids: Sequence[int] | None,
    options: GenerationOptions,
) -> list[int]:
    """The ids that follow `input_ids`; any row of the embedding table may be chosen."""
    ids, pixels = model.guard.check_inputs(input_ids, pixel_values)
    model.guard.check_length([ids], options.max_new_tokens)
    model.guard.check_memory([len(ids)], len(pixels), options.max_new_tokens)
    eos = model.config.eos_token_ids if eos_ids is None else eos_ids
    ends = Limits(options.max_new_tokens, eos, model.config.text.vocab_size)
    run = partial(run_tokens, model, Inputs([ids], [np.zeros_like(ids)], pixels, [len(pixels)]), ends, options)
    return [token.id for token in watched(model, run(), partial(exhaust, run))]


def detokenizer(model: LoadedModel, options: GenerationOptions) -> Detokenizer:
    return Detokenizer(model.tokenizer.decode, options.stops)


def limits(model: LoadedModel, options: GenerationOptions = DEFAULTS) -> Limits:
    """Where an answer ends. The image token and rows that only fill the embedding table are never chosen."""
    has_stopped, tokenizer = detokenizer(model, options).has_stopped, model.tokenizer
    ends, never = model.config.eos_token_ids, (tokenizer.image_id,)
    return Limits(options.max_new_tokens, ends, len(tokenizer), has_stopped, never)


def read_inputs(
    model: LoadedModel, images: Sequence[Pictures], prompts: Sequence[str], options: GenerationOptions
) -> Inputs:
    """Pictures and texts as the model reads them, once the memory for the answers is known to suffice."""
    inputs = model.processor(images, prompts)
    model.guard.check_length(inputs.input_ids, options.max_new_tokens)
    lengths, sequences = [len(ids) for ids in inputs.input_ids], max(options.num_beams, options.num_return_sequences)
    model.guard.check_memory(lengths, len(inputs.pixel_values), options.max_new_tokens, sequences)
    return inputs


def embed_pictures(
    model: LoadedModel,
    input_ids: Sequence[Int[Array, "T"]],
    pixel_values: Float[Array, "B 3 Y X"],
    images: Sequence[int],
    tap: Tap = silent,
) -> list[Prompt]:
    """All pictures through the vision tower, and prompt i with the rows of its `images[i]` pictures."""
    model.guard.check_files()
    features = image_features(model.weights, pixel_values.astype(model.dtype, copy=False), tap)
    prompts, first = [], 0
    for ids, count in zip(input_ids, images, strict=True):
        prompts.append(make_prompt(model.weights, ids, np.zeros_like(ids), features[first : first + count]))
        first += count
    return prompts


def score(model: LoadedModel, images: Any, prompts: str | list[str], suffixes: Sequence[str]) -> list[Score]:
    """The log-probabilities of each suffix as the answer to its prompt, or to the one prompt there is."""
    if isinstance(prompts, list) and len(suffixes) != len(prompts):
        raise BadPrompt(f"there are {len(prompts)} prompts and {len(suffixes)} suffixes; pass one for each prompt")
    if not suffixes:
        return []
    inputs = model.processor(*([images], [prompts]) if isinstance(prompts, str) else (images, prompts))
    answers = [answer_ids(model, suffix) for suffix in suffixes]
    times = len(answers) // len(inputs.input_ids)  # all suffixes to one prompt, or one to each
    pairs = zip(inputs.input_ids * times, answers, strict=True)
    lengths = [len(ids) + len(answer) for ids, answer in pairs]
    model.guard.check_scored(lengths)
    model.guard.check_memory(lengths, len(inputs.pixel_values), 0, logit_rows=max(map(len, answers)))
    run = partial(run_scores, model, inputs, answers, times)
    with finite(model, run):
        found = run()
    return [Score(answer, row.tolist()) for answer, row in zip(answers, found, strict=True)]


def answer_ids(model: LoadedModel, suffix: str) -> list[int]:
    """The tokens of an answer that is scored: its own, and the end token."""
    return [*model.tokenizer.encode(suffix), model.config.eos_token_ids[0]]


def run_scores(
    model: LoadedModel, inputs: Inputs, answers: Sequence[Sequence[int]], times: int, tap: Tap = silent
) -> list[Float[Array, "T"]]:
    """Pictures through the vision tower, then log P of each token of the answers; each prompt has `times` of them."""
    read = embed_pictures(model, inputs.input_ids, inputs.pixel_values, inputs.images, tap)
    return score_answers(model.weights.text, read * times, answers, tap)

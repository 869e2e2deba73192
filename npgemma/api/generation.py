"""Pictures and prompts -> sequences of tokens -> Generations: what models, batches and commands share."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

from npgemma.api.finite import finite, watched
from npgemma.api.generative import GenerativeModel
from npgemma.api.processor import Inputs, Pictures, check_pairs
from npgemma.decoding.beams import Beam, beam_search
from npgemma.decoding.lookup import Drafter, lookup, no_drafts, object_syntax
from npgemma.decoding.loop import Limits, Token, generate_tokens
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.scoring import Score, score_answers
from npgemma.decoding.text import Detokenizer, Generation, Transcript, pieces
from npgemma.errors import BadPrompt
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.models.prefix_lm import Prompt

DEFAULTS = GenerationOptions()
Model: TypeAlias = GenerativeModel[Any, Any]


def generate(
    model: Model,
    images: Sequence[Pictures],
    prompts: Sequence[str],
    options: GenerationOptions,
    ends: Sequence[int] | None = None,
) -> list[Generation]:
    """The answers to all prompts, `num_return_sequences` of them for each, next to each other; `ends` as for `tokens`.

    A beam search ends at the tokens of the config.
    """
    if options.num_beams > 1:
        check_pairs(images, prompts)
        pairs = zip(images, prompts, strict=True)
        return [answer for image, prompt in pairs for answer in search(model, image, prompt, options)]
    transcript = Transcript(detokenizer(model, options), len(prompts) * options.num_return_sequences)
    for token in tokens(model, images, prompts, options, ends):
        transcript.add(token)
    return transcript.generations()


def stream(
    model: Model, images: Pictures, prompt: str, options: GenerationOptions, ends: Sequence[int] | None = None
) -> Iterator[str]:
    """The one answer to one prompt, piece by piece; `ends` as for `tokens`."""
    return pieces(detokenizer(model, options), tokens(model, [images], [prompt], options, ends))


def tokens(
    model: Model,
    images: Sequence[Pictures],
    prompts: Sequence[str],
    options: GenerationOptions,
    ends: Sequence[int] | None = None,
) -> Iterator[Token]:
    """The tokens of all sequences as they are chosen, step by step.

    An answer ends at one of the tokens `ends`, by default at those of the config.
    """
    if not prompts:
        return iter(())
    inputs = read_inputs(model, images, prompts, options)
    run = partial(run_tokens, model, inputs, limits(model, options, ends), options)
    return watched(model, run(drafter=drafter(model, options)), partial(exhaust, run))


def run_tokens(
    model: Model,
    inputs: Inputs,
    ends: Limits,
    options: GenerationOptions,
    tap: Tap = silent,
    drafter: Drafter = no_drafts,
) -> Iterator[Token]:
    """All inputs, then token by token.

    Runs that a tap watches draft nothing: each row is one of the answer, and a step has one of each sequence. So do the
    runs that golden files record, which have a loop of their own.
    """
    read = embed(model, inputs, tap)
    yield from generate_tokens(model.decoder, read, ends, options, options.num_return_sequences, tap, drafter)


def exhaust(run: Callable[..., Iterator[Token]], tap: Tap) -> None:
    """All of a run at once."""
    deque(run(tap=tap), maxlen=0)


def search(model: Model, image: Pictures, prompt: str, options: GenerationOptions) -> list[Generation]:
    """The best answers that beam search finds, the likeliest first."""
    ends, text = limits(model, options), detokenizer(model, options)
    run = partial(run_search, model, read_inputs(model, [image], [prompt], options), ends, options.num_beams)
    with finite(model, run):
        found = run()[: options.num_return_sequences]
    return [text.generation(beam.ids, ends.reason_to_end(beam.ids), beam.logprobs) for beam in found]


def run_search(model: Model, inputs: Inputs, ends: Limits, num_beams: int, tap: Tap = silent) -> list[Beam]:
    """The inputs, then all of a beam search."""
    (read,) = embed(model, inputs, tap)
    return beam_search(model.decoder, read, num_beams, ends, tap)


def generate_ids(model: Model, inputs: Inputs, eos_ids: Sequence[int] | None, options: GenerationOptions) -> list[int]:
    """The ids that follow those of one prompt; any row of the embedding table may be chosen."""
    (ids,), pictures = inputs.input_ids, len(inputs.pixel_values)
    model.guard.check_length([ids], options.max_new_tokens)
    model.guard.check_memory([len(ids)], pictures, options.max_new_tokens)
    eos = model.config.eos_token_ids if eos_ids is None else eos_ids
    run = partial(run_tokens, model, inputs, Limits(options.max_new_tokens, eos, model.config.text.vocab_size), options)
    return [token.id for token in watched(model, run(drafter=lookup), partial(exhaust, run))]


def drafter(model: Model, options: GenerationOptions) -> Drafter:
    """Where the drafts of answers come from."""
    if not options.lookup:
        return no_drafts
    return partial(lookup, syntax=object_syntax(model.tokenizer.encode, model.tokenizer.ids, model.bos_id))


def detokenizer(model: Model, options: GenerationOptions) -> Detokenizer:
    return Detokenizer(model.tokenizer.decode, options.stops)


def limits(model: Model, options: GenerationOptions = DEFAULTS, ends: Sequence[int] | None = None) -> Limits:
    """Where an answer ends; `ends` as for `tokens`. Rows that only fill the embedding table are never chosen."""
    eos = model.config.eos_token_ids if ends is None else ends
    has_stopped = detokenizer(model, options).has_stopped
    return Limits(options.max_new_tokens, eos, len(model.tokenizer), has_stopped, model.never)


def read_inputs(model: Model, images: Sequence[Pictures], prompts: Sequence[str], options: GenerationOptions) -> Inputs:
    """Pictures and texts as the model reads them, once the memory for the answers is known to suffice."""
    inputs = model.processor(images, prompts)
    model.guard.check_length(inputs.input_ids, options.max_new_tokens)
    lengths, sequences = [len(ids) for ids in inputs.input_ids], max(options.num_beams, options.num_return_sequences)
    model.guard.check_memory(lengths, len(inputs.pixel_values), options.max_new_tokens, sequences)
    return inputs


def embed(model: Model, inputs: Inputs, tap: Tap = silent) -> list[Prompt]:
    """The prompts that the decoder continues. BadModel if the files of the model have been written to."""
    model.guard.check_files()
    return model.embed(inputs, tap)


def score(model: Model, images: Any, prompts: str | list[str], suffixes: Sequence[str]) -> list[Score]:
    """The log-probabilities of each suffix as the answer to its prompt, or to the one prompt there is."""
    if isinstance(prompts, list) and len(suffixes) != len(prompts):
        raise BadPrompt(f"there are {len(prompts)} prompts and {len(suffixes)} suffixes; pass one for each prompt")
    if not suffixes:
        return []
    inputs = model.processor(*([images], [prompts]) if isinstance(prompts, str) else (images, prompts))
    answers = [model.processor.suffix_ids(suffix) for suffix in suffixes]
    times = len(answers) // len(inputs.input_ids)  # all suffixes to one prompt, or one to each
    pairs = zip(inputs.input_ids * times, answers, strict=True)
    lengths = [len(ids) + len(answer) for ids, answer in pairs]
    model.guard.check_scored(lengths)
    model.guard.check_memory(lengths, len(inputs.pixel_values), 0, logit_rows=max(map(len, answers)))
    run = partial(run_scores, model, inputs, answers, times)
    with finite(model, run):
        found = run()
    return [Score(answer, row.tolist()) for answer, row in zip(answers, found, strict=True)]


def run_scores(
    model: Model, inputs: Inputs, answers: Sequence[Sequence[int]], times: int, tap: Tap = silent
) -> list[Float[Array, "T"]]:
    """All inputs, then log P of each token of the answers; each prompt has `times` of them."""
    read = embed(model, inputs, tap)
    return score_answers(model.decoder, read * times, answers, tap)

"""generate with num_beams and num_return_sequences: beams and samples."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from npgemma.api import generation
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.decoding.beams import beam_search
from npgemma.decoding.loop import Limits
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.text import Generation
from npgemma.errors import BadPrompt
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer
from npgemma.models.paligemma import PaliGemma

TOKENIZER = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes())
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8))
ASKED = (PICTURE, "caption en")
# Sums of float64 in another order: the log-probabilities, of a few tens at most, are off by some 1e-14.
ROUNDINGS = 1e-9


def random_weights(folder: Path, config: PaliGemmaConfig) -> PaliGemma:
    """An untied head and a small embedding, so that each token depends on all before it."""
    p = tiny.weights(tiny.write_folder(folder, config), config)
    head = np.random.default_rng(3).standard_normal(p.text.embedding.shape)
    return dataclasses.replace(p, text=dataclasses.replace(p.text, embedding=p.text.embedding / 8, head=head))


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """Random weights with the embedded tokenizer; some of the tokens that it likes are end tokens."""
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=TOKENIZER.image_id + 8)
    config = dataclasses.replace(tiny.CONFIG, text=text, image_token_index=TOKENIZER.image_id)
    weights = random_weights(tmp_path_factory.mktemp("speaker"), config)
    free = VisionLanguageModel(EMBEDDED, config, weights, np.dtype(np.float64)).generate(
        *ASKED, num_beams=6, num_return_sequences=6, max_new_tokens=9
    )
    liked = sorted({token for each in free for token in each.token_ids})
    config = dataclasses.replace(config, eos_token_ids=(1, *liked[1::4]))
    return VisionLanguageModel(EMBEDDED, config, weights, np.dtype(np.float64))


def assert_same(a: Sequence[Generation], b: Sequence[Generation]) -> None:
    """Equal, but for the rounding of logprobs: what runs beside a row may change the order of its sums."""
    assert [dataclasses.replace(x, logprobs=[]) for x in a] == [dataclasses.replace(x, logprobs=[]) for x in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x.logprobs, y.logprobs, rtol=0, atol=ROUNDINGS, strict=True)


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_become_generations_with_text_and_reason(num_beams, speaker):
    new, ends = 7, speaker.config.eos_token_ids
    options = GenerationOptions(max_new_tokens=new, num_beams=num_beams, num_return_sequences=num_beams)
    inputs = generation.read_inputs(speaker, [PICTURE], ["caption en"], options)
    (prompt,) = generation.embed(speaker, inputs)
    beams = beam_search(speaker.weights.text, prompt, num_beams, Limits(new, ends, TOKENIZER.image_id))
    found = speaker.generate(*ASKED, num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=new)
    reasons = ["stop" if beam.ids[-1] in ends else "length" for beam in beams]
    expected = [
        Generation(TOKENIZER.decode(beam.ids), list(beam.ids), reason, list(beam.logprobs))
        for beam, reason in zip(beams, reasons, strict=True)
    ]
    assert_same(found, expected)
    assert len(found) == num_beams


def test_the_likeliest_beam_comes_first(speaker):
    found = speaker.generate(*ASKED, num_beams=12, num_return_sequences=12, max_new_tokens=3)
    totals = [sum(each.logprobs) for each in found]
    assert totals == sorted(totals, reverse=True)
    assert {each.finish_reason for each in found} == {"stop", "length"}


def stops_in(answers: Sequence[Generation]) -> list[str]:
    """The text of each token that the answers hold, but for bytes that are part of a character."""
    texts = {TOKENIZER.decode([token]) for each in answers for token in each.token_ids}
    return sorted(text for text in texts if text.isascii() and text)


def test_a_stop_string_ends_a_beam(speaker):
    """As soon as it is written, whatever beam holds it; one that never does ends as ever."""
    kinds = set()
    for stop in stops_in(speaker.generate(*ASKED, num_beams=6, num_return_sequences=6, max_new_tokens=9)):
        held = set()
        for each in speaker.generate(*ASKED, num_beams=6, num_return_sequences=6, max_new_tokens=9, stop=stop):
            whole, before = (TOKENIZER.decode(ids) for ids in (each.token_ids, each.token_ids[:-1]))
            assert each.text == whole.partition(stop)[0]
            assert stop not in before
            ends = stop in whole or each.token_ids[-1] in speaker.config.eos_token_ids
            assert each.finish_reason == ("stop" if ends else "length")
            held.add(stop in whole)
        kinds.add(frozenset(held))
    assert {True, False} in kinds


# ------------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5},
        {"temperature": 3.0, "seed": 7, "top_k": 50, "top_p": 0.9, "min_p": 0.001},
        {"temperature": 1.0, "repetition_penalty": 1.5, "seed": 2, "stop": ["e", "1"]},
    ],
    ids=str,
)
def test_the_first_sample_equals_the_single_answer(options, speaker):
    found = speaker.generate(*ASKED, num_return_sequences=3, max_new_tokens=12, **options)
    assert len(found) == 3
    assert_same(found[:1], [speaker.generate(*ASKED, max_new_tokens=12, **options)])


def test_samples_do_not_depend_on_their_number(speaker):
    """Although they end at different times."""
    four = speaker.generate(*ASKED, num_return_sequences=4, max_new_tokens=20, temperature=2.0)
    assert len({len(each.token_ids) for each in four}) > 1
    for count in (2, 4):
        again = speaker.generate(*ASKED, num_return_sequences=count, max_new_tokens=20, temperature=2.0)
        assert_same(four[:count], again)


def test_samples_differ_and_neighbouring_seeds_share_none(speaker):
    runs = [
        speaker.generate(*ASKED, num_return_sequences=4, max_new_tokens=12, temperature=3.0, seed=seed)
        for seed in range(3)
    ]
    assert len({tuple(each.token_ids) for run in runs for each in run}) == 12


def test_sequences_of_several_prompts_stand_next_to_each_other(speaker):
    """In transformers' order, for samples and for beams; each prompt's are what it gives alone."""
    pictures, prompts = [PICTURE, PICTURE], ["caption en", "ocr"]
    for options in ({"temperature": 2.0}, {"num_beams": 3}):
        found = speaker.generate(pictures, prompts, num_return_sequences=2, max_new_tokens=6, **options)
        alone = [
            speaker.generate(PICTURE, each, num_return_sequences=2, max_new_tokens=6, **options) for each in prompts
        ]
        assert_same(found, [answer for answers in alone for answer in answers])


def test_prompts_and_pictures_must_pair_up_for_beams_too(speaker):
    with pytest.raises(BadPrompt, match="lists of equal length"):
        speaker.generate([PICTURE], ["caption en", "ocr"], num_beams=2)

"""Answers with lookup and without it: the same, in fewer steps, from the embedded models, alone and in batches."""

import argparse

import numpy as np
import pytest

import npgemma
from npgemma.api import generation
from npgemma.commands.flags import answer_flags, options
from npgemma.decoding.loop import generate_tokens
from npgemma.decoding.options import GenerationOptions
from npgemma.layers.taps import Recorder

PICTURE = npgemma.sample_picture()
PROMPTS = ["detect blue star ; orange ring ; green circle", "segment blue star", "caption en"]
# Logits of some tens, whose float32 has eps 2e-6, after sums in another order in each of a few layers.
ROUNDINGS = {"float32": 1e-3, "float64": 1e-9}


@pytest.fixture(scope="module")
def models() -> dict[str, npgemma.VisionLanguageModel]:
    return {dtype: npgemma.load(dtype=dtype) for dtype in ROUNDINGS}


def assert_same(
    found: list[npgemma.Generation], expected: list[npgemma.Generation], model: npgemma.VisionLanguageModel
) -> None:
    assert [(x.text, x.token_ids, x.finish_reason) for x in found] == [
        (x.text, x.token_ids, x.finish_reason) for x in expected
    ]
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(each.logprobs, other.logprobs, rtol=0, atol=ROUNDINGS[model.dtype.name])


@pytest.mark.parametrize(
    ("dtype", "prompts", "chosen"),
    [
        ("float32", 3, {}),
        ("float64", 1, {}),
        ("float64", 1, {"max_new_tokens": 6}),  # within a draft
        ("float32", 1, {"max_new_tokens": 12, "stop": [" star ;"], "repetition_penalty": 1.1}),
        (
            "float64",
            1,
            {"max_new_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 3, "num_return_sequences": 2},
        ),
    ],
    ids=str,
)
def test_lookup_changes_no_answer(dtype: str, prompts: int, chosen: dict, models) -> None:
    model, images, texts = models[dtype], [PICTURE] * prompts, PROMPTS[:prompts]
    found, expected = (model.generate(images, texts, lookup=each, **chosen) for each in (True, False))
    assert_same(found, expected, model)


def test_lookup_changes_no_answer_of_a_batch(models) -> None:
    jobs = [npgemma.Job(prompt, (PICTURE.name,), prompt, PICTURE.parent) for prompt in PROMPTS[::2]]
    found, expected = (
        {
            result.job.id: result.generation
            for result in npgemma.answer_jobs(models["float32"], jobs, 2, lookup=each, max_new_tokens=14)
        }
        for each in (True, False)
    )
    in_order = [[answers[prompt] for prompt in PROMPTS[::2]] for answers in (found, expected)]
    assert_same(*in_order, models["float32"])


def steps(model: npgemma.VisionLanguageModel, prompt: str, lookup: bool) -> int:
    """How many passes an answer takes."""
    taps, asked = Recorder("*logits"), GenerationOptions(lookup=lookup)
    inputs = model.processor([PICTURE], [prompt])
    read, ends = generation.embed(model, inputs), generation.limits(model, asked)
    for _ in generate_tokens(model.decoder, read, ends, asked, 1, taps, generation.drafter(model, asked)):
        pass
    return len(taps)


def test_lookup_saves_steps_of_detections(models) -> None:
    """Of three objects with labels of two tokens: each place takes a step, and all from a label to the next place one.

    The last one is that of the last label and the end.
    """
    assert steps(models["float32"], PROMPTS[0], False) == 3 * 4 + 3 * 2 + 2 * 2 + 1
    assert steps(models["float32"], PROMPTS[0], True) == 3 * 4 + 1


def test_pieces_of_an_answer_come_as_they_do_without_lookup(models) -> None:
    found, expected = (list(models["float32"].stream(PICTURE, PROMPTS[2], lookup=each)) for each in (True, False))
    assert found == expected


def test_lookup_changes_no_answer_of_a_language_model() -> None:
    model = npgemma.LanguageModel.load()
    prompts = ["The capital of France is", "The capital of Italy is Rome. The capital of France is"]
    found, expected = (model.generate(prompts, max_new_tokens=12, lookup=each) for each in (True, False))
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert model.generate_ids(model.processor.encode(prompts[1]), 12) == expected[1].token_ids


@pytest.mark.parametrize(("flags", "lookup"), [([], True), (["--no-lookup"], False)], ids=str)
def test_lookup_can_be_turned_off_on_the_command_line(flags: list[str], lookup: bool) -> None:
    parser = argparse.ArgumentParser(parents=[answer_flags()])
    assert options(parser.parse_args(flags)).lookup is lookup

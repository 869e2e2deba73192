"""npgemma's beams against transformers' beam search: the same answers in the same order, with the same totals.

Both sides compute in float64 throughout (see `truth`), so no order depends on the rounding of float32.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

import npgemma
from npgemma.decoding.beams import beam_search
from npgemma.decoding.loop import Limits
from npgemma.io.model_folder import EMBEDDED
from npgemma.models.paligemma import PaliGemma, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

import make_fixtures  # noqa: E402
from dump_transformers import load_model, make_inputs  # noqa: E402
from make_fixtures import IMAGE, in_float64, truth  # noqa: E402
from torch_beams import Answer, as_answers, compare, transformers_beams  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

SAMPLE = npgemma.sample_picture()
PROMPTS = ("caption en", "detect blue star", "answer en what color is the star?", "ocr")
NUM_BEAMS = (1, 2, 3, 4, 8)
# ROUNDINGS of float32, which are 2^29 times as wide.
FLOAT32 = 1e-4

SEEDS = range(6)
NEW = (1, 2, 7)
V = 57  # more than the 6 * 8 continuations that 8 beams and 5 end tokens keep
NEVER = (V,)  # an end token that does not exist
TEXTS = ((IMAGE, 7), (9,), (IMAGE, 3, IMAGE, 4))


def beams(model: npgemma.VisionLanguageModel, prompt: str, num_beams: int, new: int) -> list[npgemma.Generation]:
    """All of the best beams; with one beam, the greedy answer."""
    return model.generate([SAMPLE], [prompt], num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=new)


# ------------------------------------------------------------------------------------------------------ embedded model


@pytest.fixture(scope="module")
def limits_of() -> dict[int, Limits]:
    """By max_new_tokens: where an answer of the embedded model ends."""
    model = npgemma.load()
    image_id = model.tokenizer.image_id
    return {new: Limits(new, model.config.eos_token_ids, image_id) for new in (1, 2, 3, 20)}


@pytest.fixture(scope="module")
def wide() -> "transformers.PaliGemmaForConditionalGeneration":
    return in_float64(load_model(EMBEDDED, torch.float32, "eager"))


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_of_the_embedded_model(prompt: str, num_beams: int, wide, limits_of: dict[int, Limits]) -> None:
    """Some end with an end token and some at the length limit."""
    model = npgemma.load(dtype="float64")
    inputs = make_inputs(EMBEDDED, [SAMPLE], prompt)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    reasons = set()
    for new, limits in limits_of.items():
        with truth():
            theirs = transformers_beams(wide, inputs, num_beams, limits)
        ours = beams(model, prompt, num_beams, new)
        compare(as_answers(ours), theirs)
        expected = ["stop" if answer.ids[-1] in limits.eos_ids else "length" for answer in theirs]
        assert [answer.finish_reason for answer in ours] == expected
        reasons |= set(expected)
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_in_float32(prompt: str, limits_of: dict[int, Limits]) -> None:
    """With four beams, whose totals differ by more than the rounding of float32."""
    theirs = transformers_beams(
        load_model(EMBEDDED, torch.float32, "eager"), make_inputs(EMBEDDED, [SAMPLE], prompt), 4, limits_of[20]
    )
    totals = [answer.total for answer in theirs]
    assert (-np.diff(totals)).min() > 10 * FLOAT32
    compare(as_answers(beams(npgemma.load(), prompt, 4, 20)), theirs, FLOAT32)


# ------------------------------------------------------------------------------------------------------- random models


@dataclass(frozen=True)
class RandomModel:
    """A small model as both sides read it, a prompt for it, and tuples of end tokens that its answers contain."""

    weights: PaliGemma
    prompt: Prompt
    wide: "transformers.PaliGemmaForConditionalGeneration"
    inputs: dict
    ends: tuple[tuple[int, ...], ...]

    def ours(self, num_beams: int, limits: Limits) -> list[Answer]:
        found = beam_search(self.weights.text, self.prompt, num_beams, limits)
        return [Answer(beam.ids, beam.logprobs, beam.total) for beam in found]

    def theirs(self, num_beams: int, limits: Limits, **options: float) -> list[Answer]:
        with truth():
            return transformers_beams(self.wide, self.inputs, num_beams, limits, **options)


def random_model(seed: int, folder: Path) -> RandomModel:
    """With a small embedding and a large untied head, so that each token depends on all before it.

    Its end tokens: none; one, two and three of those in its best answers; and five of its six likeliest first tokens.
    """
    grouped = make_fixtures.CASES["grouped"]
    case = replace(grouped, text=grouped.text | {"vocab_size": V}, seed=seed, prompt=TEXTS[seed % 3], suffix=0)
    case = replace(case, image_token=V, tied=False, stored=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    model, inputs = make_fixtures.build(case, generator), make_fixtures.make_inputs(case, generator)
    model.model.language_model.embed_tokens.weight.data /= 8
    model.lm_head.weight.data *= 4
    model.save_pretrained(folder)
    weights, side = npgemma.load(folder, "float64").weights, case.vision["image_size"]
    pixels = inputs.get("pixel_values", torch.empty(0, 3, side, side)).double()
    if "pixel_values" in inputs:
        inputs["pixel_values"] = pixels
    ids, features = inputs["input_ids"][0].numpy(), image_features(weights, pixels.numpy())
    prompt = make_prompt(weights, ids, np.zeros_like(ids), features)
    free = RandomModel(weights, prompt, in_float64(model), inputs, (NEVER,))
    frequent = sorted({token for answer in free.theirs(4, Limits(max(NEW), NEVER, V)) for token in answer.ids})
    some = [tuple(Random(seed).sample(frequent, count)) for count in (1, 2, 3)]
    first = [answer.ids[0] for answer in free.theirs(6, Limits(1, NEVER, V))]
    return replace(free, ends=(NEVER, *some, tuple(first[:2] + first[3:])))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[RandomModel]:
    return [random_model(seed, tmp_path_factory.mktemp(f"model{seed}")) for seed in SEEDS]


@pytest.mark.parametrize("num_beams", NUM_BEAMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_answers_of_a_random_model(seed: int, num_beams: int, models: list[RandomModel]) -> None:
    """With no, one and two pictures; with up to five end tokens; with all tokens allowed, or all but eight."""
    model = models[seed]
    for eos in model.ends:
        for new in NEW:
            for choices in (V, V - 8):
                limits = Limits(new, eos, choices)
                compare(model.ours(num_beams, limits), model.theirs(num_beams, limits))


def test_the_random_answers_are_of_every_kind(models: list[RandomModel]) -> None:
    """Otherwise the comparison above would hold less than it says: answers end both ways, and searches end early."""
    mixed = early = 0
    for model in models:
        for eos in model.ends:
            answers = [answer.ids for answer in model.theirs(3, Limits(7, eos, V))]
            mixed += len({ids[-1] in eos for ids in answers}) == 2
            early += max(map(len, answers)) < 7
    assert mixed > 3
    assert early > 3


def test_beams_find_what_greedy_misses(models: list[RandomModel]) -> None:
    """In both, and by a factor of two in probability for most models."""
    gains = []
    for model in models:
        limits = Limits(7, NEVER, V)
        gains.append([side(8, limits)[0].total - side(1, limits)[0].total for side in (model.ours, model.theirs)])
    assert sum(min(gain) > np.log(2) for gain in gains) > len(models) / 2


@pytest.mark.parametrize("options", [{"length_penalty": 1.0}, {"early_stopping": True}], ids=str)
def test_the_comparison_notices_another_rule(options: dict, models: list[RandomModel]) -> None:
    """Totals divided by lengths, or a search that ends once it has enough answers, change an answer of some model."""
    noticed = 0
    for model in models:
        for eos in model.ends:
            ours, others = model.ours(3, Limits(7, eos, V)), model.theirs(3, Limits(7, eos, V), **options)
            noticed += [answer.ids for answer in ours] != [answer.ids for answer in others]
    assert noticed > 0

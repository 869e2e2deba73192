"""Whether a golden file holds what the table of taps says. Its checksum finds damage; it does not vouch for the author.

Comparing and replaying rely on what is checked here: the facts that they use, the axes and the dtype of each tap, and
an error for each row of each float.
"""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.guard import checked_pixels
from npgemma.api.load import AnyModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadGolden, BadPrompt
from npgemma.golden.gradient_taps import SIGNS
from npgemma.golden.names import axes_of, row_axes
from npgemma.io.safetensors import LONGEST_NAME
from npgemma.layers.shapes import Array

# What taps that are not floats are stored as.
WHOLE = re.compile(r"(.*\.)?(input_ids|token_type_ids|generated_ids|positions|pictures|labels)")
BYTES = re.compile(r"(.*\.)?(mask|near|resized)")
# The precisions of envelopes. Older files have none in TF32; in float16 a run may overflow.
REQUIRED, ENVELOPES = ("float32", "bfloat16"), ("float32", "tf32", "bfloat16", "float16")
PRECISIONS = ("float64", *ENVELOPES)
# What every file of gradients holds, by the type of an encoder, and that of a model that answers.
GRADIENT_INPUTS = {
    None: ("prompts.0.input_ids", "prompts.0.token_type_ids", "prompts.0.loss_weights", "loss", SIGNS),
    "siglip": ("pixel_values", "input_ids", "loss", SIGNS),
    "clip": ("pixel_values", "input_ids", "loss", SIGNS),
    "vit": ("pixel_values", "labels", "loss", SIGNS),
}
NO_GRADIENTS: dict[str, Any] = {"mean": "", "smoothing": 0.0, "whole": True, "blocks": {}, "zero": {}}
PAIRS, ENCODERS = ("siglip", "clip"), ("siglip", "clip", "vit")
DEEPEST = 20
POSITIONS = ("from 0", "from 1")


def check_contents(
    where: str,
    facts: Mapping[str, Any],
    taps: Mapping[str, str],
    truth: Mapping[str, Array],
    envelopes: Mapping[str, Mapping[str, Array]],
) -> None:
    """BadGolden, with the fact or the tap, unless everything that a comparison needs is there and fits."""
    problems = chain(wrong_facts(facts, taps), wrong_taps(facts, taps, truth), wrong_envelopes(taps, truth, envelopes))
    if problem := next(problems, None):
        raise BadGolden(f"{where} is not a usable golden file: {problem}; record it again")


def wrong_facts(facts: Mapping[str, Any], taps: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the facts."""
    if lost := [key for key in ("case", "model", "policy", "schedules") if not isinstance(facts.get(key), dict)]:
        yield f"{lost[0]} is not an object"
    if depth(facts) > DEEPEST:
        yield f"its facts are nested more than {DEEPEST} deep"
    case, model, policy, schedules = (facts[key] for key in ("case", "model", "policy", "schedules"))
    fits = isinstance(case.get("images"), list) and is_list_of_texts(case.get("texts", []))
    if not fits or not isinstance(case.get("prompt", ""), str):
        yield "case does not hold a list of images, and texts"
    kind = model.get("type")
    if kind not in (None, *ENCODERS) or not isinstance(model.get("config"), str) or not is_texts(model.get("weights")):
        yield "model does not hold a type, config and weights"
    if model.get("truth_stored_as") not in ("float32", "float64"):
        yield "truth_stored_as is not float32 or float64"
    if not is_gradients(facts.get("gradients", NO_GRADIENTS)):
        yield "gradients does not say which mean the loss is, and the block of each gradient"
    if kind is None and not is_decoder_policy(policy, taps):
        yield "policy does not say how a decoder computes"
    for dtype, schedule in schedules.items():
        rounds = schedule.get("rounds") if isinstance(schedule, dict) else None
        if not is_texts(rounds) or not {*rounds.values()} <= {*PRECISIONS}:  # type: ignore[union-attr]
            yield f"the schedule of {dtype} is not an object with what it rounds"


def depth(value: Any) -> int:
    """How deep objects and lists are nested."""
    level, found = [value], 0
    while level := [each for each in level if isinstance(each, (dict, list))]:
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        found += 1
    return found


def is_list_of_texts(value: Any) -> bool:
    """Whether `value` is a list of texts."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def is_texts(value: Any) -> bool:
    """Whether `value` is an object of texts."""
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def is_decoder_policy(policy: Mapping[str, Any], taps: Mapping[str, str]) -> bool:
    """Whether a policy says where positions begin, which scores have a cap, and how each layer rotates."""
    caps, rotation = policy.get("soft_caps", ""), policy.get("rotation")
    if policy.get("positions") not in POSITIONS or not (caps is None or (isinstance(caps, dict) and "logits" in caps)):
        return False
    if rotation is None:
        return True
    layers = (re.match(r"(?:steps\.\d+\.)?text\.layers\.(\d+)\.", tap) for tap in taps)
    deepest = max((int(layer[1]) for layer in layers if layer), default=-1)
    return isinstance(rotation, list) and len(rotation) > deepest and all(map(is_rotation, rotation))


def is_gradients(value: Any) -> bool:
    """Whether `value` is what a file of gradients says about the loss and about the blocks of gradients."""
    if not isinstance(value, dict) or not (is_texts(value.get("blocks")) and is_texts(value.get("zero"))):
        return False
    if not all(is_list_of_texts(value.get(key, [])) for key in ("train", "frozen", "optional")):
        return False
    curve = value.get("curve", {"steps": 1})
    if not isinstance(curve, dict) or not isinstance(curve.get("steps"), int):
        return False
    scales = value.get("scales", {})
    if not isinstance(scales, dict) or not all(isinstance(scale, int | float) and scale for scale in scales.values()):
        return False
    smoothing = value.get("smoothing")
    smooth = isinstance(smoothing, int | float) and 0 <= smoothing < 1
    return isinstance(value.get("mean"), str) and isinstance(value.get("whole"), bool) and smooth


def is_rotation(value: Any) -> bool:
    """Whether `value` says how a layer rotates."""
    numbers = [value.get("theta"), value.get("factor")] if isinstance(value, dict) else [None]
    return all(isinstance(number, int | float) and 0 < number < 1e30 for number in numbers)


def wrong_taps(facts: Mapping[str, Any], taps: Mapping[str, str], truth: Mapping[str, Array]) -> Iterator[str]:
    """What is wrong with the taps and their tensors."""
    model = facts["model"]
    kind = model.get("type")
    for tap in GRADIENT_INPUTS[kind] if "gradients" in facts else inputs_of(kind, taps):
        if tap not in taps:
            yield f"it lacks {tap}, an input of the run"
    for tap, axes in taps.items():
        x, floats = truth[tap], model["truth_stored_as"]
        expected = "int32" if WHOLE.fullmatch(tap) else "uint8" if BYTES.fullmatch(tap) else floats
        expected = "int8" if tap == SIGNS else expected
        if axes not in axes_of(tap) or x.dtype != expected:
            yield f"{tap} is {x.dtype} {axes!r}, not {expected} {' or '.join(map(repr, sorted(axes_of(tap))))}"
        if not x.size:
            yield f"{tap} holds no numbers"
        if len(tap) > LONGEST_NAME:
            yield f"the name of the tap {tap[:50]}... has {len(tap):,} characters"


def inputs_of(kind: str | None, taps: Mapping[str, str]) -> tuple[str, ...]:
    """The inputs of a run of a kind of model, which every file holds."""
    if kind is not None:
        return ("pixel_values", "input_ids") if kind in PAIRS else ("pixel_values",)
    pictures = ("prompts.0.token_type_ids",) if "pixel_values" in taps else ()
    return ("prompts.0.input_ids", "generated_ids", *pictures)


def wrong_envelopes(
    taps: Mapping[str, str], truth: Mapping[str, Array], envelopes: Mapping[str, Mapping[str, Array]]
) -> Iterator[str]:
    """What is wrong with the honest errors: all floats have them, a finite one for each row."""
    floats = [tap for tap in taps if truth[tap].dtype.kind == "f"]
    if lost := [dtype for dtype in REQUIRED if dtype not in envelopes] or envelopes.keys() - {*ENVELOPES}:
        yield f"the honest errors of {min(lost)} are missing, or are of no precision"
    for dtype, found in envelopes.items():
        if found.keys() != {*floats}:
            yield f"the honest errors in {dtype} are not those of its {len(floats)} taps that are floats"
            return
        for tap in floats:
            x, rows = found[tap], math.prod(truth[tap].shape[i] for i in row_axes(taps[tap]))
            if x.shape != (2, rows) or x.dtype != np.float32 or not np.isfinite(x).all() or (x < 0).any():
                yield f"the honest errors of {tap} in {dtype} are not two finite numbers for each of {rows} rows"


def check_replayable(model: AnyModel, where: str, truth: Mapping[str, Array]) -> None:
    """BadGolden unless the model can read the inputs that were recorded."""
    try:
        if isinstance(model, DualEncoder | Classifier):
            checked_pixels(truth["pixel_values"], model.config.vision.image_size)
            if isinstance(model, DualEncoder):
                check_texts(model, truth["input_ids"])
            return
        ids, written = truth["prompts.0.input_ids"], truth["generated_ids"]
        if isinstance(model, VisionLanguageModel):
            model.guard.check_inputs(ids, truth.get("pixel_values"), truth.get("prompts.0.token_type_ids"))
        else:
            model.guard.check_ids(ids)
        model.guard.check_ids(written)
        model.guard.check_length([ids], len(written))
    except BadPrompt as error:
        raise BadGolden(f"the golden file does not fit {where}: {error}") from None


def check_texts(model: DualEncoder, ids: Array) -> None:
    """BadPrompt unless every text fits the positions, and every token has a row."""
    text = model.config.text
    if ids.shape[1] > text.max_position_embeddings or ids.min() < 0 or ids.max() >= text.vocab_size:
        raise BadPrompt(f"its texts have {ids.shape[1]} tokens from {ids.min()} to {ids.max()}")

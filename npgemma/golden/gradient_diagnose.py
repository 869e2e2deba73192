"""Guess which mistake made gradients wrong, from which of them are wrong and how.

all are the truth times one number    the loss is the mean over something else
the table of embeddings alone         ids that repeat, the lookup's share, or the share of a head tied to it
the tower and the projector alone     the rows of the decoder's gradient that belong to pictures
a half of an update times a number    the scale of the adapter
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from npgemma.golden.compare import Report
from npgemma.golden.diagnose import LEFT, NEAR
from npgemma.golden.file import Golden
from npgemma.golden.gradient_taps import LOSS, ROWS, WEIGHT
from npgemma.golden.judge import Verdict, rms
from npgemma.layers.shapes import Array

# The port's tensor of a tap, or None.
Find = Callable[[str], Array | None]
# A row of a gradient is wrong if its error is so many times the rms error of an honest run.
WRONG_ROW = 16.0
# The logarithm of what multiplies the scores of pairs.
SCALE = f"{WEIGHT}logit_scale"
# The tables of embeddings of decoders and of the texts of pairs.
TABLES = ("embed_tokens.weight", "token_embedding.weight")
# What is wrong with an optimizer, by the step at which it shows.
STEPS = {
    "step 1": "the gradients are right and their length is not: that of all trained weights, before they are clipped",
    "step 2": "the first update differs: its rate, the correction of its moments, its eps, or what decays and how",
}
LATER = "the first update is right and later ones are not: the moments, how gradients are clipped, or what decays"
# The share of the gradients that a factor must explain.
MOST = 0.9


def diagnosed(report: Report, golden: Golden, find: Find) -> Report:
    """The report with sentences on the first gradient that is wrong."""
    first = report.first_divergence
    if first is None:
        return report
    wrong = [verdict for verdict in report.verdicts if verdict.wrong] or [first]
    found = (*scaled(report, golden, find), *structure(wrong, report, golden, find), *updates(wrong, golden, find))
    changed = replace(first, diagnosis=(*first.diagnosis, *found))
    return replace(report, verdicts=[changed if verdict is first else verdict for verdict in report.verdicts])


def structure(wrong: list[Verdict], report: Report, golden: Golden, find: Find) -> Iterator[str]:
    """What is said by the blocks of the gradients that are wrong."""
    blocks = {verdict.block for verdict in wrong} - {"gradient_norm"}
    names = {verdict.name for verdict in wrong}
    if all(name.startswith("curve.") for name in names):
        yield STEPS.get(wrong[0].block, LATER)
    if found := names & {"log_probs", "logits_per_image"}:
        what = "log p differs" if "log_probs" in found else "the scores differ"
        yield f"{what}, so the forward pass does: record its taps without --gradients, and compare those first"
    elif names - {"gradient_norm"} == {SCALE}:
        yield "dL/d logit_scale is that of the scale, its exponential, times the scale"
    elif blocks == {LOSS} and names <= {"loss"}:
        yield "log p is right and the loss is not: the labels, their weights or the smoothing differ"
    if blocks == {"text.embedding"} and not any(name.startswith("grad.projector") for name in names):
        yield from table(report, golden, find)
    if {"projector", "vision.norm"} <= blocks and all(is_of_pictures(verdict) for verdict in wrong):
        yield (
            "only the tower and the projector are wrong: the gradient of the image rows is dropped, scaled (the factor "
            "sqrt(D) is that of text rows), or not added up over the prompts that show a picture"
        )


def is_of_pictures(verdict: Verdict) -> bool:
    """Whether a gradient comes after the rows of pictures in the backward pass; the length of all says nothing."""
    return verdict.block.startswith(("vision.", "projector")) or verdict.name in ("grad.projector", "gradient_norm")


def table(report: Report, golden: Golden, find: Find) -> Iterator[str]:
    """Which rows of the table of embeddings are wrong: those of ids that repeat, of all that occur, or others too."""
    tap = next((tap for tap in golden.taps if tap.startswith(ROWS) and tap.endswith(TABLES)), None)
    x = None if tap is None else find(tap)
    if tap is None or x is None:
        return
    honest = max(rms(golden.envelopes[report.dtype][tap][0]), 1e-300)
    off = set(np.flatnonzero(np.abs(x - golden.truth[tap]) > WRONG_ROW * honest).tolist())
    ids = np.concatenate([golden.truth[tap].reshape(-1) for tap in golden.taps if tap.endswith("input_ids")])
    occur, counts = np.unique(ids, return_counts=True)
    if off <= set(occur[counts > 1].tolist()):
        yield "only rows of ids that occur several times are wrong: their gradients must add up"
    elif off <= set(occur.tolist()):
        factor = ", with its factor sqrt(D)," if tap.endswith(TABLES[0]) else ""
        yield f"only rows that are looked up are wrong: the share of the lookup{factor} differs"
    elif tap.endswith(TABLES[0]):
        yield "rows that are never looked up are wrong: the share of the head that is tied to the table differs"


def scaled(report: Report, golden: Golden, find: Find) -> Iterator[str]:
    """A sentence if all gradients are the truth times one number."""
    factors = []
    measured = [each for each in report.verdicts if each.name.startswith(("grad.",)) and each.ratios]
    zero = golden.metadata["gradients"]["zero"]
    for verdict in measured:
        if verdict.name in zero:
            continue
        x, truth = find(verdict.name), golden.truth[verdict.name].astype(np.float64)
        if x is None or not truth.any():
            continue
        c = float(np.vdot(truth, x) / np.vdot(truth, truth))
        if abs(c - 1) > NEAR and rms(x - c * truth) < LEFT * rms(x - truth):
            factors.append(c)
    if not factors or len(factors) < MOST * (len(measured) - len(zero)):
        return
    c = float(np.median(factors))
    if max(abs(each / c - 1) for each in factors) < NEAR:
        named = next((name for name, value in counts(golden).items() if abs(c / value - 1) < NEAR), "")
        yield f"all gradients are the truth times {c:.4g}" + (f", which is {named}" if named else "")


def updates(wrong: list[Verdict], golden: Golden, find: Find) -> Iterator[str]:
    """What a half of an adapter's update, in the first wrong block, says about the scale, which multiplies B A."""
    scales = golden.metadata["gradients"].get("scales", {})
    for name in (v.name.removeprefix(WEIGHT) for v in wrong if v.block == wrong[0].block):
        x = find(WEIGHT + name) if name in scales else None
        if x is None:
            continue
        truth = golden.truth[WEIGHT + name].astype(np.float64)
        c = float(np.vdot(truth, x) / np.vdot(truth, truth)) if truth.any() else 1.0
        reasons = of_scale(scales[name], truth.shape[0 if ".lora_A." in name else 1])
        if abs(c - 1) > NEAR and rms(x - c * truth) < LEFT * rms(x - truth):
            reason = next((f": {why}" for value, why in reasons.items() if abs(c / value - 1) < NEAR), "")
            yield f"the gradient of {name} is the truth times {c:.4g}{reason}"
            return


def of_scale(scale: float, rank: int) -> Mapping[float, str]:
    """What mistakes with the scale multiply a gradient by."""
    found = {1 / scale: "the scale, alpha / r, is missing", scale: "the scale, alpha / r, is applied twice"}
    found |= {math.sqrt(rank): "the scale is alpha / sqrt(r), not alpha / r"}
    return found | {1 / math.sqrt(rank): "the scale is alpha / r, not alpha / sqrt(r)"}


def counts(golden: Golden) -> Mapping[str, float]:
    """What gradients are multiplied by where a mean is over something else than it should be."""
    mean, pictures = golden.metadata["gradients"]["mean"], float(len(golden.truth.get("pixel_values", ())))
    if mean == "picture":
        found = {"the number of pictures: the loss is a sum over pictures": pictures}
        if golden.truth["labels"].ndim == 2:
            width = float(golden.truth["labels"].shape[1])
            found |= {"the number of labels: the loss is a sum over labels": width}
            found |= {"pictures times labels: the loss is a sum": pictures * width}
        return found
    if mean == "pair":
        found = {"1 / the number of pairs: the mean is over all scores": 1 / pictures}
        return found | {
            "the number of pairs: the loss is a sum": pictures,
            "2: the losses of pictures and of texts are added, and not halved": 2.0,
        }
    labels = [golden.truth[tap] for tap in golden.taps if tap.endswith(".labels")]
    learned, rows = sum(int((each >= 0).sum()) for each in labels), sum(map(len, labels))
    longest = max(map(len, labels))
    numbers = {"rows": rows, "rows of the padded batch": longest * len(labels), "examples": len(labels)}
    numbers |= {"rows that predict": rows - len(labels)}
    if mean != "token" and learned != len(labels):
        return {}
    found = {f"learned tokens / {name}: the mean is over {name}": learned / count for name, count in numbers.items()}
    return found | {"the number of learned tokens: the loss is a sum": float(learned)}

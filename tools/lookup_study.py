"""Measure prompt lookup: whether answers stay the same, and how many passes and seconds it saves.

    python tools/lookup_study.py                      # the embedded model, with 500 pictures: 15 minutes
    python tools/lookup_study.py --pictures 20
    python tools/lookup_study.py /tmp/3b --rounds 1   # random weights in the real layout, with a tokenizer: 15 minutes
    python tools/lookup_study.py /tmp/3b --rounds 1 --forms "detect 10 labels" "segment 1*"

First the answers about the pictures of tools/evaluate_tiny.py, with lookup and without it, for the embedded model. Then
answers of the forms that PaliGemma writes: the model runs every row, and the token that is chosen is the next one of
the given answer, so passes and seconds are real with any weights. The seconds are those of the steps after the prompt;
those of the processors vary less on a machine that does other work, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
from evaluate_tiny import MAX_NEW_TOKENS, unseen

import npgemma
from npgemma.api.generation import drafter, embed
from npgemma.decoding.lookup import Drafter, no_drafts
from npgemma.decoding.loop import Limits, RunningSequence, choose_next, step_sequences
from npgemma.decoding.options import GenerationOptions, Sampling
from npgemma.io.model_folder import EMBEDDED
from npgemma.models.gemma import new_caches
from npgemma.models.prefix_lm import start
from npgemma.tasks.objects import DetectedObject, write_objects
from npgemma.tasks.prompts import detect_prompt, segment_prompt


def objects(labels: list[str], codes: bool = False) -> str:
    """An answer with an object for each label, none of them where another is."""
    rng = Random(0)
    places = [tuple(rng.randrange(1024) for _ in range(4)) for _ in labels]
    masks = [tuple(rng.randrange(128) for _ in range(16 * codes)) for _ in labels]
    return write_objects([DetectedObject(*each) for each in zip(labels, places, masks, strict=True)])


MIXED = ["cat", "dog", "cat", "cat", "dog", "dog", "cat", "dog", "cat", "dog"]
PLAIN_CAPTION = "a young woman in a red coat walks two dogs along the beach while an old man with grey hair watches"
CAPTION = (
    "In this image there is a table. On the table there is a plate, and on the plate there is a cake. In the "
    "background there is a wall, and on the wall there is a clock."
)
SIGN = "SPEED LIMIT 55 NO PARKING ANY TIME 7AM TO 6PM EXCEPT SUNDAYS"
RECEIPT = (
    "SUPERMARKET\nMilk 1L 2 x 1.29 EUR 2.58\nBread 1 x 3.49 EUR 3.49\nApples 1 x 2.99 EUR 2.99\n"
    "Butter 2 x 2.19 EUR 4.38\nTotal EUR 13.44\nCash EUR 20.00\nChange EUR 6.56"
)
# What is asked, and the answer that is written.
FORMS = {
    "detect 10 objects of a label": (detect_prompt(["person"]), objects(["person"] * 10)),
    "detect 10 objects of 2 labels": (detect_prompt(["cat", "dog"]), objects(["cat"] * 5 + ["dog"] * 5)),
    "the same, mixed": (detect_prompt(["cat", "dog"]), objects(MIXED)),
    "detect 10 labels": (
        detect_prompt(labels := ["car", "bus", "truck", "person", "dog", "bike", "tree", "sign", "bench", "hat"]),
        objects(labels),
    ),
    "segment 1 object": (segment_prompt(["person"]), objects(["person"], codes=True)),
    "segment 4 objects": (segment_prompt(["person"]), objects(["person"] * 4, codes=True)),
    "caption without repetition": ("caption en", PLAIN_CAPTION),
    "caption that repeats itself": ("describe en", CAPTION),
    "ocr without repetition": ("ocr", SIGN),
    "ocr of a receipt": ("ocr", RECEIPT),
}

COLUMNS = "answer", "tokens", "passes", "with lookup", "a token", "s", "with lookup, s", "time, x", "processor time, x"


@dataclass(frozen=True)
class Forced(Limits):
    """Limits of an answer that is given: its next token is the only one allowed."""

    answer: Iterator[int] = field(default_factory=lambda: iter(()))

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        forced = np.full(self.choices, -np.inf, scores.dtype)
        forced[next(self.answer)] = 0
        return forced


def equal_answers(dtype: str, pictures: int) -> str:
    """How many answers of the embedded model have the same tokens with lookup and without it."""
    model, same = npgemma.load(dtype=dtype), []
    for scene, questions in unseen(pictures):
        labels = [thing.label for thing in scene.things]
        prompts = [detect_prompt(labels), segment_prompt(labels), *(q.prompt for q in questions)]
        images = [scene.image] * len(prompts)
        runs = [model.generate(images, prompts, max_new_tokens=MAX_NEW_TOKENS, lookup=each) for each in (False, True)]
        same += [plain.token_ids == found.token_ids for plain, found in zip(*runs, strict=True)]
    return f"{dtype}: {sum(same)} of {len(same)} answers have the same tokens"


class Form:
    """One prompt, run once, and an answer to it that is then written with drafts or without them."""

    def __init__(self, model: npgemma.VisionLanguageModel, prompt: str, answer: str) -> None:
        self.p, self.answer = model.decoder, [*model.tokenizer.encode(answer), model.config.eos_token_ids[0]]
        (self.prompt,) = embed(model, model.processor([npgemma.sample_picture()], [prompt]))
        self.caches = new_caches(self.p, len(self.prompt.input_ids) + len(self.answer) - 1, model.dtype)
        self.logits = start(self.p, [self.prompt], [self.caches])
        self.ends = partial(Forced, len(self.answer), model.config.eos_token_ids, len(model.tokenizer))

    def write(self, drafter: Drafter) -> tuple[int, float, float]:
        """The passes of a run, that of the prompt included; of the others the seconds, and those of the processors."""
        ids, limits, sampling = self.prompt.input_ids, self.ends(answer=iter(self.answer)), Sampling()
        caches = [cache.copy() for cache in self.caches]
        sequence = RunningSequence(ids, caches, self.logits, np.random.default_rng(0), drafter(ids))
        passes, begin, used = 1, time.perf_counter(), time.process_time()
        while choose_next(sequence, limits, sampling)[-1][1] is None:
            step_sequences(self.p, [sequence], limits)
            passes += 1
        assert sequence.written == self.answer
        return passes, time.perf_counter() - begin, time.process_time() - used


def measured(model: npgemma.VisionLanguageModel, name: str, rounds: int) -> str:
    """A row of the table; both kinds of runs take turns."""
    form, drafters = Form(model, *FORMS[name]), (no_drafts, drafter(model, GenerationOptions()))
    runs = [[form.write(each) for each in drafters] for _ in range(rounds)]
    (plain, *_), (fewer, *_) = runs[0]
    tokens, seconds = len(form.answer), [median(run[i][1] for run in runs) for i in range(2)]
    ratios = [median(found[i] / alone[i] for alone, found in runs) for i in (1, 2)]
    counts = [name, tokens, plain, fewer, f"{fewer / tokens:.2f}"]
    return "| " + " | ".join(map(str, [*counts, *(f"{x:.3g}" for x in seconds + ratios)])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED)
    parser.add_argument("--pictures", type=int, default=500, help="of which the embedded model is asked")
    parser.add_argument("--rounds", type=int, default=9, help="of each form")
    parser.add_argument("--forms", nargs="+", default=["*"], help="patterns of their names")
    a = parser.parse_args()
    if a.folder == EMBEDDED and a.pictures:
        for dtype in ("float32", "float64"):
            print(equal_answers(dtype, a.pictures), flush=True)
    model = npgemma.load(a.folder)
    print(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for name in (each for each in FORMS if any(fnmatchcase(each, pattern) for pattern in a.forms)):
        print(measured(model, name, a.rounds), flush=True)


if __name__ == "__main__":
    main()

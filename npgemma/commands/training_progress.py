"""What a training run shows: a line that moves, a line for each evaluation, and in the end the scores and the curve."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from npgemma.commands.output import WIPE, tell
from npgemma.commands.progress import duration
from npgemma.training.curve import Point, draw_curve
from npgemma.training.evaluate import Scores, score_table

EVALUATED = {"eval": "held-out", "keep": "kept"}  # what the lines of the log and people call sets of examples
# Without a terminal, a line is printed after this share of the steps.
SHARE = 0.05


class StepProgress:
    """Step, loss, rate and time left on a terminal's stderr, in one line; elsewhere a line now and then."""

    def __init__(self, steps: int, seconds: float | None = None) -> None:
        self.steps, self.seconds = steps, seconds
        self.shown = sys.stderr.isatty()
        self.began = self.at = time.monotonic()
        self.made = 0

    def seen(self, line: Mapping[str, Any]) -> None:
        """A new line of the log."""
        now, before = time.monotonic(), self.at
        self.at = now
        for name, called in EVALUATED.items():
            if name in line:
                self.wipe()
                tell(f"after step {line['step']}, {called}: {summary(line[name])}")
        if "loss" not in line:
            return
        self.made += 1
        self.seconds = now - before if self.seconds is None else self.seconds + 0.1 * (now - before - self.seconds)
        step, every = line["step"], max(1, round(SHARE * self.steps))
        left = duration((self.steps - step) * self.seconds)
        text = f"step {step} of {self.steps}, loss {line['loss']:.4g}, rate {line['rate']:.3g}"
        text += f", {self.seconds:.2f} s a step"
        if self.shown:
            print(f"{WIPE}{text}, {left} left", end="", file=sys.stderr, flush=True)
        elif step % every == 0 or self.made == 1:
            tell(f"{text}, {left} left")

    def wipe(self) -> None:
        if self.shown:
            print(WIPE, end="", file=sys.stderr, flush=True)

    def end(self, note: str) -> None:
        took = duration(time.monotonic() - self.began)
        tell(f"{note}; {self.steps} steps, {self.made} of them now in {took}")


def summary(scores: Mapping[str, Any]) -> str:
    """The loss, and the share of exact answers."""
    tasks = scores["tasks"].values()
    answers = sum(each["answers"] for each in tasks)
    exact = sum(each["exact"] * each["answers"] for each in tasks)
    return f"loss {scores['loss']:.4g}, {exact:.0f} of {answers} answers exact"


def results(lines: Sequence[Mapping[str, Any]]) -> str:
    """The scores before and after, by task, as tables; empty if nothing was held out."""
    text = ""
    for name, called in EVALUATED.items():
        found = [line for line in lines if name in line]
        for when, line in (("before", found[0]), ("after", found[-1])) if found else ():
            table = score_table({task: Scores(**each) for task, each in line[name]["tasks"].items()})
            text += f"{called}, {when} training: loss {line[name]['loss']:.4g}\n{table}\n\n"
    return text


def curve_of(lines: Sequence[Mapping[str, Any]], title: str) -> Image.Image:
    """The picture of all losses in a log."""
    steps = [Point(line["step"], line["loss"]) for line in lines if "loss" in line]
    others = {
        called: [Point(line["step"], line[name]["loss"]) for line in lines if name in line]
        for name, called in EVALUATED.items()
    }
    return draw_curve(steps, {called: points for called, points in others.items() if points}, title)

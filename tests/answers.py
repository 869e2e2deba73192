"""Whether two runs gave the same answers, and a guard that notes what runs at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from agreement import UNITS

from npgemma import Generation, VisionLanguageModel
from npgemma.api.guard import PictureGuard

# What runs beside a sequence changes the order of its sums, so its logits may be off by UNITS of the last place. The
# largest logits of the models here are about 40, and a log-probability is the difference of two.
LOGPROBS = 2 * UNITS * 40 * float(np.finfo(np.float32).eps)


def assert_same(found: Sequence[Generation], expected: Sequence[Generation]) -> None:
    """The same texts, ids and reasons; the same log-probabilities but for rounding."""
    assert [(each.text, each.token_ids, each.finish_reason) for each in found] == [
        (each.text, each.token_ids, each.finish_reason) for each in expected
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=LOGPROBS, strict=True)


@dataclass(frozen=True)
class Observer(PictureGuard):
    """A guard that notes how many sequences every allowed run has, and how often a prompt was read."""

    running: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)

    def check_length(self, input_ids, max_new_tokens):
        self.prompts.append(len(input_ids))
        super().check_length(input_ids, max_new_tokens)

    def check_memory(self, lengths, *rest, **options):
        super().check_memory(lengths, *rest, **options)
        self.running.append(len(lengths))


def observed(model: VisionLanguageModel) -> tuple[VisionLanguageModel, Observer]:
    """The same model, and the guard that observes it."""
    guard = Observer(**vars(model.guard))
    return VisionLanguageModel(model.folder, model.config, model.weights, model.dtype, guard), guard

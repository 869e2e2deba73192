"""What a run needs, told before its first step: numbers, memory, and time, which a small part of it is timed for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget
from npgemma.api.training_footprint import REMEDIES, TrainingFootprint, footprint
from npgemma.api.transfer import Transfer
from npgemma.errors import TooLittleMemory
from npgemma.io.system_memory import available_memory
from npgemma.layers.taps import silent
from npgemma.models.gemma import Decoder
from npgemma.models.paligemma import PaliGemma
from npgemma.training.batches import Batch, batch_of
from npgemma.training.examples import Example

# Time of an optimizer for a number, on one core.
UPDATE = 1e-8
# Numbers of a part that are timed as they are; of a larger model, some layers are timed.
TIMED_WHOLE = 2_000_000_000
SHARE = 0.8  # of the available memory, above which activations are computed again


@dataclass(frozen=True)
class Plan:
    """How many numbers and arrays are trained, what that needs, and whether activations are computed again.

    `seconds` are those of a step, `before` those of pictures that go through frozen towers once; None if not timed.
    """

    transfer: Transfer
    numbers: int
    arrays: int
    needed: TrainingFootprint
    recompute: bool
    seconds: float | None = None
    before: float = 0.0

    @property
    def learned(self) -> Sequence[Example]:
        return self.transfer.lines.learned

    @property
    def total(self) -> float | None:
        """The seconds of the whole run, evaluations apart."""
        return None if self.seconds is None else self.before + self.seconds * self.transfer.steps

    def require(self) -> None:
        """TooLittleMemory if the machine, or the limit given, has too little."""
        self.transfer.model.guard.budget.require(self.needed, remedies=REMEDIES)

    def fits(self) -> bool:
        """Whether there is enough memory."""
        try:
            self.require()
        except TooLittleMemory:
            return False
        return True


def planned(transfer: Transfer, checkpointing: str) -> Plan:
    """The plan of a run, without time; `checkpointing` is auto, on or off."""
    budget: Budget = transfer.model.guard.budget
    sizes = transfer.sizes
    kept, again = (footprint(transfer, recompute) for recompute in (False, True))
    limit = budget.allowed if budget.allowed is not None else available_memory(budget.mapped)
    short = limit is not None and kept.total - (budget.held if budget.allowed is None else 0) > SHARE * limit
    recompute = checkpointing == "on" or (checkpointing == "auto" and short)
    return Plan(transfer, sum(sizes), len(sizes), again if recompute else kept, recompute)


def timed(plan: Plan) -> Plan:
    """The plan with time: that of a part of a step on this machine, now."""
    o, transfer = plan.transfer.options, plan.transfer
    pictures, encoder = 0.0, transfer.plain_encoder()
    example = transfer.lines.learned[0]
    if example.images:
        pictures = seconds_of(partial(encoder.pixel_values, [example.images[0]]))
    mean = sum(each.tokens for each in transfer.lengths) / len(transfer.lengths)
    if transfer.layer_numbers * mean * o.batch < TIMED_WHOLE:
        batch = batch_of(transfer.lines.learned[: o.batch], encoder)
        rows = sum(len(each.input_ids) for each in batch.prompts)
        seconds_of(partial(run, transfer, shortened(transfer.tree, 1, 1), batch))  # the first run of all is slower
        step = seconds_of(partial(run, transfer, transfer.tree, batch)) * mean * o.examples / rows
    else:
        batch = batch_of([example], encoder)
        step = layered(transfer, batch) * mean * o.examples / len(batch.prompts[0].input_ids)
    step += UPDATE * plan.numbers
    files = len({image for each in transfer.lines.learned for image in each.images})
    again = 0.0 if transfer.is_fixed else pictures * o.examples
    return replace(plan, seconds=step + again, before=pictures * files if transfer.is_fixed else 0.0)


def layered(transfer: Transfer, batch: Batch) -> float:
    """The seconds of all layers, from runs with one layer and with two."""
    tree, towers = transfer.tree, not transfer.decoder_alone and isinstance(transfer.tree, PaliGemma)
    seconds_of(partial(run, transfer, shortened(tree, 1, 1), batch))
    one = seconds_of(partial(run, transfer, shortened(tree, 1, 1), batch))
    text = seconds_of(partial(run, transfer, shortened(tree, 2, 1), batch)) - one
    total = one + (len(decoder_of(tree).blocks) - 1) * max(0.0, text)
    if towers:
        vision = seconds_of(partial(run, transfer, shortened(tree, 1, 2), batch)) - one
        total += (len(tree.vision.blocks) - 1) * max(0.0, vision)
    return total


def run(transfer: Transfer, tree: Any, batch: Batch) -> None:
    with quiet():
        transfer.batch_gradient(tree, batch, transfer.how, silent)


def shortened(tree: Any, text: int, vision: int) -> Any:
    """The weights with so many layers of each tower."""
    if isinstance(tree, Decoder):
        return replace(tree, blocks=tree.blocks[:text])
    tower = replace(tree.vision, blocks=tree.vision.blocks[:vision])
    return replace(tree, text=replace(tree.text, blocks=tree.text.blocks[:text]), vision=tower)


def decoder_of(tree: Any) -> Decoder:
    found: Decoder = tree if isinstance(tree, Decoder) else tree.text
    return found


def seconds_of(f: Callable[[], object]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


# ----------------------------------------------------------------------------------------------------------------- text

SHOWN = 3  # examples


def summary(plan: Plan) -> str:
    """The plan in a line."""
    steps = f"{plan.transfer.steps:,} steps of {plan.transfer.options.examples} examples"
    time = "" if plan.total is None else f", about {plan.total / 60:.1f} min, evaluation apart"
    return f"{plan.numbers:,} trained numbers, {plan.needed}, {steps}{time}"


def plan_text(plan: Plan) -> str:
    """The plan for people, with some examples as the model reads them."""
    transfer, needed = plan.transfer, plan.needed
    lines = [
        f"trained    {plan.numbers:,} numbers in {plan.arrays} arrays",
        f"memory     {needed}" + (", activations computed twice" if plan.recompute else ""),
        f"steps      {transfer.steps:,} of {transfer.options.examples} examples; there are {len(plan.learned):,}",
    ]
    if plan.seconds is not None and plan.total is not None:
        lines.append(f"time       {plan.seconds:.2f} s a step, {plan.total / 60:.1f} min in all, evaluation apart")
    return "\n".join([*lines, "", *(shown(transfer, each) for each in plan.learned[:SHOWN])])


def shown(transfer: Transfer, example: Example) -> str:
    """What an example is to the model, and which of its tokens it learns."""
    ids, _, start = transfer.encoder.encode(example.prefix, example.suffix, len(example.images))
    tokenizer = transfer.model.tokenizer
    names = {known: name for name, known in tokenizer.ids.items()}

    def spelled(ids: Sequence[int]) -> str:
        return "|".join(names.get(i) or tokenizer.decode([i]) or "?" for i in ids).replace("\n", "\\n")

    images = sum(int(i == getattr(transfer.model.config, "image_token_index", -1)) for i in ids)
    pictures = f"{images} image tokens, " if images else ""
    read, learned = pictures + spelled(ids[images:start].tolist()), spelled(ids[start:].tolist())
    return f"{example.where}\n  read     {read}\n  learned  {learned}"

"""What a run needs, told before its first step: numbers, memory, and time, which a small part of it is timed for."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

from npgemma.api.finite import quiet
from npgemma.api.guard import Budget
from npgemma.api.training_footprint import REMEDIES, TrainingFootprint, footprint
from npgemma.api.transfer import Transfer
from npgemma.errors import TooLittleMemory
from npgemma.io.system_memory import available_memory
from npgemma.models.gemma import Decoder
from npgemma.training.batches import Batch, batch_of
from npgemma.training.examples import Example
from npgemma.training.gradients import in_parallel

# Seconds of an optimizer for each number, on one core, and for each array whatever its size.
UPDATE, UPDATE_CALL = 1e-8, 6e-5
# Numbers of a part that are timed as they are; of a larger model, some layers are timed.
TIMED_WHOLE = 2_000_000_000
SHARE = 0.8  # of the available memory, above which a run is planned that needs less
# Whether activations are computed again, in the order of preference.
RECOMPUTED = {"auto": (False, True), "on": (True,), "off": (False,)}


@dataclass(frozen=True)
class Plan:
    """How many numbers and arrays are trained, what that needs, whether activations are computed again, and by how
    many processes.

    `seconds` are those of a step, `before` those of pictures that go through frozen towers once; None if not timed.
    """

    transfer: Transfer
    numbers: int
    arrays: int
    needed: TrainingFootprint
    recompute: bool
    processes: int = 1
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
    """The plan of a run, without time; `checkpointing` is auto, on or off.

    Where memory is short, there are fewer processes, and then activations are computed again.
    """
    budget: Budget = transfer.model.guard.budget
    sizes = transfer.sizes
    limit = budget.allowed if budget.allowed is not None else available_memory(budget.mapped)
    held = budget.held if budget.allowed is None else 0
    for recompute, processes in product(RECOMPUTED[checkpointing], range(transfer.processes, 0, -1)):
        needed = footprint(transfer, recompute, processes)
        if limit is None or needed.total - held <= SHARE * limit:
            break
    return Plan(transfer, sum(sizes), len(sizes), needed, recompute, processes)


TIMES = 5  # how often a part is timed; the median counts


def timed(plan: Plan, whole: int = TIMED_WHOLE) -> Plan:
    """The plan with time: that of a part of a step on this machine, now.

    A part of a batch is timed as it is if it has less than `whole` numbers of layers times rows, and else some layers.
    """
    o, transfer = plan.transfer.options, plan.transfer
    pictures, encoder = 0.0, transfer.plain_encoder()
    examples = transfer.lines.learned[: o.examples]
    if examples[0].images:
        pictures = seconds_of(partial(encoder.pixel_values, [examples[0].images[0]]))
    mean = sum(each.tokens for each in transfer.lengths) / len(transfer.lengths)
    is_small = transfer.layer_numbers * mean * transfer.part < whole
    batch = batch_of(examples[: transfer.part if is_small else 1], encoder)
    seconds(plan, batch, 1, 1)  # the first run of all is slower
    rows = sum(len(each.input_ids) for each in batch.prompts)
    step = (median(seconds(plan, batch) for _ in range(TIMES)) if is_small else layered(plan, batch)) * mean / rows
    step *= o.examples
    step *= math.ceil(transfer.parts / plan.processes) / transfer.parts
    step += UPDATE * plan.numbers + UPDATE_CALL * plan.arrays
    step += seconds_of(lambda: [encoder.encode(each.prefix, each.suffix, len(each.images)) for each in examples])
    files = len({image for each in transfer.lines.learned for image in each.images})
    again = 0.0 if transfer.is_fixed else pictures * o.examples
    return replace(plan, seconds=step + again, before=pictures * files if transfer.is_fixed else 0.0)


def layered(plan: Plan, batch: Batch) -> float:
    """The seconds of all layers, from runs with one layer and with two."""
    transfer, one = plan.transfer, seconds(plan, batch, 1, 1)
    total = one + (len(transfer.model.decoder.blocks) - 1) * max(0.0, seconds(plan, batch, 2, 1) - one)
    if transfer.decoder_alone or isinstance(transfer.tree, Decoder):
        return total
    return total + (len(transfer.tree.vision.blocks) - 1) * max(0.0, seconds(plan, batch, 1, 2) - one)


def seconds(plan: Plan, batch: Batch, text: int | None = None, vision: int | None = None) -> float:
    """Those of the gradients of a batch, in the first so many layers of each tower, or in all.

    Of a small model, they are those of one core.
    """
    transfer = plan.transfer
    how, tree = transfer.how._replace(recompute=plan.recompute), shortened(transfer.tree, text, vision)
    with quiet():
        run = in_parallel if transfer.is_small else map
        return seconds_of(lambda: [*run(partial(transfer.batch_gradient, tree, how=how), [batch])])


def shortened(tree: Any, text: int | None, vision: int | None) -> Any:
    """The weights with the first so many layers of each tower, or with all."""
    if isinstance(tree, Decoder):
        return replace(tree, blocks=tree.blocks[:text])
    tower = replace(tree.vision, blocks=tree.vision.blocks[:vision])
    return replace(tree, text=replace(tree.text, blocks=tree.text.blocks[:text]), vision=tower)


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

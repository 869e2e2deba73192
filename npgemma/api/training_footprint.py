"""The memory of a training run, computed before any of it is allocated."""

from dataclasses import dataclass, replace

from npgemma.api.transfer import Transfer
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.footprint import BASE, Footprint
from npgemma.io.system_memory import size
from npgemma.layers.threads import BLAS
from npgemma.models.gemma import Block, Decoder
from npgemma.models.paligemma import PaliGemma
from npgemma.models.prefix_lm_grad import MOST_LOGITS

# What makes each part of a footprint smaller.
REMEDIES = {
    "weights": "use a smaller model, or weights that stay mapped (not resident)",
    "trained": "train fewer arrays (--lora 8, or --train attention), or use --optimizer sgd or adafactor",
    "activations": "use a smaller --batch with --accumulate, --checkpointing on, or shorter examples",
    "caches": "hold out fewer or shorter examples",
}


@dataclass(frozen=True)
class TrainingFootprint(Footprint):
    """The bytes of weights, of activations, of what is trained (arrays, gradients, moments), and of other processes."""

    trained: int = 0
    processes: int = 0

    @property
    def total(self) -> int:
        return BASE + self.weights + self.activations + self.trained + self.processes

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "trained arrays": self.trained,
            "activations": self.activations,
            "other processes": self.processes,
        }
        return f"{size(self.total)} ({', '.join(f'{size(n)} of {name}' for name, n in parts.items() if n)})"


def without_lines(transfer: Transfer) -> TrainingFootprint:
    """The memory of a run before any example is read, which is the least that it needs."""
    o = transfer.options
    copies = 2 + MOMENTS[o.optimizer] + (o.accumulate > 1)
    trained = copies * sum(transfer.sizes) * transfer.model.dtype.itemsize
    return TrainingFootprint(transfer.model.guard.budget.weights, 0, 0, trained)


def footprint(transfer: Transfer, recompute: bool, processes: int = 1) -> TrainingFootprint:
    """The memory of a run by so many processes. Activations are those of the longest examples: of a batch, or of as
    many parts of one as are computed at a time, one in each process, or if there is one process, one on each core.
    """
    o, model, at_once = transfer.options, transfer.model, 1
    if transfer.is_small:
        at_once = processes if processes > 1 else min(transfer.parts, BLAS.threads)
    together = max(o.batch, at_once * transfer.part)
    rows = sum(sorted(each.tokens for each in transfer.lengths)[-together:])
    learned = sum(sorted(each.learned for each in transfer.lengths)[-o.batch :])
    itemsize = model.dtype.itemsize
    numbers = rows * decoder_numbers(model.decoder, recompute)
    numbers += at_once * min(MOST_LOGITS, learned * model.config.text.vocab_size) * LOGITS
    if isinstance(model, VisionLanguageModel):
        v, most = model.config.vision, max(len(each.images) for each in transfer.lines.learned)
        pictures = 1 if transfer.decoder_alone else most * together
        numbers += pictures * 3 * v.image_size**2 + most * together * v.num_patches * model.config.text.hidden_size
        tower = tower_numbers(model.weights, recompute) if not transfer.decoder_alone else 4 * v.intermediate_size
        numbers += pictures * v.num_patches * tower
    least, trained, more = without_lines(transfer), sum(transfer.sizes) * itemsize, processes - 1
    # others share a copy of all weights, and each has its gradients twice: its own, and those that it gives back
    others = least.weights + trained + more * (PROCESS + 2 * trained) if more else 0
    return replace(least, activations=numbers * itemsize, processes=others)


PROCESS = 40_000_000  # bytes of Python, NumPy and what a process has loaded, measured
LOGITS = 6  # arrays of logits and of their gradients that are held at a time
MOMENTS = {"adamw": 2, "sgd": 1, "adafactor": 0}  # numbers for each number; the last has some for each matrix
SUMS = 8  # arrays of partial sums of a tall matrix's product, and of what four of its blocks add to them


def decoder_numbers(p: Decoder, recompute: bool) -> int:
    """The numbers that are held for each row: what blocks keep, and what one block needs on the way back."""
    d, each = p.embedding.shape[1], [block_numbers(block) for block in p.blocks]
    f = max(block.mlp.gate.shape[0] for block in p.blocks)
    cached = sum(2 * block.attn.k.shape[0] * block.attn.k.shape[1] for block in p.blocks)
    kept = len(each) * d + max(each) if recompute else sum(each)
    return kept + cached + (8 + SUMS) * d + 3 * f


def block_numbers(p: Block) -> int:
    """The numbers that a block keeps for each row."""
    heads, width, d = p.attn.q.shape
    q, k = heads * width, p.attn.k.shape[0] * width
    more = (q + k if p.attn.q_norm is not None else 0) + (2 * d if p.attn_post_norm is not None else 0)
    return int(4 * d + 2 * q + 2 * k + 3 * p.mlp.gate.shape[0] + more)


def tower_numbers(p: PaliGemma, recompute: bool) -> int:
    """The same for a row of a picture, in the vision tower."""
    d, f = p.projector.weight.shape[1], max(block.mlp.fc1.shape[0] for block in p.vision.blocks)
    each = 8 * d + 2 * f
    kept = len(p.vision.blocks) * d + each if recompute else len(p.vision.blocks) * each
    return int(kept + (6 + SUMS) * d + 3 * f)

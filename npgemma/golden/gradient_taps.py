"""The names in a golden file of gradients, and the block whose backward pass computes each of them.

    grad.<tap>                       dL/d(tap), the total over all uses of the tensor, as torch's retain_grad gives it
    grad.weights.<checkpoint name>   dL/dW in the shape of the checkpoint
    grad.rows.<checkpoint name>      W as a matrix: dL/dW s
    grad.columns.<checkpoint name>   s' dL/dW, where s are the first of the stored `signs`, +1 or -1

The backward pass runs from the loss to the pixels. The gradient of what a block returns enters the block, so it is
computed by the block after it:

    loss --> grad.text.norm --> text.norm --> grad.text.layers.3.out --> text.layers.3 --> grad.text.layers.2.out ...
         ... text.layers.0 --> grad.text.embedding --> text.embedding (table, image rows) --> grad.projector --> ...

A loss of pairs begins two such passes, one at the rows of pictures and one at those of texts.
"""

import math
import re
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase
from itertools import chain

from npgemma.golden.encoder_taps import CLIP, SIGLIP, VIT
from npgemma.golden.tap_table import TABLE, Entry

ACTIVATION, WEIGHT, ROWS, COLUMNS = "grad.", "grad.weights.", "grad.rows.", "grad.columns."
SKETCHES = (ROWS, COLUMNS)
SIGNS = "signs"
# Where the backward pass begins.
LOSS = "loss"
# The taps of a forward pass that a loss has a gradient of: all floats between its operations, without those inside
# attention, inside RoPE and inside the loss, which the backward pass computes again.
DIFFERENTIATED = re.compile(
    r"(?!.*(\.\{b\}\.|rope\.))(projector|(image|text)_embeds|((vision|text)\.)?(embedding(\.patches)?|(pre_|post_)?norm"
    r"|class|last|end|projection|head(\..*)?|layers\.\{i\}\..*))"
)
# The gradients that enter a block: those of what it returns.
ENTERS = re.compile(
    r"grad\.(projector|logits|(?:image|text)_embeds|(?:(?:text|vision)\.)?(?:(?:pre_|post_)?norm|embedding|class|last|end"
    r"|projection|head|layers\.\d+(?=\.out$)))(?:\.out)?"
)
# The gradients with which a pass begins in a model that has several passes, or none through a decoder.
BEGINS = re.compile(r"grad\.(logits|(image|text)_embeds)")
# The block of a weight by its path in the model, the first that fits. A head that is tied to nothing is part of the
# loss, as are the scale and the bias of the scores of pairs.
BLOCKS = (
    (r"((?:vision|text)\.)?blocks\[(\d+)\].*", r"\1layers.\2"),
    (r"text\.head(\.[ab]|\.rows)?|log_scale|bias", LOSS),
    (r"vision_head.*", "vision.head"),
    (r"head\..*", "logits"),
    (r"projector.*", "projector"),
    (r"((?:vision|text)\.)?(\w+).*", r"\1\2"),
)
# The axes of weights, by their number: numbers, vectors, matrices whose rows are outputs, class tokens and positions of
# a single picture, the convolution of patches.
WEIGHTS = ("", "I", "O I", "Z O I", "O C Y X")
INPUTS = ("prompts.*", "pixel_values", "input_ids", "labels", SIGNS)
# What is recorded of the first steps of a training.
CURVE = ("curve.loss", "curve.gradient_norm")
# Results of the forward pass that are not gradients, but follow from what a port computes.
FORWARD = (LOSS, "log_probs", "logits_per_image")


def gradient_of(entry: Entry) -> Entry:
    """The entry of the gradient of a tap. The smallest files have no gradients of activations."""
    level = "blocks" if entry.level == "io" else entry.level
    return Entry(f"{ACTIVATION}{entry.pattern}", entry.axes, level, f"gradient of the {entry.meaning}")


def table_of(inputs: Sequence[Entry], taps: Sequence[Entry]) -> tuple[Entry, ...]:
    """The table of a kind of model: what its loss reads, the gradients of `taps`, and those of weights."""
    return (
        *inputs,
        *(gradient_of(entry) for entry in taps if DIFFERENTIATED.fullmatch(entry.pattern)),
        *(Entry(f"{WEIGHT}{{name}}", axes, "io", "gradient of a weight; at io, of vectors alone") for axes in WEIGHTS),
        Entry(f"{ROWS}{{name}}", "I", "io", "gradient of a matrix, times the signs"),
        Entry(f"{COLUMNS}{{name}}", "I", "io", "the signs, times the gradient of a matrix"),
        Entry("gradient_norm", "", "io", "length of the gradient of all weights together"),
        Entry(SIGNS, "I", "io", "+1 or -1 in a random order: the first of them multiply a matrix"),
        Entry(CURVE[0], "T", "io", "the loss of each step of a training, before its update"),
        Entry(CURVE[1], "T", "io", "the length of the gradient of each step, before it is clipped"),
    )


ANSWERED = (
    Entry("prompts.{b}.pictures", "T", "io", "which of the pixel_values stand for the image tokens of the example"),
    Entry("prompts.{b}.labels", "T", "io", "the ids that are learned, -100 where none is"),
    Entry("prompts.{b}.loss_weights", "T", "io", "the weight of each token in the loss"),
    Entry("log_probs", "T", "io", "log p of each learned token, of all examples in turn"),
    Entry(LOSS, "", "io", "minus the sum of loss_weights log p, smoothed if the facts say so"),
)
LABELLED = (
    Entry("labels", "B", "io", "the number of the right label of each picture"),
    Entry("labels", "B V", "io", "whether each label fits, 1 or 0, in a model that finds several"),
    Entry("log_probs", "B", "io", "log p of the right label of each picture, or the sum over its labels"),
    Entry(LOSS, "", "io", "minus the mean of log p over pictures and, if several may fit, labels; may be smoothed"),
    *(gradient_of(entry) for entry in VIT if entry.pattern == "logits"),
)
PAIRED = tuple(entry for entry in SIGLIP if entry.pattern in ("input_ids", "logits_per_image", LOSS))
# The tables of gradients, by kind of model.
GRADIENTS: Mapping[str, tuple[Entry, ...]] = {
    "PaliGemma and Gemma": table_of(ANSWERED, TABLE),
    "SigLIP": table_of(PAIRED, SIGLIP),
    "CLIP": table_of(PAIRED, CLIP),
    "ViT": table_of(LABELLED, VIT),
}


class Trail:
    """The blocks of a backward pass in the order that it enters them; a loss of pairs begins a pass for each tower."""

    def __init__(self) -> None:
        self.passes = [[LOSS]]

    @property
    def blocks(self) -> list[str]:
        """All blocks, from the loss on."""
        return list(chain.from_iterable(self.passes))

    def block_of(self, tap: str) -> str:
        """The block that computes a gradient; called for each in the order of the pass."""
        begins, entered = BEGINS.fullmatch(tap), ENTERS.fullmatch(tap)
        block = LOSS if begins else self.passes[-1][-1]
        if begins:
            self.passes.append([])
        if entered:
            self.passes[-1].append(entered[1])
        return block

    def reach(self, trained: Set[str]) -> tuple[set[str], set[str]]:
        """The blocks that a pass must go through to reach all `trained` blocks, and the last of each pass."""
        through, last = {LOSS}, set()
        for each in self.passes:
            if places := [i for i, block in enumerate(each) if block in trained]:
                through |= {*each[: places[-1] + 1]}
                last.add(each[places[-1]])
        return through, last


def first_block(tap: str) -> str:
    """The block that a pass begins with, of the gradient that begins it; of all others the loss."""
    entered = ENTERS.fullmatch(tap) if BEGINS.fullmatch(tap) else None
    return entered[1] if entered else LOSS


def block_of_weight(path: str) -> str:
    """The block that a weight belongs to, by its path in the model: 'text.blocks[3].attn.q' is in 'text.layers.3'."""
    found = ((re.fullmatch(pattern, path), block) for pattern, block in BLOCKS)
    return next(match.expand(block) for match, block in found if match)


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether the gradient of a weight has sketches: it has more than one axis, those of size 1 apart."""
    return sum(size != 1 for size in shape) > 1


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """The rows and columns of a weight as a matrix: its first axis that is not 1, and the others."""
    rows = next(size for size in shape if size != 1)
    return rows, math.prod(shape) // rows


def is_input(tap: str) -> bool:
    """Whether a port is given a tap, and need not dump it."""
    return any(fnmatchcase(tap, pattern) for pattern in INPUTS)


def matrix_of(name: str) -> str:
    """The checkpoint name in a gradient's name, or ''."""
    return next((name.removeprefix(start) for start in (WEIGHT, *SKETCHES) if name.startswith(start)), "")


def in_backward_order(taps: Sequence[str], blocks: Mapping[str, str]) -> list[str]:
    """The taps in the order of `blocks`, which a backward pass runs through; what is in none comes last."""
    order = {tap: i for i, tap in enumerate(blocks)}
    return sorted(taps, key=lambda tap: order.get(tap, len(order)))

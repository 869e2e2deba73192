"""The names in a golden file of gradients, and the block whose backward pass computes each of them.

    grad.<tap>                       dL/d(tap), the total over all uses of the tensor, as torch's retain_grad gives it
    grad.weights.<checkpoint name>   dL/dW in the shape of the checkpoint
    grad.rows.<checkpoint name>      W as a matrix: dL/dW s
    grad.columns.<checkpoint name>   s' dL/dW, where s are the first of the stored `signs`, +1 or -1

The backward pass runs from the loss to the pixels. The gradient of what a block returns enters the block, so it is
computed by the block after it:

    loss --> grad.text.norm --> text.norm --> grad.text.layers.3.out --> text.layers.3 --> grad.text.layers.2.out ...
         ... text.layers.0 --> grad.text.embedding --> text.embedding (table, image rows) --> grad.projector --> ...
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from npgemma.golden.tap_table import TABLE, Entry

ACTIVATION, WEIGHT, ROWS, COLUMNS = "grad.", "grad.weights.", "grad.rows.", "grad.columns."
SKETCHES = (ROWS, COLUMNS)
SIGNS = "signs"
# Where the backward pass begins.
LOSS = "loss"
# The taps of a forward pass that a loss has a gradient of: all floats between its operations, without those inside
# attention and inside RoPE, which the backward pass computes again.
DIFFERENTIATED = re.compile(
    r"projector|(vision|text)\.(embedding(\.patches)?|norm|layers\.\{i\}\.(?!.*(\}\.|rope\.)).*)"
)
# The gradients that enter a block: those of what it returns.
ENTERS = re.compile(r"grad\.((?:text|vision)\.(?:norm|embedding|layers\.\d+(?=\.out$))|projector)(?:\.out)?")
# The shapes of weights: vectors and matrices, whose rows are outputs, the convolution of patches.
WEIGHTS = ("I", "O I", "O C Y X")
INPUTS = ("prompts.*", "pixel_values", SIGNS)


def gradient_of(entry: Entry) -> Entry:
    """The entry of the gradient of a tap. The smallest files have no gradients of activations."""
    level = "blocks" if entry.level == "io" else entry.level
    return Entry(f"{ACTIVATION}{entry.pattern}", entry.axes, level, f"gradient of the {entry.meaning}")


GRADIENTS: tuple[Entry, ...] = (
    Entry("prompts.{b}.pictures", "T", "io", "which of the pixel_values stand for the image tokens of the example"),
    Entry("prompts.{b}.labels", "T", "io", "the ids that are learned, -100 where none is"),
    Entry("prompts.{b}.loss_weights", "T", "io", "the weight of each token in the loss"),
    Entry("log_probs", "T", "io", "log p of each learned token, of all examples in turn"),
    Entry("loss", "", "io", "minus the sum of loss_weights log p, smoothed if the facts say so"),
    *(gradient_of(entry) for entry in TABLE if DIFFERENTIATED.fullmatch(entry.pattern)),
    *(Entry(f"{WEIGHT}{{name}}", axes, "io", "gradient of a weight; at io, of vectors alone") for axes in WEIGHTS),
    Entry(f"{ROWS}{{name}}", "I", "io", "gradient of a matrix, times the signs"),
    Entry(f"{COLUMNS}{{name}}", "I", "io", "the signs, times the gradient of a matrix"),
    Entry("gradient_norm", "", "io", "length of the gradient of all weights together"),
    Entry(SIGNS, "I", "io", "+1 or -1 in a random order: the first of them multiply a matrix"),
)


class Trail:
    """The block that the backward pass is in, and all that it has entered so far."""

    def __init__(self) -> None:
        self.blocks = [LOSS]

    def block_of(self, tap: str) -> str:
        """The block that computes a gradient; called for each in the order of the pass."""
        block, entered = self.blocks[-1], ENTERS.fullmatch(tap)
        if entered:
            self.blocks.append(entered[1])
        return block


def block_of_weight(path: str) -> str:
    """The block that a weight belongs to, by its path in the model: 'text.blocks[3].attn.q' is in 'text.layers.3'.

    An untied head is part of the loss.
    """
    path = path if path.startswith(("vision.", "text.", "projector")) else f"text.{path}"
    layer = re.match(r"(\w+)\.blocks\[(\d+)\]", path)
    if layer:
        return f"{layer[1]}.layers.{layer[2]}"
    return LOSS if path == "text.head" else ".".join(path.split(".")[: 1 if path.startswith("projector") else 2])


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

"""Which blocks a replay tests at once: those that the reference computes between two tensors of the port.

    projector (the port's) -> text.embedding -> text.layers.0 -> text.layers.1 -> text.layers.1.out (the port's)

If the second tensor does not follow from the first, one of the blocks between them is wrong, and no tensor of the dump
tells which. The mask of a prompt is one of them in every layer that reads it, if the port did not dump it, until a
layer turns out right with it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from npgemma.api.generative import GenerativeModel
from npgemma.api.load import AnyModel
from npgemma.golden.file import Golden
from npgemma.golden.judge import Verdict
from npgemma.golden.names import block_of, entry_of
from npgemma.layers.shapes import Array, Float

# Tensors at the level of blocks that are not the whole result of what comes before them.
BESIDE = re.compile(r".*(_ids|\.keys|\.values|\.mask|\.near|positions|\.resized|probabilities|loss)")
VISION = re.compile(r"vision\..*|pixel_values|image_embeds|pictures\..*")
TEXT = re.compile(r"text\..*|input_ids|text_embeds")
MASK = re.compile(r"prompts\.\d+\.(mask|near)")
# The first tensor of a layer that depends on the mask of a prompt.
MASKED = re.compile(r"text\.layers\.(\d+)\.attn\.segments\.(\d+)\.exp")


class Trail:
    """The blocks since the last tensor of the port that all later ones depend on, in each tower of a pair."""

    def __init__(self, golden: Golden, model: AnyModel) -> None:
        self.two_towers = "input_ids" in golden.taps
        self.towers = ("vision", "text") if self.two_towers else ("all",)
        self.after = dict.fromkeys(self.towers, "")
        self.blocks: dict[str, list[str]] = {tower: [] for tower in self.towers}
        layers = model.decoder.blocks if isinstance(model, GenerativeModel) else ()
        self.kinds = ["mask" if layer.attn.window is None else "near" for layer in layers]
        self.dumped_masks: set[str] = set()
        self.mask = ""  # that the tensors since the port's last one depend on, if the port did not dump it

    def pass_through(self, tap: str, replaced: bool) -> tuple[str, tuple[str, ...]]:
        """The tensor that the blocks up to a tap begin with, and these; `replaced` if the port has the tap."""
        towers, block = self.towers_of(tap), block_of(tap)
        for tower in towers:
            if block not in self.blocks[tower]:
                self.blocks[tower].append(block)
        after = " and ".join(filter(None, (self.after[tower] for tower in towers)))
        blocks = tuple(dict.fromkeys(name for tower in towers for name in self.blocks[tower]))
        if layer := MASKED.fullmatch(tap):
            mask = f"prompts.{layer[2]}.{self.kinds[int(layer[1])]}"
            self.mask = "" if mask in self.dumped_masks else mask
        blocks = (self.mask, *blocks) if self.mask else blocks
        if MASK.fullmatch(tap):
            self.dumped_masks |= {tap} if replaced else set()
            self.blocks["all"].remove(tap)
        elif replaced and not layer:  # the sum that exponentials are divided by is the reference's own
            self.mask = ""
        if replaced and entry_of(tap).level != "ops":
            for tower in towers:
                if not BESIDE.fullmatch(tap):
                    self.after[tower], self.blocks[tower] = tap, []
                elif tap in self.blocks[tower]:  # positions: what follows uses the port's own
                    self.blocks[tower].remove(tap)
        return after, blocks

    def towers_of(self, tap: str) -> tuple[str, ...]:
        """The tower that computes a tap, or both for what depends on both."""
        if not self.two_towers:
            return self.towers
        return ("vision",) if VISION.fullmatch(tap) else ("text",) if TEXT.fullmatch(tap) else self.towers


def without_right_masks(verdicts: Iterable[Verdict], honest: Mapping[str, Float[Array, "2 R"]]) -> list[Verdict]:
    """The verdicts, without the masks that some layer is right with: one of all rows, since each has its own mask."""
    found = list(verdicts)
    right = {
        block
        for verdict in found
        if verdict.explained and verdict.name in honest and honest[verdict.name].shape[1] > 1
        for block in verdict.blocks
        if MASK.fullmatch(block)
    }
    return [replace(v, blocks=tuple(block for block in v.blocks if block not in right)) for v in found]

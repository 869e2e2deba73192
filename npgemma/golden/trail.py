"""Which blocks a replay tests at once: those that the reference computes between two tensors of the port.

    projector (the port's) -> text.embedding -> text.layers.0 -> text.layers.1 -> text.layers.1.out (the port's)

If the second tensor does not follow from the first, one of the blocks between them is wrong, and no tensor of the dump
tells which.
"""

import re

from npgemma.golden.file import Golden
from npgemma.golden.names import block_of, entry_of

# Tensors at the level of blocks that are not the whole result of what comes before them.
BESIDE = re.compile(r".*(_ids|\.keys|\.values|\.mask|\.near|positions|\.resized|probabilities|loss)")
VISION = re.compile(r"vision\..*|pixel_values|image_embeds|pictures\..*")
TEXT = re.compile(r"text\..*|input_ids|text_embeds")


class Trail:
    """The blocks since the last tensor of the port that all later ones depend on, in each tower of a pair."""

    def __init__(self, golden: Golden) -> None:
        self.two_towers = "input_ids" in golden.taps
        self.towers = ("vision", "text") if self.two_towers else ("all",)
        self.after = dict.fromkeys(self.towers, "")
        self.blocks: dict[str, list[str]] = {tower: [] for tower in self.towers}

    def pass_through(self, tap: str, replaced: bool) -> tuple[str, tuple[str, ...]]:
        """The tensor that the blocks up to a tap begin with, and these; `replaced` if the port has the tap."""
        towers, block = self.towers_of(tap), block_of(tap)
        for tower in towers:
            if block not in self.blocks[tower]:
                self.blocks[tower].append(block)
        after = " and ".join(filter(None, (self.after[tower] for tower in towers)))
        blocks = tuple(dict.fromkeys(name for tower in towers for name in self.blocks[tower]))
        if replaced and entry_of(tap).level != "ops":
            for tower in towers:
                if not BESIDE.fullmatch(tap):
                    self.after[tower], self.blocks[tower] = tap, []
                elif block == tap:  # positions or a mask: what follows uses the port's own
                    self.blocks[tower].remove(block)
        return after, blocks

    def towers_of(self, tap: str) -> tuple[str, ...]:
        """The tower that computes a tap, or both for what depends on both."""
        if not self.two_towers:
            return self.towers
        return ("vision",) if VISION.fullmatch(tap) else ("text",) if TEXT.fullmatch(tap) else self.towers

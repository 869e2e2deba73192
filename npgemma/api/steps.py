"""Steps of AdamW on one batch, as `npgemma train` makes them, without data, states or a log."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

from npgemma.api.load import AnyModel
from npgemma.api.trainable import Tensor
from npgemma.layers.shapes import Array
from npgemma.layers.tree import Leaf, leaves
from npgemma.training.optimizers import AdamW, clip, is_decayed, length

# The rate for a width of 2048; it is inversely proportional to the width. Decay applies to matrices.
RATE, WIDTH = 3e-5, 2048
DECAY, CLIP = 0.1, 1.0
ADAMW = AdamW()
# The loss, and the gradient of each array by its path.
Gradient: TypeAlias = Callable[[], tuple[float, dict[str, Array]]]


class Step(NamedTuple):
    """The loss before an update, and the length of its gradient before it is clipped."""

    loss: float
    length: float


@dataclass(frozen=True)
class Steps:
    """How many steps, and their constants: the rate is the same in all; `decayed` are the paths of what decays."""

    count: int
    rate: float
    decayed: frozenset[str]
    optimizer: AdamW = ADAMW
    decay: float = DECAY
    clip: float = CLIP

    def run(
        self, arrays: Mapping[str, Array], gradient: Callable[[], tuple[float, dict[str, Array]]]
    ) -> Iterator[Step]:
        """Each step; it changes the arrays in place, from which `gradient` computes the loss and its gradient."""
        moments = {path: self.optimizer.start(w) for path, w in arrays.items()}
        for step in range(1, self.count + 1):
            loss, found = gradient()
            size = length(found)
            yield Step(loss, size)
            clip(found, self.clip, size)
            for path, w in arrays.items():
                decay = self.decay if path in self.decayed else 0.0
                self.optimizer.update(w, found[path], moments[path], step, self.rate, decay)

    def facts(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constants as a golden file states them, with the names of the tensors that decay."""
        names = [name for name, tensor in tensors.items() if set(tensor.paths) <= self.decayed]
        constants = {"steps": self.count, "rate": self.rate, "decay": self.decay, "clip": self.clip}
        return {"optimizer": "AdamW"} | constants | asdict(self.optimizer) | {"decayed": names}


def steps_of(model: AnyModel, count: int, paths: Sequence[str]) -> Steps:
    """So many steps of the arrays at `paths`, at a rate that fits the width of a model."""
    config: Any = model.config
    width = (config.text if hasattr(config, "text") else config.vision).hidden_size

    def decays(leaf: Leaf) -> bool:
        return leaf.path in paths and is_decayed(leaf)

    return Steps(count, RATE * WIDTH / width, frozenset(leaf.path for leaf in leaves(model.weights) if decays(leaf)))

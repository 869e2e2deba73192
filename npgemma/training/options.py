"""What a person may choose about a run; every default stands here and nowhere else."""

from dataclasses import dataclass

from npgemma.training.augment import Augmentation
from npgemma.training.batches import Mean
from npgemma.training.optimizers import OPTIMIZERS
from npgemma.training.parts import LORA
from npgemma.training.schedules import CURVES

# The rate unless one is given: that of adapters, and that of whole matrices. For Adam it is for a decoder of WIDTH, and
# inversely proportional to the width (Yang et al. 2022, arXiv:2203.03466, table 3); PaliGemma's paper has 1e-5.
ADAM, SGD = (2e-4, 1e-5), (0.1, 0.03)
WIDTH = 2048
NO_CHANGE = Augmentation()


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained. Two runs with the same options, model and data give the same bits.

    `lora` is the rank of adapters, None to train the chosen arrays themselves; `train` are presets or patterns, see
    `parts`. `words` are those whose tokens have rows in the table that are trained beside adapters. A step learns from
    `batch` examples at a time, `accumulate` times. `warmup` is a share of the steps, `clip` the length that gradients
    are cut to, 0 for any. `evaluate_every` counts steps, None is before and after alone.
    """

    lora: int | None = None
    alpha: float | None = None
    train: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    epochs: float = 3.0
    batch: int = 8
    accumulate: int = 1
    rate: float | None = None
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.05
    decay: float = 0.0
    smoothing: float = 0.0
    loss_mean: Mean = "token"
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int | None = None
    augment: Augmentation = NO_CHANGE

    def __post_init__(self) -> None:
        """ValueError, with its name, for an option that is out of its range."""
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", CURVES), ("loss_mean", ("token", "example"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("lora", "batch", "accumulate", "evaluate_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("alpha", "epochs", "rate"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, not {getattr(self, name):g}")
        for name in ("warmup", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name):g}")

    @property
    def examples(self) -> int:
        """The examples of a step."""
        return self.batch * self.accumulate

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is trained: all matrices of the decoder's layers if adapters are, unless something is named."""
        return self.train or ((LORA,) if self.lora else ("all",))

    @property
    def scale(self) -> float:
        """Alpha of adapters; PEFT's default is its default rank, 8."""
        return 8.0 if self.alpha is None else self.alpha

    def peak_rate(self, width: int, adapts: bool) -> float:
        """The rate, or the one that a decoder of this width usually learns with, or an adapter of it."""
        if self.rate is not None:
            return self.rate
        for_adapters, for_matrices = SGD if self.optimizer == "sgd" else (rate * WIDTH / width for rate in ADAM)
        return for_adapters if adapts else for_matrices

"""How much memory a run will need, from the config alone, before any of it is asked for."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from npgemma.errors import TooLittleMemory
from npgemma.io.config import Config

# Python, NumPy and Pillow, the tokenizer, and what blocks of weights and of scores are worked on in.
BASE = 150_000_000


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of the weights (as the file has them where they are mapped), of all caches, and of all activations."""

    weights: int
    caches: int
    activations: int

    @property
    def total(self) -> int:
        return BASE + self.weights + self.caches + self.activations

    def __str__(self) -> str:
        parts = ((self.weights, "weights"), (self.caches, "caches"), (self.activations, "activations"))
        return f"{size(self.total)} ({', '.join(f'{size(number)} of {name}' for number, name in parts)})"


def plan_memory(
    c: Config,
    weights: int,
    itemsize: int,
    pictures: int,
    prompts: Sequence[int],
    new_tokens: int = 1,
    samples: int = 1,
    logit_rows: int = 0,
) -> MemoryPlan:
    """The memory to answer prompts of so many tokens about so many pictures, all at once, in numbers of `itemsize`.

    Activations are what is alive where there is most of it: in an MLP, of the vision tower for the pictures or of the
    decoder for the prompts; and the logits: of a step and of the one before it (`logit_rows` if that is more than one
    row a sample), and of one row in float64.
    """
    v, t = c.vision, c.text
    patches, rows, sequences = pictures * v.num_patches, sum(prompts), samples * len(prompts)
    pixels = pictures * 3 * v.image_size**2
    vision = pixels + patches * (3 * v.hidden_size + 2 * v.intermediate_size + t.hidden_size)
    text = rows * (4 * t.hidden_size + 3 * t.intermediate_size)
    logits = 2 * max(sequences, logit_rows) * t.vocab_size * itemsize + 4 * 8 * t.vocab_size
    per_token = 2 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim
    caches = (samples * rows + sequences * new_tokens) * per_token
    return MemoryPlan(weights, caches * itemsize, max(vision, text) * itemsize + logits)


def available_memory(mapped: int = 0) -> int | None:
    """Bytes that this process may still take: of the machine, of its container, of its own limit; None if unknown.

    What the machine holds of files for speed alone counts as available, and so do the `mapped` bytes of weights.
    """
    known = [each for each in (of_machine(), of_container(), of_process(mapped)) if each is not None]
    return min(known) if known else None


def of_machine() -> int | None:
    """What Linux says is available; on macOS all there is; on Windows unknown."""
    if sys.platform == "darwin":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return field("/proc/meminfo", "MemAvailable:", 1024)


def of_container() -> int | None:
    """The limit of this process's control group, of either version, less what the group holds beside files."""
    try:
        own = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, IndexError):
        own = []
    left = []
    for group in ("", *own):
        for place, limit, anonymous in (
            (f"/sys/fs/cgroup{group}", "memory.max", "anon"),
            (f"/sys/fs/cgroup/memory{group}", "memory.limit_in_bytes", "total_rss"),
        ):
            with suppress(OSError, ValueError):  # no such group, or its limit is 'max'
                most = int(Path(f"{place}/{limit}").read_text())
                held = field(f"{place}/memory.stat", anonymous, 1)
                left += [most - held] if held is not None else []
    return min(left, default=None)


def of_process(mapped: int = 0) -> int | None:
    """The limit that `ulimit -v` sets, less the address space in use beside what is mapped."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = field("/proc/self/status", "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used + mapped


def field(path: str, name: str, unit: int) -> int | None:
    """The number behind `name` in a file of the kernel's, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name]), None)


@dataclass(frozen=True)
class Budget:
    """What a model's weights take in all; how much of that is in memory of its own already, and how much is mapped.

    `allowed` is how much memory may be taken; None is what the machine has available.
    """

    weights: int = 0
    held: int = 0
    allowed: int | None = None
    mapped: int = 0

    def require(self, plan: MemoryPlan) -> None:
        """TooLittleMemory if the plan, these weights in it, is more than is allowed, or than there is."""
        if self.allowed is not None:
            if plan.total > self.allowed:
                raise TooLittleMemory(f"this needs {plan}, more than the {size(self.allowed)} allowed; {ADVICE}")
            return
        available = available_memory(self.mapped)
        if available is not None and plan.total - self.held > available:
            found = f"{size(available)} are available"
            raise TooLittleMemory(
                f"this needs {plan}, and {found}; {ADVICE}; a max_memory of your own goes before that"
            )


UNLIMITED = Budget()
ADVICE = "smaller pictures, fewer of them at once, or weights that stay mapped (not resident) take less"


def size(number: int) -> str:
    """'5.93 GB'."""
    return f"{number / 1e9:.2f} GB"


def parse_size(text: str) -> int:
    """The bytes of '8GB', '512 MB' or '8e9'. ValueError for anything else."""
    units = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "B": 1}
    number = text.strip().upper()
    unit = next((unit for unit in units if number.endswith(unit)), "")
    try:
        found = int(float(number.removesuffix(unit)) * units.get(unit, 1))
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise ValueError(f"{text!r} is no amount of memory; say 8GB or 512MB")
    return found

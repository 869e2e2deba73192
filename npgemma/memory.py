"""How much memory a run will need, from the config alone, before any of it is asked for."""

from collections.abc import Sequence
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
    c: Config, weights: int, itemsize: int, pictures: int, prompts: Sequence[int], new_tokens: int = 1, samples: int = 1
) -> MemoryPlan:
    """The memory to answer prompts of so many tokens about so many pictures, all at once, in numbers of `itemsize`.

    Activations are what is alive where there is most of it: in an MLP, of the vision tower for the pictures or of the
    decoder for the prompts.
    """
    v, t = c.vision, c.text
    patches, rows = pictures * v.num_patches, sum(prompts)
    pixels = pictures * 3 * v.image_size**2
    vision = pixels + patches * (3 * v.hidden_size + 2 * v.intermediate_size + t.hidden_size)
    text = rows * (4 * t.hidden_size + 3 * t.intermediate_size) + samples * len(prompts) * 3 * t.vocab_size
    per_token = 2 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim
    caches = samples * (rows + len(prompts) * new_tokens) * per_token
    return MemoryPlan(weights, caches * itemsize, max(vision, text) * itemsize)


def available_memory() -> int | None:
    """Bytes that this process may still take: of the machine, of its container, of its own limit; None if unknown.

    What the machine holds of files for speed alone (mapped weights among them) counts as available.
    """
    known = [each for each in (of_machine(), of_container(), of_process()) if each is not None]
    return min(known) if known else None


def of_machine() -> int | None:
    return field("/proc/meminfo", "MemAvailable:", 1024)


def of_container() -> int | None:
    """The limit of a control group (version 2) less what its processes hold beside files."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text()
    except OSError:
        return None
    held = field("/sys/fs/cgroup/memory.stat", "anon", 1)
    return int(limit) - held if limit.strip().isdecimal() and held is not None else None


def of_process() -> int | None:
    """The limit that `ulimit -v` sets, less the address space in use."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = field("/proc/self/status", "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def field(path: str, name: str, unit: int) -> int | None:
    """The number behind `name` in a file of the kernel's, in bytes."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name]), None)


@dataclass(frozen=True)
class Budget:
    """What a model's weights take, how much of that is in memory already, and what may be taken in all.

    None for the latter is what the machine has available.
    """

    weights: int = 0
    held: int = 0
    allowed: int | None = None

    def require(
        self, c: Config, itemsize: int, pictures: int, prompts: Sequence[int], new_tokens: int = 1, samples: int = 1
    ) -> None:
        """TooLittleMemory if what `plan_memory` says is more than is allowed; where nothing is said, than there is."""
        plan = plan_memory(c, self.weights, itemsize, pictures, prompts, new_tokens, samples)
        if self.allowed is not None:
            if plan.total > self.allowed:
                raise TooLittleMemory(f"this needs {plan}, more than the {size(self.allowed)} allowed; {ADVICE}")
            return
        available = available_memory()
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
    found = float(number.removesuffix(unit)) * units.get(unit, 1)
    if not 0 < found < float("inf"):
        raise ValueError(f"{text!r} is no amount of memory; say 8GB or 512MB")
    return int(found)

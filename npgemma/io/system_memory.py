"""How much memory this process may still take, and sizes as people write them."""

import os
import sys
from contextlib import suppress
from pathlib import Path


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

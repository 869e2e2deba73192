"""How much memory this process may still use, and sizes as people write them."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from npgemma.io.regular_files import read_regular

MOST_BYTES = 1 << 20  # of a file of the kernel
ROOT = Path("/")  # below it are the files in which the kernel reports memory


def available_memory(mapped: int = 0, root: Path = ROOT) -> int | None:
    """Bytes that this process may still use: the minimum over the machine, its container and the process's own limit.

    None if none of them is known. Page cache counts as available, and so do the `mapped` bytes of weights.
    """
    limits = (machine_memory(root), container_memory(root), address_space(mapped, root))
    return min((each for each in limits if each is not None), default=None)


def machine_memory(root: Path = ROOT) -> int | None:
    """The available memory of a Linux machine, the total memory of a Mac, None elsewhere."""
    if sys.platform == "darwin":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return kernel_value(root / "proc/meminfo", "MemAvailable:", 1024)


def container_memory(root: Path = ROOT) -> int | None:
    """The limit of this process's control group (version 1 or 2) minus the group's memory other than page cache."""
    try:
        own = [
            line.split(":", 2)[2] for line in read_regular(root / "proc/self/cgroup", MOST_BYTES).decode().splitlines()
        ]
    except (OSError, IndexError):
        own = []
    left = []
    for group in dict.fromkeys(each.lstrip("/") for each in ("", *own)):  # most lines of version 1 name the same group
        for version, limit, anonymous in (("", "memory.max", "anon"), ("memory", "memory.limit_in_bytes", "total_rss")):
            folder = root / "sys/fs/cgroup" / version / group
            with suppress(OSError, ValueError):  # the group does not exist, or its limit is 'max'
                most = int(read_regular(folder / limit, MOST_BYTES))
                used = kernel_value(folder / "memory.stat", anonymous, 1)
                left += [most - used] if used is not None else []
    return min(left, default=None)


def address_space(mapped: int = 0, root: Path = ROOT) -> int | None:
    """The limit set by `ulimit -v` minus the address space in use, without the `mapped` bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = kernel_value(root / "proc/self/status", "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used + mapped


def kernel_value(path: Path, name: str, unit: int) -> int | None:
    """The number that follows `name` in a file of the kernel, in bytes, or None."""
    try:
        lines = read_regular(path, MOST_BYTES).decode().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.split()[:1] == [name]), None)


def size(number: int) -> str:
    """A number of bytes for people: '5.93 GB'."""
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
        raise ValueError(f"{text!r} is not an amount of memory; write for example 8GB or 512MB")
    return found

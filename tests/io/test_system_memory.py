"""Sizes as people write them, and the memory that a machine, a container and a process report."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from npgemma.io.system_memory import (
    address_space,
    available_memory,
    container_memory,
    kernel_value,
    machine_memory,
    parse_size,
    size,
)

MB, GB = 10**6, 10**9
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these files and limits")

# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GB),
        ("8gb", 8 * GB),
        (" 8 GB ", 8 * GB),
        ("512MB", 512 * MB),
        ("1.5 GB", 1500 * MB),
        ("2TB", 2000 * GB),
        ("3KB", 3000),
        ("7B", 7),
        ("8e9", 8 * GB),
        ("1234", 1234),
        ("0.5KB", 500),
    ],
)
def test_a_size_is_a_number_and_a_unit(text, expected):
    assert parse_size(text) == expected


NOT_SIZES = [
    "",
    " ",
    "GB",
    "B",
    "much",
    "8GiB",
    "8 G B",
    "GB8",
    "0",
    "0GB",
    "-1",
    "-1GB",
    "nan",
    "nanGB",
    "inf",
    "infMB",
]
NOT_SIZES += ["1e999", "1e999GB", "8,5GB", "0x10", "٨x"]


@pytest.mark.parametrize("text", NOT_SIZES)
def test_an_invalid_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is not an amount of memory; write for example 8GB or 512MB$"):
        parse_size(text)


def test_sizes_are_shown_in_gigabytes():
    found = [size(number) for number in (0, 5 * MB, 1234567890, 12 * GB)]
    assert found == ["0.00 GB", "0.01 GB", "1.23 GB", "12.00 GB"]


# ------------------------------------------------------------------------------------------------- memory of processes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\nBuffers:   1 kB\n"
STAT = "anon 3000000000\nfile 4000000000\nkernel 5\nanon_thp 7\n"
STATUS = "Name:\tpython\nVmPeak:\t  900000 kB\nVmSize:\t  500000 kB\nVmRSS:\t  100000 kB\n"
GROUP = "sys/fs/cgroup"


@pytest.fixture
def kernel(tmp_path) -> Callable[..., Path]:
    """kernel({path: content}) adds files of a kernel to a root folder, and returns the folder."""

    def write(files: dict[str, str]) -> Path:
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return tmp_path

    return write


def test_kernel_value_is_the_number_after_the_complete_name(kernel):
    path = kernel({"meminfo": MEMINFO}) / "meminfo"
    assert kernel_value(path, "MemAvailable:", 1024) == 9_000_000 * 1024
    assert kernel_value(path, "MemTotal:", 1) == 16_000_000
    assert kernel_value(path, "Mem", 1) is None
    assert kernel_value(path.with_name("nothing"), "MemTotal:", 1) is None


@LINUX
def test_machine_memory_is_the_available_and_not_the_free_memory(kernel):
    assert machine_memory(kernel({"proc/meminfo": MEMINFO})) == 9_000_000 * 1024
    assert machine_memory(kernel({"proc/meminfo": MEMINFO.replace("MemAvailable", "MemOther")})) is None


def test_container_memory_is_the_limit_minus_anonymous_memory(kernel):
    """Page cache does not count, because it is freed when memory is needed."""
    assert container_memory(kernel({f"{GROUP}/memory.max": "8000000000\n", f"{GROUP}/memory.stat": STAT})) == 5 * GB


def test_container_memory_includes_control_groups_of_both_versions(kernel):
    """Slurm, systemd and older Docker create such groups. The result is the smallest amount."""
    own = "4:memory:/jobs/7\n0::/user/app\n"
    second = {f"{GROUP}/user/app/memory.max": "6000000000\n", f"{GROUP}/user/app/memory.stat": STAT}
    assert container_memory(kernel({"proc/self/cgroup": own} | second)) == 3 * GB
    first = f"{GROUP}/memory/jobs/7"
    stat = "rss 1\ntotal_rss 500000000\n"
    root = kernel({f"{first}/memory.limit_in_bytes": "2500000000\n", f"{first}/memory.stat": stat})
    assert container_memory(root) == 2 * GB


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n", "memory.stat": STAT},
        {"memory.max": "8000000000\n"},
        {"memory.max": "8000000000\n", "memory.stat": "file 5\n"},
        {"memory.stat": STAT},
        {"memory.max": "", "memory.stat": STAT},
    ],
    ids=["no control group", "no limit", "no statistics", "no anonymous memory", "no limit file", "an empty limit"],
)
def test_container_memory_without_a_limit_is_unknown(files, kernel):
    assert container_memory(kernel({f"{GROUP}/{name}": content for name, content in files.items()})) is None


@LINUX
def test_address_space_is_the_limit_minus_the_space_in_use(kernel, monkeypatch):
    """Mapped weights are part of the space in use, and do not count."""
    import resource

    root = kernel({"proc/self/status": STATUS})
    left = 2 * GB - 500_000 * 1024
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (2 * GB, 2 * GB)}.__getitem__)
    assert [address_space(mapped, root) for mapped in (0, MB)] == [left, left + MB]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: unlimited}.__getitem__)
    assert address_space(0, root) is None


def test_address_space_without_the_resource_module_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails, as on Windows
    assert address_space() is None


@LINUX
def test_available_memory_is_the_smallest_known_amount(kernel, monkeypatch):
    import resource

    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    limits = {resource.RLIMIT_AS: unlimited}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    assert available_memory(root=kernel({})) is None
    assert (
        available_memory(root=kernel({f"{GROUP}/memory.max": "8000000000\n", f"{GROUP}/memory.stat": STAT})) == 5 * GB
    )
    assert available_memory(root=kernel({"proc/meminfo": MEMINFO})) == 5 * GB
    kernel({f"{GROUP}/memory.max": "20000000000\n"})
    root = kernel({"proc/self/status": STATUS})
    assert available_memory(root=root) == 9_000_000 * 1024
    limits[resource.RLIMIT_AS] = (GB, GB)
    assert available_memory(MB, root) == GB - 500_000 * 1024 + MB
    kernel({f"{GROUP}/memory.max": "3000000000\n"})
    assert available_memory(root=root) == 0
    kernel({f"{GROUP}/memory.max": "2000000000\n"})
    assert available_memory(root=root) == -GB


@LINUX
def test_this_machine_has_available_memory():
    assert 0 < available_memory() <= kernel_value(Path("/proc/meminfo"), "MemTotal:", 1024)

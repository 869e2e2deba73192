"""Commands of tools/fuzz.py that write, and are disturbed: killed, interrupted, on a full disk, in little memory.

Each runs in a child of the worker, which has imported everything: it takes tenths of a second. A command that is
disturbed leaves each output as it was or whole, never changes an input, and works when it is run again.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_changes import Files
from fuzz_commands import contents, inputs, standard_streams

import npgemma
from npgemma.commands import cli
from npgemma.golden import read_golden
from npgemma.io.picture import read_picture

WRITERS = {
    "golden P.png caption -o new.safetensors --level io --steps 0": "new.safetensors",
    "batch jobs.jsonl -o new.jsonl --max-new-tokens 3": "new.jsonl",
    "embed P.png P.jpg -o new.npz": "new.npz",
    "detect P.png square --draw new.png": "new.png",
    "segment P.png square --masks new.npz": "new.npz",
    "compare embedded dump.safetensors --suggest-map new.json": "new.json",
}
PAGE = resource.getpagesize()
BAR_OF_ERROR = 4000  # the last bytes of stderr, fewer than a pipe holds


def case(**values: Any) -> Files:
    """A case, and what commands read."""
    return inputs() | {"case.json": json.dumps(values).encode()}


def said(folder: Path) -> dict[str, Any]:
    """What a case says."""
    found: dict[str, Any] = json.loads((folder / "case.json").read_text())
    return found


def child(work: Callable[[], int], disturb: Callable[[int], None] = lambda pid: None) -> tuple[int, str]:
    """Run `work` in a process of its own; returns its status, or minus its signal, and what it wrote to stderr."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 70  # whatever is raised: a traceback, for the parent
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with standard_streams() as (_, err):
                status = work()
            os.write(writer, err.getvalue()[-BAR_OF_ERROR:])
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            os.write(writer, text.encode("utf-8", "replace")[-BAR_OF_ERROR:])
        finally:
            os._exit(status)
    os.close(writer)
    disturb(pid)
    with os.fdopen(reader, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def command(folder: Path, words: str) -> Callable[[], int]:
    """What runs a command in a folder."""

    def work() -> int:
        os.chdir(folder)
        return cli.main(words.split())

    return work


def check(folder: Path, words: str, before: dict[str, bytes], status: int, text: str, statuses: Sequence[int]) -> None:
    """What holds after every fault; the command is run again, and finishes."""
    assert status in statuses, f"{words} ends with {status}: {text}"
    assert "Traceback" not in text, f"{words} says {text}"
    output, after = WRITERS[words], contents(folder)
    names = {*before, *after} - {
        output,
        f"{output}.partial",
        *hidden(after),
    }  # embed goes on there
    changed = [name for name in names if before.get(name) != after.get(name)]
    assert not changed, f"{words} ends with {status} and changes {changed}"
    if status and output in before and output != "new.jsonl":
        assert after[output] == before[output], "an output is lost"
    again = child(command(folder, words))
    assert again[0] == 0, f"{words}, again, ends with {again}"
    left = [name for name in contents(folder) if ".npgemma-" in name or name.endswith(".partial")]
    assert not left, f"{words} leaves {left}"
    whole(folder / output)


def hidden(files: dict[str, bytes]) -> dict[str, bytes]:
    """Those that lie in temporary folders."""
    return {name: content for name, content in files.items() if ".npgemma-" in name}


def whole(path: Path) -> None:
    """A file that a command wrote can be read."""
    match path.suffix:
        case ".safetensors":
            read_golden(path)
        case ".jsonl":
            results = [json.loads(line) for line in path.read_text().splitlines()]
            assert sorted(result["id"] for result in results) == [0, 1, 2], f"{results} are the results"
        case ".npz":
            with np.load(path) as file:
                assert [x.shape for x in file.values()]
        case ".png":
            read_picture(path)
        case _:
            json.loads(path.read_text())


@cache
def seconds_of(words: str) -> float:
    """How long a command takes undisturbed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in inputs().items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        start = time.monotonic()
        child(command(Path(folder), words))
        return time.monotonic() - start


def make_killed(rng: random.Random) -> Files:
    return case(words=rng.choice(list(WRITERS)), after=rng.random(), old=rng.random() < 0.5)


def killed(folder: Path) -> str:
    """kill -9 at a random moment."""
    it = said(folder)
    if it["old"]:
        child(command(folder, it["words"]))
    before = contents(folder)

    def disturb(pid: int) -> None:
        time.sleep(it["after"] * seconds_of(it["words"]))
        os.kill(pid, signal.SIGKILL)

    status, text = child(command(folder, it["words"]), disturb)
    check(folder, it["words"], before, status, text, (0, -signal.SIGKILL))
    return "refused" if status else ""


def make_interrupted(rng: random.Random) -> Files:
    return case(words=rng.choice(list(WRITERS)), after=rng.random(), signal=rng.choice(("SIGINT", "SIGINT", "SIGTERM")))


def interrupted(folder: Path) -> str:
    """Ctrl-C or SIGTERM at a random moment after the entry point of `python -m npgemma` has begun."""
    it = said(folder)
    words, number, before = it["words"], getattr(signal, it["signal"]), contents(folder)
    environment = os.environ | {"PYTHONPATH": str(Path(npgemma.__file__).parent.parent)}
    arguments = [sys.executable, "-m", "npgemma", *words.split()]
    with subprocess.Popen(arguments, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True) as process:
        while process.poll() is None and not holds_interrupts(process.pid):
            time.sleep(0.001)
        time.sleep(it["after"])
        process.send_signal(number)
        _, text = process.communicate()
    assert number != signal.SIGINT or process.returncode != 130 or text.endswith("npgemma: interrupted\n"), text
    ends = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}
    check(folder, words, before, process.returncode, text, (0, ends[number]))
    return "refused" if process.returncode else ""


def holds_interrupts(pid: int) -> bool:
    """Whether a process has blocked SIGINT, as the entry point does during the imports."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << signal.SIGINT - 1)


def make_full(rng: random.Random) -> Files:
    words, old, mounted = rng.choice(list(WRITERS)), rng.random() < 0.5, rng.random() < 0.5
    return case(words=words, bytes=int(10 ** rng.uniform(0, 5)), old=old, mounted=mounted)


def full(folder: Path) -> str:
    """A disk that takes so many bytes more: one of its own, if it may be mounted, or a limit for every file."""
    it = said(folder)
    if it["old"]:
        child(command(folder, it["words"]))
    if not it["mounted"] or not mount(folder / "disk", it["bytes"]):
        return filled(folder, it["words"], it["bytes"])
    try:
        return filled(folder / "disk", it["words"], None)
    finally:
        subprocess.run(["umount", "-l", folder / "disk"], check=False)


def mount(disk: Path, left: int) -> bool:
    """Copy what is beside `disk` to a disk that has so many bytes left; False if this process may not mount one."""
    files = {path: path.stat().st_size for path in disk.parent.rglob("*") if path.is_file()}
    size = sum(-(-each // PAGE) * PAGE for each in files.values()) + left
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(options, check=False, capture_output=True).returncode:
        disk.rmdir()
        return False
    for path in files:
        target = disk / path.relative_to(disk.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return True


def filled(folder: Path, words: str, most: int | None) -> str:
    """Run a command whose files may have `most` bytes, or on a disk that is then made larger, before it runs again."""
    before = contents(folder)

    def work() -> int:
        if most is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return command(folder, words)()

    status, text = child(work)
    assert status == 0 or text.startswith("npgemma: "), f"{words} says {text!r}"
    if most is None:
        subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
    check(folder, words, before, status, text, (0, 1, 2))
    return "refused" if status else ""


def make_limited(rng: random.Random) -> Files:
    return case(words=rng.choice(list(WRITERS)), megabytes=rng.randrange(0, 400), own=rng.random() < 0.3)


def limited(folder: Path) -> str:
    """So much more address space, or --max-memory."""
    it = said(folder)
    before, words = contents(folder), it["words"]

    def work() -> int:
        if it["own"] and "compare" not in words and "golden" not in words:
            os.chdir(folder)
            return cli.main([*words.split(), "--max-memory", f"{it['megabytes'] + 1}MB"])
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * PAGE + (it["megabytes"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return command(folder, words)()

    status, text = child(work)
    assert status == 0 or text.startswith("npgemma: "), f"{words} says {text!r}"
    check(folder, words, before, status, text, (0, 1, 2))
    return "refused" if status else ""

"""Faults of tools/fuzz.py: a command or a model meets a killed process, a full disk, a limit, another writer.

Every fault happens in a child of the worker, which has imported everything: it takes hundredths of a second. A command
that is disturbed leaves each output as it was or whole, never changes an input, and works when it is run again.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fuzz_changes import Files
from fuzz_commands import contents, inputs, standard_streams
from PIL import Image

import npgemma
from npgemma.commands import cli
from npgemma.golden import read_golden
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture, write_picture

WRITERS = {
    "golden P.png caption -o new.safetensors --level io --steps 0": "new.safetensors",
    "batch jobs.jsonl -o new.jsonl --max-new-tokens 3": "new.jsonl",
    "embed P.png P.jpg -o new.npz": "new.npz",
    "detect P.png square --draw new.png": "new.png",
    "segment P.png square --masks new.npz": "new.npz",
    "compare embedded dump.safetensors --suggest-map new.json": "new.json",
}
PICTURE, PROMPT, TOKENS = npgemma.sample_picture(), "caption en", 8
BAR_OF_ERROR = 4000  # the last bytes of stderr, fewer than a pipe holds


class Fault(NamedTuple):
    """How many cases the full budget has, how a case is made, and what runs it."""

    full: int
    make: Callable[[random.Random], Files]
    run: Callable[[Path], object]


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
    assert {**after, output: b""} | hidden(after) == {**before, output: b""} | hidden(after), "a file has changed"
    if status and output in before and output != "new.jsonl":
        assert after[output] == before[output], "an output is lost"
    again = child(command(folder, words))
    assert again[0] == 0, f"{words}, again, ends with {again}"
    assert not hidden(contents(folder)), f"{words} leaves {hidden(contents(folder))}"
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
    return case(words=rng.choice(list(WRITERS)), bytes=int(10 ** rng.uniform(0, 5)), old=rng.random() < 0.5)


def full(folder: Path) -> str:
    """A disk that takes so many bytes more of a file."""
    it = said(folder)
    if it["old"]:
        child(command(folder, it["words"]))
    before = contents(folder)

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (it["bytes"], it["bytes"]))
        return command(folder, it["words"])()

    status, text = child(work)
    assert status == 0 or text.startswith("npgemma: "), f"{it['words']} says {text!r}"
    check(folder, it["words"], before, status, text, (0, 1, 2))
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
        most = pages * resource.getpagesize() + (it["megabytes"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return command(folder, words)()

    status, text = child(work)
    assert status == 0 or text.startswith("npgemma: "), f"{words} says {text!r}"
    check(folder, words, before, status, text, (0, 1, 2))
    return "refused" if status else ""


CHANGES = ("replaced", "deleted", "written", "emptied and grown", "longer", "shorter", "nothing")


def make_changed(rng: random.Random) -> Files:
    return {"case.json": json.dumps({"how": rng.choice(CHANGES), "at": rng.random(), "seed": rng.random()}).encode()}


def changed(folder: Path) -> str:
    """The weights of a loaded model change: it answers as before, or refuses."""
    it, path = said(folder), folder / "m" / "model.safetensors"
    shutil.copytree(EMBEDDED, folder / "m")
    model, content = npgemma.load(folder / "m"), path.read_bytes()
    at = len(content) // 4 + int(it["at"] * len(content) / 2)
    noise = random.Random(it["seed"]).randbytes(len(content) // 4)
    match it["how"]:
        case "replaced":
            (folder / "x").write_bytes(noise)
            (folder / "x").replace(path)
        case "deleted":
            path.unlink()
        case "written":
            with path.open("rb+") as file:
                file.seek(at)
                file.write(noise)
        case "emptied and grown":
            path.write_bytes(content[:at] + noise + content[at + len(noise) :])
        case "longer":
            path.write_bytes(content + noise)
        case "shorter":
            os.truncate(path, at)
    try:
        answer = model.generate(PICTURE, PROMPT, max_new_tokens=TOKENS).token_ids
    except npgemma.BadModel:
        return "refused"
    assert answer == expected()[0], f"the weights are {it['how']}, and the answer is another"
    return ""


@cache
def expected() -> tuple[list[int], list[float]]:
    """The right tokens of the embedded model, and their log probabilities."""
    answer = npgemma.load().generate(PICTURE, PROMPT, max_new_tokens=TOKENS)
    return list(answer.token_ids), list(answer.logprobs)


def make_count(rng: random.Random) -> Files:
    return {"case.json": json.dumps({"count": rng.randint(2, 8), "seed": rng.random()}).encode()}


def threads(folder: Path) -> None:
    """Threads that ask one model, and write into one folder: each has its own answer and its own picture."""
    it, model, found = said(folder), npgemma.load(), dict[int, object]()

    def ask(i: int) -> None:
        image = Image.new("RGB", (20, 20), (i, 2 * i, 3 * i))
        for _ in range(3):
            write_picture(image, folder / f"{i}.png")
        answer = model.generate(PICTURE, PROMPT, max_new_tokens=TOKENS)
        found[i] = (list(answer.token_ids), list(answer.logprobs), read_picture(folder / f"{i}.png").getpixel((0, 0)))

    together(ask, it["count"])
    for i in range(it["count"]):
        assert found.get(i) == (*expected(), (i, 2 * i, 3 * i)), f"thread {i} has {found.get(i)}"


def together(work: Callable[[int], None], count: int) -> None:
    """Run `work` in so many threads."""
    running = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def forks(folder: Path) -> None:
    """Children of a process that has loaded a model, and whose threads use it, answer as it does."""
    it, model = said(folder), npgemma.load()
    right = expected()

    def work() -> int:
        answer = model.generate(PICTURE, PROMPT, max_new_tokens=TOKENS)
        return int((list(answer.token_ids), list(answer.logprobs)) != right)

    asking = threading.Thread(target=work)
    asking.start()
    with contextlib.ExitStack() as stack:
        stack.callback(asking.join)
        for _ in range(it["count"] // 2 + 1):
            status, text = child(work)
            assert status == 0, f"a child ends with {status}: {text}"


FAULTS = {
    "killed": Fault(50, make_killed, killed),
    "interrupted": Fault(50, make_interrupted, interrupted),
    "full disks": Fault(60, make_full, full),
    "limits": Fault(40, make_limited, limited),
    "rewritten": Fault(100, make_changed, changed),
    "threads": Fault(30, make_count, threads),
    "forks": Fault(30, make_count, forks),
}

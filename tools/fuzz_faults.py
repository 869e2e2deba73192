"""Faults of tools/fuzz.py: disturbed commands, weights that change, threads and forks of one model.

A model answers as if nothing had happened, or refuses.
"""

import contextlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import fuzz_disturbed as disturbed
from fuzz_changes import Files
from fuzz_disturbed import child, said
from PIL import Image

import npgemma
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture, write_picture

PICTURE, PROMPT, TOKENS = npgemma.sample_picture(), "caption en", 8


class Fault(NamedTuple):
    """How many cases the full budget has, how a case is made, and what runs it."""

    full: int
    make: Callable[[random.Random], Files]
    run: Callable[[Path], object]


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
    "killed": Fault(50, disturbed.make_killed, disturbed.killed),
    "interrupted": Fault(50, disturbed.make_interrupted, disturbed.interrupted),
    "full disks": Fault(60, disturbed.make_full, disturbed.full),
    "limits": Fault(40, disturbed.make_limited, disturbed.limited),
    "rewritten": Fault(100, make_changed, changed),
    "threads": Fault(30, make_count, threads),
    "forks": Fault(30, make_count, forks),
}

"""Damaged and lying files of every kind, command lines, faults: each is answered or refused, soon, in little memory.

    python tools/fuzz.py --seed 7 --keep broken/           the full budget, about 15 minutes
    python tools/fuzz.py --seed 7 --share 0.1              a tenth of it
    python tools/fuzz.py --seed 7 golden pictures          some kinds

A case depends on seed, kind and number alone (faults also on when the machine comes to it). It breaks the bar if it
raises anything but an error of npgemma, takes more than 5 s of the processor or 50 s altogether (faults more), makes
the process grow by more than MEGABYTES, or gives what the file does not say. Broken cases are listed, and kept if
--keep names a folder, with the smallest part of each that is broken. Every kind runs in a process of its own (Linux
alone): a crash is a broken case, too.
"""

import argparse
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_commands
import fuzz_faults
import fuzz_files as good
import fuzz_readers as read
from fuzz_changes import Files, changed
from fuzz_minimal import minimal
from safetensors.numpy import save

import npgemma
from npgemma.io.model_folder import EMBEDDED_LANGUAGE, EMBEDDED_PAIR

MEGABYTES = 300.0
SECONDS_TO_REDUCE = 60.0  # how long a broken case is made smaller
WAITING = 10  # how many times as long a case may take altogether, on a machine that others use


class Kind(NamedTuple):
    """How many cases the full budget has; how one is made; what reads it from a folder, and may assert what it found;
    and how many seconds of the processor that may take.
    """

    full: int
    make: Callable[[random.Random], Files]
    read: Callable[[Path], object]
    seconds: float = 5.0


class Broken(NamedTuple):
    """A case that breaks the bar, and how."""

    kind: str
    number: int
    what: str


@dataclass(frozen=True)
class Outcome:
    """How many cases of a kind were answered and refused, the most megabytes that one took, and what broke the bar."""

    kind: str
    answered: int
    refused: int
    megabytes: float
    broken: list[Broken]


class TooLong(BaseException):
    """A case takes longer than it may; no `except Exception` hides it."""


def of_files(full: int, files: list[Files], read: Callable[[Path], object]) -> Kind:
    """A kind whose cases are good files with changes."""
    return Kind(full, lambda rng: changed(rng, rng.choice(files)), read)


def kinds() -> dict[str, Kind]:
    """Every kind, by its name."""
    encoder, language = partial(read.model, base=EMBEDDED_PAIR), partial(read.model, base=EMBEDDED_LANGUAGE)
    of_encoder = good.model("config.json", "preprocessor_config.json", "tokenizer_config.json", base=EMBEDDED_PAIR)
    of_language = good.model("config.json", "generation_config.json", "tokenizer_config.json", base=EMBEDDED_LANGUAGE)
    return {
        "safetensors": of_files(20_000, [{"x.safetensors": save(good.TENSORS, {"a": "b"})}], read.tensors),
        "configs": of_files(2600, good.configs(), read.model),
        "encoders": of_files(700, of_encoder, encoder),
        "languages": of_files(700, of_language, language),
        "indexes": of_files(1000, good.indexes(), read.model),
        "pictures": of_files(3000, good.pictures(), read.picture),
        "tokenizers": of_files(500, good.model("tokenizer.model"), read.tokenizer),
        "dumps": of_files(3000, good.dumps(), read.dump),
        "golden": of_files(3000, good.goldens(), read.golden_file),
        "mappings": of_files(1000, good.mappings(), read.mapping),
        "lines": of_files(2000, good.lines(), read.lines),
        "adapters": of_files(1000, good.adapters(), read.adapter),
        "codecs": of_files(500, good.model("vae-oid.npz"), read.codec),
        "commands": Kind(1000, fuzz_commands.make, fuzz_commands.run),
        **{name: Kind(fault.full, fault.make, fault.run, 30.0) for name, fault in fuzz_faults.FAULTS.items()},
    }


def fuzz(name: str, kind: Kind, seed: object, cases: int, keep: Path | None = None) -> Outcome:
    """Run so many cases of a kind; where a process ends, the next one goes on behind the case that ended it."""
    found: list[dict[str, Any]] = []
    while len(found) < cases:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            work(name, kind, seed, range(len(found), cases), writer)
        os.close(writer)
        with os.fdopen(reader) as results:
            found += map(json.loads, results)
        _, status = os.waitpid(child, 0)
        if status:
            found.append({"said": f"the process ended with status {status}", "grown": 0.0})
    broken = [Broken(name, i, case["said"]) for i, case in enumerate(found) if case["said"] not in ("", "refused")]
    if keep:
        for each in broken:
            keep_minimal(kind, seed, each, keep)
    said = [case["said"] for case in found]
    most = max((case["grown"] for case in found), default=0.0)
    return Outcome(name, said.count(""), said.count("refused"), most, broken)


def keep_minimal(kind: Kind, seed: object, broken: Broken, keep: Path) -> None:
    """Write a broken case, and the smallest part of it that is broken in the same way."""

    def is_broken(files: Files) -> bool:
        again = fuzz(broken.kind, kind._replace(make=lambda rng: files), seed, 1)
        return any(way(each.what) == way(broken.what) for each in again.broken)

    files, place = case_of(broken.kind, kind, seed, broken.number), f"{broken.kind}-{broken.number}"
    write(files, keep / place)
    write(minimal(files, is_broken, SECONDS_TO_REDUCE), keep / f"{place}-minimal")


def way(what: str) -> str:
    """How a case is broken: the name of the error, or the words without the numbers."""
    return re.sub(r"\d+", "", what.partition(":")[0])


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def work(name: str, kind: Kind, seed: object, numbers: range, writer: int) -> None:
    """Run cases, and write a line about each; the process ends here."""
    try:
        signal.signal(signal.SIGALRM, too_long)
        signal.signal(signal.SIGPROF, too_long)
        with os.fdopen(writer, "w") as results, tempfile.TemporaryDirectory() as folder:
            for number in numbers:
                case = run_case(kind, case_of(name, kind, seed, number), Path(folder) / str(number))
                print(json.dumps(case), file=results, flush=True)
        os._exit(0)
    finally:
        os._exit(1)  # whatever is wrong with the fuzzer, this process is not its parent


def case_of(name: str, kind: Kind, seed: object, number: int) -> Files:
    """The files of a case."""
    return kind.make(random.Random(f"{seed}-{name}-{number}"))


def run_case(kind: Kind, files: Files, folder: Path) -> dict[str, Any]:
    """What is said of a case, '' if it was answered, 'refused', or how it breaks the bar; and how much memory grew."""
    folder.mkdir()
    write(files, folder)
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is that of now
    before, said = memory(), ""
    signal.setitimer(signal.ITIMER_PROF, kind.seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * kind.seconds)
    faulthandler.dump_traceback_later(2 * WAITING * kind.seconds, exit=True)  # where no handler runs any more
    try:
        said = "refused" if kind.read(folder) == "refused" else ""
    except npgemma.NpgemmaError:
        said = "refused"
    except TooLong:
        said = f"it takes longer than {kind.seconds} s"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    grown = memory() - before
    shutil.rmtree(folder, ignore_errors=True)
    return {"said": f"it takes {grown:.0f} MB" if grown > MEGABYTES else said, "grown": grown}


def too_long(*_: object) -> None:
    raise TooLong


def memory() -> float:
    """The largest memory of this process so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def main() -> int:
    every = kinds()
    parser = argparse.ArgumentParser(description="damaged files, command lines and faults; see the head of this file")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(every)} (default: all)")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--share", type=float, default=1.0, help="of the full budget (default: 1)")
    parser.add_argument("--cases", type=int, help="of each kind (default: those of the budget)")
    parser.add_argument("--keep", type=Path, help="a folder for the files of broken cases")
    a = parser.parse_args()
    print(f"{'kind':<12} {'cases':>6} {'answered':>9} {'refused':>8} {'broken':>7} {'most MB':>8} {'seconds':>8}")
    total, begin = 0, time.monotonic()
    for name in a.kinds or every:
        start, cases = time.monotonic(), a.cases or max(1, round(a.share * every[name].full))
        found = fuzz(name, every[name], a.seed, cases, a.keep)
        took, broken = time.monotonic() - start, len(found.broken)
        counts = f"{cases:>6} {found.answered:>9} {found.refused:>8} {broken:>7}"
        print(f"{name:<12} {counts} {found.megabytes:>8.0f} {took:>8.1f}", flush=True)
        for each in found.broken:
            print(f"    case {each.number}: {each.what}", flush=True)
        total += broken
    print(f"seed {a.seed}: {total} broken, {time.monotonic() - begin:.0f} s")
    return min(total, 1)


if __name__ == "__main__":
    sys.exit(main())

"""Damaged and lying files of every kind that npgemma reads: each is answered or refused, soon and in little memory.

    python tools/fuzz.py --seed 7 --cases 2000 --keep broken/      all kinds
    python tools/fuzz.py --seed 7 --cases 500 golden pictures      some kinds

A case is a good file with a few changes that depend on seed, kind and number alone. It breaks the bar if it raises
anything but an error of npgemma, takes longer than SECONDS, makes the process grow by more than MEGABYTES, or gives
what the file does not say. Broken cases are listed, and kept if --keep names a folder. Every kind runs in a process of
its own (Linux alone), so that a crash is a broken case, too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fuzz_changes import Files, changed
from fuzz_files import TENSORS, adapters, dumps, goldens, lines, mappings, model, pictures
from safetensors.numpy import save

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.golden import compare, read_dump, read_golden, read_mapping
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.mapping import SAME_NAMES, pair
from npgemma.golden.report import as_json, as_text
from npgemma.golden.suggest import suggest_map
from npgemma.io.jobs import read_jobs
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture
from npgemma.io.results import open_results
from npgemma.io.safetensors import open_any

SECONDS, MEGABYTES = 2.0, 300.0


class Kind(NamedTuple):
    """Good files, and what reads them from a folder; it may check what it has read, by assertions."""

    good: Callable[[], Sequence[Files]]
    read: Callable[[Path], object]


class Broken(NamedTuple):
    """A case that breaks the bar, and how."""

    kind: str
    number: int
    what: str


@dataclass(frozen=True)
class Outcome:
    """How many cases of a kind were answered and refused, and those that broke the bar."""

    kind: str
    answered: int
    refused: int
    broken: list[Broken]


class TooLong(BaseException):
    """A case takes longer than SECONDS; no `except Exception` hides it."""


# ----------------------------------------------------------------------------------------------------------- readers


def read_tensors(folder: Path) -> None:
    """A .safetensors file, held against its header: what is read has the shape and the bytes that it says."""
    path = folder / "x.safetensors"
    tensors, metadata = open_any(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert isinstance(metadata, dict)
    assert tensors.keys() == header.keys() - {"__metadata__"}, "other names"
    for name, x in tensors.items():
        assert list(x.shape) == header[name]["shape"], "another shape"
        if isinstance(x, np.ndarray):
            begin, end = header[name]["data_offsets"]
            assert x.tobytes() == content[start + begin : start + end], "other bytes"


def compare_dump(folder: Path) -> None:
    """A dump, compared with the embedded golden file, and suggestions for it."""
    golden, dump = read_golden(EMBEDDED_GOLDEN), read_dump(next(folder.glob("dump*")))
    report(golden, dump)
    suggest_map(golden, dump)


def report(golden: npgemma.golden.Golden, dump: npgemma.golden.Dump) -> None:
    """Both reports of a comparison."""
    found = compare(golden, dump, SAME_NAMES, "float32", ["*"])
    json.dumps(as_json(found, golden), allow_nan=False)
    as_text(found, golden, True)


def compare_golden(folder: Path) -> None:
    """A golden file, compared with a dump of its own numbers."""
    golden = read_golden(folder / "g.golden")
    report(golden, npgemma.golden.Dump({tap: np.array(x) for tap, x in golden.truth.items()}))


def read_map(folder: Path) -> None:
    """A mapping, used on names."""
    golden = read_golden(EMBEDDED_GOLDEN)
    pair(read_mapping(folder / "map.json"), ["blk.0.k", "qv1", "a" * 60, "keys"], golden.taps)


def read_lines(folder: Path) -> None:
    """A file of lines, as jobs and as results."""
    read_jobs(folder / "lines.jsonl")
    with open_results(folder / "lines.jsonl"):
        pass


def load(folder: Path) -> None:
    """A model folder, with what the case lacks of the embedded model's."""
    for path in EMBEDDED.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    npgemma.load(folder).processor.tokenizer.encode("caption en")


KINDS = {
    "pictures": Kind(pictures, lambda folder: read_picture(next(folder.iterdir()))),
    "safetensors": Kind(lambda: [{"x.safetensors": save(TENSORS, {"a": "b"})}], read_tensors),
    "dumps": Kind(dumps, compare_dump),
    "golden": Kind(goldens, compare_golden),
    "mappings": Kind(mappings, read_map),
    "adapters": Kind(adapters, read_adapter),
    "lines": Kind(lines, read_lines),
    "codecs": Kind(lambda: model("vae-oid.npz"), lambda folder: npgemma.read_mask_codec(folder / "vae-oid.npz")),
    "configs": Kind(lambda: model("config.json", "preprocessor_config.json", "tokenizer_config.json"), load),
    "tokenizers": Kind(lambda: model("tokenizer.model"), load),
}


# ------------------------------------------------------------------------------------------------------------ running


def fuzz(kind: str, seed: object, cases: int, keep: Path | None = None) -> Outcome:
    """Run so many cases of a kind in a process of their own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            signal.signal(signal.SIGALRM, too_long)
            with os.fdopen(write, "w") as results, tempfile.TemporaryDirectory() as folder:
                for number, files in enumerate(cases_of(kind, seed, cases)):
                    print(
                        json.dumps(run_case(KINDS[kind], files, Path(folder) / str(number))), file=results, flush=True
                    )
            os._exit(0)
        finally:
            os._exit(1)  # whatever is wrong with the fuzzer, this process is not its parent
    os.close(write)
    with os.fdopen(read) as results:
        found = [json.loads(line) for line in results]
    _, status = os.waitpid(child, 0)
    if status:
        found.append(f"the process ended with status {status}")
    broken = [Broken(kind, number, what) for number, what in enumerate(found) if what not in ("", "refused")]
    for number, files in enumerate(cases_of(kind, seed, cases)) if keep else ():
        for name, content in files.items() if number in {each.number for each in broken} else ():
            (keep / f"{kind}-{number}" / name).parent.mkdir(parents=True, exist_ok=True)  # type: ignore[operator]
            (keep / f"{kind}-{number}" / name).write_bytes(content)  # type: ignore[operator]
    return Outcome(kind, found.count(""), found.count("refused"), broken)


def cases_of(kind: str, seed: object, cases: int) -> Iterator[Files]:
    """The files of each case."""
    good = KINDS[kind].good()
    for number in range(cases):
        rng = random.Random(f"{seed}-{kind}-{number}")
        yield changed(rng, rng.choice(good))


def run_case(kind: Kind, files: Files, folder: Path) -> str:
    """'' if the files of a case were answered, 'refused', or how it breaks the bar."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is that of now
    before, start, found = memory(), time.monotonic(), ""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.read(folder)
    except npgemma.NpgemmaError:
        found = "refused"
    except TooLong:
        found = f"it takes longer than {SECONDS} s"
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"[:200]
    signal.setitimer(signal.ITIMER_REAL, 0)
    grown, seconds = memory() - before, time.monotonic() - start
    shutil.rmtree(folder)
    if grown > MEGABYTES:
        return f"it takes {grown:.0f} MB"
    return f"it takes {seconds:.1f} s" if seconds > SECONDS else found


def too_long(*_: object) -> None:
    raise TooLong


def memory() -> float:
    """The largest memory of this process so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description="damaged files of every kind; see the head of this file")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--cases", type=int, default=200, help="of each kind (default: 200)")
    parser.add_argument("--keep", type=Path, help="a folder for the files of broken cases")
    a = parser.parse_args()
    print(f"{'kind':<12} {'cases':>6} {'answered':>9} {'refused':>8} {'broken':>7} {'seconds':>8}")
    count = 0
    for kind in a.kinds or KINDS:
        start = time.monotonic()
        found = fuzz(kind, a.seed, a.cases, a.keep)
        took, broken = time.monotonic() - start, len(found.broken)
        print(f"{kind:<12} {a.cases:>6} {found.answered:>9} {found.refused:>8} {broken:>7} {took:>8.1f}", flush=True)
        for each in found.broken:
            print(f"    case {each.number}: {each.what}")
        count += broken
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())

"""Measure how much of the float64 truth is the same on other processors after rounding to float32.

    python tools/kernel_study.py                                        # the embedded model, all taps
    python tools/kernel_study.py -m paligemma-3b-mix-224 --level blocks # another model, another level

On each kind of processor OpenBLAS multiplies with different instructions, and so sums in a different order. Here
OPENBLAS_CORETYPE selects them, with one thread and with two. Each run is a separate process; kernels that this
processor cannot run are skipped.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import npgemma
from npgemma.golden.file import read_golden
from npgemma.golden.names import LEVELS
from npgemma.golden.record import record

KERNELS = ("Haswell", "SkylakeX", "Nehalem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-m", "--model", default="", metavar="FOLDER", help="default: the embedded model")
    parser.add_argument("--level", choices=LEVELS, default="ops", help="which taps to compare (default: ops)")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [(kernel, threads) for kernel in KERNELS for threads in (1, 2)]
        first: Mapping[str, np.ndarray] = {}
        for kernel, threads in runs:
            file = record_with(Path(folder), kernel, threads, a.model, a.level)
            if file is None:
                print(f"{kernel:<9} {threads} threads: this processor cannot run it")
                continue
            first = first or read_golden(file).truth
            pairs = [(truth, first[tap]) for tap, truth in read_golden(file).truth.items()]
            total = sum(truth.size for truth, _ in pairs)
            single = sum(int((x.astype(np.float32) == y.astype(np.float32)).sum()) for x, y in pairs)
            stored = sum(int((x == y).sum()) for x, y in pairs)
            print(f"{kernel:<9} {threads} threads: {single:,} of {total:,} the same in float32, {stored:,} as stored")


def record_with(folder: Path, kernel: str, threads: int, model: str, level: str) -> Path | None:
    """Record in a process of its own; None if the processor lacks the instructions."""
    path = folder / f"{kernel}{threads}.safetensors"
    variables = {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": str(threads)}
    script = f"import kernel_study; kernel_study.record_one({model!r}, {str(path)!r}, {level!r})"
    tools = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | variables, cwd=tools)
    if done.returncode == -signal.SIGILL:
        return None
    done.check_returncode()
    return path


def record_one(model: str, path: str, level: str) -> None:
    record(npgemma.load(model or None), [npgemma.sample_picture()], "caption en", path, level)


if __name__ == "__main__":
    main()

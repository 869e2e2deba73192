"""Is the float64 truth the same on another processor? The share of its elements that are, once rounded to float32.

    python tools/kernel_study.py                  # the embedded model, all taps
    python tools/kernel_study.py /tmp/3b blocks   # another model, another level

OpenBLAS multiplies with other instructions, and so sums in another order, on each kind of processor; here it is told to
(OPENBLAS_CORETYPE), with one thread and with two. Each run is a process of its own.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import npgemma
from npgemma.golden.file import read_golden
from npgemma.golden.record import record

KERNELS = ("Haswell", "SkylakeX", "Nehalem")
SAMPLE = npgemma.io.model_folder.EMBEDDED.parent / "sample.png"


def main() -> None:
    model, level = [*sys.argv[1:], "", "ops"][:2] if len(sys.argv) < 3 else sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        runs = [(kernel, threads) for kernel in KERNELS for threads in (1, 2)]
        files = [record_with(Path(folder), kernel, threads, model, level) for kernel, threads in runs]
        first = read_golden(files[0]).truth
        for (kernel, threads), file in zip(runs, files, strict=True):
            pairs = [(truth, first[tap]) for tap, truth in read_golden(file).truth.items()]
            total = sum(truth.size for truth, _ in pairs)
            single = sum(int((x.astype(np.float32) == y.astype(np.float32)).sum()) for x, y in pairs)
            stored = sum(int((x == y).sum()) for x, y in pairs)
            print(f"{kernel:<9} {threads} threads: {single:,} of {total:,} the same in float32, {stored:,} as stored")


def record_with(folder: Path, kernel: str, threads: int, model: str, level: str) -> Path:
    path = folder / f"{kernel}{threads}.safetensors"
    variables = {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": str(threads)}
    script = f"import kernel_study; kernel_study.record_one({model!r}, {str(path)!r}, {level!r})"
    tools = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | variables, cwd=tools)
    return path


def record_one(model: str, path: str, level: str) -> None:
    record(npgemma.load(model or None), [SAMPLE], "caption en", path, level)


if __name__ == "__main__":
    main()

"""How fast npgemma is on this machine, how near to the bare products, and how transformers does beside it.

    python tools/bench.py --quick             # the embedded model
    python tools/make_checkpoint.py /tmp/3b
    python tools/bench.py /tmp/3b --json bench.json

The model is any folder of bfloat16 weights; random ones of the 3B layout do, since no figure depends on what they say.
Each line of the table is a median. What is compared runs in turns: within one process where memory allows, else in
processes that alternate. transformers is left out where it is not installed. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE
are taken out of the environment: a user's machine has neither.

- Bare products: np.matmul of every matrix with as many rows as the prompt has, in float32 and in memory; for a step, of
  every matrix that one token reads, with one row.
- Packed: bfloat16 as it is in the file. Resident: widened once.
- Other sizes of pictures: the same weights with a longer table of positions.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench_tasks import timed

from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import TOKENIZER
from npgemma.layers.threads import numpy_library

TASKS = Path(__file__).with_name("bench_tasks.py")
IMPLEMENTATIONS = ("npgemma", "torch eager", "torch sdpa")  # of a step of training
NOT_A_USERS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


# ---------------------------------------------------------------------------------------------------------- processes


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NOT_A_USERS}


def in_a_process(task: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    """What a task finds, and `whole`: the seconds from starting its process to its end."""
    print(f"  {task} {' '.join(map(str, arguments.values()))}", end="", file=sys.stderr, flush=True)
    read_once(folder)
    command = [sys.executable, str(TASKS), str(folder), task, json.dumps(arguments)]
    whole, done = timed(lambda: subprocess.run(command, env=environment(), capture_output=True, text=True, check=False))
    print(f": {whole:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": whole}


def read_once(folder: Path) -> None:
    """Have the weights in the page cache, for everybody alike."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def seconds_of(*command: str) -> float:
    """Median of five runs of a whole process, after one that nobody looks at."""
    run = [sys.executable, *command]
    times = [
        timed(lambda: subprocess.run(run, env=environment(), capture_output=True, check=True))[0] for _ in range(6)
    ]
    return median(times[1:])


def import_seconds() -> float:
    """What `import npgemma` takes where NumPy is imported already."""
    code = "import time, numpy; begin = time.perf_counter(); import npgemma; print(time.perf_counter() - begin)"
    run = [sys.executable, "-c", code]
    return median(
        float(subprocess.run(run, env=environment(), capture_output=True, check=True).stdout) for _ in range(5)
    )


def machine() -> str:
    """Processor, cores, versions, and the kernels that BLAS chose for this processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    kernels = getattr(numpy_library(), "scipy_openblas_get_corename64_", None)
    chosen = ""
    if kernels:
        kernels.restype = ctypes.c_char_p
        chosen = f" ({kernels().decode()} kernels)"
    return (
        f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{blas['name']} {blas['version']}{chosen}"
    )


# -------------------------------------------------------------------------------------------------------------- table


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's median over rounds of the same task; of tokens, the first round's."""
    return {
        key: median(found[key] for found in rounds) if isinstance(value, int | float) else value
        for key, value in rounds[0].items()
    }


def measure(folder: Path, rounds: int, repeats: int, quick: bool, sizes: Sequence[int]) -> dict[str, Any]:
    """Every figure, by the name of its task; if it has to be quick, those of npgemma at one size."""
    others = [f"transformers {dtype}" for dtype in ("float32", "bfloat16") if find_spec("transformers") and not quick]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        turns: list[tuple[str, str, dict[str, Any]]] = [
            ("side by side", "side_by_side", {"repeats": repeats}),
            ("auto", "auto", {"repeats": repeats}),
            ("alone", "alone", {"dtype": "float32", "steps": 19, "image_size": 224}),
            *[(name, "transformers", {"dtype": name.split()[1], "firsts": 2, "steps": 19}) for name in others],
            ("caption", "caption", {}),
        ]
        if others:
            turns.append(("caption transformers", "transformers", {"dtype": "bfloat16", "firsts": 1, "steps": 19}))
        for name, task, arguments in turns:
            found.setdefault(name, []).append(in_a_process(task, folder, **arguments))
    figures = {name: medians(each) for name, each in found.items()}
    for size in sizes:
        figures[f"alone {size}"] = in_a_process("alone", folder, dtype="float32", steps=3, image_size=size)
    if not quick:
        figures["float64"] = in_a_process("alone", folder, dtype="float64", steps=1, image_size=224)
    figures["golden"] = in_a_process("golden", EMBEDDED)
    if (folder / TOKENIZER).exists():
        for in_flight, pictures in ((1, 2), (8, 8)):
            figures[f"batch {in_flight}"] = in_a_process("batch", folder, pictures=pictures, in_flight=in_flight)
    figures["train"] = in_a_process("train", folder, repeats=2)
    for dtype in ("float32", "bfloat16"):
        if find_spec("peft") and not quick:
            figures[f"peft {dtype}"] = in_a_process("peft", folder, dtype=dtype, repeats=2)
    figures["steps"] = in_a_process("steps", EMBEDDED, batch=8, rounds=10 if quick else 20)
    print("  start-up", file=sys.stderr, flush=True)
    figures["import"] = {"seconds": import_seconds()}
    figures["help"] = {"seconds": seconds_of("-m", "npgemma", "--help")}
    with TemporaryDirectory() as drawn:
        figures["demo"] = {"seconds": seconds_of("-m", "npgemma", "demo", "--draw", f"{drawn}/boxes.png")}
    return figures


def columns(f: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of each contestant, by the names of the table's rows; what was not measured is not there."""
    own, alone = f["side by side"], f["alone"]
    found: dict[str, dict[str, float]] = {
        "bare products": {"first token, s": own["floor first"], "step, s": own["floor step"]},
        "packed": {"load, s": alone["load"], "peak memory, GB": alone["peak_gb"], WHOLE: f["caption"]["whole"]},
        "resident": {"load, s": own["resident load"]},
    }
    for name in ("packed", "resident"):
        step, eight = own[f"{name} step"], own[f"{name} step of 8"]
        found[name] |= {
            "first token, s": own[f"{name} first"],
            "of that, the picture": own[f"{name} vision"],
            "step, s": step,
            "step of 8 sequences, s": eight,
            "tokens a second of 8, x those of 1": 8 * step / eight,
        }
    found["auto"] = {"step, s": f["auto"]["step"], "step of 8 sequences, s": f["auto"]["step of 8"]}
    found["auto"]["peak memory, GB"] = f["auto"]["peak_gb"]
    for dtype in ("float32", "bfloat16"):
        if other := f.get(f"transformers {dtype}"):
            found[f"transformers {dtype}"] = {
                "load, s": other["load"],
                "first token, s": other["first"],
                "step, s": other["step"],
                "peak memory, GB": other["peak_gb"],
            }
    if other := f.get("caption transformers"):
        found["transformers bfloat16"][WHOLE] = other["whole"]
    for name, figures in found.items():
        if "first token, s" in figures:
            figures["first token, x the bare products"] = figures["first token, s"] / own["floor first"]
        floor = f["auto" if name == "auto" else "side by side"]["floor step"]
        figures["step, x the bare products"] = figures["step, s"] / floor
    return found


WHOLE = "process of 20 tokens, s"
ROWS = (
    *("load, s", "first token, s", "of that, the picture", "step, s", "step of 8 sequences, s"),
    *("peak memory, GB", WHOLE, "first token, x the bare products", "step, x the bare products"),
    "tokens a second of 8, x those of 1",
)


BYTES = {"packed": 2, "resident": 4, "auto": 4}  # of a stored number that a step reads


def roofline(f: dict[str, Any]) -> list[str]:
    """What bounds each kind of work here, the arithmetic or the memory, and how near the work comes to it."""
    own = f["side by side"]
    bandwidth = max(own["bandwidth"], 4 * own["work"]["step"][1] / own["floor step"])  # the bare step reads float32
    lines = [
        f"This machine: {own['flops'] / 1e9:.0f} GFLOP a second in float32, {bandwidth / 1e9:.1f} GB a second.",
        "",
        "| | bound by | at least, s | took, s | share of the bound |",
        "|---|---|---|---|---|",
    ]
    for name, width in BYTES.items():
        for kind, (flops, numbers) in own["work"].items():
            took = f["auto"].get(kind) if name == "auto" else own[f"{name} {kind}"]
            if took is None:
                continue
            bounds = {"arithmetic": flops / own["flops"], "memory": width * numbers / bandwidth}
            bound = max(bounds, key=lambda each: bounds[each])
            least = bounds[bound]
            lines.append(f"| {name}, {WORK[kind]} | {bound} | {least:.3g} | {took:.3g} | {least / took:.0%} |")
    return lines


WORK = {"first": "first token", "step": "step", "step of 8": "step of 8 sequences"}


def training(f: dict[str, Any]) -> list[str]:
    """The gradients of one example, with adapters on attention."""
    lines = ["| LoRA, one example | forward, s | forward and backward, s | times | peak memory, GB |", "|---" * 5 + "|"]
    for name in ("train", "peft float32", "peft bfloat16"):
        if found := f.get(name):
            times = found["both"] / found["forward"]
            figures = f"{found['forward']:.3g} | {found['both']:.3g} | {times:.2f} | {found['peak_gb']:.2f}"
            lines.append(f"| {'npgemma' if name == 'train' else name} | {figures} |")
    steps = f["steps"]
    times = ", ".join(f"{name} {1000 * steps[name]:.3g} ms" for name in IMPLEMENTATIONS if name in steps)
    ratios = ", ".join(f"{name} {steps[name]:.2f}" for name in steps if "/" in name)
    lines += ["", f"step of the embedded model, batch of 8: {times}{f' ({ratios})' if ratios else ''}"]
    return lines


def report(f: dict[str, Any]) -> str:
    """The table, and a line for each thing that has but one figure."""
    found = columns(f)
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for row in ROWS:
        cells = (f"{figures[row]:.3g}" if row in figures else "" for figures in found.values())
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", *roofline(f), "", *training(f), ""]
    for name, big in f.items():
        if name.startswith("alone "):
            size = name.removeprefix("alone ")
            lines.append(f"{size} pixels: first token {big['cold']:.1f} s, peak memory {big['peak_gb']:.2f} GB")
    alone = f["alone"]
    if exact := f.get("float64"):
        lines.append(f"float64: first token {exact['cold']:.1f} s, peak memory {exact['peak_gb']:.2f} GB")
    lines += [
        f"first token of a process: {alone['cold']:.1f} s",
        f"import npgemma, beyond NumPy: {f['import']['seconds']:.3f} s",
        f"npgemma --help: {f['help']['seconds']:.2f} s; npgemma demo: {f['demo']['seconds']:.2f} s",
    ]
    golden = f["golden"]
    seconds = f"write {golden['write']:.2f} s, compare {golden['compare']:.2f} s"
    size = f"{golden['bytes'] / 1e6:.1f} MB, peak memory {golden['peak_gb']:.2f} GB"
    lines.append(f"golden, blocks of the embedded model: {seconds}, {size}")
    if several := f.get("batch 8"):
        one = f["batch 1"]["a minute"]
        rates = f"{several['a minute']:.3g} a minute, one at a time {one:.3g}: {several['a minute'] / one:.2f} times"
        lines.append(f"batch of 8 pictures, 20 tokens each, 8 in flight: {rates}")
    for dtype in ("float32", "bfloat16"):
        if other := f.get(f"transformers {dtype}"):
            pairs = list(zip(alone["tokens"], other["tokens"], strict=False))
            same = sum(a == b for a, b in pairs)
            lines.append(f"tokens that are those of transformers {dtype}: {same} of {len(pairs)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED, help="default: the embedded model")
    parser.add_argument("--quick", action="store_true", help="npgemma alone, at one size: half a minute if it is small")
    parser.add_argument("--rounds", type=int, default=1, help="processes of each kind (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="first tokens in a process (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure")
    parser.add_argument(
        "--sizes", type=int, nargs="*", metavar="PIXELS", help="other sizes of pictures (default: 448, none if quick)"
    )
    a = parser.parse_args()
    sizes = [448] * (not a.quick) if a.sizes is None else a.sizes
    begin = time.perf_counter()
    figures = measure(a.folder, a.rounds, a.repeats, a.quick, sizes)
    print(f"{machine()}; {(time.perf_counter() - begin) / 60:.0f} minutes\n\n{report(figures)}")
    if a.json:
        a.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()

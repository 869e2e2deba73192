"""How fast npgemma is on this machine, how near to the bare products, and how transformers does beside it.

    python tools/make_checkpoint.py /tmp/3b
    python tools/bench.py /tmp/3b --json bench.json

The model is any folder of bfloat16 weights; random ones of the 3B layout do, since no figure depends on what they say.
Each line of the table is a median. What is compared runs in turns: within one process where memory allows, else in
processes that alternate. transformers is left out where it is not installed. OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE
are taken out of the environment: a user's machine has neither.

- Bare products: np.matmul of every matrix with as many rows as the prompt has, in float32 and in memory; for a step, of
  every matrix that one token reads, with one row.
- Packed: bfloat16 as it is in the file. Resident: widened once.
- 448 and 896 pixels: the same weights with a longer table of positions.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import npgemma
from npgemma.models.gemma import Cache, new_caches
from npgemma.models.paligemma import Prompt, image_features, start, step

FLOAT32 = np.dtype(np.float32)
PREFIX = [2, 21603, 659, 108]  # <bos>, two words, newline
REST = 0.3  # seconds after BLAS was at work: its threads wait for more, on the cores, for 0.12
NOT_A_USERS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


# ------------------------------------------------------------------------------------------------- what is measured


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = f()
    return time.perf_counter() - begin, result


def pixels(model: npgemma.Model) -> np.ndarray:
    side = model.config.vision.image_size
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(model.dtype)


def input_ids(model: npgemma.Model) -> np.ndarray:
    return np.array([model.config.image_token_index] * model.config.vision.num_patches + PREFIX)


class Run:
    """One sequence: `first` prefills it and chooses a token, `step` the next one."""

    def __init__(self, model: npgemma.Model, capacity: int = 64) -> None:
        self.model = model
        self.ids, self.pixels = input_ids(model), pixels(model)
        self.capacity = len(self.ids) + capacity

    def first(self) -> dict[str, float]:
        w = self.model.weights
        vision, features = timed(lambda: image_features(w, self.pixels))
        prompt = Prompt(self.ids, np.zeros_like(self.ids), features.reshape(-1, features.shape[-1]))
        self.caches = [new_caches(w.text, self.capacity, self.model.dtype)]
        rest, scores = timed(lambda: start(w, [prompt], self.caches))
        self.tokens = [int(scores[0].argmax())]
        return {"first": vision + rest, "vision": vision}

    def step(self) -> float:
        last = np.array(self.tokens[-1:] * len(self.caches))
        seconds, scores = timed(lambda: step(self.model.weights, last, self.caches, self.model.dtype))
        self.tokens.append(int(scores[0].argmax()))
        return seconds

    def multiply(self, count: int) -> None:
        """Go on as `count` sequences of the same past."""
        self.caches = [[copied(layer) for layer in self.caches[0]] for _ in range(count)]


def copied(cache: Cache) -> Cache:
    other = Cache(len(cache.keys), *cache.keys.shape[1:], cache.keys.dtype)
    other.append(cache.keys[: cache.length], cache.values[: cache.length])
    return other


def matrices(part: Any) -> Iterator[np.ndarray]:
    """Every weight of a model that meets rows, as [out, in]."""
    if isinstance(part, tuple):
        for each in part:
            yield from matrices(each)
    elif is_dataclass(part):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, np.ndarray) and field.type.__metadata__[0][0] == "weight":
                yield value.reshape(len(value), -1) if field.name == "o" else value.reshape(-1, value.shape[-1])
            elif is_dataclass(value) or isinstance(value, tuple):
                yield from matrices(value)


class Floor:
    """The products alone, as NumPy does them by itself."""

    def __init__(self, model: npgemma.Model) -> None:
        w = model.weights
        patches = model.config.vision.num_patches
        patch = w.vision.embedding.weight
        seen = [patch.reshape(len(patch), -1), *matrices(w.vision.blocks), w.projector.weight]
        self.prompt = [(m, patches) for m in seen]
        self.prompt += [(m, patches + len(PREFIX)) for m in matrices(w.text.blocks)] + [(w.text.head, 1)]
        self.token = [(m, 1) for m in matrices(w.text.blocks)] + [(w.text.head, 1)]
        rng = np.random.default_rng(0)
        sizes = {(m.shape, rows) for m, rows in self.prompt + self.token}
        self.x = {(shape, rows): rng.standard_normal((rows, shape[1]), np.float32) for shape, rows in sizes}
        self.y = {(shape, rows): np.empty((rows, shape[0]), np.float32) for shape, rows in sizes}

    def products(self, work: list[tuple[np.ndarray, int]]) -> float:
        begin = time.perf_counter()
        for w, rows in work:
            np.matmul(self.x[w.shape, rows], w.T, out=self.y[w.shape, rows])
        return time.perf_counter() - begin


def memory() -> dict[str, float]:
    """Peak resident memory in GB, and how much of what is resident now is no map of a file."""
    unit = 1 if platform.system() == "Darwin" else 1024
    found = {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found["own_gb"] = int(lines["RssAnon"].split()[0]) * 1024 / 1e9
    return found


# ------------------------------------------------------------------------------------- tasks, each a process of its own


def task_side_by_side(folder: Path, repeats: int) -> dict[str, Any]:
    """The floor, packed weights and widened ones in turns; then 8 sequences at once."""
    resident_load, resident = timed(lambda: npgemma.load(folder, resident=True))
    floor, runs = Floor(resident), {"packed": Run(npgemma.load(folder)), "resident": Run(resident)}
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    for _ in range(repeats):
        note("floor first", floor.products(floor.prompt))
        time.sleep(REST)
        for name, run in runs.items():
            figures = run.first()
            note(f"{name} first", figures["first"])
            note(f"{name} vision", figures["vision"])
    for _ in range(4 * repeats):
        note("floor step", floor.products(floor.token))
        time.sleep(REST)
        for name, run in runs.items():
            note(f"{name} step", run.step())
    for name, run in runs.items():
        run.multiply(8)
        for _ in range(2 * repeats):
            note(f"{name} step of 8", run.step())
    return {name: median(times) for name, times in found.items()} | {"resident load": resident_load}


def task_alone(folder: Path, dtype: str, steps: int, image_size: int) -> dict[str, Any]:
    """Packed weights in a fresh process: load, the first token cold and warm, steps, memory."""
    load, model = timed(lambda: npgemma.load(folder, dtype))
    if image_size != model.config.vision.image_size:
        model = at_size(model, image_size)
    run = Run(model)
    figures: dict[str, Any] = {"load": load, "cold": run.first()["first"]}
    if steps:
        figures["step"] = median(run.step() for _ in range(steps))
    figures["tokens"] = run.tokens
    return figures | memory()


def at_size(model: npgemma.Model, image_size: int) -> npgemma.Model:
    """The model for pictures of another size: with positions as long as it takes."""
    vision = replace(model.config.vision, image_size=image_size)
    embedding = model.weights.vision.embedding
    longer = replace(embedding, position=np.resize(embedding.position, (vision.num_patches, vision.hidden_size)))
    weights = replace(model.weights, vision=replace(model.weights.vision, embedding=longer))
    return npgemma.Model(model.folder, replace(model.config, vision=vision), weights, model.dtype)


def task_caption(folder: Path) -> dict[str, Any]:
    """Twenty tokens about a picture, greedily."""
    model = npgemma.load(folder)
    return {"tokens": model.generate_ids(input_ids(model), pixels(model), 20, eos_ids=())}


def task_transformers(folder: Path, dtype: str, firsts: int, steps: int) -> dict[str, Any]:
    """The same prompt in transformers: load, first token cold and warm, steps, memory."""
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    torch.set_grad_enabled(False)
    kind = getattr(torch, dtype)
    load, model = timed(lambda: PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=kind))
    own = npgemma.load(folder)
    ids, picture = torch.from_numpy(input_ids(own))[None], torch.from_numpy(pixels(own)).to(kind)

    def first() -> Any:
        types = torch.zeros_like(ids)
        return model(input_ids=ids, pixel_values=picture, token_type_ids=types, use_cache=True, logits_to_keep=1)

    figures: dict[str, Any] = {"load": load}
    for name in ("cold", "first")[:firsts]:
        figures[name], out = timed(first)
    past, tokens, times = out.past_key_values, [int(out.logits[0, -1].argmax())], []
    for _ in range(steps):
        last = torch.tensor([[tokens[-1]]])
        seconds, out = timed(lambda last=last: model(input_ids=last, past_key_values=past, use_cache=True))
        times.append(seconds)
        tokens.append(int(out.logits[0, -1].argmax()))
    return figures | {"step": median(times), "tokens": tokens} | memory()


TASKS = {f.__name__.removeprefix("task_"): f for f in (task_side_by_side, task_alone, task_caption, task_transformers)}


# ---------------------------------------------------------------------------------------------------------- processes


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in NOT_A_USERS}


def in_a_process(task: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    """What a task finds, and `whole`: the seconds from starting its process to its end."""
    print(f"  {task} {' '.join(map(str, arguments.values()))}", file=sys.stderr, flush=True)
    read_once(folder)
    command = [sys.executable, __file__, str(folder), "--task", task, "--arguments", json.dumps(arguments)]
    whole, done = timed(lambda: subprocess.run(command, env=environment(), capture_output=True, text=True, check=False))
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
    library = ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    kernels = getattr(library, "scipy_openblas_get_corename64_", None)
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


def measure(folder: Path, rounds: int, repeats: int) -> dict[str, Any]:
    """Every figure, by the name of its task."""
    others = [f"transformers {dtype}" for dtype in ("float32", "bfloat16") if find_spec("transformers")]
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        turns: list[tuple[str, str, dict[str, Any]]] = [
            ("side by side", "side_by_side", {"repeats": repeats}),
            ("alone", "alone", {"dtype": "float32", "steps": 19, "image_size": 224}),
            *[(name, "transformers", {"dtype": name.split()[1], "firsts": 2, "steps": 19}) for name in others],
            ("caption", "caption", {}),
        ]
        if others:
            turns.append(("caption transformers", "transformers", {"dtype": "bfloat16", "firsts": 1, "steps": 19}))
        for name, task, arguments in turns:
            found.setdefault(name, []).append(in_a_process(task, folder, **arguments))
    figures = {name: medians(each) for name, each in found.items()}
    for size in (448, 896):
        figures[f"alone {size}"] = in_a_process("alone", folder, dtype="float32", steps=3, image_size=size)
    figures["float64"] = in_a_process("alone", folder, dtype="float64", steps=1, image_size=224)
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
    for figures in found.values():
        figures["first token, x the bare products"] = figures["first token, s"] / own["floor first"]
        figures["step, x the bare products"] = figures["step, s"] / own["floor step"]
    return found


WHOLE = "process of 20 tokens, s"
ROWS = (
    *("load, s", "first token, s", "of that, the picture", "step, s", "step of 8 sequences, s"),
    *("peak memory, GB", WHOLE, "first token, x the bare products", "step, x the bare products"),
    "tokens a second of 8, x those of 1",
)


def report(f: dict[str, Any]) -> str:
    """The table, and a line for each thing that has but one figure."""
    found = columns(f)
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for row in ROWS:
        cells = (f"{figures[row]:.3g}" if row in figures else "" for figures in found.values())
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append("")
    for size in (448, 896):
        big = f[f"alone {size}"]
        lines.append(f"{size} pixels: first token {big['cold']:.1f} s, peak memory {big['peak_gb']:.2f} GB")
    exact, alone = f["float64"], f["alone"]
    lines += [
        f"float64: first token {exact['cold']:.1f} s, peak memory {exact['peak_gb']:.2f} GB",
        f"first token of a process: {alone['cold']:.1f} s",
        f"import npgemma, beyond NumPy: {f['import']['seconds']:.3f} s",
        f"npgemma --help: {f['help']['seconds']:.2f} s; npgemma demo: {f['demo']['seconds']:.2f} s",
    ]
    for dtype in ("float32", "bfloat16"):
        if other := f.get(f"transformers {dtype}"):
            pairs = list(zip(alone["tokens"], other["tokens"], strict=False))
            same = sum(a == b for a, b in pairs)
            lines.append(f"tokens that are those of transformers {dtype}: {same} of {len(pairs)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="first tokens in a process (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.task:
        print(json.dumps(TASKS[a.task](a.folder, **a.arguments)))
        return
    begin = time.perf_counter()
    figures = measure(a.folder, a.rounds, a.repeats)
    print(f"{machine()}; {(time.perf_counter() - begin) / 60:.0f} minutes\n\n{report(figures)}")
    if a.json:
        a.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()

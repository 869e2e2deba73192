"""What tools/bench.py measures of a model, each task in a process of its own: FOLDER TASK ARGUMENTS, prints JSON."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import npgemma
from npgemma.api.batch import answer_jobs
from npgemma.golden.compare import compare
from npgemma.golden.dump import Dump, read_dump
from npgemma.golden.file import read_golden
from npgemma.golden.record import record
from npgemma.io.jobs import Job
from npgemma.layers.tree import leaves
from npgemma.models.gemma import new_caches
from npgemma.models.paligemma import image_features, make_prompt
from npgemma.models.prefix_lm import start, step

PREFIX = [2, 603, 659, 108]  # <bos>, two words, newline
REST = 0.3  # seconds after BLAS was at work: its threads wait for more, on the cores, for 0.12


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = f()
    return time.perf_counter() - begin, result


def pixels(model: npgemma.VisionLanguageModel) -> np.ndarray:
    side = model.config.vision.image_size
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(model.dtype)


def input_ids(model: npgemma.VisionLanguageModel) -> np.ndarray:
    return np.array([model.config.image_token_index] * model.config.vision.num_patches + PREFIX)


class Run:
    """One sequence: `first` prefills it and chooses a token, `step` the next one."""

    def __init__(self, model: npgemma.VisionLanguageModel, capacity: int = 64) -> None:
        self.model = model
        self.ids, self.pixels = input_ids(model), pixels(model)
        self.capacity = len(self.ids) + capacity

    def first(self) -> dict[str, float]:
        w = self.model.weights
        vision, features = timed(lambda: image_features(w, self.pixels))
        prompt = make_prompt(w, self.ids, np.zeros_like(self.ids), features)
        self.caches = [new_caches(w.text, self.capacity, self.model.dtype)]
        rest, scores = timed(lambda: start(w.text, [prompt], self.caches))
        self.tokens = [int(scores[0].argmax())]
        return {"first": vision + rest, "vision": vision}

    def step(self) -> float:
        last = np.array(self.tokens[-1:] * len(self.caches))
        seconds, scores = timed(lambda: step(self.model.weights.text, last, self.caches))
        self.tokens.append(int(scores[0].argmax()))
        return seconds

    def multiply(self, count: int) -> None:
        """Go on as `count` sequences of the same past."""
        self.caches = [[layer.copy() for layer in self.caches[0]] for _ in range(count)]


def matrices(part: Any) -> list[np.ndarray]:
    """Every weight of a model that meets rows, as [out, in]."""
    weights = ((leaf.axes, leaf.value) for leaf in leaves(part) if leaf.kind == "weight")
    return [w.reshape(len(w), -1) if axes == "D N H" else w.reshape(-1, w.shape[-1]) for axes, w in weights]


class Floor:
    """The products alone, as NumPy does them by itself."""

    def __init__(self, model: npgemma.VisionLanguageModel) -> None:
        w = model.weights
        patches = model.config.vision.num_patches
        patch = w.vision.embedding.weight
        seen = [patch.reshape(len(patch), -1), *matrices(w.vision.blocks), w.projector.weight]
        self.prompt = [(m, patches) for m in seen]
        head = w.text.embedding if w.text.head is None else w.text.head
        self.prompt += [(m, patches + len(PREFIX)) for m in matrices(w.text.blocks)] + [(head, 1)]
        self.token = [(m, 1) for m in matrices(w.text.blocks)] + [(head, 1)]
        rng = np.random.default_rng(0)
        sizes = {(m.shape, rows) for m, rows in self.prompt + self.token}
        self.x = {(shape, rows): rng.standard_normal((rows, shape[1]), np.float32) for shape, rows in sizes}
        self.y = {(shape, rows): np.empty((rows, shape[0]), np.float32) for shape, rows in sizes}

    def work(self, products: list[tuple[np.ndarray, int]], times: int = 1) -> tuple[int, int]:
        """The multiplications and additions of products, and how many numbers of matrices they read."""
        return 2 * times * sum(m.size * rows for m, rows in products), sum(m.size for m, _ in products)

    def products(self, work: list[tuple[np.ndarray, int]]) -> float:
        begin = time.perf_counter()
        for w, rows in work:
            np.matmul(self.x[w.shape, rows], w.T, out=self.y[w.shape, rows])
        return time.perf_counter() - begin


def rates() -> dict[str, float]:
    """What this machine does at most: float32 multiplications and additions a second, and bytes read a second.

    The product is large, and the matrix of the other does not fit into a cache.
    """
    a, b = np.ones((2, 2048, 2048), np.float32)
    flat, x = np.ones((1 << 17, 2048), np.float32), np.ones(2048, np.float32)
    product, reading = timed(lambda: a @ b)[0], timed(lambda: flat @ x)[0]
    time.sleep(REST)
    return {"flops": 2 * 2048**3 / product, "bandwidth": flat.nbytes / reading}


def memory() -> dict[str, float]:
    """Peak resident memory in GB, and how much of what is resident now is no map of a file."""
    unit = 1 if platform.system() == "Darwin" else 1024
    found = {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found["own_gb"] = int(lines["RssAnon"].split()[0]) * 1024 / 1e9
    return found


def task_side_by_side(folder: Path, repeats: int) -> dict[str, Any]:
    """The floor, packed weights and widened ones in turns; then 8 sequences at once."""
    resident_load, resident = timed(lambda: npgemma.load(folder, resident=True))
    floor, runs = Floor(resident), {"packed": Run(npgemma.load(folder)), "resident": Run(resident)}
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    rates()
    for _ in range(repeats):
        for name, rate in rates().items():
            note(name, rate)
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
    work = {"first": floor.work(floor.prompt), "step": floor.work(floor.token), "step of 8": floor.work(floor.token, 8)}
    return {name: median(times) for name, times in found.items()} | {"resident load": resident_load, "work": work}


def task_auto(folder: Path, repeats: int) -> dict[str, Any]:
    """Steps that find their matrices widened by the first of them, and the bare products with the same copies."""
    model = npgemma.load(folder, resident="auto")
    run = Run(model)
    model.guard.check_memory([run.capacity], 1)  # sets the limit of copies
    model.guard.copies.steps = 2
    run.first()
    found = {"first step": run.step(), "step that copies": max(run.step() for _ in range(3))}
    copies = list(model.guard.copies.arrays.values())
    widths = {copy.shape[-1]: np.ones(copy.shape[-1], np.float32) for copy in copies}
    steps, floors = [], []
    for _ in range(4 * repeats):
        floors.append(timed(lambda: [np.dot(half, widths[half.shape[1]]) for copy in copies for half in copy])[0])
        time.sleep(REST)
        steps.append(run.step())
    run.multiply(8)
    eight = median(run.step() for _ in range(2 * repeats))
    return found | {"step": median(steps), "floor step": median(floors), "step of 8": eight} | memory()


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


def at_size(model: npgemma.VisionLanguageModel, image_size: int) -> npgemma.VisionLanguageModel:
    """The model for pictures of another size: with positions as long as it takes."""
    vision = replace(model.config.vision, image_size=image_size)
    embedding = model.weights.vision.embedding
    longer = replace(embedding, position=np.resize(embedding.position, (vision.num_patches, vision.hidden_size)))
    weights = replace(model.weights, vision=replace(model.weights.vision, embedding=longer))
    return npgemma.VisionLanguageModel(model.folder, replace(model.config, vision=vision), weights, model.dtype)


def task_caption(folder: Path) -> dict[str, Any]:
    """Twenty tokens about a picture, greedily."""
    model = npgemma.load(folder)
    return {"tokens": model.generate_ids(input_ids(model), pixels(model), 20, eos_ids=())}


def task_batch(folder: Path, pictures: int, in_flight: int) -> dict[str, Any]:
    """Pictures a minute, twenty tokens about each."""
    model = npgemma.load(folder)
    with TemporaryDirectory() as written:
        for i in range(pictures):
            noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(noise).save(f"{written}/{i}.png")
        jobs = [Job(i, (f"{i}.png",), "caption en", Path(written)) for i in range(pictures)]
        seconds, answers = timed(lambda: list(answer_jobs(model, jobs, in_flight, max_new_tokens=20)))
    tokens = sum(len(answer.generation.token_ids) for answer in answers)
    return {"a minute": 60 * pictures / seconds, "tokens": tokens} | memory()


def task_golden(folder: Path) -> dict[str, Any]:
    """Recording a golden file, and holding the file against itself as a dump."""
    model = npgemma.load(folder)
    picture = npgemma.sample_picture()
    with TemporaryDirectory() as written:
        path = Path(written) / "golden.safetensors"
        write, _ = timed(lambda: record(model, [picture], "caption en", path))
        golden_memory = memory()
        times = [timed(lambda: compare(read_golden(path), read_truth(path)))[0] for _ in range(3)]
        return golden_memory | {"write": write, "compare": median(times), "bytes": path.stat().st_size}


def read_truth(path: Path) -> Dump:
    return Dump({name: x for name, x in read_dump(path).tensors.items() if "/" not in name})


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


TASKS = {
    f.__name__.removeprefix("task_"): f
    for f in (task_side_by_side, task_auto, task_alone, task_caption, task_batch, task_golden, task_transformers)
}


if __name__ == "__main__":
    _, folder, task, arguments = sys.argv
    if task in ("train", "peft", "steps"):
        import bench_training

        run = getattr(bench_training, f"task_{task}")
    else:
        run = TASKS[task]
    print(json.dumps(run(Path(folder), **json.loads(arguments))))

"""How many pictures and texts an encoder reads a second, beside the bare products and transformers, in one process.

    python tools/make_checkpoint.py /tmp/vit --model vit-base-patch16-224 --dtype float32
    python tools/bench_encoders.py /tmp/vit
    python tools/bench_encoders.py /tmp/so400m --batch 4 --rounds 3

The contestants take turns, and a figure is a median over the rounds. A run is repeated if other
processes took more than a twentieth of the processor meanwhile; the table says what share they took. This is for Linux,
where `nice -n -20` before the command keeps others away. Everything is float32, on as many threads as there are cores.

- Bare products: np.matmul of every matrix of the blocks with all rows of the batch, and for each picture or text the
  products of attention, q k^T and probabilities v, of all heads. Nothing else.
- transformers: with attn_implementation 'eager' and 'sdpa'; the faster counts.
- Memory: the peak of a process that only loads the model and embeds or classifies pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench import environment, machine, read_once
from bench_tasks import REST, matrices, timed

import npgemma
from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder

BUSY = 0.05  # a larger share of the processor for other processes disturbs a run
TRIES = 3  # of a run that is disturbed
PEAKS = ((1, 1), (16, 16), (64, 16))  # pictures, and how many run at a time
TICK = os.sysconf("SC_CLK_TCK")

Contestants = dict[str, Callable[[], object]]


def pixels(model: Classifier | DualEncoder, count: int) -> np.ndarray:
    side = model.config.vision.image_size
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)


def token_ids(model: DualEncoder, count: int) -> np.ndarray:
    """Random tokens; the last of each text is the end token, which CLIP looks for."""
    text = model.config.text
    ids = np.random.default_rng(0).integers(0, text.vocab_size - 2, (count, text.max_position_embeddings))
    ids[:, -1] = model.config.eos_token_id
    return ids


class Floor:
    """The products of an encoder's blocks alone, as NumPy does them by itself."""

    def __init__(self, blocks: tuple[Any, ...], sequences: int, rows: int) -> None:
        heads, width, _ = blocks[0].attn.q.shape
        rng = np.random.default_rng(0)

        def noise(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        self.weights = matrices(blocks)
        self.x = {size: noise(sequences * rows, size) for size in {w.shape[1] for w in self.weights}}
        self.y = {size: noise(sequences * rows, size) for size in {w.shape[0] for w in self.weights}}
        self.q, self.v = noise(sequences, heads, rows, width), noise(sequences, heads, rows, width)
        self.k, self.scores = noise(sequences, heads, width, rows), noise(heads, rows, rows)
        self.heads, self.layers = noise(heads, rows, width), len(blocks)

    def matrices(self) -> None:
        for w in self.weights:
            np.matmul(self.x[w.shape[1]], w.T, out=self.y[w.shape[0]])

    def attention(self) -> None:
        for _ in range(self.layers):
            for q, k, v in zip(self.q, self.k, self.v, strict=True):
                np.matmul(q, k, out=self.scores)
                np.matmul(self.scores, v, out=self.heads)

    def __call__(self) -> None:
        self.matrices()
        self.attention()


def own(model: Classifier | DualEncoder, batch: int) -> dict[str, Contestants]:
    """npgemma and the bare products, for pictures and for texts."""
    picture = pixels(model, batch)
    if isinstance(model, Classifier):
        rows = len(model.weights.embedding.position)
        floor = Floor(model.weights.blocks, batch, rows)
        return {"pictures": {BARE: floor, OURS: lambda: model.forward(picture)}}
    w, ids = model.weights, token_ids(model, batch)
    return {
        "pictures": {
            BARE: Floor(w.vision.blocks, batch, len(w.vision.embedding.position)),
            OURS: lambda: model.functions.encode_images(w, picture),
        },
        "texts": {
            BARE: Floor(w.text.blocks, batch, ids.shape[1]),
            OURS: lambda: model.functions.encode_texts(w, ids, model.dtype),
        },
    }


def others(folder: Path, model: Classifier | DualEncoder, batch: int, attention: str) -> dict[str, Contestants]:
    """transformers with the same weights, pictures and texts."""
    import torch
    from transformers import AutoModel, ViTForImageClassification

    torch.set_grad_enabled(False)
    torch.set_num_threads(os.cpu_count() or 1)
    kind = ViTForImageClassification if isinstance(model, Classifier) else AutoModel
    other = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    picture, name = torch.from_numpy(pixels(model, batch)), f"transformers {attention}"
    if isinstance(model, Classifier):
        return {"pictures": {name: lambda: other(pixel_values=picture)}}
    ids = torch.from_numpy(token_ids(model, batch))
    return {
        "pictures": {name: lambda: other.get_image_features(pixel_values=picture)},
        "texts": {name: lambda: other.get_text_features(input_ids=ids)},
    }


def others_work() -> float:
    """The seconds that all cores have worked so far, for processes that are not this one."""
    spent = [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(spent) - spent[3] - spent[4]) / TICK - time.process_time()  # without idle and waiting


def watched(run: Callable[[], object]) -> tuple[float, float]:
    """The share of the processor that others took while `run` ran, and its seconds."""
    before = others_work()
    seconds, _ = timed(run)
    return max(0.0, others_work() - before) / seconds / (os.cpu_count() or 1), seconds


def least_disturbed(run: Callable[[], object]) -> tuple[float, float]:
    """What `watched` gives for the first run that is quiet, or else for the quietest of all tries."""
    found = []
    for _ in range(TRIES):
        time.sleep(REST)
        found.append(watched(run))
        if found[-1][0] < BUSY:
            break
    return min(found)


def take_turns(contestants: Contestants, rounds: int) -> dict[str, tuple[float, float]]:
    """For each, the median over the rounds of the share that others took, and of the seconds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            found.setdefault(name, []).append(least_disturbed(run))
    return {name: (median(share for share, _ in each), median(s for _, s in each)) for name, each in found.items()}


def peak(folder: Path, count: int, at_a_time: int) -> float:
    """The peak memory, in GB, of a process that reads so many pictures."""
    command = [sys.executable, __file__, str(folder), "--peak", str(count), str(at_a_time)]
    return float(subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout)


def print_peak(folder: Path, count: int, at_a_time: int) -> None:
    model = npgemma.load(folder)
    pictures = list(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8))
    if isinstance(model, Classifier):
        model.classify(pictures, batch_size=at_a_time)
    elif isinstance(model, DualEncoder):
        model.encode_images(pictures, batch_size=at_a_time)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 / 1e9)  # ru_maxrss has the peak of the process that started this one


BARE, OURS = "bare products", "npgemma"


def report(figures: dict[str, dict[str, tuple[float, float]]], batch: int) -> str:
    """For each subject, a line for each contestant: how many a second, and how its time compares to the others'."""
    lines = [f"| batch of {batch} | a second | time, x bare products | time, x npgemma | others |", "|---" * 5 + "|"]
    for subject, found in figures.items():
        for name, (share, seconds) in found.items():
            ratios = f"{seconds / found[BARE][1]:.3f} | {seconds / found[OURS][1]:.3f}"
            lines.append(f"| {subject}, {name} | {batch / seconds:.3g} | {ratios} | {share:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure")
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if environment() != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())
    if a.peak:
        print_peak(a.folder, *a.peak)
        return
    read_once(a.folder)
    model = npgemma.load(a.folder)
    if not isinstance(model, Classifier | DualEncoder):
        parser.error(f"{a.folder} is not an encoder; bench.py measures it")
    contestants = own(model, a.batch)
    for attention in ("eager", "sdpa") if find_spec("transformers") else ():
        for subject, each in others(a.folder, model, a.batch, attention).items():
            contestants[subject] |= each
    figures = {subject: take_turns(each, a.rounds) for subject, each in contestants.items()}
    peaks = {f"{count} pictures, {size} at a time": peak(a.folder, count, size) for count, size in PEAKS}
    print(f"{machine()}\n\n{report(figures, a.batch)}\n")
    print("\n".join(f"peak memory of {what}: {gb:.2f} GB" for what, gb in peaks.items()))
    if a.json:
        a.json.write_text(json.dumps({"machine": machine(), "shares and seconds": figures, "peaks": peaks}, indent=1))


if __name__ == "__main__":
    main()

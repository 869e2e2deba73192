"""Train the embedded pair of towers from random weights, with NumPy alone: SigLIP on pictures of the shape world.

    python tools/train_siglip.py RUN      # writes RUN/log.jsonl and states; resumes where it stopped
    python tools/train_siglip.py RUN --export npgemma/assets/tiny-siglip

The loss is SigLIP's, -sum log sigmoid(z l) over all pictures and texts of a step. But z = 1 wherever a text is true of
a picture, not only where it was made for it: with so few shapes, a text is true of many pictures.

While training, two small extra heads ask every patch of the vision tower for the kind and the colour of what covers it:
without them, telling a star from a cross takes many times as long. They are thrown away with the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from evaluate_pair import Npgemma, best_is_right, captioned, encoded, labelled
from muon import HeldRate, Muon
from pair_world import Text, say, shown, unseen_scenes
from patch_targets import GRID, SIDE, patch_targets
from PIL.Image import Resampling
from shape_world import COLORS, SHAPES, Thing, draw_scene

from npgemma.checkpoints import siglip as checkpoint
from npgemma.checkpoints.model_writing import as_stored, write_model
from npgemma.io.siglip_tokenizer import read_siglip_tokenizer
from npgemma.io.text_rows import text_rows
from npgemma.layers.activations import sigmoid
from npgemma.layers.linear import linear, linear_backward, total
from npgemma.layers.losses import cross_entropy, cross_entropy_backward
from npgemma.layers.norms import unit_backward
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Kept
from npgemma.layers.tree import Leaf, leaves, map_tree
from npgemma.models import siglip, siglip_grad
from npgemma.models.siglip import Siglip
from npgemma.training.loop import Recipe, StepGradient, Training
from npgemma.training.state import claimed, newest

ASSETS = Path(__file__).resolve().parent.parent / "npgemma" / "assets" / "tiny-siglip"
LOGGED = 50  # steps to a line of the exported log
EXAM_EVERY, EXAM_PICTURES, EXAM_CAPTIONS = 250, 200, 100
SCALE, BIAS = 10, -3  # at the beginning: about one text in twenty is true
PATCHES = 4  # the weight of the loss of the patches
F32 = np.dtype(np.float32)


# ------------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Weights:
    """A pair of towers, and the two heads that ask a patch which shape covers it (0 = none), and its colour."""

    model: Siglip
    kind: Array
    kind_bias: Array
    color: Array
    color_bias: Array


def random_weights(seed: int) -> Weights:
    """Weights as SigLIP's are drawn: matrices and tables are normal, norms the identity, biases 0."""
    model = map_tree(partial(drawn, seed=seed), checkpoint.blank(checkpoint.read_config(ASSETS)))
    width = len(model.vision.norm.weight)
    heads = [np.zeros((count, width), F32) for count in (1 + len(SHAPES), len(COLORS))]
    scores = {"log_scale": np.array(np.log(SCALE), F32), "bias": np.array(BIAS, F32)}
    return Weights(
        replace(model, **scores), heads[0], np.zeros(len(heads[0]), F32), heads[1], np.zeros(len(COLORS), F32)
    )


def drawn(leaf: Leaf, seed: int) -> Array:
    """An array at the beginning. The standard deviation of a matrix is sqrt(2 / (in + out)), as Glorot's."""
    shape = leaf.value.shape
    name = leaf.path.rpartition(".")[2]
    if leaf.owner.__name__ == "LayerNorm":
        return np.full(shape, name == "weight", F32)
    if name.endswith("bias") or not shape:
        return np.zeros(shape, F32)
    deviation = shape[-1] ** -0.5
    if is_matrix(leaf.path):
        deviation = (2 / sum(as_matrix(leaf.path, np.empty(shape)).shape)) ** 0.5
    elif len(shape) == 4:  # patches
        deviation = np.prod(shape[1:]) ** -0.5
    rng = np.random.default_rng([seed, crc32(leaf.path.encode())])
    return (rng.standard_normal(shape) * deviation).astype(F32)


def is_matrix(path: str) -> bool:
    """Whether an array is a matrix of a layer, which Muon moves."""
    return ".blocks[" in path and path.endswith((".q", ".k", ".v", ".o", ".fc1", ".fc2"))


def as_matrix(path: str, x: Array) -> Array:
    """A view of a matrix of a layer with two axes, out and in."""
    return x.reshape(len(x), -1) if path.endswith((".o", ".fc1", ".fc2")) else x.reshape(-1, x.shape[-1])


def views(tree: Any) -> dict[str, Array]:
    """The arrays of a tree by path: matrices of layers with two axes, everything else with one."""
    return {
        leaf.path: as_matrix(leaf.path, leaf.value) if is_matrix(leaf.path) else leaf.value.reshape(-1)
        for leaf in leaves(tree)
    }


# ---------------------------------------------------------------------------------------------------------------- data


class Batch(NamedTuple):
    """Pixel values, what the patches are covered with [picture, patch], and the things in the pictures."""

    pixels: Array
    kind: Array
    color: Array
    things: list[tuple[Thing, ...]]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run, small, the kind and colour that covers each patch, and what they show."""

    pixels: np.ndarray  # B Y X C, 8 bits
    covers: np.ndarray  # kind or colour, B, row, column
    things: list[tuple[Thing, ...]]

    def batch(self, rng: Random, count: int) -> Batch:
        """Some of the pictures. Half of them are mirrored, which changes no text's truth."""
        chosen = [(i, rng.choice((1, -1))) for i in rng.sample(range(len(self.things)), count)]
        small = np.stack([self.pixels[i, :, ::step] for i, step in chosen])
        kind, color = np.stack([self.covers[:, i, :, ::step] for i, step in chosen], 1).reshape(2, count, -1)
        pixels = np.ascontiguousarray(small.transpose(0, 3, 1, 2), F32) / F32.type(127.5) - 1
        return Batch(pixels, kind, color, [self.things[i] for i, _ in chosen])


def draw_pictures(count: int, seed: int) -> Pictures:
    pixels, covers = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((2, count, GRID, GRID), np.int64)
    things = []
    for i in range(count):
        scene = draw_scene(Random(seed * 1_000_003 + i))
        pixels[i] = scene.image.resize((SIDE, SIDE), Resampling.BICUBIC)
        kind, color, *_ = patch_targets(scene)
        kind[kind > len(SHAPES)] = 0  # a character
        covers[:, i] = np.reshape([kind, color], (2, GRID, GRID))
        things.append(scene.things)
    return Pictures(pixels, covers, things)


def signs(things: list[tuple[Thing, ...]], texts: list[Text]) -> Array:
    """z [picture, text]: 1 where the text is true, -1 elsewhere."""
    facts = [shown(each) for each in things]
    return np.array([[1 if text.wanted <= fact else -1 for text in texts] for fact in facts], F32)


@cache
def tokenizer() -> Any:
    return read_siglip_tokenizer(ASSETS, checkpoint.read_config(ASSETS).text.vocab_size)


def id_rows(texts: list[str]) -> Array:
    return text_rows(tokenizer(), texts, checkpoint.read_config(ASSETS).text.max_position_embeddings).ids


# --------------------------------------------------------------------------------------------------------------- steps


def loss_and_gradient(p: Weights, batch: Batch, ids: Array, z: Array) -> tuple[float, Weights]:
    """The loss of the pairs and PATCHES times that of the patches, forwards and backwards."""
    model, saw = p.model, Kept(siglip_grad.needs())
    images, texts = siglip.encode_images(model, batch.pixels, saw), siglip.encode_texts(model, ids, F32, saw)
    scale, cosine = siglip.scale(model), images @ texts.T
    scores = cosine * scale + float(model.bias)
    loss = float(np.logaddexp(0, -z * scores).sum()) / len(ids)
    dscores = -z * sigmoid(-z * scores) / F32.type(len(ids))
    text = siglip_grad.encode_texts_backward(model, ids, saw, dscores.T @ images * scale)
    rows, head = saw["vision.norm"], saw.inside("vision.head")
    drow = unit_backward(saw["vision.head.out"][:, 0], dscores @ texts * scale)
    drows, vision_head = siglip_grad.pooling_head_backward(model.vision_head, rows, head, drow)
    for name, targets in (("kind", batch.kind), ("color", batch.color)):
        patch_loss, dseen, w, bias = patch_head(rows, getattr(p, name), getattr(p, f"{name}_bias"), targets)
        loss, drows, p = loss + patch_loss, drows + dseen, replace(p, **{name: w, f"{name}_bias": bias})
    vision = siglip_grad.vision_tower_backward(model.vision, batch.pixels, saw.inside("vision"), drows)
    dlog_scale, dbias = np.array((dscores * cosine).sum() * scale, F32), np.array(dscores.sum(), F32)
    return loss, replace(p, model=Siglip(vision, vision_head, text, dlog_scale, dbias))


def patch_head(rows: Array, w: Array, bias: Array, targets: Array) -> tuple[float, Array, Array, Array]:
    """PATCHES times the mean cross-entropy of rows [picture, patch], and its gradients; -1 is a patch without any."""
    asked = targets >= 0
    logits = linear(rows[asked], w, bias)
    weights = np.full(len(logits), PATCHES / len(logits))
    dy = cross_entropy_backward(logits, targets[asked], weights)
    drows = np.zeros_like(rows)
    drows[asked], dw = linear_backward(rows[asked], w, dy)
    return cross_entropy(logits, targets[asked], weights), drows, dw, total(bias, dy)


@dataclass(frozen=True)
class Lessons:
    """What a run learns from: `pictures` of a pool each step, with `texts` texts about each of them."""

    weights: Weights
    pool: Pictures
    pictures: int
    texts: int
    seed: int

    def gradient(self, step: int) -> StepGradient:
        rng = Random(self.seed * 1_000_003 + step)
        batch = self.pool.batch(rng, self.pictures)
        said = [text for each in batch.things for text in say(rng, each, self.texts)]
        ids = id_rows([text.words for text in said])
        loss, gradient = loss_and_gradient(self.weights, batch, ids, signs(batch.things, said))
        return StepGradient(loss, len(said), views(gradient))

    def exam(self, last: bool) -> list[Mapping[str, Any]]:
        """The shares of right answers, with the weights rounded to bfloat16, as they are saved."""
        model = Npgemma(ASSETS)
        model.weights = map_tree(rounded, self.weights.model)
        named, found = (
            (model.logits(*encoded(model, case)), case.right)
            for case in (labelled(unseen_scenes(EXAM_PICTURES, 1)), captioned(EXAM_CAPTIONS, 0))
        )
        right = {
            "zero_shot": best_is_right(*named),
            "captions_found": best_is_right(*found),
            "pictures_found": best_is_right(*(each.T for each in found)),
        }
        return [{name: round(float(each.mean()), 4) for name, each in right.items()}]


def rounded(leaf: Leaf) -> Array:
    return (as_stored(leaf.value, np.empty(leaf.value.shape, np.uint16)).astype(np.uint32) << 16).view(F32)


def train(folder: Path, facts: dict[str, Any]) -> None:
    """Train on `pool` pictures, or go on."""
    weights = random_weights(facts["seed"])
    lessons = Lessons(
        weights, draw_pictures(facts["pool"], facts["seed"]), facts["pictures"], facts["texts"], facts["seed"]
    )
    recipe = Recipe(
        optimizer=Muon(),
        schedule=HeldRate(facts["rate"], facts["steps"]),
        decay=0.0,
        decayed=frozenset(),
        clip=1.0,
        gradient=lessons.gradient,
        evaluate=lessons.exam,
        evaluate_every=EXAM_EVERY,
        origin=lambda step: "",
    )
    with claimed(folder, facts) as log:
        Training(recipe, views(weights), folder, facts, log, EXAM_EVERY, print).run()


def export(folder: Path, out: Path, facts: dict[str, Any]) -> None:
    """The newest state as a Hugging Face folder, weights in bfloat16, with the configs and tokenizer of the old one.

    The log has the means of LOGGED steps, and the exams.
    """
    state = newest(folder, facts)
    assert state is not None, f"{folder} holds no state of this run"
    layout = checkpoint.hf_layout(checkpoint.read_config(ASSETS))
    tensors = {name: np.empty(shape, np.uint16) for name, shape in layout.shapes.items()}
    for stored in layout.stored:
        x = state.arrays[f"weights.model.{stored.leaf.path}"].reshape(stored.leaf.value.shape)
        part = stored.part(tensors[stored.name])
        part[...] = as_stored(stored.from_field(x), part)
    out.mkdir(exist_ok=True)
    write_model(out, tensors, ASSETS)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
    (out / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in thinned(lines)))


def thinned(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of a log, those of steps as their means over LOGGED steps."""
    waiting: list[dict[str, Any]] = []
    for line in lines:
        if "loss" not in line:
            yield line
            continue
        waiting.append(line)
        if len(waiting) == LOGGED:
            means = {name: round(float(np.mean([each[name] for each in waiting])), 6) for name in ("loss", "gradient")}
            yield {"step": line["step"]} | means | {"rate": round(line["rate"], 6)}
            waiting.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the states and the log")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the newest state as a model, and stop")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pool", type=int, default=8192, help="pictures of the run")
    parser.add_argument("--pictures", type=int, default=64, help="pictures a step")
    parser.add_argument("--texts", type=int, default=2, help="texts about each of them")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    facts = {name: getattr(a, name) for name in ("steps", "pool", "pictures", "texts", "rate", "seed")}
    if a.export:
        export(a.run, a.export, facts)
    else:
        train(a.run, facts)


if __name__ == "__main__":
    main()

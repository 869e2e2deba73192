"""Measure the embedded pair of towers on unseen pictures, and compare npgemma's embeddings with transformers'.

    python tools/evaluate_pair.py [FOLDER] [--dtype float64] [--transformers]

Zero-shot: of 42 texts such as "a blue star", the best for a picture of one shape is to be its label.
Truth: the same texts and pictures of one to three shapes; a text is to have a probability above a half if, and only if,
the picture shows it.
Retrieval: of a hundred pictures of two or three shapes and their captions, each is to find the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pair_world import LABELS, unseen_pairs, unseen_scenes, with_article
from PIL import Image
from shape_world import Scene

from npgemma.checkpoints import siglip as checkpoint
from npgemma.checkpoints.image_processor import read_image_processor
from npgemma.io.model_folder import EMBEDDED_PAIR
from npgemma.io.pixels import pixel_values
from npgemma.io.siglip_tokenizer import read_siglip_tokenizer
from npgemma.io.text_rows import text_rows
from npgemma.models import siglip

HUNDRED, BATCH = 100, 50
PROMPTS = [with_article(label) for label in LABELS]


@dataclass(frozen=True)
class Case:
    """Pictures, texts, and where a text is right for a picture."""

    images: list[Image.Image]
    texts: list[str]
    right: np.ndarray  # picture, text


class Npgemma:
    """A model folder, by npgemma's functions."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.dtype = np.dtype(dtype)
        self.config = checkpoint.read_config(folder)
        tensors = checkpoint.read_tensors(folder / "model.safetensors", self.config)
        self.weights = checkpoint.weights(tensors, self.config)
        self.settings, _ = read_image_processor(folder, self.config.vision)
        self.tokenizer = read_siglip_tokenizer(folder, self.config.text.vocab_size)

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        pixels = pixel_values(images, self.config.vision.image_size, self.settings)
        return siglip.encode_images(self.weights, pixels.astype(self.dtype))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = text_rows(self.tokenizer, texts, self.config.text.max_position_embeddings)
        return siglip.encode_texts(self.weights, rows.ids, self.dtype)

    def logits(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return siglip.logits(self.weights, images, texts)


class Transformers:
    """The same folder, by transformers."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        import torch
        from transformers import SiglipModel, SiglipTokenizer
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.processor = SiglipImageProcessorPil.from_pretrained(folder)
        self.tokenizer = SiglipTokenizer.from_pretrained(folder)
        self.model = SiglipModel.from_pretrained(folder, dtype=self.dtype).eval()

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        return self.rows(self.model.get_image_features, pixels.to(self.dtype))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.rows(self.model.get_text_features, ids)

    def rows(self, encode: Callable, inputs: object) -> np.ndarray:
        with self.torch.no_grad():
            x = encode(inputs).pooler_output
            return (x / x.norm(dim=-1, keepdim=True)).numpy()


def labelled(scenes: Iterable[Scene]) -> Case:
    """Pictures and the texts of all labels."""
    found = [(scene.image, [thing.label for thing in scene.things]) for scene in scenes]
    right = np.array([[label in labels for label in LABELS] for _, labels in found])
    return Case([image for image, _ in found], PROMPTS, right)


def captioned(count: int, seed: int) -> Case:
    """Pictures and their captions."""
    scenes, captions = zip(*unseen_pairs(count, seed), strict=True)
    return Case([scene.image for scene in scenes], list(captions), np.eye(count, dtype=bool))


def cases(pictures: int) -> dict[str, list[Case]]:
    """What a model is measured on: so many pictures of each kind."""
    return {
        "zero-shot": [labelled(unseen_scenes(pictures, 1))],
        "truth": [labelled(unseen_scenes(pictures))],
        "retrieval": [captioned(HUNDRED, seed) for seed in range(pictures // HUNDRED)],
    }


def encoded(model: Npgemma | Transformers, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A row of length 1 for each picture, and for each text."""
    some = [case.images[i : i + BATCH] for i in range(0, len(case.images), BATCH)]
    return np.concatenate([model.images(each) for each in some]), model.texts(case.texts)


def best_is_right(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each row, whether its highest score is in a right place."""
    return right[np.arange(len(scores)), scores.argmax(1)]


def measured(model: Npgemma, asked: dict[str, list[Case]]) -> dict[str, np.ndarray]:
    """Whether each answer is right, by kind of question."""
    scored = {
        kind: [(model.logits(*encoded(model, each)), each.right) for each in some] for kind, some in asked.items()
    }
    found = {
        "zero-shot: the label of a picture": [best_is_right(scores, right) for scores, right in scored["zero-shot"]],
        "truth: a label in a picture": [(scores > 0)[right] for scores, right in scored["truth"]],
        "truth: a label not in a picture": [(scores < 0)[~right] for scores, right in scored["truth"]],
        "retrieval: the caption of a picture": [best_is_right(scores, right) for scores, right in scored["retrieval"]],
        "retrieval: the picture of a caption": [best_is_right(s.T, right.T) for s, right in scored["retrieval"]],
    }
    return {kind: np.concatenate(each) for kind, each in found.items()}


def farthest(model: Npgemma, oracle: Transformers, asked: dict[str, list[Case]]) -> float:
    """The largest difference between two embeddings of a picture or a text."""
    each = [case for some in asked.values() for case in some]
    pairs = [pair for case in each for pair in zip(encoded(model, case), encoded(oracle, case), strict=True)]
    return max(float(abs(ours - theirs).max()) for ours, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED_PAIR)
    parser.add_argument("--pictures", type=int, default=500, help="pictures of each kind; a multiple of 100")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--transformers", action="store_true", help="compare every embedding with transformers'")
    a = parser.parse_args()
    model, asked = Npgemma(a.folder, a.dtype), cases(a.pictures)
    shares = {kind: f"{right.mean():.1%} of {len(right)}" for kind, right in measured(model, asked).items()}
    if a.transformers:
        far = farthest(model, Transformers(a.folder, a.dtype), asked)
        shares["largest difference from transformers' embeddings"] = f"{far:.1e}"
    print(json.dumps(shares, indent=2))


if __name__ == "__main__":
    main()

"""Train the embedded pair of towers: transformers' own SigLIP on pictures of the shape world and texts about them.

    python tools/train_tokenizer.py npgemma/assets/tiny-siglip/spiece.model
    python tools/train_pair.py RUN      # writes RUN/checkpoint.pt and RUN/log.jsonl; resumes where it stopped
    python tools/train_pair.py RUN --export npgemma/assets/tiny-siglip

The loss is SigLIP's, -sum log sigmoid(z l) over all pictures and texts of a step. But z = 1 wherever a text is true of
a picture, not only where it was made for it: with so few shapes, a text is true of many pictures.

While training, two small extra heads ask every patch of the vision tower for the kind and the colour of what covers it:
without them, telling a star from a cross takes many times as long. They are thrown away with the run.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from evaluate_pair import Case, best_is_right, captioned, labelled
from pair_world import Text, say, shown, unseen_scenes
from PIL import Image
from shape_world import COLORS, SHAPES, Thing, draw_scene
from torch import Tensor, nn
from train_tiny import GRID, SIDE, patch_targets
from training import Run, write_json
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from npgemma.io.siglip_tokenizer import SiglipTokenizer
from npgemma.io.text_rows import text_rows

ASSETS = Path(__file__).resolve().parent.parent / "npgemma" / "assets" / "tiny-siglip"
WIDTH, CONTEXT = 96, 16
EXAM_EVERY, EXAM_PICTURES, EXAM_CAPTIONS = 250, 200, 100
PROCESSOR = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
SCALE, BIAS = 10, -3  # at the beginning: about one text in twenty is true
PATCHES = 4  # the weight of the loss of the patches
TOWER = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}


def config_json(pieces: int) -> dict:
    """The content of config.json, as short as on the hub: keys that have SigLIP's usual values are left out.

    The table of tokens has rows up to a multiple of 64. transformers' usual ids of the tokens around a text are CLIP's.
    """
    text = {"num_hidden_layers": 2, "max_position_embeddings": CONTEXT, "vocab_size": -(-pieces // 64) * 64}
    tokens = {"bos_token_id": None, "eos_token_id": 1}
    vision = {"num_hidden_layers": 3, "image_size": SIDE, "patch_size": SIDE // GRID}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"} | TOWER | text | tokens,
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "siglip_vision_model"} | TOWER | vision,
    }


def read_pieces() -> SiglipTokenizer:
    return SiglipTokenizer((ASSETS / "spiece.model").read_bytes())


def make_model(tokenizer: SiglipTokenizer) -> SiglipModel:
    return SiglipModel(SiglipConfig(**config_json(len(tokenizer))))


class PatchHeads(nn.Module):
    """Which shape covers each patch (0 = none), and its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Linear(WIDTH, 1 + len(SHAPES))
        self.color = nn.Linear(WIDTH, len(COLORS))

    def loss(self, rows: Tensor, kind: Tensor, color: Tensor) -> Tensor:
        """The cross-entropy of rows [picture, patch]; -1 is a patch without a colour."""
        kinds, colors = self.kind(rows).flatten(0, 1), self.color(rows).flatten(0, 1)
        return F.cross_entropy(kinds, kind.flatten()) + F.cross_entropy(colors, color.flatten(), ignore_index=-1)


class Batch(NamedTuple):
    """Pixel values, what the patches are covered with [picture, patch], and the things in the pictures."""

    pixels: Tensor
    kind: Tensor
    color: Tensor
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
        covers = np.stack([self.covers[:, i, :, ::step] for i, step in chosen], 1).reshape(2, count, -1)
        pixels = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
        return Batch(pixels, *torch.from_numpy(covers), [self.things[i] for i, _ in chosen])


def draw_pictures(count: int, seed: int) -> Pictures:
    pixels, covers = np.empty((count, SIDE, SIDE, 3), np.uint8), np.empty((2, count, GRID, GRID), np.int64)
    things = []
    for i in range(count):
        scene = draw_scene(Random(seed * 1_000_003 + i))
        pixels[i] = scene.image.resize((SIDE, SIDE), PROCESSOR.resample)
        kind, color, *_ = patch_targets(scene)
        kind[kind > len(SHAPES)] = 0  # a character
        covers[:, i] = np.reshape([kind, color], (2, GRID, GRID))
        things.append(scene.things)
    return Pictures(pixels, covers, things)


def signs(things: list[tuple[Thing, ...]], texts: list[Text]) -> Tensor:
    """z [picture, text]: 1 where the text is true, -1 elsewhere."""
    facts = [shown(each) for each in things]
    return torch.tensor([[1.0 if text.wanted <= fact else -1.0 for text in texts] for fact in facts])


def pair_logits(model: SiglipModel, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The scores [picture, text], and the rows [picture, patch] of the vision tower."""
    seen, read = model.vision_model(pixel_values=pixels), model.text_model(input_ids=ids)
    images, texts = (F.normalize(each.pooler_output, dim=-1) for each in (seen, read))
    return images @ texts.T * model.logit_scale.exp() + model.logit_bias, seen.last_hidden_state


@torch.no_grad()
def scores(model: SiglipModel, tokenizer: SiglipTokenizer, labels: Case, captions: Case) -> dict[str, float]:
    """The shares of right answers, with the weights in bfloat16, as they are saved."""
    rounded = SiglipModel(model.config).eval()
    rounded.load_state_dict({name: x.bfloat16().float() for name, x in model.state_dict().items()})
    named, found = (
        pair_logits(rounded, read_images(case.images), id_rows(tokenizer, case.texts))[0].numpy()
        for case in (labels, captions)
    )
    right = {
        "zero_shot": best_is_right(named, labels.right),
        "captions_found": best_is_right(found, captions.right),
        "pictures_found": best_is_right(found.T, captions.right.T),
    }
    return {kind: round(float(each.mean()), 4) for kind, each in right.items()}


def read_images(images: list[Image.Image]) -> Tensor:
    return PROCESSOR(images, return_tensors="pt").pixel_values


def id_rows(tokenizer: SiglipTokenizer, texts: list[str]) -> Tensor:
    return torch.from_numpy(text_rows(tokenizer, texts, CONTEXT).ids)


def train(folder: Path, steps: int, pool: int, pictures: int, texts: int, rate: float, seed: int) -> None:
    """Train to `steps` on `pool` pictures, each step on some of them with `texts` texts about each."""
    tokenizer = read_pieces()
    torch.manual_seed(seed)
    model = make_model(tokenizer)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
        model.logit_bias.fill_(BIAS)
    heads = PatchHeads()
    run = Run(folder, {"model": model, "heads": heads}, steps, rate, float("inf"))
    drawn = draw_pictures(pool, seed)
    exam = labelled(unseen_scenes(EXAM_PICTURES, 1)), captioned(EXAM_CAPTIONS, 0)
    while not run.is_over:
        rng = Random(seed * 1_000_003 + run.step)
        batch = drawn.batch(rng, pictures)
        said = [text for each in batch.things for text in say(rng, each, texts)]
        z = signs(batch.things, said)
        logits, rows = pair_logits(model, batch.pixels, id_rows(tokenizer, [text.words for text in said]))
        loss, patch_loss = F.softplus(-z * logits).sum() / len(said), heads.loss(rows, batch.kind, batch.color)
        wrong = (z * logits < 0).float().mean() * 100
        run.update(
            loss + PATCHES * patch_loss,
            loss=loss,
            patch_loss=patch_loss,
            wrong_percent=wrong,
            scale=model.logit_scale.exp(),
            bias=model.logit_bias,
        )
        if run.step % EXAM_EVERY == 0 or run.is_over:
            run.log(**scores(model, tokenizer, *exam))


def export(folder: Path, out: Path) -> None:
    """The checkpoint as a Hugging Face folder, weights in bfloat16; transformers' Auto classes read it too."""
    tokenizer = read_pieces()
    model = make_model(tokenizer)
    model.load_state_dict(torch.load(folder / "checkpoint.pt")["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    write_json(out / "config.json", config_json(len(tokenizer)))
    named = {"processor_class": "SiglipProcessor"}
    write_json(out / "preprocessor_config.json", PROCESSOR.to_dict() | named)
    spaces = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    added = {str(i): {"content": text} | spaces | {"special": True} for i, text in ((1, "</s>"), (2, "<unk>"))}
    write_json(
        out / "tokenizer_config.json",
        {"tokenizer_class": "SiglipTokenizer", "added_tokens_decoder": added, "do_lower_case": True}
        | {"model_input_names": ["input_ids"], "model_max_length": CONTEXT}
        | named
        | special,
    )
    write_json(out / "special_tokens_map.json", {name: {"content": text} | spaces for name, text in special.items()})
    (out / "training_log.jsonl").write_bytes((folder / "log.jsonl").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the checkpoint and the log")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the checkpoint as a model folder, and stop"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pool", type=int, default=8192, help="pictures of the run")
    parser.add_argument("--pictures", type=int, default=64, help="pictures a step")
    parser.add_argument("--texts", type=int, default=2, help="texts about each of them")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.export:
        export(a.run, a.export)
    else:
        train(a.run, a.steps, a.pool, a.pictures, a.texts, a.rate, a.seed)


if __name__ == "__main__":
    main()

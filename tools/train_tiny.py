"""Train the embedded model: transformers' own PaliGemma classes on pictures of the shape world.

    python tools/train_tiny.py RUN      # writes RUN/checkpoint.pt and RUN/log.jsonl; resumes where it stopped
    python tools/train_tiny.py RUN --start npgemma/assets/tiny --steps 6000 --rate 1e-3    # go on from a model folder
    python tools/train_tiny.py RUN --export npgemma/assets/tiny

Masks are asked for in the codes of vae-oid.npz, which tools/train_masks.py makes first.

What makes it learn in 80 minutes on two cores:
- every picture goes through the vision tower once and answers several questions;
- while training, small extra heads ask every patch of the vision tower what covers it (kind, colour, box, turn): a
  dense signal that teaches the tower to see long before the captions are right. They are thrown away with the run;
- Muon for the matrices of the layers, AdamW for everything else, and the rate held, then taken linearly to zero.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from patch_targets import GRID, KINDS, PATCH, SIDE, patch_targets
from shape_world import (
    ASKERS,
    COLORS,
    MAX_TURN,
    SHAPES,
    TURN_STEP,
    Asker,
    Question,
    Thing,
    ask,
    ask_segment,
    draw_mask,
    draw_scene,
)
from torch import Tensor, nn
from training import Run, write_json
from transformers import GemmaTokenizer, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.tasks.masks import encode_object

ASSETS = Path(__file__).resolve().parent.parent / "npgemma" / "assets" / "tiny"
PROCESSOR = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=GRID**2)


def make_config(tokens: int) -> PaliGemmaConfig:
    """2 million parameters; the embedding has rows up to a multiple of 64, as on the hub."""
    return PaliGemmaConfig(
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
            projection_dim=128,
            vision_use_head=False,
        ),
        text_config=dict(
            model_type="gemma",
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            vocab_size=-(-(tokens + 1) // 64) * 64,
            max_position_embeddings=1024,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ),
        hidden_size=128,
        projection_dim=128,
        vocab_size=tokens,
        image_token_index=tokens,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


class PatchHeads(nn.Module):
    """What covers each patch: its kind (0 = nothing), colour, turn, and where its box lies from the patch's centre."""

    def __init__(self, width: int):
        super().__init__()
        self.kind = nn.Linear(width, 1 + len(KINDS))
        self.color = nn.Linear(width, len(COLORS))
        self.box = nn.Linear(width, 4)
        self.turn = nn.Linear(width, 1)

    def loss(self, features: Tensor, targets: dict[str, Tensor]) -> Tensor:
        features = features.float()
        covered = targets["kind"] > 0
        colored = targets["color"] >= 0
        turned = targets["turn"].isfinite()
        return (
            F.cross_entropy(self.kind(features).flatten(0, 1), targets["kind"].flatten())
            + F.cross_entropy(self.color(features)[colored], targets["color"][colored])
            + 4 * F.smooth_l1_loss(self.box(features)[covered], targets["box"][covered], beta=0.02)
            + F.smooth_l1_loss(self.turn(features)[turned][:, 0], targets["turn"][turned], beta=0.1)
        )


def mask_askers() -> dict[Asker, int]:
    """Every kind of question, masks among them: a third of the questions, for what they have to say is the longest."""
    codec = read_mask_codec(ASSETS / CODEC)

    def tokens(kind: str, step: int) -> str:
        thing = Thing("", kind, (0, 0, 1, 1), 0.5, 0.5, 0.3, step * TURN_STEP)
        return "".join(f"<seg{c:03d}>" for c in encode_object(codec, "", np.asarray(draw_mask(thing)) > 0).codes)

    farthest = round(MAX_TURN / TURN_STEP)
    codes = {(kind, step): tokens(kind, step) for kind in SHAPES for step in range(-farthest, farthest + 1)}
    return ASKERS | {partial(ask_segment, codes=codes): 12}


def make_batch(
    rng: Random, tokenizer: GemmaTokenizer, askers: dict[Asker, int], pictures: int, questions: int
) -> dict[str, Tensor]:
    """Pixels, patch targets, and B*questions rows of ids: image tokens, bos, prompt, newline | suffix, eos, pads."""
    scenes = [draw_scene(rng) for _ in range(pictures)]
    asked: list[Question] = [question for scene in scenes for question in ask(scene, rng, questions, askers)]
    prefixes = tokenizer([q.prompt + "\n" for q in asked], add_special_tokens=False).input_ids
    suffixes = tokenizer([q.suffix for q in asked], add_special_tokens=False).input_ids
    image = [len(tokenizer)] * GRID**2
    rows = [([*image, 2, *p], [*s, 1]) for p, s in zip(prefixes, suffixes, strict=True)]
    length = max(len(p) + len(s) for p, s in rows)
    ids, types = torch.zeros(len(rows), length, dtype=torch.long), torch.ones(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (p, s) in enumerate(rows):
        end = len(p) + len(s)
        ids[i, :end] = torch.tensor(p + s)
        types[i, : len(p)] = 0
        mask[i, :end] = 1
        labels[i, len(p) - 1 : end - 1] = torch.tensor(s)  # already shifted: the row that must say it
    targets = [torch.from_numpy(np.stack(t)) for t in zip(*map(patch_targets, scenes), strict=True)]
    patches = dict(zip(("kind", "color", "box", "turn"), targets, strict=True))
    pixels = PROCESSOR([s.image for s in scenes], return_tensors="pt").pixel_values
    return dict(pixels=pixels, ids=ids, types=types, mask=mask, labels=labels, **patches)


def losses(
    model: PaliGemmaForConditionalGeneration, heads: PatchHeads, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(cross-entropy of the suffix tokens, loss of the patch heads)."""
    with torch.autocast("cpu", torch.bfloat16):
        images = model.model.get_image_features(batch["pixels"], return_dict=True)
        each = len(batch["ids"]) // len(batch["pixels"])
        seen = images.last_hidden_state
        images.pooler_output = images.pooler_output.repeat_interleave(each, 0)
        hidden = model.model(
            input_ids=batch["ids"],
            attention_mask=batch["mask"],
            token_type_ids=batch["types"],
            mm_encoder_outputs={"image": images},
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        said = batch["labels"] >= 0
        logits = model.lm_head(hidden[said])
    return F.cross_entropy(logits.float(), batch["labels"][said]), heads.loss(seen, batch)


def train(
    folder: Path, start: Path | None, steps: int, pictures: int, questions: int, rate: float, seed: int, minutes: float
) -> None:
    """Train to `steps`, or for `minutes`."""
    askers = mask_askers()
    tokenizer = GemmaTokenizer.from_pretrained(ASSETS)
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(make_config(len(tokenizer)))
    heads = PatchHeads(128)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight.normal_(0, 0.1)
    if start:
        model = PaliGemmaForConditionalGeneration.from_pretrained(start, dtype=torch.float32).train()
    run = Run(folder, {"model": model, "heads": heads}, steps, rate, minutes)
    while not run.is_over:
        batch = make_batch(Random(seed * 1_000_003 + run.step), tokenizer, askers, pictures, questions)
        said, seen = losses(model, heads, batch)
        run.update(said + 0.3 * seen, loss=said, patch_loss=seen)


def export(run: Path, out: Path) -> None:
    """The checkpoint as a Hugging Face folder, weights in bfloat16; transformers' AutoProcessor reads it too."""
    tokens = len(GemmaTokenizer.from_pretrained(ASSETS))
    model = PaliGemmaForConditionalGeneration(make_config(tokens))
    model.load_state_dict(torch.load(run / "checkpoint.pt")["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink()  # says nothing that config.json does not
    named = {"processor_class": "PaliGemmaProcessor"}
    write_json(out / "preprocessor_config.json", PROCESSOR.to_dict() | named)
    write_json(out / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False} | named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the checkpoint and the log")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the checkpoint as a model folder, and stop"
    )
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights of a model folder")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; start again to go on")
    parser.add_argument("--pictures", type=int, default=32, help="pictures a step")
    parser.add_argument("--questions", type=int, default=2, help="questions a picture")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.export:
        export(a.run, a.export)
    else:
        train(a.run, a.start, a.steps, a.pictures, a.questions, a.rate, a.seed, a.minutes)


if __name__ == "__main__":
    main()

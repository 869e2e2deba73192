"""Score a model of the shape world on new pictures, and compare npgemma's tokens with transformers'.

    python tools/evaluate_tiny.py                       # the embedded model, 500 pictures
    python tools/evaluate_tiny.py --transformers        # and the share of answers with the same tokens in transformers

It asks for a caption of each picture, boxes and masks of all its objects, the word in it, and one question of each
kind.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from shape_world import (
    Question,
    Scene,
    ask_caption,
    ask_color,
    ask_count,
    ask_ocr,
    ask_presence,
    ask_shape,
    ask_side,
    draw_mask,
    draw_scene,
)

import npgemma
from npgemma.io.model_folder import EMBEDDED
from npgemma.models.mask_vqvae import MaskVQVAE
from npgemma.tasks.masks import encode_object, object_masks
from npgemma.tasks.prompts import detect_prompt, segment_prompt

MAX_NEW_TOKENS = 96


def unseen(count: int) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes of seeds that training does not use, each with the questions it is scored on."""
    askers = (ask_caption, ask_count, ask_color, ask_shape, ask_side, ask_presence, ask_ocr)
    for i in range(count):
        rng = Random(f"unseen {i}")
        scene = draw_scene(rng)
        yield scene, [question for asker in askers if (question := asker(scene, rng)) is not None]


def iou(a: npgemma.Box, b: npgemma.Box) -> float:
    """Intersection over union: the area that two boxes share, divided by the area that they cover together."""
    wide = max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0))
    high = max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
    total = (a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - wide * high
    return wide * high / total if total > 0 else 0.0


def box_ious(scene: Scene, answer: str) -> list[float]:
    """The IoU of each object's box, 0 if the answer has no box with its label; and 0 for each extra box."""
    side = scene.image.width
    found = npgemma.parse_boxes(answer, side, side)
    scores = []
    for thing in scene.things:
        y0, x0, y1, x1 = (v * side for v in thing.box)
        truth = npgemma.Box(thing.label, x0, y0, x1, y1)
        scores.append(max((iou(box, truth) for box in found if box.label == thing.label), default=0.0))
    return scores + [0.0] * (len(found) - len(scene.things))


def mask_ious(scene: Scene, codec: MaskVQVAE, objects: list[npgemma.DetectedObject]) -> list[float]:
    """The IoU of each object's mask, 0 if the answer has no mask with its label; and 0 for each extra mask."""
    side = scene.image.width
    coded = [each for each in objects if each.codes]
    masks = object_masks(codec, coded, side, side)
    scores = []
    for thing in scene.things:
        truth = np.asarray(draw_mask(thing, side)) > 0
        fits = [
            float((mask & truth).sum() / (mask | truth).sum())
            for mask, each in zip(masks, coded, strict=True)
            if each.label == thing.label
        ]
        scores.append(max(fits, default=0.0))
    return scores + [0.0] * (len(masks) - len(scene.things))


def encoded(scene: Scene, codec: MaskVQVAE) -> list[npgemma.DetectedObject]:
    """The objects as the encoder encodes them, which limits how well any codes can fit."""
    side = scene.image.width
    return [encode_object(codec, thing.label, np.asarray(draw_mask(thing, side)) > 0) for thing in scene.things]


class Transformers:
    """The same folder, prompts and greedy decoding, by transformers."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import GemmaTokenizer, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.torch = torch
        pictures, tokenizer = SiglipImageProcessorPil.from_pretrained(folder), GemmaTokenizer.from_pretrained(folder)
        self.processor = PaliGemmaProcessor(pictures, tokenizer)
        self.model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def generate(self, scene: Scene, prompts: list[str]) -> list[list[int]]:
        """The token ids of each answer, without padding."""
        text = [f"<image>{prompt}" for prompt in prompts]
        inputs = self.processor(images=[scene.image] * len(text), text=text, return_tensors="pt", padding=True)
        inputs.pop("labels")
        with self.torch.no_grad():
            rows = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        answers = rows[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(1) + 1] if 1 in row else row for row in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--transformers", action="store_true", help="compare every token with transformers' generate")
    a = parser.parse_args()
    model = npgemma.load(a.folder)
    oracle = Transformers(a.folder) if a.transformers else None
    right: dict[str, list[bool]] = {"caption": [], "answer": [], "ocr": []}
    codec = model.mask_codec
    ious: list[float] = []
    masks: list[float] = []
    round_trip: list[float] = []
    same: list[bool] = []
    for scene, questions in unseen(a.pictures):
        labels = [thing.label for thing in scene.things]
        prompts = [detect_prompt(labels), segment_prompt(labels), *(q.prompt for q in questions)]
        answers = model.generate([scene.image] * len(prompts), prompts, max_new_tokens=MAX_NEW_TOKENS)
        ious += box_ious(scene, answers[0].text)
        masks += mask_ious(scene, codec, npgemma.parse_objects(answers[1].text))
        round_trip += mask_ious(scene, codec, encoded(scene, codec))
        for question, answer in zip(questions, answers[2:], strict=True):
            right[question.family].append(answer.text == question.suffix)
        if oracle:
            theirs = oracle.generate(scene, prompts)
            same += [ours.token_ids == ids for ours, ids in zip(answers, theirs, strict=True)]
    scores = {f"{family} exact": f"{np.mean(values):.1%} of {len(values)}" for family, values in right.items()}
    scores["box IoU mean"] = f"{np.mean(ious):.3f} of {len(ious)}"
    scores["box IoU over 0.5"] = f"{np.mean(np.array(ious) > 0.5):.1%}"
    scores["mask IoU mean"] = f"{np.mean(masks):.3f} of {len(masks)}"
    scores["mask IoU over 0.5"] = f"{np.mean(np.array(masks) > 0.5):.1%}"
    scores["mask IoU of encoded masks"] = f"{np.mean(round_trip):.3f} of {len(round_trip)}"
    if oracle:
        scores["same tokens as transformers"] = f"{sum(same)} of {len(same)} answers"
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()

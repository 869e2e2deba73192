"""Draw what the embedded model does not know, as examples that `npgemma train` reads.

    python tools/draw_examples.py examples

writes files of lines into the folder `examples`, beside their pictures:

    new.jsonl              200 pictures with a heart or something grey, 4 questions each
    train.jsonl            the same, and 400 pictures of what the model knows, 2 questions each
    adapter.jsonl          the same, but for each of the 400 a caption, all boxes, and often another question
    held-out.jsonl         200 other pictures with something new: a caption of each, and the box of what is new
    known.jsonl            100 other pictures of what the model knows: a caption of each, and all boxes
    right.jsonl            200 pictures of what the model knows, with a caption from the right and one from the left
    right-held-out.jsonl   100 others, with a caption from the right
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from shape_world import (
    COLORS,
    NEW_COLORS,
    NEW_SHAPES,
    SHAPES,
    Question,
    Scene,
    Thing,
    ask,
    ask_caption,
    ask_color,
    ask_shape,
    ask_side,
    detection,
    draw_scene,
    listed,
    named,
)

SIDE = 168
# Examples to learn from have more things than others: captions of three things are the hardest, and teach the most.
CROWDED = (1, 2, 3, 3, 3)


def is_new(thing: Thing) -> bool:
    """Whether the model has met no such shape, or no such colour."""
    return thing.kind in NEW_SHAPES or thing.color in NEW_COLORS


def new_scene(rng: Random, counts: Sequence[int] = (1, 2, 3)) -> Scene:
    """A scene with one thing that is new, alone or among things that the model knows; of as many as `counts` has."""
    colors, shapes = (*COLORS, *NEW_COLORS), (*SHAPES, *NEW_SHAPES)
    count = rng.choice(counts)
    while True:
        scene = draw_scene(rng, SIDE, count, colors=colors, shapes=shapes)
        if sum(map(is_new, scene.things)) == 1:
            return scene


def known_scene(rng: Random) -> Scene:
    """A scene of the world that the model was trained on."""
    return draw_scene(rng, SIDE)


def ask_boxes(things: Sequence[Thing]) -> Question:
    """For the boxes of some things."""
    boxes = detection([(thing.box, thing.label) for thing in things])
    return Question("detect " + " ; ".join(thing.label for thing in things), boxes, "detect")


def ask_held_out(scene: Scene, rng: Random) -> list[Question]:
    """For a caption and the box of what is new, or the boxes of all that is known."""
    return [ask_caption(scene, rng), ask_boxes(list(filter(is_new, scene.things)) or scene.things)]


def ask_new(scene: Scene, rng: Random) -> list[Question]:
    """The same, and twice for a colour, a shape or what is on one side."""
    return [*ask_held_out(scene, rng), *ask(scene, rng, 2, {ask_color: 1, ask_shape: 1, ask_side: 1})]


def ask_known(scene: Scene, rng: Random) -> list[Question]:
    """For a caption, and for something else as in the training of the model: not for what has an empty answer."""
    others = [q for q in ask(scene, rng, 4) if q.suffix and q.family != "caption"]
    return [ask_caption(scene, rng), others[0]]


def ask_more(scene: Scene, rng: Random) -> list[Question]:
    """For a caption, for all boxes, and if one of some questions is about neither, for that."""
    others = [q for q in ask(scene, rng, 4) if q.suffix and q.family not in ("caption", "detect")]
    return [*ask_held_out(scene, rng), *others[:1]]


def ask_right(scene: Scene, rng: Random) -> list[Question]:
    """For a caption in the other order."""
    return [Question("caption en from the right", listed([named(thing) for thing in scene.things[::-1]]), "caption")]


def ask_both(scene: Scene, rng: Random) -> list[Question]:
    """For a caption in either order."""
    return [*ask_right(scene, rng), ask_caption(scene, rng)]


def write_lines(
    folder: Path,
    name: str,
    count: int,
    draw: Callable[[Random], Scene],
    questions: Callable[[Scene, Random], list[Question]],
) -> list[str]:
    """Draw so many pictures, of seeds that no other name and no other tool uses; returns their lines."""
    lines = []
    for i in range(count):
        rng = Random(f"examples {name} {i}")
        scene = draw(rng)
        image = f"{name}-{i:03}.png"
        scene.image.save(folder / image)
        lines += [json.dumps({"image": image, "prefix": q.prompt, "suffix": q.suffix}) for q in questions(scene, rng)]
    return lines


def write_examples(folder: Path, count: int = 200) -> None:
    """Write the files; the examples of what is new have so many pictures, others twice or half as many."""
    folder.mkdir(parents=True, exist_ok=True)
    new = write_lines(folder, "new", count, partial(new_scene, counts=CROWDED), ask_new)
    half = count // 2
    files = {
        "new": new,
        "train": new + write_lines(folder, "old", 2 * count, known_scene, ask_known),
        "adapter": new + write_lines(folder, "old", 2 * count, known_scene, ask_more),
        "held-out": write_lines(folder, "held-out", count, new_scene, ask_held_out),
        "known": write_lines(folder, "known", half, known_scene, ask_held_out),
        "right": write_lines(folder, "right", count, known_scene, ask_both),
        "right-held-out": write_lines(folder, "right-held-out", half, known_scene, ask_right),
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=200, help="pictures to learn from (default: 200)")
    a = parser.parse_args()
    write_examples(a.folder, a.pictures)


if __name__ == "__main__":
    main()

"""The world of the embedded model: pictures of coloured shapes and words, and what is asked about them.

A scene is drawn from a `random.Random`, so a seed fixes the picture, the questions and the answers on every machine.
Pictures are drawn large and resized like a user's photograph, so training sees what npgemma will see.

Lengths are shares of the picture's side; a box is (y0, x0, y1, x1), PaliGemma's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 212, 30),
    "green": (46, 160, 67),
    "blue": (36, 96, 214),
    "purple": (134, 60, 190),
    "pink": (248, 132, 188),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# What the embedded model does not know, and is taught with the examples of tools/draw_examples.py.
NEW_COLORS = {"grey": (128, 132, 138)}
NEW_SHAPES = ("heart",)
CHARACTERS = "ABCEFHJKLMNPRTUVXYZ23479"  # without look-alikes such as O and 0
BACKGROUNDS = ((255, 255, 255), (250, 246, 236), (238, 240, 243), (232, 240, 248), (240, 247, 236))
INK = (32, 36, 44)

SIDE = 336  # pixels drawn; training and evaluation pictures are resized by the processor
LOC_STEP = 16  # boxes are told on every 16th of PaliGemma's 1,024 bins
MAX_TURN = 0.3  # radians
TURN_STEP = 0.05  # masks are told as of a shape turned by a multiple of it
TURNED = ("square", "triangle", "star")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One coloured shape, turned by `turn` radians. `kind` is one of SHAPES, `color` a key of COLORS, or a new one."""

    color: str
    kind: str
    box: Box
    x: float
    y: float
    radius: float
    turn: float

    @property
    def label(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def center_x(self) -> float:
        return (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """Things from left to right, and a word ('' for none) with the box of each of its characters."""

    things: tuple[Thing, ...]
    word: str
    characters: tuple[Box, ...]
    image: Image.Image


@dataclass(frozen=True)
class Question:
    """A prompt, the suffix the model should write, and the family it is scored in."""

    prompt: str
    suffix: str
    family: str


# ---------------------------------------------------------------------------------------------------------- drawing


def polygon(kind: str, cx: float, cy: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a square, triangle or star of radius `r` about (cx, cy), turned by `turn` radians."""
    corners = {"square": 4, "triangle": 3, "star": 10}[kind]
    start = turn - math.pi / 2 + (math.pi / 4 if kind == "square" else 0)
    radii = [r * 0.45 if kind == "star" and i % 2 else r for i in range(corners)]
    return [
        (
            cx + radius * math.cos(start + 2 * math.pi * i / corners),
            cy + radius * math.sin(start + 2 * math.pi * i / corners),
        )
        for i, radius in enumerate(radii)
    ]


def cross(cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """The twelve corners of an upright plus sign that reaches `r` from its centre."""
    a = r * 0.36
    quarter = [(a, -r), (a, -a), (r, -a)]
    corners = []
    for _ in range(4):
        corners += [(cx + x, cy + y) for x, y in quarter]
        quarter = [(-y, x) for x, y in quarter]
    return corners


def heart(cx: float, cy: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Points on the outline of a heart that reaches `r` to both sides of its centre, turned by `turn` radians."""
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 16
        points.append((x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)))
    return [(cx + r * x, cy + r * y) for x, y in points]


def outline(kind: str, cx: float, cy: float, r: float, turn: float) -> list[tuple[float, float]]:
    """The corners of any shape that is not round."""
    match kind:
        case "cross":
            return cross(cx, cy, r)
        case "heart":
            return heart(cx, cy, r, turn)
        case _:
            return polygon(kind, cx, cy, r, turn)


def draw_thing(
    draw: ImageDraw.ImageDraw, kind: str, fill: tuple[int, ...], cx: float, cy: float, r: float, turn: float
) -> Box:
    """Draw one shape; returns the box it really covers, in pixels (y0, x0, y1, x1)."""
    if kind == "circle":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
        return cy - r, cx - r, cy + r, cx + r
    if kind == "ring":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=fill, width=max(2, round(r * 0.42)))
        return cy - r, cx - r, cy + r, cx + r
    corners = outline(kind, cx, cy, r, turn)
    draw.polygon(corners, fill=fill)
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(ys), min(xs), max(ys), max(xs)


def draw_mask(thing: Thing, side: int = SIDE) -> Image.Image:
    """Where on its picture a thing is: 255 there, 0 elsewhere. Things never overlap, so nothing hides a part of it."""
    image = Image.new("L", (side, side))
    place = (thing.x * side, thing.y * side, thing.radius * side, thing.turn)
    draw_thing(ImageDraw.Draw(image), thing.kind, (255,), *place)
    return image


def apart(box: Box, others: list[Box], gap: float) -> bool:
    """True if `box` keeps `gap` away from every other box."""
    y0, x0, y1, x1 = box
    return all(y1 + gap <= b[0] or b[2] + gap <= y0 or x1 + gap <= b[1] or b[3] + gap <= x0 for b in others)


def draw_scene(
    rng: Random,
    side: int = SIDE,
    count: int | None = None,
    worded: bool | None = None,
    colors: Sequence[str] = tuple(COLORS),
    shapes: Sequence[str] = SHAPES,
) -> Scene:
    """A random scene of one to three shapes of different labels and, half the time, a word of three characters.

    Centres differ in x by at least a twelfth of the side, so that "from left to right" is never a matter of taste.
    """
    count = rng.randint(1, 3) if count is None else count
    worded = rng.random() < 0.5 if worded is None else worded
    image = Image.new("RGB", (side, side), rng.choice(BACKGROUNDS))
    draw = ImageDraw.Draw(image)
    taken: list[Box] = []
    word, characters = "", []
    if worded:
        word = "".join(rng.choice(CHARACTERS) for _ in range(3))
        size = rng.uniform(0.22, 0.28) * side
        font = ImageFont.load_default(size)
        pitch = 0.86 * size  # the same cell for every character: a narrow J takes as much room as an M
        x = rng.uniform(0.02 * side, 0.98 * side - 3 * pitch)
        y = rng.uniform(0.02 * side, 0.98 * side - size)
        for i, character in enumerate(word):
            draw.text((x + (i + 0.5) * pitch, y + 0.5 * size), character, fill=INK, font=font, anchor="mm")
            characters.append((y, x + i * pitch, y + size, x + (i + 1) * pitch))
        taken.append((y, x, y + size, x + 3 * pitch))
    things: list[tuple[float, Thing]] = []
    labels: set[str] = set()
    for _ in range(400):
        if len(things) == count:
            break
        color, kind = rng.choice(colors), rng.choice(shapes)
        r = rng.uniform(0.11, 0.20) * side
        cx, cy = (rng.uniform(r + 0.02 * side, 0.98 * side - r) for _ in range(2))
        room = (cy - r, cx - r, cy + r, cx + r)
        if f"{color} {kind}" in labels or not apart(room, taken, 0.01 * side):
            continue
        if any(abs(cx - other) < side / 12 for other, _ in things):
            continue
        fill = tuple(max(0, min(255, channel + rng.randint(-10, 10))) for channel in (COLORS | NEW_COLORS)[color])
        turn = rng.uniform(-MAX_TURN, MAX_TURN)
        box = draw_thing(draw, kind, fill, cx, cy, r, turn)
        place = (cx / side, cy / side, r / side, turn)
        things.append((cx, Thing(color, kind, tuple(v / side for v in box), *place)))
        labels.add(f"{color} {kind}")
        taken.append(room)
    ordered = tuple(thing for _, thing in sorted(things, key=lambda pair: pair[1].center_x))
    return Scene(ordered, word, tuple(tuple(v / side for v in box) for box in characters), image)


# -------------------------------------------------------------------------------------------------------- questions


def listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def named(thing: Thing) -> str:
    """A thing with its article: 'an orange ring'."""
    return ("an " if thing.color == "orange" else "a ") + thing.label


def caption(scene: Scene) -> str:
    """The things from left to right: 'a red circle, a blue star and an orange ring'."""
    return listed([named(thing) for thing in scene.things])


def loc(box: Box) -> str:
    """A box as four location tokens, each the nearest of every LOC_STEP-th bin."""
    bins = (min(1024 - LOC_STEP, round(v * 1024 / LOC_STEP) * LOC_STEP) for v in box)
    return "".join(f"<loc{b:04d}>" for b in bins)


def detection(found: list[tuple[Box, str]]) -> str:
    """'<loc....>x4 label ; <loc....>x4 label', or '' where nothing was found."""
    return " ; ".join(f"{loc(box)} {label}" for box, label in found)


def ask_caption(scene: Scene, rng: Random) -> Question:
    return Question("caption en", caption(scene), "caption")


def ask_for(scene: Scene, rng: Random) -> tuple[list[str], list[tuple[Thing, str]]]:
    """(labels to ask for, what is there of them). One to three labels, nearly always in the picture; or a kind of
    shape, which may be there several times.
    """
    if rng.random() < 0.2:
        kind = rng.choice(SHAPES)
        return [kind], [(t, kind) for t in scene.things if t.kind == kind]
    wanted = rng.sample(scene.things, min(len(scene.things), rng.choice((1, 2, 3))))
    labels = [t.label for t in wanted]
    if rng.random() < 0.1:
        labels[rng.randrange(len(labels))] = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
        labels = list(dict.fromkeys(labels))
    return labels, [(t, label) for label in labels for t in scene.things if t.label == label]


def ask_detect(scene: Scene, rng: Random) -> Question:
    labels, found = ask_for(scene, rng)
    return Question("detect " + " ; ".join(labels), detection([(t.box, label) for t, label in found]), "detect")


def ask_segment(scene: Scene, rng: Random, codes: Mapping[tuple[str, int], str]) -> Question:
    """`codes` has the segmentation tokens of each kind of shape at each `turn_step`."""
    labels, found = ask_for(scene, rng)
    said = [f"{loc(t.box)}{codes[t.kind, turn_step(t)]} {label}" for t, label in found]
    return Question("segment " + " ; ".join(labels), " ; ".join(said), "segment")


def turn_step(thing: Thing) -> int:
    """How far a thing is turned, in whole steps of TURN_STEP; 0 for kinds that look alike or are never turned."""
    return round(thing.turn / TURN_STEP) if thing.kind in TURNED else 0


def ask_count(scene: Scene, rng: Random) -> Question:
    return Question("answer en how many shapes are there?", str(len(scene.things)), "answer")


def ask_color(scene: Scene, rng: Random) -> Question | None:
    kinds = [t.kind for t in scene.things]
    single = [t for t in scene.things if kinds.count(t.kind) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    return Question(f"answer en what color is the {thing.kind}?", thing.color, "answer")


def ask_shape(scene: Scene, rng: Random) -> Question | None:
    colors = [t.color for t in scene.things]
    single = [t for t in scene.things if colors.count(t.color) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    return Question(f"answer en what shape is {thing.color}?", thing.kind, "answer")


def ask_side(scene: Scene, rng: Random) -> Question:
    side, index = rng.choice((("left", 0), ("right", -1)))
    return Question(f"answer en what is on the {side}?", scene.things[index].label, "answer")


def ask_presence(scene: Scene, rng: Random) -> Question:
    labels = [t.label for t in scene.things]
    label = rng.choice(labels) if rng.random() < 0.5 else f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    article = "an" if label.startswith("orange") else "a"
    return Question(f"answer en is there {article} {label}?", "yes" if label in labels else "no", "answer")


def ask_ocr(scene: Scene, rng: Random) -> Question | None:
    return Question("ocr", scene.word, "ocr") if scene.word else None


Asker = Callable[[Scene, Random], Question | None]

ASKERS: dict[Asker, int] = {
    ask_caption: 5,
    ask_detect: 8,
    ask_count: 1,
    ask_color: 1,
    ask_shape: 1,
    ask_side: 1,
    ask_presence: 2,
    ask_ocr: 6,
}


def ask(scene: Scene, rng: Random, count: int, askers: Mapping[Asker, int] = ASKERS) -> list[Question]:
    """`count` questions about one scene, families drawn by their weights."""
    questions: list[Question] = []
    while len(questions) < count:
        (asker,) = rng.choices(list(askers), weights=list(askers.values()))
        question = asker(scene, rng)
        if question is not None and question.prompt not in {q.prompt for q in questions}:
            questions.append(question)
    return questions

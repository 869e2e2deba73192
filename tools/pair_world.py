"""What is said of the pictures of the shape world, and of which of them it is true.

A text names shapes in any order, in full ("a blue star and a red ring") or by colour or kind alone ("a star", "a red
shape"). It is true of a picture that shows all of them, whatever else is there. Some texts name what no picture shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

from shape_world import COLORS, SHAPES, Scene, Thing, caption, draw_scene, listed

LABELS = tuple(f"{color} {kind}" for color in COLORS for kind in SHAPES)
OPENINGS = ("", "", "", "a picture of ", "a photo of ")
SHOWN_BY_NONE = "something else"
NOT_HERE = """
    apple ball bear bird boat book bottle bus cake car cat chair child clock cloud cow cup dog door duck face fish
    flower flag fork fox frog guitar hand hat heart horse house key kite knife lamp leaf lion man moon mouse mug person
    phone pig plane plate road sheep shoe spoon sun table train tree truck umbrella wheel window woman
"""


@dataclass(frozen=True)
class Text:
    """What is said, and what a picture must show for it to be true."""

    words: str
    wanted: frozenset[str]


def with_article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def shown(things: tuple[Thing, ...]) -> frozenset[str]:
    """All that texts may ask for and find: labels, colours and kinds."""
    return frozenset(name for thing in things for name in (thing.label, thing.color, thing.kind))


def written(rng: Random, names: list[str]) -> str:
    """The names, with articles or, one time in six, without, after one of the openings."""
    return rng.choice(OPENINGS) + listed(names if rng.random() < 1 / 6 else [with_article(name) for name in names])


def whole(rng: Random, labels: list[str]) -> Text:
    """All shapes with these labels, in any order."""
    return Text(written(rng, rng.sample(labels, len(labels))), frozenset(labels))


def part(rng: Random, labels: list[str]) -> Text:
    """Some of what a picture shows."""
    return whole(rng, rng.sample(labels, rng.randint(1, len(labels))))


def half(rng: Random, labels: list[str]) -> Text:
    """The colour of a shape, or its kind."""
    color, kind = rng.choice(labels).split()
    wanted, name = rng.choice([(color, f"{color} shape"), (kind, kind)])
    return Text(written(rng, [name]), frozenset([wanted]))


def nearly(rng: Random, labels: list[str]) -> Text:
    """Some of what a picture shows, but one shape with another colour or kind."""
    wrong, *right = rng.sample(labels, rng.randint(1, len(labels)))
    color, kind = wrong.split()
    changed = rng.choice([f"{rng.choice(list(COLORS))} {kind}", f"{color} {rng.choice(SHAPES)}"])
    return whole(rng, list(dict.fromkeys([changed, *right])))


def other(rng: Random, labels: list[str]) -> Text:
    """What no picture shows: things with names from the dictionary, or from nowhere."""
    made_up = "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 7)))
    noun = made_up if rng.random() < 0.5 and made_up not in SHAPES else rng.choice(NOT_HERE.split())
    color = f"{rng.choice(list(COLORS))} " if rng.random() < 0.5 else ""
    names = [color + noun] + ([rng.choice(labels)] if rng.random() < 0.3 else [])
    return Text(written(rng, rng.sample(names, len(names))), frozenset([SHOWN_BY_NONE]))


KINDS = {whole: 4, part: 4, half: 2, nearly: 4, other: 1}


def say(rng: Random, things: tuple[Thing, ...], count: int) -> list[Text]:
    """`count` texts about one picture: all that it shows, and others, not all of them true."""
    labels = [thing.label for thing in things]
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=count - 1)
    return [kind(rng, labels) for kind in (whole, *kinds)]


# ------------------------------------------------------------------------------------------------------- evaluation


def unseen_scenes(count: int, things: int | None = None) -> Iterator[Scene]:
    """Pictures of so many shapes, or of one to three, of seeds that training does not use; half have a word too."""
    return (draw_scene(Random(f"unseen {things} {i}"), count=things) for i in range(count))


def unseen_pairs(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Pictures of two or three shapes and their captions, no two of which name the same shapes."""
    rng = Random(f"several {seed}")
    found: dict[frozenset[str], Scene] = {}
    while len(found) < count:
        scene = draw_scene(rng, count=rng.randint(2, 3))
        found.setdefault(frozenset(thing.label for thing in scene.things), scene)
    return [(scene, caption(scene)) for scene in found.values()]

"""What covers each patch of a picture of the shape world: an extra question while a vision tower is trained."""

import math

import numpy as np
from shape_world import CHARACTERS, COLORS, MAX_TURN, SHAPES, TURNED, Scene, Thing

SIDE, PATCH = 84, 14
GRID = SIDE // PATCH
KINDS = (*SHAPES, *CHARACTERS)


def patch_targets(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A patch belongs to the thing or character whose box covers most of it, if that is a sixth or more.

    Turns are shares of MAX_TURN, NaN for what has none.
    """
    kind, color = np.zeros(GRID**2, np.int64), np.full(GRID**2, -1)
    box = np.zeros((GRID**2, 4), np.float32)
    turn = np.full(GRID**2, np.nan, np.float32)
    edge = np.arange(GRID) / GRID
    most = np.full((GRID, GRID), 1 / 6)
    names = list(COLORS)
    things = [(t.box, KINDS.index(t.kind) + 1, names.index(t.color), turn_share(t)) for t in scene.things]
    things += [(b, KINDS.index(c) + 1, -1, math.nan) for b, c in zip(scene.characters, scene.word, strict=True)]
    for (y0, x0, y1, x1), k, c, t in things:
        high = np.clip(np.minimum(edge + 1 / GRID, y1) - np.maximum(edge, y0), 0, None) * GRID
        wide = np.clip(np.minimum(edge + 1 / GRID, x1) - np.maximum(edge, x0), 0, None) * GRID
        share = np.outer(high, wide)
        rows = np.flatnonzero(share > most)
        most = np.maximum(most, share)
        center = np.stack([rows // GRID, rows % GRID] * 2, 1) / GRID + 0.5 / GRID
        kind[rows], color[rows], box[rows], turn[rows] = k, c, np.array([y0, x0, y1, x1]) - center, t
    return kind, color, box, turn


def turn_share(thing: Thing) -> float:
    return thing.turn / MAX_TURN if thing.kind in TURNED else math.nan

"""Draw npgemma/assets/sample.png, the picture of `npgemma demo`: a scene of the shape world that training never saw.

python tools/draw_sample.py npgemma/assets/sample.png
"""

import sys
from pathlib import Path
from random import Random

from shape_world import draw_scene

SIDE = 448


def main() -> None:
    seed = next(filter(suits, range(1000)))
    draw_scene(Random(f"sample {seed}"), SIDE).image.save(Path(sys.argv[1]), optimize=True)


def suits(seed: int) -> bool:
    """Three shapes of three kinds and three colours, and a word."""
    scene = draw_scene(Random(f"sample {seed}"), 64)
    return len({t.kind for t in scene.things}) == 3 and len({t.color for t in scene.things}) == 3 and bool(scene.word)


if __name__ == "__main__":
    main()

"""Draw pictures of coloured shapes, to embed and search: README's contact sheet shows some of them.

python tools/draw_shapes.py shapes 200
"""

import sys
from pathlib import Path
from random import Random

from shape_world import draw_scene

SIDE = 168


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        draw_scene(Random(f"shapes {i}"), SIDE, worded=False).image.save(folder / f"{i:03}.png")


if __name__ == "__main__":
    main()

"""Draw pictures of coloured shapes, to embed and search: README's contact sheet shows some of them.

python tools/draw_shapes.py shapes 200
"""

import argparse
from pathlib import Path
from random import Random

from shape_world import draw_scene

SIDE = 168


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int, help="how many pictures to draw")
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    for i in range(a.count):
        draw_scene(Random(f"shapes {i}"), SIDE, worded=False).image.save(a.folder / f"{i:03}.png")


if __name__ == "__main__":
    main()

"""Pictures side by side, each with its name and its score."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIDE, MARGIN, LINE = 224, 12, 20  # in pixels: the longest side of a picture, the space around it, a line of text
TILE = (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + 2 * LINE)
PAPER, INK, PALE, ABSENT = "white", "#202020", "#606060", "#d8d8d8"


def contact_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in rows, from left to right; about as many rows as columns. There must be at least one."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * TILE[0], rows * TILE[1]), PAPER)
    for i, each in enumerate(tiles):
        sheet.paste(each, (i % columns * TILE[0], i // columns * TILE[1]))
    return sheet


def tile(picture: Image.Image | None, name: str, score: str) -> Image.Image:
    """A picture, whole and in the middle, above its score and its name; a grey square that says if it is missing."""
    drawn = Image.new("RGB", TILE, PAPER)
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    if picture is None:
        draw.rectangle((MARGIN, MARGIN, MARGIN + SIDE - 1, MARGIN + SIDE - 1), fill=ABSENT)
        draw.text((MARGIN + SIDE // 2, MARGIN + SIDE // 2), "missing", fill=PALE, font=font, anchor="mm")
    else:
        small = fitted(picture)
        drawn.paste(small, (MARGIN + (SIDE - small.width) // 2, MARGIN + (SIDE - small.height) // 2))
    y = SIDE + MARGIN + LINE // 4
    draw.text((MARGIN, y), score, fill=PALE, font=font)
    draw.text((MARGIN, y + LINE), shortest(" ".join(name.split()), draw, font), fill=INK, font=font)
    return drawn


def fitted(picture: Image.Image) -> Image.Image:
    """The picture in RGB with its longer side as long as a tile's, and its shorter side at least 1 pixel."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def shortest(name: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of the end of a name as fits under a picture: paths begin alike and differ in their ends."""
    name = name[-SIDE:]  # a character is at least about a pixel wide
    for start in range(len(name)):
        text = ("..." if start else "") + name[start:]
        if draw.textlength(text, font=font) <= SIDE:
            return text
    return ""

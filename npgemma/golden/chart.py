"""Draw a report: for each tap, in execution order, its error over the limit."""

import math

from PIL import Image, ImageDraw, ImageFont

from npgemma.golden.compare import Report
from npgemma.golden.judge import BORDERLINE, Verdict

SIZE = (1280, 520)
LEFT, TOP, RIGHT, BOTTOM = 70, 50, 20, 170
# The decades of error / limit on the axis; values beyond are drawn at its ends.
LOW, HIGH = -3, 6
BLUE, ORANGE, RED, GRAY, BLACK = "#1f77b4", "#ff7f0e", "#d62728", "#bbbbbb", "#222222"
BAND = "#ffedd8"  # between explained and wrong


def draw_chart(report: Report) -> Image.Image:
    """One dot per tap, from left to right in execution order: the largest of its ratios over their limits.

    Above the line at 1, rounding does not explain the tap; up to the end of the band there, it is borderline. Rings
    show the same for the taps of a replay.
    """
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    verdicts = list(report.verdicts)
    step = (SIZE[0] - LEFT - RIGHT) / len(verdicts)
    place = {verdict.name: LEFT + (i + 0.5) * step for i, verdict in enumerate(verdicts)}
    title = f"error / limit of every tap, judged as {report.dtype}; above 1, rounding does not explain it"
    draw.text((LEFT, 15), title + (" (rings: replayed)" if report.replayed else ""), BLACK, font)
    draw.rectangle((LEFT, height(BORDERLINE), SIZE[0] - RIGHT, height(1)), BAND)
    for decade in range(LOW, HIGH + 1):
        y = height(10.0**decade)
        draw.line((LEFT, y, SIZE[0] - RIGHT, y), BLACK if decade == 0 else GRAY, 2 if decade == 0 else 1)
        draw.text((12, y - 8), "1" if decade == 0 else f"1e{decade}", BLACK, font)
    block, labelled = "", 0.0
    for verdict in verdicts:
        x, y = place[verdict.name], height(verdict.excess)
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color(verdict))
        if verdict.block != block and x - labelled > 16:
            block, labelled = verdict.block, x
            label(image, x, block, font)
    for verdict in report.replayed:
        x, y = place[verdict.name], height(verdict.excess)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=color(verdict))
    return image


def color(verdict: Verdict) -> str:
    return BLUE if verdict.explained else ORANGE if verdict.borderline else RED


def height(value: float) -> float:
    """The y coordinate of an error / limit, on a logarithmic axis."""
    decades = LOW if value <= 0 else min(max(math.log10(value), LOW), HIGH) if math.isfinite(value) else HIGH
    return TOP + (HIGH - decades) / (HIGH - LOW) * (SIZE[1] - TOP - BOTTOM)


def label(image: Image.Image, x: float, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """Write `text` below the axis, turned by 90 degrees."""
    width = math.ceil(font.getlength(text)) + 2
    strip = Image.new("RGB", (width, 16), "white")
    ImageDraw.Draw(strip).text((0, 0), text, BLACK, font)
    image.paste(strip.rotate(90, expand=True), (int(x) - 8, SIZE[1] - BOTTOM + 10))

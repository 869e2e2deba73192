"""A report as a picture: how far above or below its limit each tap is, over the depth of the run."""

import math

from PIL import Image, ImageDraw, ImageFont

from npgemma.golden.compare import Report
from npgemma.golden.judge import Verdict

SIZE = (1280, 520)
LEFT, TOP, RIGHT, BOTTOM = 70, 50, 20, 170
# Decades of error / limit that are drawn; what is beyond stands at the edge.
LOW, HIGH = -3, 6
BLUE, RED, GRAY, BLACK = "#1f77b4", "#d62728", "#bbbbbb", "#222222"


def draw_chart(report: Report) -> Image.Image:
    """One dot a tap, from left to right in execution order: the largest of its ratios over their limits.

    Above the line at 1 rounding does not explain the tap. With a replay a ring shows the same for the tap computed from
    the port's own tensors.
    """
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    verdicts = list(report.verdicts)
    step = (SIZE[0] - LEFT - RIGHT) / len(verdicts)
    place = {verdict.name: LEFT + (i + 0.5) * step for i, verdict in enumerate(verdicts)}
    title = f"error / limit of every tap, judged as {report.dtype}; above 1 it is not rounding"
    draw.text((LEFT, 15), title + (" (rings: replayed)" if report.replayed else ""), BLACK, font)
    for decade in range(LOW, HIGH + 1):
        y = height(10.0**decade)
        draw.line((LEFT, y, SIZE[0] - RIGHT, y), BLACK if decade == 0 else GRAY, 2 if decade == 0 else 1)
        draw.text((12, y - 8), "1" if decade == 0 else f"1e{decade}", BLACK, font)
    block, labelled = "", 0.0
    for verdict in verdicts:
        x, y = place[verdict.name], height(excess(verdict))
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=BLUE if verdict.explained else RED)
        if verdict.block != block and x - labelled > 16:
            block, labelled = verdict.block, x
            label(image, x, block, font)
    for verdict in report.replayed:
        x, y = place[verdict.name], height(excess(verdict))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=BLUE if verdict.explained else RED)
    return image


def excess(verdict: Verdict) -> float:
    """The largest ratio in multiples of its limit; what cannot be measured is right or infinitely wrong."""
    if not verdict.ratios:
        return 0.0 if verdict.explained else math.inf
    return max(verdict.ratios[kind] / limit for kind, limit in verdict.limits.items())


def height(value: float) -> float:
    decades = LOW if value <= 0 else min(max(math.log10(value), LOW), HIGH) if math.isfinite(value) else HIGH
    return TOP + (HIGH - decades) / (HIGH - LOW) * (SIZE[1] - TOP - BOTTOM)


def label(image: Image.Image, x: float, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    """`text` upright below the axis."""
    width = math.ceil(font.getlength(text)) + 2
    strip = Image.new("RGB", (width, 16), "white")
    ImageDraw.Draw(strip).text((0, 0), text, BLACK, font)
    image.paste(strip.rotate(90, expand=True), (int(x) - 8, SIZE[1] - BOTTOM + 10))

"""The loss of a run as a picture: every step, and the held-out lines where there are any, on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIZE = (960, 540)
LEFT, TOP, RIGHT, BOTTOM = 78, 44, 24, 56
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
PALE, GRAY, BLACK = "#c6dcec", "#dddddd", "#222222"
SMOOTH = 50  # the line through the steps has about so many windows
MOST_TICKS = 8


class Point(NamedTuple):
    """The loss at a step."""

    step: int
    loss: float


def draw_curve(steps: Sequence[Point], others: Mapping[str, Sequence[Point]], title: str) -> Image.Image:
    """Each step as a pale line, the mean of its neighbours as a strong one, and `others`, by name, as lines with dots.

    A loss of 0 is drawn at the lower end of the axis.
    """
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    every = [*steps, *(point for line in others.values() for point in line)]
    axes = Axes(every)
    draw.text((LEFT, 14), title, BLACK, font)
    draw_axes(image, axes, font)
    draw.line([axes.place(point) for point in steps], PALE, 1)
    lines = {"training": smoothed(steps)} | dict(others)
    for (name, points), color in zip(lines.items(), COLORS, strict=False):
        places = [axes.place(point) for point in points]
        draw.line(places, color, 2)
        for x, y in places if name in others else []:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    draw_legend(draw, list(lines), font)
    return image


class Axes:
    """Where a point stands in the picture: steps from left to right, the logarithm of the loss from below."""

    def __init__(self, points: Sequence[Point]) -> None:
        logs = [math.log10(point.loss) for point in points if point.loss > 0] or [0.0]
        self.low, self.high = min(logs), max(logs)
        if self.high - self.low < 0.1:  # a line that is nearly flat, in the middle
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.last = max((point.step for point in points), default=1)

    def place(self, point: Point) -> tuple[float, float]:
        x = LEFT + (SIZE[0] - LEFT - RIGHT) * point.step / max(1, self.last)
        return x, self.height(point.loss)

    def height(self, loss: float) -> float:
        share = (math.log10(loss) - self.low) / (self.high - self.low) if loss > 0 else 0.0
        return SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    def losses(self) -> list[float]:
        """Round losses for the axis: 1, 2 and 5 times powers of ten, or the powers alone if those are many."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for digits in ((1, 2, 5), (1,)):
            ticks = [digit * 10.0**decade for decade in decades for digit in digits]
            ticks = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
            if len(ticks) <= MOST_TICKS:
                break
        return ticks

    def steps(self) -> list[int]:
        """Round steps for the axis."""
        raw = max(1.0, self.last / MOST_TICKS)
        power = 10 ** math.floor(math.log10(raw))
        size = next(int(digit * power) for digit in (1, 2, 5, 10) if digit * power >= raw)
        return list(range(0, self.last + 1, size))


def draw_axes(image: Image.Image, axes: Axes, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    draw = ImageDraw.Draw(image)
    right, bottom = SIZE[0] - RIGHT, SIZE[1] - BOTTOM
    for loss in axes.losses():
        y = axes.height(loss)
        draw.line((LEFT, y, right, y), GRAY, 1)
        draw.text((LEFT - 8, y), f"{loss:g}", BLACK, font, anchor="rm")
    for step in axes.steps():
        x, _ = axes.place(Point(step, 1.0))
        draw.line((x, bottom, x, bottom + 5), BLACK, 1)
        draw.text((x, bottom + 8), f"{step}", BLACK, font, anchor="ma")
    draw.line((LEFT, TOP, LEFT, bottom, right, bottom), BLACK, 1)
    draw.text(((LEFT + right) / 2, SIZE[1] - 22), "step", BLACK, font, anchor="ma")
    words = "loss per token"
    strip = Image.new("RGB", (math.ceil(font.getlength(words)) + 2, 20), "white")
    ImageDraw.Draw(strip).text((0, 1), words, BLACK, font)
    turned = strip.rotate(90, expand=True)
    image.paste(turned, (8, (TOP + bottom - turned.height) // 2))


def draw_legend(
    draw: ImageDraw.ImageDraw, names: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    for i, name in enumerate(names):
        y = TOP + 10 + 20 * i
        draw.line((SIZE[0] - 190, y, SIZE[0] - 160, y), COLORS[i % len(COLORS)], 3)
        draw.text((SIZE[0] - 152, y), name, BLACK, font, anchor="lm")


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean of the last few losses at each step."""
    width = max(1, len(points) // SMOOTH)
    return [
        Point(points[i].step, sum(p.loss for p in points[max(0, i + 1 - width) : i + 1]) / min(width, i + 1))
        for i in range(len(points))
    ]

"""Small plots as SVG text: they follow the page's colours, stay sharp at every size and cost a few kilobytes.

Colours are CSS variables with a fallback, so that a page can turn dark and the file alone still shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INK = "var(--ink-soft, #555)"
GRID = "var(--line, #ddd)"
TICK_STEPS = (1.0, 2.0, 5.0, 10.0)


def nice_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Round numbers within [low, high] in steps of 1, 2 or 5 times a power of ten.

    About `at_most` of them, at least one where `low` < `high`.

    >>> nice_ticks(17.8, 20.1, 4)
    [18.0, 19.0, 20.0]
    """
    raw = (high - low) / max(at_most, 1)
    if not raw > 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    coarse = next(number for number, step in enumerate(TICK_STEPS) if step * power >= raw * (1 - 1e-9))
    for step in (TICK_STEPS[coarse] * power, TICK_STEPS[coarse - 1] * power if coarse else power / 2):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if first <= last:  # a coarse step may jump over the whole range
            break
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """(place, label) of 1, 2 and 5 times powers of ten on a logarithmic axis; ends and places are log10 of the values.

    >>> log_ticks(0.9, 1.8)
    [(1.0, '10'), (1.3010299956639813, '20'), (1.6989700043360187, '50')]
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    values = [step * 10.0**power for power in powers for step in steps]
    return [(math.log10(v), tick_label(v)) for v in values if low <= math.log10(v) <= high]


def tick_label(value: float) -> str:
    """A tick's number without needless digits."""
    return f"{value:.10g}"


@dataclass(frozen=True)
class Frame:
    """A plot's frame: maps data to picture coordinates.

    Attributes
    ----------
    width, height
        Of the whole picture [px].
    x, y
        Data at the left and right, and at the bottom and top of the frame; magnitudes run downwards.
    left, right, top, bottom
        Margins [px].
    """

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 52.0
    right: float = 10.0
    top: float = 22.0
    bottom: float = 34.0

    def at_x(self, value: float) -> float:
        """Picture coordinate of a data x."""
        span = self.width - self.left - self.right
        return self.left + span * (value - self.x[0]) / (self.x[1] - self.x[0])

    def at_y(self, value: float) -> float:
        """Picture coordinate of a data y."""
        span = self.height - self.top - self.bottom
        return self.height - self.bottom - span * (value - self.y[0]) / (self.y[1] - self.y[0])

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
    ) -> list[str]:
        """Grid lines, tick numbers and axis names."""
        floor, ceiling = self.height - self.bottom, self.top
        marks = []
        for value, label in x_ticks:
            x = self.at_x(value)
            marks.append(line(x, floor, x, ceiling, GRID))
            marks.append(text(x, floor + 13, label))
        for value, label in y_ticks:
            y = self.at_y(value)
            marks.append(line(self.left, y, self.width - self.right, y, GRID))
            marks.append(text(self.left - 5, y + 3.5, label, anchor="end"))
        middle = (self.left + self.width - self.right) / 2
        marks.append(text(middle, self.height - 5, x_label))
        marks.append(text(11, (floor + ceiling) / 2, y_label, turn=True))
        return marks


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:{colour};stroke-width:{width:g}"/>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "middle", turn: bool = False) -> str:
    """Words; `turn` writes them upwards."""
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}'
    return f'<text {place} style="fill:{INK}">{escape(words)}</text>'


def circle(x: float, y: float, radius: float, colour: str, *, filled: bool = True) -> str:
    """A dot, or a ring."""
    fill = colour if filled else "none"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" style="fill:{fill};stroke:{colour}"/>'


def triangle_down(x: float, y: float, size: float, colour: str) -> str:
    """An open triangle that points down: the source is fainter than this."""
    points = f"{x - size:.1f},{y - size:.1f} {x + size:.1f},{y - size:.1f} {x:.1f},{y + size:.1f}"
    return f'<polygon points="{points}" style="fill:none;stroke:{colour};opacity:.75"/>'


def bar(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """A filled box between two corners."""
    left, top = min(x1, x2), min(y1, y2)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{abs(x2 - x1):.1f}" height="{abs(y2 - y1):.1f}" '
        f'style="fill:{colour}"/>'
    )


def picture(width: float, height: float, marks: Sequence[str], title: str) -> str:
    """A whole SVG; `title` is read out to those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" style="font:11px system-ui,sans-serif">{"".join(marks)}</svg>'
    )

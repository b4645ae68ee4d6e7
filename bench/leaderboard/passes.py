"""What an augmenter gains against what it costs: a figure of each prediction metric over the passes of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from bench.intervals import Interval
from bench.leaderboard.figures import STYLE
from bench.leaderboard.tables import Board, Column
from bench.leaderboard.text import column_digits, number
from bench.results import slug

FEWEST = 3  # Networks that a figure is drawn for.
GAINED, SPENT, UNIT = "prediction", "cost", "passes/image"
WIDTH, HEIGHT, LEFT, TOP, LINE = 400.0, 300.0, 72.0, 64.0, 16.0
COLOURS = """<style>
.open { fill: none; stroke: #2f6f8f; stroke-width: 1.5 } .bar { stroke: #2f6f8f } .leader { stroke-dasharray: 1 3 }
@media (prefers-color-scheme: dark) { .open, .bar { stroke: #7cc0de } }
</style>"""


class Point(NamedTuple):
    """A network: its passes per training image, what it reached, and the interval of that."""

    name: str
    spent: float
    reached: float
    interval: Interval | None


def against_passes(board: Board, stem: str) -> dict[str, str]:
    """A figure for each prediction metric of a board about networks, by file name, where the board says what they cost.

    None where all were given equal passes: there the table itself compares at one cost.
    """
    if board.kind != "networks" or (board.about["recipe"] or {}).get("equal_passes"):
        return {}
    spent = next((column for column in board.columns if (column.category, column.unit, column.machine) == (SPENT, UNIT, None)), None)
    if spent is None:
        return {}
    drawn = {}
    for column in board.columns:
        points = points_of(board, column, spent) if column.category == GAINED else []
        if len(points) >= FEWEST and len({point.spent for point in points}) > 1:
            title = f"{board.dataset}, {column.label} {column.arrow} against passes"
            unit = f" ({column.unit})" if column.unit else ""
            drawn[f"{stem}-passes-{slug(column.label)}.svg"] = draw(points, column.higher_is_better, title, f"{column.label}{unit}")
    return drawn


def points_of(board: Board, column: Column, spent: Column) -> list[Point]:
    """The networks that have both numbers over the same seeds as most."""
    points = []
    for row in board.ranked(column):
        cell, cost = board.cell(row, column), board.value(row, spent)
        if cell is not None and cell.value is not None and cost:
            points.append(Point(row.name, cost, cell.value, cell.interval))
    return points


def unbeaten(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """Those than which none is better for the same or fewer passes, cheapest first."""
    sign = 1 if higher_is_better else -1
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.spent, -sign * point.reached, point.name)):
        if not found or sign * point.reached > sign * found[-1].reached:
            found.append(point)
    return found


def draw(points: Sequence[Point], higher_is_better: bool, title: str, label: str) -> str:
    """SVG of the points, with a bar for each interval and the names beside them, in the order of what was reached."""
    best = set(unbeaten(points, higher_is_better))
    ends = [end for point in points for end in (point.reached, *(point.interval or ()))]
    across = _Scale(math.log2(min(point.spent for point in points)), math.log2(max(point.spent for point in points)), LEFT, WIDTH)
    height = max(HEIGHT, LINE * len(points))
    down = _Scale(max(ends), min(ends), TOP, height)
    order = sorted(points, key=lambda point: (-point.reached, point.name))
    names = LEFT + WIDTH + 60
    total = names + 12 + 7.2 * max(len(point.name) for point in points) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:.0f} {TOP + height + 64:.0f}" '
        f'width="{total:.0f}" height="{TOP + height + 64:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        COLOURS,
        f'<text x="8" y="22">{escape(title)}</text>',
        '<text x="8" y="42" class="faint">All had equal epochs. Filled: none is better for as few passes.</text>',
        *_grid(points, across, down, ends, height),
    ]
    for place, point in zip(apart([down(point.reached) for point in order], TOP + height), order, strict=True):
        x, y = across(math.log2(point.spent)), down(point.reached)
        parts.append(f'<line class="leader" x1="{x + 6:.1f}" y1="{y:.1f}" x2="{names - 4:.1f}" y2="{place:.1f}"/>')
        if point.interval is not None:
            low, high = (down(end) for end in point.interval)
            parts.append(f'<line class="bar" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>')
        filled = "" if point in best else ' class="open"'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"{filled}/>')
        parts.append(f'<text x="{names:.1f}" y="{place + 4:.1f}">{escape(point.name)}</text>')
    parts.append(f'<text x="{LEFT:.1f}" y="{TOP + height + 50:.0f}" class="faint">passes per training image, forward and backward</text>')
    parts.append(f'<text x="8" y="{TOP - 4:.0f}" class="faint">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Places on a line for values between two ends, with a margin of a twentieth."""

    def __init__(self, first: float, last: float, start: float, length: float) -> None:
        margin = (last - first or 1.0) / 20
        self.first, self.last, self.start, self.length = first - margin, last + margin, start, length

    def __call__(self, value: float) -> float:
        return self.start + self.length * (value - self.first) / (self.last - self.first)


def _grid(points: Sequence[Point], across: _Scale, down: _Scale, ends: Sequence[float], height: float) -> list[str]:
    """Lines and numbers at powers of two below, and at round numbers on the left."""
    parts = []
    for power in range(math.floor(across.first), math.ceil(across.last) + 1):
        if across.first <= power <= across.last:
            x = across(power)
            parts.append(f'<line x1="{x:.1f}" y1="{TOP:.1f}" x2="{x:.1f}" y2="{TOP + height:.1f}"/>')
            parts.append(f'<text x="{x:.1f}" y="{TOP + height + 22:.0f}" class="faint" text-anchor="middle">{2.0**power:g}</text>')
    digits = column_digits(ends)
    for value in round_numbers(min(ends), max(ends)):
        y = down(value)
        parts.append(f'<line x1="{LEFT:.1f}" y1="{y:.1f}" x2="{LEFT + WIDTH:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8:.1f}" y="{y + 4:.1f}" class="faint" text-anchor="end">{number(value, digits)}</text>')
    return parts


def round_numbers(low: float, high: float) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten between two numbers."""
    if high <= low:
        return [low]
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def apart(places: Sequence[float], bottom: float) -> list[float]:
    """Places in growing order, moved down where they would touch, and up again where they would leave the plot."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + LINE) if found else place)
    limit = bottom
    for position in range(len(found) - 1, -1, -1):
        found[position] = min(found[position], limit)
        limit = found[position] - LINE
    return found


def section(drawn: Mapping[str, str]) -> list[str]:
    """The figures on a page."""
    return [f"![What each augmenter reached against the passes that it took](figures/{file})\n" for file in drawn]

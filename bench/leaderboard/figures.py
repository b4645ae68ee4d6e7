"""Figures: mean ranks with their critical difference, as SVG written by hand, so that the same numbers make the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bench.leaderboard import statistics
from bench.leaderboard.comparisons import PerImage, Verdict, image_matrix
from bench.leaderboard.statistics import ALPHA, Values
from bench.leaderboard.tables import Board, Column, Row
from bench.leaderboard.text import number
from bench.results import slug

FEWEST, MOST, FEWEST_IMAGES = 3, 60, 10  # Methods and images that a figure is drawn for.

STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .faint { fill: #59636e; font-size: 12px }
line { stroke: #d1d9e0 } .group { stroke: #59636e; stroke-width: 3; stroke-linecap: round } circle { fill: #2f6f8f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9198a1 } line { stroke: #3d444d } .group { stroke: #9198a1 } circle { fill: #7cc0de } }
</style>"""


def critical_differences(board: Board, judged: Mapping[Column, Verdict], per_image: PerImage, stem: str) -> dict[str, str]:
    """A figure per metric and slice of the board, by file name; only where values per image are there for all its rows."""
    drawn = {}
    for column in judged:
        for number_of_slice, (about, rows) in enumerate(slices(board, column)):
            if figure := critical_difference_figure(board, column, rows, per_image, about):
                drawn[f"{stem}-ranks-{slug(column.label)}-{number_of_slice + 1}.svg"] = figure
    return drawn


def slices(board: Board, column: Column) -> Iterator[tuple[str, list[Row]]]:
    """What is ranked together: the augmenters; or the explainers of one network and the augmenters seen by one explainer, the fullest of each."""
    ranked = board.ranked(column)
    if board.kind == "networks":
        yield "", ranked
        return
    for what, other in (("augmenter", "explainer"), ("explainer", "augmenter")):
        fixed: dict[str, list[Row]] = {}
        for row in ranked:
            fixed.setdefault(getattr(row, what), []).append(row)
        name, rows = max(fixed.items(), key=lambda item: (len(item[1]), any(row.plain for row in item[1]), item[0]), default=("", []))
        yield f"{other}s, {what} {name}", rows


def critical_difference_figure(board: Board, column: Column, rows: Sequence[Row], per_image: PerImage, about: str) -> str | None:
    """The mean rank of each row over images; bars join those within Nemenyi's critical difference. None where data are missing."""
    if not FEWEST <= len(rows) <= MOST:
        return None
    found, matrix = image_matrix(board, column, rows, per_image)
    if len(found) < len(rows) or matrix.shape[1] < FEWEST_IMAGES:
        return None
    fixed = about.split(" ")[1] if about else ""
    names = [row.name if not about else getattr(row, "explainer" if fixed == "augmenter" else "augmenter") for row in found]
    title = f"{column.label} {column.arrow}" + (f": {about}" if about else "")
    return draw(names, matrix, column.higher_is_better, f"{board.dataset}, {title}")


def draw(names: Sequence[str], values: Values, higher_is_better: bool, title: str) -> str:
    """SVG of the mean ranks of values (methods, images)."""
    ranks = statistics.mean_ranks(values, higher_is_better)
    p, images = statistics.friedman(values), values.shape[1]
    width = statistics.critical_difference(len(names), images)
    joined = statistics.groups(ranks, width) if p < ALPHA else [(0, len(names) - 1)]
    order = sorted(range(len(names)), key=lambda place: (round(float(ranks[place]), 9), names[place]))
    left, plot, row = 24 + max(7.2 * len(name) for name in names), 320.0, 22
    lowest, highest = 1.0, float(len(names))
    lanes = _lanes(joined)
    right = left + plot + 56
    total, top = max(right + 12 * (max(lanes, default=-1) + 1) + 24, 480.0), 92
    height = top + row * len(names) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:.0f} {height}" width="{total:.0f}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        f'<text x="8" y="22">{escape(title)}</text>',
        *(f'<text x="8" y="{42 + 17 * line}" class="faint">{escape(text)}</text>' for line, text in enumerate(_caption(images, width, p))),
    ]
    for line, place in enumerate(order):
        y = top + row * line
        x = left + plot * (float(ranks[place]) - lowest) / (highest - lowest)
        parts.append(f'<text x="{left - 14:.1f}" y="{y + 4}" text-anchor="end">{escape(names[place])}</text>')
        parts.append(f'<line x1="{left:.1f}" y1="{y}" x2="{left + plot:.1f}" y2="{y}"/><circle cx="{x:.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{left + plot + 12:.1f}" y="{y + 4}" class="faint">{number(float(ranks[place]), 2)}</text>')
    for lane, (first, last) in zip(lanes, joined, strict=True):
        x = right + 12 * lane
        parts.append(f'<line class="group" x1="{x:.1f}" y1="{top + row * first - 5}" x2="{x:.1f}" y2="{top + row * last + 5}"/>')
    parts.append(f'<text x="{left:.1f}" y="{height - 10}" class="faint">rank 1</text>')
    parts.append(f'<text x="{left + plot:.1f}" y="{height - 10}" class="faint" text-anchor="end">rank {len(names)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _caption(images: int, width: float, p: float) -> tuple[str, str]:
    first = f"Mean rank over {images} images; 1 is best."
    if p >= ALPHA:
        return first, f"Friedman's test tells no two apart (p = {p:.2g})."
    return first, f"Rows on one bar lie within {number(width, 2)} and are not told apart (Nemenyi)."


def _lanes(joined: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each bar, so that bars that overlap stand beside each other."""
    ends: list[int] = []
    lanes = []
    for first, last in joined:
        lane = next((place for place, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes

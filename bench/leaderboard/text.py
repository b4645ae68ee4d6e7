"""Text: numbers with their intervals, names made safe, heads of columns, and what the rows of a table have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bench.leaderboard.tables import Board, Cell, Column

MISSING = "–"


def with_interval(cell: Cell, digits: int | None = None) -> str:
    """`0.913 ± 0.012` over seeds, `0.913 [0.902, 0.925]` over images."""
    assert cell.value is not None
    digits = column_digits([cell.value]) if digits is None else digits
    if cell.interval is None:
        return number(cell.value, digits)
    low, high = cell.interval
    if cell.interval_over == "seeds":
        return f"{number(cell.value, digits)} ± {number((high - low) / 2, digits)}"
    return f"{number(cell.value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int | None = None) -> str:
    """With so many decimals; as many as its size asks for if none are given. Powers of ten where decimals would show nothing."""
    digits = column_digits([value]) if digits is None else digits
    value = float(f"{value:.12g}")  # What differs in the last bits only must not be rounded to different texts.
    if digits > 6:
        return f"{value:.1e}" if value else "0"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def column_digits(values: Iterable[float | None]) -> int:
    """Decimals for a column, by its largest number: three below 10 and fewer above, more only where three would show little."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    if largest >= 10:
        return 2 if largest < 100 else 1 if largest < 1000 else 0
    return 3 if largest >= 0.1 or largest == 0 else min(7, 2 - math.floor(math.log10(largest)))


def escaped(text: str) -> str:
    """Text from plugins, safe inside a markdown table."""
    for mark in "\\|<>`*_[]":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return " ".join(text.split())


def column_name(column: Column, label: str = "") -> str:
    """The head of a column: the metric (or another name for it), which way is better, and its unit."""
    return f"{label or column.label} {column.arrow}{' †' if column.machine else ''}{f' ({column.unit})' if column.unit else ''}"


def setting(table: Board) -> str:
    """What the rows have in common, in one paragraph."""
    about, recipe = table.about, table.about["recipe"]
    first = f"Test images `{about['dataset']['fingerprint'][:19]}`."
    if recipe is None:
        return f"{first} Nothing was trained; the weights are `{about['weights'][:19]}`.\n"
    size = recipe["train_images"] or "all"
    seeds = ", ".join(str(seed) for seed in table.seeds)
    length = f"the passes of {recipe['epochs']} plain epochs" if recipe.get("equal_passes") else f"{recipe['epochs']} epochs"
    return (
        f"{first} Trained on {size} images for {length}, batches of {recipe['batch_size']}, {recipe['optimizer']} at "
        f"{recipe['learning_rate']:g} ({recipe['schedule']}), {recipe['precision']}; reported model: {recipe['report']}; seeds {seeds}.\n"
    )

"""Pages: boards as markdown, the same bytes from the same lines, wherever they are made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tabulate import tabulate

from bench.errors import BenchError
from bench.leaderboard.tables import Board, Cell, Column, boards
from bench.results import read

MISSING = "–"
HEADER = "<!-- Written by `bench leaderboard` from the lines in data/. Changes by hand are lost. -->\n"


def build(data: Path) -> dict[str, str]:
    """The text of every page by its file name: README.md and one a dataset."""
    tables = boards(line for path in sorted(data.glob("*/*.jsonl")) for line in read(path))
    pages = {f"{name}.md": _dataset_page(name, list(group), data) for name, group in groupby(tables, key=lambda table: table.dataset)}
    return {"README.md": _overview(tables), **pages}


def write(data: Path, folder: Path) -> list[Path]:
    """Write the pages; what stands there already and is the same is left alone."""
    written = []
    for name, text in build(data).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def check(data: Path, folder: Path) -> None:
    """Raise BenchError naming the pages that are not what the lines say."""
    wrong = [name for name, text in build(data).items() if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != text]
    if wrong:
        raise BenchError(f"{', '.join(wrong)} in {folder} is not what the published lines say.\nWrite it again: bench leaderboard")


def _overview(tables: Sequence[Board]) -> str:
    rows = []
    for name, group in groupby(tables, key=lambda table: table.dataset):
        found = list(group)
        lines = sum(len(table.lines) for table in found)
        augmenters = sorted({row.augmenter for table in found for row in table.rows})
        explainers = sorted({row.explainer for table in found for row in table.rows if row.explainer})
        rows.append([f"[{name}]({name}.md)", ", ".join(augmenters), ", ".join(explainers), lines])
    table = tabulate(rows, ["dataset", "augmenters", "explainers", "results"], tablefmt="pipe")
    return f"{HEADER}\n# Leaderboards\n\n{table}\n\n{READING}" if rows else f"{HEADER}\n# Leaderboards\n\nNothing is published yet.\n"


READING = """## How to read a board

- A table holds only rows that may be compared: the same images, network, trainer, label noise and recipe.
- ↑ says that more is better, ↓ that less is. The best value of a column is **bold**; where intervals overlap, better may mean luck.
- `0.91 ± 0.02` is a mean over trainings with different seeds and Student's 95 % interval over seeds: it speaks about the method.
  `0.91 [0.88, 0.93]` is one training and the 95 % bootstrap interval over images: it speaks about that one network.
- *Italic* rows are floors: a network trained without augmentation, and explainers that look at nothing.
  What does not beat its floor has shown nothing.
- – stands for a number that is not there. It is never taken as zero or averaged around.
- Columns marked † are times. They belong to the machine named below the table and are not ranked.
"""


def _dataset_page(name: str, tables: Sequence[Board], data: Path) -> str:
    about = tables[0].about["dataset"]
    parts = [HEADER, f"# {name}\n", f"Licence of the images: {about['licence']}\n"]
    for heading, group in groupby(tables, key=_heading):
        parts.append(f"## {heading}\n")
        found = list(group)
        parts.append(_setting(found[0]))
        parts += [f"### {'Networks' if table.kind == 'networks' else 'Explanations'}\n\n{table_text(table)}\n" for table in found]
    parts += [f"![Test images with the map of each explainer, by augmenter](figures/{figure.name})\n" for figure in _figures(name, data)]
    parts.append("How to read a board: [README](README.md#how-to-read-a-board).\n")
    return "\n".join(parts)


def _figures(name: str, data: Path) -> list[Path]:
    return sorted((data.parent / "figures").glob(f"{name}-*.png"))


def _heading(table: Board) -> str:
    about = table.about
    noise = f", label noise {about['noise']['label']}" if about["noise"] else ""
    return f"{about['model']['label']}, {about['trainer']['label']}{noise}"


def _setting(table: Board) -> str:
    """What the rows have in common, in one paragraph."""
    about, recipe = table.about, table.about["recipe"]
    first = f"Test images `{about['dataset']['fingerprint'][:19]}`, explained class: {about['images']['target']}."
    if recipe is None:
        return f"{first} Nothing was trained; the weights are `{table.lines[0]['weights'][:19]}`.\n"
    size = recipe["train_images"] or "all"
    seeds = ", ".join(str(seed) for seed in table.seeds)
    return (
        f"{first} Trained on {size} images for {recipe['epochs']} epochs, batches of {recipe['batch_size']}, "
        f"{recipe['optimizer']} at {recipe['learning_rate']:g} ({recipe['schedule']}), {recipe['precision']}; reported model: {recipe['report']}; seeds {seeds}.\n"
    )


def table_text(table: Board) -> str:
    """One board as a markdown table with its notes."""
    headers = ["augmenter", *(["explainer"] if table.kind == "explanations" else []), *(_column_name(column) for column in table.columns)]
    best = {column: set() if column.machine else table.best(column) for column in table.columns}
    body = []
    for row in table.rows:
        names = [row.augmenter, *([row.explainer] if row.explainer else [])]
        cells = [_cell_text(table.cell(row, column), column, row in best[column]) for column in table.columns]
        body.append([*(f"*{escaped(name)}*" if row.floor else escaped(name) for name in names), *cells])
    notes = [_images_note(table), *(_machine_note(table) or [])]
    return tabulate(body, headers, tablefmt="pipe", disable_numparse=True) + "\n\n" + " ".join(notes)


def _column_name(column: Column) -> str:
    return f"{escaped(column.label)} {column.arrow}{' †' if column.machine else ''}{f' ({escaped(column.unit)})' if column.unit else ''}"


def _images_note(table: Board) -> str:
    counts: dict[int, list[str]] = {}
    for column in table.columns:
        for cell in (table.cell(row, column) for row in table.rows):
            if cell is not None and not column.machine and column.label not in counts.setdefault(cell.images, []):
                counts[cell.images].append(column.label)
    if not counts:
        return ""
    most = max(counts, key=lambda count: len(counts[count]))
    others = "; ".join(f"{', '.join(names)}: {count}" for count, names in sorted(counts.items()) if count != most)
    return f"n = {most} images per number{f' ({others})' if others else ''}."


def _machine_note(table: Board) -> list[str]:
    machines = sorted({column.machine for column in table.columns if column.machine})
    return [f"† measured on {'; '.join(machines)}."] if machines else []


def _cell_text(cell: Cell | None, column: Column, best: bool) -> str:
    if cell is None or cell.value is None:
        return MISSING
    text = with_interval(cell)
    return f"**{text}**" if best else text


def with_interval(cell: Cell) -> str:
    """`0.913 ± 0.012` over seeds, `0.913 [0.902, 0.925]` over images, with as many digits as the size of the number asks for."""
    assert cell.value is not None
    if cell.interval is None:
        return number(cell.value)
    low, high = cell.interval
    if cell.interval_over == "seeds":
        return f"{number(cell.value)} ± {number((high - low) / 2)}"
    return f"{number(cell.value)} [{number(low)}, {number(high)}]"


def number(value: float) -> str:
    """Three decimals below 10, then fewer."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:.{digits}f}"


def escaped(text: str) -> str:
    """Text from plugins, safe inside a markdown table."""
    for mark in "\\|<>`*_[]":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text.replace("\n", " ")

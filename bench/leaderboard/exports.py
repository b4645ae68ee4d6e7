"""Exports: boards as LaTeX and comma-separated values, and the papers of their methods as BibTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.leaderboard.comparisons import Comparison, Verdict
from bench.leaderboard.tables import Board, Column, Row
from bench.leaderboard.text import column_digits, number

# Comma-separated values

FIELDS = ("dataset", "model", "trainer", "noise", "kind", "metric", "better_is")
NUMBERS = ("augmenter", "explainer", "value", "low", "high", "interval_over", "seeds", "images", "unscored", "unit", "machine")
COMPARED = (
    "augmenter",
    "explainer",
    "against",
    "other_augmenter",
    "other_explainer",
    "difference",
    "low",
    "high",
    "tested_over",
    "n",
    "effect",
    "p_holm",
)


def boards_csv(tables: Iterable[Board]) -> str:
    """One line per cell of the boards: what the tables show, in full."""
    return _csv((*FIELDS, *NUMBERS), (line for table in tables for line in _number_lines(table)))


def _number_lines(table: Board) -> Iterator[Sequence[Any]]:
    for column in table.columns:
        for row in table.rows:
            cell = table.cell(row, column)
            if cell is not None:
                low, high = cell.interval or (None, None)
                shown = [_figure(cell.value), _figure(low), _figure(high), cell.interval_over, cell.seeds, cell.images, cell.unscored]
                yield [*_about(table, column), row.augmenter, row.explainer, *shown, column.unit, column.machine]


def comparisons_csv(tested: Iterable[tuple[Board, Mapping[Column, Verdict]]]) -> str:
    """One line per paired comparison."""
    rows = (
        [*_about(table, verdict.column), *_compared(each)] for table, judged in tested for verdict in judged.values() for each in verdict.comparisons
    )
    return _csv((*FIELDS, *COMPARED), rows)


def _compared(each: Comparison) -> list[Any]:
    found = each.difference
    figures = [
        _figure(found.mean),
        _figure(found.interval[0]),
        _figure(found.interval[1]),
        found.unit,
        found.n,
        _figure(found.effect),
        _figure(each.p),
    ]
    return [each.row.augmenter, each.row.explainer, each.against, each.other.augmenter, each.other.explainer, *figures]


def _about(table: Board, column: Column) -> list[Any]:
    about = table.about
    names = [about[part]["label"] if about[part] else None for part in ("model", "trainer", "noise")]
    return [table.dataset, *names, table.view or table.kind, column.label, "higher" if column.higher_is_better else "lower"]


def _figure(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else f"{value:.6g}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(value) for value in row] for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A name that begins like a formula is marked as text, for those who open the file in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "-") and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# LaTeX


def latex(tables: Iterable[Board]) -> str:
    """The boards as tables for the booktabs package; the best values bold, floors in italics."""
    parts = ["% Needs \\usepackage{booktabs}."]
    return "\n\n".join([*parts, *(_latex_table(table) for table in tables)]) + "\n"


def _latex_table(table: Board) -> str:
    caption = f"{table.dataset}, {table.heading}: {table.view or table.kind}."
    names = ["augmenter", *(["explainer"] if table.kind == "explanations" else [])]
    arrows = {True: "$\\uparrow$", False: "$\\downarrow$"}
    heads = [*names, *(f"{latex_text(column.label)} {arrows[column.higher_is_better]}" for column in table.columns)]
    columns = [_latex_column(table, column) for column in table.columns]
    body = [[*_latex_names(row), *(texts.get(row, "--") for texts in columns)] for row in table.rows]
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{{'l' * len(names) + 'r' * len(table.columns)}}}",
        "\\toprule",
        " & ".join(heads) + " \\\\",
        "\\midrule",
        *(" & ".join(cells) + " \\\\" for cells in body),
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{latex_text(caption)}}}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def _latex_names(row: Row) -> list[str]:
    names = [latex_text(row.augmenter), *([latex_text(row.explainer)] if row.explainer else [])]
    return [f"\\textit{{{name}}}" for name in names] if row.floor else names


def _latex_column(table: Board, column: Column) -> dict[Row, str]:
    cells = {row: cell for row in table.rows if (cell := table.cell(row, column)) is not None and cell.value is not None}
    digits = column_digits(cell.value for cell in cells.values())
    best = table.best(column) if column.judged else set()
    found = {}
    for row, cell in cells.items():
        assert cell.value is not None
        value = number(cell.value, digits)
        shown = f"\\textbf{{{value}}}" if row in best else value
        if cell.interval and cell.interval_over == "seeds":
            shown += f" $\\pm$ {number((cell.interval[1] - cell.interval[0]) / 2, digits)}"
        elif cell.interval:
            shown += f" [{number(cell.interval[0], digits)}, {number(cell.interval[1], digits)}]"
        found[row] = shown
    return found


LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"} | {mark: f"\\{mark}" for mark in "&%$#_{}"}


def latex_text(text: str) -> str:
    """Text from plugins, safe in LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


# BibTeX


def papers(tables: Iterable[Board]) -> dict[str, list[str]]:
    """The papers of the methods on the boards, each with the names of those methods."""
    found: dict[str, set[str]] = {}
    for table in tables:
        for kind, parts in table.parts.items():
            for label, part in parts.items():
                if part.get("paper"):
                    found.setdefault(part["paper"], set()).add(f"{kind} {label}")
        for kind in ("model", "trainer", "noise"):
            if (part := table.about[kind]) and part.get("paper"):
                found.setdefault(part["paper"], set()).add(f"{kind} {part['label']}")
    return {paper: sorted(names) for paper, names in found.items()}


def bibtex(found: Mapping[str, Sequence[str]]) -> str:
    """An entry per paper, from `Authors; Title; Venue Year; arXiv:number`, the methods in its note."""
    taken: dict[str, int] = {}
    entries = []
    for paper, methods in sorted(found.items()):
        fields = paper_fields(paper)
        key = _citation_key(fields)
        taken[key] = taken.get(key, 0) + 1
        key += "" if taken[key] == 1 else chr(ord("a") + taken[key] - 1)
        fields["note"] = f"bench-xai: {', '.join(methods)}"
        body = ",\n".join(
            f"  {name} = {{{latex_text(value) if name != 'title' else '{' + latex_text(value) + '}'}}}" for name, value in fields.items()
        )
        entries.append(f"@misc{{{key},\n{body},\n}}")
    return "\n\n".join(entries) + "\n"


def paper_fields(paper: str) -> dict[str, str]:
    """`Authors; Title; Venue Year; arXiv:number` as the fields of a BibTeX entry; what is not there is left out."""
    pieces = [piece.strip() for piece in paper.split(";") if piece.strip()]
    arxiv = next((piece.split(":", 1)[1].strip() for piece in pieces if piece.lower().startswith("arxiv:")), None)
    pieces = [piece for piece in pieces if not piece.lower().startswith("arxiv:")]
    fields = {}
    if len(pieces) > 1:
        fields["author"] = _authors(pieces[0])
    fields["title"] = pieces[1] if len(pieces) > 1 else pieces[0] if pieces else paper
    rest = ", ".join(pieces[2:])
    if year := re.search(r"\b(1[89]|20)\d\d\b", rest):
        fields["year"] = year.group()
    if venue := re.sub(r"[\s,]*\b(?:1[89]|20)\d\d\b[\s,]*", " ", rest).strip():
        fields["howpublished"] = venue
    if arxiv:
        fields |= {"eprint": arxiv, "archiveprefix": "arXiv"}
    return fields


def _authors(text: str) -> str:
    others = re.search(r",?\s*(?:et al\.?|and others)\s*$", text)
    names = re.split(r"\s*,\s*|\s+and\s+", text[: others.start()] if others else text)
    return " and ".join([*(name for name in names if name), *(["others"] if others else [])])


def _citation_key(fields: Mapping[str, str]) -> str:
    first = fields.get("author", "anonymous").split(" and ")[0].split()[-1]
    word = next((word for word in re.findall(r"[A-Za-z0-9]+", fields["title"]) if word.lower() not in ("a", "an", "the", "on")), "")
    return re.sub(r"[^a-z0-9]", "", f"{first}{fields.get('year', '')}{word}".lower()) or "paper"

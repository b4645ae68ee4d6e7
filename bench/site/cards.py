"""Cards: what a plugin says about itself, read from its file without running it."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "bench"


@cache
def card(plugin: str) -> str | None:
    """The module docstring of an installed plugin; None where it is not installed, or came as a single file."""
    for entry in entry_points(group=GROUP):
        if entry.name == plugin:
            return _docstring(entry.module)
    return None


def _docstring(module: str) -> str | None:
    try:
        found = find_spec(module)
        source = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
        return ast.get_docstring(ast.parse(source))
    except (ImportError, OSError, SyntaxError, ValueError):
        return None


def paragraphs(text: str) -> list[tuple[str, list[str]]]:
    """(heading, pieces) per paragraph of a card: every second piece stood between backticks.

    A paragraph that opens with `Paper:` or the like has that as its heading; the first is what the method does.
    """
    found = []
    for place, block in enumerate(text.strip().split("\n\n") if text.strip() else []):
        words = " ".join(block.split())
        head, colon, rest = words.partition(": ")
        is_heading = bool(place and colon) and head[:1].isupper() and len(head) < 28 and head.replace(" ", "").isalpha()
        found.append((head, rest.split("`")) if is_heading else ("", words.split("`")))
    return found

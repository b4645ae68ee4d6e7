"""Reference pages: the hooks and the methods, written from the code so that they cannot differ from it."""

from __future__ import annotations

import inspect
from pathlib import Path

from bench import hookspecs, interfaces
from bench.interfaces import KINDS
from bench.plugins import HOOKS, Loaded
from bench.registry import Entry

HEADER = "<!-- Written by `bench plugins --write docs` from the code. Changes by hand are lost. -->\n"


def write(loaded: Loaded, folder: Path) -> list[Path]:
    """Write hooks.md and methods.md, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages(loaded).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def pages(loaded: Loaded) -> dict[str, str]:
    """The text of each page by its file name."""
    return {"hooks.md": hooks_page(), "methods.md": methods_page(loaded)}


def hooks_page() -> str:
    """Every hook with its signature and what its parts look like."""
    parts = [HEADER, "# Hooks\n", inspect.getdoc(hookspecs) or "", ""]
    for hook, kind in HOOKS.items():
        function = getattr(hookspecs, hook)
        parts += [f"## {kind}\n", f"```python\n@bench.hookimpl\ndef {hook}{inspect.signature(function)}\n```\n", inspect.getdoc(function) or "", ""]
        protocol = getattr(interfaces, kind.capitalize(), None)
        if protocol is not None:
            parts += [*_protocol(protocol), ""]
    return "\n".join(parts)


def _protocol(protocol: type) -> list[str]:
    lines = []
    own = inspect.getdoc(protocol)
    if own and own != inspect.getdoc(interfaces.Part):
        lines += [own, ""]
    for name, method in vars(protocol).items():
        if inspect.isfunction(method) and (not name.startswith("_") or name == "__call__") and method.__module__ == interfaces.__name__:
            lines.append(
                f"- `{name}{inspect.signature(method)}`" + (f": {' '.join((inspect.getdoc(method) or '').split())}" if method.__doc__ else "")
            )
    return lines


def methods_page(loaded: Loaded) -> str:
    """Every installed part by kind, then the card of every plugin."""
    parts = [
        HEADER,
        "# Methods\n",
        "What comes with bench-xai. `bench plugins KIND NAME` prints the same in the terminal, for your own plugins too.\n",
    ]
    for kind in KINDS:
        entries = list(loaded.registry.entries(kind))
        if entries:
            parts += [f"## {kind.capitalize()}s\n", *(_item(entry) for entry in entries), ""]
    parts.append("## Cards\n")
    for name, module in sorted(loaded.modules.items()):
        parts += [f"### {name}\n", (module.__doc__ or "").strip(), ""]
    return "\n".join(parts)


def _item(entry: Entry) -> str:
    paper = getattr(entry.factory, "paper", "")
    claim = getattr(entry.factory, "claim", "")
    traits = "; ".join(text for text in (paper and f"*{paper}*", claim) if text)
    return f"- **{entry.name}** ([{entry.plugin}](#{entry.plugin})): {entry.summary}" + (f" {traits}." if traits else "")

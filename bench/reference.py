"""Reference pages: the hooks, the methods and the recipes, written from the code so that they cannot differ from it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from bench import hookspecs, interfaces, spec
from bench.interfaces import KINDS
from bench.plugins import HOOKS, Loaded
from bench.registry import Entry

HEADER = "<!-- Written by `bench plugins --write docs` from the code. Changes by hand are lost. -->\n"
SPECIAL = ("__call__", "__getitem__")  # Methods that say what they are by what they take and return.


def write(loaded: Loaded, folder: Path) -> list[Path]:
    """Write hooks.md, methods.md and recipes.md, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages(loaded).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


def pages(loaded: Loaded) -> dict[str, str]:
    """The text of each page by its file name."""
    return {"hooks.md": hooks_page(loaded), "methods.md": methods_page(loaded), "recipes.md": recipes_page(loaded)}


# Hooks


def hooks_page(loaded: Loaded) -> str:
    """Every hook with its signature and what its parts look like, then what those are given."""
    parts = [HEADER, "# Hooks\n", inspect.getdoc(hookspecs) or "", ""]
    found: dict[str, type] = {}
    for hook, kind in HOOKS.items():
        function = getattr(hookspecs, hook)
        parts += [f"## {kind}\n", f"```python\n@bench.hookimpl\ndef {hook}{_signature(function)}\n```\n", inspect.getdoc(function) or "", ""]
        protocol = getattr(interfaces, kind.capitalize(), None)
        if protocol is not None:
            parts += _protocol(protocol)
        given = passed(kind, loaded)
        if given:
            parts += [f"Given and given back, see below: {', '.join(f'[{name}](#{name.lower()})' for name in given)}.\n"]
        found |= given
    parts += ["## What passes through the hooks\n", "To be imported from `bench.interfaces`, where no other module is named.\n"]
    for name, each in sorted(_with_fields(found).items()):
        parts += _described(name, each)
    return "\n".join(parts)


def passed(kind: str, loaded: Loaded) -> dict[str, type]:
    """The classes of bench, by name, that a part of this kind is given or gives back: as its protocol says, or the installed parts."""
    protocol = getattr(interfaces, kind.capitalize(), None)
    owners = [protocol] if protocol is not None else [entry.factory for entry in loaded.registry.entries(kind)]
    found: dict[str, type] = {}
    for owner in owners:
        for _, function in _functions(owner):
            found |= {each.__name__: each for each in _classes(_hints(function))}
    return dict(sorted(found.items()))


def _with_fields(found: dict[str, type]) -> dict[str, type]:
    """These classes and those that their fields and methods speak of."""
    waiting, known = list(found.values()), dict[str, type]()
    while waiting:
        each = waiting.pop()
        known[each.__name__] = each
        for owner in (each, *(function for _, function in _functions(each))):
            waiting += [other for other in _classes(_hints(owner)) if other.__name__ not in known]
    return known


def _classes(hints: dict[str, Any]) -> Iterator[type]:
    """The classes of bench in some annotations that hold something: dataclasses, named tuples and protocols of data."""
    waiting = list(hints.values())
    while waiting:
        hint = waiting.pop()
        for inner in get_args(hint):
            waiting += inner if isinstance(inner, list) else [inner]
        if isinstance(hint, type) and hint.__module__.startswith("bench.") and _fields(hint):
            yield hint


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return get_type_hints(owner)
    except NameError:  # A plugin may name types that it imports for the type checker alone.
        return {}


def _described(name: str, owner: type) -> list[str]:
    """A section: the docstring, the fields as they stand in the code, and the methods."""
    home = [] if owner.__module__ == interfaces.__name__ else [f"From `{owner.__module__}`.\n"]
    methods = [f"- `{name}{_signature(function, isinstance(vars(owner)[name], property))}`{_said(function)}" for name, function in _functions(owner)]
    return [f"### {name}\n", *home, f"{inspect.getdoc(owner)}\n", "```python", *_fields(owner), "```\n", *methods, *([""] if methods else [])]


@functools.cache
def _fields(owner: type) -> tuple[str, ...]:
    """The lines of a class that declare its public fields, with their defaults and comments; none for an ordinary class."""
    if not (dataclasses.is_dataclass(owner) or hasattr(owner, "_fields") or getattr(owner, "_is_protocol", False)):
        return ()
    source = textwrap.dedent(inspect.getsource(owner))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    declared = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    if not declared:
        return ()
    lines = textwrap.dedent("\n".join(source.splitlines()[declared[0].lineno - 1 : declared[-1].end_lineno])).splitlines()
    return tuple(re.sub(r"  # type: ignore\S*", "", line) for line in lines if not line.startswith("_"))


def _protocol(protocol: type) -> list[str]:
    own = inspect.getdoc(protocol)
    lines = [own, ""] if own and own != inspect.getdoc(interfaces.Part) else []
    return [*lines, *(f"- `{name}{_signature(function)}`{_said(function)}" for name, function in _functions(protocol)), ""]


def _functions(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods that a class itself defines, as functions; properties among them."""
    for name, member in vars(owner).items():
        function: Any = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        own = inspect.isfunction(function) and function.__module__ == owner.__module__
        if own and function.__name__ == name and (not name.startswith("_") or name in SPECIAL):  # A function with another name is a field's default.
            yield name, function


def _signature(function: Callable[..., Any], of_property: bool = False) -> str:
    """As one calls it: without `self`, and annotations without quotation marks; of a property the type alone."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    text = re.sub(r"^\((self|cls)(, )?", "(", text)
    return text.replace("() ->", ":") if of_property else text


def _said(function: Callable[..., Any]) -> str:
    return f": {' '.join((inspect.getdoc(function) or '').split())}" if function.__doc__ else ""


# Methods


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


# Recipes


def recipes_page(loaded: Loaded) -> str:
    """Every recipe with the question it asks, then what a run takes that names no part of a kind."""
    recipes = [_recipe(path) for path in sorted(spec.recipes_folder().glob("*.toml"))]
    parts = [
        HEADER,
        "# Recipes\n",
        "Spec files that come with the package: `bench run NAME`. Flags override them, and `bench plan NAME` says what would be done.\n",
        *_table(["recipe", "what it asks", "data", "network", "seeds"], recipes),
        "## Defaults\n",
        "A run that names no part of a kind takes those that call themselves default. Floors are added to every run, unless it says",
        "`--no-floors` (`floors = false`).\n",
        *_table(["kind", "default", "floors"], _defaults(loaded)),
    ]
    return "\n".join(parts)


def _table(headers: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose cells are as wide as they are; `<` and `|` stand for themselves."""
    lines = [headers, ["---"] * len(headers), *([cell.replace("<", "\\<").replace("|", "\\|") for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _recipe(path: Path) -> list[str]:
    made = spec.make(spec.read(path), path.name)
    asked = [", ".join(request if isinstance(request, str) else str(request["name"]) for request in kind) for kind in (made.datasets, made.models)]
    return [f"[{path.stem}](../bench/recipes/{path.name})", question(path.read_text(encoding="utf-8")), *asked, str(len(made.seeds))]


def question(recipe: str) -> str:
    """What a recipe says of itself first: its comment up to the command or the first field, without a sentence that leads to the command."""
    comment = []
    for line in recipe.splitlines():
        if not line.startswith("# ") or line.startswith("#  "):
            break
        comment.append(line.removeprefix("# "))
    text = " ".join(comment)
    return text.rpartition(". ")[0] + "." if text.endswith(":") else text


def _defaults(loaded: Loaded) -> list[list[str]]:
    plain, all_of_it = (spec.make({"floors": floors}).completed(loaded.registry) for floors in (False, True))
    rows = []
    for kind in spec.COMPLETED:
        defaults = getattr(plain, f"{kind}s")
        taken = getattr(all_of_it, f"{kind}s")
        floors = [entry for entry in loaded.registry.entries(kind) if entry.name in taken and getattr(entry.factory, "floor", False)]
        rows.append([kind, ", ".join(defaults), ", ".join(map(_floor, floors))])
    return rows


def _floor(entry: Entry) -> str:
    trainers = getattr(entry.factory, "trainers", ())
    return f"{entry.name} (with {', '.join(trainers)} alone)" if trainers else entry.name

"""The registry: which parts there are, who brought them, and how a name with parameters becomes a part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bench.errors import InvalidValue, NameTaken, PluginError, UnknownName, WeightsError, did_you_mean
from bench.interfaces import KINDS, ByContent, Reference, unset_additions
from bench.keys import file_digest

TRAITS = {"metric": ("higher_is_better", "category", "unit", "needs")}  # What a class of this kind says about itself.


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered part: its factory, the defaults of this variant, and the plugin and distribution it came from."""

    kind: str
    name: str
    factory: type
    defaults: Mapping[str, Any]
    plugin: str
    distribution: str

    @property
    def version(self) -> int:
        return int(getattr(self.factory, "version", 1))

    @property
    def fields(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self.factory) if field.init]

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring, and in what a variant differs."""
        first = (self.factory.__doc__ or "").strip().split("\n")[0]
        own = ", ".join(f"{name} = {value}" for name, value in self.defaults.items())
        return f"{first.rstrip('.')}, with {own}." if own else first


@dataclasses.dataclass(frozen=True)
class ResolvedPart:
    """A part with every parameter filled in: `part` does the work, `identity()` enters the keys, `label` is shown."""

    entry: Entry
    label: str
    part: Any
    parameters: Mapping[str, Any]
    references: Mapping[str, ResolvedPart] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.entry.kind

    def identity(self) -> dict[str, Any]:
        """Name, version and resolved parameters as JSON: what a key is made of. Paths enter by their content."""
        parameters = dict(self.parameters)
        for name, reference in self.references.items():
            parameters[name] = reference.identity()
        own = getattr(self.part, "identity", None)
        return {"name": self.entry.name, "version": self.entry.version, "parameters": own() if own else parameters}


class Registry:
    """Entries by kind and name. A name taken twice is an error that names both plugins."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, factory: Any, *, name: str | None, defaults: Mapping[str, Any], plugin: str, distribution: str) -> None:
        """Register one factory; `defaults` are this variant's own."""
        where = f"plugin '{plugin}' of {distribution}"
        if not (isinstance(factory, type) and dataclasses.is_dataclass(factory)):
            raise PluginError(
                f"{where} registers {factory!r} as {kind}. A factory is a frozen dataclass: put @dataclass(frozen=True) above the class."
            )
        chosen = name or getattr(factory, "name", None)
        reserved = ":, +" if kind == "augmenter" else ":, "  # `gradcam++` is a name; `mixup+cutout` is two.
        if not isinstance(chosen, str) or not chosen or set(chosen) & set(reserved):
            raise PluginError(
                f"{where} registers {factory.__name__} as {kind} with the name {chosen!r}. "
                f"Give the class `name: ClassVar[str]`, without any of {' '.join(reserved)!r}."
            )
        entry = Entry(kind, chosen, factory, dict(defaults), plugin, distribution)
        taken = self._entries[kind].get(chosen)
        if taken is not None:
            raise NameTaken(
                f"two plugins bring a {kind} called '{chosen}': '{taken.plugin}' of {taken.distribution} and '{plugin}' of {distribution}.\n"
                f"Rename one, or leave one out with --without-plugin {plugin}."
            )
        if missing := [trait for trait in ("version", *TRAITS.get(kind, ())) if not hasattr(factory, trait)]:
            raise PluginError(f"{where} registers {kind} '{chosen}' without {', '.join(missing)}. Give the class these as class attributes.")
        if unknown := set(defaults) - set(entry.fields):
            raise PluginError(f"{where} registers {kind} '{chosen}' with parameters it does not have: {', '.join(sorted(unknown))}.")
        self._entries[kind][chosen] = entry

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """All entries of a kind (or of every kind), by name."""
        for each in [kind] if kind else KINDS:
            yield from sorted(self._entries[each].values(), key=lambda entry: entry.name)

    def entry(self, kind: str, name: str) -> Entry:
        if name not in self._entries[kind]:
            raise UnknownName(kind, name, self._entries[kind])
        return self._entries[kind][name]

    def resolve(self, kind: str, request: str | Mapping[str, Any]) -> ResolvedPart:
        """A part from `"gradcam"`, `"timm:vit_tiny_patch16_224"` or `{"name": "gradcam", "layer": "layer3", "as": "early"}`."""
        request = {"name": request} if isinstance(request, str) else dict(request)
        if "name" not in request:
            raise InvalidValue(f'{kind} {json.dumps(request, default=str)} has no name. Write {{name = "…", parameter = value}}.')
        written = str(request.pop("name"))
        label = str(request.pop("as", written))
        name, colon, argument = written.partition(":")
        entry = self.entry(kind, name)
        if colon:
            request = {_argument_field(entry, written): argument, **request}
        parameters = {**entry.defaults, **request}
        part = _construct(entry, label, parameters)
        return ResolvedPart(entry, label, part, _json_parameters(entry, part), self._references(entry, part))

    def _references(self, entry: Entry, part: Any) -> dict[str, ResolvedPart]:
        kinds = {name: mark.kind for name, mark in _marks(entry.factory).items() if isinstance(mark, Reference)}
        return {name: self.resolve(kind, value) for name, kind in kinds.items() if (value := getattr(part, name)) is not None}


def _argument_field(entry: Entry, written: str) -> str:
    field = getattr(entry.factory, "argument", None)
    if field is None:
        raise InvalidValue(
            f"'{written}' gives {entry.kind} '{entry.name}' an argument after the colon, and it takes none.\n"
            f"Its parameters: {', '.join(entry.fields) or 'none'}"
        )
    return str(field)


def _construct(entry: Entry, label: str, parameters: Mapping[str, Any]) -> Any:
    for name in parameters:
        if name not in entry.fields:
            known = ", ".join(entry.fields) or "none"
            raise InvalidValue(f"{entry.kind} '{label}' has no parameter '{name}'.{did_you_mean(name, entry.fields)}\nIts parameters: {known}")
    try:
        return TypeAdapter(entry.factory).validate_python(dict(parameters))
    except ValidationError as error:
        raise InvalidValue(describe(error, f"{entry.kind} '{label}'")) from None


def describe(error: ValidationError, owner: str) -> str:
    """pydantic's findings as lines that name the field, what was given and what is allowed."""
    lines = []
    for finding in error.errors():
        field = ".".join(str(step) for step in finding["loc"]) or "(all of it)"
        given = json.dumps(finding["input"], default=str)[:80]
        lines.append(f"{owner}: field '{field}' is {given}. {finding['msg']}.")
    return "\n".join(lines)


def _json_parameters(entry: Entry, part: Any) -> dict[str, Any]:
    marks = _marks(entry.factory)
    values = TypeAdapter(entry.factory).dump_python(part, mode="json")
    for name, mark in marks.items():
        if isinstance(mark, ByContent) and getattr(part, name) is not None:
            path = Path(getattr(part, name))
            if not path.is_file():
                raise WeightsError(f"{entry.kind} '{entry.name}': {name} is {path}, and there is no such file.")
            values[name] = file_digest(path)
    unset = unset_additions(part)
    return {name: value for name, value in values.items() if name not in unset}


def _marks(factory: type) -> dict[str, Any]:
    """The `Reference` and `ByContent` marks of a factory's fields."""
    hints = get_type_hints(factory, include_extras=True)
    found = {}
    for field in dataclasses.fields(factory):
        for mark in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(mark, (Reference, ByContent)):
                found[field.name] = mark
    return found

"""The spec: what a run is asked to do, from flags, from TOML, or from both."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.errors import InvalidValue, did_you_mean
from bench.interfaces import Recipe, unset_additions
from bench.keys import key
from bench.registry import Registry, describe

PartRequest = str | dict[str, Any]
COMPLETED = ("dataset", "model", "trainer", "augmenter", "explainer", "metric")
NO_NOISE = "none"


class Spec(BaseModel):
    """One run: every dataset x model x trainer x augmenter x label noise x seed is trained, then explained and scored.

    A part is a name, `"name:argument"`, or a table `{name = "…", parameter = value, as = "label"}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$")] = ""  # If none is given: `run-` and six digits that stand for the rest.
    datasets: tuple[PartRequest, ...] = ()
    models: tuple[PartRequest, ...] = ()
    trainers: tuple[PartRequest, ...] = ()
    augmenters: tuple[PartRequest, ...] = ()
    explainers: tuple[PartRequest, ...] = ()
    metrics: tuple[PartRequest, ...] = ()
    trackers: tuple[PartRequest, ...] = ()
    label_noise: tuple[PartRequest, ...] = (NO_NOISE,)
    seeds: tuple[int, ...] = (0,)
    images: Annotated[int, Field(ge=2, description="test images to explain and score; metrics of plain accuracy take all")] = 500
    target: Literal["predicted", "true"] = "predicted"
    floors: bool = True
    recipe: Recipe = Recipe()

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        """`seeds = 3` means 0, 1, 2."""
        return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("give a number of seeds above 0, or a list of different seeds from 0 up")
        return seeds

    @field_validator("datasets", "models", "trainers", "augmenters", "explainers", "metrics", "trackers", "label_noise", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """One name may stand without its list."""
        return (value,) if isinstance(value, (str, dict)) else value

    @field_validator("recipe", mode="before")
    @classmethod
    def _checked(cls, recipe: Any) -> Any:
        """A recipe made in Python is checked like one that was read."""
        return dataclasses.asdict(recipe) if isinstance(recipe, Recipe) else recipe

    @field_validator("recipe")
    @classmethod
    def _can_report(cls, recipe: Recipe) -> Recipe:
        if recipe.report == "best" and not recipe.validation:
            raise ValueError("report = 'best' chooses by a validation part, and validation is 0")
        return recipe

    def completed(self, registry: Registry, kinds: Sequence[str] = COMPLETED) -> Spec:
        """With the registry's defaults where a list is empty, and the floors added unless they are switched off."""
        lists = {}
        for kind in kinds:
            asked = list(getattr(self, f"{kind}s")) or [entry.name for entry in registry.entries(kind) if _marked(entry, "default")]
            floors = [entry.name for entry in registry.entries(kind) if _marked(entry, "floor")] if self.floors else []
            lists[f"{kind}s"] = tuple([*(name for name in floors if name not in asked), *asked])
            if not lists[f"{kind}s"] and kind not in ("explainer", "metric"):  # A run may only train.
                raise InvalidValue(
                    f"the run names no {kind}, and no installed one calls itself default.\nName one with --{kind}s; installed: bench plugins {kind}"
                )
        completed = self.model_copy(update=lists)
        said = completed.model_dump(mode="json", exclude={"name": True, "recipe": unset_additions(self.recipe)})
        name = self.name or f"run-{key(said)[:6]}"
        return completed.model_copy(update={"name": name})

    def toml(self) -> str:
        """The spec as TOML that `bench run` reads back to the same spec."""
        values = self.model_dump(mode="json", exclude_none=True)
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name != "recipe"]
        recipe = [f"{name} = {_toml(value)}" for name, value in values["recipe"].items()]
        return "\n".join([*lines, "", "[recipe]", *recipe, ""])


def _marked(entry: Any, mark: str) -> bool:
    """Is this the factory's own entry, not a variant of it, and does the factory carry the mark?"""
    return bool(vars(entry.factory).get(mark)) and entry.name == entry.factory.name


def read(path: Path) -> dict[str, Any]:
    """The values of a spec file. Raises InvalidValue naming the line of a mistake in the TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidValue(f"there is no spec file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{path} is not valid TOML: {error}.") from None


def make(values: Mapping[str, Any], source: str = "the spec") -> Spec:
    """A spec from plain values. Raises InvalidValue naming the wrong field, what was given and what is allowed."""
    for name in values:
        if name not in Spec.model_fields:
            raise InvalidValue(
                f"{source} has a field '{name}', which there is not.{did_you_mean(name, Spec.model_fields)}\nFields: {', '.join(Spec.model_fields)}"
            )
    recipe = values.get("recipe", {})
    if not isinstance(recipe, Mapping):
        raise InvalidValue(f"{source}: field 'recipe' is {recipe!r}. It is a table: [recipe], then one line for each field.")
    for name in recipe:
        if name not in Recipe.__dataclass_fields__:
            known = Recipe.__dataclass_fields__
            raise InvalidValue(f"{source} has a field 'recipe.{name}', which there is not.{did_you_mean(name, known)}\nFields: {', '.join(known)}")
    try:
        return Spec(**values)
    except ValidationError as error:
        raise InvalidValue(describe(error, source)) from None


def merge(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply `field=value` settings, values in TOML syntax and dots for tables: `recipe.epochs=3`. Bare words are text."""
    merged = dict(values)
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise InvalidValue(f"--set {setting}: write field=value, for example --set recipe.epochs=3")
        *tables, last = field.strip().split(".")
        target = merged
        for table in tables:
            if not isinstance(target.get(table, {}), Mapping):
                raise InvalidValue(f"--set {setting}: '{table}' is {target[table]!r}, and no table with fields of its own.")
            target[table] = dict(target.get(table, {}))
            target = target[table]
        target[last] = _parse(text.strip())
    return merged


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if text and text[0] in "[{\"'":
            raise InvalidValue(f"--set: {text} is not a TOML value.") from None
        return text


def _toml(value: Any) -> str:
    """A value in TOML; JSON's text, numbers and lists are TOML already, tables are not."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items() if inner is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def recipes_folder() -> Path:
    """Where the recipes that come with the package lie."""
    return Path(__file__).parent / "recipes"


def find(source: str) -> Path:
    """A spec file by its path, or a recipe by its name. Raises InvalidValue naming the recipes there are."""
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        return path
    known = sorted(recipe.stem for recipe in recipes_folder().glob("*.toml"))
    if source not in known:
        raise InvalidValue(f"'{source}' is neither a spec file nor a recipe.{did_you_mean(source, known)}\nRecipes: {', '.join(known) or 'none'}")
    return recipes_folder() / f"{source}.toml"

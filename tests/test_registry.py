"""Names with parameters, and the parts they become."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from bench.errors import InvalidValue, PluginError, UnknownName, WeightsError
from bench.interfaces import ByContent, LaterAddition, Reference
from bench.keys import key
from bench.registry import Registry


@dataclass(frozen=True)
class Plain:
    """What it does.

    And more about it.
    """

    strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    mode: Literal["batch", "elem"] = "batch"

    name: ClassVar[str] = "plain"
    version: ClassVar[int] = 1
    argument: ClassVar[str] = "strength"


@dataclass(frozen=True)
class Refers:
    explainer: Annotated[str | None, Reference("explainer")] = "plain"

    name: ClassVar[str] = "refers"
    version: ClassVar[int] = 3


@dataclass(frozen=True)
class Loads:
    weights: Annotated[Path | None, ByContent()] = None

    name: ClassVar[str] = "loads"
    version: ClassVar[int] = 1


@dataclass(frozen=True)
class SaysItself:
    size: str = "small"

    name: ClassVar[str] = "says-itself"
    version: ClassVar[int] = 1

    def identity(self):
        return {"resolved": f"{self.size}-2024"}


@pytest.fixture
def registry():
    registry = Registry()
    for kind, factory in (("explainer", Plain), ("explainer", Refers), ("augmenter", Refers), ("model", Loads), ("model", SaysItself)):
        add(registry, kind, factory)
    add(registry, "explainer", Plain, name="plain-strong", strength=0.9)
    return registry


def add(registry, kind, factory, name=None, plugin="mine", **defaults):
    registry.add(kind, factory, name=name, defaults=defaults, plugin=plugin, distribution=f"{plugin}-dist 1.0")


# Resolving


def test_a_name_becomes_a_part_with_its_defaults(registry):
    found = registry.resolve("explainer", "plain")
    assert found.part == Plain(0.5, "batch")
    assert (found.label, found.kind) == ("plain", "explainer")
    assert found.identity() == {"name": "plain", "version": 1, "parameters": {"strength": 0.5, "mode": "batch"}}


def test_a_table_gives_parameters_and_a_label_that_is_no_part_of_the_identity(registry):
    found = registry.resolve("explainer", {"name": "plain", "strength": 0.25, "as": "weak"})
    assert (found.part.strength, found.label) == (0.25, "weak")
    assert found.identity() == registry.resolve("explainer", {"name": "plain", "strength": 0.25}).identity()


def test_defaults_spelt_out_are_the_same_part(registry):
    assert (
        registry.resolve("explainer", {"name": "plain", "strength": 0.5, "mode": "batch"}).identity()
        == registry.resolve("explainer", "plain").identity()
    )


def test_a_parameter_that_came_later_enters_only_where_it_is_not_its_default():
    @dataclass(frozen=True)
    class Grown:
        strength: float = 0.5
        twice: Annotated[bool, LaterAddition(False)] = False

        name: ClassVar[str] = "grown"
        version: ClassVar[int] = 1

    registry = Registry()
    registry.add("augmenter", Grown, name=None, defaults={}, plugin="mine", distribution="the test")
    assert registry.resolve("augmenter", "grown").identity()["parameters"] == {"strength": 0.5}
    assert registry.resolve("augmenter", {"name": "grown", "twice": False}).identity()["parameters"] == {"strength": 0.5}
    assert registry.resolve("augmenter", {"name": "grown", "twice": True}).identity()["parameters"] == {"strength": 0.5, "twice": True}


def test_a_whole_number_for_a_float_is_that_float(registry):
    whole, float_ = (registry.resolve("explainer", {"name": "plain", "strength": value}) for value in (1, 1.0))
    assert key(whole.identity()) == key(float_.identity())


def test_what_stands_behind_the_colon_is_the_argument(registry):
    found = registry.resolve("explainer", "plain:0.75")
    assert found.part.strength == 0.75
    assert found.label == "plain:0.75"
    assert found.identity() == registry.resolve("explainer", {"name": "plain", "strength": 0.75}).identity()


def test_an_argument_may_hold_colons_itself(registry):
    with pytest.raises(InvalidValue, match=r'"0\.5:1"'):
        registry.resolve("explainer", "plain:0.5:1")


def test_a_part_that_takes_no_argument_says_so_and_names_its_parameters(registry):
    with pytest.raises(InvalidValue, match=r"(?s)'refers:x' gives explainer 'refers' an argument.*takes none.*explainer"):
        registry.resolve("explainer", "refers:x")


def test_a_variant_has_its_own_defaults_and_its_own_name(registry):
    found = registry.resolve("explainer", "plain-strong")
    assert found.part.strength == 0.9
    assert found.identity()["name"] == "plain-strong"
    assert registry.resolve("explainer", {"name": "plain-strong", "strength": 0.1}).part.strength == 0.1


def test_a_reference_is_resolved_into_the_identity(registry):
    found = registry.resolve("augmenter", {"name": "refers", "explainer": "plain:0.25"})
    assert found.references["explainer"].part == Plain(0.25)
    assert found.identity() == {
        "name": "refers",
        "version": 3,
        "parameters": {"explainer": {"name": "plain", "version": 1, "parameters": {"strength": 0.25, "mode": "batch"}}},
    }


def test_references_go_as_deep_as_they_go(registry):
    found = registry.resolve("augmenter", {"name": "refers", "explainer": "refers"})
    assert found.identity()["parameters"]["explainer"]["parameters"]["explainer"]["name"] == "plain"


def test_a_reference_to_nothing_is_nothing(registry):
    found = registry.resolve("augmenter", {"name": "refers", "explainer": None})
    assert found.references == {}
    assert found.identity()["parameters"] == {"explainer": None}


def test_a_reference_to_a_name_that_is_not_there_is_an_unknown_name(registry):
    with pytest.raises(UnknownName, match=r"no explainer is called 'plane'\. Did you mean 'plain'"):
        registry.resolve("augmenter", {"name": "refers", "explainer": "plane"})


def test_a_file_enters_by_its_content_and_not_by_its_path(registry, tmp_path):
    for name, content in (("one.pt", b"same"), ("two.pt", b"same"), ("three.pt", b"other")):
        (tmp_path / name).write_bytes(content)
    one, two, three = (registry.resolve("model", {"name": "loads", "weights": str(tmp_path / name)}) for name in ("one.pt", "two.pt", "three.pt"))
    assert key(one.identity()) == key(two.identity())
    assert key(one.identity()) != key(three.identity())
    assert str(tmp_path) not in str(one.identity())
    assert one.part.weights == tmp_path / "one.pt"


def test_a_file_that_is_not_there_is_named(registry):
    with pytest.raises(WeightsError, match=r"model 'loads': weights is no\.pt, and there is no such file"):
        registry.resolve("model", {"name": "loads", "weights": "no.pt"})


def test_a_part_may_say_itself_what_it_is(registry):
    assert registry.resolve("model", {"name": "says-itself", "size": "large"}).identity()["parameters"] == {"resolved": "large-2024"}


# Mistakes


def test_an_unknown_name_is_answered_with_the_near_one_and_with_all(registry):
    with pytest.raises(UnknownName) as caught:
        registry.resolve("explainer", "plian")
    assert str(caught.value) == (
        "no explainer is called 'plian'. Did you mean 'plain'?\nInstalled: plain, plain-strong, refers.  More: bench plugins"
    )


def test_a_kind_without_parts_says_none(registry):
    with pytest.raises(UnknownName, match="Installed: none"):
        registry.resolve("metric", "accuracy")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"name": "plain", "strength": 2}, ["explainer 'plain'", "'strength' is 2", "less than or equal to 1"]),
        ({"name": "plain", "mode": "row"}, ["'mode' is \"row\"", "'batch' or 'elem'"]),
        ({"name": "plain", "as": "early", "strength": "x"}, ["explainer 'early'", "'strength' is \"x\"", "valid number"]),
        ({"name": "plain", "strenght": 1}, ["no parameter 'strenght'", "Did you mean 'strength'?", "Its parameters: strength, mode"]),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(registry, request_, words):
    with pytest.raises(InvalidValue) as caught:
        registry.resolve("explainer", request_)
    assert [word for word in words if word not in str(caught.value)] == []


def test_every_wrong_parameter_is_named_at_once(registry):
    with pytest.raises(InvalidValue) as caught:
        registry.resolve("explainer", {"name": "plain", "strength": 2, "mode": "row"})
    assert len(str(caught.value).splitlines()) == 2


# Registering


def test_a_name_taken_twice_names_both_plugins(registry):
    with pytest.raises(PluginError) as caught:
        add(registry, "explainer", Plain, plugin="theirs")
    assert "'mine' of mine-dist 1.0" in str(caught.value)
    assert "'theirs' of theirs-dist 1.0" in str(caught.value)


def test_two_kinds_may_share_a_name(registry):
    add(registry, "augmenter", Plain)
    assert registry.resolve("augmenter", "plain").kind == "augmenter"


@pytest.mark.parametrize("name", ["a:b", "a,b", "a b", ""])
def test_a_name_that_the_command_could_not_read_is_refused(registry, name):
    with pytest.raises(PluginError, match=r"plugin 'mine' of mine-dist 1\.0 registers Named"):
        add(registry, "explainer", dataclass(frozen=True)(type("Named", (), {"name": name, "version": 1, "__module__": __name__})))


def test_a_plus_is_for_augmenters_in_a_row(registry):
    add(registry, "explainer", Plain, name="plain++")
    with pytest.raises(PluginError, match="augmenter"):
        add(registry, "augmenter", Plain, name="plain+more")


@pytest.mark.parametrize("factory", [lambda: None, type("NoDataclass", (), {"name": "x"}), Plain()])
def test_only_a_dataclass_is_a_factory(registry, factory):
    with pytest.raises(PluginError, match=r"@dataclass\(frozen=True\)"):
        add(registry, "explainer", factory)


@pytest.mark.parametrize(
    ("kind", "factory", "missing"),
    [
        ("explainer", type("Bare", (), {"name": "bare"}), "version"),
        ("metric", type("Bare", (), {"name": "bare", "version": 1}), "higher_is_better, category, unit, needs"),
    ],
)
def test_a_part_says_what_its_kind_has_to_say(registry, kind, factory, missing):
    with pytest.raises(PluginError, match=rf"registers {kind} 'bare' without {missing}"):
        add(registry, kind, dataclass(frozen=True)(factory))


def test_a_variant_of_a_parameter_that_is_not_there_is_refused(registry):
    with pytest.raises(PluginError, match="does not have: power"):
        add(registry, "explainer", Plain, name="powerful", power=2)


def test_entries_come_by_name_with_their_summary(registry):
    assert [entry.name for entry in registry.entries("explainer")] == ["plain", "plain-strong", "refers"]
    assert registry.entry("explainer", "plain").summary == "What it does."
    assert registry.entry("explainer", "plain-strong").summary.startswith("What it does, with ")
    assert registry.entry("explainer", "plain").version == 1

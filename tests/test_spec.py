"""What a run is asked to do: from flags, from TOML, or from both, to one and the same spec."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import spec as specs
from bench.errors import InvalidValue
from bench.interfaces import Recipe
from bench.keys import key
from bench.registry import Registry

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
NAMES = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    NUMBERS | st.booleans() | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=5
)
PARTS = TEXTS | st.dictionaries(NAMES, VALUES, max_size=3).map(lambda table: {**table, "name": "part"})
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9._-]{1,8}\Z"),
        **{field: st.lists(PARTS, max_size=3) for field in ("datasets", "augmenters", "explainers", "metrics", "label_noise", "trackers")},
        "seeds": st.integers(1, 5) | st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
        "images": st.integers(2, 10**6),
        "target": st.sampled_from(["predicted", "true"]),
        "floors": st.booleans(),
        "recipe": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.integers(1, 999),
                "learning_rate": st.floats(1e-12, 1e12),
                "schedule": st.sampled_from(["constant", "cosine", "one-cycle", "step"]),
                "milestones": st.lists(st.floats(0, 1), max_size=3),
                "train_images": st.integers(2, 10**6),
                "flip": st.booleans(),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(SPECS)
def test_a_spec_written_as_toml_is_read_back_as_itself(values):
    spec = specs.make(values)
    assert specs.make(tomllib.loads(spec.toml())) == spec


@pytest.mark.parametrize("text", ['quo"te', "back\\slash", "new\nline", "tab\t", "ünï", "\x00", "emoji 🙂", "\x7f"])
def test_any_text_survives_the_file(text):
    spec = specs.make({"explainers": [{"name": "slope", "as": text}]})
    assert specs.make(tomllib.loads(spec.toml())) == spec


def test_any_name_survives_the_file():
    spec = specs.make({"explainers": [{"name": "slope", "🙂": 1}]})
    assert specs.make(tomllib.loads(spec.toml())) == spec


def test_a_parameter_that_is_none_survives_the_file():
    spec = specs.make({"explainers": [{"name": "gradcam", "layer": None}]})
    assert specs.make(tomllib.loads(spec.toml())).explainers in ([{"name": "gradcam"}], ({"name": "gradcam"},), spec.explainers)


def test_the_defaults_survive_the_file():
    assert specs.make(tomllib.loads(specs.Spec().toml())) == specs.Spec()


# Short forms


def test_one_name_may_stand_without_its_list():
    assert specs.make({"explainers": "slope", "augmenters": {"name": "shade"}}) == specs.make(
        {"explainers": ["slope"], "augmenters": [{"name": "shade"}]}
    )


def test_a_number_of_seeds_counts_from_zero():
    assert specs.make({"seeds": 3}).seeds == (0, 1, 2)
    assert specs.make({"seeds": [5, 2]}).seeds == (5, 2)


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1], [-1], True, "3", [0.5], None])
def test_seeds_that_are_none_are_refused(seeds):
    with pytest.raises(InvalidValue, match="'seeds"):
        specs.make({"seeds": seeds})


# Settings


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("images=7", {"images": 7}),
        ("recipe.epochs=3", {"recipe": {"epochs": 3}}),
        ("recipe.learning_rate = 1e-3", {"recipe": {"learning_rate": 0.001}}),
        ("target=true_", {"target": "true_"}),
        ("explainers=slope", {"explainers": "slope"}),
        ('explainers=["slope", {name="random", as="floor"}]', {"explainers": ["slope", {"name": "random", "as": "floor"}]}),
        ("floors=false", {"floors": False}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": ""}),
        ('name="3"', {"name": "3"}),
    ],
)
def test_a_setting_is_toml_and_bare_words_are_text(setting, expected):
    assert specs.merge({}, [setting]) == expected


def test_later_settings_stand_over_earlier_ones_and_over_the_file():
    values = {"images": 3, "recipe": {"epochs": 1, "flip": False}}
    assert specs.merge(values, ["images=4", "images=5", "recipe.epochs=2"]) == {"images": 5, "recipe": {"epochs": 2, "flip": False}}
    assert values == {"images": 3, "recipe": {"epochs": 1, "flip": False}}


@pytest.mark.parametrize("setting", ["images", "recipe.epochs", ""])
def test_a_setting_without_an_equals_sign_shows_how_it_is_written(setting):
    with pytest.raises(InvalidValue, match=r"write field=value, for example --set recipe\.epochs=3"):
        specs.merge({}, [setting])


@pytest.mark.parametrize("text", ["[1, 2", "{a=1", '"open', "'open"])
def test_what_begins_like_toml_and_is_none_is_refused(text):
    with pytest.raises(InvalidValue, match="is not a TOML value"):
        specs.merge({}, [f"images={text}"])


@pytest.mark.parametrize("setting", ["explainers.layer=1", "images.more=1", "recipe.epochs.more=1"])
def test_a_setting_inside_what_is_no_table_is_refused(setting):
    with pytest.raises(InvalidValue):
        specs.merge({"explainers": ["slope"], "images": 3, "recipe": {"epochs": 1}}, [setting])


# Mistakes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"augmentors": "edda"}, ["the spec has a field 'augmentors'", "Did you mean 'augmenters'?", "Fields: name, datasets"]),
        ({"recipe": {"epoch": 3}}, ["'recipe.epoch'", "Did you mean 'epochs'?"]),
        ({"images": 1}, ["field 'images' is 1", "greater than or equal to 2"]),
        ({"target": "all"}, ["field 'target' is \"all\"", "'predicted' or 'true'"]),
        ({"recipe": {"batch_size": 1}}, ["'recipe.batch_size' is 1", "greater than or equal to 2"]),
        ({"recipe": {"precision": "fp16"}}, ["'recipe.precision'", "'fp32' or 'bf16'"]),
        ({"explainers": [3]}, ["'explainers.0"]),
        ({"name": "a b"}, ["'name' is \"a b\""]),
        ({"recipe": {"report": "best"}}, ["recipe", "validation is 0"]),
    ],
)
def test_a_mistake_names_the_field_what_was_given_and_what_is_allowed(values, words):
    with pytest.raises(InvalidValue) as caught:
        specs.make(values)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("recipe", [3, "fast", [1], True])
def test_a_recipe_that_is_no_table_is_refused(recipe):
    with pytest.raises(InvalidValue, match="recipe"):
        specs.make(specs.merge({"recipe": recipe}, []))


def test_a_recipe_made_in_python_is_taken():
    assert specs.Spec(recipe=Recipe(epochs=3)) == specs.make({"recipe": {"epochs": 3}})


def test_a_recipe_made_in_python_is_held_to_its_limits():
    with pytest.raises(ValueError, match="epochs"):
        specs.Spec(recipe=Recipe(epochs=0))


@pytest.mark.parametrize("value", ["learning_rate", "weight_decay"])
def test_a_number_that_no_key_can_hold_is_refused_with_its_field(value):
    with pytest.raises(InvalidValue, match=value):
        specs.make({"recipe": {value: float("inf")}})


@pytest.mark.parametrize(("text", "line"), [("a = 1\nb = = 2\n", 2), ("a = [1,\n2\nb = 3\n", 3), ("\n\n\nname = oops\n", 4)])
def test_a_mistake_in_the_toml_is_named_with_its_line(tmp_path, text, line):
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(InvalidValue, match=rf"spec\.toml is not valid TOML: .*line {line}"):
        specs.read(tmp_path / "spec.toml")


# Finding a file or a recipe


def test_a_recipe_that_comes_along_is_found_by_its_name_and_is_a_spec():
    known = sorted(path.stem for path in specs.recipes_folder().glob("*.toml"))
    assert known
    for name in known:
        specs.make(specs.read(specs.find(name)), name)


def test_a_file_is_found_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("images = 5\n")
    assert specs.make(specs.read(specs.find("mine"))).images == 5
    assert specs.find("missing.toml").name == "missing.toml"


def test_a_folder_does_not_hide_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = sorted(path.stem for path in specs.recipes_folder().glob("*.toml"))[0]
    (tmp_path / name).mkdir()
    assert specs.find(name) == specs.recipes_folder() / f"{name}.toml"


# Defaults and floors


def test_an_empty_list_is_what_calls_itself_default_and_floors_join_what_is_asked_for(registry):
    completed = specs.make({"datasets": "tiny", "models": "tiny-net", "explainers": "slope"}).completed(registry)
    defaults = {entry.name for entry in registry.entries("metric") if vars(entry.factory).get("default") and entry.name == entry.factory.name}
    assert set(completed.metrics) == defaults
    assert completed.explainers == ("centre", "random", "slope")
    assert completed.augmenters[0] == "none"


def test_a_floor_that_is_asked_for_is_not_in_twice(registry):
    completed = specs.make({"datasets": "tiny", "models": "tiny-net", "explainers": ["slope", "random"]}).completed(registry)
    assert completed.explainers == ("centre", "slope", "random")


def test_a_run_without_any_model_to_choose_says_so():
    with pytest.raises(InvalidValue, match="no dataset"):
        specs.Spec().completed(Registry())


def test_completing_twice_changes_nothing(registry):
    once = specs.make({"datasets": "tiny", "models": "tiny-net"}).completed(registry)
    assert once.completed(registry) == once
    assert json.loads(once.model_dump_json())["floors"] is True


# Names of parts of a recipe that results were published with; later ones enter keys where they are used.
PUBLISHED = [
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "schedule",
    "milestones",
    "crop_padding",
    "flip",
    "label_smoothing",
    "validation",
    "report",
    "train_images",
    "precision",
    "memory_format",
]


def test_a_recipe_field_that_came_later_changes_no_published_key():
    assert list(Recipe().identity()) == PUBLISHED
    assert Recipe(equal_passes=True).identity() == {**Recipe().identity(), "equal_passes": True}


def test_a_recipe_field_that_came_later_changes_no_name_of_a_run(registry):
    spec = specs.make({"datasets": "tiny", "models": "tiny-net"}).completed(registry)
    published = spec.model_dump(mode="json", exclude={"name"})
    published["recipe"] = {name: published["recipe"][name] for name in PUBLISHED}
    assert spec.name == f"run-{key(published)[:6]}"
    assert specs.make({"datasets": "tiny", "models": "tiny-net", "recipe": {"equal_passes": True}}).completed(registry).name != spec.name

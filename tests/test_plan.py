"""The plan: which jobs there are, what their keys depend on, and what is left out."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny_parts
import torch
from conftest import SMALL, copied

from bench import plan as plans
from bench import plugins
from bench import spec as specs
from bench.errors import InvalidValue, UnknownName, WeightsError
from bench.interfaces import ArrayData, Recipe
from bench.testing import TinyNetwork, tiny_data


@pytest.fixture
def wider(registry):
    """The small registry with parts that fit only some others, and data with several labels per image."""
    loaded = plugins.Loaded(registry=copied(registry))

    def add(kind: str, factory: Any) -> None:
        loaded.registry.add(kind, factory, name=None, defaults={}, plugin="wider", distribution="the test")

    for kind, factory in (("trainer", CallsAttack), ("augmenter", OnlyForCalls), ("augmenter", HasAttack), ("dataset", SeveralLabels)):
        add(kind, factory)
    for kind, factory in (("metric", ForSeveralLabels), ("metric", ForOneLabel), ("metric", NeedsBoxes), ("metric", NeedsAPlace), ("metric", Timed)):
        add(kind, factory)
    add("model", Another)
    return loaded.registry


@dataclass(frozen=True)
class CallsAttack:
    name: ClassVar[str] = "calls-attack"
    version: ClassVar[int] = 1
    augmenter_methods: ClassVar[tuple[str, ...]] = ("attack",)

    def fit(self, model, data, augmenter, context): ...


@dataclass(frozen=True)
class OnlyForCalls(tiny_parts.Shade):
    name: ClassVar[str] = "only-for-calls"
    version: ClassVar[int] = 1
    trainers: ClassVar[tuple[str, ...]] = ("calls-attack",)


@dataclass(frozen=True)
class HasAttack(tiny_parts.Shade):
    name: ClassVar[str] = "has-attack"
    version: ClassVar[int] = 1

    def attack(self, model, views, context): ...


@dataclass(frozen=True)
class SeveralLabels:
    name: ClassVar[str] = "several-labels"
    version: ClassVar[int] = 1

    def load(self, split, root):
        data = tiny_data(24)
        return ArrayData(dataclasses.replace(data.info, multi_label=True, has_masks=False), data.images, torch.eye(4)[data.labels])


@dataclass(frozen=True)
class ForSeveralLabels(tiny_parts.LogitSum):
    name: ClassVar[str] = "for-several-labels"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("logits", "multi_label")


@dataclass(frozen=True)
class ForOneLabel(tiny_parts.LogitSum):
    name: ClassVar[str] = "for-one-label"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("logits", "single_label")


@dataclass(frozen=True)
class NeedsBoxes(tiny_parts.LogitSum):
    name: ClassVar[str] = "needs-boxes"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("attributions", "boxes")


@dataclass(frozen=True)
class NeedsAPlace(tiny_parts.LogitSum):
    name: ClassVar[str] = "needs-a-place"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("attributions", "masks", "boxes")


@dataclass(frozen=True)
class Timed(tiny_parts.LogitSum):
    name: ClassVar[str] = "timed"
    version: ClassVar[int] = 1
    timed: ClassVar[bool] = True


@dataclass(frozen=True)
class Another:
    seed: int = 0

    name: ClassVar[str] = "another"
    version: ClassVar[int] = 1

    def build(self, info):
        return TinyNetwork(info.num_classes, self.seed)


def keys(plan):
    """The keys of the trainings, explainings and scorings."""
    return tuple([job.key for job in jobs] for jobs in (plan.trainings, plan.explainings, plan.scorings))


# Which jobs there are


def test_every_combination_is_one_job(planned):
    plan = planned(
        augmenters=["none", "shade"], seeds=3, label_noise=["none", "flip:0.2"], explainers=["random", "slope"], metrics=["deletion", "accuracy"]
    )
    assert (len(plan.trainings), len(plan.explainings), len(plan.scorings)) == (12, 24, 24 + 12)
    assert len({job.key for job in plan.jobs}) == len(list(plan.jobs)) == 12 + 24 + 36


def test_a_job_comes_after_those_it_builds_on(planned):
    plan = planned(augmenters=["none", "shade"], explainers=["random", "slope"], metrics=["deletion", "accuracy"])
    place = {job.key: position for position, job in enumerate(plan.jobs)}
    for job in plan.scorings:
        assert place[job.training.key] < place[job.key]
        assert job.explaining is None or place[job.explaining.key] < place[job.key]
    assert all(place[job.training.key] < place[job.key] for job in plan.explainings)


@pytest.mark.parametrize(
    ("kind", "request_", "again"),
    [
        ("datasets", "tiny", {"name": "tiny"}),
        ("models", "tiny-net", {"name": "tiny-net"}),
        ("trainers", "standard", {"name": "standard"}),
        ("trainers", "pretrained", {"name": "pretrained"}),
        ("augmenters", "shade", {"name": "shade", "strength": 0.5}),
        ("label_noise", "flip:0.2", {"name": "flip", "share": 0.2}),
        ("explainers", "slope", {"name": "slope"}),
        ("metrics", "deletion", {"name": "deletion"}),
    ],
)
def test_asking_twice_for_the_same_part_is_asking_once(planned, kind, request_, again):
    assert [len(found) for found in keys(planned(**{kind: [request_, {**again, "as": "again"}]}))] == [1, 1, 1]


def test_floors_are_in_unless_they_are_switched_off(planned):
    plan = planned(floors=True, augmenters="shade", explainers="slope")
    assert {job.augmenter.label for job in plan.trainings} == {"none", "shade"}
    assert {job.explainer.label for job in plan.explainings} == {"random", "centre", "slope"}
    assert {job.augmenter.label for job in planned(augmenters="shade").trainings} == {"shade"}


def test_every_training_knows_the_training_with_its_floor(planned):
    plan = planned(augmenters=["shade", "none"], seeds=2, label_noise=["none", "flip:0.2"])
    by_key = {job.key: job for job in plan.trainings}
    for job in plan.trainings:
        floor = by_key[job.floor]
        assert (floor.augmenter.label, floor.seed, floor.noise and floor.noise.label) == ("none", job.seed, job.noise and job.noise.label)


# What a key depends on: (what is changed, which of training, explaining and scoring get another key)

CHANGES = [
    ({"recipe": {"epochs": 2}}, "TES"),
    ({"recipe": {"batch_size": 8}}, "TES"),
    ({"recipe": {"learning_rate": 0.05}}, "TES"),
    ({"recipe": {"precision": "bf16"}}, "TES"),
    ({"recipe": {"memory_format": "contiguous"}}, "TES"),
    ({"recipe": {"train_images": 32}}, "TES"),
    ({"recipe": {"equal_passes": True}}, "TES"),
    ({"seeds": [1]}, "TES"),
    ({"augmenters": "shade"}, "TES"),
    ({"augmenters": {"name": "shade", "strength": 0.4}}, "TES"),
    ({"label_noise": "flip:0.1"}, "TES"),
    ({"datasets": {"name": "tiny", "train_images": 32}}, "TES"),
    ({"datasets": {"name": "tiny", "test_images": 32}}, "ES"),
    ({"explainers": "slope"}, "ES"),
    ({"explainers": {"name": "slope", "power": 2}}, "ES"),
    ({"images": 9}, "ES"),
    ({"target": "true"}, "ES"),
    ({"metrics": "drop"}, "S"),
    ({"metrics": {"name": "deletion", "steps": 8}}, "S"),
    ({"name": "other"}, ""),
    ({"augmenters": {"name": "none", "as": "plain"}}, ""),
    ({"explainers": {"name": "random", "as": "noise"}}, ""),
    ({"metrics": {"name": "deletion", "as": "del", "steps": 32, "fill": "mean"}}, ""),
    ({"datasets": {"name": "tiny", "as": "quarters"}}, ""),
    ({"models": {"name": "tiny-net", "as": "net"}}, ""),
    ({"datasets": {"name": "tiny", "train_images": 64, "test_images": 24}}, ""),
    ({"recipe": {"momentum": 0.9}}, ""),
    ({"recipe": {"momentum": 0.9, "weight_decay": 0.0005}}, ""),
]


@pytest.mark.parametrize(("changes", "others"), CHANGES, ids=lambda value: str(value).replace("'", "")[:60])
def test_a_key_changes_with_what_matters_and_with_nothing_else(planned, changes, others):
    before, after = keys(planned()), keys(planned(**changes))
    assert "".join(letter for letter, one, other in zip("TES", before, after, strict=True) if one != other) == others


def test_a_key_depends_on_the_version_of_its_part(planned, registry, monkeypatch):
    before = keys(planned())
    monkeypatch.setattr(registry.entry("augmenter", "none").factory, "version", 2)
    assert all(one != other for one, other in zip(before, keys(planned()), strict=True))


def test_the_order_of_lists_changes_no_key(planned):
    lists = {"augmenters": ["none", "shade"], "explainers": ["random", "slope"], "metrics": ["deletion", "accuracy"], "seeds": [0, 1]}
    one, other = planned(**lists), planned(**{name: values[::-1] for name, values in lists.items()})
    assert [sorted(each) for each in keys(one)] == [sorted(each) for each in keys(other)]


def test_the_other_parts_of_a_run_change_no_key(planned):
    alone, amid = planned(augmenters="shade"), planned(augmenters=["mixup", "shade"], seeds=2, explainers=["slope", "random"], floors=True)
    assert all(set(one) <= set(other) for one, other in zip(keys(alone), keys(amid), strict=True))


def test_the_number_of_test_images_is_no_part_of_a_metric_on_all_of_them(planned):
    assert keys(planned(metrics="accuracy"))[2] == keys(planned(metrics="accuracy", images=9))[2]


def test_flips_that_the_data_forbids_are_the_same_training_as_none(planned, wider, monkeypatch):
    load = tiny_parts.Data.load
    factory = wider.entry("dataset", "tiny").factory

    def one_way(self, split, root):
        data = load(self, split, root)
        return ArrayData(dataclasses.replace(data.info, flippable=False), data.images, data.labels, data.masks)

    monkeypatch.setattr(factory, "load", one_way)
    assert keys(planned(recipe={"flip": True})) == keys(planned(recipe={"flip": False}))


@pytest.mark.parametrize("changes", [{"seeds": [1]}, {"augmenters": "shade"}, {"recipe": {"epochs": 9}}, {"label_noise": "flip:0.5"}])
def test_a_network_that_is_trained_already_has_the_same_key_whatever_the_training_would_be(planned, changes):
    before, after = planned(trainers="pretrained"), planned(trainers="pretrained", **changes)
    assert keys(before) == keys(after)
    assert before.trainings[0].augmenter is None


def test_a_network_that_is_trained_already_is_scored_once_whatever_the_lists_are(planned):
    plan = planned(trainers="pretrained", augmenters=["none", "shade"], seeds=3)
    assert [len(each) for each in keys(plan)] == [1, 1, 1]


def test_a_pretrained_networks_key_depends_on_the_model_and_its_weights(planned, wider):
    found = {
        keys(planned(within=wider, trainers="pretrained", models=model))[0][0] for model in ("tiny-net", "another", {"name": "another", "seed": 1})
    }
    assert len(found) == 3


def test_times_are_keyed_with_the_machine_and_other_scores_are_not(planned, wider):
    timed, plain = (planned(within=wider, metrics=name).scorings[0] for name in ("timed", "logit-sum"))
    assert set(timed.identity["machine"]) == {"hardware", "threads"}
    assert "machine" not in plain.identity


def test_threads_change_the_key_of_times_alone(planned, wider):
    before = {name: keys(planned(within=wider, metrics=name))[2] for name in ("timed", "logit-sum")}
    torch.set_num_threads(2)
    after = {name: keys(planned(within=wider, metrics=name))[2] for name in ("timed", "logit-sum")}
    assert before["timed"] != after["timed"]
    assert before["logit-sum"] == after["logit-sum"]


def test_an_explainer_that_is_prepared_is_keyed_with_what_it_is_prepared_on(planned):
    keyed = planned(explainers="far-from-mean").explainings[0].identity
    assert keyed["preparation"]["fingerprint"] == tiny_parts.Data().load("train", None).info.fingerprint
    assert "preparation" not in planned().explainings[0].identity


def test_an_explainer_inside_an_augmenter_is_part_of_the_trainings_key(planned):
    found = {keys(planned(augmenters={"name": "edda", "explainer": explainer}))[0][0] for explainer in ("gradcam", "slope", "random")}
    assert len(found) == 3


def test_a_recipe_made_in_python_is_the_same_training_as_one_made_from_text(planned, registry):
    made = specs.Spec(**{**SMALL, "recipe": Recipe(epochs=1, batch_size=16, crop_padding=2, learning_rate=1)})
    assert keys(plans.make(made, registry, None, "cpu")) == keys(planned(recipe={"learning_rate": 1}))


# The choice of images


def test_the_test_images_are_the_same_for_every_network(planned):
    plan = planned(augmenters=["none", "shade"], seeds=2)
    chosen = [plan.selection(job.data) for job in plan.trainings]
    assert all(torch.equal(chosen[0], each) for each in chosen)
    assert len(chosen[0]) == 8
    assert (chosen[0] % 4).bincount().tolist() == [2, 2, 2, 2]  # tiny_data's classes are 0, 1, 2, 3, 0, …


def test_another_run_chooses_the_same_images(planned):
    one, other = planned(), planned(name="other", augmenters="shade", images=12)
    few, more = one.selection(one.trainings[0].data), other.selection(other.trainings[0].data)
    assert set(few.tolist()) <= set(more.tolist())


# What is left out, and why


def left_out(plan):
    return "\n".join(plan.left_out)


def test_a_trainer_is_not_paired_with_an_augmenter_that_lacks_its_method(planned, wider):
    plan = planned(within=wider, trainers=["calls-attack", "standard"], augmenters=["shade", "has-attack"])
    assert {(job.trainer.label, job.augmenter.label) for job in plan.trainings} == {
        ("calls-attack", "has-attack"),
        ("standard", "shade"),
        ("standard", "has-attack"),
    }
    assert left_out(plan) == "calls-attack x shade: the trainer calls attack, which the augmenter does not have"


def test_an_augmenter_is_not_paired_with_a_trainer_it_is_not_made_for(planned, wider):
    plan = planned(within=wider, augmenters=["only-for-calls", "none"])
    assert [job.augmenter.label for job in plan.trainings] == ["none"]
    assert left_out(plan) == "standard x only-for-calls: the augmenter is made for calls-attack"


def test_equal_passes_leave_out_a_trainer_that_counts_in_epochs(planned, wider):
    plan = planned(within=wider, trainers=["calls-attack", "standard", "pretrained"], augmenters="has-attack", recipe={"equal_passes": True})
    assert {job.trainer.label for job in plan.trainings} == {"standard", "pretrained"}
    assert left_out(plan) == "calls-attack: recipe.equal_passes ends a training early, and this trainer counts in epochs"


@pytest.mark.parametrize(
    ("metric", "changes", "reason"),
    [
        ("inside", {"datasets": "several-labels"}, "the data has no masks"),
        ("needs-boxes", {}, "the data has no boxes"),
        ("needs-a-place", {"datasets": "several-labels"}, "the data has neither masks nor boxes"),
        ("for-several-labels", {}, "the data has one label per image"),
        ("for-one-label", {"datasets": "several-labels"}, "the data has several labels per image"),
        ("passes-over-floor", {"trainers": "pretrained"}, "nothing is trained"),
    ],
)
def test_a_metric_is_left_out_where_what_it_needs_is_not_there(planned, wider, metric, changes, reason):
    plan = planned(within=wider, metrics=[metric, "logit-sum"], **changes)
    assert {job.metric.label for job in plan.scorings} == {"logit-sum"}
    assert reason in left_out(plan)
    assert metric in left_out(plan)


def test_either_masks_or_boxes_will_do(planned, wider):
    assert len(planned(within=wider, metrics="needs-a-place").scorings) == 1


def test_label_noise_on_data_with_several_labels_is_left_out_before_anything_is_trained(planned, wider):
    plan = planned(within=wider, datasets="several-labels", metrics="logit-sum", label_noise=["none", "flip:0.5"])
    assert [job.noise for job in plan.trainings] == [None]
    assert "flip" in left_out(plan)


def test_a_metric_without_maps_is_scored_once_for_a_network(planned):
    plan = planned(explainers=["random", "slope"], metrics=["logit-sum"])
    assert [job.explaining for job in plan.scorings] == [None]


# Mistakes


def test_a_name_that_nobody_registered_is_refused_before_anything_is_done(planned):
    with pytest.raises(UnknownName, match=r"no explainer is called 'slop'\. Did you mean 'slope'"):
        planned(explainers="slop")


def test_a_parameter_that_is_not_there_is_refused_with_those_that_are(planned):
    with pytest.raises(InvalidValue, match=r"(?s)explainer 'slope' has no parameter 'powr'\. Did you mean 'power'.*power, weights"):
        planned(explainers={"name": "slope", "powr": 2})


def test_a_recipe_for_a_trained_network_says_before_it_starts_that_its_weights_are_missing():
    installed = plugins.load().registry
    recipe = specs.read(specs.find("cifar100-pretrained"))
    with pytest.raises(InvalidValue, match=r"(?s)model 'cifar-resnet56' has no weights: its numbers would be those of chance.*weights=\"FILE\""):
        plans.make(specs.make(recipe).completed(installed), installed, None, "cpu")
    elsewhere = {**recipe, "models": [{"name": "cifar-resnet56", "weights": "nowhere.pt"}]}
    with pytest.raises(WeightsError, match=r"weights is nowhere\.pt, and there is no such file"):
        plans.make(specs.make(elsewhere).completed(installed), installed, None, "cpu")


@pytest.mark.parametrize("trainer", ["standard", "pretrained"])
def test_weights_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, trainer):
    installed = plugins.load().registry
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    asked = {"datasets": "digits", "models": {"name": "resnet18", "weights": str(tmp_path / "other.pt")}, "trainers": trainer}
    with pytest.raises(WeightsError, match=r"other\.pt"):
        plans.make(specs.make({**asked, "augmenters": "none", "explainers": "random"}).completed(installed), installed, None, "cpu")

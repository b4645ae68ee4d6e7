"""Composition of augmenters: `a+b` is b on what a returned, each with draws of its own, and what makes no sense is refused in words."""

import json
import tomllib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conftest import copied

from bench import composition, contexts, plugins, testing
from bench import spec as specs
from bench.errors import InvalidValue, UnknownName
from bench.interfaces import ArrayData, Batch, Recipe
from bench.plan import _misfit
from bench.registry import ResolvedPart
from bench.train import FitContext, fit, training_data
from bench_plugins.fitting import Standard
from bench_plugins.mixing import Mixup

INSTALLED = plugins.load().registry


@dataclass(frozen=True)
class Half:
    """Halves the brightness."""

    name: ClassVar[str] = "half"
    version: ClassVar[int] = 3

    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs / 2)


@dataclass(frozen=True)
class Lift:
    """Lifts black to a quarter."""

    by: float = 0.25

    name: ClassVar[str] = "lift"
    version: ClassVar[int] = 1

    def __call__(self, model, batch, context):
        return batch.replace(inputs=self.by + (1 - self.by) * batch.inputs)


@dataclass(frozen=True)
class Drawing:
    """Keeps what it drew, as many numbers as it is told and a fill."""

    count: int = 1

    name: ClassVar[str] = "drawing"
    version: ClassVar[int] = 1
    seen: ClassVar[list] = []

    def __call__(self, model, batch, context):
        drawn = [torch.rand(self.count, generator=context.generator), context.fill("noise", batch.inputs)]
        self.seen.append(drawn)
        return batch


@dataclass(frozen=True)
class OwnLoss(Half):
    name: ClassVar[str] = "own-loss"

    def loss(self, logits, batch):
        return logits.sum(1) * 0 + 7


@dataclass(frozen=True)
class OwnForward(Half):
    name: ClassVar[str] = "own-forward"

    def forward(self, model, batch, context):
        return model(batch.inputs) * 0 + context.generator.initial_seed() % 2


@dataclass(frozen=True)
class Growing(Half):
    name: ClassVar[str] = "growing"

    def end_epoch(self, model, data, context):
        return ArrayData(data.info, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))


@dataclass(frozen=True)
class Branching(Half):
    name: ClassVar[str] = "branching"
    branches: ClassVar[tuple[float, ...]] = (0.01,)


@dataclass(frozen=True)
class Attacking(Half):
    name: ClassVar[str] = "attacking"

    def attack(self, model, inputs, context): ...


@dataclass(frozen=True)
class OnlyForSome(Half):
    name: ClassVar[str] = "only-for-some"
    trainers: ClassVar[tuple[str, ...]] = ("contrastive",)


@dataclass(frozen=True)
class TakesAttacks(Standard):
    name: ClassVar[str] = "takes-attacks"
    optional_methods: ClassVar[tuple[str, ...]] = ("attack",)


OURS = (Half, Lift, Drawing, OwnLoss, OwnForward, Growing, Branching, Attacking, OnlyForSome)


@pytest.fixture
def wider(registry):
    copy = copied(registry)
    for kind, factory in [("trainer", TakesAttacks), *(("augmenter", factory) for factory in OURS)]:
        copy.add(kind, factory, name=None, defaults={}, plugin=factory.name, distribution="the test")
    return copy


def images():
    data = testing.tiny_data(8)
    return Batch.of(data.images.float() / 255, torch.eye(4)[data.labels])


def step(model, **options):
    return testing.step_context(model, model.layers, None, testing.dataset_info(4, (16, 16), 3), **options)


def applied(part, **options):
    model = testing.TinyNetwork()
    return part(model, images(), step(model, **options))


# What it does


def test_the_second_is_applied_to_what_the_first_returned(wider):
    first, second = (composition.resolve(wider, name).part for name in ("half+lift", "lift+half"))
    inputs = images().inputs
    assert torch.equal(applied(first).inputs, 0.25 + 0.75 * (inputs / 2))
    assert torch.equal(applied(second).inputs, (0.25 + 0.75 * inputs) / 2)


def test_three_may_be_joined(wider):
    assert torch.equal(applied(composition.resolve(wider, "half+half+half").part).inputs, images().inputs / 8)


def test_a_composition_is_its_parts_done_by_hand_on_their_streams():
    model, batch = testing.TinyNetwork().train(), images()
    context = step(model, key="k", epoch=3, step=2)
    found = composition.resolve(INSTALLED, {"of": ["edda-random", {"name": "mixup", "mode": "elem"}]}).part(model, batch, context)

    def own(place, name):
        stream = contexts.generator("composition", place, name, context.generator.initial_seed())
        return step(model, key="by hand"), stream

    by_hand, stream = own(1, "mixup")
    by_hand.generator = stream
    edda = INSTALLED.resolve("augmenter", "edda-random")
    random_maps = edda.references["explainer"].part
    first, _ = own(0, "edda-random")

    def explain(model, inputs, targets):
        rows = contexts.Streams(len(inputs), "composition", 0, "edda-random", context.generator.initial_seed(), "explain")
        return contexts.explain(model, random_maps, inputs, targets, contexts.explain_context(model, context.info, [], [], rows))

    first.explain = explain
    expected = Mixup(mode="elem")(model, edda.part(model, batch, first), by_hand)
    for name in Batch.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("greedy", [1, 50])
def test_what_the_first_draws_changes_nothing_in_the_draws_of_the_second(wider, greedy):
    Drawing.seen.clear()
    for count in (1, greedy):
        applied(composition.resolve(wider, {"of": [{"name": "drawing", "count": count}, "drawing"]}).part)
    (_, once), (_, again) = Drawing.seen[:2], Drawing.seen[2:]
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])


def test_two_of_one_kind_draw_differently_and_another_step_differs(wider):
    Drawing.seen.clear()
    part = composition.resolve(wider, "drawing+drawing").part
    applied(part, step=0)
    applied(part, step=1)
    assert len({float(drawn) for drawn, _ in Drawing.seen}) == 4
    assert not torch.equal(Drawing.seen[0][1], Drawing.seen[1][1])


def test_explainers_of_two_parts_draw_differently():
    class Maps:
        def __call__(self, model, inputs, targets, context):
            return torch.stack([torch.rand(1, *inputs.shape[2:], generator=stream) for stream in context.generators])

    seen = []

    @dataclass(frozen=True)
    class Asks(Half):
        explainer: Any = None
        name: ClassVar[str] = "asks"

        def __call__(self, model, batch, context):
            seen.append(context.explain(model, batch.inputs, batch.labels))
            return batch

    entry = INSTALLED.entry("augmenter", "edda-random")
    explainer = ResolvedPart(INSTALLED.entry("explainer", "random"), "maps", Maps(), {})
    parts = [ResolvedPart(entry, "asks", Asks(), {}, {"explainer": explainer}) for _ in range(2)]
    applied(composition.Composition(parts))
    assert seen[0].shape == (8, 1, 16, 16)
    assert not torch.equal(seen[0], seen[1])


# Trainings


def train(part, folder=None, epochs=3, report=lambda progress: None):
    data, model = testing.tiny_data(48, size=8), testing.TinyNetwork()
    recipe = Recipe(epochs=epochs, batch_size=16, crop_padding=2)
    context = FitContext(recipe, data.info, 0, "key", "cpu", model.layers[-1:], model.layers, folder=folder, report=report)
    cost = fit(Standard(), model, training_data(data, recipe, None, None), part, context)
    return model.state_dict(), cost


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_passes_of_every_part_are_counted():
    _, cost = train(composition.resolve(INSTALLED, {"of": [{"name": "lpa3", "iterations": 1}, "mixup"]}).part, epochs=1)
    # Each image: 1 + 2 forwards and 1 backward of the attack, then it and its twin, mixed, forward and backward.
    assert (cost["forward"], cost["backward"], cost["rows"], cost["images"]) == (48 * 5, 48 * 3, 96, 48)


def test_the_loss_the_forward_and_the_images_of_a_part_are_those_of_the_composition(wider):
    whole = composition.resolve(wider, "growing+own-loss").part
    _, cost = train(whole, epochs=2)
    assert [epoch["loss"] for epoch in cost["epochs"]] == [7, 7]
    assert [epoch["images"] for epoch in cost["epochs"]] == [48, 48]  # 52 images make three batches too.
    assert not hasattr(whole, "forward")
    assert not hasattr(composition.resolve(wider, "half+lift").part, "loss")
    assert hasattr(composition.resolve(wider, "half+own-forward").part, "forward")


def test_a_forward_of_its_own_sees_the_stream_of_its_own_call():
    """Manifold mixup mixes targets in its call and features in its forward, from one stream: what is mixed with itself agrees."""
    part = composition.resolve(INSTALLED, {"of": ["edda-random", {"name": "manifold-mixup", "stages": 0}]}).part
    model = testing.TinyNetwork().eval()
    context = step(model)
    augmented = part(model, images(), context)
    plan = part.parts[1].part.plan(augmented, part._own(1, model, context))
    mixed = torch.lerp(augmented.inputs[plan.partners], augmented.inputs, float(plan.share))
    assert torch.equal(part.forward(model, augmented, context), model(mixed))


def test_a_stopped_training_ends_with_the_same_weights(tmp_path):
    class Stops(Exception):
        pass

    def stop(progress):
        if (progress["epoch"], progress["step"]) == (1, 2):
            raise Stops

    requests = {"of": [{"name": "lpa3", "iterations": 1, "start": 0.3, "auxiliary_norm": True}, "cutmix"]}
    whole, _ = train(composition.resolve(INSTALLED, requests).part)
    with pytest.raises(Stops):
        train(composition.resolve(INSTALLED, requests).part, tmp_path, report=stop)
    assert same(whole, train(composition.resolve(INSTALLED, requests).part, tmp_path)[0])


def test_what_a_part_keeps_is_kept_with_the_composition():
    class Counts(Half):
        def __init__(self):
            self.number = [0]

        def state_dict(self):
            return {"number": self.number[0]}

        def load_state_dict(self, state):
            self.number[0] = state["number"]

    entry = INSTALLED.resolve("augmenter", "mixup")
    first, second = (composition.Composition([entry, ResolvedPart(entry.entry, "counts", Counts(), {})]) for _ in range(2))
    first.parts[1].part.number[0] = 5
    second.load_state_dict(first.state_dict())
    assert second.parts[1].part.number == [5]


# Identity


def test_the_identity_is_that_of_the_parts_in_their_order(wider):
    half, lift = (wider.resolve("augmenter", name).identity() for name in ("half", "lift"))
    assert composition.resolve(wider, "half+lift").identity() == {"name": "half+lift", "version": 1, "parameters": {"1": half, "2": lift}}
    assert json.loads(json.dumps(half)) == {"name": "half", "version": 3, "parameters": {}}


def test_order_and_parameters_decide_the_key_and_writing_does_not(planned, wider):
    def key(request):
        return planned(within=wider, augmenters=[request]).trainings[0].key

    asked = ["half+lift", "lift+half", {"of": ["half", {"name": "lift", "by": 0.5}]}, "half", "half+half"]
    assert len({key(request) for request in asked}) == len(asked)
    same_again = ["half + lift", {"name": "half+lift"}, {"of": ["half", {"name": "lift", "by": 0.25}]}, {"of": ["half", "lift"], "as": "both"}]
    assert {key(request) for request in same_again} == {key("half+lift")}
    assert key({"of": ["half+lift", "half"]}) == key("half+lift+half")


def test_a_single_augmenter_is_what_it_was(wider):
    for request in ("shade", {"name": "shade", "strength": 0.3, "as": "dim"}):
        assert composition.resolve(wider, request) == wider.resolve("augmenter", request)


def test_a_label_names_the_parts_unless_another_is_given(wider):
    assert composition.resolve(wider, {"of": [{"name": "lift", "by": 0.5, "as": "high"}, "half"]}).label == "high+half"
    assert composition.resolve(wider, {"name": "lift+half", "as": "both"}).label == "both"
    entry = composition.resolve(wider, "lift+shade").entry
    assert (entry.name, entry.plugin) == ("lift+shade", "lift, tiny_parts")


def test_a_spec_with_a_composition_is_written_and_read_again(wider):
    spec = specs.make({"augmenters": ["half+lift", {"of": ["half", {"name": "lift", "by": 0.5}], "as": "other"}]})
    assert specs.make(tomllib.loads(spec.toml())).augmenters == spec.augmenters


def test_a_run_trains_and_scores_a_composition(ran):
    outcome = ran(augmenters=["none", "shade+mixup"], metrics=["accuracy", "passes-over-floor"])
    assert outcome.failures == {}
    lines = {(line["augmenter"]["label"], line["metric"]["name"]): line for line in outcome.lines}
    assert lines["shade+mixup", "passes-over-floor"]["value"] == 1
    assert lines["shade+mixup", "accuracy"]["augmenter"]["parameters"]["2"]["parameters"]["mixup_alpha"] == 1.0


# What has no meaning


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("own-loss+half", ["'own-loss' brings a loss of its own", "none can come after it"]),
        ("own-forward+half", ["'own-forward' brings a forward of its own"]),
        ("own-loss+own-loss", ["'own-loss' brings a loss"]),
        ("growing+growing", ["'growing' and 'growing' both add images"]),
        ("branching+branching", ["both send rows through batch norms"]),
        ("branching+own-forward", ["'own-forward' brings knows of none"]),
        ("none+half", ["'none' is a floor, which does nothing. Leave it out."]),
        ("half+only-for-some", ["'only-for-some' is made for trainer contrastive"]),
        ("half+", ["'half+' names nothing on one side"]),
        ({"name": "half+lift", "by": 0.5}, ["no parameters of its own", '{of = [{name = "half", …}, {name = "lift", …}]}']),
        ({"of": ["half"]}, ["two augmenters or more"]),
        ({"of": "half"}, ["two augmenters or more"]),
        ({"of": ["half", "lift"], "by": 0.5}, ["each has its own parameters"]),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_before_anything_is_done(planned, wider, request_, words):
    with pytest.raises(InvalidValue) as caught:
        planned(within=wider, augmenters=[request_])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_part_that_nobody_registered_is_named(wider):
    with pytest.raises(UnknownName, match=r"no augmenter is called 'lifd'\. Did you mean 'lift'"):
        composition.resolve(wider, "half+lifd")


def test_a_composition_is_not_paired_with_a_trainer_that_calls_more_of_its_parts(planned, wider):
    plan = planned(within=wider, trainers=["takes-attacks", "standard"], augmenters=["half+attacking", "half+lift", "attacking"])
    assert {(job.trainer.label, job.augmenter.label) for job in plan.trainings} == {
        ("standard", "half+attacking"),
        ("standard", "half+lift"),
        ("takes-attacks", "half+lift"),
        ("standard", "attacking"),
        ("takes-attacks", "attacking"),
    }
    assert plan.left_out == (
        "takes-attacks x half+attacking: the trainer calls the attack of attacking and nothing else of it, "
        "so that nothing can follow it or come before it",
    )


@pytest.mark.parametrize(("trainer", "part"), [("pes", "lpa3+mixup"), ("supcon", "cutout+mixup")])
def test_trainers_that_call_augmenters_in_ways_of_their_own_leave_compositions_out(trainer, part):
    resolved = composition.resolve(INSTALLED, part)
    assert "calls" in _misfit(INSTALLED.resolve("trainer", trainer), resolved)
    assert _misfit(INSTALLED.resolve("trainer", "standard"), resolved) is None


SIMPLE = [entry.name for entry in INSTALLED.entries("augmenter") if not getattr(entry.factory, "trainers", None) and entry.name != "none"]


@pytest.mark.parametrize("name", SIMPLE)
def test_every_augmenter_can_follow_another(name):
    """Cutout first: the rows that come out can be trained on."""
    part = composition.resolve(INSTALLED, {"of": ["cutout", {"name": name, **getattr(INSTALLED.entry("augmenter", name).factory, "quick", {})}]}).part
    model = testing.TinyNetwork().train()
    context = step(model, epoch=8, epochs=10, progress=0.8)
    found = part(model, images(), context)
    assert len({len(getattr(found, field)) for field in Batch.__dataclass_fields__}) == 1
    assert found.inputs.isfinite().all()

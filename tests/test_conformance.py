"""Every installed part keeps the promises of its hook, and the kit that says so finds those that do not."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from bench import checks, plugins
from bench.errors import InvalidValue, UnknownName
from bench.interfaces import ArrayData, Batch, Layer
from bench.registry import Registry
from bench.testing import TinyNetwork, tiny_data
from bench_plugins._views import Views

INSTALLED = plugins.load().registry
CASES = checks.cases(INSTALLED)


@pytest.mark.parametrize(("entry", "claim", "check"), CASES, ids=[f"{entry.kind}-{entry.name}-{claim}" for entry, claim, _ in CASES])
def test_an_installed_part_keeps_its_promise(entry, claim, check):
    try:
        check(checks.resolved(entry, INSTALLED), INSTALLED)
    except checks.NotTried as reason:
        pytest.skip(str(reason))


# The kit itself: parts that break one promise each


def of(kind, *factories):
    """A registry of these parts alone, and of a floor to train with."""
    registry = Registry()
    for factory in factories:
        registry.add(kind, factory, name=None, defaults={}, plugin="mine", distribution="the test")
    return registry


def broken(kind, factory):
    """The claims that the part does not keep, and what was said of each."""
    return {finding.claim: finding.reason for finding in checks.run(of(kind, frozen(factory))) if not finding.passed}


def frozen(factory):
    """The class as the dataclass that a factory has to be."""
    return dataclass(frozen=True)(type(factory.__name__, (factory,), {"__doc__": factory.__doc__}))


def gradient(model, inputs, targets):
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).gather(1, targets[:, None]).sum(), inputs)[0].sum(1, keepdim=True)


@dataclass(frozen=True)
class Explainer:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def __call__(self, model, inputs, targets, context):
        return gradient(model, inputs, targets)


class LeavesAHook(Explainer):
    def __call__(self, model, inputs, targets, context):
        model.second.register_forward_hook(lambda *given: None)
        return gradient(model, inputs, targets)


class CoupledAcrossRows(Explainer):
    def __call__(self, model, inputs, targets, context):
        maps = gradient(model, inputs, targets)
        return maps / maps.abs().max()


class ChangesAWeight(Explainer):
    def __call__(self, model, inputs, targets, context):
        maps = gradient(model, inputs, targets)
        model.fc.bias.data.add_(1e-3)
        return maps


class LeavesABuffer(Explainer):
    def __call__(self, model, inputs, targets, context):
        model.second.register_buffer("left_behind", torch.zeros(1))
        return gradient(model, inputs, targets)


class DrawsFromTheGlobalStream(Explainer):
    def __call__(self, model, inputs, targets, context):
        return gradient(model, inputs, targets) + torch.rand(1)


class SharesOneStream(Explainer):
    def __call__(self, model, inputs, targets, context):
        return torch.rand(len(inputs), 1, *inputs.shape[2:], generator=context.generators[0])


class OfAnotherShape(Explainer):
    def __call__(self, model, inputs, targets, context):
        return gradient(model, inputs, targets)[:, :, ::2, ::2]


class DividesByNothing(Explainer):
    def __call__(self, model, inputs, targets, context):
        return inputs.mean(1, keepdim=True) / inputs.sum((1, 2, 3), keepdim=True)


class WritesGradients(Explainer):
    def __call__(self, model, inputs, targets, context):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model(inputs).sum().backward()
        return inputs.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("factory", "claim", "word"),
    [
        (LeavesAHook, "leaves the model as it found it", "hooks"),
        (CoupledAcrossRows, "explains a batch as it explains its parts", "when its neighbours change"),
        (ChangesAWeight, "leaves the model as it found it", "weights and buffers"),
        (ChangesAWeight, "works inside a training step, and changes nothing about it", "weights"),
        (LeavesABuffer, "leaves the model as it found it", "weights and buffers"),
        (DrawsFromTheGlobalStream, "leaves the model as it found it", "random state"),
        (SharesOneStream, "explains a batch as it explains its parts", "when its neighbours change"),
        (OfAnotherShape, "gives one finite map per image, float32", "(B, 1, H, W)"),
        (DividesByNothing, "is finite on a black image and on a white one", "not finite"),
        (WritesGradients, "leaves the model as it found it", "gradients"),
    ],
)
def test_an_explainer_that_breaks_a_promise_is_found(factory, claim, word):
    found = broken("explainer", factory)
    assert claim in found
    assert word in found[claim]


def test_an_explainer_that_keeps_its_promises_is_found_to():
    assert broken("explainer", Explainer) == {}


@dataclass(frozen=True)
class Augmenter:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def __call__(self, model, batch: Batch, context) -> Batch:
        return batch.replace(inputs=batch.inputs * torch.rand(len(batch), 1, 1, 1, generator=context.generator))


class LeavesTheRange(Augmenter):
    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs + 0.5)


class DrawsGlobally(Augmenter):
    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs * torch.rand(len(batch), 1, 1, 1))


class ForgetsItsWeights(Augmenter):
    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs.repeat(2, 1, 1, 1), targets=batch.targets.repeat(2, 1))


class LosesANumber(Augmenter):
    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs / batch.inputs.mean() * torch.nan)


class TargetsAboveOne(Augmenter):
    def __call__(self, model, batch, context):
        return batch.replace(targets=batch.targets * 2)


class MovesBatchNorm(Augmenter):
    def __call__(self, model, batch, context):
        model(batch.inputs)
        return batch


class LeavesAGradient(Augmenter):
    def __call__(self, model, batch, context):
        model(batch.inputs.requires_grad_()).sum().backward()
        batch.inputs.requires_grad_(False)
        return batch


class MovesBatchNormAfterAnEpoch(Augmenter):
    def end_epoch(self, model, data, context):
        model(data.inputs(data.indices))


class CountsItsCalls(Augmenter):
    calls: ClassVar[Any] = itertools.count()

    def __call__(self, model, batch, context):
        return batch.replace(inputs=batch.inputs / (1 + next(self.calls)))


ROWS = "returns rows that can be trained on: images in [0, 1], targets and weights for each"
LEFT = "leaves the model and the global random stream as it found them"
STEP = "leaves a training step that ignores what it returns the same to the bit"
AGAIN = "does the same again when asked the same again"


@pytest.mark.parametrize(
    ("factory", "claim", "word"),
    [
        (LeavesTheRange, ROWS, "images leave [0, 1]"),
        (LosesANumber, ROWS, "images leave [0, 1]"),
        (TargetsAboveOne, ROWS, "targets leave [0, 1]"),
        (ForgetsItsWeights, ROWS, "lengths differ"),
        (DrawsGlobally, LEFT, "random state"),
        (DrawsGlobally, AGAIN, "differ"),
        (MovesBatchNorm, LEFT, "weights and buffers"),
        (MovesBatchNorm, STEP, "weights after the step"),
        (LeavesAGradient, STEP, "weights after the step"),
        (MovesBatchNormAfterAnEpoch, STEP, "weights after the step"),
        (CountsItsCalls, AGAIN, "differ"),
    ],
)
def test_an_augmenter_that_breaks_a_promise_is_found(factory, claim, word):
    found = broken("augmenter", factory)
    assert claim in found
    assert word in found[claim]


def test_an_augmenter_that_keeps_its_promises_is_found_to():
    assert broken("augmenter", Augmenter) == {}


def test_an_augmenter_that_declares_what_it_changes_is_not_tried_for_it():
    @dataclass(frozen=True)
    class Declares(MovesBatchNorm):
        changes_model: ClassVar[str] = "batch norm"

    said = {finding.claim: finding for finding in checks.run(of("augmenter", Declares))}
    for claim in (LEFT, STEP):
        assert said[claim].passed
        assert said[claim].reason == "not tried: declares that it changes batch norm"


OTHER_DOORS = [(entry, method) for entry in INSTALLED.entries("augmenter") for method in ("views", "attack") if hasattr(entry.factory, method)]


@pytest.mark.parametrize(("entry", "method"), OTHER_DOORS, ids=[f"{entry.name}-{method}" for entry, method in OTHER_DOORS])
def test_what_a_trainer_calls_of_an_augmenter_leaves_its_step_the_same_to_the_bit(entry, method):
    part = checks.resolved(entry, INSTALLED)

    def work(model, batch, epoch):
        step = checks.training_step(part, model, epoch)
        given = batch.inputs if method == "attack" else Views.of(batch.inputs, batch.inputs.flip(3), batch.inputs.flip(2), batch.labels)
        getattr(part.part, method)(model, given, step)

    plain, beside = checks.trained_beside(lambda model, batch, epoch: None), checks.trained_beside(work)
    assert all(torch.equal(plain[name], beside[name]) for name in plain)


@dataclass(frozen=True)
class Metric:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    def __call__(self, model, explained, context):
        return (explained.attributions * explained.masks).sum((1, 2, 3))


class OneNumber(Metric):
    def __call__(self, model, explained, context):
        return super().__call__(model, explained, context).mean()[None]


class RankedAgainstOthers(Metric):
    def __call__(self, model, explained, context):
        return explained.attributions.flatten(1).sum(1).argsort().float()


@pytest.mark.parametrize(
    ("factory", "claim", "word"),
    [(OneNumber, "gives one row per image", "gave (1,) for 5 images"), (RankedAgainstOthers, "scores a batch as it scores its parts", "rows differ")],
)
def test_a_metric_that_breaks_a_promise_is_found(factory, claim, word):
    found = broken("metric", factory)
    assert claim in found
    assert word in found[claim]


def test_a_metric_that_keeps_its_promises_is_found_to():
    assert broken("metric", Metric) == {}


@dataclass(frozen=True)
class Model:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def build(self, info):
        return TinyNetwork(info.num_classes)

    def target_layers(self, module):
        return module.layers[-1:]

    def stages(self, module):
        return module.layers


class HidesItsNormalisation(Model):
    def build(self, info):
        module = TinyNetwork(info.num_classes)
        del module.normalisation
        return module


class LogitsOfOthers(Model):
    def build(self, info):
        return TinyNetwork(info.num_classes + 1)


class LayersWithoutMaps(Model):
    def stages(self, module):
        return [Layer("fc", module.fc)]


@pytest.mark.parametrize(
    ("factory", "word"), [(HidesItsNormalisation, "normalisation"), (LogitsOfOthers, "gave (2, 11)"), (LayersWithoutMaps, "layer fc gives no map")]
)
def test_a_model_that_breaks_a_promise_is_found(factory, word):
    assert any(word in reason for reason in broken("model", factory).values())


def test_a_model_that_keeps_its_promises_is_found_to():
    assert broken("model", Model) == {}


@dataclass(frozen=True)
class Data:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def load(self, split, root):
        return tiny_data(8)


class AnotherEachTime(Data):
    seeds: ClassVar[Any] = itertools.count()

    def load(self, split, root):
        return tiny_data(8, seed=next(self.seeds))


class OfAnotherSize(Data):
    def load(self, split, root):
        data = tiny_data(8)
        return ArrayData(data.info, data.images[:, :, :8], data.labels)


@pytest.mark.parametrize(("factory", "word"), [(AnotherEachTime, "two fingerprints"), (OfAnotherSize, "an image is (3, 8, 16)")])
def test_a_dataset_that_breaks_a_promise_is_found(factory, word):
    assert any(word in reason for reason in broken("dataset", factory).values())


@dataclass(frozen=True)
class Noise:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def __call__(self, labels, info, generator, images=None):
        return (labels + torch.randint(2, labels.shape, generator=generator)) % info.num_classes


class BeyondTheClasses(Noise):
    def __call__(self, labels, info, generator, images=None):
        return labels + 1


class AnotherNoise(Noise):
    def __call__(self, labels, info, generator, images=None):
        return torch.randint(info.num_classes, labels.shape)


@pytest.mark.parametrize(("factory", "word"), [(BeyondTheClasses, "leave the classes"), (AnotherNoise, "differ")])
def test_a_noise_that_breaks_a_promise_is_found(factory, word):
    assert any(word in reason for reason in broken("noise", factory).values())


@dataclass(frozen=True)
class Trainer:
    name: ClassVar[str] = "good"
    version: ClassVar[int] = 1

    def fit(self, model, data, augmenter, context):
        optimizer = context.optimizer(model.parameters())
        for epoch in context.epochs(model, data, optimizer=optimizer):
            for batch, step in context.batches(model, data, epoch):
                optimizer.zero_grad()
                context.loss(model, augmenter, augmenter(model, batch, step), step).backward()
                optimizer.step()


class TrainsNothing(Trainer):
    def fit(self, model, data, augmenter, context):
        """Leaves the model as it was."""


def test_a_trainer_that_trains_nothing_is_found_and_one_that_trains_is_not():
    @dataclass(frozen=True)
    class Floor(Augmenter):
        floor: ClassVar[bool] = True

    for factory, expected in ((frozen(TrainsNothing), {"AssertionError: the weights are as they were"}), (Trainer, set())):
        registry = of("trainer", factory)
        registry.add("augmenter", Floor, name=None, defaults={}, plugin="mine", distribution="the test")
        assert {finding.reason for finding in checks.run(registry, ["good"]) if finding.kind == "trainer" and not finding.passed} == expected


# What the kit says


def test_a_part_that_says_it_does_not_apply_is_not_tried():
    @dataclass(frozen=True)
    class NotHere(Explainer):
        def __call__(self, model, inputs, targets, context):
            raise InvalidValue("needs a transformer")

    findings = list(checks.run(of("explainer", NotHere)))
    assert all(finding.passed for finding in findings)
    assert {finding.reason for finding in findings} == {"not tried: needs a transformer"}


def test_a_part_without_a_default_is_not_tried():
    @dataclass(frozen=True)
    class Needs(Explainer):
        path: str

    (reason,) = {finding.reason for finding in checks.run(of("explainer", Needs))}
    assert reason.startswith("not tried: ")
    assert "path" in reason


def test_a_part_that_raises_is_broken_and_the_others_are_tried():
    class Raises(Explainer):
        name: ClassVar[str] = "raises"

        def __call__(self, model, inputs, targets, context):
            raise KeyError("lost")

    findings = list(checks.run(of("explainer", Explainer, frozen(Raises))))
    assert {finding.name for finding in findings if not finding.passed} == {"raises"}
    assert {finding.reason for finding in findings if not finding.passed} == {"KeyError: 'lost'"}


def test_only_the_named_parts_are_tried_and_an_unknown_name_is_answered():
    registry = of("explainer", Explainer)
    assert {finding.name for finding in checks.run(registry, ["good"])} == {"good"}
    with pytest.raises(UnknownName, match="Did you mean 'good'"):
        list(checks.run(registry, ["god"]))


def test_every_kind_of_part_has_promises_but_trackers():
    assert {kind for kind, promises in checks.CHECKS.items() if not promises} <= {"tracker"}

"""Every metric gives the same numbers whatever the size of the batches and the order of the images."""

import dataclasses
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from bench import checks, plugins, testing
from bench.contexts import forward
from bench.explain import Selection, Subject, explain
from bench.interfaces import ArrayData, Sample
from bench.plan import lacks
from bench.score import score

IMAGES = 8  # A batch of seven and a lone image.
TOLERANCE = 1e-6
INSTALLED = plugins.load().registry
QUICKER = {  # As registered these take long, or leave no answer right, and then nothing could differ.
    "accuracy-under-corruptions": {"severities": (3,)},
    "fgsm-accuracy": {"epsilon": 0.4},
    "pgd-accuracy": {"epsilon": 0.4, "step": 0.2, "iterations": 4},
}
SETTINGS = {"one": (1, False), "seven": (7, False), "all": (64, False), "another order": (7, True)}
ORDER = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))


def mostly_right():
    """Small images with masks; three of four have the label that the network gives them."""
    data = testing.tiny_data(IMAGES)
    data.labels = torch.where(torch.arange(IMAGES) % 4 > 0, forward(checks.network(), data.images.float() / 255, IMAGES).argmax(1), data.labels)
    return data


class Boxed:
    """The same images, with the object's box instead of its mask."""

    def __init__(self, data):
        self.data, self.info = data, dataclasses.replace(data.info, has_masks=False, has_boxes=True)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = self.data[index]
        down, across = sample.masks[0].nonzero().unbind(1)
        box = torch.tensor([[across.min(), down.min(), across.max() + 1, down.max() + 1, 0.0]])
        return Sample(sample.image, sample.label, index, boxes=box)


def several_labels(data):
    """The same images, each with the class of the next one besides its own, and a mask for each class."""
    here = torch.nn.functional.one_hot(data.labels, 4)
    masks = torch.zeros(len(data), 4, 16, 16, dtype=torch.bool)
    masks[torch.arange(len(data)), data.labels] = data.masks[:, 0]
    info = dataclasses.replace(data.info, multi_label=True)
    return ArrayData(info, data.images, here | here.roll(1, 1), masks)


DATA = {"one label": mostly_right(), "boxes": Boxed(mostly_right()), "several labels": several_labels(mostly_right())}


def metric_of(entry):
    return INSTALLED.resolve("metric", {"name": entry.name, **QUICKER.get(entry.name, {})}).part


METRICS = {entry.name: metric_of(entry) for entry in INSTALLED.entries("metric")}
CASES = [
    (known, name)
    for known, data in DATA.items()
    for name, metric in METRICS.items()
    if lacks(data.info, metric.needs) is None and (known != "boxes" or "boxes" in metric.needs)  # Boxes are nothing to the others.
]


@dataclass(frozen=True)
class Drawn:
    """An explainer that draws: the slope of the target's logit, with noise of each image's own."""

    def __call__(self, model, inputs, targets, context):
        inputs = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).gather(1, targets[:, None]).sum(), inputs)
        noise = torch.stack([torch.randn(inputs.shape[1:], generator=each) for each in context.generators])
        return (slope * (inputs + 0.1 * noise)).sum(1, keepdim=True)


@cache
def scores(known, setting):
    """All metrics that apply to the data, scored together as a run does it; rows in the order of the images."""
    data, (batch_size, shuffled) = DATA[known], SETTINGS[setting]
    model = checks.network()
    subject = Subject(model, data.info, model.layers[-1:], model.layers, "cpu")
    selection = Selection(data, ORDER if shuffled else torch.arange(IMAGES))
    maps, _ = explain(subject, Drawn(), selection, None, batch_size=batch_size)
    asked = {name: METRICS[name] for case, name in CASES if case == known and getattr(METRICS[name], "per_image", True)}
    found = score(subject, asked, selection, maps, Drawn(), batch_size=batch_size)
    return {name: (each.rows[ORDER.argsort()] if shuffled else each.rows, each.value, each.curve) for name, each in found.items()}


@pytest.mark.parametrize(("known", "name"), CASES, ids=[f"{name}-{known}" for known, name in CASES])
def test_a_metric_is_the_same_for_any_batch_and_any_order(known, name):
    if not getattr(METRICS[name], "per_image", True):
        pytest.skip("its rows are not images: it reads a record of costs, or a clock")
    rows, value, curve = scores(known, "all")[name]
    assert len(rows) == IMAGES
    for setting in ("one", "seven", "another order"):
        other_rows, other_value, other_curve = scores(known, setting)[name]
        torch.testing.assert_close(other_rows, rows, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)
        assert other_value == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)
        if curve is not None:
            assert other_curve["x"] == pytest.approx(curve["x"])
            assert other_curve["y"] == pytest.approx(curve["y"], rel=TOLERANCE, abs=TOLERANCE)


def test_the_numbers_compared_are_not_all_the_same():
    """A metric that gave one number whatever it is shown would pass above."""
    alike = {name for name, (rows, _, _) in scores("one label", "all").items() if (rows == rows[0]).all()}
    assert alike <= {"top5-accuracy"}  # There are four classes.


def test_every_metric_meets_some_data():
    assert {name for _, name in CASES} == set(METRICS)

"""Scoring: rows to a number, with its interval, batch by batch."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from bench import contexts
from bench.explain import Selection, Subject, explain
from bench.interfaces import ArrayData, Curve
from bench.score import Costs, score, summarise
from bench.testing import TinyNetwork, dataset_info, tiny_data
from bench_plugins.deletion import Deletion


@pytest.fixture
def subject():
    model = TinyNetwork().eval()
    return Subject(model, tiny_data().info, model.layers[-1:], model.layers, "cpu")


class PerImage:
    """The number of the image, so that every row can be told."""

    def __call__(self, model, explained, context):
        return explained.indices.float()


def selection(count=10, **options):
    return Selection(tiny_data(), torch.arange(count) * 3, **options)


# From rows to a number


def test_a_number_is_the_mean_over_images():
    found = summarise(PerImage(), torch.tensor([1.0, 2.0, 6.0]))
    assert found.value == 3
    assert found.values.tolist() == [1, 2, 6]
    assert found.interval[0] <= 3 <= found.interval[1]


def test_several_numbers_of_an_image_are_averaged_first():
    found = summarise(PerImage(), torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert found.values.tolist() == [2, 6]
    assert found.value == 4


def test_images_to_which_a_metric_does_not_apply_are_left_out_of_the_mean():
    found = summarise(PerImage(), torch.tensor([1.0, math.nan, 3.0]))
    assert found.value == 2
    assert found.values.isnan().tolist() == [False, True, False]


def test_where_a_metric_applies_to_no_image_there_is_no_number():
    found = summarise(PerImage(), torch.full((3,), math.nan))
    assert math.isnan(found.value)
    assert found.interval is None


def test_one_image_has_a_number_and_no_interval():
    found = summarise(PerImage(), torch.tensor([2.0]))
    assert (found.value, found.interval) == (2.0, None)


def test_a_metric_may_say_what_each_image_stands_with_what_they_come_to_and_draw_a_line():
    class Own:
        def values(self, rows):
            return rows[:, 1]

        def aggregate(self, rows):
            return float(rows[:, 0].max())

        def curve(self, rows):
            return Curve([0.0], rows[:, 0].tolist(), "x", "y")

    found = summarise(Own(), torch.tensor([[1.0, 10.0], [4.0, 20.0]]))
    assert found.values.tolist() == [10, 20]
    assert found.value == 4
    assert found.curve == {"x": [0.0], "y": [1.0, 4.0], "x_label": "x", "y_label": "y"}
    assert found.interval == (1.0, 4.0)


# Batches


@pytest.mark.parametrize("size", [1, 3, 64])
def test_rows_come_in_the_order_of_the_selection_whatever_the_batches(subject, size):
    found = score(subject, {"a": PerImage()}, selection(), batch_size=size)["a"]
    assert found.values.tolist() == [3 * index for index in range(10)]


def test_metrics_of_one_group_share_their_forwards(subject):
    chosen = selection(6)
    maps = torch.rand(6, 1, 16, 16, generator=contexts.generator("maps"))
    explanation = {"attributions": maps, "indices": chosen.indices, "logits": torch.zeros(6, 4), "targets": torch.zeros(6, dtype=torch.long)}
    seen = []
    handle = subject.model.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    score(subject, {"one": Deletion(8), "again": Deletion(8), "half": Deletion(4)}, chosen, explanation, batch_size=6)
    handle.remove()
    assert sum(seen) == 6 * 8  # the halves are among the eighths


def test_what_one_metric_draws_is_nothing_to_the_next(subject):
    class Drawing:
        def __call__(self, model, explained, context):
            return torch.cat([torch.rand(1, generator=stream) for stream in context.generators])

    alone = score(subject, {"a": Drawing()}, selection())["a"].values
    beside = score(subject, {"a": Drawing(), "b": Drawing()}, selection(), batch_size=3)
    assert torch.equal(alone, beside["a"].values)
    assert torch.equal(alone, beside["b"].values)


def test_a_metric_whose_rows_are_not_images_is_asked_once(subject):
    asked = []

    class Once:
        per_image = False

        def __call__(self, model, explained, context):
            asked.append(len(explained))
            return torch.tensor([1.0, 2.0])

    assert score(subject, {"a": Once(), "b": PerImage()}, selection(), batch_size=4)["a"].value == 1.5
    assert asked == [10]  # in one batch, whatever the others come in


def test_costs_are_handed_to_the_metrics_that_read_them(subject):
    class Reads:
        per_image = False

        def __call__(self, model, explained, context):
            return torch.tensor([context.training["forward"], context.floor_training["forward"], context.explain_cost["forward"]])

    costs = Costs({"forward": 6.0}, {"forward": 2.0}, {"forward": 1.0})
    assert score(subject, {"a": Reads()}, selection(), costs=costs)["a"].rows.tolist() == [6, 2, 1]


# Maps and targets


def test_maps_of_other_images_are_refused(subject):
    chosen = selection(4)
    explanation = {"attributions": torch.zeros(4, 1, 16, 16), "indices": chosen.indices + 1, "logits": torch.zeros(4, 4), "targets": torch.zeros(4)}
    with pytest.raises(ValueError, match="not those of the images"):
        score(subject, {"a": PerImage()}, chosen, explanation)


@dataclass(frozen=True)
class Targets:
    name: ClassVar[str] = "targets"
    version: ClassVar[int] = 1

    def __call__(self, model, inputs, targets, context):
        return targets.float().view(-1, 1, 1, 1).expand(-1, 1, *inputs.shape[2:])


def test_the_explained_class_is_the_predicted_or_the_true_one(subject):
    with torch.no_grad():
        predicted = subject.model(tiny_data().images[selection().indices].float() / 255).argmax(1)
    for rule, expected in (("predicted", predicted), ("true", selection().indices % 4)):
        found, _ = explain(subject, Targets(), selection(target=rule), None, batch_size=3)
        assert torch.equal(found["targets"], expected)
        assert torch.equal(found["attributions"][:, 0, 0, 0], expected.float())
        assert torch.equal(found["indices"], selection().indices)


def test_the_true_class_of_several_is_the_likeliest(subject):
    data = tiny_data(8)
    labels = torch.tensor([[1, 1, 0, 0]] * 4 + [[0, 0, 1, 1]] * 4)
    several = ArrayData(dataset_info(4, (16, 16), 3, multi_label=True), data.images, labels)
    found, _ = explain(subject, Targets(), Selection(several, torch.arange(8), "true"), None)
    for row in range(8):
        own = labels[row].nonzero().flatten()
        assert found["targets"][row] == own[found["logits"][row, own].argmax()]


def test_explaining_counts_what_an_image_costs_alone_or_among_others(subject):
    class Twice:
        def __call__(self, model, inputs, targets, context):
            inputs = inputs.clone().requires_grad_()
            model(inputs)
            return torch.autograd.grad(model(inputs).sum(), inputs)[0].sum(1, keepdim=True)

    for size in (1, 3, 64):
        _, cost = explain(subject, Twice(), selection(7), None, batch_size=size)
        assert (cost["images"], cost["forward"], cost["backward"]) == (7, 14, 7)
        assert cost["seconds"] > 0


def test_an_explainer_is_prepared_once_and_its_preparation_is_counted_apart(subject):
    from bench.data import Preparation

    prepared = []

    class Prepares:
        def prepare(self, model, data, context):
            prepared.append(1)
            return sum(model(inputs).sum().item() for inputs, _ in data.batches(4))

        def __call__(self, model, inputs, targets, context):
            return torch.full((len(inputs), 1, 16, 16), context.state)

    found, cost = explain(subject, Prepares(), selection(7), Preparation(tiny_data(), torch.arange(8), None, "cpu"), batch_size=2)
    assert prepared == [1]
    assert (cost["preparation"]["forward"], cost["forward"]) == (8, 0)
    assert found["attributions"].unique().numel() == 1

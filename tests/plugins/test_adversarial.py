"""Attacks: a linear network by hand, torch's own gradient, and what an attack may not do."""

import pytest
import torch
from metric_cases import images, in_parts, maps, same, score, small_network, state
from torch import nn

from bench.testing import dataset_info, explained, metric_context
from bench_plugins.adversarial import FGSMAccuracy, PGDAccuracy


def attacked(metric, model, inputs, labels):
    seen = explained(model, inputs, labels=labels)
    return metric.attacked(model, seen, metric_context(model, seen, dataset_info(num_classes=seen.logits.shape[1])))


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize("metric", [FGSMAccuracy(), PGDAccuracy(), PGDAccuracy(random_start=False)])
def test_a_linear_margin_shrinks_by_epsilon_times_the_weights(metric):
    model = linear()
    inputs, labels = 0.3 + 0.4 * torch.rand(6, 3, 2, 2), torch.tensor([0, 0, 0, 1, 1, 1])

    def margin(batch):
        difference = model(batch)[:, 0] - model(batch)[:, 1]
        return torch.where(labels == 0, difference, -difference).detach()

    shrunk = margin(inputs) - margin(attacked(metric, model, inputs, labels))
    expected = 4 / 255 * (model[1].weight[0] - model[1].weight[1]).abs().sum().item()
    assert shrunk.tolist() == pytest.approx([expected] * 6, rel=1e-4)


def test_one_step_is_along_the_sign_of_torchs_gradient():
    model, inputs, labels = small_network(), images(5).requires_grad_(), torch.arange(5)
    nn.functional.cross_entropy(model(inputs), labels).backward()
    expected = (inputs + 4 / 255 * inputs.grad.sign()).clamp(0, 1).detach()
    model.zero_grad()
    torch.testing.assert_close(attacked(FGSMAccuracy(), model, images(5), labels), expected)


@pytest.mark.parametrize("metric", [FGSMAccuracy(epsilon=8), PGDAccuracy(epsilon=8)])
def test_an_attack_keeps_its_budget_and_the_range(metric):
    inputs = images(8).round()  # Zeros and ones, where there is nothing to go beyond.
    changed = attacked(metric, small_network(), inputs, torch.zeros(8, dtype=torch.long))
    assert 0 < (changed - inputs).abs().max() <= 8 / 255 + 1e-6
    assert 0 <= changed.min() <= changed.max() <= 1


@pytest.mark.parametrize("metric", [FGSMAccuracy(epsilon=0), PGDAccuracy(epsilon=0)])
def test_without_a_budget_the_accuracy_is_the_clean_one(metric):
    model, labels = small_network(), torch.arange(20) % 5
    expected = 100 * (model(images(20)).argmax(1) == labels).float()
    assert torch.equal(score(metric, model, images(20), labels=labels), expected)


def test_more_steps_do_more_harm():
    model = small_network()
    labels = model(images(64)).argmax(1)
    accuracies = [score(metric, model, images(64), labels=labels).mean() for metric in (FGSMAccuracy(epsilon=16), PGDAccuracy(epsilon=16))]
    assert 100 > accuracies[0] >= accuracies[1]


@pytest.mark.parametrize("metric", [FGSMAccuracy(), PGDAccuracy(iterations=3)])
def test_the_model_is_left_as_it_was_found(metric):
    model = small_network()
    model[0].train()
    before = state(model)
    score(metric, model, images(3))
    assert same(before, state(model))


@pytest.mark.parametrize("metric", [FGSMAccuracy(epsilon=16), PGDAccuracy(epsilon=16, iterations=4)])
def test_numbers_do_not_depend_on_the_batch(metric):
    model = small_network()
    whole = score(metric, model, images(64))
    for size in (1, 7):
        assert torch.equal(in_parts(metric, model, images(64), maps(64), size), whole)


def test_passes_are_counted():
    model = small_network()
    seen = explained(model, images(4))
    context = metric_context(model, seen, dataset_info(num_classes=5))
    PGDAccuracy(iterations=3)(model, seen, context)
    assert (context.passes.forward, context.passes.backward) == (16, 12)


def test_several_labels_are_attacked_together():
    model = linear()
    inputs, labels = torch.full((1, 3, 2, 2), 0.5), torch.tensor([[1, 1]])
    changed = model(attacked(FGSMAccuracy(), model, inputs, labels)).sigmoid().log().sum()
    assert changed < model(inputs).sigmoid().log().sum()

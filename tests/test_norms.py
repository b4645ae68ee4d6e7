"""Batch norms beside a network's own: which rows they see, what learns, and that the network itself is what is kept."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import copied
from torch import nn

from bench import testing
from bench.interfaces import Batch, Recipe
from bench.norms import AuxiliaryNorms, BranchNorms
from bench.train import FitContext, fit, training_data
from bench_plugins.fitting import Standard
from bench_plugins.plain import Plain

RECIPE = Recipe(epochs=2, batch_size=16, crop_padding=2)


def network():
    return testing.TinyNetwork().train()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The norms


def test_auxiliary_norms_start_as_the_networks_own_and_move_by_themselves():
    model, twin, inputs = network(), network(), testing.tiny_images(8)
    norms = AuxiliaryNorms(model, 0.01)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.allclose(norms(model, inputs), twin(inputs))
    assert same(before, model.state_dict())
    with torch.no_grad():
        batch_mean = model.first[0](inputs).mean((0, 2, 3))
    assert torch.allclose(norms.norms[0].running_mean, 0.01 * batch_mean)  # Their momentum is 0.01 ...
    assert torch.allclose(twin.first[1].running_mean, 0.1 * batch_mean)  # ... and the network's own 0.1, still.
    assert model.first[1].momentum == 0.1


def test_gradients_reach_the_auxiliary_norms_and_the_shared_layers_but_not_the_networks_norms():
    model = network()
    norms = AuxiliaryNorms(model, 0.01)
    norms(model, testing.tiny_images(4)).sum().backward()
    assert norms.norms[1].bias.grad is not None
    assert model.first[0].weight.grad is not None
    assert model.first[1].weight.grad is None


def test_each_branch_is_normalised_by_itself_and_rows_keep_their_places():
    model, inputs = network(), testing.tiny_images(9)
    branch = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0, 1])
    logits = BranchNorms(model, (0.01, 0.5))(model, inputs, branch)
    for number in range(3):
        rows = branch == number
        assert torch.allclose(logits[rows], network()(inputs[rows]), atol=1e-6)  # All sets are still alike, and each batch is its own.
    assert not torch.allclose(logits, network()(inputs), atol=1e-3)


def test_the_networks_statistics_see_the_rows_of_the_main_branch_alone():
    model, inputs = network(), testing.tiny_images(8)
    branch = torch.tensor([0, 1] * 4)
    norms = BranchNorms(model, (0.01,))
    norms(model, inputs, branch)
    main, other = network(), network()
    main(inputs[::2])
    assert torch.allclose(model.first[1].running_mean, main.first[1].running_mean)
    assert torch.allclose(model.second[1].running_var, main.second[1].running_var)
    other.first[1].momentum = other.second[1].momentum = 0.01
    other(inputs[1::2])
    assert torch.allclose(norms.sets[0].norms[0].running_mean, other.first[1].running_mean)
    assert torch.allclose(norms.sets[0].norms[1].running_var, other.second[1].running_var, atol=1e-6)


def test_a_branch_without_rows_is_left_alone():
    model = network()
    norms = BranchNorms(model, (0.01,))
    before = {name: tensor.clone() for name, tensor in norms.state_dict().items()}
    norms(model, testing.tiny_images(4), torch.zeros(4, dtype=torch.long))
    assert same(before, norms.state_dict())


# In training


class Twins:
    """Adds a darker twin of each image, which goes through the first further branch; from `start` on."""

    branches = (0.01,)

    def __init__(self, start=0.0, branch=1):
        self.start, self.branch = start, branch

    def __call__(self, model, batch, context):
        if context.progress < self.start:
            return batch
        rows = torch.arange(len(batch))
        twins = batch.append(batch.inputs / 2, rows)
        return twins.replace(branch=torch.cat([batch.branch, torch.full_like(rows, self.branch)]))


def train(augmenter, folder=None, report=lambda progress: None, recipe=RECIPE):
    data, model = testing.tiny_data(48, size=8), network()
    context = FitContext(recipe, data.info, 0, "key", "cpu", [], [], folder=folder, report=report)
    cost = fit(Standard(), model, training_data(data, recipe, None, None), augmenter, context)
    return model, cost


def by_hand():
    """The same training with the second set of norms put into the network for the twins' forward, and taken out again."""
    model = network()
    seen = []

    class Keeps:
        def __call__(self, model, batch, context):
            seen.append(batch)
            return batch

    train(Keeps())
    second = [nn.BatchNorm2d(8, momentum=0.01), nn.BatchNorm2d(12, momentum=0.01)]
    optimizer = torch.optim.SGD([*model.parameters(), *(p for norm in second for p in norm.parameters())], 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for step, batch in enumerate(seen):
        clean = model(batch.inputs)
        own = model.first[1], model.second[1]
        model.first[1], model.second[1] = second
        dark = model(batch.inputs / 2)
        model.first[1], model.second[1] = own
        loss = nn.functional.cross_entropy(torch.cat([clean, dark]), batch.targets.repeat(2, 1))
        progress = step / len(seen)
        optimizer.param_groups[0]["lr"] = 0.1 * (progress / 0.25 if progress < 0.25 else (1 - progress) / 0.75)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_rows_of_a_branch_are_trained_as_written_out_by_hand():
    found, cost = train(Twins())
    for name, tensor in by_hand().state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert (cost["forward"], cost["backward"], cost["rows"]) == (192, 192, 192)


def test_what_is_kept_is_the_network_with_its_own_norms():
    found, _ = train(Twins())
    assert found.state_dict().keys() == network().state_dict().keys()
    together, _ = train(Twins(branch=0))
    assert not same(found.state_dict(), together.state_dict())


def test_before_there_are_rows_of_a_branch_the_training_is_the_plain_one():
    assert same(train(Twins(start=1.0))[0].state_dict(), train(Plain())[0].state_dict())


def test_a_stopped_training_with_branches_ends_with_the_same_weights(tmp_path):
    class Stops(Exception):
        pass

    def stop(progress):
        if (progress["epoch"], progress["step"]) == (1, 2):
            raise Stops

    whole, _ = train(Twins())
    with pytest.raises(Stops):
        train(Twins(), tmp_path, stop)
    assert same(whole.state_dict(), train(Twins(), tmp_path)[0].state_dict())


def test_a_trainer_that_keeps_no_branches_is_not_paired_with_an_augmenter_that_has_some(planned, registry):
    @dataclass(frozen=True)
    class Plainer(Standard):
        name: ClassVar[str] = "plainer"
        keeps_branches: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Branching:
        name: ClassVar[str] = "branching"
        version: ClassVar[int] = 1
        branches: ClassVar[tuple[float, ...]] = (0.01,)

        def __call__(self, model, batch, context): ...

    wider = copied(registry)
    wider.add("trainer", Plainer, name=None, defaults={}, plugin="mine", distribution="the test")
    wider.add("augmenter", Branching, name=None, defaults={}, plugin="mine", distribution="the test")
    plan = planned(within=wider, trainers=["plainer", "standard"], augmenters="branching")
    assert [job.trainer.label for job in plan.trainings] == ["standard"]
    assert plan.left_out == ("plainer x branching: the augmenter sends rows through batch norms of their own, which the trainer does not keep",)


def test_a_plain_batch_has_only_the_main_branch():
    assert Batch.of(torch.rand(3, 3, 2, 2), torch.eye(3)).branch.tolist() == [0, 0, 0]

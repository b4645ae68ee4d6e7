"""The augmenter `none`, and what this file's whole family of augmenters promises: to leave everything as it was found."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from bench import testing
from bench.interfaces import Batch, Layer
from bench_plugins.edda import Edda
from bench_plugins.lpa3 import LPA3
from bench_plugins.mixing import CutMix, Mixup
from bench_plugins.plain import Plain

AUGMENTERS = [
    Plain(),
    Mixup(),
    Mixup(mode="elem", prob=0.5),
    CutMix(),
    CutMix(mode="elem", prob=0.5),
    Edda(),
    Edda(fill="noise"),
    LPA3(bound=0.002),
    LPA3(iterations=2, fraction=0.5, strict=True),
]
KINDS = [(augmenter, multi_label) for augmenter in AUGMENTERS for multi_label in (False, True)]


class Network(nn.Module):
    """Two stages with batch norm and ReLU, then dropout and a linear head."""

    def __init__(self):
        super().__init__()
        self.normalisation = testing.Plain(3)
        self.normalisation.std.fill_(0.25)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs):
        features = self.second(self.first((inputs - self.normalisation.mean) / self.normalisation.std))
        return self.head(self.dropout(features.mean((2, 3))))

    @property
    def layers(self):
        return [Layer("first", self.first), Layer("second", self.second)]


def weighted_activations(model, inputs, targets, context):
    """A small Grad-CAM, to have an explainer that needs gradients."""
    layer = context.target_layers[-1].module
    kept = []
    handle = layer.register_forward_hook(lambda module, arguments, output: kept.append(output.requires_grad_()))
    try:
        logits = model(inputs)
    finally:
        handle.remove()
    (gradients,) = torch.autograd.grad(logits.gather(1, targets.view(-1, 1)).sum(), kept[0])
    maps = (gradients.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    return nn.functional.interpolate(maps, size=inputs.shape[2:], mode="bilinear")


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = Network()
    for _ in range(3):
        network(torch.rand(16, 3, 8, 8))  # Batch norm sees something.
    network.second.eval()  # As with a part that is frozen: modes differ between modules.
    return network


def batch_for(model, multi_label):
    """Eight images whose labels the network gets right for every other one."""
    inputs = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(inputs)
    if multi_label:
        return Batch.of(inputs, (logits > 0).float())
    labels = logits.argmax(1)
    labels[::2] = (labels[::2] + 1) % 4
    return Batch.of(inputs, nn.functional.one_hot(labels, 4).float())


def step(model, multi_label, **options):
    info = testing.dataset_info(4, (8, 8), 3, multi_label=multi_label)
    return testing.step_context(model, model.layers, weighted_activations, info, **options)


def state_of(model):
    """Everything an augmenter could have changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [None if each.grad is None else each.grad.clone() for each in model.parameters()],
        "asked": [each.requires_grad for each in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [list(getattr(module, name).values()) for module in model.modules() for name in hooks],
        "streams": [torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()],
    }


def assert_same(found, left):
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, left)
    elif isinstance(found, dict):
        assert found.keys() == left.keys()
        for name in found:
            assert_same(found[name], left[name])
    elif isinstance(found, list):
        assert len(found) == len(left)
        for one, other in zip(found, left, strict=True):
            assert_same(one, other)
    else:
        assert found == left


def test_none_gives_the_batch_back(model):
    batch = batch_for(model, multi_label=False)
    assert Plain()(model, batch, None) is batch


@pytest.mark.parametrize(("augmenter", "multi_label"), KINDS, ids=str)
def test_model_batch_and_global_streams_are_left_as_found(model, augmenter, multi_label):
    batch = batch_for(model, multi_label)
    before = [getattr(batch, name).clone() for name in batch.__dataclass_fields__]
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.first[0].bias.requires_grad_(False)
    found = state_of(model)
    augmenter(model, batch, step(model, multi_label))
    assert_same(found, state_of(model))
    assert_same(before, [getattr(batch, name) for name in batch.__dataclass_fields__])


@pytest.mark.parametrize(("augmenter", "multi_label"), KINDS, ids=str)
def test_a_training_step_that_ignores_the_augmented_batch_is_bit_for_bit_the_same(model, augmenter, multi_label):
    trained = []
    for augment in (False, True):
        network = copy.deepcopy(model)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        torch.manual_seed(2)
        for number in range(3):
            batch = batch_for(network, multi_label)
            if augment:
                augmenter(network, batch, step(network, multi_label, step=number))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch.inputs), batch.targets).backward()
            optimizer.step()
        trained.append(network.state_dict())
    assert_same(dict(trained[0]), dict(trained[1]))


@pytest.mark.parametrize(("augmenter", "multi_label"), KINDS, ids=str)
def test_rows_are_images_with_targets_in_range_and_no_gradient(model, augmenter, multi_label):
    batch = batch_for(model, multi_label)
    batch = batch.replace(inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
    augmented = augmenter(model, batch, step(model, multi_label))
    assert all(len(getattr(augmented, name)) == len(augmented) for name in batch.__dataclass_fields__)
    assert augmented.inputs.min() >= 0
    assert augmented.inputs.max() <= 1
    assert augmented.inputs.is_contiguous(memory_format=torch.channels_last)
    assert not augmented.inputs.requires_grad
    assert augmented.targets.min() >= 0
    if not multi_label:
        assert torch.allclose(augmented.targets.sum(1), torch.ones(len(augmented)))


@pytest.mark.parametrize(("augmenter", "multi_label"), KINDS, ids=str)
def test_the_same_step_gives_the_same_rows_and_another_step_other_draws(model, augmenter, multi_label):
    batch = batch_for(model, multi_label)
    first, again, other = (augmenter(model, batch, step(model, multi_label, step=number)).inputs for number in (4, 4, 5))
    assert torch.equal(first, again)
    if augmenter not in (Plain(), Edda()):  # Neither draws anything.
        assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("augmenter", [Edda(), LPA3(), LPA3(fraction=0.5)], ids=str)
def test_new_rows_come_after_the_originals_and_inherit_what_belongs_to_them(model, augmenter):
    batch = batch_for(model, multi_label=False).replace(weights=torch.arange(8.0), group=torch.arange(8) + 20, indices=torch.arange(8) + 50)
    augmented = augmenter(model, batch, step(model, multi_label=False))
    assert len(augmented) > 8
    assert torch.equal(augmented.inputs[:8], batch.inputs)
    sources = augmented.indices - 50
    for name in ("targets", "weights", "group", "branch"):
        assert torch.equal(getattr(augmented, name), getattr(batch, name)[sources])

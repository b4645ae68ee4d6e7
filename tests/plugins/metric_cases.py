"""What the tests of the metrics share: a small network whose answers depend on what it is shown, images, and a call."""

from types import SimpleNamespace

import torch
from torch import nn

from bench import contexts
from bench.testing import dataset_info, explained

MEAN = torch.tensor([0.4, 0.5, 0.6])


def small_network(classes=5):
    """Two convolutions, drawn from a fixed seed, and a head decided enough that hiding pixels matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
        network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes))
    with torch.no_grad():
        network[-1].weight.mul_(60)
    network.normalisation = SimpleNamespace(mean=MEAN)
    return network.eval()


def images(count, side=16, seed=0):
    """(B, 3, side, side) in [0, 1]: soft blobs of colour."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


def maps(count, side=16, seed=1):
    """(B, 1, side, side) blobs with no two values alike."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 3, 3, generator=draw)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 1e-3 * torch.rand(count, 1, side, side, generator=draw)


def score(metric, model, inputs, attributions=None, labels=None, start=0, **options):
    """The rows of a metric on one batch, whose first image is number `start` of all."""
    seen = explained(model, inputs, attributions, labels)
    info = dataset_info(num_classes=seen.logits.shape[1], image_size=tuple(inputs.shape[2:]))
    streams = [contexts.generator("test", start + row) for row in range(len(inputs))]
    return metric(model, seen, contexts.metric_context(model, seen, info, streams, **options))


def in_parts(metric, model, inputs, attributions, size, **options):
    """The same rows from batches of `size`."""
    starts = range(0, len(inputs), size)
    parts = zip(starts, inputs.split(size), attributions.split(size), strict=True)
    return torch.cat([score(metric, model, *part, start=start, chunk=size, **options) for start, *part in parts])


def state(model):
    """Everything a metric could leave changed in a network."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    return values, grads, [module.training for module in model.modules()], [len(module._forward_hooks) for module in model.modules()]


def same(before, after):
    return all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1:] == after[1:]

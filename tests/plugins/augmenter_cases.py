"""What the tests of the augmenters share: batches, a small network, a call, and images that say where each pixel came from."""

import torch
from torch import nn

from bench import testing
from bench.interfaces import Batch, Layer


def batch_of(count, channels=3, side=16, classes=4, seed=0):
    """Images of 8-bit noise, the classes in turn."""
    stream = torch.Generator().manual_seed(seed)
    size = (side, side) if isinstance(side, int) else side
    inputs = torch.randint(256, (count, channels, *size), generator=stream) / 255
    targets = nn.functional.one_hot(torch.arange(count) % classes, classes).float()
    return Batch.of(inputs, targets)


def marked(count, side=16):
    """Image i is 1 in channel i and 0 elsewhere, and of class i: what a result has in channel i came from image i."""
    size = (side, side) if isinstance(side, int) else side
    return Batch.of(torch.eye(count).view(count, count, 1, 1).expand(-1, -1, *size).contiguous(), torch.eye(count))


def copies(count, side=16, channels=3, seed=1):
    """One image several times, with one label."""
    one = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return Batch.of(one.repeat(count, 1, 1, 1), torch.tensor([[1.0, 0.0]]).repeat(count, 1))


def network(channels=3, classes=4):
    """A convolution with batch norm and a head, in training mode, drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)).train()


def layers(model):
    """The two ReLUs of `network`."""
    return [Layer("2", model[2]), Layer("4", model[4])]


def heat(model, inputs, targets, context):
    """An explainer without a network: how bright each pixel is."""
    return inputs.mean(1, keepdim=True)


def augment(part, batch, model=None, explainer=heat, info=None, stages=None, **options):
    """What the augmenter makes of a batch in one step late in the training."""
    model = network(batch.inputs.shape[1], batch.targets.shape[1]) if model is None else model
    found = layers(model) if stages is None else stages
    info = info or testing.dataset_info(batch.targets.shape[1], tuple(batch.inputs.shape[2:]), batch.inputs.shape[1])
    options = {"epoch": 5, "epochs": 10, "progress": 0.9, **options}
    return part(model, batch, testing.step_context(model, found, explainer, info, **options))

"""Short trainings for the tests of trainers: from the start, or stopped in an epoch and taken up again."""

import torch

from bench import testing
from bench.interfaces import ArrayData, Recipe
from bench.train import FitContext, fit, training_data

RECIPE = {"epochs": 4, "batch_size": 16, "learning_rate": 0.05, "schedule": "cosine", "crop_padding": 2}


class Stop(Exception):
    """The training is interrupted."""


class Trained:
    """A training on tiny data: its model, data and context, and the cost when it is done."""

    def __init__(self, trainer, augmenter, *, explainer=None, folder=None, stop=None, noise=None, source=None, model=None, seed=0, **recipe):
        self.model = testing.TinyNetwork() if model is None else model
        source = testing.tiny_data(64) if source is None else source
        recipe = Recipe(**{**RECIPE, **recipe})
        self.data = training_data(source, recipe, noise, None)

        def report(progress):
            if stop is not None and progress["epoch"] == stop:
                raise Stop

        layers = self.model.layers
        self.context = FitContext(recipe, source.info, seed, "key", "cpu", layers[-1:], layers, explainer, folder, report)
        self.trainer, self.augmenter = trainer, augmenter

    def run(self):
        self.cost = fit(self.trainer, self.model, self.data, self.augmenter, self.context)
        return self

    @property
    def log(self):
        return self.context.log

    @property
    def weights(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def resumed(trainer, augmenter, folder, stop, **options):
    """A training that was stopped in the epoch `stop`, and taken up again with everything else new."""
    try:
        Trained(trainer, augmenter, folder=folder, stop=stop, **options).run()
    except Stop:
        return Trained(trainer, augmenter, folder=folder, **options).run()
    raise AssertionError("the training was not stopped")


def coloured(count=128):
    """Images of four colours, which are their classes, with noise: quick to learn."""
    labels = torch.arange(count) % 4
    colours = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8], [0.6, 0.6, 0.2]])[labels].view(-1, 3, 1, 1)
    noise = 0.2 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    info = testing.dataset_info(4, (16, 16), 3, class_counts=(count // 4,) * 4, fingerprint="sha256:coloured")
    return ArrayData(info, ((colours + noise) * 255).round().byte(), labels)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

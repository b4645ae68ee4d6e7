"""Infidelity and sensitivity: captum on the same changes, and a linear network with its exact map."""

from dataclasses import dataclass

import pytest
import torch
from captum import metrics as captum
from metric_cases import MEAN, images, in_parts, maps, score, small_network
from torch import nn

from bench.testing import dataset_info, explained, generators, metric_context
from bench_plugins._scoring import copies, drawn
from bench_plugins.infidelity import Infidelity, SensitivityMax, infidelity


@dataclass(frozen=True)
class InputTimesGradient:
    """A plain explainer, with noise from each image's own generator if asked."""

    noise: float = 0.0

    def __call__(self, model, inputs, targets, context):
        inputs = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(inputs).gather(1, targets.view(-1, 1)).sum(), inputs)
        noise = torch.stack([torch.randn(1, *inputs.shape[2:], generator=each) for each in context.generators])
        return ((inputs - MEAN.view(1, 3, 1, 1)) * gradient).sum(1, keepdim=True) + self.noise * noise


def context_for(model, seen, **options):
    info = dataset_info(num_classes=seen.logits.shape[1], image_size=tuple(seen.inputs.shape[2:]))
    return metric_context(model, seen, info, **options)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("output", ["probability", "logit"])
def test_infidelity_agrees_with_captum(normalise, output):
    model, metric = small_network().double(), Infidelity(samples=6, normalise=normalise, score=output)
    model.normalisation.mean = MEAN.double()
    inputs, saliency = images(64).double(), maps(64).double()
    streams = generators(64)

    def hide_a_square(repeated):
        squares = drawn(streams, lambda each: metric.square(inputs.shape[2:], each), inputs).expand_as(inputs)
        return squares / 3, torch.where(squares > 0, MEAN.view(1, 3, 1, 1).double(), repeated)

    def forward(batch):
        return model(batch).softmax(1) if output == "probability" else model(batch)

    seen = explained(model, inputs, saliency)
    per_channel, one_at_a_time = saliency.expand_as(inputs), {"n_perturb_samples": 6, "max_examples_per_batch": 64}
    expected = captum.infidelity(forward, hide_a_square, inputs, per_channel, target=seen.targets, normalize=normalise, **one_at_a_time)
    torch.testing.assert_close(metric(model, seen, context_for(model, seen)), expected, rtol=1e-5, atol=1e-9)


def test_the_exact_map_of_a_linear_network_has_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    inputs = images(5, side=8)
    targets = model(inputs).argmax(1)
    exact = (model[1].weight[targets].view(5, 3, 8, 8) * (inputs - 0.5)).sum(1, keepdim=True).detach()  # Mid-grey is the mean of a plain model.
    for scale, normalise in ((1.0, False), (-7.0, True)):
        metric = Infidelity(score="logit", normalise=normalise, samples=8)
        assert score(metric, model, inputs, scale * exact).max() < 1e-9
    assert score(Infidelity(score="logit", normalise=False, samples=8), model, inputs, -7 * exact).min() > 1e-6


def test_infidelity_by_hand():
    predicted, observed = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])
    assert infidelity(predicted, observed, normalise=False).item() == pytest.approx(0.5)
    assert infidelity(predicted, observed, normalise=True).item() == pytest.approx((0.8**2 + 0.4**2) / 2)  # Scaled by 6/5.
    assert infidelity(0 * predicted, observed, normalise=True).item() == pytest.approx(4)


def test_sensitivity_agrees_with_captum():
    model, metric, explainer = small_network(), SensitivityMax(samples=4), InputTimesGradient()
    seen = explained(model, images(64))
    context = context_for(model, seen, explainer=explainer)
    streams = copies(context.generators)

    def explaining(batch):  # captum gives a tuple or a tensor, and reads the maps right only from a tuple.
        return (context.explain(batch[0] if isinstance(batch, tuple) else batch, seen.targets),)

    def nearby(repeated):
        return metric._changed(repeated, streams)

    expected = captum.sensitivity_max(explaining, seen.inputs, nearby, n_perturb_samples=4, max_examples_per_batch=64)
    torch.testing.assert_close(metric(model, seen, context), expected)


def test_a_map_that_ignores_the_image_is_not_sensitive_even_if_it_is_drawn():
    @dataclass(frozen=True)
    class Drawn:
        def __call__(self, model, inputs, targets, context):
            return torch.stack([torch.rand(1, *inputs.shape[2:], generator=each) for each in context.generators])

    assert score(SensitivityMax(), small_network(), images(3), explainer=Drawn()).tolist() == [0, 0, 0]


def test_changed_images_stay_near_and_in_range():
    changed = SensitivityMax(radius=0.1)._changed(images(4).round(), generators(4))
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (changed - images(4).round()).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("metric", [Infidelity(samples=4), SensitivityMax(samples=3)])
def test_numbers_do_not_depend_on_the_batch(metric):
    model, explainer = small_network(), InputTimesGradient(noise=0.1)
    whole = score(metric, model, images(64), maps(64), explainer=explainer)
    for size in (1, 7):
        torch.testing.assert_close(in_parts(metric, model, images(64), maps(64), size, explainer=explainer), whole, rtol=1e-3, atol=1e-6)

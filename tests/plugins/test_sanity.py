"""Model randomisation: explainers with a known answer, scipy's rank correlation, and a model left as it was found."""

from dataclasses import dataclass

import pytest
import torch
from metric_cases import images, in_parts, maps, same, score, small_network, state
from scipy.stats import spearmanr
from torch import nn

from bench.contexts import generator
from bench_plugins.sanity import ModelRandomisation, correlation, from_the_top, ranks, shuffle


@dataclass(frozen=True)
class Brightness:
    """Looks at the image only."""

    def __call__(self, model, inputs, targets, context):
        return inputs.mean(1, keepdim=True)


@dataclass(frozen=True)
class Gradient:
    def __call__(self, model, inputs, targets, context):
        inputs = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(inputs).gather(1, targets.view(-1, 1)).sum(), inputs)
        return gradient.sum(1, keepdim=True)


def test_an_explainer_that_ignores_the_network_is_found_out():
    rows = score(ModelRandomisation(), small_network(), images(4), explainer=Brightness())
    assert rows[:, 0].tolist() == pytest.approx([1] * 4)


def test_an_explainer_that_shows_the_network_is_not():
    rows = score(ModelRandomisation(), small_network(), images(32), explainer=Gradient())
    assert rows.mean() < 0.5


def test_a_map_of_the_weights_themselves_is_correlated_with_its_shuffle():
    @dataclass(frozen=True)
    class Weights:
        def __call__(self, model, inputs, targets, context):
            return model[1].weight[:1].view(1, 1, 6, 6).expand(len(inputs), 1, 6, 6)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False))
    before = model[1].weight.detach().clone()
    found = score(ModelRandomisation(seed=3), model, torch.rand(2, 1, 6, 6), explainer=Weights())
    copy = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False))
    copy.load_state_dict({"1.weight": before})
    shuffle(list(copy.parameters()), generator("model-randomisation", 3))
    assert found[0, 0].item() == pytest.approx(spearmanr(before[0], copy[1].weight[0].detach()).statistic)


def test_the_correlation_is_scipys_with_ties():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randint(4, (5, 30), generator=draw).float() for _ in range(2))
    expected = [spearmanr(*pair).statistic for pair in zip(one.numpy(), other.numpy(), strict=True)]
    assert correlation(ranks(one), ranks(other)).tolist() == pytest.approx(expected)


def test_a_constant_map_is_uncorrelated():
    assert correlation(ranks(torch.zeros(1, 9)), ranks(torch.rand(1, 9))).item() == 0


def test_the_cascade_goes_from_the_last_weights_to_the_first():
    model = small_network()
    groups = from_the_top(model, 3)
    assert [parameter for group in groups for parameter in group] == list(model.parameters())[::-1]
    assert [len(group) for group in groups] == [2, 2, 2]
    rows = score(ModelRandomisation(groups=3), model, images(4), explainer=Gradient())
    assert rows.shape == (4, 3)


def test_shuffling_keeps_each_tensors_values():
    model = small_network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    shuffle(list(model.parameters()), torch.Generator())
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.detach().flatten().sort().values)
    assert not torch.equal(before[0], model[0].weight)


def test_the_model_is_left_as_it_was_found():
    model = small_network().to(memory_format=torch.channels_last)
    before, strides = state(model), [parameter.stride() for parameter in model.parameters()]
    score(ModelRandomisation(groups=2), model, images(3), explainer=Gradient())
    assert same(before, state(model))
    assert strides == [parameter.stride() for parameter in model.parameters()]


def test_after_an_error_too():
    @dataclass
    class Failing:
        calls: int = 0

        def __call__(self, model, inputs, targets, context):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of paint")
            return inputs[:, :1]

    model = small_network()
    before = state(model)
    with pytest.raises(RuntimeError, match="out of paint"):
        score(ModelRandomisation(), model, images(3), explainer=Failing())
    assert same(before, state(model))


def test_absolute_values_forget_the_sign():
    @dataclass(frozen=True)
    class Signed:
        """The image, its sign flipped with the network's first weight moved."""

        first: float

        def __call__(self, model, inputs, targets, context):
            return inputs[:, :1] * (1 if model[0].weight.flatten()[0].item() == self.first else -1)

    model = small_network()
    explainer = Signed(model[0].weight.flatten()[0].item())
    assert score(ModelRandomisation(), model, images(2), explainer=explainer).flatten().tolist() == pytest.approx([-1, -1])
    assert score(ModelRandomisation(absolute=True), model, images(2), explainer=explainer).flatten().tolist() == pytest.approx([1, 1])


def test_numbers_do_not_depend_on_the_batch():
    model = small_network()
    whole = score(ModelRandomisation(groups=2), model, images(64), explainer=Gradient())
    for size in (1, 7):
        parts = in_parts(ModelRandomisation(groups=2), model, images(64), maps(64), size, explainer=Gradient())
        torch.testing.assert_close(parts, whole, atol=2e-3, rtol=0)  # A rounding may swap two neighbours in the order.

"""Summit's aggregation against the authors' rule, step by step, and a network with known channels."""

import pytest
import torch
from torch import nn

from bench.errors import InvalidValue
from bench_plugins import summit
from bench_plugins.summit import Edge, Level, attribution_graph, contributions, largest, most_active


class Colours(nn.Module):
    """The first convolution copies red, green and blue; the second mixes 3 times red and green into 0, and blue into 1."""

    def __init__(self):
        super().__init__()
        self.copy, self.mix = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        with torch.no_grad():
            self.copy.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.mix.weight.copy_(torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(2, 3, 1, 1))

    def forward(self, inputs):
        return self.norm(self.mix(torch.relu(self.copy(inputs)))).mean((2, 3))


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"dilation": 2, "padding": "same"}])
def test_contributions_add_up_to_the_convolution(options, monkeypatch):
    convolution, inputs = nn.Conv2d(5, 4, 3, bias=False, **options), torch.randn(3, 5, 9, 8)
    monkeypatch.setattr(summit, "AT_ONCE", 2 * 3 * 72 * 4)  # Two channels at a time.
    parts = torch.cat(list(summit._contribution_maps(convolution, inputs)), dim=1)
    assert torch.allclose(parts.sum(1), convolution(inputs), atol=1e-5)
    assert torch.equal(contributions(convolution, inputs), parts.amax((3, 4)).transpose(1, 2))


def test_a_contribution_is_that_of_its_channel_alone():
    convolution, inputs = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 6, 6)
    alone = torch.zeros_like(inputs)
    alone[:, 1] = inputs[:, 1]
    expected = (convolution(alone) - convolution.bias.view(1, -1, 1, 1)).amax((2, 3))
    assert torch.allclose(contributions(convolution, inputs)[:, :, 1], expected, atol=1e-6)


def test_the_most_active_channels_are_taken_until_the_share_is_held():
    maxima = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    for share in (0.03, 0.2, 1.0):
        found = most_active(maxima, share)
        for row, mine in zip(maxima.tolist(), found, strict=True):
            chosen, held = [], 0.0
            for channel in sorted(range(30), key=lambda channel: -row[channel]):
                if held >= share * sum(row) - 1e-6:
                    break
                chosen.append(channel)
                held += row[channel]
            assert mine.nonzero().flatten().tolist() == sorted(chosen)


def test_channels_that_never_fire_are_not_active():
    assert most_active(torch.tensor([[-1.0, 0.0, -2.0], [-1.0, 2.0, 0.0]]), 1.0).tolist() == [[False] * 3, [False, True, False]]


def test_the_most_influential_channels_are_counted_for_each_channel_written():
    influences = torch.tensor([[[0.1, 0.5, 0.3], [-1.0, -3.0, -2.0]]])
    assert largest(influences, 2).tolist() == [[[False, True, True], [True, False, True]]]
    assert largest(influences, 9).all()


def test_the_graph_of_a_class_names_the_channels_it_uses():
    """Red images use channel 0, which feeds output 0; blue ones use channel 2, which feeds output 1."""
    model = Colours()
    red, blue = torch.zeros(5, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    red[:, 0], red[:, 1] = 0.9, 0.1
    blue[:, 2] = 0.8
    (level,) = attribution_graph(model, ["mix"], red.split(2), top=1)
    assert attribution_graph(model, ["mix"], [red], count=2)[0].channels.tolist() == [5, 5, 0]
    assert level.channels.tolist() == [5, 0, 0]
    assert level.edges.sum(1).tolist() == [5, 5]
    assert Edge(0, 0, 5) in level.strongest(2)
    copied, mixed = attribution_graph(model, ["copy", "mix"], [blue], top=1)
    assert copied.channels.tolist() == mixed.channels.tolist() == [0, 0, 3]
    assert mixed.edges[1].tolist() == [0, 0, 3]


def test_the_strongest_edges_come_first():
    level = Level("conv", torch.zeros(2), torch.tensor([[1, 4], [4, 0]]))
    assert level.strongest(3) == [Edge(1, 0, 4), Edge(0, 1, 4), Edge(0, 0, 1)]


def test_batches_do_not_matter_and_the_model_is_left_as_it_was():
    model, images = Colours().train(), torch.rand(7, 3, 4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole, parts = (attribution_graph(model, ["copy", "mix"], images.split(size), top=2) for size in (7, 3))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.channels, other.channels)
        assert torch.equal(one.edges, other.edges)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_a_name_that_is_no_plain_convolution_is_refused():
    with pytest.raises(InvalidValue, match="Did you mean 'mix'"):
        attribution_graph(Colours(), ["mixx"], [])
    with pytest.raises(InvalidValue, match="groups"):
        attribution_graph(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), ["0"], [])

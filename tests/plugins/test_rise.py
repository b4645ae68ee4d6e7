"""RISE against answers worked out mask by mask."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import contexts, testing
from bench.registry import Registry
from bench_plugins.rise import Masks, Rise, enlargement, register_explainers

KAT = testing.TWO_CHANNEL_IMAGE
NETWORK = testing.TwoChannelNetwork()


def every_mask():
    """All sixteen masks of a 2 x 2 image, each pixel a cell of its own."""
    grids = torch.tensor(list(itertools.product([False, True], repeat=4))).view(16, 2, 2)
    return Masks(grids, torch.zeros(16, 2, dtype=torch.long), torch.eye(2).unsqueeze(0), torch.eye(2).unsqueeze(0))


def context(model, rows, **options):
    return testing.explain_context(model, [], rows, **options)


class Constant(nn.Module):
    """Gives class 0 the same probability whatever it sees."""

    def __init__(self, probability):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(probability).logit())

    def forward(self, inputs):
        return torch.stack([self.logit.expand(len(inputs)), torch.zeros(len(inputs))], 1)


class Linear(nn.Module):
    """Class 0 has the probability Σ w x."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.normalisation = testing.Plain(1)

    def forward(self, inputs):
        return torch.stack([(inputs * self.weights).sum((1, 2, 3)).logit(), torch.zeros(len(inputs))], 1)


def test_all_masks_of_the_two_channel_network_give_the_known_map():
    rise = Rise(masks=16, cells=2, probability=0.5)
    masks = every_mask()
    scores = rise.scores(NETWORK, KAT[0], torch.zeros(1, 2, 2), torch.tensor(0), masks, context(NETWORK, 1))
    assert torch.allclose(rise.weigh(masks, scores), torch.tensor([[[0.6750, 0.4429], [0.8124, 0.6444]]]), atol=5e-5)


def test_dividing_by_the_coverage_changes_nothing_when_every_pixel_is_shown_equally_often():
    masks, scores = every_mask(), torch.rand(16, generator=torch.Generator().manual_seed(0))
    expected = Rise(masks=16, cells=2, probability=0.5).weigh(masks, scores)
    assert torch.allclose(Rise(masks=16, cells=2, probability=0.5, normalise="per-pixel").weigh(masks, scores), expected)


def test_a_linear_score_gives_the_closed_form():
    """S_i = p Σ w_j x_j + (1 - p) w_i x_i for masks whose pixels are independent."""
    weights, image = torch.tensor([[[0.1, 0.2], [0.3, 0.05]]]), torch.tensor([[[0.5, 0.25], [1.0, 0.4]]])
    rise, model, masks = Rise(masks=16, cells=2, probability=0.5), Linear(weights), every_mask()
    scores = rise.scores(model, image, torch.zeros(1, 2, 2), torch.tensor(0), masks, context(model, 1))
    parts = weights * image
    assert torch.allclose(rise.weigh(masks, scores), 0.5 * parts.sum() + 0.5 * parts, atol=1e-6)


def test_a_constant_score_gives_a_map_as_flat_as_the_masks():
    model, image = Constant(0.3), torch.rand(2, 1, 12, 12)
    targets = torch.zeros(2, dtype=torch.long)
    by_expectation = testing.explain(model, Rise(masks=2000, cells=4, probability=0.5), image, targets, [])
    by_pixel = testing.explain(model, Rise(masks=2000, cells=4, probability=0.5, normalise="per-pixel"), image, targets, [])
    assert torch.allclose(by_pixel, torch.full_like(by_pixel, 0.3), atol=1e-5)
    assert (by_expectation - 0.3).abs().max() < 0.3 * 5 * (0.25 / 2000) ** 0.5 / 0.5  # Five standard errors of a mean of bits.


@pytest.mark.parametrize(("cells", "size"), [(4, (12, 12)), (3, (10, 7)), (8, (32, 32)), (7, (4, 20))])
def test_masks_are_the_grids_enlarged_and_cropped(cells, size):
    rise = Rise(masks=40, cells=cells, probability=0.5)
    grids, shifts = rise.draw(torch.Size(size), torch.Generator().manual_seed(3))
    masks = Masks(grids, shifts, *(enlargement(cells, length) for length in size)).drawn(torch.arange(40))
    cell = [-(-length // cells) for length in size]
    assert masks.shape == (40, 1, *size)
    assert (shifts < torch.tensor(cell)).all()
    for mask, grid, (down, across) in zip(masks, grids, shifts.tolist(), strict=True):
        large = F.interpolate(grid[None, None].float(), size=[(cells + 1) * length for length in cell], mode="bilinear", align_corners=False)
        assert torch.allclose(mask, large[0, :, down : down + size[0], across : across + size[1]], atol=1e-6)


def test_every_pixel_is_shown_with_the_given_probability():
    rise = Rise(masks=4000, cells=4, probability=0.3)
    masks = Masks(*rise.draw(torch.Size((16, 16)), torch.Generator().manual_seed(1)), enlargement(4, 16), enlargement(4, 16))
    drawn = masks.drawn(torch.arange(4000))
    assert drawn.min() >= 0
    assert drawn.max() <= 1 + 1e-6
    assert (drawn.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_the_sum_over_masks_equals_the_sum_of_masks_held_in_full():
    rise = Rise(masks=300, cells=3, probability=0.5)
    masks = Masks(*rise.draw(torch.Size((10, 7)), torch.Generator().manual_seed(0)), enlargement(3, 10), enlargement(3, 7))
    weights = torch.rand(300, generator=torch.Generator().manual_seed(1))
    held = (weights.view(-1, 1, 1, 1) * masks.drawn(torch.arange(300))).sum(0)
    assert torch.allclose(masks.weighted_sum(weights), held, rtol=1e-5)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def explain(model, rise, images, targets, rows=None, **options):
    rows = range(len(images)) if rows is None else rows
    generators = [contexts.generator(0, row) for row in rows]
    with_streams = contexts.explain_context(model, testing.dataset_info(3, (12, 12), 3), [], [], generators, **options)
    return contexts.explain(model, rise, images, targets, with_streams), with_streams


def test_an_image_depends_neither_on_its_neighbours_nor_on_the_chunks():
    model, rise, images, targets = small_network(), Rise(masks=50, cells=3, probability=0.5), torch.rand(5, 3, 12, 12), torch.tensor([0, 1, 2, 0, 1])
    together, _ = explain(model, rise, images, targets, chunk=16)
    alone = [explain(model, rise, images[[row]], targets[[row]], rows=[row], chunk=16)[0] for row in range(5)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.allclose(together, explain(model, rise, images, targets, chunk=7)[0], atol=1e-6)


def test_each_image_has_masks_of_its_own():
    model, image = small_network(), torch.rand(1, 3, 12, 12)
    maps, _ = explain(model, Rise(masks=20, cells=3, probability=0.5), image.repeat(2, 1, 1, 1), torch.zeros(2, dtype=torch.long))
    assert not torch.allclose(maps[0], maps[1])


def test_an_image_costs_one_forward_per_mask_and_no_backward():
    model = small_network()
    _, used = explain(model, Rise(masks=33, cells=3), torch.rand(4, 3, 12, 12), torch.zeros(4, dtype=torch.long), chunk=16)
    assert (used.passes.forward, used.passes.backward) == (4 * 33, 0)


def test_a_bright_square_that_decides_the_class_is_found():
    weights = torch.zeros(1, 12, 12)
    weights[:, 2:5, 6:9] = 0.1
    images = torch.full((2, 1, 12, 12), 0.9)
    maps = testing.explain(Linear(weights), Rise(masks=1500, cells=4, probability=0.5), images, torch.zeros(2, dtype=torch.long), [])
    inside = weights.bool().expand(2, 1, 12, 12)
    assert (maps * inside).sum() / inside.sum() > 1.15 * (maps * ~inside).sum() / (~inside).sum()
    for row in maps:
        assert inside[0].flatten()[row.argmax()]


@pytest.mark.parametrize("fill", ["black", "mean", "blur", "noise"])
def test_a_black_image_gives_finite_maps_with_every_fill(fill):
    rise = Rise(masks=8, cells=3, fill=fill, normalise="per-pixel")
    maps, _ = explain(small_network(), rise, torch.zeros(2, 3, 12, 12), torch.zeros(2, dtype=torch.long))
    assert maps.isfinite().all()


def test_hidden_pixels_take_the_fill():
    """With the fill equal to the image, hiding changes nothing and every score is the image's own."""
    image = torch.zeros(2, 3, 12, 12)
    model = small_network()
    score = model.eval()(image).softmax(1)[0, 0].item()
    maps, _ = explain(model, Rise(masks=8, cells=3, probability=0.5, fill="black", normalise="per-pixel"), image, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(maps[maps > 0], torch.tensor(score), atol=1e-6)


def test_the_model_is_left_as_it_was():
    model = small_network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, Rise(masks=8, cells=3), torch.rand(2, 3, 12, 12), torch.zeros(2, dtype=torch.long))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model._forward_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_registered_sizes_are_those_of_the_authors_notebook_and_of_the_comparison():
    registry = Registry()

    def register(factory, *, name=None, **defaults):
        registry.add("explainer", factory, name=name, defaults=defaults, plugin="rise", distribution="test")

    register_explainers(register)
    parts = {entry.name: registry.resolve("explainer", entry.name).part for entry in registry.entries("explainer")}
    sizes = {name: (part.masks, part.cells, part.probability, part.normalise, part.fill) for name, part in parts.items()}
    assert sizes == {
        "rise": (6000, 8, 0.1, "expected", "mean"),
        "rise-8000": (8000, 7, 0.5, "expected", "mean"),
        "rise-per-pixel": (6000, 8, 0.1, "per-pixel", "mean"),
    }


def test_equal_seeds_give_equal_masks():
    rise, size = Rise(masks=30, cells=4), torch.Size((12, 12))
    first, again, other = (rise.draw(size, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])

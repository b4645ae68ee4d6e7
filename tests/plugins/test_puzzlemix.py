"""Puzzle Mix: both minimisations against everything there is to choose from."""

import itertools
import math
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from augmenter_cases import augment, batch_of, marked, network
from torch import nn

from bench import contexts
from bench.errors import InvalidValue
from bench_plugins import puzzlemix
from bench_plugins._gradients import loss_saliency
from bench_plugins.puzzlemix import PuzzleMix, binomial, minimise, rearranged


def energy(labels, unary, down, across):
    """Of one image: the sum that `minimise` makes least, written out."""
    levels, height, width = len(unary) - 1, len(labels), len(labels[0])
    total = sum(unary[labels[row][column], row, column] for row in range(height) for column in range(width))
    for row, column in itertools.product(range(height - 1), range(width)):
        total += down[row, column] * ((labels[row][column] - labels[row + 1][column]) / levels) ** 2
    for row, column in itertools.product(range(height), range(width - 1)):
        total += across[row, column] * ((labels[row][column] - labels[row][column + 1]) / levels) ** 2
    return float(total)


def every_labelling(labels, height, width):
    for flat in itertools.product(range(labels), repeat=height * width):
        yield [list(flat[row * width : (row + 1) * width]) for row in range(height)]


@pytest.mark.parametrize(("labels", "height", "width"), [(2, 2, 2), (3, 2, 2), (4, 2, 2), (2, 3, 3), (3, 2, 3)])
def test_the_cut_finds_the_least_energy_of_all(labels, height, width):
    stream = contexts.generator("cut", labels, height, width)
    unary = torch.randn(5, labels, height, width, generator=stream)
    down, across = torch.rand(5, height - 1, width, generator=stream), torch.rand(5, height, width - 1, generator=stream)
    chosen = minimise(unary, down, across)
    for image in range(5):
        parts = unary[image], down[image], across[image]
        least = min(energy(labelling, *parts) for labelling in every_labelling(labels, height, width))
        assert energy(chosen[image].tolist(), *parts) == pytest.approx(least, abs=2e-3)


def test_an_image_is_cut_alone_whatever_stands_beside_it():
    stream = contexts.generator("alone")
    unary, down, across = torch.randn(6, 3, 8, 8, generator=stream), torch.rand(6, 7, 8, generator=stream), torch.rand(6, 8, 7, generator=stream)
    together = minimise(unary, down, across)
    assert all(torch.equal(together[[row]], minimise(unary[[row]], down[[row]], across[[row]])) for row in range(6))


def step(above, below, size):
    """The mean absolute difference along the border of two blocks, pooled first."""
    pooled = [F.avg_pool2d(part[None], size)[0] for part in (above, below)]
    return float((pooled[0][:, -1] - pooled[1][:, 0]).abs().mean())


def paper_energy(mask, own, other, own_saliency, other_saliency, share, part):
    """Of one image on a 2 x 2 grid: the authors' formula, block by block and border by border."""
    side = own.shape[1] // 2
    weight = part.beta / (16 * 2)
    size = math.gcd(part.neigh_size, side)

    def block(image, row, column):
        return image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]

    total = 0.0
    for row, column in itertools.product(range(2), range(2)):
        z = mask[row][column]
        total += z * float(other_saliency[row, column]) + (1 - z) * float(own_saliency[row, column])
        successes = round(z * 2)
        total += part.eta / 4 * -math.log(math.comb(2, successes) * share**successes * (1 - share) ** (2 - successes) + 1e-8)
    borders = [((0, 0), (1, 0), False), ((0, 1), (1, 1), False), ((0, 0), (0, 1), True), ((1, 0), (1, 1), True)]
    for first, second, sideways in borders:
        turn = (lambda image: image.mT) if sideways else (lambda image: image)
        upper, lower = ([turn(block(image, *place)) for image in (other, own)] for place in (first, second))
        steps = {(a, b): step(upper[a], lower[b], size) for a, b in itertools.product((0, 1), (0, 1))}
        p, q = mask[first[0]][first[1]], mask[second[0]][second[1]]
        misfit = (steps[1, 0] + steps[0, 1] - steps[1, 1] - steps[0, 0]) / 2
        total += weight * (1 + part.gamma * misfit) * (p - q) ** 2
        total += weight * part.gamma * (p * (steps[1, 0] + steps[1, 1]) + (1 - p) * (steps[0, 1] + steps[0, 0])) / 2
        total += weight * part.gamma * (q * (steps[0, 1] + steps[1, 1]) + (1 - q) * (steps[1, 0] + steps[0, 0])) / 2
    return total


def test_the_masks_have_the_least_energy_of_the_papers_formula():
    stream = contexts.generator("masks")
    inputs = F.interpolate(torch.rand(3, 3, 3, 3, generator=stream), size=(8, 8), mode="bilinear")
    saliency = torch.rand(3, 2, 2, generator=stream)
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    partners = torch.tensor([1, 2, 0])
    for share in (0.2, 0.5, 0.9):
        part = PuzzleMix(beta=2.0, gamma=1.0)
        masks = part.masks(inputs, partners, saliency, share)
        for row in range(3):
            images = inputs[row], inputs[partners[row]], saliency[row], saliency[partners[row]], share, part
            energies = {str(z): paper_energy(z, *images) for z in ([[k / 2 for k in line] for line in table] for table in every_labelling(3, 2, 2))}
            assert energies[str(masks[row].tolist())] == pytest.approx(min(energies.values()), abs=2e-3)


def test_saliency_is_the_root_mean_square_of_the_losss_gradient():
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), batch_of(3, side=4)
    surprise = model(batch.inputs).softmax(1) - batch.targets  # The gradient of cross-entropy by the logits.
    gradients = (surprise @ model[1].weight).view(3, 3, 4, 4)
    torch.testing.assert_close(loss_saliency(model, batch, multi_label=False), gradients.square().mean(1).sqrt())
    surprise = (model(batch.inputs).sigmoid() - batch.targets) / 4
    gradients = (surprise @ model[1].weight).view(3, 3, 4, 4)
    torch.testing.assert_close(loss_saliency(model, batch, multi_label=True), gradients.square().mean(1).sqrt())


def test_the_prior_is_the_binomials():
    expected = [-math.log(0.49), -math.log(0.42), -math.log(0.09)]
    assert binomial(2, 0.3).tolist() == pytest.approx(expected, abs=1e-6)


def test_blocks_go_where_the_least_cost_of_all_orders_puts_them():
    stream = contexts.generator("transport")
    saliency, shown = torch.rand(8, 2, 2, generator=stream), torch.rand(8, 2, 2, generator=stream) < 0.5
    part = PuzzleMix(t_eps=0.2)
    orders = part.assignment(saliency, shown)

    def cost(order, row):
        places = [(0, 0), (0, 1), (1, 0), (1, 1)]
        far = sum((places[block][0] - place[0]) ** 2 + (places[block][1] - place[1]) ** 2 for place, block in zip(places, order, strict=True))
        return 0.2 * far - sum(float(saliency[row].flatten()[block]) for place, block in enumerate(order) if shown[row].flatten()[place])

    for row in range(8):
        least = min(cost(order, row) for order in itertools.permutations(range(4)))
        assert cost(orders[row].tolist(), row) == pytest.approx(least, abs=1e-6)


def test_a_salient_block_that_is_covered_moves_next_door():
    saliency = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    order = PuzzleMix(t_eps=0.2).assignment(saliency, torch.tensor([[[False, True], [False, False]]]))
    assert order.tolist() == [[1, 0, 2, 3]]
    images = torch.arange(16.0).view(1, 1, 4, 4)
    swapped = rearranged(images, order)
    assert torch.equal(swapped[:, :, :2, :2], images[:, :, :2, 2:])
    assert torch.equal(swapped[:, :, :2, 2:], images[:, :, :2, :2])
    assert torch.equal(swapped[:, :, 2:], images[:, :, 2:])


def test_nothing_is_moved_where_distance_costs_more_than_saliency():
    saliency = torch.rand(3, 4, 4, generator=contexts.generator("stay"))
    shown = torch.rand(3, 4, 4, generator=contexts.generator("shown")) < 0.5
    orders = PuzzleMix(t_eps=100).assignment(saliency / saliency.sum((1, 2), keepdim=True), shown)
    assert torch.equal(orders, torch.arange(16).expand(3, -1))


@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
def test_every_grid_mixes_whole_blocks(blocks):
    with patch.object(puzzlemix, "GRIDS", (blocks,)):
        result = augment(PuzzleMix(), marked(6, side=32), network(6, 6))
    size = 32 // blocks
    own = result.inputs.diagonal().movedim(-1, 0).unflatten(1, (blocks, size)).unflatten(3, (blocks, size))
    assert (own == own[:, :, :1, :, :1]).all()
    assert set(own.unique().tolist()) <= {0.0, 0.5, 1.0}


def test_grids_fit_the_image():
    grids = {puzzlemix.draw_grid(batch_of(2, side=12), contexts.generator("grid", number)) for number in range(30)}
    assert grids == {2, 4}
    with pytest.raises(InvalidValue, match="square images of even side"):
        puzzlemix.draw_grid(batch_of(2, side=15), contexts.generator("grid"))

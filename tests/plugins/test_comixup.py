"""Co-Mixup: the choice of each block, and what makes the new images differ."""

import itertools

import numpy as np
import pytest
import torch
from augmenter_cases import augment, marked, network

from bench_plugins.comixup import CoMixup, candidates, choose, compatibility, energy, label, pushed_apart


def problems(count, size, labels, seed=0):
    stream = np.random.default_rng(seed)
    unary = stream.normal(size=(count, size, size, labels))
    points = stream.normal(size=(count, labels, 3))
    return unary, ((points[:, :, None] - points[:, None]) ** 2).sum(3) / 8


@pytest.mark.parametrize(("size", "labels"), [(2, 4), (3, 2)])
def test_most_choices_are_the_best_of_all(size, labels):
    unary, differences = problems(100, size, labels)
    found = energy(label(unary, differences), unary, differences)
    everything = np.array(list(itertools.product(range(labels), repeat=size * size))).reshape(-1, size, size)
    alike = [[np.broadcast_to(part, (len(everything), *part.shape)) for part in problem] for problem in zip(unary, differences, strict=True)]
    least = np.array([energy(everything, *problem).min() for problem in alike])
    assert (found >= least - 1e-9).all()
    assert (found <= least + 1e-9).mean() > 0.9
    assert (found - least).mean() < 0.03


def test_a_choice_is_never_worse_than_either_start():
    unary, differences = problems(50, 4, 20)
    found = energy(label(unary, differences), unary, differences)
    assert (found <= energy(unary.argmin(3), unary, differences) + 1e-9).all()
    assert (found <= unary.sum((1, 2)).min(1) + 1e-9).all()


def test_energy_is_the_sum_over_blocks_and_borders():
    labels, unary = np.array([[[0, 1], [1, 1]]]), np.arange(8.0).reshape(1, 2, 2, 2)
    assert energy(labels, unary, np.array([[[0.0, 10.0], [10.0, 0.0]]])) == [0 + 3 + 5 + 7 + 2 * 10]


def test_mixes_of_the_three_images_that_fill_most_may_be_chosen():
    mixes, allowed = candidates(np.array([[4.0, 0, 7, 5, 0], [16, 0, 0, 0, 0], [9, 0, 0, 7, 0]]))
    assert torch.equal(torch.tensor(mixes[0, 5:]), torch.tensor([[0, 0, 0.5, 0.5, 0], [0.5, 0, 0.5, 0, 0], [0.5, 0, 0, 0.5, 0]], dtype=torch.float64))
    assert allowed[:, :5].all()
    assert allowed[:, 5:].tolist() == [[True] * 3, [False] * 3, [True, False, False]]


def test_neighbours_differ_by_half_the_squared_distance_of_their_shares():
    cost = np.zeros((1, 1, 2, 2))
    cost[0, 0, 0, 1] = cost[0, 0, 1, 0] = 1.0  # The left block wants image 0, the right one image 1.
    assert choose(cost, np.zeros((1, 2)), 0.9)[0, 0].tolist() == [[1, 0], [0, 1]]  # 0 + 0.9 · 1
    assert len({tuple(block) for block in choose(cost, np.zeros((1, 2)), 1.1)[0, 0].tolist()}) == 1  # 1 + 0
    # With the mix allowed: pure and pure cost 1.1, one pure beside the mix 0.5 + 1.1 / 4, and both mixed 1.
    assert sorted(choose(cost, np.ones((1, 2)), 1.1)[0, 0].tolist()) in ([[0, 1], [0.5, 0.5]], [[0.5, 0.5], [1, 0]])


def test_images_made_of_one_set_are_pushed_apart():
    filled = np.array([[[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0], [1, 1, 0]]], dtype=bool)
    expected = np.zeros((6, 3))
    for first, second in itertools.combinations(range(6), 2):  # The authors' loop over pairs.
        images = np.flatnonzero(filled[0, first])
        if (filled[0, first] == filled[0, second]).all() and len(images) > 1:
            expected[first, images[0]] = expected[second, images[1]] = 1
    assert (pushed_apart(filled)[0] == expected).all()


def test_distances_are_between_the_most_salient_places():
    saliency = torch.zeros(1, 3, 16, 16)
    for image, (row, column) in enumerate(((2, 2), (2, 12), (12, 12))):
        saliency[0, image, row : row + 4, column : column + 4] = 1
    distances = compatibility(saliency)[0]
    steps = np.array([[0, 10, 20], [10, 0, 10], [20, 10, 0]])
    np.testing.assert_allclose(distances, steps / steps.sum() * 3)


def test_no_image_fills_far_more_than_its_place():
    saliency = np.random.default_rng(0).exponential(size=(2, 12, 4, 4)) ** 1.5
    shares = CoMixup().shares(saliency / saliency.sum((2, 3), keepdims=True), np.zeros((2, 12, 12)), np.random.default_rng(1))
    np.testing.assert_allclose(shares.sum(4), 1)
    used = shares.sum((1, 2, 3))
    assert used.max() < 0.83 * 16 + 16  # Above τ blocks elsewhere, one more new image is all it can get.
    assert (shares.sum((2, 3)) > 0).sum(2).mean() > 1.5


def test_what_is_salient_is_kept_more_than_by_chance():
    stream = np.random.default_rng(0)
    saliency = stream.exponential(size=(3, 16, 4, 4)) ** 1.5
    saliency /= saliency.sum((2, 3), keepdims=True)
    shares = CoMixup().shares(saliency, np.zeros((3, 16, 16)), stream)
    kept = (shares * saliency.transpose(0, 2, 3, 1)[:, None]).sum() / (3 * 16)
    assert kept > 1.3  # Every image whole in one new image would keep 1.


@pytest.mark.parametrize("count", [3, 20, 23])
def test_sets_of_any_size_come_back_whole(count):
    result = augment(CoMixup(part=10), marked(count), network(count, count))
    torch.testing.assert_close(result.targets, result.inputs.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.targets.sum(1), torch.ones(count))
    blocks = [result.targets[rows][:, rows].sum() for rows in torch.arange(count).tensor_split(-(-count // 10))]
    assert sum(blocks) == pytest.approx(count, abs=1e-4)  # Nothing crosses from one set to another.

"""ROAD: pytorch-grad-cam's direct solver, an image it must restore exactly, and independence from the batch."""

import pytest
import torch
from metric_cases import images, in_parts, maps, score, small_network
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined, ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

from bench_plugins._scoring import places
from bench_plugins.road import Road, RoadLeastRelevantFirst, RoadMostRelevantFirst, impute, neighbours


def hidden_top(saliency, share):
    return (places(saliency) < int(share * saliency[0].numel())).view_as(saliency)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("scattered", [True, False])
def test_the_solution_is_that_of_the_direct_solver(share, scattered):
    inputs = images(6, 24) + 0.1 * torch.rand(6, 3, 24, 24)
    hidden = hidden_top(torch.rand(6, 1, 24, 24) if scattered else maps(6, 24), share)
    direct = [NoisyLinearImputer(noise=0)(image, (~mask[0]).float()) for image, mask in zip(inputs, hidden, strict=True)]
    torch.testing.assert_close(impute(inputs, hidden), torch.stack(direct), atol=2e-4, rtol=0)


def test_a_hidden_pixel_is_the_weighted_mean_of_its_neighbours():
    image = torch.tensor([[1.0, 2, 3], [4, 99, 5], [6, 7, 8]]).view(1, 1, 3, 3)
    hidden = image == 99
    assert impute(image, hidden)[0, 0, 1, 1].item() == pytest.approx((1 + 3 + 6 + 8) / 12 + (2 + 4 + 5 + 7) / 6)


def test_in_a_corner_the_neighbours_that_exist_count():
    image = torch.tensor([[99.0, 2], [4, 8]]).view(1, 1, 2, 2)
    assert impute(image, image == 99)[0, 0, 0, 0].item() == pytest.approx((2 / 6 + 4 / 6 + 8 / 12) / (5 / 12))
    assert neighbours(torch.ones(1, 1, 2, 2)).flatten().tolist() == [5] * 4  # Twelfths.


def test_a_plane_with_a_hole_is_restored():
    plane = (torch.arange(12.0)[:, None] + 2 * torch.arange(12.0)).view(1, 1, 12, 12) / 40
    hidden = torch.zeros_like(plane, dtype=torch.bool)
    hidden[..., 3:9, 2:10] = True
    torch.testing.assert_close(impute(plane, hidden), plane, atol=1e-5, rtol=0)


def test_what_is_shown_is_left_alone_and_nothing_hidden_is_the_image():
    inputs, hidden = images(2), hidden_top(maps(2), 0.4)
    assert torch.equal(torch.where(hidden, 0, impute(inputs, hidden)), torch.where(hidden, 0, inputs))
    assert torch.equal(impute(inputs, torch.zeros_like(hidden)), inputs)


def test_the_number_of_the_combined_form_agrees_with_grad_cam():
    model, inputs, saliency, percentiles = small_network(), images(8), maps(8), [20, 50, 80]
    targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in model(inputs).argmax(1)]
    theirs = ROADCombined(percentiles)(inputs, saliency[:, 0].numpy(), targets, model)
    ours = score(Road(shares=(0.2, 0.5, 0.8)), model, inputs, saliency).mean(1)
    assert abs(theirs).max() > 0.02
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=0.01, rtol=0)  # Both add noise of their own.


def test_each_order_agrees_with_grad_cam():
    model, inputs, saliency = small_network(), images(8), maps(8)
    targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in model(inputs).argmax(1)]
    theirs = ROADMostRelevantFirst(percentile=70)(inputs, saliency[:, 0].numpy(), targets, model, return_diff=False)
    ours = score(RoadMostRelevantFirst(shares=(0.3,)), model, inputs, saliency)[:, 0]
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=0.01, rtol=0)
    reverse = score(RoadLeastRelevantFirst(shares=(0.3,)), model, inputs, -saliency)[:, 0]
    torch.testing.assert_close(reverse, ours, atol=0.01, rtol=0)


def test_the_combined_form_is_half_the_difference():
    model = small_network()
    least, most, both = (score(metric(), model, images(3), maps(3)) for metric in (RoadLeastRelevantFirst, RoadMostRelevantFirst, Road))
    torch.testing.assert_close(both, (least - most) / 2)


def test_images_stay_in_range():
    metric = RoadMostRelevantFirst(noise=3.0)
    changed = metric._without(hidden_top(maps(2), 0.5), images(2), [torch.Generator(), torch.Generator()], 2)
    assert 0 <= changed.min() <= changed.max() <= 1


def test_numbers_do_not_depend_on_the_batch():
    model = small_network()
    whole = score(Road(shares=(0.1, 0.9)), model, images(64), maps(64))
    for size in (1, 7):
        torch.testing.assert_close(in_parts(Road(shares=(0.1, 0.9)), model, images(64), maps(64), size), whole, atol=1e-5, rtol=0)

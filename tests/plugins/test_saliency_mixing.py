"""SaliencyMix and Attentive CutMix."""

import pytest
import torch
from augmenter_cases import augment, batch_of, marked
from torch import nn

from bench.interfaces import Layer
from bench_plugins.saliency_mixing import WINDOWS, AttentiveCutMix, SaliencyMix, fine_grained_saliency, strongest_cells


def saliency_by_loop(image):
    """(H, W) for one image (3, H, W), pixel by pixel."""
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    height, width = grey.shape
    for _ in range(2):
        mirrored = nn.functional.pad(grey[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
        rows = (mirrored[:-2] + 2 * mirrored[1:-1] + mirrored[2:]) / 4
        grey = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    brighter, darker = torch.zeros_like(grey), torch.zeros_like(grey)
    for row in range(height):
        for column in range(width):
            for reach in WINDOWS:
                window = grey[max(row - reach + 1, 0) : row + reach + 1, max(column - reach + 1, 0) : column + reach + 1]
                around = (window.sum() - grey[row, column]) / (window.numel() - 1)
                brighter[row, column] += max(grey[row, column] - around, 0)
                darker[row, column] += max(around - grey[row, column], 0)
    return brighter / brighter.max() + darker / darker.max()


def test_saliency_is_the_contrast_to_the_surroundings():
    images = batch_of(2, side=(16, 20)).inputs
    expected = torch.stack([saliency_by_loop(image) for image in images])
    torch.testing.assert_close(fine_grained_saliency(images), expected, atol=1e-4, rtol=0)


def test_an_image_of_one_colour_has_no_saliency():
    maps = fine_grained_saliency(torch.full((1, 3, 16, 16), 0.4))
    assert maps.isfinite().all()


def test_the_box_is_around_the_partners_most_salient_point():
    batch = batch_of(24, classes=24)
    result = augment(SaliencyMix(mode="elem"), batch)
    peaks = fine_grained_saliency(batch.inputs).flatten(1).argmax(1)
    pasted = result.targets - torch.diag(result.targets.diagonal())
    for row in (pasted.amax(1) > 0).nonzero().flatten().tolist():
        partner = int(pasted[row].argmax())
        changed = (result.inputs[row] != batch.inputs[row]).any(0).nonzero()
        centre = torch.tensor(divmod(int(peaks[partner]), 16))
        assert torch.equal(result.inputs[row, :, *centre], batch.inputs[partner, :, *centre])
        first, last = changed.amin(0), changed.amax(0) + 1
        for axis in (0, 1):  # As far to one side as to the other, unless the border is in the way.
            before, after = int(centre[axis] - first[axis]), int(last[axis] - centre[axis])
            assert before == after or first[axis] == 0 or last[axis] == 16
    assert (pasted.amax(1) > 0).sum() > 12


def test_the_boxes_have_cutmixs_size():
    own = torch.cat([augment(SaliencyMix(mode="elem"), marked(40, side=32), step=step).targets.diagonal() for step in range(4)])
    assert 0.55 < own.mean() < 0.85  # 0.70 for centres that are uniform, 0.50 for boxes that are never cut off.


class Cells(nn.Module):
    """A network whose feature map is the image's own blocks."""

    def __init__(self, size, channels):
        super().__init__()
        self.pool, self.head = nn.AvgPool2d(size), nn.Linear(channels, 2)

    def forward(self, inputs):
        return self.head(self.pool(inputs).mean((2, 3)))


@pytest.mark.parametrize(("side", "cells"), [(16, 2), (28, 6)])
def test_the_partners_strongest_cells_are_pasted(side, cells):
    batch = batch_of(10, side=side, classes=10)
    model = Cells(4, 3)
    result = augment(AttentiveCutMix(), batch, model, stages=[Layer("pool", model.pool)])
    share = cells / (side // 4) ** 2
    strength = nn.functional.avg_pool2d(batch.inputs.mean(1, keepdim=True), 4).flatten(1)
    for row in range(10):
        others = result.targets[row].clone()
        others[row] = 0
        if not others.any():
            continue
        partner = int(others.argmax())
        assert others[partner] == pytest.approx(share)
        top = torch.zeros((side // 4) ** 2, dtype=torch.bool)
        top[strength[partner].topk(cells).indices] = True
        taken = top.view(side // 4, side // 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
        torch.testing.assert_close(result.inputs[row], torch.where(taken, batch.inputs[partner], batch.inputs[row]))


def test_six_of_forty_nine_cells_are_the_papers_share():
    cells = strongest_cells(torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0)), 6 / 49)
    assert (cells.sum((1, 2)) == 6).all()
    assert strongest_cells(torch.rand(1, 2, 2), 6 / 49).sum() == 1

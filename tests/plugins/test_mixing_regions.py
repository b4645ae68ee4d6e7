"""RICAP and ResizeMix."""

import pytest
import torch
from augmenter_cases import augment, marked
from scipy import special

from bench.interfaces import Batch
from bench_plugins.mixing_regions import ResizeMix, Ricap


def located(count, side=32):
    """Images whose channels say row, column and image, as parts of 1."""
    places = torch.arange(side) / side
    rows, columns = places.view(-1, 1).expand(side, side), places.view(1, -1).expand(side, side)
    numbers = (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    inputs = torch.cat([torch.stack([rows, columns]).expand(count, -1, -1, -1), numbers], 1)
    return Batch.of(inputs.contiguous(), torch.eye(count))


def test_one_image_fills_everything_as_often_as_the_beta_says():
    edge = 2 * special.betainc(0.3, 0.3, 0.5 / 32)  # A side of 0 or 32 pixels after rounding.
    assert edge**2 == pytest.approx(0.101, abs=0.002)  # The card counted 0.101.
    results = [augment(Ricap(mode="elem"), Batch.of(torch.zeros(600, 1, 32, 32), torch.eye(600)), step=step).targets for step in range(4)]
    alone = (torch.cat(results) == 1).any(1).float().mean()
    assert abs(alone - edge**2) < 4 * (edge**2 / 2400) ** 0.5


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_every_part_is_a_crop_of_one_image(mode):
    batch = located(12)
    for step in range(4):
        rows, columns, numbers = augment(Ricap(mode=mode), batch, step=step).inputs.movedim(1, 0)
        same = numbers[:, :, 1:] == numbers[:, :, :-1]
        steps = columns.diff(dim=2) * 32
        assert ((steps - 1).abs() < 1e-4)[same].float().mean() > 0.97  # Two parts of one image may meet.
        assert (rows.diff(dim=2) == 0)[same].float().mean() > 0.97
        below = numbers[:, 1:] == numbers[:, :-1]
        assert ((rows.diff(dim=1) * 32 - 1).abs() < 1e-4)[below].float().mean() > 0.97
        sources = [image.unique().numel() for image in numbers]
        assert max(sources) <= 4


def test_one_split_serves_the_batch_unless_each_image_asks_for_its_own():
    shared = augment(Ricap(), marked(12), step=3).targets.sort(1, descending=True).values[:, :4]
    each = augment(Ricap(mode="elem"), marked(12), step=3).targets.sort(1, descending=True).values[:, :4]
    distinct = [len({tuple(round(value, 4) for value in row) for row in table.tolist()}) for table in (shared, each)]
    assert distinct[0] < distinct[1]


def test_the_whole_partner_is_seen_made_smaller_at_its_place():
    batch = located(12)
    result = augment(ResizeMix(mode="elem"), batch, step=1)
    numbers = result.inputs[:, 2]
    for row in range(12):
        inside = numbers[row] != batch.inputs[row, 2]
        if not inside.any():
            continue
        tall, wide = int(inside.any(1).sum()), int(inside.any(0).sum())
        assert inside.sum() == tall * wide
        pasted = result.inputs[row][:, inside].view(3, tall, wide)
        assert pasted[2].unique().numel() == 1
        torch.testing.assert_close(pasted[0, :, 0], (torch.arange(tall) * 32 // tall) / 32)
        torch.testing.assert_close(pasted[1, 0], (torch.arange(wide) * 32 // wide) / 32)
        assert result.targets[row, row] == pytest.approx(1 - tall * wide / 1024)


def test_the_pasted_side_is_within_the_scales():
    half, batch = ResizeMix(mode="elem", min_scale=0.5, max_scale=0.5), marked(30, side=32)
    pasted = 1 - torch.cat([augment(half, batch, step=step).targets.diagonal() for step in range(5)])
    assert pasted.max() == pytest.approx(0.25)
    assert (pasted[pasted > 0].min() >= 0.0625 - 1e-6).all()  # A quarter of the box is left in a corner.

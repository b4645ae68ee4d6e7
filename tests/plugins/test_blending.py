"""SamplePairing and Remix."""

import pytest
import torch
from augmenter_cases import augment, batch_of, marked

from bench import testing
from bench_plugins.blending import Remix, SamplePairing


def test_the_schedule_is_the_papers_over_1000_epochs():
    active = [SamplePairing().active(epoch, 1000) for epoch in range(1000)]
    assert not any(active[:100])
    assert active[100:120] == [True] * 8 + [False] * 2 + [True] * 8 + [False] * 2
    assert sum(active[100:800]) == 560
    assert not any(active[800:])


def test_a_pair_is_averaged_and_keeps_the_first_target():
    result = augment(SamplePairing(), marked(10))
    shares = result.inputs.mean((2, 3))
    assert set(shares.unique().tolist()) <= {0.0, 0.5, 1.0}
    assert (shares.diagonal() >= 0.5).all()
    assert (shares.diagonal() == 0.5).sum() > 5
    assert torch.equal(result.targets, torch.eye(10))


def test_nothing_is_drawn_while_it_is_off():
    batch = batch_of(6)
    assert augment(SamplePairing(), batch, epoch=0, epochs=10) is batch
    assert augment(SamplePairing(), batch, epoch=9, epochs=10) is batch


@pytest.mark.parametrize(
    ("imbalance", "share", "own"),
    [(10, 0.3, 0), (10, 0.6, 0.6), (0.1, 0.8, 1), (0.1, 0.4, 0.4), (1, 0.3, 0.3), (3, 0.49, 0), (2.9, 0.49, 0.49), (1 / 3, 0.51, 1), (10, 0.5, 0.5)],
)
def test_the_target_goes_to_the_rarer_class_by_the_table(imbalance, share, own):
    result = Remix().target_shares(torch.tensor([float(share)]), torch.tensor([float(imbalance)]))
    assert result.item() == pytest.approx(own)


def test_remix_reads_the_counts_of_the_training_labels():
    info = testing.dataset_info(8, (16, 16), 8)
    result = augment(Remix(mode="elem"), marked(8), info=info, class_counts=(1000,) * 4 + (10,) * 4)
    shares = result.inputs.mean((2, 3))
    own, target = shares.diagonal(), result.targets.diagonal()
    other = (shares - torch.diag(own)).argmax(1)
    common, rare = torch.arange(8) < 4, other >= 4
    swapped = common & rare & (own < 0.5)
    kept = ~common & ~rare & (1 - own < 0.5) & (own < 1)
    assert swapped.any() or kept.any()
    expected = torch.where(swapped, 0.0, torch.where(kept, 1.0, own))
    torch.testing.assert_close(target, expected)


def test_remix_is_mixup_on_balanced_data():
    result = augment(Remix(mode="elem"), marked(8))
    torch.testing.assert_close(result.targets, result.inputs.mean((2, 3)))

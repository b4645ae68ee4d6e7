"""KeepAugment: what is hidden matters little, what is put back matters most."""

import torch
from augmenter_cases import augment, batch_of
from torch import nn

from bench import contexts
from bench_plugins.keepaugment import KeepCutout, KeepPolicy, Squares, saliency


def watching(top, left, side=16):
    """A linear network that sees only the 4 x 4 pixels at (top, left), so that they are its gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 2, bias=False))
    weight = torch.zeros(2, 3, side, side)
    weight[:, 1, top : top + 4, left : left + 4] = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    with torch.no_grad():
        model[1].weight.copy_(weight.flatten(1))
    return model


def test_saliency_is_the_gradient_of_the_highest_logit():
    maps = saliency(watching(3, 5), batch_of(4).inputs)
    expected = torch.zeros(16, 16)
    expected[3:7, 5:9] = 2.0
    assert torch.equal(maps, expected.expand(4, -1, -1))


def test_a_square_is_worth_its_mean_saliency():
    maps = torch.rand(2, 7, 9, generator=contexts.generator("maps"))
    squares = Squares(maps, 4 / 7)
    for row in range(7):
        for column in range(9):
            inside = maps[:, max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2]
            torch.testing.assert_close(squares.means[:, row, column], inside.mean((1, 2)))


def test_a_share_tau_of_the_squares_does_not_exceed_the_quantile():
    squares = Squares(torch.rand(3, 10, 10, generator=contexts.generator("maps")), 0.3)
    for tau, count in ((0.0, 1), (0.6, 60), (1.0, 100)):
        assert ((squares.means <= squares.quantile(tau)).sum((1, 2)) == count).all()


def test_only_allowed_squares_are_drawn_and_all_of_them():
    squares, allowed = Squares(torch.zeros(400, 8, 8), 0.25), torch.zeros(400, 8, 8, dtype=torch.bool)
    allowed[:, 2, 3] = allowed[:, 5, 6] = True
    drawn = squares.draw(allowed, contexts.generator("draw"))
    assert set(zip(drawn.top.tolist(), drawn.left.tolist(), strict=True)) == {(1, 2), (4, 5)}
    assert abs((drawn.top == 1).float().mean() - 0.5) < 0.1


def test_the_hidden_square_is_away_from_what_the_network_sees():
    batch = batch_of(40)
    result = augment(KeepCutout(length=0.25, fill="black"), batch, watching(2, 2), stages=())
    hidden = (result.inputs != batch.inputs).any(1)
    assert hidden.any((1, 2)).all()
    # At tau = 0.6 every square that misses the 16 pixels qualifies, and those that touch them do not: 49 of 256 touch.
    assert not hidden[:, 2:6, 2:6].any()


def test_the_most_important_square_is_put_back():
    batch = batch_of(40)
    result = augment(KeepPolicy(length=0.25, tau=1.0), batch, watching(9, 4), stages=())
    assert torch.equal(result.inputs[:, :, 9:13, 4:8], batch.inputs[:, :, 9:13, 4:8])
    assert (result.inputs != batch.inputs).flatten(1).any(1).float().mean() > 0.5

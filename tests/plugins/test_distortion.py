"""Random distortion against Pillow's mesh transform."""

import numpy as np
import torch
from augmenter_cases import augment, batch_of
from PIL import Image

from bench import contexts
from bench_plugins.distortion import RandomDistortion, places

CELLS, SIZE = 6, 6  # 36 pixels, so that nodes lie on whole pixels as Pillow needs them.
SIDE = CELLS * SIZE


def mesh(moves):
    """Pillow's list of (box, quadrilateral) for moves (2, 7, 7) of the nodes."""

    def node(row, column):
        return column * SIZE + float(moves[0, row, column]), row * SIZE + float(moves[1, row, column])

    for row in range(CELLS):
        for column in range(CELLS):
            corners = [node(row, column), node(row + 1, column), node(row + 1, column + 1), node(row, column + 1)]
            yield (column * SIZE, row * SIZE, (column + 1) * SIZE, (row + 1) * SIZE), [value for corner in corners for value in corner]


def test_pixels_show_what_pillows_mesh_shows():
    moves = torch.zeros(1, 2, CELLS + 1, CELLS + 1)
    moves[:, :, 1:-1, 1:-1] = torch.randint(-2, 3, (1, 2, CELLS - 1, CELLS - 1), generator=contexts.generator("nodes")).float()
    seen = places(moves, SIDE, SIDE)[0]
    ramp = torch.arange(SIDE) + 0.5  # An image of its own coordinates shows where each pixel was read.
    for axis, image in enumerate((ramp.expand(SIDE, SIDE), ramp.view(-1, 1).expand(SIDE, SIDE))):
        picture = Image.fromarray(image.contiguous().numpy())
        expected = picture.transform(picture.size, Image.Transform.MESH, list(mesh(moves[0])), resample=Image.Resampling.BILINEAR)
        inner = slice(4, -4)
        np.testing.assert_allclose(seen[inner, inner, axis].numpy(), np.asarray(expected)[inner, inner], atol=1e-3)


def test_nodes_that_stay_leave_the_image_alone():
    batch = batch_of(3)
    torch.testing.assert_close(augment(RandomDistortion(magnitude=0), batch).inputs, batch.inputs, atol=1e-5, rtol=0)


def test_the_border_stays_and_inner_nodes_move_by_up_to_the_magnitude():
    ramps = (torch.arange(48) / 48).expand(200, 1, 48, 48).contiguous()
    result = augment(RandomDistortion(magnitude=3), batch_of(200, channels=1, side=48).replace(inputs=ramps)).inputs
    moved = (result - ramps).abs() * 48
    assert moved.max() <= 3.6  # The cubic of a ramp is not quite a ramp.
    assert moved.max() > 2.4
    assert moved[:, :, :, 0].max() < 0.5
    assert moved[:, :, :, -1].max() < 0.5

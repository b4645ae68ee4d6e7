"""SMOTE: the images that fill up the small classes."""

import torch
from augmenter_cases import augment, batch_of

from bench import contexts, testing
from bench.interfaces import ArrayData
from bench.train import TrainingData
from bench_plugins.smote import Smote, nearest


def training_data(counts, side=6):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    images = torch.randint(256, (len(labels), 3, side, side), generator=contexts.generator("images")).byte()
    info = testing.dataset_info(len(counts), (side, side), 3, class_counts=tuple(counts))
    everything = torch.arange(len(labels))
    return TrainingData(ArrayData(info, images, labels), labels, everything, everything[:0])


def end(data, epoch=0, part=None):
    return (part or Smote()).end_epoch(None, data, testing.step_context(None, info=data.info, epoch=epoch, epochs=3))


def test_every_class_is_filled_up_to_the_largest():
    data = training_data((30, 8, 0, 21))
    added = end(data)
    assert torch.bincount(added.labels, minlength=4).tolist() == [0, 22, 0, 9]
    assert added.images.dtype == torch.uint8
    extended = TrainingData(data.data, data.labels, data.indices, data.validation, extra=added)
    assert extended.targets(extended.positions()).sum(0).tolist() == [30, 30, 0, 30]
    assert extended.inputs(extended.positions()).shape == (90, 3, 6, 6)


def test_a_new_image_lies_between_an_image_and_one_of_its_five_nearest():
    data = training_data((40, 12))
    images = data.inputs(data.indices[data.labels == 1]).flatten(1).double()
    for new in end(data).images.flatten(1).double() / 255:
        found = False
        for base in range(12):
            distances = (images - images[base]).norm(dim=1)
            for neighbour in distances.argsort()[1:6].tolist():
                line = images[neighbour] - images[base]
                share = ((new - images[base]) @ line / (line @ line)).clamp(0, 1)
                found |= bool((new - images[base] - share * line).abs().max() <= 0.65 / 255)  # 8 bits, and the share they hide
        assert found


def test_neighbours_are_the_nearest_others():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert nearest(points, torch.tensor([0, 3, 1, 1]), 2).tolist() == [[1, 2], [2, 1], [0, 2], [0, 2]]


def test_a_class_of_one_image_repeats_it():
    data = training_data((4, 1))
    assert (end(data).images == data.data.images[4]).all()


def test_nothing_is_added_to_balanced_data_or_after_the_first_epoch():
    assert end(training_data((5, 5))) is None
    assert end(training_data((5, 2)), epoch=1) is None


def test_images_that_are_held_out_do_not_count():
    data = training_data((6, 6))
    fewer = TrainingData(data.data, data.labels, data.indices[:9], data.indices[9:])
    assert end(fewer).labels.tolist() == [1] * 3


def test_batches_pass_unchanged():
    batch = batch_of(4)
    assert augment(Smote(), batch) is batch

"""RandAugment, TrivialAugment and AutoAugment through torchvision."""

import pytest
import torch
from augmenter_cases import augment, batch_of
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from bench import testing
from bench.errors import InvalidValue
from bench_plugins._draws import seed_from
from bench_plugins.policies import AutoAugment, RandAugment, TrivialAugment

MEAN = [128.0, 128.0, 128.0]  # Of a network that shows no normalisation: mid-grey, 127.5 rounded to the even number.


@pytest.mark.parametrize(
    ("part", "transform"),
    [
        (RandAugment(), transforms.RandAugment(2, 9, 31, fill=MEAN)),
        (RandAugment(num_ops=3, magnitude=5, fill="black"), transforms.RandAugment(3, 5, 31, fill=[0.0] * 3)),
        (TrivialAugment(), transforms.TrivialAugmentWide(31, fill=MEAN)),
        (AutoAugment(), transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=MEAN)),
        (AutoAugment(policy="imagenet"), transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET, fill=MEAN)),
        (AutoAugment(policy="svhn"), transforms.AutoAugment(transforms.AutoAugmentPolicy.SVHN, fill=MEAN)),
    ],
    ids=lambda value: "" if callable(value) and not hasattr(value, "name") else str(value),
)
def test_images_come_out_as_from_torchvision_under_the_same_seed(part, transform):
    batch = batch_of(16, side=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(testing.step_context(None, epoch=5, epochs=10, progress=0.9).generator))
        expected = [pil_to_tensor(transform(to_pil_image((image * 255).round().byte()))) for image in batch.inputs]
    assert torch.equal(augment(part, batch).inputs, torch.stack(expected) / 255)


def test_magnitude_0_leaves_a_picture_with_a_flat_histogram_alone_but_for_white():
    pixels = torch.randperm(256, generator=torch.Generator().manual_seed(0)).view(1, 1, 16, 16).expand(24, 3, -1, -1) / 255
    batch = batch_of(24).replace(inputs=pixels)
    result = augment(RandAugment(magnitude=0, num_ops=3), batch).inputs
    below_white = pixels < 1  # Solarize at the threshold 255 turns white to black.
    assert torch.equal(result[below_white], pixels[below_white])


def test_a_magnitude_without_a_bin_is_refused():
    with pytest.raises(InvalidValue, match=r"magnitude 31 is outside 0 … 30"):
        augment(RandAugment(magnitude=31), batch_of(2))


def test_images_that_are_neither_grey_nor_rgb_are_refused():
    with pytest.raises(InvalidValue, match="1 or 3 channels, and these have 2"):
        augment(TrivialAugment(), batch_of(2, channels=2))


def test_the_layout_of_the_batch_is_kept():
    batch = batch_of(4)
    batch = batch.replace(inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
    assert augment(TrivialAugment(), batch).inputs.is_contiguous(memory_format=torch.channels_last)

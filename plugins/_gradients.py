"""Shared by the augmenters that ask where the network looks: gradients by the input, leaving no trace."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contexts import untouched
from bench.interfaces import Batch


def input_gradients(model: nn.Module, inputs: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, C, H, W) the gradient of each row's score (a function of the logits) by its image, in eval mode."""
    with untouched(model), torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        # In eval mode no row sees another, so one backward of the sum gives every row its own gradient.
        (gradients,) = torch.autograd.grad(score(model(inputs)).sum(), inputs)
    return gradients


def loss_saliency(model: nn.Module, batch: Batch, multi_label: bool) -> Tensor:
    """(B, H, W) the root mean square over the channels of the loss's gradient by the image."""

    def loss(logits: Tensor) -> Tensor:
        if multi_label:
            return F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none").mean(1)
        return F.cross_entropy(logits, batch.targets, reduction="none")

    return input_gradients(model, batch.inputs, loss).square().mean(1).sqrt()

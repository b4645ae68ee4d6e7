"""SupCon: the encoder learns to bring images of one class together and to keep the others apart; a linear layer learns the classes.

Paper: z are the projections of two views of each image, scaled to length 1; P(i) are the other views of the same class as
view i and A(i) all other views. The loss of i is the mean over p in P(i) of -log(exp(z_i·z_p / T) / Σ_a exp(z_i·z_a / T)).
The projection, two linear layers with a rectifier between them, is thrown away after the training. A linear layer on the encoder's
features is trained with cross-entropy. Views are crops of 20 to 100 % of the area resized to the whole, mirrored, their colours
changed for four in five and lost for one in five.

Differs from the paper: encoder and classifier take turns, one epoch each, as in ExCon's code, whose augmenter needs a classifier
during the training. The loss is scaled by T over 0.07, as in both codes. Rows that are negatives only (ExCon's backgrounds)
stand among A(i), are nobody's P(i) and have no loss; the mean is taken over the other rows.

Choices: the encoder is everything in front of the network's last linear layer, which is the classifier, so that the trained network gives
logits as any other. The recipe gives both optimisers; the rate falls with every step, not every epoch, and a cosine ends at a thousandth.
The classifier's epoch sees resized, mirrored crops, the encoder in eval mode. Nothing is mirrored where the recipe does not mirror
or the data does not allow it. The views are drawn by the trainer from the run's seed and handed to the augmenter's
`views(model, views, context) -> Views`, which may change them, so that every augmenter starts from the same.

Checked against: losses worked out by hand, with negatives and without, and a loop over pairs; torchvision's crops and colours;
which weights move in which half of an epoch; resuming gives the same weights to the bit.

Cost: two forwards and backwards per image and one more forward for the classifier, besides what the augmenter does and two
forwards and backwards for each row that it adds. An epoch goes through the images twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import contexts, hookimpl
from bench.errors import InvalidValue
from bench.interfaces import Batch, Fraction, StepContext
from bench.keys import derived_seed
from bench.train import FitContext, TrainingData, row_losses
from bench_plugins._views import Views, random_view, resized_crop

BASE_TEMPERATURE = 0.07  # Scales the loss in the published codes, and so the learning rate they ask for.


@dataclass(frozen=True)
class SupCon:
    """Trains the encoder by supervised contrast and the classifier on its features, epoch by epoch in turn."""

    name: ClassVar[str] = "supcon"
    version: ClassVar[int] = 1
    augmenter_methods: ClassVar[tuple[str, ...]] = ("views",)
    paper: ClassVar[str] = (
        "Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan; Supervised Contrastive Learning; NeurIPS 2020; arXiv:2004.11362"
    )
    claim: ClassVar[str] = "formula verified"

    temperature: Annotated[float, Field(gt=0)] = 0.1
    projection: Annotated[int, Field(ge=1)] = 128
    least_rate: Fraction = 0.001

    def fit(self, model: nn.Module, data: TrainingData, augmenter: Any, context: FitContext) -> None:
        if context.info.multi_label:
            raise InvalidValue(f"trainer 'supcon' needs one label per image, and data set '{context.info.name}' has several.")
        classifier = last_linear(model)
        torch.manual_seed(derived_seed(context.seed, "projection"))
        projection = Projection(classifier.in_features, self.projection).to(context.device)
        encoder_optimizer = context.optimizer([*without(model.parameters(), classifier), *projection.parameters()])
        classifier_optimizer = context.optimizer(classifier.parameters())
        state = {"projection": projection, "encoder_optimizer": encoder_optimizer, "classifier_optimizer": classifier_optimizer}
        for epoch in context.epochs(model, data, augmenter=augmenter, **state):
            for batch, step in context.batches(model, data, epoch, crop=False):
                context.set_rate(encoder_optimizer, step.progress, self.least_rate)
                views = augmenter.views(model, drawn_views(batch, step, context), step)
                features = encoded(model, classifier, torch.cat([views.first, views.second]), context)
                context.passes.add(backward=len(features))  # The logits have no part in the loss, and only they are counted.
                loss = contrastive_loss(projection(features), views.labels, views.negative, self.temperature)
                descend(encoder_optimizer, loss)
                context.record(rows=len(features))
                context.average(loss=loss.detach())
            model.eval()
            for batch, step in context.batches(model, data, epoch, stream="classifier", crop=False):
                context.set_rate(classifier_optimizer, step.progress, self.least_rate)
                crops = resized_crop(batch.inputs, mirrors(context), stream("classifier", step, context))
                with torch.no_grad():
                    features = encoded(model, classifier, crops, context)
                losses = row_losses(classifier(features), batch.targets, multi_label=False, smoothing=context.recipe.label_smoothing)
                descend(classifier_optimizer, losses.mean())
                context.average(classifier_loss=losses.detach().mean())
            data = context.extended(augmenter, model, data, epoch)


class Projection(nn.Module):
    """Features (n, d) to points on the unit sphere (n, size)."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, size))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features), dim=1)


def last_linear(model: nn.Module) -> nn.Linear:
    """The classifier. Raises InvalidValue for a network that has none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InvalidValue("trainer 'supcon' takes the network's last linear layer for its classifier, and this network has none.")
    return layers[-1]


def without(parameters: Any, module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not the module's."""
    known = {id(parameter) for parameter in module.parameters()}
    return [parameter for parameter in parameters if id(parameter) not in known]


def stream(purpose: str, step: StepContext, context: FitContext) -> torch.Generator:
    """The draws of one step for one purpose, the same under every augmenter."""
    return contexts.generator(context.seed, "supcon", purpose, step.epoch, step.step)


def mirrors(context: FitContext) -> bool:
    return context.recipe.flip and context.info.flippable


def drawn_views(batch: Batch, step: StepContext, context: FitContext) -> Views:
    """Two random views of each image."""
    first, second = (random_view(batch.inputs, mirrors(context), stream(f"view {number}", step, context)) for number in (1, 2))
    return Views.of(batch.inputs, first, second, batch.labels)


def encoded(model: nn.Module, classifier: nn.Linear, inputs: Tensor, context: FitContext) -> Tensor:
    """(n, d) what the network hands to its classifier."""
    kept: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0]))
    try:
        with context.autocast():
            model(inputs)
    finally:
        handle.remove()
    return kept[0].float()


def contrastive_loss(points: Tensor, labels: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """The mean loss of the views that are not negatives only; points (2n, d) hold the first view of every row, then the second."""
    labels, real = labels.repeat(2), ~negative.repeat(2)
    logits = points @ points.T / temperature
    others = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    positive = (labels == labels.unsqueeze(1)) & real & real.unsqueeze(1) & others
    chances = logits - logits.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)  # log of each other view's share
    losses = -torch.where(positive, chances, 0).sum(1) / positive.sum(1).clamp(min=1)
    return temperature / BASE_TEMPERATURE * losses.sum() / real.sum()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@hookimpl
def register_trainers(register: Any) -> None:
    register(SupCon)

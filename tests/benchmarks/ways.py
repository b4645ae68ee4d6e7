"""The same maps and scores by bench and by the libraries it is compared with: each way takes a `Case` and returns what to time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import contexts, testing
from bench.interfaces import DatasetInfo, ExplainContext, Layer
from bench_plugins.cifar_resnets import CifarResNet
from bench_plugins.deletion import Deletion, Insertion
from bench_plugins.gradcam import GradCam
from bench_plugins.integrated_gradcam import IntegratedGradCam
from bench_plugins.masking_cams import ScoreCam
from bench_plugins.timm_models import Timm

CHANNELS_LAST, CONTIGUOUS = "channels last", "contiguous"
STEPS = 16  # Of deletion, of insertion, and of the integral.

Way = Callable[[], Tensor]


class Case(NamedTuple):
    """Where something is timed: a network of `NETWORKS` in a memory format, and how many images go through it at once."""

    network: str
    images: int
    layout: str = CHANNELS_LAST
    batch: int = 16

    def __str__(self) -> str:
        return f"{self.layout}, batch {self.batch}"


@dataclass(frozen=True)
class Subject:
    """A network with random weights and settled batch norms, in eval mode, and the images to put through it.

    The images are contiguous, as files give them: a network that keeps its channels last takes them as fast.
    """

    model: nn.Module
    info: DatasetInfo
    target: Layer
    stages: list[Layer]
    inputs: Tensor

    @cached_property
    def targets(self) -> Tensor:
        return contexts.forward(self.model, self.inputs, 16).argmax(1)

    @property
    def size(self) -> torch.Size:
        return self.inputs.shape[2:]

    @cached_property
    def maps(self) -> Tensor:
        """(B, H, W) some map to rank the pixels by, without equal values."""
        return torch.rand(len(self.inputs), *self.size, generator=torch.Generator().manual_seed(3))

    def layer(self, name: str) -> nn.Module:
        return self.model.network.get_submodule(name)

    def context(self, chunk: int, stages: int | None = None) -> ExplainContext:
        streams = testing.generators(len(self.inputs))
        return contexts.explain_context(self.model, self.info, [self.target], self.stages[:stages], streams, chunk)


class Network(NamedTuple):
    """How it is called on the page, how it is built, and where Score-CAM takes its maps: not too many of them."""

    title: str
    part: Timm | CifarResNet
    classes: int
    size: int
    scored: str


NETWORKS = {
    "lite0": Network("EfficientNet-Lite0, 224²", Timm("efficientnet_lite0"), 1000, 224, "blocks.1"),  # 24 maps
    "resnet56": Network("CIFAR ResNet-56, 32²", CifarResNet(depth=56), 100, 32, "layer3"),  # 64 maps
}


@lru_cache(maxsize=4)
def subject(network: str, images: int, layout: str) -> Subject:
    """Seeded, so that every process has the same."""
    _, part, classes, side, _ = NETWORKS[network]
    info = testing.dataset_info(classes, (side, side), 3)
    torch.manual_seed(0)
    model = part.build(info)
    with torch.no_grad():  # Batch norms as after some training: the numbers neither vanish nor explode.
        for _ in range(3):
            model.train()(torch.rand(4, 3, side, side))
    if layout == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    inputs = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Subject(model.eval(), info, part.target_layers(model)[-1], part.stages(model), inputs)


def of(case: Case) -> Subject:
    return subject(case.network, case.images, case.layout)


# Grad-CAM: (B, 1, H, W) each


def gradcam(case: Case) -> Way:
    it = of(case)
    return lambda: contexts.explain(it.model, GradCam(), it.inputs, it.targets, it.context(case.batch))


def gradcam_of_captum(case: Case) -> Way:
    from captum.attr import LayerAttribution, LayerGradCam

    it = of(case)
    method = LayerGradCam(it.model, it.target.module)

    def maps() -> Tensor:
        parts = zip(it.inputs.split(case.batch), it.targets.split(case.batch), strict=True)
        small = torch.cat([method.attribute(inputs, targets, relu_attributions=True).detach() for inputs, targets in parts])
        return LayerAttribution.interpolate(small, tuple(it.size), "bilinear")

    return maps


def gradcam_of_pytorch_grad_cam(case: Case) -> Way:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    it = of(case)
    wanted = [ClassifierOutputTarget(int(target)) for target in it.targets]

    def maps() -> Tensor:
        with GradCAM(it.model, [it.target.module]) as method:
            starts = range(0, case.images, case.batch)
            parts = [method(it.inputs[at : at + case.batch], wanted[at : at + case.batch]) for at in starts]
        return torch.cat([torch.from_numpy(part) for part in parts])[:, None]

    return maps


# Score-CAM by logits over a black background, which is what both libraries do: (B, 1, H, W) each


def scorecam(case: Case) -> Way:
    it = of(case)
    method = ScoreCam(layer=NETWORKS[case.network].scored, weights="softmax", fill="black")
    return lambda: contexts.explain(it.model, method, it.inputs, it.targets, it.context(case.batch))


def scorecam_of_torchcam(case: Case) -> Way:
    from torchcam.methods import ScoreCAM

    it = of(case)

    def maps() -> Tensor:
        with ScoreCAM(it.model, it.layer(NETWORKS[case.network].scored), batch_size=case.batch, input_shape=it.inputs.shape[1:]) as method:
            with torch.no_grad():
                it.model(it.inputs)
            (small,) = method(class_idx=it.targets.tolist())
        return F.interpolate(small[:, None], size=it.size, mode="bilinear", align_corners=False)

    return maps


def scorecam_of_pytorch_grad_cam(case: Case) -> Way:
    from pytorch_grad_cam import ScoreCAM, score_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    score_cam.tqdm = SimpleNamespace(tqdm=iter)  # No progress bar.
    it = of(case)
    wanted = [ClassifierOutputTarget(int(target)) for target in it.targets]

    def maps() -> Tensor:
        with ScoreCAM(it.model, [it.layer(NETWORKS[case.network].scored)]) as method:
            method.batch_size = case.batch
            return torch.from_numpy(method(it.inputs, wanted))[:, None]

    return maps


# Deletion and insertion, black where pixels are hidden: (2,) the mean area under each curve


def deletion(case: Case) -> Way:
    it = of(case)

    def areas() -> Tensor:
        explained = testing.explained(it.model, it.inputs, it.maps[:, None])
        context = contexts.metric_context(it.model, explained, it.info, testing.generators(case.images), chunk=case.batch)
        return torch.stack([metric.values(metric(it.model, explained, context)).mean() for metric in both])

    both = (Deletion(steps=STEPS, fill="black"), Insertion(steps=STEPS, fill="black"))
    return areas


class ReadyMaps:
    """What torchcam's metric asks of an extractor, with maps that are there already."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *arguments: object, **options: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, maps: list[Tensor]) -> Tensor:
        return maps[0]

    def _hooks_off(self) -> nullcontext[None]:
        return nullcontext()


def deletion_of_torchcam(case: Case) -> Way:
    from torchcam.metrics import DeletionInsertionMetric

    it = of(case)

    def areas() -> Tensor:
        metric = DeletionInsertionMetric(ReadyMaps(it.model, it.maps), lambda logits: logits.softmax(-1), steps=STEPS, batch_size=case.batch)
        metric.update(it.inputs, class_idx=it.targets.tolist())
        found = metric.summary()
        return torch.tensor([found["deletion_auc"], found["insertion_auc"]])

    return areas


# Integrated Grad-CAM: (B, 1, H, W) each


def integrated_gradcam(case: Case) -> Way:
    it = of(case)
    return lambda: contexts.explain(it.model, IntegratedGradCam(steps=STEPS), it.inputs, it.targets, it.context(case.batch))


def integrated_gradcam_through_the_whole_network(case: Case) -> Way:
    """As one writes it down: forward and `backward()`, and what hooks have seen."""
    it = of(case)
    seen: list[Tensor] = []

    def at(point: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's maps and their gradients."""
        seen.clear()
        logits = it.model(point)
        seen[0].retain_grad()
        it.model.zero_grad()
        logits.gather(1, targets[:, None]).sum().backward()
        return seen[0].detach(), seen[0].grad

    def maps() -> Tensor:
        seen.clear()
        handle = it.target.module.register_forward_hook(lambda module, arguments, output: seen.append(output))
        with torch.no_grad():
            it.model(torch.zeros_like(it.inputs))
        start = seen[0]
        total = 0
        fractions = (torch.arange(STEPS) + 0.5) / STEPS
        for part in fractions.split(max(1, case.batch // case.images)):
            points = (part.view(-1, 1, 1, 1, 1) * it.inputs).flatten(0, 1)
            features, gradients = at(points, it.targets.repeat(len(part)))
            moved = features - start.repeat(len(part), 1, 1, 1)
            heat = (gradients.mean((2, 3), keepdim=True) * moved).sum(1, keepdim=True)
            total = total + heat.unflatten(0, (len(part), case.images)).sum(0)
        handle.remove()
        return F.interpolate((total / STEPS).relu(), size=it.size, mode="bilinear", align_corners=False)

    return maps


WAYS: dict[str, dict[str, Callable[[Case], Way]]] = {
    "Grad-CAM": {"bench": gradcam, "captum": gradcam_of_captum, "pytorch-grad-cam": gradcam_of_pytorch_grad_cam},
    "Score-CAM": {"bench": scorecam, "torchcam": scorecam_of_torchcam, "pytorch-grad-cam": scorecam_of_pytorch_grad_cam},
    "deletion + insertion": {"bench": deletion, "torchcam": deletion_of_torchcam},
    "Integrated Grad-CAM": {"bench": integrated_gradcam, "one backward through all": integrated_gradcam_through_the_whole_network},
}

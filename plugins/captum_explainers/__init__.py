"""Explainers that captum computes: gradients, paths from a baseline, changed backwards, relevance, and hidden regions.

Paper: one per method, named with it. Each family has its card in a file of its own: `gradients`, `paths`, `rectifiers`,
`deeplift`, `relevance`, `regions`.

Choices: captum sees the [0, 1] image, because the model normalises inside, so a baseline is a fill and never captum's
silent zero. All attributions are of the target's logit and are not rescaled. Signed ones are added up over the colours.

Differs from captum: it is given its noise, or run on a random stream of its own, row by row, so that no row depends on
its neighbours. Where it would go wrong without a word the adapter corrects it or raises an error; each card says which.

Checked against: a two-channel network worked out by hand, captum called directly, and sums that have to come out.

Cost: from one forward and one backward (`saliency`) to 1600 forwards (`shapley`) per image.
"""

from __future__ import annotations

from typing import Any

from bench import hookimpl
from bench_plugins.captum_explainers.deeplift import DeepLift
from bench_plugins.captum_explainers.gradients import GradientShap, InputXGradient, Saliency, SmoothGrad, SmoothGradSquared, VarGrad
from bench_plugins.captum_explainers.paths import Conductance, IntegratedGradients
from bench_plugins.captum_explainers.rectifiers import DeconvNet, GuidedBackprop, GuidedGradCam
from bench_plugins.captum_explainers.regions import KernelShap, Lime, Occlusion, ShapleySampling
from bench_plugins.captum_explainers.relevance import Lrp


@hookimpl
def register_explainers(register: Any) -> None:
    for factory in (Saliency, InputXGradient, SmoothGrad, SmoothGradSquared, VarGrad, GradientShap):
        register(factory)
    for factory in (IntegratedGradients, Conductance, DeconvNet, GuidedBackprop, GuidedGradCam, DeepLift):
        register(factory)
    for factory in (Occlusion, Lime, KernelShap, ShapleySampling):
        register(factory)
    register(Lrp)
    register(Lrp, name="lrp-gamma", rule="gamma")

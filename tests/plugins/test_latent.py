"""Manifold mixup on networks whose features are known."""

import pytest
import torch
from augmenter_cases import augment, batch_of, layers, network

from bench import testing
from bench.interfaces import Batch
from bench.testing import TwoChannelNetwork, dataset_info
from bench_plugins.latent import ManifoldMixup


def step(number, info=None, model=None):
    stages = model.layers if model is not None else ()
    return testing.step_context(model, stages, info=info or dataset_info(), step=number)


def two_channel_batch():
    inputs = torch.tensor([[[[1.0, -2.0], [3.0, 0.5]]], [[[-1.0, -1.0], [2.0, 4.0]]], [[[0.0, 1.0], [-6.0, 2.0]]]])
    return Batch.of(inputs, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize("number", range(8))
def test_the_mixture_is_made_at_the_drawn_layer(number):
    batch, model, part = two_channel_batch(), TwoChannelNetwork(), ManifoldMixup()
    plan = part.plan(batch, step(number))
    share, partners = float(plan.share), plan.partners
    mixed_inputs = share * batch.inputs + (1 - share) * batch.inputs[partners]
    # After the ReLU everything is linear, so mixing there mixes the logits.
    expected = model(mixed_inputs) if plan.layer == 0 else share * model(batch.inputs) + (1 - share) * model(batch.inputs)[partners]
    torch.testing.assert_close(part.forward(model, batch, step(number, model=model)), expected)


def test_inputs_and_stages_are_drawn_alike():
    batch, part = batch_of(4), ManifoldMixup()
    layers = [part.plan(batch, step(number)).layer for number in range(600)]
    assert all(abs(layers.count(layer) / 600 - 1 / 3) < 0.08 for layer in (0, 1, 2))
    assert {part.plan(batch, step(number)).layer for number in range(0, 600, 20)} == {0, 1, 2}
    assert {ManifoldMixup(stages=0).plan(batch, step(number)).layer for number in range(20)} == {0}


def test_the_targets_are_mixed_as_the_features_are():
    batch, part = batch_of(6, classes=6), ManifoldMixup()
    context = step(3, dataset_info(6, (16, 16), 3))
    torch.rand(7, generator=context.generator)  # Whatever else has been drawn in this step.
    result = part(network(classes=6), batch, context)
    plan = part.plan(result, context)
    own, share = torch.eye(6), float(plan.share)
    torch.testing.assert_close(result.targets, share * own + (1 - share) * own[plan.partners])
    assert torch.equal(result.inputs, batch.inputs)


def test_the_share_follows_beta_2_2():
    batch, part = batch_of(2), ManifoldMixup()
    shares = torch.tensor([float(part.plan(batch, step(number)).share) for number in range(1500)])
    assert abs(shares.mean() - 0.5) < 0.025
    assert shares.var() == pytest.approx(1 / 20, rel=0.15)


def test_the_layers_are_the_networks_own_and_the_hooks_are_gone():
    model, batch = network(), batch_of(6)
    model.layers = layers(model)
    before = [module.training for module in model.modules()]
    for number in range(6):
        ManifoldMixup().forward(model, batch, step(number, model=model)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_a_network_with_fewer_stages_is_mixed_at_its_last():
    part, model, batch = ManifoldMixup(stages=9), TwoChannelNetwork(), two_channel_batch()
    number = next(number for number in range(50) if part.plan(batch, step(number)).layer == 9)
    plan = part.plan(batch, step(number))
    expected = torch.lerp(model(batch.inputs)[plan.partners], model(batch.inputs), float(plan.share))
    torch.testing.assert_close(part.forward(model, batch, step(number, model=model)), expected)


def test_the_global_stream_is_left_alone():
    state = torch.get_rng_state()
    augment(ManifoldMixup(), batch_of(4))
    assert torch.equal(state, torch.get_rng_state())

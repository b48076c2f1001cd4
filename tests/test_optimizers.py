"""LARS held against its formula written out (SPEC section 5), and the parameters each optimiser gets."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tcl_zoo.optimizers import create_optimizer, fusable
from tcl_zoo.recipes import recipe


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def lars_by_hand(p, g, buffer, lr, wd, momentum=0.9, eta=0.02):
    """You et al. 2017, eq. 6; clipped: the local rate is lr at most."""
    if p.ndim > 1:
        local = eta * p.norm() / (g.norm() + wd * p.norm() + 1e-8)
        g = (g + wd * p) * min(float(local / lr), 1.0)
    buffer = g if buffer is None else momentum * buffer + g
    return p - lr * buffer, buffer


@pytest.mark.parametrize("lr", [0.5, 1e-4])
def test_lars(lr):
    plan = dataclasses.replace(recipe("tcl_ssl_resnet18_cifar10"), lr=lr)
    trained = network()
    optimizer = create_optimizer(plan, trained)
    expected = [p.detach().double() for p in trained.parameters()]
    buffers = [None] * len(expected)
    for step in range(4):
        optimizer.zero_grad()
        trained(torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        for i, p in enumerate(trained.parameters()):
            rate = lr if step < 2 else lr / 2  # the schedule moves it
            expected[i], buffers[i] = lars_by_hand(expected[i], p.grad.double(), buffers[i], rate, plan.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = lr if step < 2 else lr / 2
        optimizer.step()
    for p, value in zip(trained.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_lars_adapts_without_decay_too():
    """A recipe without weight decay still has layer-wise rates."""
    plan = dataclasses.replace(recipe("simclr_resnet18_cifar10"), weight_decay=0.0)
    trained = nn.Linear(4, 3, bias=False)
    before, gradient = trained.weight.detach().clone(), torch.ones(3, 4)
    optimizer = create_optimizer(plan, trained)
    trained.weight.grad = gradient.clone()
    optimizer.step()
    expected, _ = lars_by_hand(before, gradient, None, plan.lr, 0.0)
    torch.testing.assert_close(trained.weight.detach(), expected)


def test_parameter_groups():
    for objective, kind in (("tcl", "SGD"), ("wmse", "Adam"), ("byol", "Lars")):
        trained = network()
        trained[0].requires_grad_(False)
        optimizer = create_optimizer(recipe(f"{objective}_resnet20_digits"), trained, trained[3])
        assert type(optimizer).__name__ == kind
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in trained.parameters() if p.requires_grad}
        assert len(held) == len({id(p) for p in held})
        fixed = {id(p) for group in optimizer.param_groups if not group["scheduled"] for p in group["params"]}
        assert fixed == {id(p) for p in trained[3].parameters()}


@pytest.fixture
def unwritten_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_first_step_that_overflows_in_fp16_leaves_no_trace(unwritten_is_nan):
    plan, gpu = recipe("tcl_resnet20_cifar10"), torch.device("cuda")
    assert fusable(plan, gpu, "bf16") and not fusable(plan, torch.device("cpu"), "bf16")
    trained = nn.Linear(4, 3)
    before = trained.weight.detach().clone()
    optimizer = create_optimizer(plan, trained, fused=fusable(plan, gpu, "fp16"))
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (torch.inf, 1.0, 1.0):
        scaler.scale(trained(torch.ones(2, 4)).sum()).backward()
        for p in trained.parameters():
            p.grad = torch.full_like(p, gradient)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert 0 < float((trained.weight - before).detach().abs().max()) < 1

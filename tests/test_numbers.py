"""Numbers of every kind and size: the loss on each dtype and device, and nothing that is not finite goes unseen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tcl_zoo._pairwise import TILE
from tcl_zoo.losses import TCLLoss
from tcl_zoo.objectives import create_objective
from tcl_zoo.recipes import recipe

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def by_loops(z: torch.Tensor, labels: torch.Tensor, tau: float, k1: float, k2: float) -> float:
    """Eq. 4.2-4.4 pair by pair in float64, the mean over the anchors that have a positive."""
    z, values = z.detach().double().cpu(), []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if not positives:
            continue
        s = {j: float(z[i] @ z[j]) for j in others}
        top = max(s.values()) / tau
        total = sum(torch.tensor(s[p] / tau - top, dtype=torch.float64).exp() for p in positives)
        total += k1 * sum(torch.tensor(-s[p] - top, dtype=torch.float64).exp() for p in positives)
        total += k2 * sum(
            torch.tensor(s[n] / tau - top, dtype=torch.float64).exp() for n in others if n not in positives
        )
        log = float(total.log()) + top
        values.append(sum(log - s[p] / tau for p in positives) / len(positives))
    return sum(values) / len(values) if values else 0.0


@settings(max_examples=120, deadline=None)
@given(
    labels=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 3), min_size=2, max_size=14),
    width=st.integers(1, 9),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    label_dtype=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    tau=st.floats(0.02, 5),
    k1=st.just(0.0) | st.floats(0, 1e5),
    k2=st.floats(0.01, 100),
    device=st.sampled_from(DEVICES),
    seed=st.integers(0, 2**31),
)
@pytest.mark.filterwarnings("ignore:no anchor")
def test_any_size_dtype_and_device(labels, width, dtype, label_dtype, tau, k1, k2, device, seed):
    draw = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(len(labels), width, generator=draw, dtype=torch.float64), dim=1).to(dtype)
    y = torch.tensor([v % 251 if label_dtype != torch.int64 else v for v in labels]).to(label_dtype)
    leaf = z.to(device).requires_grad_()
    loss = TCLLoss(tau, k1, k2)(leaf, y.to(device))
    loss.backward()
    expected = by_loops(z, y, tau, k1, k2)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    assert float(loss.detach()) == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert leaf.grad.dtype == dtype and leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["tcl", "supcon", "ce"])
def test_gradients_of_the_objectives(name):
    """gradcheck through projector or classifier and loss, on the encoder's features."""
    torch.manual_seed(0)
    plan = recipe(f"{name}_resnet20_digits")
    encoder = nn.Identity()
    encoder.num_features = 5
    objective = create_objective(plan, encoder, 10).double()
    views, labels = torch.randn(plan.views * 6, 5, dtype=torch.float64), torch.arange(6) % 3
    assert torch.autograd.gradcheck(lambda x: objective(encoder, x, labels), views.requires_grad_())


@pytest.mark.filterwarnings("ignore:the embeddings' lengths are")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("n", [12, TILE + 100])
@pytest.mark.parametrize("row", [0, -1])
def test_a_row_that_is_not_finite_shows_in_the_loss(value, n, row):
    z = F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    z[row, 3] = value
    assert not TCLLoss()(z, torch.arange(n) % 4).isfinite()

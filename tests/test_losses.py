"""Losses against SPEC section 1, written out twice in float64: pair by pair, and densely."""

import gc
import math
import subprocess
import sys
import warnings
import weakref
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import normalize

from tcl_zoo import _anchors, _pairwise
from tcl_zoo._pairwise import TILE
from tcl_zoo.losses import SupConLoss, TCLLoss, tuned_contrastive_loss

F64 = torch.float64
TCL, SUPCON = (0.1, 5000.0, 1.0), (0.1, 0.0, 1.0)  # temperature, k1, k2: the defaults
SETTINGS = [TCL, SUPCON, (0.2, 1.0, 1.5), (0.5, 0.3, 0.2), (0.07, 50000.0, 3.25)]
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # batches without a pair warn


def make_batch(n, classes, dim=8, dtype=F64, seed=0):
    """Random unit rows and unsorted labels."""
    rng = torch.Generator().manual_seed(1000 * n + 10 * classes + seed)
    z = normalize(torch.randn(n, dim, generator=rng, dtype=F64), dim=1).to(dtype)
    return z, (torch.arange(n) % classes)[torch.randperm(n, generator=rng)]


def random_upstream(z):
    return torch.randn(len(z), generator=torch.Generator().manual_seed(len(z)), dtype=z.dtype)


def loop_losses(z, labels, tau, k1, k2):
    """Per-anchor L_i, eq. 4.2-4.4 read aloud: no log-sum-exp, no matrices."""
    n, losses = len(z), []
    for i in range(n):
        pos = [p for p in range(n) if p != i and labels[p] == labels[i]]
        neg = [m for m in range(n) if labels[m] != labels[i]]
        d = sum((z[i] @ z[p] / tau).exp() + k1 * (-(z[i] @ z[p])).exp() for p in pos)
        d = d + sum(k2 * (z[i] @ z[m] / tau).exp() for m in neg)
        total = sum((((z[i] @ z[p] / tau).exp() / d).log() for p in pos), z.sum() * 0)
        losses.append(-total / max(len(pos), 1))
    return torch.stack(losses)


def dense_losses(z, labels, tau, k1, k2):
    """The same by log-sum-exp over full matrices: for large N and small temperatures."""
    keep = (labels[:, None] == labels).sum(1) > 1
    sim, same = z[keep] @ z.T, labels[keep][:, None] == labels
    itself = torch.eye(len(z), dtype=torch.bool)[keep]
    pos = same & ~itself
    logits = torch.where(same, sim / tau, sim / tau + math.log(k2)).masked_fill(itself, -math.inf)
    repulsion = ((math.log(k1) if k1 else -math.inf) - sim).masked_fill(~pos, -math.inf)
    log_d = torch.logsumexp(torch.cat([logits, repulsion], 1), 1)
    losses = log_d - (sim * pos).sum(1) / pos.sum(1) / tau
    return (z.sum() * 0).repeat(len(z)).masked_scatter(keep, losses)


def value_and_grad(loss_fn, z, upstream=None):
    """Loss and its gradient at a detached alias of `z`, which keeps dtype and strides."""
    leaf = z.detach().requires_grad_()
    value = loss_fn(leaf)
    return value.detach(), torch.autograd.grad(value, leaf, upstream)[0]


def oracle(z, labels, tau=0.1, k1=5000.0, k2=1.0, reduction="mean", upstream=None, f=dense_losses):
    anchors = ((labels[:, None] == labels).sum(1) > 1).sum().clamp(min=1)
    reduce = {"none": lambda x: x, "sum": torch.sum, "mean": lambda x: x.sum() / anchors}[reduction]
    upstream = None if upstream is None else upstream.to(F64)
    return value_and_grad(lambda x: reduce(f(x, labels, tau, k1, k2)), z.to(F64), upstream)


def ours(z, labels, tau=0.1, k1=5000.0, k2=1.0, reduction="mean", upstream=None):
    args = labels, tau, k1, k2, reduction
    return value_and_grad(lambda x: tuned_contrastive_loss(x, *args), z, upstream)


def assert_close(actual, expected, rtol, floor=0.0):
    """Relative to the largest entry: a gradient's small entries are differences of large ones."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.isfinite().all()
        atol = rtol * max(e.abs().max().item(), floor) + 1e-12
        torch.testing.assert_close(a.to(F64), e.to(F64), rtol=0, atol=atol)


@quiet
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (2, 1), (2, 2), (3, 2), (12, 6), (17, 5)])
def test_equals_loops_over_pairs(n, classes, params, reduction):
    for dtype, rtol in ((F64, 1e-11), (torch.float32, 1e-5)):
        z, labels = make_batch(n, classes, dtype=dtype)
        args = (z, labels, *params, reduction, random_upstream(z) if reduction == "none" else None)
        expected = oracle(*args, f=loop_losses)
        assert_close(oracle(*args), expected, 1e-12)  # the two oracles agree
        # With two rows the gradient is exactly 0, the difference of two terms of size 1 / tau.
        assert_close(ours(*args), expected, rtol, floor=0.1)


few_labels = st.lists(st.integers(-3, 3), min_size=2, max_size=9)


@PROPERTY
@given(
    labels=few_labels.filter(lambda labels: len(set(labels)) < len(labels)),
    shift=st.sampled_from([0, 2**24, 2**53]),  # where neighbours collide in float32, float64
    tau=st.floats(0.005, 2),
    k1=st.one_of(st.just(0.0), st.floats(1e-3, 1e5)),
    k2=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**20),
)
def test_equals_loops_for_any_labels_and_weights(labels, shift, tau, k1, k2, seed):
    z, labels = make_batch(len(labels), 1, seed=seed)[0], torch.tensor(labels) + shift
    expected = oracle(z, labels, tau, k1, k2, f=loop_losses)
    assert_close(ours(z, labels, tau, k1, k2), expected, 1e-9)


@pytest.mark.parametrize("params", [TCL, SUPCON, (0.2, 1.0, 1.5), (0.005, 5000.0, 1.5)])
@pytest.mark.parametrize(  # sizes that no tile divides, from one class to pairs
    ("n", "classes"),
    [(129, 10), (255, 1), (TILE, 7), (TILE + 3, 7), (TILE + 2, 257), (1200, 2), (1539, 7), (2051, 1025)],
)
def test_large_batches(n, classes, params):
    z, labels = make_batch(n, classes, dtype=torch.float32)
    rtol = max(1e-5, 1e-6 / params[0])  # a cosine's rounding (1e-7) is divided by tau
    args = z, labels, *params, "none", random_upstream(z)
    assert_close(ours(*args), oracle(*args), rtol)


def test_non_contiguous_inputs():
    z, labels = make_batch(34, 5)
    wide = torch.randn(34, 16, dtype=F64)
    wide[:, ::2] = z
    upstream = torch.full((1,), 0.7, dtype=F64).expand(17)  # stride 0, as sum() hands back
    for view in (wide[::2, ::2], z.T.contiguous().T[::2]):
        assert not view.is_contiguous()
        for how in ((), (*TCL, "none", upstream)):
            expected = oracle(z[::2].contiguous(), labels[::2].contiguous(), *how)
            assert_close(ours(view, labels[::2], *how), expected, 1e-11)


def test_permuting_the_batch_permutes_the_result():
    z, labels = make_batch(33, 6)
    order, upstream = torch.randperm(33), random_upstream(z)
    losses, grad = ours(z, labels, *TCL, "none", upstream)
    permuted = ours(z[order], labels[order], *TCL, "none", upstream[order])
    assert_close(permuted, (losses[order], grad[order]), 1e-12)


def test_modules_and_defaults():
    z, labels = make_batch(17, 4)
    mean, supcon = oracle(z, labels, *TCL)[0], oracle(z, labels, *SUPCON)[0]
    values = [tuned_contrastive_loss(z, labels), TCLLoss()(z, labels), SupConLoss()(z, labels)]
    assert_close(values, [mean, mean, supcon], 1e-12)
    tcl = TCLLoss(temperature=0.3, k1=20.0, k2=1.7, reduction="none")(z, labels)
    supcon = SupConLoss(temperature=0.3, reduction="none")(z, labels)
    expected = [dense_losses(z, labels, 0.3, *k) for k in ((20.0, 1.7), (0.0, 1.0))]
    assert_close([tcl, supcon], expected, 1e-12)


@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
def test_supcon_is_k1_0_k2_1_and_pytorch_metric_learnings(tau):
    pml = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(temperature=tau)
    z, labels = make_batch(40, 8)  # every class several times: PML averages over non-zero losses
    supcon = value_and_grad(lambda x: SupConLoss(tau)(x, labels), z)
    assert_close(supcon, ours(z, labels, tau, 0.0, 1.0), 1e-12)
    # PML normalises inside, which takes the radial part off the gradient.
    value_grad = value_and_grad(lambda x: SupConLoss(tau)(normalize(x, dim=1), labels), z)
    assert_close(value_grad, value_and_grad(lambda x: pml(x, labels), z), 1e-5)


def response(z, labels, tau, k1, k2, i=0):
    """L_i, dL_i/dz_i, and c_j = tau dL_i/ds_ij, the factor of z_j in Lemma 2, by our autograd.

    z_j enters L_i through s_ij = z_i . z_j alone, so dL_i/dz_j must be c_j z_i / tau.
    """
    pick = torch.zeros(len(z), dtype=F64).index_fill(0, torch.tensor(i), 1.0)
    losses, grad = ours(z, labels, tau, k1, k2, "none", pick)
    c = tau * grad @ z[i]
    others = torch.arange(len(z)) != i
    torch.testing.assert_close(grad[others], c[others, None] * z[i] / tau, rtol=1e-9, atol=1e-12)
    return losses[i].item(), grad[i], c


@pytest.mark.parametrize("i", [0, 4])
@pytest.mark.parametrize(("tau", "k1", "k2"), SETTINGS)  # SUPCON is Lemma 1, the others Lemma 2
def test_lemmas_1_and_2_term_by_term(tau, k1, k2, i):
    z, labels = make_batch(11, 3)
    s = [float(z[i] @ row) for row in z]
    pos = [j for j in range(11) if j != i and labels[j] == labels[i]]
    neg = [j for j in range(11) if labels[j] != labels[i]]
    d = sum(math.exp(s[p] / tau) + k1 * math.exp(-s[p]) for p in pos)
    d += k2 * sum(math.exp(s[n] / tau) for n in neg)

    # D as the loss has it follows from its value, X from the gradient without the k1 term.
    attraction = sum(s[p] for p in pos) / len(pos) / tau
    loss, own_grad, c = response(z, labels, tau, k1, k2, i)
    loss_0, _, c_0 = response(z, labels, tau, 0.0, k2, i)
    d_seen, d_0_seen = math.exp(loss + attraction), math.exp(loss_0 + attraction)
    assembled = torch.zeros(8, dtype=F64)
    for p in pos:
        x_ip, p_ip = 1 / len(pos), math.exp(s[p] / tau) / d
        y_ip = tau * k1 * math.exp(-s[p]) / d
        p_seen = math.exp(s[p] / tau) / d_seen
        x_seen = math.exp(s[p] / tau) / d_0_seen - float(c_0[p])
        assert p_seen == pytest.approx(p_ip, rel=1e-9)
        assert x_seen == pytest.approx(x_ip, rel=1e-9)
        assert p_seen - x_seen - float(c[p]) == pytest.approx(y_ip, rel=1e-9, abs=1e-12)
        assembled += z[p] * (p_ip - x_ip - y_ip) / tau
    for n in neg:
        p_in = k2 * math.exp(s[n] / tau) / d
        assert float(c[n]) == pytest.approx(p_in, rel=1e-9)
        assembled += z[n] * p_in / tau
    torch.testing.assert_close(own_grad, assembled, rtol=1e-9, atol=1e-12)


cosines = st.lists(st.floats(-0.99, 0.99), min_size=1, max_size=6)
temperatures, any_k1, any_k2 = st.floats(0.1, 1), st.floats(1, 1e4), st.floats(1, 5)


def anchor_with_cosines(pos, neg):
    """Row 0 is the anchor; the others have exactly these cosines with it."""
    s = torch.tensor([*pos, *neg], dtype=F64)
    z = torch.eye(len(s) + 1, dtype=F64)
    z[1:] = torch.cat([s[:, None], torch.diag((1 - s**2).sqrt())], 1)
    return z, torch.tensor([0] * (1 + len(pos)) + [1] * len(neg))


@PROPERTY
@given(cosines, cosines, temperatures, any_k1, any_k2)
def test_theorem_1_hard_positives_respond_more_than_in_supcon(pos, neg, tau, k1, k2):
    z, labels = anchor_with_cosines(pos, neg)
    tcl = response(z, labels, tau, k1, k2)[2][1 : 1 + len(pos)]
    supcon = response(z, labels, tau, 0.0, 1.0)[2][1 : 1 + len(pos)]
    hard = supcon < 0  # X > P: SupCon pulls it in
    # The least similar positive has at most an equal share of the positives' mass, so it is hard.
    assert hard[torch.tensor(pos).argmin()]
    assert (tcl[hard].abs() > supcon[hard].abs()).all()


@PROPERTY
@given(cosines, cosines, temperatures, any_k1, any_k2, st.floats(1.1, 10))
def test_theorem_2_negatives_respond_more_as_k2_grows(pos, neg, tau, k1, k2, factor):
    z, labels = anchor_with_cosines(pos, neg)
    low = response(z, labels, tau, k1, k2)[2][1 + len(pos) :]
    high = response(z, labels, tau, k1, k2 * factor)[2][1 + len(pos) :]
    assert (low > 0).all()
    assert (high > low).all()


@pytest.mark.parametrize("k1", [0.0, 5000.0])
@pytest.mark.parametrize("tau", [0.005, 0.02, 1.0])
@pytest.mark.parametrize("kind", ["random", "identical", "antipodal"])
def test_extreme_embeddings_and_temperatures(kind, tau, k1):
    z, labels = make_batch(24, 4, dtype=torch.float32)
    if kind == "identical":
        z = z[:1].repeat(24, 1)
    elif kind == "antipodal":  # positives opposite to each other, some negatives equal
        z = z[:1] * torch.tensor([1.0, -1.0]).repeat(12)[:, None]
        labels = torch.arange(24) // 2
    expected = oracle(z, labels, tau, k1)
    # As above; and the gradient of identical rows is a sum of terms this large that cancel.
    rtol, term = max(1e-5, 1e-6 / tau), 1 / (24 * tau)
    assert_close(ours(z, labels, tau, k1), expected, rtol, floor=term)
    assert_close(ours(z.to(F64), labels, tau, k1), expected, 1e-10, floor=term)


@pytest.mark.parametrize("k2", [1e-60, 1e-45, 1e40])
@pytest.mark.parametrize("k1", [0.0, 5000.0])
def test_weights_of_negatives_beyond_float32(k1, k2):
    z, labels = make_batch(24, 4, dtype=torch.float32)
    assert_close(ours(z, labels, 0.1, k1, k2), oracle(z, labels, 0.1, k1, k2), 1e-5, floor=1 / 2.4)


@pytest.mark.filterwarnings("ignore:no anchor:RuntimeWarning")
def test_an_empty_batch_that_a_large_k1_would_shift():
    z = torch.empty(0, 4, requires_grad=True)
    loss = tuned_contrastive_loss(z, torch.empty(0, dtype=torch.int64), k1=1e31)
    loss.backward()
    assert loss == 0 and z.grad.shape == (0, 4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tau", [0.02, 0.1])
@pytest.mark.parametrize(  # half-precision gradients are rounded once, at the end
    ("dtype", "grad_rtol"),
    [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 5e-5), (F64, 1e-11)],
)
def test_computed_in_float32_or_wider(dtype, grad_rtol, tau, autocast):
    z, labels = make_batch(40, 5, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):  # backward under it too
        value, grad = ours(z, labels, tau, reduction="sum")
    assert value.dtype == (F64 if dtype == F64 else torch.float32)
    assert grad.dtype == dtype
    expected_value, expected_grad = oracle(z, labels, tau, reduction="sum")
    assert_close([value], [expected_value], 1e-11 if dtype == F64 else 1e-5)
    assert_close([grad], [expected_grad], grad_rtol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("k1", [0.0, 50.0])
def test_gradcheck(reduction, k1):
    z, labels = make_batch(7, 4, dim=3)  # one anchor is alone
    args = labels, 0.3, k1, 1.3, reduction
    assert torch.autograd.gradcheck(lambda x: tuned_contrastive_loss(x, *args), z.requires_grad_())


def test_anchors_without_positives_are_left_out_but_remain_negatives():
    z, labels = make_batch(7, 1)[0], torch.tensor([5, 0, 1, 0, 7, 1, 0])  # rows 0, 4 are alone
    losses, grad = ours(z, labels, *TCL, "none", torch.ones(7, dtype=F64))
    assert losses[0] == losses[4] == 0
    assert (losses[[1, 2, 3, 5, 6]] > 0).all()
    assert (grad.norm(dim=1) > 0).all()  # as the others' negatives they still get a gradient
    assert_close(ours(z, labels), [losses.sum() / 5, grad / 5], 1e-12)


@quiet
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.005, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_positive_pair_is_zero_with_zero_gradient(n, tau, reduction):
    z = make_batch(n, n)[0].requires_grad_()
    loss = TCLLoss(tau, reduction=reduction)(z, torch.arange(n))
    loss.sum().backward()
    assert loss.tolist() == ([0.0] * n if reduction == "none" else 0.0)
    assert z.grad is not None
    assert (z.grad == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_of_zero_is_not_taken_for_no_pairs(reduction, recwarn):
    """SupCon's is 0 where the classes point opposite ways."""
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert not SupConLoss(reduction=reduction)(z, torch.tensor([0, 0, 1, 1])).any() and not recwarn.list


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_positive_pair_warns_once(reduction):
    # In a process of its own: "once" may be kept per process, and pytest resets the filters.
    code = """if True:
        import sys, warnings, torch
        from tcl_zoo.losses import TCLLoss
        shown, loss = [], TCLLoss(reduction=sys.argv[1])
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, category, *rest: shown.append(category)
        for labels in ([0, 0, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3]):
            loss(torch.eye(4), torch.tensor(labels))
            print(shown.count(RuntimeWarning))"""
    command, root = [sys.executable, "-c", code, reduction], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "1", "1"], done.stderr


ILLEGAL = {"temperature": (0.0, -0.25, math.nan), "k1": (-0.25, math.nan), "k2": (0.0, -2.5)}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name in ILLEGAL for v in ILLEGAL[name]])
def test_illegal_parameters(name, value):
    z, labels = make_batch(4, 2)
    pattern = f"(?s)(?=.*{name})(?=.*{value:g})"
    with pytest.raises(ValueError, match=pattern):
        tuned_contrastive_loss(z, labels, **{name: value})
    for loss in (TCLLoss, SupConLoss) if name == "temperature" else (TCLLoss,):
        with pytest.raises(ValueError, match=pattern):
            loss(**{name: value})(z, labels)


@pytest.mark.parametrize("loss", [tuned_contrastive_loss, TCLLoss(), SupConLoss()])
@pytest.mark.parametrize(
    ("z", "labels"),
    [
        (torch.eye(4), torch.arange(3)),
        (torch.eye(4), torch.arange(4)[:, None]),
        (torch.eye(4), torch.tensor(0)),
        (torch.eye(4), torch.zeros(4)),
        (torch.ones(4), torch.arange(4)),
        (torch.ones(4, 2, 3), torch.arange(4)),  # SupContrast's [N, views, D]
        (torch.eye(4), [0, 0, 1, 1]),
        (torch.eye(4).numpy(), torch.arange(4)),
    ],
)
def test_illegal_inputs(z, labels, loss):
    with pytest.raises(ValueError):
        loss(z, labels)


def test_no_graph_without_a_gradient_to_compute():
    z, labels = make_batch(17, 4)
    plain = tuned_contrastive_loss(z, labels)
    with torch.no_grad():
        without = tuned_contrastive_loss(z.clone().requires_grad_(), labels)
    for loss in (plain, without):
        assert not loss.requires_grad
        assert loss.grad_fn is None
        assert_close([loss], oracle(z, labels)[:1], 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_calls_are_independent_and_gradients_linear(reduction):
    # One module, two calls, backward in the reverse order, twice; inputs stay as they were.
    loss_fn, batches = TCLLoss(reduction=reduction), [make_batch(17, 4), make_batch(9, 2)]
    leaves = [z.clone().requires_grad_() for z, _ in batches]
    losses = [loss_fn(leaf, labels) for leaf, (_, labels) in zip(leaves, batches, strict=True)]
    for i in (1, 0):
        z, labels = batches[i]
        value, grad = oracle(z, labels, reduction=reduction)
        for factor in (3, 1):
            seen = torch.autograd.grad(losses[i] * factor, leaves[i], retain_graph=True)[0]
            assert_close([losses[i].detach(), seen], [value, grad * factor], 1e-11)
        assert torch.equal(leaves[i].detach(), z)


# --- two processes ----------------------------------------------------------------------------

SPLITS = {  # labels of rank 0 and of rank 1
    "even": ([0, 1, 2, 0, 1, 2], [2, 0, 0, 1, 2, 1]),
    "uneven, one anchor alone": ([0, 1, 2, 0, 9], [2, 0, 0, 1, 2, 1, 1, 0]),
    "positives on the other rank only": ([0, 1, 2, 3], [3, 1, 0, 2]),
    "no anchors on rank 0": ([7, 8, 9], [0, 0, 1, 1]),
    "several tiles": ([i % 37 for i in range(TILE + 3)], [i % 11 for i in range(17)]),
    "more tiles than are kept": ([i % 37 for i in range(2051)], [i % 11 for i in range(17)]),
}
LOSSES = [(TCLLoss(), TCL), (SupConLoss(), SUPCON), (TCLLoss(0.01, 9.0, 2.0), (0.01, 9.0, 2.0))]


def _losses_on_rank(rank, folder):
    torch.set_num_threads(1)
    where, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", where, timeout=timeout, rank=rank, world_size=2)
    results = []
    for split in SPLITS.values():
        labels = torch.tensor(split[rank])
        z = make_batch(len(split[0] + split[1]), 1)[0].split([len(s) for s in split])[rank]
        results.append([value_and_grad(lambda x, f=f, y=labels: f(x, y), z) for f, _ in LOSSES])
    torch.save(results, f"{folder}/{rank}.pt")
    # A share whose embeddings come from a frozen encoder, or are none, takes part all the same.
    z = make_batch(8, 1)[0].split(4)[rank].requires_grad_(rank == 0)
    loss = TCLLoss()(z, torch.arange(4) % 2)
    if rank == 0:
        loss.backward()
        torch.save(z.grad, f"{folder}/frozen.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    mp.spawn(_losses_on_rank, args=(str(tmp_path),), nprocs=2)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for split, *results in zip(SPLITS.values(), *by_rank, strict=True):
        labels = torch.tensor(split[0] + split[1])
        z = make_batch(len(labels), 1)[0]
        for (_, params), *pair in zip(LOSSES, *results, strict=True):
            losses, grads = zip(*pair, strict=True)
            averaged = sum(losses) / 2, torch.cat(grads) / 2  # over the ranks, as DDP does
            assert_close(averaged, oracle(z, labels, *params), 1e-10)
    expected = oracle(make_batch(8, 1)[0], torch.arange(8) % 2)[1][:4]
    assert_close([torch.load(tmp_path / "frozen.pt") / 2], [expected], 1e-10)


def test_small_batches_share_no_memory_while_they_live() -> None:
    """Workspaces are handed on from batch to batch: never one that a later backward still reads."""
    (z1, y), (z2, _) = (make_batch(96, 10, 16, torch.float32, seed) for seed in (1, 2))

    def gradient(z: torch.Tensor, times: int = 1) -> torch.Tensor:
        z = z.clone().requires_grad_()
        loss = tuned_contrastive_loss(z, y)
        return torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(times)])

    alone = gradient(z1)[0], gradient(z2)[0]
    assert torch.equal(gradient(z1, times=3), alone[0].expand(3, -1, -1))
    a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    both = [tuned_contrastive_loss(a, y), tuned_contrastive_loss(b, y)]  # both forward before any backward
    both[0].backward()
    for seed in range(6):
        gradient(make_batch(96, 10, 16, torch.float32, seed)[0])  # and others come and go
    both[1].backward()
    assert torch.equal(a.grad, alone[0]) and torch.equal(b.grad, alone[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_validation_loss_in_inference_mode_between_training_steps(reduction):
    z, labels = make_batch(48, 5, dtype=torch.float32)

    def step():
        return ours(z, labels, reduction=reduction, upstream=random_upstream(z) if reduction == "none" else None)

    expected = step()
    _pairwise.Workspace._free.clear()  # so that inference finds no memory of an earlier step
    with torch.inference_mode():
        value = tuned_contrastive_loss(z.clone(), labels, reduction=reduction)
    assert torch.equal(value, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_outlives_the_loss(reduction):
    """Without the garbage collector, which does not know when a GPU is full."""
    z, labels = make_batch(24, 4)
    rows = z.requires_grad_() * 1.0
    alive = weakref.ref(rows)
    gc.disable()
    try:
        loss = tuned_contrastive_loss(rows, labels, reduction=reduction)
        del rows, loss
        assert alive() is None
    finally:
        gc.enable()


def test_what_comes_from_an_anchor_without_a_positive_does_not_matter():
    """The derivative of a square root at its loss of 0, say."""
    z, labels = make_batch(12, 3)
    labels[5] = 99
    upstream = torch.ones(12, dtype=F64)
    expected = ours(z, labels, reduction="none", upstream=upstream)
    upstream[5] = math.nan
    assert_close(ours(z, labels, reduction="none", upstream=upstream), expected, 1e-14)


@pytest.mark.parametrize("n", [200, 1100])  # one tile, several
def test_backward_after_one_that_was_interrupted(n, monkeypatch):
    z, labels = make_batch(n, 10, dtype=torch.float32)
    leaf = z.clone().requires_grad_()
    losses = tuned_contrastive_loss(leaf, labels, reduction="none")
    derive, calls = _pairwise.Pairs._derive, iter(range(100))

    def interrupted(self, *terms):
        result = derive(self, *terms)
        if next(calls) == (3 if n > TILE else 0):
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(_pairwise.Pairs, "_derive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            losses.sum().backward(retain_graph=True)
    losses.sum().backward()
    assert_close([leaf.grad], oracle(z, labels, reduction="sum")[1:], 1e-5)


@pytest.mark.parametrize(("tau", "rounding"), [(0.005, 0.0), (0.07, 1e-6)])  # with a shift, without
def test_what_cancels_leaves_nothing(tau, rounding):
    """Two rows of a class, alone: the loss is log(exp(s / tau) / exp(s / tau))."""
    for seed in range(20):
        z, labels = make_batch(2, 1, seed=seed, dtype=torch.float32)
        assert abs(tuned_contrastive_loss(z, labels, tau, *SUPCON[1:])) <= rounding


def test_rows_too_long_for_a_square_do_not_raise():
    z = torch.full((4, 1), 1e160, dtype=F64)
    assert not tuned_contrastive_loss(z, torch.tensor([0, 0, 1, 1])).isfinite()


@pytest.mark.parametrize("tau", [0.005, 0.1])
def test_per_anchor_losses_are_the_callers(tau):
    """In memory of their own, which he may write to."""
    z, labels = make_batch(24, 4)
    losses = tuned_contrastive_loss(z.requires_grad_(), labels, tau, reduction="none")
    assert losses.untyped_storage().nbytes() == 24 * losses.element_size()
    losses.mul_(2).sum().backward()


@pytest.mark.skipif(torch.__version__ < "2.11", reason="fakes no GPU without a driver")
@pytest.mark.parametrize("n", [0, 7, 600])
def test_a_gpu_is_asked_nothing(n, monkeypatch):
    """Tensors without values, said to be on a GPU: whatever the answer hangs on raises."""
    monkeypatch.setattr(_pairwise, "GPU_TILE", 256)
    with FakeTensorMode(), torch.no_grad():
        z = torch.empty(n, 16, device="cuda", dtype=torch.bfloat16)
        labels, weight = torch.empty(n, dtype=torch.long, device="cuda"), torch.empty(n, device="cuda")
        for params in (TCL, SUPCON, (0.2, 1.0, 1.5)):
            for reduction in ("mean", "none"):
                assert tuned_contrastive_loss(z, labels, *params, reduction).device.type == "cuda"
            for weights in (None, weight):
                anchors = _anchors.Anchors(z, labels, *params, False)
                walk = anchors.walk(keep=True)
                anchors.losses(walk)
                assert anchors.gradient(walk, weights).device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            float(weight.sum())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    z, labels = make_batch(12, 3)
    loss = tuned_contrastive_loss(z.requires_grad_(), labels, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [32, TILE + 8])
def test_inside_a_compiled_function(n):
    z, labels = make_batch(n, 4, dtype=torch.float32)
    compiled = torch.compile(lambda x: TCLLoss()(2 * x, labels), backend="aot_eager")
    assert_close(value_and_grad(compiled, z / 2), value_and_grad(lambda x: TCLLoss()(2 * x, labels), z / 2), 1e-6)


def test_per_anchor_losses_notice_embeddings_changed_before_backward():
    """Their backward reads the embeddings again."""
    z, labels = make_batch(12, 3)
    rows = z.requires_grad_() * 1.0
    losses = tuned_contrastive_loss(rows, labels, reduction="none")
    rows.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("labels", [
    torch.tensor([-128, 127, -128, 127, 0, 0], dtype=torch.int8),
    torch.tensor([255, 0, 255, 0, 7, 7], dtype=torch.uint8),
    torch.tensor([2**40, 2**40 + 1, 2**40, 2**40 + 1, -(2**40), -(2**40)]),
    torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1, 0, 0]),
], ids=str)  # fmt: skip
def test_labels_of_any_size(labels):
    """Whatever the labels are, only which of them are equal counts."""
    z = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = tuned_contrastive_loss(z, torch.tensor([0, 1, 0, 1, 2, 2]), 0.1, 50.0, 1.5)
    assert torch.equal(tuned_contrastive_loss(z, labels, 0.1, 50.0, 1.5), expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory as Linux counts it")
def test_memory_grows_linearly():
    """One square of 8,192 rows alone would be 256 MiB."""
    program = [sys.executable, "-m", "benchmarks.loss", "tcl_zoo", "8192"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert 1 <= float(done.stdout) < 120


def test_embeddings_that_nobody_normalised_are_told_of_once():
    rows, labels = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) // 2
    loss = TCLLoss()
    with pytest.warns(UserWarning, match=r"lengths are .*normalize\(embeddings, dim=1\)"):
        loss(3 * rows, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(3 * rows, labels)  # only the first batch is looked at
        for dtype in (torch.float32, torch.bfloat16):
            TCLLoss()(normalize(rows, dim=1).to(dtype), labels)

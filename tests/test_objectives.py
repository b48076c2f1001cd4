"""Self-supervised objectives: each loss against its formula in numpy or another library, resume, collapse."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stop_after import StopAfter
from torch import nn

from tcl_zoo import train as train_module
from tcl_zoo.errors import TrainingError
from tcl_zoo.objectives import create_objective
from tcl_zoo.objectives._self_supervised import effective_rank, embedding_std
from tcl_zoo.recipes import SELF_SUPERVISED, override, recipe
from tcl_zoo.train import train

pytest.importorskip("lightly", reason="the other objectives stand on lightly")

B, DIM = 16, 6
# Options at which nothing is at a special value, as small as a step allows.
SMALL = {
    "prototypes": 7,
    "queue_size": 24,
    "predictor_hidden": 5,
    "whitening_size": 16,
    "whitening_eps": 0.01,
    "queue_epochs": 0,
    "freeze_epochs": 0.5,
    "ema_base": 0.9,
}


class Pixels(nn.Module):
    """Stands in for the encoder: the pixels are the features."""

    num_features = 12

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, images):
        return images.flatten(1) * self.scale


def make(name, **changes):
    """(objective, recipe) with small heads and options."""
    plan = recipe(f"{name}_resnet20_digits")
    options = {key: SMALL.get(key, value) for key, value in plan.options.items()} | changes.pop("options", {})
    plan = dataclasses.replace(
        plan, projector_hidden=10, projector_dim=DIM, batch_views=plan.views * B, options=options, **changes
    )
    torch.manual_seed(0)
    return create_objective(plan, Pixels(), 10).train(), plan


def images(views, side=2, seed=0, batch=B):
    return torch.randn(views * batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def rows(*networks, of):
    """Embeddings of each view in float64, by the objective's own networks."""
    found = []
    for view in of:
        value = view.flatten(1)
        for network in networks:
            value = network(value)
        found.append(value.detach().double().numpy())
    return found


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def loss_of(objective, views):
    return float(objective(Pixels(), views, torch.zeros(B, dtype=torch.int64)).detach())


def tcl_by_loops(z, image, tau, k1, k2):
    """Eq. 4.2-4.4, anchor by anchor, with the image as the class."""
    total = 0.0
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and image[j] == image[i]]
        negatives = [j for j in range(len(z)) if image[j] != image[i]]
        d = sum(math.exp(z[i] @ z[j] / tau) + k1 * math.exp(-z[i] @ z[j]) for j in positives)
        d += k2 * sum(math.exp(z[i] @ z[j] / tau) for j in negatives)
        total -= sum(math.log(math.exp(z[i] @ z[j] / tau) / d) for j in positives) / len(positives)
    return total / len(z)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_tcl_without_labels(views):
    objective, plan = make("tcl_ssl", views=views)
    batch = images(views)
    z = np.concatenate(rows(objective.projector, of=batch.chunk(views)))
    expected = tcl_by_loops(z, list(range(B)) * views, plan.temperature, plan.k1, plan.k2)
    # Real labels, all the same here, must not matter.
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-5)
    assert (plan.k1, plan.k2, plan.temperature) == (1.0, 1.5, 0.2)


def test_simclr_is_nt_xent():
    from lightly.loss import NTXentLoss

    objective, plan = make("simclr")
    first, second = images(2).chunk(2)
    expected = NTXentLoss(plan.temperature)(
        objective.projector(first.flatten(1)), objective.projector(second.flatten(1))
    )
    assert loss_of(objective, torch.cat([first, second])) == pytest.approx(expected.item(), rel=1e-5)
    tcl, _ = make("tcl_ssl", k1=0.0, k2=1.0, views=2)
    tcl.projector.load_state_dict(objective.projector.state_dict())
    assert loss_of(tcl, torch.cat([first, second])) == loss_of(objective, torch.cat([first, second]))


def moved(objective):
    """Teacher and student apart, as after a step."""
    objective.progress = 0.1
    for p in objective.teacher.head.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))


def test_moco():
    from lightly.loss import NTXentLoss

    objective, plan = make("moco")
    moved(objective)
    batch = images(2)
    q1, q2 = map(unit, rows(objective.projector, of=batch.chunk(2)))
    k1, k2 = map(unit, rows(objective.teacher.head, of=batch.chunk(2)))
    expected, library = 0.0, 0.0
    for q, k, queue in ((q1, k2, objective.queue.rows[1]), (q2, k1, objective.queue.rows[0])):
        for own, key in zip(q, k, strict=True):
            logits = np.concatenate([[own @ key], queue.double().numpy() @ own]) / plan.temperature
            expected -= (logits[0] - np.log(np.exp(logits).sum())) / (2 * B)
        theirs = NTXentLoss(plan.temperature, memory_bank_size=(24, DIM))
        theirs.memory_bank.bank = queue.clone()
        library += float(theirs(torch.tensor(q).float(), torch.tensor(k).float())) / 2
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(library, rel=1e-5)


def test_queue_overwrites_the_oldest():
    objective, _ = make("moco")  # 24 places, 16 keys a step
    sequence: list[torch.Tensor] = []
    for step in range(3):
        batch = images(2, seed=step)
        loss_of(objective, batch)
        keys = torch.stack([torch.tensor(unit(k)) for k in rows(objective.teacher.head, of=batch.chunk(2))])
        if step == 0:  # the first keys stand in for all that are to come
            filled = torch.cat([keys, keys[:, :8]], dim=1)
            torch.testing.assert_close(objective.queue.rows.double(), filled, rtol=1e-4, atol=1e-5)
            sequence.append(objective.queue.rows.clone())
        objective.progress = (step + 1) / 10
        objective.after_step(Pixels(), (step + 1) / 10)
        places = (torch.arange(B) + B * step) % 24
        torch.testing.assert_close(objective.queue.rows[:, places].double(), keys, rtol=1e-4, atol=1e-5)
        others = [i for i in range(24) if i not in places.tolist()]
        assert torch.equal(objective.queue.rows[:, others], sequence[-1][:, others])
        sequence.append(objective.queue.rows.clone())


@pytest.mark.parametrize("epochs", [0, 7])
def test_ressl(epochs):
    objective, plan = make("ressl", options={"infonce_epochs": epochs, "teacher_temperature": 0.04})
    moved(objective)  # epoch 6
    strong, weak = images(2).chunk(2)
    (q,), (k,) = rows(objective.projector, of=[strong]), rows(objective.teacher.head, of=[weak])
    queue = objective.queue.rows[0].double().numpy()
    target = softmax(unit(k) @ queue.T / 0.04)
    expected = -(target * np.log(softmax(unit(q) @ queue.T / plan.temperature))).sum(1).mean()
    if epochs:  # the own key is to be found first
        own = np.sum(unit(q) * unit(k), axis=1, keepdims=True)
        expected = -np.log(softmax(np.hstack([own, unit(q) @ queue.T]) / plan.temperature)[:, 0]).mean()
    assert loss_of(objective, torch.cat([strong, weak])) == pytest.approx(expected, rel=1e-5)


def test_byol():
    objective, _ = make("byol")
    moved(objective)
    batch = images(2)
    p = [unit(x) for x in rows(objective.projector, objective.predictor, of=batch.chunk(2))]
    t = [unit(x) for x in rows(objective.teacher.head, of=batch.chunk(2))]
    expected = ((p[0] - t[1]) ** 2).sum(1).mean() + ((p[1] - t[0]) ** 2).sum(1).mean()
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-4)


def test_simsiam_holds_its_target():
    objective, _ = make("simsiam")
    batch = images(2)
    z = rows(objective.projector, of=batch.chunk(2))
    p = rows(objective.projector, objective.predictor, of=batch.chunk(2))
    expected = -sum((unit(p[i]) * unit(z[1 - i])).sum(1).mean() for i in (0, 1)) / 2
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-5)
    # Were the target free to move, the gradient of the projector would be another one.
    objective(Pixels(), batch, torch.zeros(B)).backward()
    got = objective.projector.layers[0].weight.grad.clone()
    fixed = [torch.tensor(x).float() for x in z]
    objective.zero_grad()
    preds = [objective.predictor(objective.projector(v.flatten(1))) for v in batch.chunk(2)]
    manual = -sum(torch.cosine_similarity(preds[i], fixed[1 - i]).mean() for i in (0, 1)) / 2
    manual.backward()
    torch.testing.assert_close(got, objective.projector.layers[0].weight.grad, rtol=1e-3, atol=1e-6)
    assert objective.constant_lr is objective.predictor


@pytest.mark.parametrize("crops", [0, 3])
def test_dino(crops):
    options = {"local_crops": crops, "teacher_temperature": 0.07, "warmup_temperature": 0.04}
    objective, plan = make("dino", options=options)
    moved(objective)
    objective.loss.center += torch.linspace(-0.2, 0.2, 7)
    centre = objective.loss.center.flatten().double().numpy()
    objective.progress = 0.02  # in the warm-up of 3 of 60 epochs: 0.04 + 0.03 * 1.2 / 3
    large, small = images(2), images(crops, seed=1)
    student = rows(*objective.projector, of=large.chunk(2))
    if crops:  # one batch: they share their batch norm
        student += np.split(rows(*objective.projector, of=[small])[0], crops)
    teacher = rows(objective.teacher.head, of=large.chunk(2))
    expected, terms = 0.0, 0
    for i, t in enumerate(teacher):
        for j, s in enumerate(student):
            if i != j:
                target = softmax((t - centre) / 0.052)
                expected -= (target * np.log(softmax(s / plan.temperature))).sum(1).mean()
                terms += 1
    assert loss_of(objective, [large, small] if crops else large) == pytest.approx(expected / terms, rel=1e-4)
    after = 0.9 * centre + 0.1 * np.concatenate(teacher).mean(0)
    np.testing.assert_allclose(objective.loss.center.flatten(), after, rtol=1e-4, atol=1e-6)


def test_prototypes_are_frozen_at_first():
    for name in ("dino", "swav"):
        objective, plan = make(name)
        weight = objective.projector[1].weight if name == "dino" else objective.prototypes.weight
        for epoch, frozen in ((0.4, True), (0.6, False)):
            objective.progress = epoch / plan.epochs
            objective.zero_grad()
            objective(Pixels(), images(2), torch.zeros(B)).backward()
            assert weight.grad is not None
            objective.after_backward()
            assert (weight.grad is None) == frozen


def test_vicreg():
    objective, _ = make("vicreg")
    batch = images(2)
    z = rows(objective.projector, of=batch.chunk(2))
    invariance = ((z[0] - z[1]) ** 2).mean()
    variance = sum(np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean() for x in z)  # as solo-learn and the paper
    covariance = sum((np.cov(x.T)[~np.eye(DIM, dtype=bool)] ** 2).sum() / DIM for x in z)
    assert loss_of(objective, batch) == pytest.approx(25 * invariance + 25 * variance + covariance, rel=1e-4)


def test_barlow_twins():
    objective, _ = make("barlow", options={"redundancy": 5e-3})
    batch = images(2)
    z = rows(objective.projector, of=batch.chunk(2))
    c = np.corrcoef(z[0].T, z[1].T)[:DIM, DIM:]
    off = ~np.eye(DIM, dtype=bool)
    expected = ((np.diagonal(c) - 1) ** 2).sum() + 5e-3 * (c[off] ** 2).sum()
    assert loss_of(objective, batch) == pytest.approx(0.1 * expected, rel=1e-3)


def test_arb_aligns_with_the_polar_factor():
    objective, _ = make("arb", options={"whitening_eps": 0.0})
    batch = images(2)
    z = [(x - x.mean(0)) / x.std(0, ddof=1) for x in rows(objective.projector, of=batch.chunk(2))]
    expected = 0.0
    for x, other in ((z[0], z[1]), (z[1], z[0])):
        u, _, v = np.linalg.svd(other, full_matrices=False)
        base = u @ v * math.sqrt(B - 1)  # the orthonormal columns nearest to the other view's
        expected += (((x * base).sum(0) / B - 1) ** 2).sum()
    assert loss_of(objective, batch) == pytest.approx(0.1 * expected, rel=1e-3)
    wide, _ = make("arb", options={"whitening_eps": 1e-5})
    wide.projector = nn.Linear(12, 40)  # more dimensions than images: the covariance is singular
    assert math.isfinite(loss_of(wide, batch))


def test_wmse():
    objective, _ = make("wmse")
    batch = images(2)
    whitened = []
    for x in rows(objective.projector, of=batch.chunk(2)):
        x = x - x.mean(0)
        factor = np.linalg.cholesky(0.99 * x.T @ x / (B - 1) + 0.01 * np.eye(DIM))
        whitened.append(unit(np.linalg.solve(factor, x.T).T))
    expected = ((whitened[0] - whitened[1]) ** 2).sum(1).mean()
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(TrainingError, match=r"whitening_size \(12\) must divide the batch \(16 images\)"):
        make("wmse", options={"whitening_size": 12})
    singular, _ = make("wmse", options={"whitening_eps": 0.0})
    with pytest.raises(TrainingError, match="cannot be whitened"):
        loss_of(singular, torch.ones_like(batch))


@pytest.mark.parametrize("crops", [0, 2])
@pytest.mark.parametrize("queued", [False, True])
def test_swav(crops, queued):
    objective, plan = make(
        "swav", options={"local_crops": crops, "queue_epochs": 0 if queued else 5, "sinkhorn_epsilon": 0.05}
    )
    large, small = images(2), images(crops, seed=1)
    z = rows(objective.projector, of=large.chunk(2))
    if crops:  # one batch: they share their batch norm
        z += np.split(rows(objective.projector, of=[small])[0], crops)
    weight = unit(objective.prototypes.weight.detach().double().numpy())
    scores = [unit(x) @ weight.T for x in z]
    expected = 0.0
    for i in range(2):
        table = (
            np.concatenate([scores[i], objective.queue.rows[i].double().numpy() @ weight.T]) if queued else scores[i]
        )
        q = np.exp(table / 0.05)
        q /= q.sum()
        for _ in range(3):  # equal shares of the prototypes, then one whole for each image
            q /= q.sum(0) * q.shape[1]
            q /= q.sum(1, keepdims=True) * q.shape[0]
        q = q[:B] * q.shape[0]
        others = [j for j in range(len(z)) if j != i]
        terms = [-(q * np.log(softmax(scores[j] / plan.temperature))).sum(1).mean() for j in others]
        expected += np.mean(terms) / 2
    assert loss_of(objective, [large, small] if crops else large) == pytest.approx(expected, rel=1e-4)


def test_teacher_is_the_moving_average():
    for name, final in (("byol", 1.0), ("moco", 0.999)):
        objective, _ = make(name)
        moved(objective)
        loss_of(objective, images(2))
        before = [p.clone() for p in objective.teacher.head.parameters()]
        objective.after_step(Pixels(), 0.25)
        m = final - (final - 0.9) * (1 + math.cos(math.pi / 4)) / 2
        for old, new, student in zip(
            before, objective.teacher.head.parameters(), objective.projector.parameters(), strict=True
        ):
            torch.testing.assert_close(new, m * old + (1 - m) * student)
            assert not new.requires_grad


def test_signs_of_collapse():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 32, generator=generator)
    assert float(embedding_std(torch.ones(64, 8))) < 1e-6
    assert float(embedding_std(noise)) == pytest.approx(1, abs=0.02)
    # All towards one side: neither spread nor rank, though no two rows are the same.
    lopsided = torch.tensor([50.0] + [0.0] * 31) + 0.05 * noise
    assert float(embedding_std(lopsided)) < 0.01 and float(effective_rank(lopsided)) < 1.5
    assert float(effective_rank(torch.ones(64, 8))) == pytest.approx(1, abs=1e-3)
    flat = noise[:, :5] @ torch.linalg.qr(torch.randn(32, 5, generator=generator))[0].T
    assert 4.8 < float(effective_rank(flat)) <= 5.001
    values = np.linalg.svd(noise.double().numpy(), compute_uv=False)
    share = values / values.sum()
    assert float(effective_rank(noise)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert float(effective_rank(torch.zeros(4, 4))) == 1  # nothing at all: finite


def test_collapse_is_seen():
    """Two views drawn together with nothing to hold them apart: the signs fall; a contrastive loss keeps them up."""
    signs = {}
    for what in ("attraction alone", "tcl_ssl"):
        objective, _ = make("tcl_ssl", views=2)
        optimizer = torch.optim.Adam(objective.projector.parameters(), 0.01)
        for step in range(150):
            first = images(1, seed=step)
            batch = torch.cat([first, first + 0.1 * images(1, seed=1000 + step)])
            loss = objective(Pixels(), batch, torch.zeros(B))
            if what == "attraction alone":
                first, second = objective.projector(batch.flatten(1)).chunk(2)
                loss = (first - second).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        signs[what] = [float(value) for value in objective.logged().values()]
    assert signs["attraction alone"][0] < 0.2 < 0.7 < signs["tcl_ssl"][0]
    assert signs["attraction alone"][1] < 2.5 < 4 < signs["tcl_ssl"][1]


def tiny(name):
    """Two epochs of three steps; swav uses its queue and dino's prototypes move in the second."""
    plan = recipe(f"{name}_resnet20_digits")
    settings = ["projector_hidden=24", f"projector_dim={12 if name != 'wmse' else 16}", "epochs=2", "warmup_epochs=1"]
    small = SMALL | {"queue_epochs": 1, "freeze_epochs": 1, "whitening_size": 64, "local_crops": 2, "queue_size": 100}
    settings += [f"options.{key}={value}" for key, value in small.items() if key in plan.options]
    return override(plan, [*settings, f"batch_views={plan.views * 64}"])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    files = sorted(run_dir.glob("*.safetensors"))
    return {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_resume_is_bit_equal(name, digits, tmp_path, monkeypatch):
    """Queues, prototypes, centres and teachers included; the signs of collapse are logged."""
    plan = tiny(name)
    split = dataclasses.replace(digits, images=digits.images[:200], labels=digits.labels[:200])
    assert train(plan, run_dir=tmp_path / "whole", split=split, cpu=True).finished
    with monkeypatch.context() as m:
        m.setattr(train_module, "Stop", lambda _: StopAfter(2))
        assert not train(plan, run_dir=tmp_path / "run", split=split, cpu=True).finished
    torch.rand(3)  # whatever else the process draws must not matter
    assert train(plan, run_dir=tmp_path / "run", split=split, cpu=True).finished
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and len({key.partition("/")[0] for key in ours}) >= 2
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    lines = [[json.loads(x) for x in (tmp_path / run / "metrics.jsonl").open()] for run in ("run", "whole")]
    for a, b in zip(*lines, strict=True):
        assert (a["loss"], a["embedding_std"], a["effective_rank"]) == (
            b["loss"], b["embedding_std"], b["effective_rank"]
        )  # fmt: skip
        assert 0 < a["embedding_std"] < 1.5 and 1 <= a["effective_rank"] <= 24


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swav", "moco", "barlow"])
def test_what_is_learnt_shows_in_the_probe(name, monkeypatch):
    """Those that collapse most easily, as in benchmarks/ssl_digits.csv: linear probe on digits' test split.

    On one thread, as the table: another number of threads rounds otherwise, which is worth an image or two of 360.
    """
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks import ssl

    train_split, test = ssl.splits("digits", "", tune=False)
    assert (len(train_split), len(test)) == (1437, 360)
    before = ssl.random_encoder("digits", train_split, test)
    plan = ssl.plan("digits", name, 2, ssl.SETTINGS["digits"].epochs, [])
    after = ssl.measure(plan, train_split, test, threads=1)  # as the table; waiting threads would count as work
    assert after["linear"] >= before["linear"] + 10, (before, after)
    assert after["cpu_seconds"] < 300


def test_without_lightly():
    """TCL and SimCLR need nothing more; the others say in one line what to install."""
    code = """if True:
        import sys
        sys.modules["lightly"] = None
        import timm
        from tcl_zoo.objectives import create_objective
        from tcl_zoo.recipes import SELF_SUPERVISED, recipe
        encoder = timm.create_model("resnet20_cifar", num_classes=0, in_chans=1)
        for name in SELF_SUPERVISED:
            try:
                create_objective(recipe(f"{name}_resnet20_digits"), encoder, 10)
                print(name, "ok")
            except Exception as error:
                print(name, type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["tcl_ssl ok", "simclr ok"], done.stderr
    assert len(lines) == 12
    for line in lines[2:]:
        assert line.endswith("needs lightly: pip install 'tcl_zoo[ssl]'") and "TrainingError" in line

"""Gradient responses against explicit float64 loops over pairs, and their log against interrupted trainings."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file
from stop_after import StopAfter
from torch import nn

from tcl_zoo import analysis
from tcl_zoo import train as train_module
from tcl_zoo.analysis import GradientLog, gradient_responses
from tcl_zoo.errors import TrainingError
from tcl_zoo.losses import TCLLoss, tuned_contrastive_loss
from tcl_zoo.recipes import recipe
from tcl_zoo.runs import read_jsonl
from tcl_zoo.train import train

SETTINGS = [(0.1, 0.0, 1.0), (0.1, 5000.0, 1.0), (0.1, 50000.0, 3.25), (0.005, 5000.0, 1.0), (0.5, 1.0, 1.5)]


def batch(n, classes, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 16, generator=generator, dtype=torch.float64)
    rows = centres[labels] + spread * torch.randn(n, 16, generator=generator, dtype=torch.float64)
    return F.normalize(rows), labels


def oracle(z, labels, tau, k1, k2):
    """Eq. 4.6-4.9 pair by pair (eq. 3.4-3.6 at k1 = 0, k2 = 1), in Python's own floats."""
    z, labels = z.tolist(), labels.tolist()
    positives, negatives, anchors = 0.0, 0.0, 0
    for i, anchor in enumerate(z):
        s = [sum(a * b for a, b in zip(anchor, other, strict=True)) for other in z]
        p = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        n = [j for j in range(len(z)) if labels[j] != labels[i]]
        if not p:
            continue
        d = sum(math.exp(s[j] / tau) + k1 * math.exp(-s[j]) for j in p) + k2 * sum(math.exp(s[j] / tau) for j in n)
        for j in p:
            x_ip, p_ip, y_ip = 1 / len(p), math.exp(s[j] / tau) / d, tau * k1 * math.exp(-s[j]) / d
            positives += abs(x_ip - p_ip + y_ip)
        for j in n:
            negatives += k2 * math.exp(s[j] / tau) / d
        anchors += 1
    return positives / max(anchors, 1), negatives / max(anchors, 1)


@pytest.mark.parametrize(("tau", "k1", "k2"), SETTINGS)
@pytest.mark.parametrize(("n", "classes", "spread"), [(48, 6, 1.0), (64, 40, 0.3), (33, 2, 3.0)])
def test_equals_loops_over_pairs(n, classes, spread, tau, k1, k2):
    z, labels = batch(n, classes, spread=spread)
    expected = torch.tensor(oracle(z, labels, tau, k1, k2), dtype=torch.float64)
    torch.testing.assert_close(torch.stack(gradient_responses(z, labels, tau, k1, k2)), expected, rtol=1e-9, atol=0)
    single = torch.stack(gradient_responses(z.float(), labels, tau, k1, k2)).double()
    torch.testing.assert_close(single, expected, rtol=1e-3 if tau < 0.01 else 1e-5, atol=1e-7)


def test_strips_add_up(monkeypatch):
    z, labels = batch(70, 9)
    whole = gradient_responses(z, labels)
    monkeypatch.setattr(analysis, "_STRIP", 8 * 70 + 3)
    torch.testing.assert_close(gradient_responses(z, labels), whole, rtol=1e-12, atol=0)


def test_one_positive_and_one_negative_direction_give_the_length_of_the_gradient():
    """With every positive at one point and every negative at another, orthogonal, the shares do not cancel."""
    p, n, tau = 3, 5, 0.2
    anchor = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    z = torch.stack([anchor] + p * [torch.tensor([1.0, 0, 0]).double()] + n * [torch.tensor([0, 1.0, 0]).double()])
    labels = torch.tensor([0] * (p + 1) + list(range(1, n + 1)))  # the negatives have no positives themselves
    first = z[:1].clone().requires_grad_()
    losses = tuned_contrastive_loss(torch.cat([first, z[1:]]), labels, tau, 30.0, 1.5, "none")
    (gradient,) = torch.autograd.grad(losses[0], first)
    others = [oracle_of_one(z, labels, tau, 30.0, 1.5, i) for i in range(p + 1)]
    assert others[0][0] == pytest.approx(tau * abs(float(gradient[0, 0])), rel=1e-9)
    assert others[0][1] == pytest.approx(tau * float(gradient[0, 1]), rel=1e-9)
    expected = [sum(pair[k] for pair in others) / (p + 1) for k in (0, 1)]
    assert [float(v) for v in gradient_responses(z, labels, tau, 30.0, 1.5)] == pytest.approx(expected, rel=1e-9)


def oracle_of_one(z, labels, tau, k1, k2, i):
    """Both magnitudes of anchor i alone: everybody else's share of the mean taken away."""
    s = (z @ z[i]).tolist()
    p = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
    n = [j for j in range(len(z)) if labels[j] != labels[i]]
    d = sum(math.exp(s[j] / tau) + k1 * math.exp(-s[j]) for j in p) + k2 * sum(math.exp(s[j] / tau) for j in n)
    pulled = sum(abs(1 / len(p) - (math.exp(s[j] / tau) - tau * k1 * math.exp(-s[j])) / d) for j in p)
    return pulled, sum(k2 * math.exp(s[j] / tau) / d for j in n)


def test_no_positive_gives_zero_and_lone_anchors_are_left_out():
    z, _ = batch(6, 2)
    assert [float(v) for v in gradient_responses(z, torch.arange(6))] == [0.0, 0.0]
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert [float(v) for v in gradient_responses(z, labels)] == pytest.approx(oracle(z, labels, 0.1, 5000.0, 1.0))
    with pytest.raises(ValueError, match="k2"):
        gradient_responses(z, labels, k2=0.0)


def test_finite_in_half_precision_and_at_the_ends():
    z = torch.cat([torch.ones(8, 4), -torch.ones(8, 4)]) / 2
    for labels in (torch.zeros(16, dtype=torch.long), torch.arange(16) % 4):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert all(v.isfinite() for v in gradient_responses(z.to(dtype), labels, 0.005))


def _on_rank(rank, folder):
    torch.set_num_threads(1)
    where, timeout = f"file://{folder}/rendezvous", timedelta(seconds=60)
    dist.init_process_group("gloo", where, timeout=timeout, rank=rank, world_size=2)
    z, labels = batch(40, 7)
    part = slice(0, 26) if rank == 0 else slice(26, 40)
    torch.save(torch.stack(gradient_responses(z[part], labels[part], gather=True)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_see_the_whole_batch(tmp_path):
    mp.spawn(_on_rank, args=(str(tmp_path),), nprocs=2)
    expected = torch.tensor(oracle(*batch(40, 7), 0.1, 5000.0, 1.0), dtype=torch.float64)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-9, atol=0)


def test_the_log_of_a_stopped_training_is_that_of_an_undisturbed_one(short, digits, tmp_path, monkeypatch):
    train(short, run_dir=tmp_path / "plain", split=digits, cpu=True)
    train(short, run_dir=tmp_path / "whole", split=digits, cpu=True, log_gradients=2)
    real = train_module._epochs
    for steps in (2, 4):
        monkeypatch.setattr(
            train_module, "_epochs", lambda t, r, s, steps=steps: real(t, r, _stopping(s, StopAfter(steps)))
        )
        train(short, run_dir=tmp_path / "parts", split=digits, cpu=True, log_gradients=2)
    monkeypatch.setattr(train_module, "_epochs", real)
    with (tmp_path / "parts" / "gradients.jsonl").open("a") as file:  # a kill after the flush, before the checkpoint
        file.write('{"step": 10, "positives": 0, "negatives": 0}\n{"step": 12, "posi')
    assert train(short, run_dir=tmp_path / "parts", split=digits, cpu=True, log_gradients=2).finished
    whole, parts = (read_jsonl(tmp_path / name / "gradients.jsonl") for name in ("whole", "parts"))
    assert [line["step"] for line in whole] == [0, 2, 4, 6, 8, 10]
    assert whole == parts
    assert all(line["positives"] > 0 and 0 < line["negatives"] < 1 for line in whole)
    for name in ("encoder", "projector"):  # looking changes nothing
        a, b = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("plain", "whole"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def _stopping(stop, after):
    after.signals = stop.signals
    return after


def test_what_is_logged_is_what_the_loss_saw(tmp_path):
    z, labels = batch(32, 5)
    network = nn.Sequential(TCLLoss(0.2, 40.0, 2.0))
    log = GradientLog(tmp_path / "gradients.jsonl", network, 3)
    for step in range(4):
        network[0](z if step == 3 else z.flip(0), labels)
        log.log(step)
    log.flush()
    lines = read_jsonl(tmp_path / "gradients.jsonl")
    assert [line["step"] for line in lines] == [0, 3]
    assert [lines[1]["positives"], lines[1]["negatives"]] == pytest.approx(oracle(z, labels, 0.2, 40.0, 2.0))


def test_refusals(digits, tmp_path):
    plain = dataclasses.replace(recipe("ce_resnet20_digits"), epochs=1)
    with pytest.raises(TrainingError, match="tcl and supcon"):
        train(plain, run_dir=tmp_path / "run", split=digits, cpu=True, log_gradients=5)
    with pytest.raises(TrainingError, match="at least 1"):
        train(recipe("tcl_resnet20_digits"), run_dir=tmp_path / "run", split=digits, cpu=True, log_gradients=-5)
    assert not (tmp_path / "run").exists()


def test_costs_a_few_times_the_loss():
    """Which is a small share of a step, and this is called every n-th one only: benchmarks/analysis.csv has it."""
    z = F.normalize(torch.randn(256, 128))
    labels = torch.arange(256) % 100

    def seconds(run):
        run()
        times = []
        for _ in range(20):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return min(times)

    def step():
        x = z.clone().requires_grad_()
        tuned_contrastive_loss(x, labels).backward()

    assert seconds(lambda: gradient_responses(z, labels)) < 6 * seconds(step)


def test_the_training_command_logs_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "scripts"))
    spec = importlib.util.spec_from_file_location("train_script", Path(sys.path[0]) / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = ["supcon_resnet20_digits", "--set", "epochs=1", "--protocol", "none", "--cpu", "--log-gradients", "5"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "--run-dir", str(tmp_path / "run")])
    assert script.main() == 0, capsys.readouterr()
    lines = read_jsonl(tmp_path / "run" / "gradients.jsonl")
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20]
    # SupCon: the shares of one anchor add up to 1, and on this data no positive is pushed away at the start.
    assert lines[0]["positives"] == pytest.approx(lines[0]["negatives"], rel=1e-3)

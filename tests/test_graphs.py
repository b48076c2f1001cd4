"""CUDA graphs and torch.compile change how a step is run, not what it computes."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from stop_after import StopAfter

from tcl_zoo import train as train_module
from tcl_zoo.analysis import GradientLog
from tcl_zoo.augment import POLICIES, Augment
from tcl_zoo.datasets import load
from tcl_zoo.errors import TrainingError
from tcl_zoo.graphs import GraphedBackward
from tcl_zoo.recipes import recipe
from tcl_zoo.runs import read_jsonl
from tcl_zoo.sessions import create_accelerator
from tcl_zoo.train import train
from tcl_zoo.trainer import Trainer

TINY = dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=1, batch_views=64)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trainer(cpu: bool, name: str = TINY.name, precision: str = "fp32", **settings: bool) -> Trainer:
    base = dataclasses.replace(recipe(name), epochs=1, batch_views=64)
    made = Trainer(base, load("digits", None, "train"), create_accelerator(precision, cpu, None, Path()), **settings)
    made.network.train()
    return made


def weights_after(made: Trainer, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    losses = [made.step(views, labels) for (views, labels), _ in zip(made.batches.epoch(0), range(steps), strict=False)]
    state = made.network.state_dict()
    flat = torch.cat([value.double().flatten().cpu() for key, value in sorted(state.items())])
    return torch.stack(losses).double().cpu(), flat


def test_a_cpu_has_no_graphs() -> None:
    assert not trainer(cpu=True)._graphs


@pytest.fixture
def broken_capture(monkeypatch) -> None:
    """Streams that do nothing, and a capture that refuses an operation and then ends in an error of its own."""

    @contextmanager
    def capture(*args: object, **kwargs: object) -> Iterator[None]:
        try:
            yield
            raise RuntimeError("an operation that waits\nand more")
        finally:
            raise RuntimeError("failed due to a previous error during capture")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    fakes |= {"set_stream": lambda _: None, "CUDAGraph": object, "graph": capture}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_what_cannot_be_captured_goes_on_without_and_says_why(broken_capture, capsys) -> None:
    made, eager = trainer(cpu=True), trainer(cpu=True)
    made._graphs = True
    assert torch.equal(weights_after(made, 2)[1], weights_after(eager, 2)[1])
    assert capsys.readouterr().out == "without CUDA graphs: an operation that waits and more\n"


def test_an_error_of_the_step_itself_is_not_taken_for_the_captures(broken_capture, monkeypatch, capsys) -> None:
    made = trainer(cpu=True)
    made._graphs = True
    monkeypatch.setattr(made.network, "forward", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        weights_after(made, 1)
    assert capsys.readouterr().out == ""


@needs_gpu
@pytest.mark.parametrize("objective", ["tcl", "supcon", "ce", "tcl_ssl", "simclr"])
def test_replayed_steps_are_the_eager_steps(objective: str) -> None:
    name = f"{objective}_resnet20_digits"
    graphed, eager = trainer(False, name), trainer(False, name, graphs=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same kernels for both
        ours, theirs = weights_after(graphed, 5), weights_after(eager, 5)
    assert graphed._graphed is not None and eager._graphed is None
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", ["tcl_resnet20_digits", "ce_resnet20_digits"])
def test_replayed_steps_of_a_gpus_own_precision(name: str) -> None:
    """bf16 under autocast, whose weight cache must not outlive the capture: a replay would train on old weights."""
    graphed, eager = trainer(False, name, "bf16"), trainer(False, name, "bf16", graphs=False)
    ours, theirs = weights_after(graphed, 8), weights_after(eager, 8)
    assert graphed._graphed is not None and eager._graphed is None
    torch.testing.assert_close(ours[0], theirs[0], rtol=0.05, atol=0.05)
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) < 0.05


@needs_gpu
@pytest.mark.parametrize("name", POLICIES)
def test_views_are_those_of_the_cpu(name: str) -> None:
    augment = Augment(name)
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    params = augment.sample(512, torch.Generator().manual_seed(1))
    here, there = augment.apply(images, params).int(), augment.apply(images.cuda(), params).cpu().int()
    assert float(((here - there).abs() > 1).float().mean()) < 1e-3  # a rounding may fall the other way


@needs_gpu
@pytest.mark.parametrize("compile", [False, True], ids=["graphs", "compiled"])
def test_a_gpus_run_goes_on_where_it_stopped(short, digits, tmp_path, monkeypatch, compile: bool) -> None:
    def trained(folder: Path, *stops: int) -> torch.Tensor:
        for steps in stops:
            with monkeypatch.context() as m:
                m.setattr(train_module, "Stop", lambda _, steps=steps: StopAfter(steps))
                assert not train(short, run_dir=folder, split=digits, precision="fp32", compile=compile).finished
        assert train(short, run_dir=folder, split=digits, precision="fp32", compile=compile).finished
        weights = load_file(folder / "encoder.safetensors")
        return torch.cat([value.flatten().double() for _, value in sorted(weights.items())])

    whole, resumed = trained(tmp_path / "whole"), trained(tmp_path / "resumed", 3, 6)
    assert float((whole - resumed).norm() / whole.norm()) < 1e-3  # a GPU's sums have no fixed order


@needs_gpu
def test_gradients_are_logged_from_replays(tmp_path) -> None:
    lines = []
    for graphs in (True, False):
        made = trainer(False, graphs=graphs)
        made.gradients = GradientLog(tmp_path / f"{graphs}.jsonl", made.network, 2)
        weights_after(made, 5)
        made.gradients.flush()
        lines.append(read_jsonl(made.gradients.file))
        assert (made._graphed is not None) == graphs
    assert [line["step"] for line in lines[0]] == [0, 2, 4]
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)


@needs_gpu
def test_warming_up_leaves_no_trace_in_the_statistics() -> None:
    made = trainer(False)
    views, labels = next(made.batches.epoch(0))
    before = {key: value.clone() for key, value in made.network.state_dict().items()}
    GraphedBackward(made.backward, made.network, views, labels)
    assert all(torch.equal(before[key], value) for key, value in made.network.state_dict().items())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_the_eager_steps(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled, eager = trainer(True, compile=True), trainer(True)
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
    ours, theirs = weights_after(compiled, 3), weights_after(eager, 3)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-3)


def test_a_run_goes_on_as_it_began(tmp_path) -> None:
    train(TINY, run_dir=tmp_path / "run", time_limit=0, cpu=True)
    with pytest.raises(TrainingError, match=r"compile \(not set there, True now\)"):
        train(TINY, run_dir=tmp_path / "run", time_limit=0, cpu=True, compile=True)

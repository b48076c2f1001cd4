"""The commands: output, exit codes, one-line errors, and that the light ones load no torch."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import tcl_zoo
from tcl_zoo import cli
from tcl_zoo.datasets import load

ROOT = Path(__file__).resolve().parent.parent
NAME = "tcl_resnet20_digits.e1"


def run(capsys, *args: str) -> tuple[int, str, str]:
    try:
        code = cli.main(args)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def script(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("args", [["list"], ["list", "tcl_*cifar100*"], ["info", "tcl_resnet50_cifar100"], ["--help"]])
def test_light_commands_load_no_torch(args):
    code = (
        "import sys\nfrom tcl_zoo.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "sys.exit(9 if {'torch', 'timm', 'numpy'} & set(sys.modules) else 0)"
    )
    assert script("-c", code, *args).returncode == 0


def test_the_package_itself_is_the_command():
    assert script("-m", "tcl_zoo", "list", "tcl_resnet20_digits").stdout.split()[4] == "tcl_resnet20_digits"


def test_list(capsys):
    code, out, _ = run(capsys, "list", "tcl_*cifar100*")
    lines = out.splitlines()
    assert code == 0 and all(len(line) <= 80 for line in lines)
    (flagship,) = [line for line in lines if line.split()[0] == "tcl_resnet50_cifar100"]
    assert "79.80" in flagship
    assert all(line.startswith("tcl_") for line in lines[1:])
    assert run(capsys, "list", "nothing*")[0] == 2
    assert "tcl_resnet20_digits" in run(capsys, "list", "--pretrained")[1]


def test_info_without_test_images(capsys, monkeypatch):
    from tcl_zoo import models

    told = models.model_info("tcl_resnet20_digits")
    monkeypatch.setattr(models, "model_info", lambda *_: told | {"results": told["results"] | {"top1": None}})
    code, out, _ = run(capsys, "info", "tcl_resnet20_digits")
    assert code == 0 and "not measured" in out


def test_demo_spares_what_is_not_its_own(capsys, tmp_path):
    mine = tmp_path / "tcl_resnet20_digits" / "recipe.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    for _ in range(2):
        code, _, err = run(capsys, "demo", "--out", str(tmp_path))
        assert code == 2 and "choose another --out" in err and mine.exists()
        mine = mine.parent.rename(tmp_path / "supcon_resnet20_digits") / "recipe.json"


def test_demo_that_is_stopped(capsys, tmp_path, monkeypatch):
    import tcl_zoo.demo
    from tcl_zoo.train import TrainResult

    monkeypatch.setattr(tcl_zoo.demo, "train", lambda *_, **__: TrainResult(False, 1, tmp_path, 0.0, 0.0))
    assert run(capsys, "demo", "--out", str(tmp_path))[0] == 3


def test_info(capsys):
    code, out, _ = run(capsys, "info", "tcl_resnet50_cifar100")
    assert code == 0 and "79.8 % (Table 5.1)" in out and "scripts/train.py tcl_resnet50_cifar100" in out
    code, bundled, _ = run(capsys, "info", "tcl_resnet20_digits")
    assert code == 0 and "our top-1" in bundled
    lines = [line for line in (out + bundled).splitlines() if "weights  " not in line]  # a path may be long
    assert all(len(line) <= 80 for line in lines)


def test_verify(capsys, released, tmp_path):
    code, out, _ = run(capsys, "verify", NAME, "--weights-dir", str(released), "--per-class", "--device", "cpu",
                       "--confusion", str(tmp_path / "c.png"))  # fmt: skip
    assert code == 0 and "OK: the card holds" in out
    assert (tmp_path / "c.png").stat().st_size > 10_000
    config = json.loads((released / NAME / "config.json").read_text())
    assert f"{config['tcl_zoo']['results']['top1']:6.2f}" in out


def test_verify_fails_with_exit_code_1(capsys, released, tmp_path):
    shutil.copytree(released / NAME, tmp_path / NAME)
    path = tmp_path / NAME / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["results"]["top1"] += 5
    path.write_text(json.dumps(config))
    code, out, _ = run(capsys, "verify", NAME, "--weights-dir", str(tmp_path), "--device", "cpu")
    assert code == 1 and "FAILED" in out


def test_verify_compares_nothing_on_other_images(capsys, released, tmp_path):
    shutil.copytree(released / NAME, tmp_path / NAME)
    path = tmp_path / NAME / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["fingerprints"]["test"] = "0" * 64
    path.write_text(json.dumps(config))
    code, out, _ = run(capsys, "verify", NAME, "--weights-dir", str(tmp_path), "--device", "cpu")
    assert code == 2 and "NOT COMPARED" in out and "OK" not in out


def test_verify_compares_names_on_the_same_images(capsys, released):
    """Digits' two released trainings, counted from images that its documented transform made."""
    first, second = "tcl_resnet20_digits", "supcon_resnet20_digits"
    code, out, _ = run(capsys, "verify", first, second, "--device", "cpu")
    assert code == 0 and out.count("OK: the card holds") == 2
    digits = load("digits", split="test")
    right = []
    for name in (first, second):
        transform, model = tcl_zoo.create_transform(name), tcl_zoo.create_model(name, pretrained=True).eval()
        images = torch.stack([transform(Image.fromarray(image.numpy())) for image in digits.images.squeeze()])
        right.append(model(images).argmax(1) == digits.labels)
    alone = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert f"{first} - {second}\n  {100 * (alone[0] - alone[1]) / 362:+.2f} ± " in out
    assert f"of which {alone[0]} by the first alone and {alone[1]} by the second alone are right" in out
    assert all(len(line) <= 80 for line in out.splitlines())

    code, out, err = run(capsys, "verify", "nothing_like_it", first, first, "--device", "cpu")
    assert code == 2 and out.count("OK: the card holds") == 1 and " - " not in out and "unknown model name" in err
    code, _, err = run(capsys, "verify", first, second, "--revision", "main")
    assert code == 2 and "are for one name" in err


def test_verify_of_several_names_fails_with_the_worst(capsys, released, tmp_path):
    """A damaged release, then one that holds: both are told of, none is compared with what was not measured."""
    shutil.copytree(released / NAME, tmp_path / "a" / NAME)
    weights = tmp_path / "a" / NAME / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    code, out, err = run(capsys, "verify", str(tmp_path / "a" / NAME), str(released / NAME), "--device", "cpu")
    assert code == 1 and "sha256" in err and "OK: the card holds" in out and " - " not in out


@pytest.mark.parametrize("args", [["predict", "~no-one/x", "a.png"], ["finetune", NAME, "--data-dir", "~no-one/x"]])
def test_a_home_that_is_not_there(capsys, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    code, _, err = run(capsys, *args)
    assert code == 2 and "is no path" in err and err.count("\n") == 1


def test_probe(capsys, released):
    code, out, _ = run(capsys, "probe", NAME, "--weights-dir", str(released), "--knn", "5", "--device", "cpu")
    assert code == 0 and "linear, cached" in out and "knn5" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "tcl_resnet5_cifar10"], "did you mean"),
        (["verify", "tcl_resnet50_cifar100"], "has no released weights"),
        (["verify", NAME, "--weights-dir", "/nowhere"], "no release of"),
        (["probe", "tcl_resnet99_digits"], "unknown model name"),
        (["probe", "resnet18", "--random"], "--dataset is needed"),
        (["probe", "tcl_resnet20_digits", "--shots", "0"], "neither a number of images nor all"),
        (["probe", NAME, "--csv", "/nowhere/a.csv"], "'/nowhere/a.csv' cannot be written"),
        (["probe", NAME, "--picture", "a.xyz"], "'a.xyz' does not end in .png"),
        (["probe", NAME, "--picture", "/tmp"], "'/tmp' does not end in .png"),
        (["probe", NAME, "--csv", "/tmp"], "'/tmp' is a folder"),
        (["probe", NAME, "--C", "1e-300"], "'1e-300' is not a number above 0 (1e-9 to 1e9)"),
        (["verify", NAME, "--confusion", "a.xyz"], "'a.xyz' does not end in .png"),
        (["embed", NAME, "a.png", "--out", "a.npz", "--picture", "a.jpg"], "'a.jpg' does not end in .png"),
        (["finetune", NAME, "--data-dir", "photos", "--workers", "-3"], "'-3' is not an integer from 0 on"),
        (["probe", NAME, "resnet18", "--dataset", "digits", "--protocol", "thesis"], "leave it out"),
        (["probe", "tcl_resnet20_digits", "--protocol", "thesis", "--seeds", "3"], "leave it out"),
        (["probe", "tcl_resnet20_digits", "--protocol", "thesis", "--csv", "a.csv"], "leave it out"),
        (["probe", "tcl_resnet20_digits", "--size", "-1"], "is not a number of pixels from 1 to 2048"),
        (["probe", "tcl_resnet20_digits", "--test-images", "-1"], "is not an integer from 1 on"),
        (["probe", "resnet20_cifar", "--dataset", "digits", "--weights-dir", "/nowhere"], "brings its own weights"),
        (
            ["probe", "resnet20_cifar", "--dataset", "digits", "--shots", "1", "--weights-dir", "/nowhere"],
            "brings its own weights",
        ),
        (
            ["finetune", "resnet20_cifar", "--dataset", "digits", "--weights-dir", "/nowhere", "--out", "/nowhere/run"],
            "brings its own weights",
        ),
        (["predict", "tcl_resnet20_digits", "x.png", "--device", "banana"], "'banana' is no device"),
        (["predict", "tcl_resnet20_digits", "x.png", "--device", "meta"], "'meta' cannot be used here"),
        (["predict", "tcl_resnet20_digits", "x.png", "--device", "cuda:99"], "'cuda:99' cannot be used here"),
        (["embed", "tcl_resnet20_digits", "x.png", "--out", "x.npz", "--device", "banana"], "is no device"),
        (["embed"], "required: name, IMAGES, --out"),
        (["predict", "--", "tcl_resnet20_digits", "-a.png"], "-a.png is not there"),
        (["embed", "--out", "a.npz", "--", "tcl_resnet20_digits", "-a.png"], "-a.png is not there"),
        (["embed", NAME, "--out", "a.npz", "b.png", "--frob"], "unrecognized arguments: --frob"),
        (
            ["verify", NAME, "--perclass"],
            "unrecognized arguments: --perclass; did you mean --per-class? (see",
        ),
        (
            ["probe", NAME, "--dataset", "cifr10", "mnist"],
            "cifr10 is neither a folder nor a known data set; did you",
        ),
        (["info", "TCL_resnet20_digits"], "did you mean tcl_resnet20_digits?"),
        (["info", "resnet18"], "_resnet18_"),
        (["predict", NAME, "a.png", "--device", "gpu"], "'gpu' is no device; cpu, cuda, cuda:1, mps ... are"),
        (["embed", "tcl_resnet20_digits", "tests", "--out", "/proc/a.npz"], "/proc/a.npz.part: No such file or dir"),
        (["verify", "tcl_resnet20_digits", "tcl_resnet20_digits.e1"], "no released weights"),
        (["finetune", "tcl_resnet20_digits", "--epochs", "0"], "'0' is not an integer from 1 on"),
        (["finetune", "tcl_resnet20_digits", "--lr", "0"], "'0' is not a number above 0"),
        (["finetune", "tcl_resnet20_digits", "--size", "0"], "is not a number of pixels"),
        (["finetune", "tcl_resnet20_digits", "--freeze", "some"], "neither a number of epochs nor all"),
        (["finetune", "tcl_resnet20_digits"], "pass --data-dir FOLDER, or --dataset"),
        (["frobnicate"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_use(capsys, args, message):
    code, _, err = run(capsys, *args)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("option", "images"), [(["--seeds", "1"], 360), (["--test-images", "100"], 100)])
def test_probe_of_one_model_compares_where_it_is_asked_to(capsys, released, monkeypatch, option, images):
    """What only a comparison knows is not dropped: draws of few images, or fewer test images."""
    monkeypatch.setattr("tcl_zoo.transfer.SHOTS", (1, 0))
    code, out, _ = run(capsys, "probe", NAME, "--weights-dir", str(released), "--device", "cpu", *option)
    assert code == 0 and f"of {images} test images by training images per class" in out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_anywhere_is_one_line(capsys, error):
    def fail():
        raise error

    assert cli.guarded(fail) == 2
    assert capsys.readouterr().err.startswith("error: out of memory")


@pytest.mark.parametrize("path", sorted(p.name for p in (ROOT / "scripts").glob("*.py")))
def test_scripts_have_help_with_an_example(path):
    done = script(f"scripts/{path}", "--help")
    assert done.returncode == 0 and "example:" in done.stdout


@pytest.mark.parametrize("command", ["list", "info", "verify", "probe", "predict", "embed", "finetune", "demo"])
def test_commands_have_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and "example:" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tcl_resnet20_digit"], "did you mean tcl_resnet20_digits"),
        (["tcl_resnet20_digits", "--set", "epoch=3"], "did you mean epochs"),
        (["tcl_resnet20_digits", "--set", "k1=-3"], "k1 must be finite and at least 0"),
        (["tcl_resnet20_digits", "--workers", "-1"], "is not an integer from 0 on"),
        (["tcl_resnet20_digits", "--log-gradients", "-5"], "is not an integer from 1 on"),
        (["byol_resnet20_digits", "--set", "views=3"], "compares two views"),
        (["tcl_resnet20_digits", "--time-limit", "soon"], "is not a time"),
        (["tcl_resnet20_cifar10", "--data-dir", "/nowhere"], "cifar10 not found under /nowhere"),
        (["tcl_resnet20_digits", "--gradient-accumulation-steps", "2"], "is for ce only"),
    ],
)
def test_train_script_refuses(tmp_path, args, message):
    done = script("scripts/train.py", *args, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_stopped_in_the_probe(tmp_path, monkeypatch, capsys):
    """A scheduler's signal after the training: as in it, 3 and the same command goes on."""

    def killed(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("tcl_zoo.evaluate.evaluate_run", killed)
    args = ["train.py", "tcl_resnet20_digits", "--set", "epochs=1", "--cpu", "--run-dir", str(tmp_path / "r")]
    monkeypatch.setattr(sys, "argv", args)
    try:
        assert runpy.run_path(str(ROOT / "scripts/train.py"))["main"]() == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "the same command begins it again" in capsys.readouterr().out


def test_train_script_stops_and_goes_on(tmp_path):
    args = ("scripts/train.py", "tcl_resnet20_digits", "--set", "epochs=1", "--cpu", "--run-dir", str(tmp_path / "r"))
    first = script(*args, "--time-limit", "0.1s")
    assert first.returncode == 3 and "the same command goes on" in first.stdout
    second = script(*args)
    assert second.returncode == 0 and "top-1" in second.stdout
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["n"] == 360 and set(results["knn"]) == {"knn20", "knn200"}


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("2h", 7200), ("0.5s", 0.5)]
)
def test_times(text, expected):
    assert cli.seconds(text) == expected


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--device", "banana"], "'banana' is no device"),
        (["--knn", "0"], "'0' is not an integer from 1 on"),
        (["--knn", "-5"], ""),
        (["--C", "nan"], "'nan' is not a number above 0"),
        (["--C", "-1"], ""),
    ],
)
def test_values_out_of_range_are_wrong_use(capsys, option, said):
    with pytest.raises(SystemExit) as caught:
        cli.main(["probe", "tcl_resnet20_digits", *option])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1

"""Wheel and sdist: built, checked, their contents listed, and at work outside the checkout without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow
# What a user does with an installed package; a socket is refused, and so are names only the checkout could have.
USE = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("a connection was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import PIL.Image, timm, tcl_zoo
from tcl_zoo.verify import verify
from tcl_zoo.weights import locate
assert tcl_zoo.__file__.startswith(sys.argv[1]), tcl_zoo.__file__
names = tcl_zoo.list_models("*_digits", pretrained=True)
assert len(names) >= 3
for name in names:
    assert str(locate(name).folder).startswith(sys.argv[1])
    model = tcl_zoo.create_model(name, pretrained=True).eval()
    image = tcl_zoo.create_transform(name)(PIL.Image.new("RGB", (9, 9)))
    assert model(image[None]).shape == (1, 10)
    assert verify(name, device="cpu").ok
assert timm.create_model("resnet20_cifar.tcl_digits", pretrained=True)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Built from a copy, so that nothing of this folder but what git knows gets in."""
    pytest.importorskip("build", reason="pip install build twine")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    # What a checkout has beside: none of it may travel.
    for name in ("runs/mine/encoder.safetensors", "data/cifar10.npz", "tcl_zoo/__pycache__/x.pyc", ".venv/x"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"secret")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", out], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def test_twine_is_content(built):
    pytest.importorskip("twine", reason="pip install twine")
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout


def test_contents(built):
    wheel, sdist = built
    inside = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {p.parts[0].split("-")[0] for p in inside} == {"tcl_zoo"}
    ours = {
        str(p.relative_to(ROOT)) for p in (ROOT / "tcl_zoo").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    small = {f"tcl_zoo/{folder.relative_to(ROOT)}" for folder in (ROOT / "model_cards").glob("*_resnet20_*")}
    rest = {str(p) for p in inside if not p.parts[0].endswith(".dist-info")} - ours
    assert ours <= {str(p) for p in inside}
    assert {str(PurePosixPath(name).parent) for name in rest} == small
    assert {f"{folder}/{file}" for folder in small for file in ("config.json", "model.safetensors")} <= rest
    assert wheel.stat().st_size < 1_500_000 * (1 + len(small))
    with tarfile.open(sdist) as archive:
        members = [PurePosixPath(*PurePosixPath(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()]
    tops = {p.parts[0] for p in members}
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert set(listed) <= tops <= {*listed, "PKG-INFO", "pyproject.toml", ".gitignore"}
    assert not {"runs", "data", ".ci"} & tops
    for names in (inside, members):
        assert not [p for p in names if p.suffix in (".pyc", ".npz", ".pkl", ".bin", ".pt") or "runs" in p.parts]


def test_dependencies_are_few_and_bounded():
    tomllib = pytest.importorskip("tomllib")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(needed) <= 10
    assert all(">=" in requirement for requirement in needed)


def test_installed_wheel_without_a_network(built, tmp_path):
    """In a new environment that borrows the dependencies alone; in a namespace without a network where there may be."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", built[0]]
    subprocess.run(install, check=True, env=env)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    links = [p for folder in borrowed for p in Path(folder).iterdir()]
    for path in links:  # all but this project's own, editable installation
        if "tcl_zoo" not in path.name and not (site / path.name).exists() and not path.name.endswith(".pth"):
            (site / path.name).symlink_to(path)
    alone = ["unshare", "-rn"] if not subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode else []
    for command in ([python, "-c", USE, str(site)], [tmp_path / "venv/bin/tcl-zoo", "verify", "tcl_resnet20_digits"]):
        done = subprocess.run([*alone, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    print(f"offline {'in a namespace without a network' if alone else 'with sockets refused'}")

"""What is released: the index, the cards and the package say the same, and every digits model is what its card says."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tcl_zoo
from tcl_zoo import index
from tcl_zoo.cards import side_by_side
from tcl_zoo.recipes import from_dict, recipe
from tcl_zoo.verify import verify
from tcl_zoo.weights import read_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "model_cards"
RELEASED = sorted(index.entries())
BUNDLED_BELOW = 2_000_000  # bytes of weights that travel in the wheel


def test_index_and_cards_name_the_same():
    assert {p.parent.name for p in CARDS.glob("*/config.json")} == set(RELEASED)
    assert {"tcl_resnet20_digits", "supcon_resnet20_digits", "ce_resnet20_digits"} <= set(RELEASED)
    table = (CARDS / "README.md").read_text()
    assert all(f"[{name}]({name}/README.md)" in table for name in RELEASED)


@pytest.mark.parametrize("name", RELEASED)
def test_release_matches_the_index(name):
    entry, config = index.entries()[name], read_config(CARDS / name)
    data = (CARDS / name / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"] == config["tcl_zoo"]["sha256"]
    assert len(data) == entry["bytes"]
    assert entry["results"] == config["tcl_zoo"]["results"]
    assert dataclasses.replace(from_dict(config["tcl_zoo"]["recipe"]), seed=0) == recipe(name)
    assert entry["results"]["last_epoch"] == recipe(name).epochs
    assert f"{entry['results']['top1']:.2f}" in (CARDS / name / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in RELEASED if name.endswith("_digits")])
def test_digits_verify_and_pass_their_floor(name):
    checked = verify(name, device="cpu")
    assert checked.ok and checked.same_data
    assert checked.measured >= (95 if recipe(name).self_supervised else 97.5)  # a random encoder has 85.6


def test_readme_shows_what_the_cards_say():
    lines = side_by_side({name: read_config(CARDS / name) for name in RELEASED}, "model_cards/")
    assert "\n".join(["", *lines, ""]) in (ROOT / "README.md").read_text(), "\n".join(["should be:", *lines])
    assert sum(line.count("](model_cards/") for line in lines) == len(RELEASED)


def test_total_size():
    assert sum(p.stat().st_size for p in CARDS.rglob("*") if p.is_file()) <= 250_000_000


@pytest.mark.skipif(tomllib is None, reason="tomllib needs Python 3.11")
def test_small_releases_travel_in_the_wheel():
    with (ROOT / "pyproject.toml").open("rb") as file:
        included = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    small = [name for name in RELEASED if index.entries()[name]["bytes"] < BUNDLED_BELOW]
    assert included == {f"model_cards/{name}": f"tcl_zoo/model_cards/{name}" for name in small}


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("photo.png")
    fine_tuned = Path("runs/photos/release")  # what the command above that block leaves
    shutil.copytree(CARDS / "tcl_resnet20_digits", fine_tuned)
    config = json.loads((fine_tuned / "config.json").read_text())
    config["tcl_zoo"]["name"] = "photos"
    (fine_tuned / "config.json").write_text(json.dumps(config))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 3
    import torch

    scope = {"views": torch.rand(8, 3, 32, 32), "labels": torch.arange(4) // 2, "projector": torch.nn.Linear(64, 4)}
    for block in blocks:
        exec(block, scope)
    image = scope["transform"](Image.new("RGB", (8, 8)))
    assert scope["model"](image[None]).shape == (1, 10)
    assert scope["encoder"](image[None]).shape == (1, 64)
    assert scope["embeddings"].shape == (8, 4) and scope["loss"].isfinite()


def test_what_the_readme_names_is_there_after_a_plain_import():
    """Every ``tcl_zoo.room.thing`` of the README; in a fresh process, as other tests have imported the rooms."""
    text = (ROOT / "README.md").read_text()
    named = sorted(set(re.findall(r"tcl_zoo(?:\.[a-z]\w*)+", re.sub(r"\S*/\S*|tcl_zoo\.cli finetune", "", text))))
    assert "tcl_zoo.finetune.finetune" in named and "tcl_zoo.create_model" in named
    code = f"import tcl_zoo\nfor name in {named}:\n    eval(name)\nassert not hasattr(tcl_zoo, 'nothing')\n"
    code += "assert tcl_zoo.losses.TCLLoss and 'embed' in dir(tcl_zoo) and tcl_zoo.embed.search"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_module_has_its_floor_and_imports_point_downward():
    """The floors of CONTRIBUTING.md against the imports at the top of each file; within a function any will do."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    text = text[text.index("Imports point downward only:") : text.index("on top.")]
    floors = {name: n for n, part in enumerate(text.split(";")) for name in re.findall(r"`(\w+)`", part)}
    files = [p for p in (ROOT / "tcl_zoo").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    modules = {p.stem: p for p in files if p.name[0] != "_"}
    assert set(floors) == set(modules)
    for name, path in modules.items():
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            dots = len(file.relative_to(ROOT / "tcl_zoo").parts)
            for statement in ast.parse(file.read_text()).body:
                if isinstance(statement, ast.ImportFrom) and statement.level == dots:
                    others = [statement.module.split(".")[0]] if statement.module else [a.name for a in statement.names]
                    above = [other for other in others if floors.get(other, 0) > floors[name]]
                    assert not above, f"{file.name} imports {above}, above it"


def test_version_is_in_the_changelog():
    assert f"## {tcl_zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_index_is_sorted_json():
    text = index.INDEX_FILE.read_text()
    assert list(json.loads(text)) == RELEASED

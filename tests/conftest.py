"""Shared fixtures: small splits, one trained and released model for all tests that need one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

# Tests share two cores with whatever else runs; waiting threads must not spin. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hub_client import _server, client, hub, published, zoo  # noqa: F401 (fixtures)

from tcl_zoo.datasets import Split, load
from tcl_zoo.recipes import Recipe, recipe


@pytest.fixture(scope="session")
def digits() -> Split:
    """256 training digits."""
    full = load("digits")
    return Split(full.images[:256], full.labels[:256], full.classes)


@pytest.fixture(scope="session")
def short() -> Recipe:
    """Three epochs of four steps on :func:`digits`."""
    return dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=3)


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of releases with ``tcl_resnet20_digits.e1``, trained for one epoch on all digits."""
    from tcl_zoo.evaluate import evaluate_run
    from tcl_zoo.release import release
    from tcl_zoo.train import train

    root = tmp_path_factory.mktemp("zoo")
    train(recipe("tcl_resnet20_digits.e1"), run_dir=root / "run", cpu=True)
    evaluate_run(root / "run", device="cpu")
    release(root / "run", root / "cards", device="cpu")
    return root / "cards"

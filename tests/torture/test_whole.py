"""A whole training on digits by four processes ends where that of one does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_processes import launch, lines, run

pytestmark = pytest.mark.slow


def test_four_processes_end_within_half_a_point(tmp_path):
    top1 = {}
    for ranks in (4, 1):
        done = run(launch(ranks, tmp_path / str(ranks), epochs=60), timeout=7200)
        assert done.returncode == 0, done.stderr[-2000:]
        results = json.loads((tmp_path / str(ranks) / "results.json").read_text())
        assert results["n"] == 360 and len(lines(tmp_path / str(ranks))) == 60
        top1[ranks] = results["top1"]
    print(f"top-1 by number of processes: {top1}")
    assert abs(top1[4] - top1[1]) <= 0.5 + 1e-9

"""Benchmarks' turns."""

from collections import Counter
from functools import partial
from itertools import pairwise

import pytest

from benchmarks.timing import alternate


@pytest.mark.parametrize(("contestants", "rounds"), [(2, 2), (3, 6), (5, 10), (6, 6)])
def test_everyone_follows_everyone_else_equally_often(contestants, rounds):
    log: list[int] = []
    seconds = alternate({str(i): partial(log.append, i) for i in range(contestants)}, rounds, warm_up=1)
    assert all(len(values) == rounds for values in seconds.values())
    turns = [log[at : at + contestants] for at in range(contestants, len(log), contestants)]  # without the warm-up
    follows = Counter(pair for turn in turns for pair in pairwise(turn))
    assert len(follows) == contestants * (contestants - 1) and len(set(follows.values())) == 1

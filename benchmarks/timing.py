"""Side-by-side timing: the contestants take turns in one run, so that a busy machine slows all of them alike.

Whoever follows one that gave much memory back pays for part of that: over the rounds everyone follows everyone else
equally often.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def alternate(contestants: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Wall seconds of each contestant in every round.

    The orders of the rounds are a Williams design: within twice as many rounds as contestants (as many, where these
    are even) each comes after each other one equally often.

    Args:
        contestants: name to what is timed.
        rounds: how often each takes its turn.
        warm_up: turns that are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(len(names))]  # 0, 1, -1, 2, -2, ...
    for turn in range(-warm_up, rounds):
        order = [names[(place + turn) % len(names)] for place in zigzag]
        for name in order if turn // len(names) % 2 == 0 else reversed(order):
            started = time.perf_counter()
            contestants[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Name to median seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], of: str, over: str) -> float:
    """Median over the rounds of ``of`` / ``over`` in the same round: what a slow moment does to both cancels."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[over], strict=True))


def write_csv(name: str, rows: list[dict[str, Any]]) -> None:
    """``benchmarks/<name>.csv``."""
    with (HERE / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def by_name(rows: list[dict[str, Any]], x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """Rows of a CSV as one line (x values, y values) for each ``name``."""
    return {
        name: ([row[x] for row in rows if row["name"] == name], [row[y] for row in rows if row["name"] == name])
        for name in dict.fromkeys(row["name"] for row in rows)
    }


def curves(
    name: str,
    lines: Mapping[str, tuple[list[float], list[float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    highlight: str = "tcl_zoo",
    log: bool = True,
) -> None:
    """``benchmarks/<name>.png``: one line each, both axes logarithmic or both from 0."""
    from tcl_zoo.pictures import new_figure

    colours = ["#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#E69F00"]
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for (label, (x, y)), colour in zip(lines.items(), _cycle(lines, highlight, colours), strict=True):
        axes.plot(x, y, marker="o", label=label, color=colour, linewidth=3 if label == highlight else 1.8)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        axes.set(xscale="log", yscale="log")
        ticks = sorted({value for x, _ in lines.values() for value in x})
        axes.set_xticks(ticks, [f"{value:,g}" for value in ticks])
        axes.set_xticks([], minor=True)
    else:
        axes.set(xlim=0, ylim=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(HERE / f"{name}.png")


def _cycle(lines: Mapping[str, Any], highlight: str, colours: list[str]) -> list[str]:
    rest = iter(colours)
    return ["#0072B2" if label == highlight else next(rest) for label in lines]

"""The pictures of the thesis's figures: PNG of 960 px, legible at 800, colour-blind-safe, scaled ones say so."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from ..pictures import MARKERS, new_figure
from .grids import SUPCON, TCL
from .markdown import scale_note
from .plan import Plan

_FIXED = {TCL: "#0072B2", SUPCON: "#D55E00", "cross-entropy": "#000000"}
_FREE = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B8A800")
_STYLES = ("-", "--", "-.", ":")


def _look(names: list[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each series: TCL and SupCon look the same in every picture."""
    taken = {_FIXED.get(name) for name in names}
    free, look = itertools.cycle(colour for colour in _FREE if colour not in taken), {}
    for i, name in enumerate(names):
        colour = _FIXED.get(name) or next(free)
        look[name] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": _STYLES[i % len(_STYLES)]}
    return look


def _figure(plan: Plan, height: float, columns: int) -> tuple[Any, Any]:
    figure = new_figure(8, height, dpi=120)
    note = scale_note(plan)
    figure.suptitle(f"{plan.grid.name}: {plan.grid.title}" + (f"\n{note}" if note else ""), fontsize=12 if note else 13)
    return figure, figure.subplots(1, columns)


def top1_figure(plan: Plan, rows: list[dict[str, Any]], path: Path) -> None:
    """Top-1 of every cell with its interval over the rows; at full scale the thesis's figures as hollow marks.

    Args:
        plan: which table or figure.
        rows: of :func:`tcl_zoo.reproduce.results.summary`.
        path: of the PNG.
    """
    figure, axes = _figure(plan, 5, 1)
    shown = [row for row in rows if row["n"] or (not plan.scale.label and row["thesis"] is not None)]
    names = list(dict.fromkeys(row["series"] for row in rows))
    places = list(dict.fromkeys(row["row"] for row in shown))
    values = sorted({float(row["row"]) for row in shown}) if plan.grid.numeric else []
    low = min((value for value in values if value > 0), default=1.0)
    # Series stand a little beside each other, so that their intervals can be told apart.
    beside = (10 * max([low, *values]) / low) ** 0.012 - 1
    look, caption = _look(names), _caption([row["n"] for row in shown if row["n"]])
    for i, name in enumerate(names):
        mine = [row for row in shown if row["series"] == name]
        if plan.grid.numeric:
            x = [value + beside * i * max(value, low) for value in (float(row["row"]) for row in mine)]
        else:
            x = [places.index(row["row"]) + 0.16 * (i - (len(names) - 1) / 2) for row in mine]
        style = look[name] | ({} if plan.grid.numeric else {"linestyle": "none"})
        ours = [(a, row) for a, row in zip(x, mine, strict=True) if row["n"]]
        if ours:
            where, means = [a for a, _ in ours], [row["ours"] for _, row in ours]
            label = name if caption else f"{name} ({_runs([row['n'] for _, row in ours])})"
            common = {"markersize": 8, "linewidth": 2} | style
            if any(row["ci95"] is not None for _, row in ours):
                axes.errorbar(where, means, [row["ci95"] or 0.0 for _, row in ours], capsize=5, label=label, **common)
                for a, row in ours if not plan.grid.numeric else ():
                    runs = [float(text.partition(":")[2]) for text in row["top1_by_seed"].split()]
                    axes.plot([a + 0.05] * len(runs), runs, ".", color=style["color"], alpha=0.5, markersize=7)
            else:
                axes.plot(where, means, label=label, **common)
        theirs = [(a, row["thesis"]) for a, row in zip(x, mine, strict=True) if row["thesis"] is not None]
        if theirs and not plan.scale.label:
            axes.scatter(*zip(*theirs, strict=True), s=90, facecolors="none", edgecolors=style["color"], linewidths=1.5,
                         marker=style["marker"], label=f"{name}, thesis")  # fmt: skip
    if plan.grid.numeric:
        axes.set_xscale("symlog", linthresh=low)
        axes.set_xticks(values, [f"{value:,.0f}" for value in values])
        axes.minorticks_off()
    else:
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(plan.grid.axis, fontsize=12)
    axes.set_ylabel("top-1 on the test split (%)", fontsize=12)
    _finish(figure, axes, path, [axes], caption)


def _runs(counts: list[int]) -> str:
    """``1 run``, ``2-3 runs, 95 % interval``."""
    if set(counts) == {1}:
        return "1 run"
    return f"{'-'.join(map(str, sorted({min(counts), max(counts)})))} runs, 95 % interval"


def _caption(counts: list[int]) -> str:
    """What holds for every series alike; "" where their numbers of runs differ."""
    return f"mean of {_runs(counts)}".replace("mean of 1 run", "1 run each") if len(set(counts)) == 1 else ""


def gradient_figure(plan: Plan, curves: list[dict[str, Any]], path: Path) -> None:
    """Responses of positives (left) and of negatives (right) over the steps, with the interval over the seeds.

    Args:
        plan: which figure.
        curves: of :func:`tcl_zoo.reproduce.results.curves`.
        path: of the PNG.
    """
    figure, panels = _figure(plan, 5, 2)
    names = list(dict.fromkeys(row["series"] for row in curves))
    look, caption = _look(names), _caption([row["n"] for row in curves])
    for axes, which in zip(panels, ("positives", "negatives"), strict=True):
        for name in names:
            mine = [row for row in curves if row["series"] == name]
            steps, means = [row["step"] for row in mine], [row[which] for row in mine]
            style = {key: look[name][key] for key in ("color", "linestyle")}
            label = name if caption else f"{name} ({_runs([row['n'] for row in mine])})"
            axes.plot(steps, means, linewidth=2, label=label, **style)
            if mine[0]["n"] > 1:
                half = [row[f"{which}_ci95"] for row in mine]
                low = [m - h for m, h in zip(means, half, strict=True)]
                high = [m + h for m, h in zip(means, half, strict=True)]
                axes.fill_between(
                    steps, low, high, color=style["color"], alpha=0.18 if len(names) <= 3 else 0.1, linewidth=0
                )
        axes.set_title(f"from all {which}", fontsize=12)
        axes.set_xlabel(plan.grid.axis, fontsize=12)
    panels[0].set_ylabel("mean gradient magnitude per anchor\n(units of 1/temperature)", fontsize=12)
    _finish(figure, panels[0], path, list(panels), caption)


def _finish(figure: Any, labelled: Any, path: Path, panels: list[Any], caption: str) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=11)
    handles, names = labelled.get_legend_handles_labels()
    style = {"fontsize": 10, "title_fontsize": 11, "frameon": False}
    figure.legend(handles, names, loc="outside lower center", ncols=2, title=caption or None, **style)
    figure.savefig(path)

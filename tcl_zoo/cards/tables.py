"""Tables over all released models, written from their ``config.json``."""

from __future__ import annotations

import itertools
from typing import Any

from .._ssl_recipes import TITLES
from ..datasets import DATASETS
from ..intervals import mean_interval, verdict
from ..progress import duration
from ..thesis import reported
from .text import by_seed, over_seeds

# What is compared: objective -> its column.
_SUPERVISED = {"tcl": "TCL", "supcon": "SupCon", "ce": "cross-entropy"}
_SELF_SUPERVISED = {key: title.partition(" (")[0] for key, title in TITLES.items()} | {"tcl_ssl": "TCL"}


def side_by_side(configs: dict[str, dict[str, Any]], folder: str = "") -> list[str]:
    """Top-1 of the objectives beside each other: a line per data set, encoder and variant.

    Args:
        configs: name to ``config.json``.
        folder: of the release folders, as the page links to them: ``"model_cards/"``.

    Returns:
        The lines of a Markdown table; "-" where a name is not released. A second table of the objectives without
        labels where there are any: columns of those that have a release.
    """
    lines = _table("trained with labels", _SUPERVISED, _by_setting(configs, _SUPERVISED), folder)
    if found := _by_setting(configs, _SELF_SUPERVISED):
        seen = {objective for _, objectives in found for objective in objectives}
        columns = {objective: title for objective, title in _SELF_SUPERVISED.items() if objective in seen}
        lines += ["", *_table("without labels", columns, found, folder)]
    return lines


def zoo_table(configs: dict[str, dict[str, Any]]) -> str:
    """``model_cards/README.md``: one line per release.

    Args:
        configs: name to ``config.json``.
    """
    lines = [
        "# The released models",
        "",
        "Generated from the cards. Top-1 in percent on the test split, last epoch; of several seeds the mean, too.",
        "",
        "| name | top-1 | thesis | n | protocol | seeds | parameters | size | trained in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config in configs.items():
        facts = config["tcl_zoo"]
        results, thesis = facts["results"], reported(name)
        lines.append(
            f"| [{name}]({name}/README.md) | {results['top1']:.2f} | {thesis[0] if thesis else '-'} "
            f"| {results['n']:,} | {results['protocol']} | {seeds_of(facts)} | {facts['parameters'] / 1e6:.2f} M "
            f"| {facts['bytes'] / 1e6:.1f} MB | {duration(facts['seconds'])} |"
        )
    return "\n".join(lines) + "\n"


def seeds_of(facts: dict[str, Any]) -> str:
    """``1 (seed 0)``, or of several trainings ``3: mean ± half width of their 95 % interval``."""
    found = by_seed(facts)
    return f"{len(found)}: {over_seeds(facts)}" if len(found) > 1 else f"1 (seed {facts['results']['seed']})"


def differences(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Where the same seeds of two objectives were trained: a line per pair, with the interval of the differences.

    Args:
        configs: name to ``config.json``.

    Returns:
        The lines of a Markdown table; none where there is no such pair.
    """
    lines = []
    for titles, how in ((_SUPERVISED, ""), (_SELF_SUPERVISED, ", without labels")):
        for setting, objectives in _by_setting(configs, titles):
            seeds = {objective: by_seed(objectives[objective]) for objective in titles if objective in objectives}
            for first, second in itertools.combinations(seeds, 2):
                values = [top1 - seeds[second][seed] for seed, top1 in seeds[first].items() if seed in seeds[second]]
                if len(values) > 1:
                    mean, half = mean_interval(values)
                    what = f"{setting}{how} | {titles[first]} | {titles[second]} | {mean:+.2f} ± {half:.2f}"
                    lines.append(f"| {what} | {len(values)} | {verdict(mean, half, len(values))} |")
    head = ["| | minus | of | mean, 95 % interval | seeds | is |", "|---|---|---|---|---|---|"]
    return head + lines if lines else []


def _table(
    corner: str, columns: dict[str, str], rows: list[tuple[str, dict[str, dict[str, Any]]]], folder: str
) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for setting, objectives in rows:
        links = {
            objective: f"[{facts['results']['top1']:.2f}]({folder}{facts['name']}/README.md)"
            for objective, facts in objectives.items()
        }
        lines.append(f"| {setting} | {' | '.join(links.get(objective, '-') for objective in columns)} |")
    return lines


def _by_setting(
    configs: dict[str, dict[str, Any]], objectives: dict[str, str]
) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """(data set, encoder and variant in words; those of the objectives -> facts of their release), in order."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for config in configs.values():
        facts, recipe = config["tcl_zoo"], config["tcl_zoo"]["recipe"]
        if recipe["objective"] in objectives:
            setting = recipe["dataset"], recipe["encoder"], recipe["variant"]
            found.setdefault(setting, {})[recipe["objective"]] = facts
    return [
        (f"{DATASETS[dataset].title}, `{encoder}`" + (f", `.{variant}`" if variant else ""), found[key])
        for key in sorted(found)
        for dataset, encoder, variant in [key]
    ]

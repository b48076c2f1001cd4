"""Tables over all released models, written from their ``config.json``."""

from __future__ import annotations

from typing import Any

from ..datasets import DATASETS
from ..progress import duration
from ..thesis import reported

_SUPERVISED = {"tcl": "TCL", "supcon": "SupCon", "ce": "cross-entropy"}


def side_by_side(configs: dict[str, dict[str, Any]], folder: str = "") -> list[str]:
    """Top-1 of the supervised objectives beside each other: a line per data set, encoder and variant.

    Args:
        configs: name to ``config.json``.
        folder: of the release folders, as the page links to them: ``"model_cards/"``.

    Returns:
        The lines of a Markdown table; "-" where a name is not released.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name, config in configs.items():
        facts = config["tcl_zoo"]["recipe"]
        key = facts["dataset"], facts["encoder"], facts["variant"]
        link = f"[{config['tcl_zoo']['results']['top1']:.2f}]({folder}{name}/README.md)"
        if facts["objective"] in _SUPERVISED:
            found.setdefault(key, {})[facts["objective"]] = link
    lines = [f"| | {' | '.join(_SUPERVISED.values())} |", "|---|" + "---|" * len(_SUPERVISED)]
    for (dataset, encoder, variant), links in sorted(found.items()):
        what = f"{DATASETS[dataset].title}, `{encoder}`" + (f", `.{variant}`" if variant else "")
        lines.append(f"| {what} | {' | '.join(links.get(objective, '-') for objective in _SUPERVISED)} |")
    return lines


def zoo_table(configs: dict[str, dict[str, Any]]) -> str:
    """``model_cards/README.md``: one line per release.

    Args:
        configs: name to ``config.json``.
    """
    lines = [
        "# The released models",
        "",
        "Generated from the cards. Top-1 in percent on the test split, last epoch, one run each.",
        "",
        "| name | top-1 | thesis | n | protocol | seed | parameters | size | trained in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config in configs.items():
        facts = config["tcl_zoo"]
        results, thesis = facts["results"], reported(name)
        lines.append(
            f"| [{name}]({name}/README.md) | {results['top1']:.2f} | {thesis[0] if thesis else '-'} "
            f"| {results['n']:,} | {results['protocol']} | {results['seed']} | {facts['parameters'] / 1e6:.2f} M "
            f"| {facts['bytes'] / 1e6:.1f} MB | {duration(facts['seconds'])} |"
        )
    return "\n".join(lines) + "\n"

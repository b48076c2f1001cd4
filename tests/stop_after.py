"""A training that stops where a test says."""

from __future__ import annotations

from tcl_zoo.stopping import Stop


class StopAfter:
    """Stands in for :class:`tcl_zoo.stopping.Stop`: asks to stop after so many looks, one a step."""

    def __init__(self, looks: int) -> None:
        self.looks, self.reason = looks, "test"

    def __call__(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    signals = Stop.signals

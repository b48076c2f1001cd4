"""When to stop a training before its end: a signal, or the time is up."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator


class Stop:
    """Whether to stop now: a signal came, or the time is up. A second Ctrl-C interrupts at once.

    A second SIGTERM does not: schedulers send it to a launcher and its processes, and the launcher passes it on.
    """

    def __init__(self, time_limit: float | None) -> None:
        self.reason = ""  # with several processes: of this one
        self._interrupted = False
        self._deadline = time.monotonic() + time_limit if time_limit is not None else math.inf

    def __call__(self) -> bool:
        if not self.reason and time.monotonic() >= self._deadline:
            self.reason = "time limit"
        return bool(self.reason)

    def left(self) -> float:
        """Seconds to the time limit; infinite without one."""
        return self._deadline - time.monotonic()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Listens for SIGINT and SIGTERM where this thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            if number == signal.SIGINT and self._interrupted:
                raise KeyboardInterrupt
            self._interrupted |= number == signal.SIGINT
            self.reason = self.reason or signal.Signals(number).name

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def agreed(accelerator: Accelerator, wish: bool, ask: bool) -> bool:
    """Whether any process wishes to stop. With several, all ask at the same steps (``ask``)."""
    if accelerator.num_processes == 1:
        return wish
    if not ask:
        return False
    return bool(accelerator.reduce(torch.tensor([float(wish)], device=accelerator.device)).item())

"""One progress bar for everything that takes longer than two seconds; quiet in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


def progress(total: int, desc: str, unit: str, **kwargs: Any) -> tqdm[Any]:
    """tqdm with our habits: shown after 2 s, redrawn twice a second in a terminal and twice a minute elsewhere."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, desc=desc, unit=unit, mininterval=interval, maxinterval=60.0, dynamic_ncols=True, delay=2, **kwargs
    )

"""Several processes train together: one works while the others wait, and when one is lost the others end soon.

A process that dies closes its connections, and whoever waits for it gets an error of the transport that names an
address at best. The survivors therefore report to the group's store, and whoever does not is the one that is gone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from accelerate import PartialState

from .errors import TclZooError, TrainingError, one_line
from .ranks import ranks

_PATIENCE = 6.0  # seconds for the others to notice and report
_LOST = "lost"  # what a process reports that only noticed
# What gloo, NCCL and the store say when the other end is gone.
_TRANSPORT = ("gloo", "nccl", "connection", "socket", "broken pipe", "recvvalue", "timed out", "timeout")
_LONGEST = timedelta(days=7)  # that anybody waits for the main process's work
_SETTLING = 0.5  # seconds; under load a thread of the transport lets go of its last tensor a moment late
_numbers = itertools.count()  # of the pieces of work: every process comes by all of them, in the same order

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T | None:
    """Does what one process is to do while the others wait, however long it takes; they get None.

    They wait at the group's store: a collective would give up after its limit, which is 10 minutes on GPUs.

    Args:
        work: done by the main process.

    Raises:
        TrainingError: in the others, where the work failed; in the main process whatever ``work`` raised.
    """
    rank, world = ranks()
    if world == 1:
        return work()
    store, key = _store(), f"tcl_zoo/done/{next(_numbers)}"
    if rank != 0:
        store.wait([key], _LONGEST)
        failed = store.get(key).decode()
        if failed:
            raise TrainingError(failed)
        return None
    try:
        result = work()
    except Exception as error:
        store.set(key, one_line(error))
        raise
    store.set(key, "")
    return result


def main_first(work: Callable[[], T]) -> T:
    """What ``work`` returns to each process; the main process is the first: it fetches and unpacks what they share.

    Raises:
        TrainingError: in the others, where it failed in the main process; whatever ``work`` raises.
    """
    result = on_main(work)
    return work() if ranks()[0] else cast(T, result)


def main_alone(cpu: bool = False) -> bool:
    """Ends the work together, in every process; whether this is the main one, which goes on alone.

    Args:
        cpu: as accelerate was asked before, if it was.
    """
    state = PartialState(cpu=cpu)
    state.destroy_process_group()
    if state.num_processes > 1:
        # DDP keeps gloo's threads alive (torch 2.15). One that lets go of a tensor of Python's while the interpreter
        # ends aborts the process, "terminate called without an active exception" (pytorch/pytorch#179291).
        time.sleep(_SETTLING)
    return bool(state.is_main_process)


@contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turns the transport's error into one that names the process that failed; does nothing in a single process.

    Raises:
        TrainingError: another process failed or is gone.
    """
    try:
        yield
    except Exception as error:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise
        if not _of_the_transport(error):
            if isinstance(error, TclZooError):
                _report(one_line(error))
            else:
                _report(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            raise
        raise TrainingError(
            f"{_missing()}; the training goes on from its last checkpoint with the same command"
        ) from error


def _of_the_transport(error: BaseException) -> bool:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).lower()
    return isinstance(error, RuntimeError) and not isinstance(error, TclZooError) and any(w in text for w in _TRANSPORT)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"tcl_zoo/failed/{rank}"


def _report(what: str) -> None:
    try:
        _store().set(_key(dist.get_rank()), what)
        if dist.get_rank() == 0:
            time.sleep(1.0)  # as a rule it is this process that keeps the store: let the others read it
    except RuntimeError:
        pass  # the store went with the process that kept it


def _missing() -> str:
    """Which process failed, as far as the survivors can tell; waits for their reports."""
    world, own = dist.get_world_size(), dist.get_rank()
    others = set(range(world)) - {own}
    deadline = time.monotonic() + _PATIENCE
    try:
        store = _store()
        store.set(_key(own), _LOST)
        reports: dict[int, str] = {}
        while len(reports) < len(others) and time.monotonic() < deadline and set(reports.values()) <= {_LOST}:
            for rank in others - set(reports):
                if store.check([_key(rank)]):
                    reports[rank] = store.get(_key(rank)).decode()
            time.sleep(0.1)
        store.set(f"{_key(own)}/knows", "")
        failed = {rank: what for rank, what in reports.items() if what != _LOST}
        if own == 0:  # as a rule this process keeps the store: the others read it, too
            alive = others - set(failed) if failed else set(reports)
            waiting = [f"{_key(rank)}/knows" for rank in alive]
            while waiting and time.monotonic() < deadline + 2 and not store.check(waiting):
                time.sleep(0.1)
    except RuntimeError:
        return f"process 0 of {world}, which kept the group together, is gone"
    for rank, what in failed.items():
        return f"process {rank} of {world} failed: {what}"
    names = ", ".join(str(rank) for rank in sorted(others - set(reports))) or "?"
    return f"process {names} of {world} is gone"

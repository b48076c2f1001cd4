"""A run folder: what was asked (``recipe.json``), what happened (``metrics.jsonl``), where to go on (``checkpoint/``).

Everything is written so that a kill at any moment leaves the state before or the state after: files and checkpoint
folders are made under another name and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from safetensors.torch import save_file
from torch import nn

from .errors import TrainingError
from .recipes import from_dict

_KEEP = 2  # checkpoints: should the newest turn out damaged, the one before is still there


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls ``write`` with a path beside ``path`` and renames what it wrote."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_module(path: Path, module: nn.Module) -> None:
    """Writes a module's state dict as safetensors, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    write_atomically(path, lambda part: save_file(state, part))


class Plan(Protocol):
    """What a run was asked for: a :class:`tcl_zoo.Recipe`, or another frozen set of values."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""


class Run:
    """One run folder, held by one training at a time.

    Args:
        folder: made if it does not exist.
        recipe: what is trained in it.
        settings: what else must be the same when the run goes on (precision).
        parse: reads back what ``recipe.to_dict()`` wrote.

    Raises:
        TrainingError: the folder cannot be written, belongs to another recipe, or is in use.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        recipe: Plan,
        settings: dict[str, Any],
        parse: Callable[[dict[str, Any]], Plan] = from_dict,
    ) -> None:
        self.folder, self.recipe, self._parse = Path(folder), recipe, parse
        self.metrics_file = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoint"
        self._lock: IO[str] | None = None
        recipe_file = self.folder / "recipe.json"
        try:
            if recipe_file.exists():
                self._compare(recipe_file, settings)
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise TrainingError(f"{self.folder} is not empty and not a run folder; choose another run folder")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if not recipe_file.exists():
                write_json(recipe_file, {"recipe": recipe.to_dict(), "settings": settings})
        except OSError as error:
            raise TrainingError(f"cannot write the run folder {self.folder}: {error.strerror}") from None

    def _compare(self, recipe_file: Path, settings: dict[str, Any]) -> None:
        stored = read_recipe_file(recipe_file, self._parse)
        ours, theirs = self.recipe.to_dict() | settings, stored["recipe"] | stored["settings"]
        differing = [f"{k} ({theirs.get(k)} there, {v} now)" for k, v in ours.items() if theirs.get(k) != v]
        if differing:
            raise TrainingError(
                f"{self.folder} holds a run of {theirs.get('name')} with other values: {', '.join(differing[:4])}; "
                "choose another run folder, or give the same values to go on"
            )

    def lock(self) -> None:
        """Keeps other trainings out until this process ends; the main process calls it."""
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{self.folder} is in use by another training; wait for it or stop it") from None

    def append_metrics(self, line: dict[str, Any]) -> None:
        """One line per epoch."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines written so far; a line cut by a kill is left out."""
        lines = []
        if self.metrics_file.is_file():
            for text in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    lines.append(json.loads(text))
                except json.JSONDecodeError:
                    break
        return lines

    def rewind_metrics(self, epoch: int) -> None:
        """Drops the lines of ``epoch`` and later: they will be written again."""
        kept = [line for line in self.metrics() if line["epoch"] < epoch]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.metrics_file, lambda part: part.write_text(text, encoding="utf-8"))

    def saved(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return sorted((p for p in self.checkpoints.iterdir() if p.name.startswith("epoch-")), reverse=True)

    def save(self, epoch: int, step: int, write: Callable[[Path], Any]) -> None:
        """Writes a checkpoint folder through ``write`` and drops all but the newest two."""
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.checkpoints))
        try:
            write(part)
            target = self.checkpoints / f"epoch-{epoch:05d}-step-{step:07d}"
            if target.exists():
                shutil.rmtree(target)
            os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self.saved()[_KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def clean(self) -> None:
        """Removes what a killed process left half-written."""
        for part in self.checkpoints.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)


def read_recipe_file(path: Path, parse: Callable[[dict[str, Any]], Plan] = from_dict) -> dict[str, Any]:
    """``recipe.json`` as {recipe, settings}; ``parse`` says whether the recipe is one.

    Raises:
        TrainingError: missing or not what it should be.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parse(stored["recipe"])
        stored["settings"].items()
    except FileNotFoundError:
        raise TrainingError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); start again in another run folder") from None
    return stored

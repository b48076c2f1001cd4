"""A run folder: what was asked (``recipe.json``), what happened (``metrics.jsonl``), where to go on (``checkpoint/``).

Everything is written so that a kill at any moment leaves the state before or the state after: files and checkpoint
folders are made under another name and renamed. Each checkpoint has the sha256 of its files beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import RunInUseError, TrainingError, one_line
from .outside import short
from .recipes import DATA, Recipe, from_dict

_KEEP = 2  # checkpoints: should the newest turn out damaged, the one before is still there
_SUMS = "sha256.json"
_FIRST = {"checkpoint", ".lock", ".recipe.json.part", "recipe.json"}  # what a run leaves before its first checkpoint


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


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


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What stands in the way of writing, a full disk say, becomes a ``TrainingError``.

    Not every library on the way raises an ``OSError`` then.
    """
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise TrainingError(
            f"cannot write the run folder {folder}: {reason}; once it can be written, the same command goes on "
            "from the last checkpoint"
        ) from error


class Asked(Protocol):
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
        hold: keep other trainings out, until :meth:`release` or the end of this process, and remove what a killed
            one left half-written; the main process of a training asks for it.

    Raises:
        TrainingError: the folder cannot be written, belongs to another recipe, or is in use.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        recipe: Asked,
        settings: dict[str, Any],
        parse: Callable[[dict[str, Any]], Asked] = from_dict,
        hold: bool = False,
    ) -> None:
        self.folder, self.recipe, self._parse = Path(folder), recipe, parse
        self.metrics_file = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoint"
        self._lock = FileLock(self.folder / ".lock", blocking=False, thread_local=False)
        recipe_file = self.folder / "recipe.json"
        with writing(self.folder):
            # Looked for last: another training may begin in between.
            if self.folder.exists() and self._begun() and not recipe_file.exists():
                raise TrainingError(f"{self.folder} is not empty and not a run folder; choose another")
            self._agrees(recipe_file, settings)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if hold:
                self.lock()
                self.clean()
            # Once more behind the lock: of two that start at the same moment one has written it by now.
            if not self._agrees(recipe_file, settings):
                write_json(recipe_file, {"recipe": recipe.to_dict(), "settings": settings})

    def _begun(self) -> bool:
        """Whether there is anything that no run leaves before its first checkpoint."""
        more = not {p.name for p in self.folder.iterdir()} <= _FIRST
        return more or (self.checkpoints.exists() and any(self.checkpoints.iterdir()))

    def _agrees(self, recipe_file: Path, settings: dict[str, Any]) -> bool:
        """Whether the folder is asked for what it was begun with; one where nothing was done yet may become another."""
        if not recipe_file.exists():
            return False
        stored = read_recipe_file(recipe_file, self._parse)
        # Through its class: a folder of an older version lacks fields that came since, and had their defaults.
        ours = self.recipe.to_dict() | settings
        theirs = self._parse(stored["recipe"]).to_dict() | stored["settings"]
        differing = [key for key in ours | theirs if theirs.get(key) != ours.get(key)]
        if differing and self._begun():
            told = [f"{key} ({_said(theirs.get(key))} there, {_said(ours.get(key))} now)" for key in differing[:4]]
            raise TrainingError(
                f"{self.folder} holds a run of {theirs.get('name') or theirs.get('model')} with other values: "
                f"{', '.join(told)}; choose another run folder, or give the same values to go on"
            )
        return not differing

    def lock(self) -> None:
        """Keeps other trainings out until :meth:`release` or the end of this process."""
        with writing(self.folder):
            try:
                self._lock.acquire()
            except Timeout:
                raise RunInUseError(f"{self.folder} is in use by another training; wait for it or stop it") from None

    def release(self) -> None:
        """Lets other trainings in."""
        self._lock.release()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """One line per epoch."""
        with writing(self.folder), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_metrics(self, epoch: int) -> None:
        """Drops the lines of ``epoch`` and later: they will be written again."""
        text = "".join(json.dumps(line) + "\n" for line in read_metrics(self.folder) if line["epoch"] < epoch)
        if self.metrics_file.exists():
            with writing(self.folder):
                write_text(self.metrics_file, text)

    def saved(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        return sorted((p for p in self.checkpoints.iterdir() if p.name.startswith("epoch-")), reverse=True)

    def save(self, epoch: int, step: int, write: Callable[[Path], Any]) -> None:
        """Writes a checkpoint folder through ``write`` and drops all but the newest two."""
        with writing(self.folder):
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.checkpoints))
            try:
                write(part)
                (part / _SUMS).write_text(json.dumps(_sums(part)), encoding="utf-8")
                target = self.checkpoints / f"epoch-{epoch:05d}-step-{step:07d}"
                if target.exists():
                    shutil.rmtree(target)
                os.replace(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        for old in self.saved()[_KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def check(self, folder: Path) -> None:
        """Holds a checkpoint's files to their sha256.

        Raises:
            TrainingError: a file is missing or not what was written.
        """
        found, expected = _sums(folder), json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        damaged = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        if damaged:
            raise TrainingError(f"{damaged[0]} is not what was written")

    def set_aside(self, folder: Path) -> None:
        """Renames a checkpoint that cannot be read, so that it is not counted as the newest any more."""
        with writing(self.folder):
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)

    def clean(self) -> None:
        """Removes what a killed process left half-written."""
        for part in self.checkpoints.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
        for file in self.folder.glob(".*.part"):
            file.unlink(missing_ok=True)


def _said(value: Any) -> str:
    """A value of a run in the words of the commands' options."""
    return {"no": "fp32", "None": "not set"}.get(str(value), str(value))


def _sums(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file of a checkpoint."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SUMS)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line; one cut by a kill, and what follows it, is left out.

    Empty where there is no file.
    """
    lines: list[dict[str, Any]] = []
    for text in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote of its epochs, a line each; one cut by a kill, and what follows it, is left out."""
    lines = enumerate(read_jsonl(folder / "metrics.jsonl"))
    sound = itertools.takewhile(lambda item: item[1].get("epoch") == item[0] and "loss" in item[1], lines)
    return [line for _, line in sound]


def read_recipe_file(path: Path, parse: Callable[[dict[str, Any]], Asked] = from_dict) -> dict[str, Any]:
    """``recipe.json`` as {recipe, settings}; ``parse`` says whether the recipe is one.

    Raises:
        TrainingError: missing or not what it should be.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parse(stored["recipe"])
        held = stored["settings"].get("hold_out", 1)
        if type(held) is not int or held < 1:
            raise ValueError(f"hold_out is {short(held)}")
    except FileNotFoundError:
        raise TrainingError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); start again in another run folder") from None
    return stored


def load_run(run_dir: str | os.PathLike[str]) -> tuple[Recipe, nn.Module]:
    """The recipe and the trained encoder (with its classifier, where the run folder has one) of a finished run.

    Raises:
        TrainingError: not a run folder, not finished, or with damaged weights.
    """
    import timm

    from .datasets import pretrained_cfg

    folder = Path(run_dir)
    recipe = from_dict(read_recipe_file(folder / "recipe.json")["recipe"])
    if not (folder / "encoder.safetensors").is_file():
        raise TrainingError(f"{folder} is not finished: run scripts/train.py {recipe.name} again to go on")
    num_classes = 0
    try:
        state = load_file(folder / "encoder.safetensors")
        if (folder / "classifier.safetensors").is_file():
            classifier = load_file(folder / "classifier.safetensors")
            state |= {f"fc.{key}": value for key, value in classifier.items()}
            num_classes = len(classifier["bias"])
        model = timm.create_model(recipe.architecture, num_classes=num_classes, in_chans=DATA[recipe.dataset].in_chans)
        model.load_state_dict(state)
        model.pretrained_cfg = pretrained_cfg(recipe.dataset)
    except Exception as error:  # a damaged file raises whatever its first bad byte meets
        raise TrainingError(
            f"the weights in {folder} are damaged ({short(error)}); run scripts/train.py {recipe.name} again"
        ) from error
    return recipe, model.eval()

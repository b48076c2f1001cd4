"""Registers the architectures with timm as soon as timm is imported, without importing it (or torch) before.

``tcl-zoo list`` answers in a fraction of a second because nothing here loads torch; ``import tcl_zoo, timm;
timm.create_model("resnet50_cifar")`` works because this finder adds one step to the end of timm's own import.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


def _register() -> None:
    importlib.import_module("tcl_zoo.encoders")


class _ThenRegister(importlib.abc.Loader):
    """timm's own loader, with our registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module has the loader it would have had: importlib.resources and pickle look at it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TimmFinder)]
        _register()


class _TimmFinder(importlib.abc.MetaPathFinder):
    """Answers for ``timm`` alone, until it is imported: who only looks whether it is installed changes nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)  # old ones have none
            spec = find(fullname, path, target) if find else None
            if spec is not None and spec.loader is not None:
                spec.loader = _ThenRegister(spec.loader)
                return spec
        return None


def install() -> None:
    """Register now if timm is loaded already, else when it is."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _TimmFinder())

"""tcl_zoo: encoders trained by tuned contrastive learning, supervised contrastive learning and cross-entropy.

Importing this package is cheap: torch and timm load when they are first needed, and so do the rooms of the package
(``tcl_zoo.losses``, ``tcl_zoo.finetune`` ...). The architectures register themselves with timm whenever timm is
imported, before or after.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _timm_hook
from .recipes import Recipe, recipe

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .models import create_model, create_transform, list_models, model_info
    from .pipeline import predict

_LAZY = {name: "models" for name in ("create_model", "create_transform", "list_models", "model_info")}
_LAZY |= {"predict": "pipeline"}

__all__ = [
    "Recipe",
    "__version__",
    "create_model",
    "create_transform",
    "list_models",
    "model_info",
    "predict",
    "recipe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if not name.startswith("_") and name in _rooms():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_rooms()})


def _rooms() -> set[str]:
    """The public modules of this package."""
    import pkgutil

    return {module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_"}


_timm_hook.install()

"""A second device without hardware, ``gpu``: what fails on a GPU for a tensor left on the CPU fails here, too.

Its tensors hold CPU tensors, compute with them, and refuse to be mixed with those of the CPU, so that results are the
CPU's but for rounding. What only a real one shows, its memory, its kernels and CUDA graphs, is not seen here.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_PACKAGE = str(Path(__file__).parent.parent / "tcl_zoo")
_ANSWERS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")

waits: Counter[str] = Counter()  # operation and line of the package, each time the CPU has to wait for the device


class Held(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device("gpu", 0)
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"Held({self.held})"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Held) -> None:
        self.held = value.held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what makes tensors of the device out of nothing or out of the CPU's."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _waiting(name: str, args: Any, kwargs: Any, on_device: bool) -> bool:
    """Whether the CPU has to wait: for an answer of the device, or for a copy from one to the other."""
    if name in ("_to_copy", "copy_"):
        from_device = isinstance(args[name == "copy_"], Held)
        return from_device != on_device and not (on_device and kwargs.get("non_blocking"))
    if name in _INDEXING:
        return any(isinstance(index, Held) and index.dtype == torch.bool for index in args[1])
    return name in _ANSWERS and isinstance(args[0], Held)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    name, asked = function.overloadpacket.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Held)]
    on_device = bool(there) if asked is None else torch.device(asked).type == "gpu"
    if name == "copy_":
        on_device = isinstance(args[0], Held)
    elif there and not (name in _INDEXING and isinstance(args[0], Held)):
        left = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, Held) and tensor.dim()]
        if left:
            raise RuntimeError(f"{function} of tensors on two devices: those {left} are on the CPU")
    if _waiting(name, args, kwargs, on_device):
        lines = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_PACKAGE)]
        waits[f"{name} {Path(lines[-1].filename).name}: {lines[-1].line}" if lines else name] += 1
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Held) else x, (args, kwargs))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    result = function(*args, **kwargs)
    if not on_device:
        return result
    same = {id(tensor.held): tensor for tensor in there}  # in place: the tensor that was there
    return tree_map(lambda x: (same[id(x)] if id(x) in same else Held(x)) if isinstance(x, Tensor) else x, result)


def install() -> None:
    """Makes ``gpu`` a device of this process, and accelerate's; there is no way back."""
    backend_registration._setup_privateuseone_for_python_backend("gpu")
    module = torch.get_device_module("gpu")
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    tensor = torch.tensor

    def made(data: Any, *, device: Any = None, **settings: Any) -> Tensor:  # torch's own passes the modes by
        return tensor(data, **settings) if device is None else tensor(data, **settings).to(device)

    torch.tensor = made
    accelerate.Accelerator.device = property(lambda self: torch.device("gpu", 0))
    _Mode().__enter__()

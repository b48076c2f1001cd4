"""How long the commands, the import and loading a model take, each in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .timing import HERE, alternate, medians, ratio, write_csv

_CREATE = """
import time, timm, tcl_zoo, safetensors.torch
from tcl_zoo import index
name = "tcl_resnet20_digits"
folder = index.bundled_folder(name)
def ours():
    tcl_zoo.create_model(name, pretrained=True)
def theirs():
    cfg = dict(file=str(folder / "model.safetensors"), num_classes=10, input_size=(1, 8, 8), first_conv="conv1",
               classifier="fc")
    timm.create_model("resnet20_cifar", pretrained=True, pretrained_cfg=cfg, num_classes=10, in_chans=1)
ours(); theirs()
seconds = {ours: [], theirs: []}
for _ in range(15):
    for run in seconds:
        start = time.perf_counter(); run(); seconds[run].append(time.perf_counter() - start)
print(sorted(a / b for a, b in zip(seconds[ours], seconds[theirs]))[7], sorted(seconds[ours])[7])
"""


def _python(*args: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *args], cwd=HERE.parent, capture_output=True, check=True)


def run(quick: bool = False) -> None:
    """Prints medians and ratios; writes startup.csv."""
    command = str(Path(sys.executable).parent / "tcl-zoo")
    seconds = alternate(
        {
            "tcl-zoo list": lambda: subprocess.run([command, "list"], capture_output=True, check=True),
            "tcl-zoo --help": lambda: subprocess.run([command, "--help"], capture_output=True, check=True),
            "python -c pass": _python("-c", "pass"),
            "import timm": _python("-c", "import timm"),
            "import timm, tcl_zoo": _python("-c", "import timm, tcl_zoo"),
        },
        rounds=5 if quick else 11,
    )
    for name, value in medians(seconds).items():
        print(f"{name:<22} {value:.3f} s")
    added = ratio(seconds, "import timm, tcl_zoo", "import timm")
    out = subprocess.run([sys.executable, "-c", _CREATE], cwd=HERE.parent, capture_output=True, text=True, check=True)
    create, own = map(float, out.stdout.split())
    print(f"import tcl_zoo adds {100 * (added - 1):.1f} % to import timm (target under 10)")
    print(f"create_model(pretrained=True) takes {1e3 * own:.0f} ms, {create:.2f} times timm's own (target 1.3)")
    rows = [{"name": name, "seconds": value} for name, value in medians(seconds).items()]
    rows.append({"name": "create_model over timm", "seconds": create})
    write_csv("startup", rows)

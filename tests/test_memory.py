"""Free memory is kept, so that the next step need not ask for it again, and given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")

_FAULTS = """
import resource, torch
from tcl_zoo import memory
{before}
def block():
    torch.full((16, 1024, 1024), 1.0)  # 64 MiB, more than glibc keeps
for _ in range(20):  # until the heap has settled: at first a small block in a freed one's place sends others elsewhere
    block()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block()
    {after}
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def _faults(before: str = "", after: str = "") -> int:
    program = _FAULTS.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_kept_memory_is_not_asked_for_again_until_it_is_given_back():
    kept, usual = _faults("memory.keep_freed()"), _faults()
    assert 10 * kept < usual
    assert 10 * kept < _faults("memory.keep_freed()", "memory.give_back_freed()")

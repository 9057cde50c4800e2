"""Freed memory is had again without the kernel's clearing it."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from lit_wm.cli.memory import keep_freed_memory
if {keep} and not keep_freed_memory():
    raise SystemExit("not glibc")
torch.ones(2 ** 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2 ** 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True)
    if "not glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_large_tensor_takes_the_place_of_a_larger_one_freed_before():
    assert page_faults(keep=True) < page_faults(keep=False) / 10

"""Freed buffers are kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from nfsfuse.rpc.memory import keep_freed_buffers

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # two at a time: glibc's own thresholds follow a single one
        source, target = bytes(1 << 20), bytearray(1 << 20)
        target[::4096] = source[::4096]
        del source, target
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_buffers()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_buffer_that_comes_again_costs_no_page_faults() -> None:
    argv = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert before > 20 * 200, "one of them was mapped anew each time, page by page"
    assert after < 20 * 20

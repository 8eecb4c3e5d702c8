"""What a step costs, counted: the same on every machine, and on a busy one.

Three things are added up: the bytecode instructions that are executed; what built-in functions go through, as
far as it can be seen (`list.insert` moves pointers, of which many go in the time of one instruction;
`list.index` looks at each element); and the memory that is taken, as whatever copies a list takes as much.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

LOOKING: Final = frozenset({"index", "remove", "count", "sort", "copy", "find", "extend", "update", "union"})
"""Methods of built-in containers that go through all of them, or all of what they are given."""

MOVING: Final = frozenset({"insert", "pop", "__delitem__"})
"""Methods of lists that move what follows."""

MOVED_AT_ONCE: Final = 256
"""Pointers that are moved in the time of one instruction, and more."""

ALLOCATED_AT_ONCE: Final = 64
"""Bytes of memory that are taken and filled in the time of one instruction."""


def cost(step: Callable[[], object]) -> int:
    """What *step* costs, in instructions."""
    counted = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            counted += 1
        return trace

    def profile(frame: FrameType, event: str, called: Any) -> None:
        nonlocal counted
        if event != "c_call":
            return
        container, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(container, (list, bytearray)) and name in MOVING:
            counted += len(container) // MOVED_AT_ONCE
        elif isinstance(container, (list, tuple, set, dict, bytearray)) and name in LOOKING:
            counted += len(container)

    # Once for the memory, which tracing takes too, and once for the rest: a step can be taken twice.
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    former = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(former[0])
        sys.setprofile(former[1])
    return counted + max(peak - before, 0) // ALLOCATED_AT_ONCE



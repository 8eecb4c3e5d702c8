"""What only the collector of garbage would free: looked for where there must be nothing."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]


@contextmanager
def nothing_for_the_collector(*kinds: type) -> Iterator[None]:
    """Nothing is collected in the block. What could be, at its end, is no exception that was raised, no
    call of a daemon's code, and of none of *kinds*."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        things = [thing for thing in gc.garbage if isinstance(thing, kinds) or _has_traceback(thing)]
        frames = [thing for thing in gc.garbage if isinstance(thing, types.FrameType) and _is_ours(thing)]
        assert not things, [type(thing) for thing in things][:10]
        assert not frames, [frame.f_code.co_qualname for frame in frames][:10]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _has_traceback(thing: object) -> bool:
    return isinstance(thing, Exception) and thing.__traceback__ is not None


def _is_ours(frame: types.FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT / "server") or path.is_relative_to(ROOT / "nfsfuse")

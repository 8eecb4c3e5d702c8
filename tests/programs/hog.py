"""hog PROCESSOR SECONDS: let no program of a usual policy have a processor, for at most so long.

Prints "on" when it has it. Real-time programs get no more than 0.95 s in a row (sched_rt_runtime_us).
"""

from __future__ import annotations

import os
import sys
import time


def main(processor: int, seconds: float) -> None:
    """Do nothing, busily."""
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("on", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

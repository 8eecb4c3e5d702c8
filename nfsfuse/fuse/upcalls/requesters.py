"""Looking at a thread that waits for us.

Whoever waits for the daemon may hold locks of the kernel meanwhile: exec_update_lock, while execve(2) closes
what is close-on-exec; mmap_lock, in a page fault or an munmap(2) that writes pages back. Much of /proc/TID
takes the first (`environ`, `fd`, `maps`, of some kernels `stat`, of others to come perhaps more) or the second
(`cmdline`, `smaps`), and so waits for the thread that waits for the daemon. Therefore all looks are here, and
only in threads that nobody waits for: see "What the daemon needs of programs" in docs/coherence.md.
"""

from __future__ import annotations

import signal
from typing import Final

_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)

_EXIT_CODE_FIELD: Final = 52  # of /proc/PID/stat, counted from 1: proc_pid_stat(5)


def is_dying(thread_id: int) -> bool | None:
    """Whether a thread that waits in the kernel is to die of a signal; None for one that cannot be looked at,
    as it is in another pid namespace. To be called in a thread that nobody waits for.

    A fatal signal is seen as SIGKILL pending in the thread, because the kernel turns every one into that
    (kernel/signal.c, complete_signal). It is taken off when the thread begins to exit. Then the FLUSHes of its
    open files are sent, after its memory is gone (kernel/exit.c, do_exit: exit_mm before exit_files): so who
    has memory has not begun, and is perhaps in execve(2). Of the others `stat` tells what they exit with."""
    if thread_id == 0:
        return None
    try:
        has_memory = False
        with open(f"/proc/{thread_id}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmSize:"):
                    has_memory = True
                elif line.startswith("SigPnd:") and int(line.split()[1], 16) & _SIGKILL_BIT:
                    return True
        return not has_memory and _exits_with_signal(thread_id)
    except OSError:  # there is no such thread here; or no descriptor is left
        return None


def _exits_with_signal(thread_id: int) -> bool:
    with open(f"/proc/{thread_id}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[_EXIT_CODE_FIELD - 3]) & 0x7F != 0  # as wait(2) has it

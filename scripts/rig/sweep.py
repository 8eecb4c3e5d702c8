"""Leave nothing behind: neither mount nor process nor file, whatever state they are in.

Processes are recognised by a variable in their environment, which everything that a rig starts inherits, also
daemons that left for the background and what they start in turn.
"""

from __future__ import annotations

import os
import queue
import select
import shutil
import signal
import threading
from pathlib import Path

from scripts.rig.kernel import abort_below, detach, fuse_mounts_below, memory_disks_below

MARK = "NFSFUSE_RIG"
"""The environment variable: the rig's directory."""

DEATH_SECONDS_MAX = 10.0
"""How long a killed process may take to end: it has nothing left to wait for."""


LOOK_SECONDS_MAX = 1.0
"""For one look at a process, on a machine that is busy with something else."""


def marked(directory: Path) -> list[int]:
    """The processes that the rig in *directory* started, but not this one. Nor one that cannot be looked at: it
    is in execve(2), and waits for a mount that hangs. Of the rig's own mounts abort those first."""
    mark = os.fsencode(f"{MARK}={directory}")
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    return [pid for pid in pids if mark in _environment(pid).split(b"\0")]


def _environment(pid: int) -> bytes:
    """Empty if it cannot be had: the process has ended meanwhile, is another user's, or holds exec_update_lock,
    for which the look waits in a thread that is left behind (see docs/coherence.md)."""
    answer: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def look() -> None:
        try:
            answer.put(Path("/proc", str(pid), "environ").read_bytes())
        except OSError:
            answer.put(b"")

    threading.Thread(target=look, daemon=True).start()
    try:
        return answer.get(timeout=LOOK_SECONDS_MAX)
    except queue.Empty:
        return b""


def has_ended(pid: int) -> bool:
    """Whether a process is over; it may still wait for its parent to ask how it ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def end_process(pid: int, number: int = signal.SIGKILL, seconds: float = DEATH_SECONDS_MAX) -> bool:
    """Send a signal and wait for the process, which need not be a child; whether it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(descriptor, number)
        return bool(select.select([descriptor], [], [], seconds)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


def remove_tree(directory: Path) -> None:
    """Remove *directory* and all below it. A program that is just ending may remove something of its own there
    at the same moment: that it is gone is what is wanted."""

    def failed(_: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(info[1], FileNotFoundError):
            raise info[1]

    shutil.rmtree(directory, onerror=failed)


def sweep(directory: Path) -> list[str]:
    """End everything below and about *directory* by force, and remove it. What was found, in words: nothing
    after an orderly end."""
    found = []
    for mount in fuse_mounts_below(directory):
        found.append(f"mount {mount.target}")
        mount.abort()  # first: programs in it, and so their deaths, may hang on it
    for pid in marked(directory):
        found.append(f"process {pid}")
        if not end_process(pid):
            found.append(f"process {pid} cannot be killed")
    for mount in fuse_mounts_below(directory):
        mount.detach()
    for disk in memory_disks_below(directory):
        detach(disk)
    assert not abort_below(directory), "a mount below is left: removing the directory would go through it"
    if directory.exists():
        remove_tree(directory)
    return found

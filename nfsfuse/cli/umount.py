"""nfsfuse umount: write back, unmount, and wait for the daemon to have ended."""

from __future__ import annotations

import argparse
import errno
import select
import sys

from nfsfuse.cli import registry
from nfsfuse.cli.mounts import FSTYPE, MNT_DETACH, mounted_at, unmount


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``nfsfuse umount``; the exit status."""
    mountpoint = arguments.mountpoint
    mounted = mounted_at(mountpoint)
    if mounted is None or mounted.fstype != FSTYPE:
        print(f"nfsfuse: {mountpoint} is not an nfsfuse mount", file=sys.stderr)
        return 1
    daemon = registry.watch(mountpoint)
    try:
        unmount(mounted.target, MNT_DETACH if arguments.lazy else 0)
    except OSError as exc:
        hint = "; programs use it (see fuser -m), or use --lazy" if exc.errno == errno.EBUSY else ""
        print(f"nfsfuse: cannot unmount {mountpoint}: {exc.strerror}{hint}", file=sys.stderr)
        return 1
    if daemon is not None and not arguments.lazy:
        pid, process = daemon
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(int(arguments.timeout * 1000)):
            print(
                f"nfsfuse: {mountpoint} is unmounted, but its daemon {pid} goes on: what it still has to "
                f"write back waits for the server (its log says how much; kill {pid} gives that up)",
                file=sys.stderr,
            )
            return 1
    _clear()
    return 0


def _clear() -> None:
    try:
        registry.clear()
    except OSError as exc:
        print(f"nfsfuse: what dead daemons have left stays: {exc}", file=sys.stderr)

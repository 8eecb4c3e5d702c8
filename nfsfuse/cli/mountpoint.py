"""Where a mount is to be made: whether that can be, and what has to be cleared away before."""

from __future__ import annotations

import logging
import os
import stat

from nfsfuse.cli import registry
from nfsfuse.cli.mounts import FSTYPE, MNT_DETACH, is_dead, mounted_at, unmount
from nfsfuse.protocol.types import SessionId

log = logging.getLogger(__name__)


class MountFailure(Exception):
    """The mount cannot be made; the text is for the user."""


def check_mountpoint(path: str) -> None:
    """Raise MountFailure unless *path* is a directory that nothing of ours is mounted on, or only what
    `remove_dead_mounts` will remove."""
    mounted = mounted_at(path)
    if mounted is not None and mounted.fstype == FSTYPE:
        if is_dead(path):
            return
        raise MountFailure(f"{path}: already mounted from {mounted.source}")
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise MountFailure(f"cannot mount on {path}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise MountFailure(f"cannot mount on {path}: not a directory")


def remove_dead_mounts(path: str, server: str) -> SessionId:
    """Unmount what daemons that were killed have left on *path*; the last one's session with *server*, empty if
    that is not known. Raises MountFailure."""
    session = SessionId(b"")
    while (mounted := mounted_at(path)) is not None and mounted.fstype == FSTYPE and is_dead(path):
        session = registry.session_of_the_dead(path, server) or session
        try:
            unmount(mounted.target, MNT_DETACH)  # programs that still use it get ENOTCONN either way
        except OSError as exc:
            raise MountFailure(f"cannot remove the dead mount on {path}: {exc.strerror}") from exc
        log.warning("removed a dead mount of %s from %s: its daemon was gone", mounted.source, path)
    return session


def check_device() -> None:
    """Raise MountFailure unless FUSE can be used."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as exc:
        raise MountFailure("there is no /dev/fuse: load the fuse module (modprobe fuse)") from exc
    except OSError as exc:
        raise MountFailure(f"cannot open /dev/fuse: {exc.strerror}") from exc

"""Changing a mount that is there: ``-o remount``, as mount(8) calls it, and what libfuse cannot mount with."""

from __future__ import annotations

import ctypes
import os

from nfsfuse.cli.mount_flags import REMOUNT, flags_of
from nfsfuse.cli.mounts import FSTYPE, mounted_at, options_of
from nfsfuse.cli.options import MountOptions

_FIXED = ("allow_other", "default_permissions")
"""What the kernel was told at the mount, and takes no more (fuse_parse_param in fs/fuse/inode.c)."""


class RemountFailure(Exception):
    """The mount cannot be changed so; the text is for the user."""


def remount(source: str, path: str, options: MountOptions) -> None:
    """Change the mount of *source* on *path* to what *options* say (`flags_of`). What concerns the daemon
    stays: it was told at its start, and mount(8) repeats all that is in /etc/fstab. Raises RemountFailure."""
    mounted = mounted_at(path)
    if mounted is None or mounted.fstype != FSTYPE:
        raise RemountFailure(f"{path}: not an nfsfuse mount, so there is nothing to change")
    if mounted.source != source:
        raise RemountFailure(f"{path}: mounted from {mounted.source}, not from {source}")
    shown = options_of(path)
    for option in _FIXED:
        if option in options.refused and option in shown:
            raise RemountFailure(f"{path}: {option} cannot be changed by a remount")
    try:
        apply(path, options.kernel)
    except OSError as exc:
        raise RemountFailure(f"cannot change the mount on {path}: {exc.strerror}") from exc


def apply(path: str, options: tuple[str, ...]) -> None:
    """Give the mount on *path* the flags that *options* name. Raises OSError, with EBUSY for ``ro`` while files
    are open for writing. May wait for the mount's daemon."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
    if libc.mount(b"none", os.fsencode(path), None, REMOUNT | flags_of(options), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

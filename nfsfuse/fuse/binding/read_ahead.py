"""How far the kernel reads ahead on the mount: a knob of sysfs, as FUSE_INIT can only lower it."""

from __future__ import annotations

import errno
import os
import re


def set_read_ahead(mountpoint: str, kib: int) -> bool:
    """Set how far the kernel reads ahead on the mount (KiB; FUSE starts with 128). False if this process may
    not; OSError for anything else. Makes no request to the mount, so the daemon itself can call it."""
    knob = f"/sys/class/bdi/{_device_number(mountpoint)}/read_ahead_kb"
    try:
        with open(knob, "w", encoding="ascii") as file:
            file.write(str(kib))
    except PermissionError:
        return False
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return False
        raise
    return True


def _device_number(mountpoint: str) -> str:
    """``major:minor`` from /proc/self/mountinfo: stat(2) would be a request to ourselves."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    wanted = os.path.join(os.path.realpath(parent), name)
    found = None
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split()
            path = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields[4])
            if os.fsdecode(path) == wanted:
                found = fields[2].decode("ascii")  # the last one is on top
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "not a mount point", mountpoint)
    return found

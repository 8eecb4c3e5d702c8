"""How far the kernel reads ahead on the mount: a knob of sysfs, as FUSE_INIT can only lower it."""

from __future__ import annotations

import errno


def set_read_ahead(device: str, kib: int) -> bool:
    """Set how far the kernel reads ahead on the mount with the number *device*, ``major:minor`` (KiB; FUSE
    starts with 128). False if this process may not; OSError for anything else. Makes no request to the mount,
    so the daemon itself can call it."""
    knob = f"/sys/class/bdi/{device}/read_ahead_kb"
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

"""old_size.py PATH OTHER WRITES: opens PATH, and maps far more than there is. For each line that it is sent it
then uses what it has opened, without asking how long the file is, and says what came of it.

OTHER is a file to copy to, on the same mount. WRITES is "r", "rw" or "append".
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable

PAGE = 4096
MUCH = 1 << 20
MAPPED = 64 * PAGE
APPENDED = b"a" * 10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

path, other, writes = sys.argv[1:]
flags = {"r": os.O_RDONLY, "rw": os.O_RDWR, "append": os.O_WRONLY | os.O_APPEND}[writes]
descriptor = os.open(path, flags)
target = os.open(other, os.O_RDWR | os.O_CREAT, 0o600)
local = os.memfd_create("local")
address = 0
if writes != "append":
    protection = mmap.PROT_READ if writes == "r" else mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, MAPPED, protection, mmap.MAP_SHARED, descriptor, 0)
    ctypes.string_at(address, 1)
    os.pread(descriptor, PAGE, 0)
os.fstat(descriptor)


def load(offset: int) -> str:
    """A byte through the mapping, in a child that may be killed by that (SIGBUS)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ctypes.string_at(address + offset, 1))
        os._exit(0)
    os.close(writing)
    found = os.read(reading, 1)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return found.decode() if status == 0 else f"status {status}"


def splice(offset: int) -> int:
    """Bytes that went into a pipe."""
    reading, writing = os.pipe()
    try:
        return os.splice(descriptor, writing, MUCH, offset_src=offset)
    finally:
        os.close(reading)
        os.close(writing)


def append() -> int:
    """The position after an append."""
    os.write(descriptor, APPENDED)
    return os.lseek(descriptor, 0, os.SEEK_CUR)


def read_without_waiting(offset: int) -> int:
    return os.preadv(descriptor, [bytearray(MUCH)], offset, os.RWF_NOWAIT)


USES: dict[str, Callable[..., int | str]] = {
    "load": load,
    "copy_file_range": lambda offset: os.copy_file_range(descriptor, target, MUCH, offset, 0),
    "sendfile": lambda offset: os.sendfile(local, descriptor, offset, MUCH),
    "splice": splice,
    "end": lambda: os.lseek(descriptor, 0, os.SEEK_END),
    "data": lambda offset: os.lseek(descriptor, offset, os.SEEK_DATA),
    "hole": lambda: os.lseek(descriptor, 0, os.SEEK_HOLE),
    "pread": lambda offset: len(os.pread(descriptor, MUCH, offset)),
    "preadv2": read_without_waiting,
    "append": append,
}

print(json.dumps("open"), flush=True)
for line in sys.stdin:
    use, *arguments = json.loads(line)
    try:
        answer: object = USES[use](*arguments)
    except OSError as exc:
        answer = os.strerror(exc.errno or 0)
    print(json.dumps(answer), flush=True)

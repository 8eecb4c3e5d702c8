"""A program at work in a mount, which keeps a journal: one of the kinds in `KINDS`, until its input ends.

    python -m scripts.proof.load.worker KIND NAME MOUNT CONTROL SEED

*NAME* is unique for ever, *CONTROL* a directory outside of the mount: the journal goes there, and
``CONTROL/dead`` has a file for every worker that is known to be dead. Any error that the kind does not expect
ends it with exit status 1, after it was journaled.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import select
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from scripts.proof.load.journal import Journal

RECORD_SIZE: Final = 32
SLOT: Final = struct.Struct("<Q")
SLOTS: Final = 64
MAP_SIZE: Final = 4096
MAP_SLOTS: Final = MAP_SIZE // SLOT.size
LOCKS: Final = ("posix", "ofd", "flock")

PAUSE_SECONDS_MAX: Final = 0.01
"""Between two operations, at random: so that all kinds share two processors, and faults find all states."""


class Worker:
    """What all kinds have in common."""

    def __init__(self, name: str, mount: Path, control: Path, seed: int) -> None:
        self.name = name
        self.mount = mount
        self.control = control
        self.random = random.Random(f"{seed} {name}")
        self.journal = Journal(control / f"{name}.journal")

    def turns(self) -> Iterator[int]:
        """Numbers, with pauses between them, until the input ends."""
        number = 0
        while not select.select([sys.stdin], [], [], self.random.random() * PAUSE_SECONDS_MAX)[0]:
            yield number
            number += 1

    def dead(self) -> list[str]:
        """Workers that are dead."""
        return os.listdir(self.control / "dead")


def creates(worker: Worker) -> None:
    """Compete for names with O_EXCL; who gets one writes its own name into the file."""
    directory = worker.mount / "names"
    at = max((int(name) for name in os.listdir(directory)), default=0)
    for _ in worker.turns():
        at += worker.random.choice((0, 1, 1))
        path = directory / f"{at:08}"
        with worker.journal.operation("create", errno.EEXIST, name=path.name) as told:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        if told["error"] == 0:
            with worker.journal.operation("publish", name=path.name):
                os.write(descriptor, worker.name.encode())
                os.close(descriptor)


def renames(worker: Worker) -> None:
    """Rename a file of one's own step by step, and compete for one that all take from each other."""
    directory = worker.mount / "renames"
    ball, mine = directory / "ball", directory / f"ball-{worker.name}"
    with worker.journal.operation("step", to=0):
        (directory / f"step-{worker.name}-0").touch(exist_ok=False)
    for step in worker.turns():
        with worker.journal.operation("step", to=step + 1):
            os.rename(directory / f"step-{worker.name}-{step}", directory / f"step-{worker.name}-{step + 1}")
        with worker.journal.operation("take", errno.ENOENT) as told:
            os.rename(ball, mine)
        for name in worker.dead() if told["error"] else ():
            with worker.journal.operation("take", errno.ENOENT, of=name) as told:
                os.rename(directory / f"ball-{name}", mine)
            if told["error"] == 0:
                break
        if told["error"] == 0:
            with worker.journal.operation("give"):
                os.rename(mine, ball)


def appends(worker: Worker) -> None:
    """Append numbered records to a file that all append to; synchronise now and then."""
    descriptor = os.open(worker.mount / "log", os.O_WRONLY | os.O_APPEND)
    for number in worker.turns():
        record = f"{worker.name} {number}".encode().ljust(RECORD_SIZE - 1) + b"\n"
        with worker.journal.operation("append", number=number):
            assert os.write(descriptor, record) == RECORD_SIZE
        if worker.random.random() < 0.2:
            with worker.journal.operation("sync"):
                os.fsync(descriptor)
    with worker.journal.operation("sync"):
        os.close(descriptor)


def records(worker: Worker) -> None:
    """Overwrite records of a file of one's own, and synchronise each."""
    descriptor = os.open(worker.mount / f"records-{worker.name}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    for number in worker.turns():
        slot = worker.random.randrange(SLOTS)
        with worker.journal.operation("put", slot=slot, value=number + 1):
            os.pwrite(descriptor, SLOT.pack(number + 1), slot * SLOT.size)
            os.fsync(descriptor)
    with worker.journal.operation("close"):
        os.close(descriptor)


def locks(worker: Worker) -> None:
    """Count under locks of all kinds."""
    descriptors = {kind: os.open(worker.mount / f"count-{kind}", os.O_RDWR) for kind in LOCKS}
    for _ in worker.turns():
        kind = worker.random.choice(LOCKS)
        descriptor = descriptors[kind]
        with worker.journal.operation("lock", kind=kind):
            _change_lock(descriptor, kind, lock=True)
        with worker.journal.operation("count", kind=kind) as learned:
            (learned["found"],) = SLOT.unpack(os.pread(descriptor, SLOT.size, 0))
            os.pwrite(descriptor, SLOT.pack(learned["found"] + 1), 0)
            os.fsync(descriptor)
        with worker.journal.operation("unlock", kind=kind):
            _change_lock(descriptor, kind, lock=False)
    with worker.journal.operation("close"):
        for descriptor in descriptors.values():
            os.close(descriptor)


def _change_lock(descriptor: int, kind: str, *, lock: bool) -> None:
    if kind == "flock":
        fcntl.flock(descriptor, fcntl.LOCK_EX if lock else fcntl.LOCK_UN)
        return
    # struct flock of x86-64: type, whence, start, length, pid
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK if lock else fcntl.F_UNLCK, 0, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if kind == "ofd" else fcntl.F_SETLKW, request)


def maps(worker: Worker) -> None:
    """Count in a word of one's own of a mapped page that all map; look at the others' words."""
    descriptor = os.open(worker.mount / "page", os.O_RDWR)
    own = int(worker.name.rpartition("-")[2]) % MAP_SLOTS
    # Words are loaded and stored by one instruction each. (struct.pack_into is not: it writes zeros first, and
    # another client has seen them, because it got the page in between.)
    with mmap.mmap(descriptor, MAP_SIZE) as mapped, memoryview(mapped) as view, view.cast("Q") as words:
        os.close(descriptor)  # the mapping keeps it open
        value = words[own]
        for _ in worker.turns():
            value += 1
            with worker.journal.operation("store", slot=own, value=value):
                words[own] = value
            with worker.journal.operation("look") as learned:
                page = [words[slot] for slot in range(MAP_SLOTS)]
                learned["page"] = {str(slot): word for slot, word in enumerate(page) if word}
            if worker.random.random() < 0.2:
                with worker.journal.operation("msync"):
                    mapped.flush()
        with worker.journal.operation("msync"):
            mapped.flush()


KINDS: Final[dict[str, Callable[[Worker], None]]] = {
    "creates": creates,
    "renames": renames,
    "appends": appends,
    "records": records,
    "locks": locks,
    "maps": maps,
}


def prepare(export: Path) -> None:
    """What the workers expect to be there, made by the server before anybody mounts it."""
    for name in ("names", "renames"):
        (export / name).mkdir()
    (export / "renames" / "ball").touch()
    (export / "log").touch()
    (export / "page").write_bytes(bytes(MAP_SIZE))
    for kind in LOCKS:
        (export / f"count-{kind}").write_bytes(bytes(SLOT.size))


def main(kind: str, name: str, mount: str, control: str, seed: str) -> int:
    """Work; the exit status."""
    worker = Worker(name, Path(mount), Path(control), int(seed))
    try:
        KINDS[kind](worker)
    except OSError as exc:
        print(f"{time.monotonic_ns()} {name}: {exc}", file=sys.stderr, flush=True)
        return 1
    worker.journal.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

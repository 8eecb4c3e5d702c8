"""Works with the data of one large file."""

from __future__ import annotations

from functools import partial
from typing import Final

from scripts.benchmark.figures import Measured, Value, duration, microseconds_each, per_second, rate
from scripts.benchmark.ground import MIB, Ground, Work


def _data(ground: Ground, work: str, path: object, size: int, count: int = 1) -> Measured:
    return ground.program("bench_data", work, str(path), size, count)


def _bulk(ground: Ground) -> str:
    size = ground.sizes.bulk_bytes
    return ground.made_once("bulk", lambda path: _data(ground, "write", path, size))


def _rate(measured: Measured) -> Value:
    return per_second(measured, "bytes", MIB)


def sequential_write(ground: Ground) -> tuple[Value, ...]:
    """The file that other works need is written: new for each, as a file that exists costs less."""
    ground.removed("bulk")
    (ground.writer / "bulk").unlink(missing_ok=True)
    measured: list[Measured] = []
    size = ground.sizes.bulk_bytes
    ground.made_once("bulk", lambda path: measured.append(_data(ground, "write", path, size)))
    return (_rate(measured[0]),)


def sequential_read(ground: Ground) -> tuple[Value, ...]:
    """By a client that did not write it; then once more."""
    return _twice(ground, "read")


def _twice(ground: Ground, what: str) -> tuple[Value, ...]:
    name = _bulk(ground)
    with ground.fresh() as client:
        read = partial(_data, ground, what, client / name, ground.sizes.bulk_bytes)
        return _rate(read()), _rate(read())


def scan(ground: Ground) -> tuple[Value, ...]:
    """A mapping is read by a client that did not write it; then once more."""
    return _twice(ground, "scan")


def store(ground: Ground) -> tuple[Value, ...]:
    """A mapping is written by the client that made the file."""
    size = ground.sizes.mapped_bytes
    name = ground.made_once("mapped", lambda path: _data(ground, "write", path, size))
    return (_rate(_data(ground, "store", ground.writer / name, size)),)


def random_read(ground: Ground) -> tuple[Value, ...]:
    """By a client that did not write it."""
    name = _bulk(ground)
    sizes = ground.sizes
    with ground.fresh() as client:
        measured = _data(ground, "random", client / name, sizes.bulk_bytes, sizes.random_reads)
        return (microseconds_each(measured),)


def write_and_sync(ground: Ground) -> tuple[Value, ...]:
    """In the writer's own file."""
    name = _bulk(ground)
    sizes = ground.sizes
    return (microseconds_each(_data(ground, "fsync", ground.writer / name, sizes.bulk_bytes, sizes.syncs)),)


def append(ground: Ground) -> tuple[Value, ...]:
    """To a new file, closed in the end."""
    path = ground.writer / "appended"
    path.unlink(missing_ok=True)
    return (microseconds_each(_data(ground, "append", path, MIB, ground.sizes.appends)),)


DATA_WORKS: Final = (
    Work("seq-write", (rate("seq-write", "sequential write + fsync", "MiB/s"),), sequential_write),
    Work(
        "seq-read",
        (
            rate("seq-read-cold", "sequential read, cold", "MiB/s"),
            rate("seq-read-warm", "sequential read, warm", "MiB/s"),
        ),
        sequential_read,
    ),
    Work(
        "mmap-scan",
        (
            rate("mmap-scan", "mmap scan, cold", "MiB/s"),
            rate("mmap-scan-warm", "mmap scan, warm", "MiB/s"),
        ),
        scan,
    ),
    Work("mmap-store", (rate("mmap-store", "mmap store + msync", "MiB/s"),), store),
    Work("random-read", (duration("random-read", "random 4 KiB read, cold", "us"),), random_read),
    Work("write-fsync", (duration("write-fsync", "4 KiB write + fsync", "us"),), write_and_sync),
    Work("append", (duration("append", "100 B append", "us"),), append),
)

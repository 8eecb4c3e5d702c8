"""Works of several clients at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import Figure, Measured, Value, duration, microseconds_each, rate
from scripts.benchmark.ground import MIB, Cannot, Ground, NotMeasured, Work
from scripts.proof.programs import fields

CLIENTS: Final = (1, 2, 4, 8)


def ping_pong(ground: Ground) -> tuple[Value, ...]:
    """A word in a mapped page goes back and forth; beside it eight bytes over a bare TCP connection."""
    paths = [client / "ball" for client in (ground.writer, ground.second())]
    cost = ground.system.cost()
    ran = ground.run("pingpong", ground.sizes.turns, *paths)
    cost = ground.system.cost() - cost
    mapped, tcp = (float(fields(line.split(maxsplit=1)[1])["median_us"]) for line in ran.output.splitlines())
    return Value(mapped, cost.each(ground.sizes.turns)), Value(2 * tcp)


def locks(ground: Ground) -> tuple[Value, ...]:
    """An fcntl lock goes back and forth."""
    paths = [client / "locks" for client in (ground.writer, ground.second())]
    measured = ground.program("bench_locks", ground.sizes.locks, *paths)
    return (microseconds_each(measured, "locks"),)


def visibility(ground: Ground) -> tuple[Value, ...]:
    """From the return of write(2) on one client to the return of the read(2) on the other that has it."""
    paths = [client / "seen" for client in (ground.writer, ground.second())]
    ran = ground.run("visible", "write-read", ground.sizes.looks, *paths)
    return (Value(float(fields(ran.output.split(maxsplit=1)[1])["median_us"])),)


def _load(ground: Ground, count: int) -> tuple[Value, ...]:
    """*count* clients at once, an equal part of the load for each: all write a file and fsync, then each reads
    what its neighbour wrote; then all make small files. MiB/s, files/s, and how much of one processor the
    server took for both, in percent."""
    clients = [ground.system.mount() for _ in range(count)]
    try:
        size = max(ground.sizes.load_bytes // count // MIB, 1) * MIB
        files = max(ground.sizes.files // count, 1)
        began = ground.system.cost()
        mine = [client / f"load-{count}-{i}" for i, client in enumerate(clients)]
        neighbours = [client / f"load-{count}-{(i + 1) % count}" for i, client in enumerate(clients)]
        trees = [client / f"load-files-{count}-{i}" for i, client in enumerate(clients)]
        bulk = _together([partial(_data, ground, "write", path, size) for path in mine])
        bulk += _together([partial(_data, ground, "read", path, size) for path in neighbours])
        half = ground.system.cost()
        small = _together([partial(_files, ground, "create", path, files) for path in trees])
        end = ground.system.cost()
        for path, tree in zip(mine, trees, strict=True):
            path.unlink()
            _files(ground, "remove", tree, files)
    finally:
        for client in clients:
            ground.system.unmount(client)
    mebibytes, made = 2 * count * size / MIB, count * files
    return (
        Value(mebibytes / bulk, (half - began).each(mebibytes)),
        Value(made / small, (end - half).each(made)),
        Value((end - began).server / (bulk + small) * 100),
    )


def _data(ground: Ground, work: str, path: Path, size: int) -> Measured:
    return ground.program("bench_data", work, path, size, 1)


def _files(ground: Ground, work: str, path: Path, count: int) -> Measured:
    return ground.program("bench_files", work, path, count)


def _together(jobs: Sequence[Callable[[], object]]) -> float:
    """Run all at once; seconds until the last has ended."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        began = time.perf_counter()
        for future in [pool.submit(job) for job in jobs]:
            future.result()
        return time.perf_counter() - began


def _load_work(count: int) -> Work:
    clients = "1 client" if count == 1 else f"{count} clients"
    figures: tuple[Figure, ...] = (
        rate(f"clients-{count}", f"{clients}: write and read", "MiB/s"),
        rate(f"clients-{count}-files", f"{clients}: create files", "files/s"),
        duration(f"clients-{count}-cpu", f"{clients}: the server's processor", "%"),
    )
    return Work(f"clients-{count}", figures, lambda ground: _load(ground, count))


def _only_shared(measure: Callable[[Ground], tuple[Value, ...]]) -> Callable[[Ground], tuple[Value, ...]]:
    """Without locks and coherence a program fails in some way of its own; the table says that it cannot."""

    def measured(ground: Ground) -> tuple[Value, ...]:
        try:
            return measure(ground)
        except NotMeasured as exc:
            raise Cannot(f"cannot: {exc}") from exc

    return measured


SHARED_WORKS: Final = (
    Work(
        "ping-pong",
        (
            duration("ping-pong", "mmap ping-pong, a turn", "us"),
            duration("loopback", "(a bare loopback round trip)", "us"),
        ),
        _only_shared(ping_pong),
    ),
    Work("locks", (duration("locks", "lock ping-pong, a turn", "us"),), _only_shared(locks)),
    Work("visibility", (duration("visibility", "write(2) seen by read(2)", "us"),), _only_shared(visibility)),
    *map(_load_work, CLIENTS),
)

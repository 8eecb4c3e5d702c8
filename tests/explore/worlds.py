"""Small worlds, all states of which can be seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.explore.connected import Disturbances
from tests.explore.programs import (
    Script,
    SmallWorld,
    evict,
    flush,
    fsync,
    leave,
    load,
    made,
    open_again,
    read,
    read_ahead,
    run_another,
    splice,
    store,
    truncate,
    write,
)

READER: Final = Script(1, (load(),), writing=False)
WATCHER: Final = Script(1, (), writing=False)
"""Has the file open, and does nothing."""

STORER: Final = Script(1, (store(2),))

CROSSING: Final = SmallWorld(
    (
        Script(0, (load(4096),), before=(store(1),)),
        Script(1, (load(0),), before=(store(2, 4096),)),
    ),
    pages=2,
)
"""Each client has one page dirty and wants the other's."""

READ_AHEAD: Final = SmallWorld(
    (
        Script(0, (load(),), before=(load(), evict(), read_ahead(2))),
        Script(1, (load(),), before=(store(2, 4096),)),
    ),
    pages=2,
)
"""Client 1 holds the first of two pages that it reads at once; client 2 wants it, and has the other dirty."""

CLOSED: Final = SmallWorld(
    (
        Script(0, (leave(), open_again(), write(1)), mapped=False, before=(made(),)),
        Script(1, (read(),), writing=False, mapped=False),
    ),
    opens_late=True,
)
"""Client 1 shares the file as it closes it, opens it again before or after the server is told of that, and
writes."""

LOST: Final = Disturbances(connections=1)
"""Client 1 loses its connection once, and connects again."""

CUT_OFF: Final = Disturbances(connections=1, leases=True)
"""Client 1 loses its connection once, for as long as it takes: its lease may run out."""

KILLED: Final = Disturbances(restarts=1)
"""The server is killed once, at any moment, and started again."""

SMALL = {
    "a store and a load": SmallWorld((Script(0, (store(1),)), READER)),
    "two stores": SmallWorld((Script(0, (store(1),)), STORER)),
    "a store and a pread": SmallWorld((Script(0, (store(1),)), Script(1, (read(),), mapped=False))),
    "a pwrite and a load": SmallWorld((Script(0, (write(1),), mapped=False), READER)),
    "a pwrite and a store": SmallWorld((Script(0, (write(1),), mapped=False), STORER)),
    "a pwrite of two pages, and a store": SmallWorld(
        (Script(0, (write(1, pages=2),), mapped=False), STORER), pages=2
    ),
    "a pwrite that is fsynced, and a load": SmallWorld((Script(0, (write(1), fsync()), mapped=False), READER)),
    "a store by a client that may die, and a load": SmallWorld((Script(0, (store(1),)), READER), crashes=(0,)),
    "a truncation by a client that may die, and a store": SmallWorld(
        (Script(0, (truncate(8),)), STORER), crashes=(0,)
    ),
    "a store and a load, and a store": SmallWorld((Script(0, (store(1), load())), STORER)),
    "a store and a load, and a load": SmallWorld((Script(0, (store(1), load())), READER)),
    "a store and a truncation, and a load": SmallWorld((Script(0, (store(1), truncate(8))), READER)),
    "a store and a close, and a load": SmallWorld((Script(0, (store(1), leave())), READER)),
    "a store and an execve, and a load": SmallWorld((Script(0, (store(1), run_another())), READER)),
    "a new file that is closed and written once more, and a pread": CLOSED,
    "a store beside the flusher, and a load": SmallWorld(
        (Script(0, (store(1),)), Script(0, (flush(),), mapped=False), READER)
    ),
    "a store beside memory pressure, and a store": SmallWorld(
        (Script(0, (store(1),)), Script(0, (evict(),), mapped=False), STORER)
    ),
    "a read of two pages, of which each client has one": READ_AHEAD,
    "opening, a store and a load": SmallWorld((Script(0, (store(1),)), READER), opens_late=True),
    "a store over two connections, and a load": SmallWorld(
        (Script(0, (store(1),)), READER), disturbances=LOST
    ),
    "a pwrite beyond the end, and a splice": SmallWorld(
        (
            Script(0, (write(1, 4096),), mapped=False),
            Script(1, (splice(4096),), writing=False, mapped=False),
        )
    ),
    "a pwrite beyond the end over two connections, and a splice": SmallWorld(
        (
            Script(0, (write(1, 4096),), mapped=False),
            Script(1, (splice(4096),), writing=False, mapped=False),
        ),
        disturbances=LOST,
    ),
    "a truncation over two connections": SmallWorld(
        (Script(0, (truncate(8),)), WATCHER), disturbances=LOST
    ),
    "a client with a dirty page that is cut off, and a load": SmallWorld(
        (Script(0, (), before=(store(1),)), READER), disturbances=CUT_OFF
    ),
    "a client with a dirty page that may die, and is fenced, and a load": SmallWorld(
        (Script(0, (), before=(store(1),)), READER), crashes=(0,), disturbances=Disturbances()
    ),
    "a truncation, and a server that is killed": SmallWorld(
        (Script(0, (truncate(8),)),), clients=1, disturbances=KILLED
    ),
    "a store and a load, and a server that is killed": SmallWorld(
        (Script(0, (store(1), load())),), clients=1, disturbances=KILLED
    ),
}
SMALL |= {
    f"{name}, answered where they arrive": replace(SMALL[name], later=True)
    for name in (
        "a store and a load",
        "a store and a load, and a store",
        "a store beside memory pressure, and a store",
        "a read of two pages, of which each client has one",
        "a store by a client that may die, and a load",
        "a store over two connections, and a load",
    )
}
"""Some 10,800 states, all together: a minute or so."""

LARGE: Final = {
    "a reader that is cut off, and a pwrite": SmallWorld(
        (Script(0, (load(),), writing=False, before=(load(),)), Script(1, (write(2),), mapped=False)),
        disturbances=CUT_OFF,
    ),
    "a store, and a server that is killed under two clients": SmallWorld(
        (Script(0, (store(1),)), WATCHER), disturbances=KILLED
    ),

    "each wants the other's page": CROSSING,
    "a store and a pwrite on one client, and a load": SmallWorld(
        (Script(0, (store(1),)), Script(0, (write(2),), mapped=False), READER)
    ),
    "a store and a pread on one client, and a store": SmallWorld(
        (Script(0, (store(1),)), Script(0, (read(),), mapped=False), STORER)
    ),
    "a store by a client that may die, and a store and a load": SmallWorld(
        (Script(0, (store(1),)), Script(1, (store(2), load()))), crashes=(0,)
    ),
    "three clients": SmallWorld((Script(0, (store(1),)), READER, Script(2, (store(2),))), clients=3),
    "a page that is dirty again and read directly, and a store": SmallWorld(
        (Script(0, (store(3),), before=(store(1),)), Script(0, (read(),), mapped=False), STORER)
    ),
    "a page that is dirty again and written directly, and a load": SmallWorld(
        (Script(0, (store(3),), before=(store(1),)), Script(0, (write(4),), mapped=False), READER)
    ),
}
"""For ``python -m tests.explore``: up to tens of thousands of states each."""

"""Small worlds that can be seen completely, and how many states they have."""

from __future__ import annotations

from typing import Final

from tests.explore.programs import Script, SmallWorld, evict, flush, leave, load, read, store, truncate, write

READER: Final = Script(1, (load(),), writing=False)

SMALL: Final = {
    "a store and a load": SmallWorld((Script(0, (store(1),)), READER)),
    "two stores": SmallWorld((Script(0, (store(1),)), Script(1, (store(2),)))),
    "a store and a pread": SmallWorld((Script(0, (store(1),)), Script(1, (read(),), mapped=False))),
    "a pwrite and a load": SmallWorld((Script(0, (write(1),), mapped=False), READER)),
    "a pwrite and a store": SmallWorld((Script(0, (write(1),), mapped=False), Script(1, (store(2),)))),
    "a store by a client that may die, and a load": SmallWorld((Script(0, (store(1),)), READER), crashes=(0,)),
}
"""A minute or two, all together."""

LARGE: Final = {
    "a store and a load, and a store": SmallWorld((Script(0, (store(1), load())), Script(1, (store(2),)))),
    "a store and a load, and a load": SmallWorld((Script(0, (store(1), load())), READER)),
    "a store and a pwrite on one client, and a load": SmallWorld(
        (Script(0, (store(1),)), Script(0, (write(2),), mapped=False), READER)
    ),
    "a store and a pread on one client, and a store": SmallWorld(
        (Script(0, (store(1),)), Script(0, (read(),), mapped=False), Script(1, (store(2),)))
    ),
    "a store and a truncation, and a load": SmallWorld((Script(0, (store(1), truncate(8))), READER)),
    "a store and a close, and a load": SmallWorld((Script(0, (store(1), leave())), READER)),
    "a store beside the flusher, and a load": SmallWorld(
        (Script(0, (store(1),)), Script(0, (flush(),), mapped=False), READER)
    ),
    "a store beside memory pressure, and a store": SmallWorld(
        (Script(0, (store(1),)), Script(0, (evict(),), mapped=False), Script(1, (store(2),)))
    ),
    "a pwrite of two pages, and a store": SmallWorld(
        (Script(0, (write(1, pages=2),), mapped=False), Script(1, (store(2),))), pages=2
    ),
    "opening, a store and a load": SmallWorld((Script(0, (store(1),)), READER), opens_late=True),
    "three clients": SmallWorld((Script(0, (store(1),)), READER, Script(2, (store(2),))), clients=3),
}
"""For `scripts/soak`: some have hundreds of thousands of states."""

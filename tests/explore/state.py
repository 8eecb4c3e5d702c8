"""When are two worlds the same? When everything that can still matter is: objects, and where coroutines are.

`fingerprint` walks all that is reachable from what it is given. Objects count by what they hold and by who else
holds them, coroutines and generators by where they wait and with which local variables; dictionaries and sets
regardless of the order in which they were filled. Left out is what cannot matter: counters that only make
numbers nobody has, statistics, records of the past, and the parts of an engine, which are given by hand where
they have state (`World.parts`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from types import (
    BuiltinMethodType,
    CellType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Final

from nfsfuse.engine.directories import Directories
from nfsfuse.engine.files import Files
from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.locks import Locks
from nfsfuse.engine.name_changes import NameChanges
from nfsfuse.engine.names import Names
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.ranges import Ranges
from nfsfuse.engine.reading import Reader
from nfsfuse.engine.recalls import Recalls
from nfsfuse.engine.session import Session as ClientSession
from nfsfuse.engine.suspension import Suspension
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.data_tokens import Revocations
from nfsfuse.machines.inodes import InodeTable
from nfsfuse.machines.page_cache import FilePages, PageCache
from nfsfuse.protocol.intervals import IntervalMap, IntervalSet
from nfsfuse.rpc.channel import Asked, Channel
from nfsfuse.rpc.exchange import RequestArrived
from nfsfuse_server.service.driver import Driver
from nfsfuse_server.service.growths import Growths as ServerGrowths
from nfsfuse_server.service.recovery import Recovery
from nfsfuse_server.service.requests import Requests
from nfsfuse_server.service.service import Service
from nfsfuse_server.service.session import Session
from nfsfuse_server.service.tokens import Tokens
from nfsfuse_server.state.journal import Journal
from tests.explore.connected import ConnectedClient, ConnectedWorld
from tests.explore.programs import Process
from tests.explore.runner import Nursery, OpenNursery, Runner
from tests.explore.wire import End, Wire
from tests.explore.world import Client, World
from tests.helpers.kernel_model import KernelModel
from tests.helpers.memory_storage import MemoryStorage

LEFT_OUT: Final[tuple[type, ...]] = (
    Runner, Nursery, itertools.count, ModuleType, SimpleNamespace, type, PageCache,
    Filesystem, Files, Holdings, NameChanges, Names, PageProtocol, Reader, Recalls, Writer, WriteBack,
    InodeTable, KernelModel, Driver, Requests, Session, Service, Journal, Recovery, Tokens, MemoryStorage,
    World, Client, Process,
    ConnectedWorld, ConnectedClient, Wire, End, OpenNursery, ClientSession, Channel, Suspension, Directories,
    Locks, Ranges, Growths, ServerGrowths,
)  # fmt: skip
FIELDS_LEFT_OUT: Final = frozenset(
    {
        "requests",
        "writes_sent",
        "bytes_sent",
        "_events",
        "note",
        "invalidations",
        "name",
        "group",
        "label",
        "number",
    }
)
_ATOMS: Final = (int, str, bytes, bool, float, type(None))


class _Walk:
    def __init__(self) -> None:
        self.out: list[Any] = []
        self._seen: dict[int, int] = {}

    def visit(self, thing: Any) -> None:
        kind = type(thing)
        if kind in _ATOMS:
            self.out.append(thing)
            return
        if kind is tuple:
            self._items(thing)
            return
        how = _how(kind)
        if how is None:
            return
        known = self._seen.get(id(thing))
        if known is not None:
            self.out.append(("seen", known))
            return
        self._seen[id(thing)] = len(self._seen)
        how(self, thing)

    def _items(self, things: Any) -> None:
        self.out.append(len(things))
        for thing in things:
            self.visit(thing)

    def _enum(self, thing: Enum) -> None:
        del self._seen[id(thing)]
        self.out.append(thing.name)

    def _bytes(self, thing: Any) -> None:
        self.out.append(bytes(thing))

    def _pairs(self, pairs: dict[Any, Any]) -> None:
        self.out.append(len(pairs))
        try:
            keys = sorted(pairs)
        except TypeError:
            keys = list(pairs)
        for key in keys:
            self.visit(key)
            self.visit(pairs[key])

    def _set(self, things: Any) -> None:
        self.out.append(("set", *sorted(map(fingerprint, things))))

    def _intervals(self, thing: Any) -> None:
        self._items(list(thing))

    def _in_order(self, revocations: Revocations) -> None:
        self._items(list(revocations))

    def _pages(self, pages: FilePages) -> None:
        for intervals in (pages.valid, pages.dirty, pages.writing):
            self._items(intervals.intervals())
        for start, end in pages.valid.intervals():
            data = pages.read(start, end)
            assert data is not None
            self.out.append(bytes(data))

    def _method(self, thing: Any) -> None:
        self.out.append(thing.__func__.__qualname__)
        self.visit(thing.__self__)

    def _function(self, thing: Any) -> None:
        self.out.append(thing.__qualname__)
        self._items(thing.__closure__ or ())

    def _builtin(self, thing: Any) -> None:
        self.out.append(thing.__name__)
        self.visit(thing.__self__)

    def _cell(self, thing: Any) -> None:
        try:
            content = thing.cell_contents
        except ValueError:
            content = None
        self.visit(content)

    def _partial(self, thing: Any) -> None:
        self.visit(thing.func)
        self._items(thing.args)

    def _asked(self, asked: Asked) -> None:
        self._items((asked.message, asked.posted, asked.apply, asked.failed))

    def _arrived(self, arrived: RequestArrived) -> None:
        self._items((arrived.message, arrived.payload))

    def _suspended(self, thing: Any) -> None:
        """A coroutine or generator, and what it waits for in turn."""
        while True:
            if isinstance(thing, CoroutineType):
                frame, inner = thing.cr_frame, thing.cr_await
            elif isinstance(thing, GeneratorType):
                frame, inner = thing.gi_frame, thing.gi_yieldfrom
            else:
                return
            if frame is None:
                self.out.append("ended")
                return
            self.out.append(frame.f_code.co_name)
            self.out.append(frame.f_lasti)
            variables = frame.f_locals  # in the order in which they were first looked at with a value
            for name in sorted(variables):
                self.visit(variables[name])
            thing = inner

    def _fields(self, thing: Any) -> None:
        kind = type(thing)
        self.out.append(kind.__name__)
        for name in _slots(kind):
            if hasattr(thing, name):
                self.visit(getattr(thing, name))
        for name, value in getattr(thing, "__dict__", {}).items():
            if name not in FIELDS_LEFT_OUT:
                self.visit(value)


_HOW: Final[dict[type, Callable[[_Walk, Any], None]]] = {
    list: _Walk._items,
    deque: _Walk._items,
    dict: _Walk._pairs,
    OrderedDict: _Walk._pairs,
    set: _Walk._set,
    frozenset: _Walk._set,
    bytearray: _Walk._bytes,
    memoryview: _Walk._bytes,
    IntervalMap: _Walk._intervals,
    IntervalSet: _Walk._intervals,
    Revocations: _Walk._in_order,
    FilePages: _Walk._pages,
    CoroutineType: _Walk._suspended,
    GeneratorType: _Walk._suspended,
    MethodType: _Walk._method,
    FunctionType: _Walk._function,
    CellType: _Walk._cell,
    BuiltinMethodType: _Walk._builtin,
    partial: _Walk._partial,
    Asked: _Walk._asked,
    RequestArrived: _Walk._arrived,
}


@cache
def _how(kind: type) -> Callable[[_Walk, Any], None] | None:
    if issubclass(kind, LEFT_OUT):
        return None
    if issubclass(kind, Enum):
        return _Walk._enum
    return _HOW.get(kind, _Walk._fields)


@cache
def _slots(kind: type) -> tuple[str, ...]:
    names = (name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
    return tuple(name for name in names if name not in FIELDS_LEFT_OUT)


def fingerprint(*things: Any) -> int:
    """Equal for equal worlds; for others with a probability of 2**-60 or so."""
    walk = _Walk()
    for thing in things:
        walk.visit(thing)
    return hash(tuple(walk.out))

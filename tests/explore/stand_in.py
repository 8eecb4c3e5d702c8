"""What stands in for trio, and for connections, while worlds are explored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

import nfsfuse.engine.connector as client_connector
import nfsfuse_server.service.service as server_service
from nfsfuse.rpc.channel import Channel
from nfsfuse_server.service.session import Session
from tests.explore.runner import Event, Runner, trio_of

_PLACES: Final = ("nfsfuse.engine.", "nfsfuse.rpc.channel", "nfsfuse_server.service.", "tests.helpers.kernel_")


@contextmanager
def without_trio(runner: Runner) -> Iterator[None]:
    """What is made and run meanwhile waits by *runner*, and its connections are `tests.explore.wire`'s."""
    stand_in = trio_of(runner)
    wanted: list[tuple[ModuleType, str, object]] = [
        (module, "trio", stand_in)
        for name, module in sorted(sys.modules.items())
        if name.startswith(_PLACES) and hasattr(module, "trio")
    ]
    wanted += [
        (client_connector, "Link", _as_it_is),
        (server_service, "Channel", partial(Channel, clock=lambda: runner.now)),
        (server_service, "Session", partial(_session, runner)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
    for module, name, thing in wanted:
        setattr(module, name, thing)
    try:
        yield
    finally:
        for module, name, thing in before:
            setattr(module, name, thing)


def _as_it_is(stream: object) -> object:
    """A connection is its link already."""
    return stream


def _session(runner: Runner, *arguments: Any) -> Session:
    """Its default for *over* is trio's, and was taken before anybody could stand in for that."""
    session = Session(*arguments)
    session.over = event_of(runner)
    return session


event_of: Final[Callable[[Runner], Any]] = Event

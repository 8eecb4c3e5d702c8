"""Files without a name at the server: nothing is left of those that nobody waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import Credentials
from nfsfuse_server.service.calls import Call, Quick
from nfsfuse_server.service.requests import HANDLERS
from tests.helpers.memory_storage import MemoryStorage


def test_one_that_is_made_when_its_program_has_been_killed_is_left_to_be_unpinned() -> None:
    """The call that makes it may be in a thread, and is not given up half-way."""
    storage = MemoryStorage()
    message = m.TmpFile(storage.root().handle, 0o600, Credentials(0, 0))
    call = cast(Call, SimpleNamespace(storage=storage, message=message, unwanted=()))
    handling = HANDLERS[m.TmpFile](call)
    step = next(handling)
    assert isinstance(step, Quick)
    step.call()
    handling.close()
    assert list(call.unwanted) == storage.orphans()
    (handle,) = call.unwanted
    storage.unpin(handle)
    assert storage.orphans() == []
    storage.check()

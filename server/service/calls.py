"""What a handler of a request is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nfsfuse.protocol.messages import Message
from nfsfuse.rpc.exchange import Payload
from server.service.disk import Disk
from server.service.session import Session
from server.storage.interface import Storage

Reply = Message | tuple[Message, Payload]
"""A reply, with a payload where it has one."""

Answer = Reply | Coroutine[Any, Any, Reply]
"""What a handler returns: the reply itself if it could be had at once, else a coroutine that waits for it.
Most requests are answered at once, and cost no task."""


@dataclass(slots=True, eq=False)
class Environment:
    """What every handler works with."""

    storage: Storage
    disk: Disk


Handler = Callable[[Environment, Session, Any, bytes | bytearray], Answer]

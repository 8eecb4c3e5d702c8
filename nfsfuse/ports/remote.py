"""What the client's engine needs of the server's side of the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import InodeHandle, OpenId
from nfsfuse.rpc.exchange import Answering, Payload

R = TypeVar("R", bound=Message)


class Remote(Protocol):
    """A session with a server."""

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Callable[[Message, bytes | bytearray], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> tuple[R, bytes | bytearray]:
        """Ask the server. See `nfsfuse.rpc.channel.Channel.call` for *apply*, *failed* and cancellation.
        Raises FsError only."""

    def ask(
        self,
        message: Request[Message],
        payload: Payload,
        apply: Callable[[Message, bytes | bytearray], None],
        failed: Callable[[FsError], None],
    ) -> Callable[[], None]:
        """Ask the server at once, without a task that waits; only if it `has_room`, but for what a recall may
        need. *apply* or *failed* is run when the answer arrives, as those of `call` are, or when the session is
        over, which it may be by now. What is returned tells the server that nobody waits any more, as a `call`
        that is cancelled does; *apply* or *failed* is run all the same."""

    @property
    def answering(self) -> Answering:
        """Which answer it is whose *apply* is being run."""

    def has_room(self) -> bool:
        """Whether a `call` would be sent at once, for all that is unanswered."""

    def post(self, message: Request[Message]) -> None:
        """Tell the server something whose reply nobody waits for."""

    def return_tokens(self, tokens: tuple[Token, ...]) -> None:
        """Tell the server that *tokens* were given up unasked. Grants that are on their way are not meant."""

    def release(self, open_id: OpenId, tokens: tuple[Token, ...], *, at_once: bool = False) -> None:
        """Tell the server of the last close of an open file, and with it what `return_tokens` tells. It is told
        a little later, together with others, unless *at_once*."""

    def accessed(self, handle: InodeHandle) -> None:
        """Tell the server that a file's time of access has changed, a little later, together with others."""

    def tell_pending(self) -> None:
        """Tell it now of the closes and accesses that wait for others: before whatever is asked next."""

    def leased(self, *, finishing: bool = False) -> bool:
        """Whether what is held may be believed at this very instant: the lease runs. Asked right where an
        answer is given from a cache, or new dirty data are taken in. *finishing*: also while caches are being
        dropped because it is about to run out, for what that may be waiting for."""

    async def until_leased(self) -> None:
        """Wait until `leased`."""

"""The file service: sessions, and the connections over which they come.

A connection begins with a greeting, which opens a session or goes on with one that has lost its connection.
A session ends in order (`Goodbye`), with its lease (`server.machines.leases`), with a frame that no correct
client sends, or when its client's new daemon says that it replaces it; never merely with its connection.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import KEPT_BYTES_MAX, PROTOCOL_VERSION
from nfsfuse.protocol.types import ClientId, Epoch, SessionId
from nfsfuse.rpc import greeting
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import ByteStream, ConnectionLost
from server.machines.leases import Leases
from server.service.disk import Disk
from server.service.driver import Driver
from server.service.locks import Locks
from server.service.requests import MAY_ASK, Requests
from server.service.session import Session
from server.service.tokens import Tokens
from server.storage.interface import Storage

log = logging.getLogger(__name__)

HELLO_SECONDS_MAX: Final = 10.0
"""How long a connection may stay without a Hello: strangers must not use up descriptors."""

IDENTITY_SIZE: Final = 16
"""Bytes in a client's and a session's id."""

LEASE_CHECKS: Final = 20
"""How often leases are looked at while one of them runs."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the administrator chooses."""

    lease_ms: int = 10_000


class Service:
    """One export, served to any number of sessions. `run` it, and give it connections (`serve`)."""

    def __init__(
        self,
        storage: Storage,
        options: ServiceOptions,
        epoch: Epoch,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._storage = storage
        self._options = options
        self._epoch = epoch
        self._random_bytes = random_bytes
        self._root = storage.root()
        self._nursery: trio.Nursery | None = None
        self.sessions: dict[SessionId, Session] = {}
        self.leases = Leases(options.lease_ms / 1000)
        self.tokens = Tokens(self.sessions, storage.pin, storage.unpin, self.leases)
        self.locks = Locks()
        self.driver = Driver(self.tokens, self.locks, Disk())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the sessions until cancelled. Cancelled, they are left as they are: they may be reclaimed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(self._options.lease_ms / 1000 / LEASE_CHECKS)
                self._fence_expired()

    # --- connections ---

    async def serve(self, stream: ByteStream, peer: str) -> None:
        """Serve one connection until it ends. Whatever its peer does wrong ends it, and the session with it,
        with a line in the log, and nothing else."""
        link = Link(stream)
        session: Session | None = None
        try:
            hello = await self._hello(link, peer)
            if hello is not None:
                session = await self._welcome(link, hello)
                await session.channel.serve(link)
        except ConnectionLost as exc:
            if session is None:
                log.warning("%s: connection ended: %s", peer, exc)
            elif not session.over.is_set():
                log.info("%s: connection ended: %s", session, exc)
        except ProtocolError as exc:
            log.warning("%s: connection ended: %s", session or peer, exc)
            if session is not None:
                session.end(str(exc))
        except FsError as exc:
            log.warning("%s: refused: %s", peer, exc)
        finally:
            link.close()

    async def _hello(self, link: Link, peer: str) -> m.Hello | None:
        with trio.move_on_after(HELLO_SECONDS_MAX):
            return await greeting.be_greeted(link)
        log.warning("%s: said nothing for %g s", peer, HELLO_SECONDS_MAX)
        return None

    async def _welcome(self, link: Link, hello: m.Hello) -> Session:
        """The session of a client that said *hello*, with *link* attached. Raises FsError if it is refused."""
        try:
            self._check(hello)
        except FsError as exc:
            await greeting.refuse(link, exc)
            raise
        replaced = self.sessions.get(hello.replaces)
        if replaced is not None:
            log.warning("%s: ended, its client has come back without it", replaced)
            replaced.end("replaced")
        session = self._resumable(hello)
        resumed = session is not None
        if session is None:
            session = await self._open(hello, SessionId(self._random_bytes(IDENTITY_SIZE)))
        # Nothing is awaited between the count and the link: what still came by the old one would be counted
        # by nobody, and sent again.
        received = session.channel.frames_received
        greeting.welcome(
            link,
            m.Welcome(
                session.id, self._epoch, resumed, received, self._options.lease_ms, version("nfsfuse"),
                self._root,
            ),
        )  # fmt: skip
        try:
            session.channel.attach(link, hello.frames_received if resumed else 0)
        except ProtocolError as exc:
            session.end(str(exc))
            raise
        self.leases.resumed(session.id, trio.current_time())
        log.info("%s: %s", session, "connected again" if resumed else "session opened")
        return session

    @staticmethod
    def _check(hello: m.Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            raise FsError(
                errno.EPROTONOSUPPORT,
                f"the server speaks protocol version {PROTOCOL_VERSION}, the client {hello.version}",
            )
        if len(hello.client_id) != IDENTITY_SIZE:
            raise ProtocolError(f"a client id has {IDENTITY_SIZE} bytes")

    # --- sessions ---

    def _resumable(self, hello: m.Hello) -> Session | None:
        """The session that *hello* asks for, if there still is such."""
        session = self.sessions.get(hello.session_id)
        if session is None or session.over.is_set():
            return None
        if (session.client_id, self._epoch) != (hello.client_id, hello.epoch):
            raise ProtocolError("this session is another client's, or of another epoch")
        return session

    async def _open(self, hello: m.Hello, session_id: SessionId) -> Session:
        """A session of this id, which may be one that the client had before."""
        assert self._nursery is not None
        session = Session(session_id, ClientId(hello.client_id), hello.client_name)
        requests = Requests(session, self._storage, self.driver, self.tokens, self.leases)
        session.channel = Channel(Exchange(MAY_ASK), requests.arrived)
        await self._nursery.start(self._keep, session)
        return session

    async def _keep(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """A session from its beginning to its end."""
        self.sessions[session.id] = session
        self.leases.opened(session.id, trio.current_time())
        async with trio.open_nursery() as nursery:
            session.nursery = nursery
            task_status.started()
            await session.over.wait()
            nursery.cancel_scope.cancel()
        self._release(session)

    def _release(self, session: Session) -> None:
        """Release what a session that is over held. None of its requests is under way any more: a write that
        a slow disk still had to do would otherwise come after those of the next holder."""
        del self.sessions[session.id]
        self.leases.closed(session.id)
        self.locks.dropped(session)
        self.tokens.dropped(session)
        for handle in session.open_files.values():
            self._storage.unpin(handle)
        session.open_files.clear()
        log.info("%s: session closed", session)

    def _fence_expired(self) -> None:
        for session in self.sessions.values():
            self.leases.heard(session.id, session.channel.heard_at)
        expired = self.leases.expired(trio.current_time())
        expired += [
            (session.id, f"{session.channel.kept_bytes} bytes are not acknowledged")
            for session in self.sessions.values()
            if session.channel.kept_bytes > KEPT_BYTES_MAX
        ]
        for session_id, why in expired:
            session = self.sessions[session_id]
            if not session.over.is_set():
                log.warning("%s: fenced: %s; what it held goes to others", session, why)
                session.end(why)

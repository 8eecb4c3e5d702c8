"""The file service: sessions, and the connections over which they come.

A connection begins with a greeting, which opens a session or goes on with one that has lost its connection.
A session ends in order (`Goodbye`), with its lease (`nfsfuse_server.machines.leases`), with a frame that no
correct client sends, or when its client's new daemon says that it replaces it; never merely with its
connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Final

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import KEPT_BYTES_MAX
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import ClientId, InodeHandle, SessionId
from nfsfuse.rpc import greeting
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import Exchange
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import ByteStream, ConnectionLost
from nfsfuse_server.machines.leases import MARGIN, Leases
from nfsfuse_server.machines.open_counts import OpenCounts
from nfsfuse_server.machines.sync_errors import SyncErrors
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.driver import Driver
from nfsfuse_server.service.growths import Growths
from nfsfuse_server.service.locks import Locks
from nfsfuse_server.service.orphans import sweep_orphans
from nfsfuse_server.service.recovery import Recovery
from nfsfuse_server.service.requests import MAY_ASK, Requests
from nfsfuse_server.service.session import Session
from nfsfuse_server.service.session_records import SessionRecords
from nfsfuse_server.service.tokens import Tokens
from nfsfuse_server.state.interface import KnownSession
from nfsfuse_server.state.recover import Recovered
from nfsfuse_server.storage.interface import Storage

log = logging.getLogger(__name__)

HELLO_SECONDS_MAX: Final = 10.0
"""How long a connection may stay without a Hello: strangers must not use up descriptors."""

IDENTITY_SIZE: Final = 16
"""Bytes in a client's and a session's id."""

LEASE_CHECKS: Final = 20
"""How often leases are looked at while one of them runs."""


@record(frozen=True, slots=True)
class ServiceOptions:
    """What the administrator chooses."""

    lease_ms: int = 10_000
    grace_seconds: float | None = None
    """None: as long as a client may believe what it holds, the lease and the margin."""


class Service:
    """One export, served to any number of sessions. `run` it, and give it connections (`serve`)."""

    def __init__(
        self,
        storage: Storage,
        options: ServiceOptions,
        recovered: Recovered,
        random_bytes: Callable[[int], bytes],
        disk: Disk | None = None,
    ) -> None:
        self._storage = storage
        self._options = options
        self._start = recovered.start
        self._epoch = recovered.start.epoch
        self._disk = disk or Disk()
        self._records = SessionRecords(recovered.start.sessions, recovered.registry, self._disk)
        self._random_bytes = random_bytes
        self._root = storage.root()
        self._nursery: trio.Nursery | None = None
        self._ending = False
        self.sessions: dict[SessionId, Session] = {}
        self.leases = Leases(options.lease_ms / 1000)
        self.sync_errors = SyncErrors()
        self.open_counts = OpenCounts()
        self.growths = Growths(self.sessions, self.open_counts, self.leases)
        self.tokens = Tokens(self.sessions, storage.pin, self._unpin, self.leases)
        self.locks = Locks(self.leases)
        self.journal = recovered.journal
        self.driver = Driver(
            self.tokens, self.locks, self.growths, self._disk, self.journal, self._acknowledged
        )
        self.recovery = Recovery(recovered.start, self.tokens, self.locks, self._grace_over)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the sessions until cancelled. Cancelled, they are left as they are: they may be reclaimed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            grace_seconds = self._options.grace_seconds
            if grace_seconds is None:
                # The administrator may have shortened the lease: sessions of the last epoch have the old one.
                grace_seconds = self._start.lease_seconds * (1 + MARGIN)
            self.recovery.begin(trio.current_time(), grace_seconds)
            await self._forget_late()
            task_status.started()
            try:
                await self._keep_leases()
            finally:
                self._end()

    async def _keep_leases(self) -> None:
        pause = self._options.lease_ms / 1000 / LEASE_CHECKS
        while True:
            planned = trio.current_time() + pause
            await trio.sleep_until(planned)
            late = trio.current_time() - planned
            if late > pause:
                self.leases.stood_still(late, trio.current_time())
                self.recovery.stood_still(late)
            self._fence_expired()
            await self._forget_late()
            await self._records.note_waits(lambda: self.recovery.waited(trio.current_time()))

    def _end(self) -> None:
        """The server ends: it takes in nothing more, from nobody. What it would begin now nobody would carry
        out; asked again, its successor does. Idempotent."""
        self._ending = True
        self.tokens.end()
        for session in self.sessions.values():
            session.channel.disconnect()

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
                try:
                    await session.channel.serve(link)
                finally:
                    if not session.channel.connected:  # else by another already
                        self.leases.disconnected(session.id)
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
        await self._replace(hello.replaces)
        session = self._resumable(hello)
        resumed = session is not None
        if session is None:
            session = await self._returned(hello) or await self._new(hello)
        self._check_goes_on()
        # Nothing is awaited between the count and the link: what still came by the old one would be counted
        # by nobody, and sent again.
        received = session.channel.frames_received
        greeting.welcome(
            link,
            m.Welcome(
                session.id, self._epoch, resumed, received, self._start.rebooted, self._options.lease_ms,
                version("nfsfuse"), self._root, self._storage.file_size_max, self._storage.keeps_access_times,
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

    def _check_goes_on(self) -> None:
        if self._ending:
            raise ConnectionLost("the server is ending")

    @staticmethod
    def _check(hello: m.Hello) -> None:
        if len(hello.client_id) != IDENTITY_SIZE:
            raise ProtocolError(f"a client id has {IDENTITY_SIZE} bytes")

    # --- sessions ---

    async def _replace(self, session_id: SessionId) -> None:
        """The client's daemon is dead, and another has come in its place."""
        replaced = self.sessions.get(session_id)
        if replaced is not None:
            log.warning("%s: ended, its client has come back without it", replaced)
            replaced.end("replaced")
        elif self.recovery.is_absent(session_id):
            await self._records.forget([session_id])
            self.journal.forget(session_id)
            self.recovery.replaced(session_id)

    def _resumable(self, hello: m.Hello) -> Session | None:
        """The session that *hello* asks for, if there still is such."""
        session = self.sessions.get(hello.session_id)
        if session is None or session.over.is_set() or hello.epoch != self._epoch:
            return None
        if session.client_id != hello.client_id:
            raise ProtocolError("this session is another client's")
        return session

    async def _returned(self, hello: m.Hello) -> Session | None:
        """The session of an earlier epoch that *hello* asks for, if it may be reclaimed."""
        if hello.epoch == self._epoch or not self.recovery.may_return(hello, trio.current_time()):
            return None
        session = self.sessions.get(hello.session_id)
        if session is None:
            session = await self._open(hello, hello.session_id)
        elif session.over.is_set():
            return None
        elif not session.started:
            raise ConnectionLost("its session is being opened over another connection")
        elif session.channel.frames_received:
            raise ProtocolError("this session has come back already")
        # Else the client has not seen the Welcome that it was sent first.
        self.recovery.returned(session, trio.current_time())
        await self._records.returned(session.id)  # before it is told, which renews its lease
        return None if session.over.is_set() else session

    async def _new(self, hello: m.Hello) -> Session:
        """A new session; a restarted server will know of it."""
        known = KnownSession(
            SessionId(self._random_bytes(IDENTITY_SIZE)), hello.client_id, hello.client_name, self._epoch
        )
        await self._records.add(known)
        return await self._open(hello, known.id)

    async def _open(self, hello: m.Hello, session_id: SessionId) -> Session:
        """A session of this id, which may be one that the client had before."""
        assert self._nursery is not None
        self._check_goes_on()
        session = Session(
            session_id, ClientId(hello.client_id), hello.client_name, self.sync_errors, self.open_counts
        )
        requests = Requests(
            session, self._storage, self.driver, self.tokens, self.leases, self.journal, self.recovery
        )
        clock = trio.lowlevel.current_clock().current_time  # it is asked for every frame
        session.channel = Channel(Exchange(MAY_ASK), requests.arrived, clock=clock)
        # Before anything is awaited: there is one session of an id.
        self.sessions[session.id] = session
        self.leases.opened(session.id, trio.current_time())
        await self._nursery.start(self._keep, session)
        return session

    async def _keep(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """A session from its beginning to its end."""
        async with trio.open_nursery() as nursery:
            session.nursery, session.started = nursery, True
            task_status.started()
            try:
                await session.over.wait()
            except trio.Cancelled:
                self._end()  # before the nursery is closed: no request is begun that it cannot run
                raise
            session.give_up_queued()
            nursery.cancel_scope.cancel()
        await self._records.forget([session.id])
        self._release(session)

    def _release(self, session: Session) -> None:
        """Release what a session that is over held. None of its requests is under way any more: a write that
        a slow disk still had to do would otherwise come after those of the next holder."""
        del self.sessions[session.id]
        self.leases.closed(session.id)
        self.sync_errors.ended(session.id)
        self.journal.forget(session.id)
        self.locks.dropped(session)
        self.tokens.dropped(session)
        self.growths.dropped(session)
        for open_id in list(session.open_files):
            self._unpin(session.released(open_id))
        log.info("%s: session closed", session)
        self.recovery.gone(session)

    def _unpin(self, handle: InodeHandle) -> None:
        """Unpin an inode; if that frees its space, in a task, whose end nobody waits for."""
        if not self._storage.unpin_nowait(handle):
            assert self._nursery is not None
            self._nursery.start_soon(self._disk.slow, partial(self._storage.unpin, handle))

    async def _forget_late(self) -> None:
        """End grace for those that have not come back in time."""
        late = self.recovery.expired(trio.current_time())
        if not late:
            return
        for session_id in late:
            session = self.sessions.get(session_id)
            if session is not None:  # it did, and has never completed its reclaims
                session.end("it has not reclaimed in time")
        await self._records.forget(late)
        for session_id in late:
            self.journal.forget(session_id)
        self.recovery.forgotten(late)

    def _grace_over(self) -> None:
        """Nobody is waited for any more."""
        assert self._nursery is not None
        if self._start.sessions:
            self._nursery.start_soon(self._end_grace)
        else:
            self._begin_granting()  # which the registry knows

    async def _end_grace(self) -> None:
        await self._records.grant()
        self._begin_granting()

    def _begin_granting(self) -> None:
        """Nothing can be reclaimed any more: what nobody has claimed is not kept for anybody."""
        assert self._nursery is not None
        self._nursery.start_soon(sweep_orphans, self._storage, self.driver, self._disk)
        self.recovery.end()

    def _acknowledged(self, session_id: SessionId) -> int:
        session = self.sessions.get(session_id)
        return 0 if session is None else session.channel.frames_acknowledged

    def _is_in_the_way(self, session_id: SessionId) -> bool:
        if self.locks.manager.has_locks(session_id):
            return True
        removed = set(self._storage.orphans())
        return any(handle in removed for handle in self.sessions[session_id].open_files.values())

    def _fence_expired(self) -> None:
        for session in self.sessions.values():
            self.leases.heard(session.id, session.channel.heard_at)
        now = trio.current_time()
        for session_id in self.locks.manager.in_the_way():
            self.leases.wanted(session_id, now)
        expired = self.leases.expired(now, self._is_in_the_way)
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

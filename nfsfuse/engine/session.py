"""A client's session with its server: connect, greet, ask; and connect again, for as long as the mount lives.

A session outlives its connections: requests and replies go on over the next one as if nothing had been
(`nfsfuse.rpc.sequence`). What it may believe meanwhile is decided by its lease (`nfsfuse.machines.lease`).
"""

from __future__ import annotations

import errno
import logging
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, TypeVar

import trio

from nfsfuse.engine.closes import Closes
from nfsfuse.machines.lease import Do, Lease
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.limits import PROTOCOL_VERSION, REQUESTS_IN_FLIGHT_MAX
from nfsfuse.protocol.messages import IDEMPOTENT, SERVER_REQUESTS, Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import ClientId, Epoch, InodeHandle, OpenId, RequestId, SessionId
from nfsfuse.rpc.channel import Asked, Channel
from nfsfuse.rpc.exchange import Answering, Exchange, Payload, RequestArrived
from nfsfuse.rpc.greeting import greet
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import ByteStream, ConnectionLost

log = logging.getLogger(__name__)

RETRY_SECONDS_MIN: Final = 0.1
"""The pause after the first attempt to connect, which is made at once; later pauses double."""

RETRY_SECONDS_MAX: Final = 2.0
"""The longest pause: a small part of the lease, which may have little left when the server can be reached
again; and a thousand clients that try as often are nothing to it."""

RETRIES_PER_LEASE_MIN: Final = 5
"""Attempts to connect in the time of a lease, at least."""

ATTEMPT_SECONDS_MAX: Final = 5.0
"""How long one attempt may take: a lost SYN is repeated twice within (after 1 and 3 s)."""

GOODBYE_SECONDS_MAX: Final = 5.0
"""How long the end of a mount waits for the server to answer a goodbye; the lease ends it otherwise."""

LEASE_CHECKS: Final = 40
"""How often the lease is looked at while it runs once: also what a machine that slept serves at most after it
has woken, as part of the lease (timers stand still while it sleeps)."""

WAITING_MAX: Final = REQUESTS_IN_FLIGHT_MAX * 3 // 4
"""Requests that may wait for answers. The others wait here; room is left for those that recalls need."""

ESSENTIAL: Final = (*m.WRITES, m.Open, m.Heartbeat)
"""What a recall may need: it waits for no room."""

ENDS_WITH_SESSION: Final = frozenset({
    m.Heartbeat, m.Goodbye, m.Cancel, m.ReturnTokens, m.Release, m.FlushLocks, m.ReleaseLocks, *m.WRITES,
})  # fmt: skip
"""What is about the old session's state, and without meaning (or, the write-back, refused) in a new one."""

ENDS_WITH_EPOCH: Final = (m.ReturnTokens, m.Release, m.Reclaim, m.ReclaimComplete)
"""What is not asked again of a server that was restarted: it knows only what is reclaimed. Nobody waits for
any of these."""

SAFE_AGAIN: Final = IDEMPOTENT | {m.Open, m.GetToken, m.SetLock}
"""What may be asked in a new session although the old one's server may have done it: its effects, if any, have
ended with the old session."""

NO_SESSION: Final = SessionId(b"")

R = TypeVar("R", bound=Message)


Callback = m.Recall | m.Gone | m.Moved | m.Grew


class Session:
    """One mount's sessions, one after the other; an implementation of the Remote port.

    *connect* makes a connection (it raises OSError or ConnectionLost); *clock* gives seconds, and should run
    on while the machine sleeps; *replaces* is the session of a dead daemon. The ``on_...`` are called
    synchronously, before anything of a new connection is looked at.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[ByteStream]],
        client_id: ClientId,
        client_name: str,
        *,
        clock: Callable[[], float] = trio.current_time,
        jitter: Callable[[], float] = random.random,
        replaces: SessionId = NO_SESSION,
        timeo_seconds: float | None = None,
    ) -> None:
        self.on_recall: Callable[[Callback, Callable[[m.Recalled | m.Done], None]], None] | None = None
        self.on_suspended: Callable[[], None] = _nothing
        """The lease is about to run out: what is cached is to be dropped, what is held is kept."""
        self.on_resumed: Callable[[], None] = _nothing
        """The lease runs again, and nothing was lost."""
        self.on_fenced: Callable[[], None] = _nothing
        """There is a new session. Nothing that was held in the old one is held any more."""
        self.on_unreachable: Callable[[bool], None] = _nothing_of
        """The server has been away for *timeo_seconds*, or (False) is back after that."""
        self.on_session: Callable[[SessionId], None] = _nothing_of
        """There is a new session."""
        self.on_new_epoch: Callable[[m.Welcome], list[m.Reclaim]] = _no_claims
        """The server was started anew and has forgotten all that is held, but not the session: what is to be
        reclaimed."""
        self.on_refused: Callable[[m.Reclaimed], None] = _nothing_of
        """Of what was reclaimed, this is not held any more."""
        self.on_welcome: Callable[[m.Welcome], None] = _nothing_of
        """The server has greeted: this connection's *welcome*."""
        self.welcome: m.Welcome | None = None
        self.requests: Counter[str] = Counter()
        """Requests to the server so far, by message."""
        self.session_id = NO_SESSION
        self._connect = connect
        self._client_id = client_id
        self._client_name = client_name
        self._clock = clock
        self._jitter = jitter
        self._replaces = replaces
        self._timeo_seconds = timeo_seconds
        self._epoch = Epoch(0)
        self._lease: Lease | None = None
        self._leaving = False
        self._scope = trio.CancelScope()
        self._interrupted_at: float | None = None
        self._unreachable = False
        self._sessions = 0
        self._waiting = 0
        self._room = trio.lowlevel.ParkingLot()
        self._renewed = trio.lowlevel.ParkingLot()
        self.channel = Channel(
            Exchange(frozenset(SERVER_REQUESTS)), self._called, self._abandoned, self._acknowledged, clock
        )
        self.closes = Closes(
            lambda closed: self.post(m.Release(closed)), lambda handles: self.post(m.Accessed(handles))
        )

    async def run(self, *, task_status: trio.TaskStatus[m.Welcome] = trio.TASK_STATUS_IGNORED) -> None:
        """Greet the server, then keep the session until `goodbye`, over as many connections as it takes.
        Raises whatever keeps it from beginning: OSError, FsError if the server refuses, ConnectionLost,
        ProtocolError."""
        link, welcome, sent_at = await self._greet()
        self._begin(link, welcome, sent_at)
        task_status.started(welcome)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_lease)
                    nursery.start_soon(self.closes.run)
                    while True:
                        why = await self._serve(link)
                        if self._leaving:
                            break
                        self._interrupted(why)
                        link = await self._reconnect()
                    nursery.cancel_scope.cancel()
        finally:
            self.channel.end("the mount has ended")

    # --- connections ---

    async def _greet(self) -> tuple[Link, m.Welcome, float]:
        """A new connection, greeted; and when the greeting was sent."""
        link = Link(await self._connect())
        try:
            sent_at = self._clock()
            hello = m.Hello(
                PROTOCOL_VERSION, self._client_id, self.session_id, self._epoch,
                self.channel.frames_received, self._replaces, self._client_name, (),
            )  # fmt: skip
            welcome = await greet(link, hello)
            if welcome.resumed and (welcome.session_id, welcome.epoch) != (self.session_id, self._epoch):
                raise ProtocolError("the server resumes a session that it was not asked for")
        except BaseException:
            link.close()
            raise
        return link, welcome, sent_at

    def _begin(self, link: Link, welcome: m.Welcome, sent_at: float) -> None:
        """Go on over *link*. Raises ProtocolError, and then the session is to be given up."""
        self._replaces = NO_SESSION
        self.welcome = welcome
        self.on_welcome(welcome)
        if welcome.resumed:
            assert self._lease is not None
            self.channel.attach(link, welcome.frames_received)
            self._acknowledged(sent_at)
        else:
            if self._sessions and welcome.session_id == self.session_id:
                self._reclaim(welcome)
            elif self._sessions:
                self._fenced(welcome)
            self._sessions += 1
            self.session_id, self._epoch = welcome.session_id, welcome.epoch
            self._lease = Lease(welcome.lease_ms / 1000, sent_at)
            self.on_session(self.session_id)
            self.channel.attach(link, welcome.frames_received)
            self._renewed.unpark_all()
        assert self._lease is not None
        self._lease.connected()

    def _reclaim(self, welcome: m.Welcome) -> None:
        """The server was restarted, and grants nothing before we have back what we hold. What it has not
        answered is asked again, under the old ids: by those it knows what it has done already."""
        log.warning("the server was restarted (epoch %d): what is held here is reclaimed", welcome.epoch)
        assert self._lease is not None
        suspended = self._lease.suspended
        self.closes.drop()  # the server has forgotten all open files, and these are not claimed
        claims = self.on_new_epoch(welcome)
        self.channel.renew(
            lambda call: not isinstance(call.message, ENDS_WITH_EPOCH),
            "the server was restarted",
            [(claim, self._reclaimed) for claim in claims],
        )
        self.channel.post(m.ReclaimComplete(), self._reclaim_complete)
        if suspended:
            self.on_resumed()

    def _reclaimed(self, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Reclaimed)
        if reply != m.Reclaimed((), (), ()):
            self.on_refused(reply)

    def _reclaim_complete(self, _reply: Message, _: bytes | bytearray) -> None:
        log.warning("everything that could be reclaimed is reclaimed")

    def _fenced(self, welcome: m.Welcome) -> None:
        """The server has ended the session. What nobody has done yet is asked in the new one."""
        log.error("the server has ended this mount's session: what it held, and had not written back, is lost")
        self.closes.drop()  # they went with the session
        self.channel.renew(self._survives, "the session with the server was lost")
        self.on_fenced()

    def _survives(self, call: Asked) -> bool:
        """Whether an unanswered request may be asked in the next session: it was certainly not done, or what
        it did has ended with the old one."""
        message = call.message
        if call.posted or not call.wanted or type(message) in ENDS_WITH_SESSION:
            return False
        if not self.channel.was_transmitted(call):
            return True
        if isinstance(message, m.Open) and message.flags & os.O_TRUNC:
            return False
        return type(message) in SAFE_AGAIN

    async def _serve(self, link: Link) -> str:
        """Serve a connection; why it has ended."""
        try:
            await self.channel.serve(link)
        except ConnectionLost as exc:
            return str(exc)
        except ProtocolError as exc:
            self._give_up(exc)
            return str(exc)
        return "closed by the server"

    def _give_up(self, exc: ProtocolError) -> None:
        """The server says what no correct one says. It would say it again: a new session, without the old."""
        log.error("the session is given up: %s", exc)
        self._replaces, self.session_id = self.session_id, NO_SESSION

    def _interrupted(self, why: str) -> None:
        self._interrupted_at = self._clock()
        log.warning("the connection to the server is lost: %s; connecting again", why)

    async def _reconnect(self) -> Link:
        """A connection, after as many attempts as it takes, over which the session goes on."""
        told = ""
        pauses = self._pauses()
        while True:
            try:
                with trio.fail_after(ATTEMPT_SECONDS_MAX):
                    link, welcome, sent_at = await self._greet()
            except (OSError, ConnectionLost, ProtocolError, FsError, trio.TooSlowError) as exc:
                why = "no answer" if isinstance(exc, trio.TooSlowError) else str(exc)
                if why != told:
                    # A server of another version does not go away by itself.
                    other = isinstance(exc, FsError) and exc.errno == errno.EPROTONOSUPPORT
                    log.log(logging.ERROR if other else logging.INFO, "cannot connect: %s; trying on", why)
                    told = why
                await trio.sleep(next(pauses))
                continue
            try:
                self._begin(link, welcome, sent_at)
            except ProtocolError as exc:
                self._give_up(exc)
                link.close()
                continue
            self._reconnected()
            return link

    def _pauses(self) -> Iterator[float]:
        """Seconds between attempts: twice as long each time; some less, so that the clients of a
        server that was away do not all come at the same moments."""
        assert self._lease is not None
        # Several in a lease: a restarted server does not wait longer for those it knows.
        longest = min(RETRY_SECONDS_MAX, self._lease.seconds / RETRIES_PER_LEASE_MIN)
        pause = min(RETRY_SECONDS_MIN, longest)
        while True:
            yield pause * (1 - self._jitter() / 2)
            pause = min(2 * pause, longest)

    def _reconnected(self) -> None:
        assert self._interrupted_at is not None
        log.warning("connected to the server again, after %.1f s", self._clock() - self._interrupted_at)
        self._interrupted_at = None
        if self._unreachable:
            self._unreachable = False
            self.on_unreachable(False)

    # --- the lease ---

    async def _keep_lease(self) -> None:
        while True:
            assert self._lease is not None
            await trio.sleep(self._lease.seconds / LEASE_CHECKS)
            now, channel = self._clock(), self.channel
            for do in self._lease.advance(now, connected=channel.connected, heard_at=channel.heard_at):
                match do:
                    case Do.HEARTBEAT:
                        self.post(m.Heartbeat())
                    case Do.RECONNECT:
                        log.warning("the server has not answered a heartbeat: the connection is given up")
                        channel.disconnect()
                    case Do.SUSPEND:
                        log.warning("the lease is about to run out: caches are dropped, operations wait")
                        self.on_suspended()
            self._check_timeo(now)

    def _check_timeo(self, now: float) -> None:
        since, timeo = self._interrupted_at, self._timeo_seconds
        if since is not None and timeo is not None and not self._unreachable and now >= since + timeo:
            log.error("the server has been away for %g s: operations fail (soft)", timeo)
            self._unreachable = True
            self.on_unreachable(True)

    def _acknowledged(self, sent_at: float) -> None:
        if self._lease is not None and self._lease.renew(sent_at, self._clock()):
            log.warning("the lease runs again, nothing was lost")
            self.on_resumed()
            self._renewed.unpark_all()

    def leased(self, *, finishing: bool = False) -> bool:
        assert self._lease is not None
        return (finishing or not self._lease.suspended) and self._lease.runs(self._clock())

    async def until_leased(self) -> None:
        while not self.leased():
            await self._renewed.park()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.channel.connected

    # --- asking ---

    async def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Callable[[Message, bytes | bytearray], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> tuple[R, bytes | bytearray]:
        self.requests[type(message).__name__] += 1
        while not (self.has_room() or isinstance(message, ESSENTIAL)):
            await self._room.park()
        self._waiting += 1
        try:
            return await self.channel.call(message, payload, apply, failed)
        except ConnectionLost as exc:
            raise FsError(errno.EIO, str(exc)) from exc
        finally:
            self._ended()

    def ask(
        self,
        message: Request[Message],
        payload: Payload,
        apply: Callable[[Message, bytes | bytearray], None],
        failed: Callable[[FsError], None],
    ) -> Callable[[], None]:
        assert self.has_room() or isinstance(message, ESSENTIAL), "it waits for no room"
        self.requests[type(message).__name__] += 1
        self._waiting += 1

        def answered(reply: Message, payload: bytes | bytearray) -> None:
            apply(reply, payload)
            self._ended()

        def refused(failure: FsError | ConnectionLost) -> None:
            self._ended()
            failed(failure if isinstance(failure, FsError) else FsError(errno.EIO, str(failure)))

        asked = self.channel.ask(message, payload, answered, refused)
        return _nothing if asked is None else partial(self.channel.abandon, asked)

    @property
    def answering(self) -> Answering:
        return self.channel.answering

    def has_room(self) -> bool:
        return self._waiting < WAITING_MAX

    def _ended(self) -> None:
        """A request is not unanswered any more."""
        self._waiting -= 1
        if self._room:
            self._room.unpark()

    def post(self, message: Request[Message]) -> None:
        self.requests[type(message).__name__] += 1
        self.channel.post(message)

    def return_tokens(self, tokens: tuple[Token, ...]) -> None:
        # What was given up before is told before; and no close is to keep what is unlinked and forgotten now.
        self.closes.send()
        self.channel.post(m.ReturnTokens(tokens, self.channel.frames_received))

    def release(self, open_id: OpenId, tokens: tuple[Token, ...], *, at_once: bool = False) -> None:
        # As of now: what is granted before it is sent is not what was given up.
        self.closes.add(m.Closed(open_id, tokens, self.channel.frames_received if tokens else 0))
        if at_once:
            self.closes.send()

    def accessed(self, handle: InodeHandle) -> None:
        self.closes.accessed(handle)

    def tell_pending(self) -> None:
        self.closes.send()

    async def goodbye(self) -> None:
        """End the session in order, if the server can be told; else its lease ends it. Either way all open
        files are released, also those whose close has not been told."""
        self._leaving = True
        self.closes.drop()  # nothing may come after Goodbye
        if self.channel.connected:
            try:
                with trio.fail_after(GOODBYE_SECONDS_MAX):
                    await self.channel.call(m.Goodbye())
            except (ConnectionLost, trio.TooSlowError) as exc:
                log.warning("the server was not told goodbye: %s", exc)
        else:
            log.warning("the server was not told goodbye: there is no connection")
        self._scope.cancel()

    # --- being asked ---

    def _called(self, event: RequestArrived) -> None:
        assert isinstance(event.message, m.Recall | m.Gone | m.Moved | m.Grew)
        if self.on_recall is None:
            raise ProtocolError("a recall before anything was granted")
        # Who asks for a file that was closed here will mostly want the next ones too, of which it need not ask.
        self.closes.send()
        self.on_recall(event.message, partial(self._answer, self._sessions, event.id))

    def _answer(self, session: int, number: RequestId, reply: m.Recalled | m.Done) -> None:
        if session == self._sessions:  # else the old session was asked: nobody waits for it
            self.channel.reply(number, reply)

    def _abandoned(self, number: RequestId) -> None:
        self.channel.post(m.Cancel(number))


def _nothing() -> None:
    """Nobody wants to know."""


def _no_claims(_: m.Welcome) -> list[m.Reclaim]:
    """Nothing is held."""
    return []


def _nothing_of(_: object) -> None:
    """Nobody wants to know."""

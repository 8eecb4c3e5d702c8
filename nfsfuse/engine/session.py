"""A client's session with its server: connect, greet, ask; and connect again, for as long as the mount lives.

A session outlives its connections: requests and replies go on over the next one as if nothing had been
(`nfsfuse.rpc.sequence`). What a greeting means, and what may be believed meanwhile, is decided by
`nfsfuse.machines.session`, and carried out here.
"""

from __future__ import annotations

import errno
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from nfsfuse.engine.closes import Closes
from nfsfuse.engine.connector import Connector, Greeted
from nfsfuse.engine.request_gate import RequestGate
from nfsfuse.machines.session import NO_SESSION, Effect, SessionMachine, survives_epoch, survives_session
from nfsfuse.ports.session_owner import SessionOwner
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.messages import SERVER_REQUESTS, Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import ClientId, InodeHandle, OpenId, RequestId, SessionId
from nfsfuse.rpc.channel import Asked, Channel
from nfsfuse.rpc.exchange import Answering, Exchange, Payload, RequestArrived
from nfsfuse.rpc.link import Link
from nfsfuse.rpc.streams import ByteStream, ConnectionLost

log = logging.getLogger(__name__)

ATTEMPT_SECONDS_MAX: Final = 5.0
"""How long one attempt may take: a lost SYN is repeated twice within (after 1 and 3 s)."""

GOODBYE_SECONDS_MAX: Final = 5.0
"""How long the end of a mount waits for the server to answer a goodbye; the lease ends it otherwise."""

LEASE_CHECKS: Final = 40
"""How often the lease is looked at while it runs once: also what a machine that slept serves at most after it
has woken, as part of the lease (timers stand still while it sleeps)."""

R = TypeVar("R", bound=Message)


class Session:
    """One mount's sessions, one after the other; an implementation of the Remote port.

    *connect* makes a connection (it raises OSError or ConnectionLost); *clock* gives seconds, and should run
    on while the machine sleeps; *replaces* is the session of a dead daemon.

    `greet` comes first: its Welcome has what an owner is made of. The session lasts while `run` runs, which
    takes that owner.
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
        self.machine = SessionMachine(replaces, timeo_seconds)
        """It decides. What it wants is done by `carry_out`."""
        self._connector = Connector(connect, client_id, client_name, clock, jitter)
        self._clock = clock
        self._owner: SessionOwner | None = None
        self._leaving = False
        self._scope = trio.CancelScope()
        self._renewed = trio.lowlevel.ParkingLot()
        self.channel = Channel(
            Exchange(frozenset(SERVER_REQUESTS)), self._called, self._abandoned, self._acknowledged, clock
        )
        self._gate = RequestGate(self.channel)
        self.closes = Closes(
            lambda closed: self.post(m.Release(closed)), lambda handles: self.post(m.Accessed(handles))
        )

    async def run(
        self,
        owner: SessionOwner,
        greeted: Greeted,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """`begin`, then keep the session until `goodbye` or `stop`, over as many connections as it takes."""
        self.begin(owner, greeted)
        link = greeted.link
        task_status.started()
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

    def stop(self) -> None:
        """End `run` at once. The server is told nothing: its lease ends the session there."""
        self._scope.cancel()

    # --- connections ---

    async def greet(self) -> Greeted:
        """Make a connection, and greet the server. Raises OSError, FsError if the server refuses,
        ConnectionLost, ProtocolError."""
        return await self._connector.greet(self.machine, lambda: self.channel.frames_received)

    def begin(self, owner: SessionOwner, greeted: Greeted) -> None:
        """The first session begins; *owner* is told of all that becomes of it and the later ones."""
        assert self._owner is None, "a session has one owner"
        self._owner = owner
        self.go_on(greeted)

    def go_on(self, greeted: Greeted) -> None:
        """Over a new connection, as the machine wants it. Raises ProtocolError, and then the session is to be
        given up."""
        welcome = greeted.welcome
        for effect in self.machine.welcomed(welcome, greeted.sent_at):
            match effect:
                case Effect.WELCOMED:
                    self._owned_by.welcomed(welcome)
                case Effect.RECLAIM:
                    self._reclaim(welcome)
                case Effect.FENCE:
                    self._fence()
                case Effect.BEGIN:
                    self.machine.begun()
                    self._owned_by.session_began(self.session_id)
                case Effect.ATTACH:
                    self.channel.attach(greeted.link, welcome.frames_received)
                    self._renew(self.machine.attached(self._clock()))
                case _:
                    self.carry_out([effect])

    @property
    def _owned_by(self) -> SessionOwner:
        assert self._owner is not None, "the session has not begun"
        return self._owner

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what the machine wants, but for what is about a new connection (`go_on`)."""
        for effect in effects:
            match effect:
                case Effect.RESUME:
                    self._owned_by.resumed()
                case Effect.WAKE:
                    self._renewed.unpark_all()
                case Effect.HEARTBEAT:
                    self.post(m.Heartbeat())
                case Effect.DISCONNECT:
                    log.warning("the server has not answered a heartbeat: the connection is given up")
                    self.channel.disconnect()
                case Effect.SUSPEND:
                    log.warning("the lease is about to run out: caches are dropped, operations wait")
                    self._owned_by.suspended()
                case Effect.UNREACHABLE:
                    timeo = self.machine.timeo_seconds
                    log.error("the server has been away for %g s: operations fail (soft)", timeo)
                    self._owned_by.unreachable(True)
                case Effect.REACHABLE:
                    self._owned_by.unreachable(False)
                case _:
                    raise AssertionError(f"{effect} is of a new connection")

    def _reclaim(self, welcome: m.Welcome) -> None:
        """The server was restarted, and grants nothing before we have back what we hold. What it has not
        answered is asked again, under the old ids: by those it knows what it has done already."""
        log.warning("the server was restarted (epoch %d): what is held here is reclaimed", welcome.epoch)
        self.closes.drop()  # the server has forgotten all open files, and these are not claimed
        claims = self._owned_by.new_epoch(welcome)
        self.channel.renew(
            lambda call: survives_epoch(call.message),
            "the server was restarted",
            [(claim, self._reclaimed) for claim in claims],
        )
        self.channel.post(m.ReclaimComplete(), self._reclaim_complete)

    def _reclaimed(self, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Reclaimed)
        if reply != m.Reclaimed((), (), ()):
            self._owned_by.refused(reply)

    def _reclaim_complete(self, _reply: Message, _: bytes | bytearray) -> None:
        log.warning("everything that could be reclaimed is reclaimed")

    def _fence(self) -> None:
        """The server has ended the session. What nobody has done yet is asked in the new one."""
        log.error("the server has ended this mount's session: what it held, and had not written back, is lost")
        self.closes.drop()  # they went with the session
        self.channel.renew(self._survives, "the session with the server was lost")
        self._owned_by.fenced()

    def _survives(self, call: Asked) -> bool:
        if call.posted or not call.wanted:
            return False
        return survives_session(call.message, transmitted=self.channel.was_transmitted(call))

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
        self.machine.given_up()

    def _interrupted(self, why: str) -> None:
        self.machine.interrupted(self._clock())
        log.warning("the connection to the server is lost: %s; connecting again", why)

    async def _reconnect(self) -> Link:
        """A connection, after as many attempts as it takes, over which the session goes on."""
        told = ""
        pauses = self._connector.pauses(self.machine.lease.seconds)
        while True:
            try:
                with trio.fail_after(ATTEMPT_SECONDS_MAX):
                    greeted = await self.greet()
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
                self.go_on(greeted)
            except ProtocolError as exc:
                self._give_up(exc)
                greeted.link.close()
                continue
            self._reconnected()
            return greeted.link

    def _reconnected(self) -> None:
        away_seconds = self.machine.away_seconds(self._clock())
        log.warning("connected to the server again, after %.1f s", away_seconds)
        self.carry_out(self.machine.reconnected())

    # --- the lease ---

    async def _keep_lease(self) -> None:
        while True:
            await trio.sleep(self.machine.lease.seconds / LEASE_CHECKS)
            self.advance()

    def advance(self) -> None:
        """Time has passed: do what is due."""
        channel = self.channel
        self.carry_out(
            self.machine.advance(self._clock(), connected=channel.connected, heard_at=channel.heard_at)
        )

    def _acknowledged(self, sent_at: float) -> None:
        self._renew(self.machine.acknowledged(sent_at, self._clock()))

    def _renew(self, effects: list[Effect]) -> None:
        if Effect.RESUME in effects:
            log.warning("the lease runs again, nothing was lost")
        self.carry_out(effects)

    def leased(self, *, finishing: bool = False) -> bool:
        return self.machine.leased(self._clock(), finishing=finishing)

    async def until_leased(self) -> None:
        while not self.leased():
            await self._renewed.park()

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.channel.connected

    @property
    def session_id(self) -> SessionId:
        """The session's, NO_SESSION before the first."""
        return self.machine.session_id

    # --- asking ---

    def call(
        self,
        message: Request[R],
        payload: Payload = b"",
        apply: Callable[[Message, bytes | bytearray], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> Coroutine[Any, Any, tuple[R, bytes | bytearray]]:
        return self._gate.call(message, payload, apply, failed)

    def ask(
        self,
        message: Request[Message],
        payload: Payload,
        apply: Callable[[Message, bytes | bytearray], None],
        failed: Callable[[FsError], None],
    ) -> Callable[[], None]:
        return self._gate.ask(message, payload, apply, failed)

    @property
    def answering(self) -> Answering:
        return self.channel.answering

    def has_room(self) -> bool:
        return self._gate.has_room()

    def post(self, message: Request[Message]) -> None:
        self._gate.post(message)

    @property
    def requests(self) -> Counter[str]:
        """Requests to the server so far, by message."""
        return self._gate.requests

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
        self.stop()

    # --- being asked ---

    def _called(self, event: RequestArrived) -> None:
        assert isinstance(event.message, m.Recall | m.Gone | m.Moved | m.Grew)
        # Who asks for a file that was closed here will mostly want the next ones too, of which it need not ask.
        self.closes.send()
        self._owned_by.recalled(event.message, partial(self._answer, self.machine.number, event.id))

    def _answer(self, session: int, number: RequestId, reply: m.Recalled | m.Done) -> None:
        if session == self.machine.number:  # else the old session was asked: nobody waits for it
            self.channel.reply(number, reply)

    def _abandoned(self, number: RequestId) -> None:
        self.channel.post(m.Cancel(number))

"""Deliberate bugs. Each has to be found, by the simulation (`tests/sim`) or by exploration (`tests/explore`):
the checkers can fail. Those called after a deadlock rule of docs/coherence.md switch off its remedy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import CoroutineType
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile, Fetch
from nfsfuse.engine.files import Files
from nfsfuse.engine.name_drops import NameDrops
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.reading import Reader, Reading
from nfsfuse.engine.session import Session
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.machines.data_tokens import DataTokens, Phase, Revocation
from nfsfuse.machines.directory_cache import DirectoryCache
from nfsfuse.machines.doubts import Doubts, Verdict
from nfsfuse.machines.inodes import NodeId
from nfsfuse.machines.lease import Do, Lease
from nfsfuse.machines.tellings import Age, Tellings
from nfsfuse.machines.turns import Turns
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.codec import FailureEnvelope, ReplyEnvelope, RequestEnvelope, decode
from nfsfuse.protocol.tokens import Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, RequestId, SessionId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.exchange import RequestArrived
from nfsfuse.rpc.link import Link
from nfsfuse_server.machines.token_effects import Effect, Recall
from nfsfuse_server.machines.tokens import TokenManager
from nfsfuse_server.service.calls import Call, TellOthers
from nfsfuse_server.service.growths import Growths as ServerGrowths
from nfsfuse_server.state.journal import Journal
from tests.helpers import kernel_pages
from tests.helpers.dentries import DentryKernel
from tests.helpers.kernel_model import Descriptor, KernelModel

Mutation = Callable[[pytest.MonkeyPatch], None]


def ack_before_write_back(patch: pytest.MonkeyPatch) -> None:
    """The recall is acknowledged although not all that is dirty is at the server. What comes later is refused,
    as the pages are another's by then: it is forgotten at once."""

    async def write_back_page(self: PageProtocol, file: CachedFile, recall: Revocation) -> None:
        while file.pages.writing.overlaps(recall.start, recall.end):
            await file.changed()

    patch.setattr(PageProtocol, "write_back_page", write_back_page)
    patch.setattr(PageProtocol, "_check_k5", lambda *_: None)
    patch.setattr(WriteBack, "hasten", lambda *_: None)  # which has done it already


def grant_before_ack(patch: pytest.MonkeyPatch) -> None:
    """The server takes a recall for acknowledged as soon as it has sent it."""
    recall_for, acknowledged = TokenManager._recall_for, TokenManager.acknowledged

    def and_forget(self: TokenManager, *arguments: Any) -> list[Effect]:
        effects = list(recall_for(self, *arguments))
        for effect in list(effects):
            if isinstance(effect, Recall):
                token = effect.token
                given = (Token(token.handle, token.resource, token.start, token.end, token.mode),)
                effects += acknowledged(self, effect.session, effect.recall_id, given)
        return effects

    def late(self: TokenManager, session: Any, recall_id: int, returned: Any = ()) -> list[Effect]:
        return acknowledged(self, session, recall_id, returned) if recall_id in self._recalls else []

    patch.setattr(TokenManager, "_recall_for", and_forget)
    patch.setattr(TokenManager, "acknowledged", late)


def keep_pages_after_a_recall(patch: pytest.MonkeyPatch) -> None:
    def clear(self: PageProtocol, file: Any, recall: Revocation, kept: TokenMode) -> None:
        file.tokens.reduce(recall.start, recall.end, kept)

    patch.setattr(PageProtocol, "clear_page_uptodate", clear)
    patch.setattr(PageProtocol, "_check_k5", lambda *_: None)


def skip_the_invalidation(patch: pytest.MonkeyPatch) -> None:
    async def gather(self: PageProtocol, file: Any, recall: Revocation) -> None:
        file.tokens.in_kernel.delete(recall.start, recall.end)
        recall.phase = Phase.CLOSED

    patch.setattr(PageProtocol, "gather_all_mmap_users", gather)


def grants_applied_by_the_task_that_asked(patch: pytest.MonkeyPatch) -> None:
    original = Session.call

    async def call(self: Session, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        reply = await original(self, message, payload)
        await trio.sleep(0.0001)
        if apply is not None:
            apply(*reply)
        return reply

    patch.setattr(Session, "call", call)


def operations_are_not_parked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "parked", lambda *_: False)


def shared_becomes_exclusive_without_a_recall(patch: pytest.MonkeyPatch) -> None:
    original = DataTokens.holds
    patch.setattr(
        DataTokens,
        "holds",
        lambda self, start, end, mode: original(self, start, end, min(mode, TokenMode.SHARED)),
    )

    async def keep_shared(self: PageProtocol, file: Any) -> None:  # else K2 leaves no SHARED to write under
        pass

    patch.setattr(PageProtocol, "give_up_shared", keep_shared)


def overlapping_recalls_do_not_take_turns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "may_begin", lambda self, revocation: not revocation.waits_for)
    patch.setattr(DataTokens, "follow", lambda self, revocation: False)


def direct_writes_leave_mapped_pages_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "_lacking", staticmethod(lambda *_, **__: None))


def rule_1_pages_of_unanswered_reads_are_invalidated_too(patch: pytest.MonkeyPatch) -> None:
    def read_arrived(self: DataTokens, start: int, end: int) -> None:
        self._reads.append((start, end))

    patch.setattr(DataTokens, "read_arrived", read_arrived)


def rule_2_operations_are_parked_while_the_kernel_invalidates(patch: pytest.MonkeyPatch) -> None:
    def parked(self: DataTokens, start: int, end: int) -> bool:
        return any(
            revocation.phase is not Phase.PENDING and revocation.start < end and start < revocation.end
            for revocation in self.revocations
        )

    patch.setattr(DataTokens, "parked", parked)


def rule_3_all_workers_wait_for_grants(patch: pytest.MonkeyPatch) -> None:
    """There is one worker, and a request is not even read while it is busy."""
    _one_at_a_time(patch, requests=True)


def rule_4_notifications_on_the_event_loop(patch: pytest.MonkeyPatch) -> None:
    """No request is handled while the kernel works on a notification, as both are the same thread's."""
    _one_at_a_time(patch, requests=False)


class _Busy:
    """One thing at a time, whoever asks."""

    def __init__(self) -> None:
        # By the trio of the model, which is not the real one while worlds are explored.
        self._lot = kernel_pages.trio.lowlevel.ParkingLot()
        self._is_busy = False

    async def begin(self) -> None:
        while self._is_busy:
            await self._lot.park()
        self._is_busy = True

    def end(self) -> None:
        self._is_busy = False
        self._lot.unpark_all()


def _one_at_a_time(patch: pytest.MonkeyPatch, *, requests: bool) -> None:
    """On each client reads and writes of pages have to wait until no other is being handled (*requests*), or
    until no invalidation is under way."""
    busy: WeakKeyDictionary[Any, _Busy] = WeakKeyDictionary()

    def of(files: Any) -> _Busy:
        return busy.setdefault(files, _Busy())

    def handled(original: Any) -> Any:
        async def handle(self: Any, *arguments: Any, **rest: Any) -> Any:
            await of(self).begin()
            if not requests:
                of(self).end()
                return await original(self, *arguments, **rest)
            try:
                return await original(self, *arguments, **rest)
            finally:
                of(self).end()

        return handle

    for name in ("read", "write"):
        patch.setattr(Files, name, handled(getattr(Files, name)))
    if not requests:
        invalidate = KernelModel.invalidate_pages

        async def notify(self: KernelModel, *arguments: Any) -> None:
            await of(self.fs.files).begin()
            try:
                await invalidate(self, *arguments)
            finally:
                of(self.fs.files).end()

        patch.setattr(KernelModel, "invalidate_pages", notify)


def rule_5_shared_tokens_while_open_for_writing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "reading_mode", lambda _: TokenMode.SHARED)

    def granted(self: DataTokens, start: int, end: int, mode: TokenMode) -> None:
        self.held.raise_to(start, end, mode)

    patch.setattr(DataTokens, "granted", granted)


def who_was_killed_is_entitled(patch: pytest.MonkeyPatch) -> None:
    """To what arrives after its end: it will never say that it has used it."""
    arrived = Reader._arrived

    def entitle(self: Reader, reading: Reading, reply: m.Message, payload: bytes | bytearray) -> None:
        over = reading.over
        if over:
            reading.over, reading.fetch = False, Fetch(reading.start, reading.end)
        arrived(self, reading, reply, payload)
        reading.over = over

    patch.setattr(Reader, "_arrived", entitle)


def pages_go_before_they_are_used(patch: pytest.MonkeyPatch) -> None:
    """By the program that they were granted to: its daemon has had its turn."""
    patch.setattr(Turns, "take", lambda *_: None)


# --- sizes ---


def growths_are_not_told(patch: pytest.MonkeyPatch) -> None:
    """Others that have the file open ask when they ask."""
    patch.setattr(ServerGrowths, "tell", lambda *_: False)


def growths_by_writes_are_not_told(patch: pytest.MonkeyPatch) -> None:
    """Only those that the server makes."""
    patch.setattr(AttributeCache, "told_others", lambda self, *, watched: setattr(self, "watched", False))


def growths_are_answered_before_others_know(patch: pytest.MonkeyPatch) -> None:
    tell = ServerGrowths.tell

    def tell_and_go_on(self: ServerGrowths, call: Call, step: TellOthers) -> bool:
        told = tell(self, call, step)
        if isinstance(told, CoroutineType):
            told.close()
        return bool(told)

    patch.setattr(ServerGrowths, "tell", tell_and_go_on)


def a_growth_waits_for_the_page_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """As the system call does by which the kernel is told: it may be locked for a read that waits for whoever
    waits for this."""
    grow = KernelModel.grow

    async def and_wait(self: KernelModel, node_id: NodeId, generation: int, size: int) -> bool:
        known = await grow(self, node_id, generation, size)
        inode = self.inodes.get(node_id)
        folio = None if inode is None else inode.folios.get((size - 1) // PAGE_SIZE)
        if inode is not None and folio is not None and await inode.lock_folio(folio):
            inode.unlock_folio(folio)
        return known

    patch.setattr(KernelModel, "grow", and_wait)


def a_read_in_the_way_of_an_invalidation_asks_for_the_size(patch: pytest.MonkeyPatch) -> None:
    """Which may be being recalled from the write that waits for the invalidation."""
    request = Reader._request

    def with_size(reading: Reading) -> m.Read:
        return replace(request(reading), sizeless=False)

    patch.setattr(Reader, "_request", staticmethod(with_size))


# --- the session ---


def the_lease_never_runs_out(patch: pytest.MonkeyPatch) -> None:
    """A client that is cut off goes on using what it holds."""
    advance = Lease.advance

    def and_ignore(self: Lease, now: float, *, connected: bool, heard_at: float) -> list[Do]:
        wanted = advance(self, now, connected=connected, heard_at=heard_at)
        self.suspended = False
        return [do for do in wanted if do is not Do.SUSPEND]

    patch.setattr(Lease, "advance", and_ignore)
    patch.setattr(Lease, "runs", lambda *_: True)


def the_lease_is_counted_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """Not from when that was sent which it answers: the server's clock has been running since then."""
    renew = Lease.renew
    patch.setattr(Lease, "renew", lambda self, sent_at, now: renew(self, now, now))


def replay_without_the_journal(patch: pytest.MonkeyPatch) -> None:
    """A restarted server does again what it is asked again."""

    def outcome(self: Journal, session: SessionId, request: RequestId) -> None:
        entries = self._entries.get(session, {})
        entry = entries.get(request)
        if entry is not None and entry.done is not None:
            del entries[request]

    patch.setattr(Journal, "outcome", outcome)


def replay_without_the_reply_cache(patch: pytest.MonkeyPatch) -> None:
    """The server keeps no replies until they are acknowledged. Who connects again asks again for what was not
    answered, and it is done again, as by NFS over UDP before there were duplicate request caches."""
    replay_without_the_journal(patch)
    patch.setattr("nfsfuse_server.service.service.Channel", _Forgetful)


class _Forgetful(Channel):
    """A server's end that keeps requests where it should keep its replies to them."""

    def __init__(self, *arguments: Any, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self._seen: dict[RequestId, RequestArrived] = {}

    def _apply(self, event: Any) -> None:
        if isinstance(event, RequestArrived):
            self._seen[event.id] = event
        super()._apply(event)

    def attach(self, link: Link, peer_received: int) -> None:
        self._acknowledged(peer_received)
        again = self._forget_replies()
        super().attach(link, peer_received)
        for number in again:
            event = self._seen[number]
            self._exchange._answering[number] = type(event.message)
            self._on_request(event)

    def _forget_replies(self) -> list[RequestId]:
        """The requests of which the replies were not acknowledged."""
        sequence, forgotten = self._sequence, list[RequestId]()
        kept, sequence._kept = sequence._kept, deque()
        sequence.sent, sequence.kept_bytes = sequence.acknowledged, 0
        for frame in kept:
            match decode(frame.header):
                case RequestEnvelope(id=number):
                    self._calls[number].frame = sequence.send(frame.header, frame.payload, frame.sent_at)
                case ReplyEnvelope(id=number) | FailureEnvelope(id=number):
                    forgotten.append(number)
        return forgotten


def the_daemon_looks_at_who_waits_for_it(patch: pytest.MonkeyPatch) -> None:
    """Before it answers a FLUSH: which may come of an execve(2), that holds what the look needs until then."""
    answer = KernelModel.answer_flush

    async def look_first(self: KernelModel, opened: Descriptor) -> None:
        await self.look_at_who_closes(opened)
        await answer(self, opened)

    patch.setattr(KernelModel, "answer_flush", look_first)


# --- names: found by the simulators in tests/engine, which have the kernel's dentries and locks ---


def what_was_overtaken_is_believed(patch: pytest.MonkeyPatch) -> None:
    """An answer is taken for the newest although another has told something newer since it was asked for."""
    patch.setattr(Tellings, "tells", lambda self, handle, attributes, answering: Age.NEWEST)


def rule_6_a_name_is_invalidated_whoever_has_its_directory_locked(patch: pytest.MonkeyPatch) -> None:
    """No new epoch is made instead: neither for an operation that is pending, nor after a while."""
    patch.setattr(DirectoryCache, "pending", property(lambda _: 0, lambda *_: None), raising=False)
    patch.setattr("nfsfuse.engine.name_drops.DROP_SECONDS_MAX", math.inf)


def rule_7_a_recall_waits_until_the_kernel_knows_the_inode(patch: pytest.MonkeyPatch) -> None:
    """However long it takes in a listing, which may be stuck at a name that another program looks up."""
    patch.setattr("nfsfuse.engine.distrust.UNKNOWN_SECONDS_MAX", math.inf)


def no_name_is_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """What the kernel decides from names of two moments stands."""
    patch.setattr(Doubts, "looks", lambda *_, **__: Verdict.FOUND)


def a_name_is_dropped_by_a_new_epoch(patch: pytest.MonkeyPatch) -> None:
    """Where its directory is locked, as if the daemon could not look."""

    async def cannot(*_: object) -> bool:
        return False

    patch.setattr(DentryKernel, "expire_entry_at_once", cannot)


def a_removal_is_told_before_it_is_made(patch: pytest.MonkeyPatch) -> None:
    """The kernel deletes a name when it is recalled, whatever comes of that."""

    async def delete(self: NameDrops, directory: CachedDirectory, name: bytes) -> None:
        leads_to = directory.cache.stood_for(name)
        child = self._inodes.by_handle(leads_to) if isinstance(leads_to, bytes) else None
        if child is not None:
            assert self.nursery is not None
            self.nursery.start_soon(
                self._kernel.delete_entry, directory.inode.node_id, child.node_id, name
            )
        await self.drop_what_led_to(directory, name, leads_to)

    patch.setattr(NameDrops, "drop", delete)

"""Deliberate bugs. Each has to be found, by the simulation (`tests/sim`) or by exploration (`tests/explore`):
the checkers can fail. Those called after a deadlock rule of docs/coherence.md switch off its remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import pytest
import trio

from nfsfuse.engine.files import Files
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.session import Session
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.data_tokens import DataTokens, Phase, Revocation
from nfsfuse.protocol.tokens import Token, TokenMode
from server.machines.token_effects import Effect, Recall
from server.machines.tokens import TokenManager
from tests.helpers.kernel_model import KernelModel

Mutation = Callable[[pytest.MonkeyPatch], None]

WORKERS: Final = 1
"""Requests that a daemon with too few workers handles at once."""


def ack_before_write_back(patch: pytest.MonkeyPatch) -> None:
    async def write_back_page(self: PageProtocol, file: Any, recall: Revocation) -> bool:
        return True

    patch.setattr(PageProtocol, "write_back_page", write_back_page)
    patch.setattr(PageProtocol, "_check_k5", lambda *_: None)


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
        recall.close()

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

    async def keep_shared(self: Files, file: Any) -> None:  # else K2 leaves no SHARED to write under
        pass

    patch.setattr(Files, "_give_up_shared", keep_shared)


def overlapping_recalls_do_not_take_turns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "may_begin", lambda self, revocation: not revocation.waits_for)


def page_write_back_asks_for_attributes(patch: pytest.MonkeyPatch) -> None:
    def may_extend(file: Any, end: int, page: bool, start: int, stop: int) -> bool:
        known = file.size()
        return known is None or end > known

    patch.setattr(Writer, "_may_extend", staticmethod(may_extend))


def parked_operations_are_not_woken_by_a_further_pass(patch: pytest.MonkeyPatch) -> None:
    async def gather(self: PageProtocol, file: Any, recall: Revocation) -> None:
        while cached := file.tokens.invalidate(recall):
            await self._invalidate(file, recall, cached)

    patch.setattr(PageProtocol, "gather_all_mmap_users", gather)


def direct_writes_leave_mapped_pages_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "_lacking", staticmethod(lambda *_, **__: None))


def direct_writes_do_not_wait_for_an_invalidation(patch: pytest.MonkeyPatch) -> None:
    def parked(file: Any, start: int, end: int, *, direct: bool) -> bool:
        return bool(file.tokens.parked(start, end))

    patch.setattr(Writer, "_parked", staticmethod(parked))


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
    """Requests beyond `WORKERS` are not even read."""
    _one_at_a_time(patch, ("read", "write"), ())


def rule_4_notifications_on_the_event_loop(patch: pytest.MonkeyPatch) -> None:
    """No request is handled while the kernel works on a notification, as both are the same thread's."""
    _one_at_a_time(patch, (), ("invalidate_pages",))


def _one_at_a_time(patch: pytest.MonkeyPatch, held_by: tuple[str, ...], kernel_calls: tuple[str, ...]) -> None:
    """A lock for each client, which all of *held_by* of Files and *kernel_calls* hold, and which every read and
    write of pages at least takes for a moment."""
    locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def lock_of(files: Any) -> Any:
        from tests.helpers import kernel_pages  # whose trio is the one that runs

        if files not in locks:
            locks[files] = kernel_pages.trio.Lock()
        return locks[files]

    for name in ("read", "write"):
        original: Any = getattr(Files, name)

        async def handled(
            self: Any, *arguments: Any, _original: Any = original, _name: str = name, **rest: Any
        ) -> Any:
            if _name in held_by:
                async with lock_of(self):
                    return await _original(self, *arguments, **rest)
            async with lock_of(self):
                pass
            return await _original(self, *arguments, **rest)

        patch.setattr(Files, name, handled)
    for name in kernel_calls:
        notify: Any = getattr(KernelModel, name)

        async def notified(self: KernelModel, *arguments: Any, _notify: Any = notify) -> Any:
            async with lock_of(self.fs.files):
                return await _notify(self, *arguments)

        patch.setattr(KernelModel, name, notified)


def rule_5_shared_tokens_while_open_for_writing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DataTokens, "reading_mode", lambda _: TokenMode.SHARED)

    def granted(self: DataTokens, start: int, end: int, mode: TokenMode) -> None:
        for begin, stop in self._weaker(start, end, mode):
            self.held.set(begin, stop, mode)

    patch.setattr(DataTokens, "granted", granted)

"""Machines by themselves, in all their states: channels over any number of connections, and leases."""

from __future__ import annotations

import pytest

from nfsfuse.machines.lease import Lease
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.grace import Grace, Returning
from tests.explore.channels import Channels
from tests.explore.exhaust import Model, exhaust
from tests.explore.leases import ReturningClients, TwoLeases
from tests.helpers.history import Violation
from tests.sim.mutations import the_lease_is_counted_from_the_answer


def told(name: str, states: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" [{name}: {states} states]", end="")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("a request and a recall", Channels(1, 1)),
        ("leases by clocks that agree", TwoLeases()),
        ("leases by a client's clock that is slow", TwoLeases(client_rate=0.9)),
        ("clients that return to a restarted server", ReturningClients()),
    ],
)
def test_every_state_is_good(name: str, first: Model, capsys: pytest.CaptureFixture[str]) -> None:
    told(name, exhaust(first), capsys)


class _TellsWhatItHasTold(Channels):
    """A server that takes what it has acknowledged for what it has received."""

    def server_tells(self) -> int:
        sequence = self.server.channel._sequence
        sequence.received = sequence._told
        return sequence.received


def test_a_frame_that_is_taken_twice_is_found() -> None:
    with pytest.raises(Violation, match=r"each once|in use") as caught:
        exhaust(_TellsWhatItHasTold(1, 1))
    assert "cut" in caught.value.__notes__[0]


def test_a_lease_that_is_counted_from_the_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    the_lease_is_counted_from_the_answer(monkeypatch)
    with pytest.raises(Violation, match="given to others"):
        exhaust(TwoLeases())


def test_a_grace_that_does_not_begin_anew_for_who_has_returned_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def returned(self: Grace, session: SessionId, now: float) -> None:
        self._waits_for[session] = Returning.RECLAIMING

    monkeypatch.setattr(Grace, "returned", returned)
    with pytest.raises(Violation, match="granted to others"):
        exhaust(ReturningClients())


def test_a_lease_that_caches_outlive_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "advance", lambda *_, **__: [])
    with pytest.raises(Violation, match="dropped before the lease is over"):
        exhaust(TwoLeases())

"""The exchange: every request is answered once and by a reply of its own type, whatever the order."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.protocol.codec import (
    FailureEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    decode,
    encode,
)
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.framing import Frame
from nfsfuse.protocol.limits import REQUESTS_IN_FLIGHT_MAX
from nfsfuse.protocol.messages import (
    Done,
    GetAttr,
    Heartbeat,
    Message,
    Names,
    ReadDir,
    ReadLink,
    SetXattr,
    Target,
)
from nfsfuse.protocol.types import InodeHandle, RequestId
from nfsfuse.rpc.exchange import Exchange, FailureArrived, Outgoing, ReplyArrived, RequestArrived

ALLOWED = frozenset({Heartbeat, ReadLink, SetXattr})
HANDLE = InodeHandle(b"handle")


def only(parts: Outgoing) -> Frame:
    header, payload = parts
    return Frame(header, bytes(payload))


def wire(envelope: RequestEnvelope | ReplyEnvelope | FailureEnvelope) -> Frame:
    return Frame(encode(envelope), b"")


def ask(number: int, message: Message) -> Frame:
    return wire(RequestEnvelope(RequestId(number), message))


def asking() -> Exchange:
    return Exchange(frozenset())


def answering() -> Exchange:
    return Exchange(ALLOWED)


def test_a_request_its_reply_and_their_payloads():
    client, server = asking(), answering()
    number, parts = client.request(SetXattr(HANDLE, b"name", 0), b"written")
    assert server.received(only(parts)) == RequestArrived(number, SetXattr(HANDLE, b"name", 0), b"written")
    number, parts = client.request(ReadLink(HANDLE))
    server.received(only(parts))
    assert client.received(only(server.reply(number, Target(b"there"), b"pay"))) == ReplyArrived(
        number, Target(b"there"), b"pay"
    )
    assert client.asked == 1
    client.check()
    server.check()


def test_an_errno():
    client, server = asking(), answering()
    number, parts = client.request(ReadLink(HANDLE))
    server.received(only(parts))
    assert client.received(only(server.fail(number, errno.ENOENT, "gone"))) == FailureArrived(
        number, errno.ENOENT, "gone"
    )
    assert client.asked == 0


def test_both_sides_ask_under_the_same_ids():
    one, other = answering(), answering()
    first, to_other = one.request(Heartbeat())
    second, to_one = other.request(ReadLink(HANDLE))
    assert first == second
    one.received(only(to_one))
    other.received(only(to_other))
    assert other.received(only(one.reply(first, Target(b"t")))) == ReplyArrived(first, Target(b"t"), b"")
    assert one.received(only(other.reply(first, Done()))) == ReplyArrived(first, Done(), b"")


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=80))
@settings(max_examples=200)
def test_ids_count_up_whatever_the_order_of_replies(steps):
    """None asks; a number answers the so-manieth of the requests that are open."""
    client, server = asking(), answering()
    unanswered: list[RequestId] = []
    newest = 0
    for step in steps:
        if step is None:
            number, parts = client.request(Heartbeat())
            envelope = decode(only(parts).header)
            assert isinstance(envelope, RequestEnvelope)
            assert envelope.id == number == newest + 1, "ids count up"
            server.received(only(parts))
            unanswered.append(number)
            newest = number
        elif unanswered:
            number = unanswered.pop(step % len(unanswered))
            reply = server.reply(number, Done()) if step % 2 else server.fail(number, errno.EIO, "")
            client.received(only(reply))
        assert client.asked == len(unanswered)
        client.check()
        server.check()


@pytest.mark.parametrize(
    "answer", [ReplyEnvelope(RequestId(2), Done()), FailureEnvelope(RequestId(2), 5, "")]
)
def test_an_answer_to_what_was_not_asked_is_refused(answer):
    client = asking()
    client.request(Heartbeat())
    with pytest.raises(ProtocolError, match="2, which is not asked"):
        client.received(wire(answer))


def test_a_second_answer_is_refused():
    client = asking()
    number, _ = client.request(Heartbeat())
    client.received(wire(ReplyEnvelope(number, Done())))
    with pytest.raises(ProtocolError, match="not asked"):
        client.received(wire(ReplyEnvelope(number, Done())))


def test_a_reply_of_the_wrong_type_is_refused():
    client = asking()
    number, _ = client.request(ReadLink(HANDLE))
    with pytest.raises(ProtocolError, match="ReadLink was answered by Names"):
        client.received(wire(ReplyEnvelope(number, Names(()))))


def test_a_request_as_a_reply_is_refused():
    client = asking()
    number, _ = client.request(ReadLink(HANDLE))
    with pytest.raises(ProtocolError, match="answered by Heartbeat"):
        client.received(wire(ReplyEnvelope(number, Heartbeat())))


@pytest.mark.parametrize("message", [GetAttr(HANDLE), Done()])
def test_a_request_that_this_peer_may_not_make_is_refused(message):
    with pytest.raises(ProtocolError, match="no request of this peer's"):
        answering().received(ask(1, message))


def test_an_id_in_use_is_refused_and_free_again_after_the_answer():
    server = answering()
    server.received(ask(1, Heartbeat()))
    server.reply(RequestId(1), Done())
    server.received(ask(1, Heartbeat()))  # a retry: the session, not the exchange, knows its answer
    with pytest.raises(ProtocolError, match="id 1 is in use"):
        server.received(ask(1, Heartbeat()))


def test_the_greetings_id_is_no_requests():
    with pytest.raises(ProtocolError, match="greeting"):
        answering().received(ask(0, Heartbeat()))


def test_what_is_asked_again_has_its_old_id_and_what_was_asked_of_us_is_forgotten():
    client, server = answering(), answering()
    lost, _ = client.request(Heartbeat())
    kept, first = client.request(ReadLink(HANDLE))
    client.received(ask(1, Heartbeat()))
    client.renew([kept])
    assert not client.is_answering(RequestId(1))
    assert client.again(kept, ReadLink(HANDLE), b"") == first
    server.received(only(first))
    client.received(only(server.reply(kept, Target(b"there"))))
    with pytest.raises(ProtocolError, match=f"{lost}, which is not asked"):
        client.received(wire(ReplyEnvelope(lost, Done())))
    assert client.request(Heartbeat())[0] == kept + 1, "ids go on"
    client.check()


def test_too_many_requests_in_flight_are_refused():
    server = answering()
    for number in range(1, REQUESTS_IN_FLIGHT_MAX + 1):
        server.received(ask(number, Heartbeat()))
    server.check()
    server.reply(RequestId(7), Done())
    server.received(ask(REQUESTS_IN_FLIGHT_MAX + 1, Heartbeat()))
    with pytest.raises(ProtocolError, match="in flight"):
        server.received(ask(REQUESTS_IN_FLIGHT_MAX + 2, Heartbeat()))


def test_garbage_is_refused():
    with pytest.raises(ProtocolError, match="not msgpack"):
        answering().received(Frame(b"\xc1", b""))


def test_a_request_that_cannot_be_encoded_is_not_asked():
    client = asking()
    with pytest.raises(OverflowError):
        client.request(ReadDir(HANDLE, 2**64, 1))
    assert client.asked == 0, "it would be waited for"
    number, parts = client.request(Heartbeat())
    envelope = decode(only(parts).header)
    assert isinstance(envelope, RequestEnvelope)
    assert envelope.id == number == 1


def test_a_reply_that_cannot_be_sent_leaves_the_request_to_be_failed():
    server = answering()
    server.received(ask(1, ReadLink(HANDLE)))
    with pytest.raises(AssertionError):
        server.reply(RequestId(1), Done())
    with pytest.raises(AssertionError):
        server.reply(RequestId(1), Target(b"too long" * (1 << 20)))
    assert server.fail(RequestId(1), errno.EIO, "")


def test_answering_what_was_not_asked_is_a_bug_of_ours():
    with pytest.raises(KeyError):
        answering().reply(RequestId(1), Done())
    with pytest.raises(KeyError):
        answering().fail(RequestId(1), errno.EIO, "")


def test_check_sees_a_broken_table():
    client = asking()
    client.request(Heartbeat())
    client.check()
    client._asked[RequestId(99)] = Heartbeat
    with pytest.raises(AssertionError):
        client.check()

"""What is on the wire, byte by byte: who changes a message or a code learns here what older peers and journals
make of it.

`golden.txt` has a line for each form that a message has had, the newest last; each is still read. A new
message, or one that has gained a field, takes a new line, which the failure shows; a line is never changed or
removed. An enumeration's members keep their numbers likewise.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
import zlib
from pathlib import Path
from typing import Any

import pytest

from nfsfuse.protocol.codec import (
    FailureEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    decode,
    encode,
    version_of,
)
from nfsfuse.protocol.codes import CODES, RETIRED, Message, message
from nfsfuse.protocol.framing import frame_prefix
from nfsfuse.protocol.limits import MAGIC
from nfsfuse.protocol.messages import CLIENT_REQUESTS, REPLIES, SERVER_REQUESTS, Hello, Request
from nfsfuse.protocol.types import RequestId

GOLDEN = Path(__file__).with_name("golden.txt")
ID = RequestId(5)
KINDS = sorted(CODES, key=lambda kind: CODES[kind])


def lines() -> dict[str, list[str]]:
    """By message or member of an enumeration: what was ever written for it, oldest first."""
    found: dict[str, list[str]] = {}
    for line in GOLDEN.read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split()
            found.setdefault(name, []).append(value)
    return found


def bare(annotation: Any) -> Any:
    while isinstance(annotation, typing.NewType):
        annotation = annotation.__supertype__
    return annotation


def example(annotation: Any, name: str) -> Any:
    """A value of *annotation* that tells by its looks which field it is in: *name*'s."""
    annotation = bare(annotation)
    arguments = [part for part in typing.get_args(annotation) if part not in (type(None), ...)]
    if typing.get_origin(annotation) is tuple:
        return (example(arguments[0], name),)
    if arguments:
        return example(arguments[0], name)
    if issubclass(annotation, enum.IntEnum):
        return sorted(annotation)[1]
    if dataclasses.is_dataclass(annotation):
        return record_example(annotation)
    number = zlib.crc32(name.encode())
    return {int: number, bool: bool(number & 1), bytes: name.encode(), str: name}[annotation]


def record_example(kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(*(example(hints[field.name], field.name) for field in dataclasses.fields(kind)))


def envelope(kind: type[Message]) -> RequestEnvelope | ReplyEnvelope:
    made = RequestEnvelope if issubclass(kind, Request) else ReplyEnvelope
    return made(ID, record_example(kind))


def enumerations(kind: Any, found: set[type[enum.IntEnum]]) -> None:
    for annotation in typing.get_type_hints(kind).values():
        parts = [bare(annotation)]
        for part in parts:
            parts += [bare(argument) for argument in typing.get_args(part)]
            if isinstance(part, type) and issubclass(part, enum.IntEnum):
                found.add(part)
            elif isinstance(part, type) and dataclasses.is_dataclass(part):
                enumerations(part, found)


def sent_enumerations() -> list[type[enum.IntEnum]]:
    found: set[type[enum.IntEnum]] = set()
    for kind in KINDS:
        enumerations(kind, found)
    return sorted(found, key=lambda kind: kind.__name__)


def test_every_message_that_may_be_asked_or_answered_has_a_code() -> None:
    assert set(CODES) == {*CLIENT_REQUESTS, *SERVER_REQUESTS, *REPLIES}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_is_sent_as_it_always_was(kind: type[Message]) -> None:
    now = encode(envelope(kind)).hex()
    known = lines().get(kind.__name__, [])
    assert known, f"a new message: add the line '{kind.__name__} {now}' to {GOLDEN.name}"
    assert known[-1] == now, (
        f"{kind.__name__} is sent in another way than before. If it has gained a field, at its end and with a "
        f"default, add the line '{kind.__name__} {now}' after its last one; anything else breaks older peers"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_form_that_a_message_has_had_is_read(kind: type[Message]) -> None:
    now = envelope(kind).message
    for form in lines()[kind.__name__]:
        read = decode(bytes.fromhex(form))
        assert type(read) is type(envelope(kind))
        assert type(read.message) is kind
        _same_or_default(read.message, now)


def _same_or_default(read: Any, now: Any) -> None:
    """*read* has what *now* has, or what a field means that was not there."""
    if dataclasses.is_dataclass(now):
        for field in dataclasses.fields(now):
            value = getattr(read, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                _same_or_default(value, getattr(now, field.name))
    elif isinstance(now, tuple):
        for one, other in zip(read, now, strict=True):
            _same_or_default(one, other)
    else:
        assert read == now


def test_what_is_in_the_file_has_a_message_or_a_member() -> None:
    """One that is not sent any more leaves its code to `RETIRED`, and its lines under ``retired.CODE``."""
    members = {f"{kind.__name__}.{each.name}" for kind in sent_enumerations() for each in kind}
    known = {kind.__name__ for kind in KINDS} | members | {f"retired.{code}" for code in RETIRED}
    assert set(lines()) == known | {"Failure", "Frame", "Magic"}


@pytest.mark.parametrize("kind", sent_enumerations(), ids=lambda kind: kind.__name__)
def test_the_members_of_an_enumeration_keep_their_numbers(kind: type[enum.IntEnum]) -> None:
    for member in kind:
        line = f"{kind.__name__}.{member.name}"
        assert lines().get(line) == [str(member.value)], f"a new member? add the line '{line} {member.value}'"


def test_what_is_around_the_messages_is_as_it_always_was() -> None:
    assert lines()["Failure"] == [encode(FailureEnvelope(ID, 17, "detail")).hex()]
    assert lines()["Frame"] == [frame_prefix(b"header", 3, 7).hex()]
    assert lines()["Magic"] == [MAGIC.hex()]


def test_hello_has_one_form_for_ever() -> None:
    """Whoever is of another version must be understood, to be refused."""
    assert len(lines()["Hello"]) == 1
    longer = decode(bytes.fromhex(lines()["Hello"][0]))
    assert isinstance(longer, RequestEnvelope)
    assert isinstance(longer.message, Hello)
    assert version_of(bytes.fromhex(lines()["Hello"][0])) is None, "it is not under the greeting's id"
    greeting = encode(RequestEnvelope(RequestId(0), longer.message))
    assert version_of(greeting) == longer.message.version
    assert version_of(b"\x9c" + greeting[1:] + b"\x07") == longer.message.version, "a field more is no matter"


@pytest.mark.parametrize("code", [0, -1, CODES[Hello]])
def test_a_code_is_given_once(code: int) -> None:
    with pytest.raises(ValueError, match="cannot have code"):

        @message(code)
        class Another(Message):
            """Whose code is none, or taken."""

    assert len(set(CODES.values())) == len(CODES)


def test_a_retired_code_stays_retired() -> None:
    assert not RETIRED & set(CODES.values())

"""The codec: every message survives the trip, and whatever no encoder makes is a ProtocolError.

Values are built from the dataclasses' type hints, so a message added to the tables is covered without a word
here.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import tracemalloc
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.protocol.codec import (
    Envelope,
    FailureEnvelope,
    ReplyEnvelope,
    RequestEnvelope,
    decode,
    encode,
)
from nfsfuse.protocol.codes import CODES, Message
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, SEQUENCE_LENGTH_MAX, TEXT_SIZE_MAX
from nfsfuse.protocol.types import RequestId

KINDS = sorted(CODES, key=lambda kind: CODES[kind])
INT_MIN, INT_MAX = -(2**63), 2**64 - 1  # what msgpack can say
IDS = st.integers(0, INT_MAX)


# --- values from type hints ---


def shape(annotation: Any) -> tuple[str, Any]:
    """How *annotation* is built: one of plain, optional, sequence, enum, record; and of what."""
    while isinstance(annotation, typing.NewType):
        annotation = annotation.__supertype__
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (inner,) = (part for part in typing.get_args(annotation) if part is not type(None))
        return "optional", inner
    if typing.get_origin(annotation) is tuple:
        return "sequence", typing.get_args(annotation)[0]
    if issubclass(annotation, enum.IntEnum):
        return "enum", annotation
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return "record", [hints[field.name] for field in dataclasses.fields(annotation)]
    return "plain", annotation


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    match shape(annotation):
        case "optional", inner:
            return st.none() | values_of(inner)
        case "sequence", inner:
            return st.lists(values_of(inner), max_size=3).map(tuple)
        case "enum", kind:
            return st.sampled_from(kind)
        case "record", parts:
            while isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            return st.builds(annotation, *map(values_of, parts))
        case _, plain:
            while isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            return {
                int: st.integers(INT_MIN, INT_MAX),
                bool: st.booleans(),
                bytes: st.binary(max_size=300),
                str: st.text(max_size=40),
            }[plain]


def plain_example(annotation: Any) -> Any:
    """A correct value of *annotation* as msgpack decodes it, every optional part present."""
    match shape(annotation):
        case "optional", inner:
            return plain_example(inner)
        case "sequence", inner:
            return [plain_example(inner), plain_example(inner)]
        case "enum", kind:
            return next(iter(kind)).value
        case "record", parts:
            return [plain_example(part) for part in parts]
        case _, plain:
            return {int: 7, bool: True, bytes: b"seven", str: "seven"}[plain]


ANYTHING: tuple[object, ...] = (
    True,
    7,
    -1,
    7.0,
    None,
    b"seven",
    "seven",
    [],
    {},
    {1: 2},
    msgpack.ExtType(5, b""),
    msgpack.ExtType(5, b"x"),
)


def faults(annotation: Any, good: Any) -> Iterator[Any]:
    """Wrong variants of *good*, each with a single fault, at every depth."""
    kind, inner = shape(annotation)
    accepted = {"sequence": list, "record": list, "enum": int}.get(kind, inner)
    if kind == "optional":
        yield from (fault for fault in faults(inner, good) if fault is not None)
        return
    yield from (value for value in ANYTHING if type(value) is not accepted)
    if kind == "enum":
        yield from (max(inner) + 1, min(inner) - 1, INT_MIN, INT_MAX)
    if kind == "record":
        yield from ([*good, None], [*good, 7])
        fields = dataclasses.fields(annotation)
        if fields and fields[-1].default is dataclasses.MISSING:
            yield good[:-1]
    if kind in ("record", "sequence"):
        parts = inner if kind == "record" else [inner] * len(good)
        for index, part in enumerate(parts):
            for fault in faults(part, good[index]):
                yield [*good[:index], fault, *good[index + 1 :]]


MESSAGES = st.sampled_from(KINDS).flatmap(values_of)
ENVELOPES: st.SearchStrategy[Envelope] = st.one_of(
    st.builds(RequestEnvelope, IDS, MESSAGES),
    st.builds(ReplyEnvelope, IDS, MESSAGES),
    st.builds(FailureEnvelope, IDS, st.integers(1, 4095), st.text(max_size=100)),
)


def refuses(header: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(header)
    assert len(str(caught.value)) < 400, "a peer does not decide how long our log lines are"
    return caught.value


# --- round trips ---


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25)
def test_every_message_survives_the_trip(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(values_of(kind))
    assert decode(encode(RequestEnvelope(RequestId(5), message))) == RequestEnvelope(RequestId(5), message)
    assert decode(encode(ReplyEnvelope(RequestId(5), message))) == ReplyEnvelope(RequestId(5), message)


@given(ENVELOPES)
@settings(max_examples=300)
def test_every_envelope_survives_the_trip(envelope: Envelope) -> None:
    header = encode(envelope)
    for form in (header, bytearray(header), memoryview(header)):
        assert decode(form) == envelope


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_field_that_was_added_later_may_be_missing(kind: type[Message]) -> None:
    """As in what was written down before; those without a default may not."""
    good = plain_example(kind)
    added = sum(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    for count in range(1, added + 1):
        message = decode(msgpack.packb([0, 5, CODES[kind], *good[:-count]])).message  # type: ignore[union-attr]
        for field in dataclasses.fields(kind)[-count:]:  # type: ignore[arg-type]
            assert getattr(message, field.name) == field.default


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_example_that_faults_start_from_is_right(kind: type[Message]) -> None:
    assert type(decode(msgpack.packb([1, 5, CODES[kind], *plain_example(kind)])).message) is kind  # type: ignore[union-attr]


def test_a_failure_detail_is_made_fit_to_travel() -> None:
    """Details name files, and file names may be no UTF-8 (os.fsdecode's surrogates) and long."""
    broken = FailureEnvelope(RequestId(5), 2, "no \udcff here")
    assert decode(encode(broken)) == FailureEnvelope(RequestId(5), 2, "no \\udcff here")
    long = decode(encode(FailureEnvelope(RequestId(5), 2, "\N{SNOWMAN}" * HEADER_SIZE_MAX)))
    assert isinstance(long, FailureEnvelope)
    assert TEXT_SIZE_MAX - 3 < len(long.detail.encode()) <= TEXT_SIZE_MAX


@pytest.mark.parametrize("number", [INT_MAX + 1, INT_MIN - 1])
def test_an_integer_beyond_64_bit_is_not_sent_and_spoils_nothing_after_it(number: int) -> None:
    with pytest.raises(OverflowError):
        encode(FailureEnvelope(RequestId(number), 2, ""))
    assert decode(encode(FailureEnvelope(RequestId(5), 2, ""))) == FailureEnvelope(RequestId(5), 2, "")


# --- refusals ---


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_fault_in_any_field_is_refused(kind: type[Message]) -> None:
    for fault in faults(kind, plain_example(kind)):
        if type(fault) is list:  # the fields are part of the envelope's own list
            refuses(msgpack.packb([0, 5, CODES[kind], *fault]))
            refuses(msgpack.packb([1, 5, CODES[kind], *fault]))


NESTED = 1000
ENVELOPE_FAULTS = {
    "nothing": [],
    "no list": 7,
    "a map": {},
    "kind unknown": [3, 5, 1],
    "kind negative": [-1, 5, 1],
    "kind is false": [False, 5, 2],
    "kind is true": [True, 5, 2],
    "kind is a float": [0.0, 5, 2],
    "kind is two as a float": [2.0, 5, 2, "detail"],
    "request without code": [0, 5],
    "reply without code": [1, 5],
    "id negative": [2, -5, 2, "detail"],
    "id is bool": [2, True, 2, "detail"],
    "id is bytes": [2, b"5", 2, "detail"],
    "errno zero": [2, 5, 0, "detail"],
    "errno negative": [2, 5, -2, "detail"],
    "errno too large": [2, 5, 4096, "detail"],
    "errno is bool": [2, 5, True, "detail"],
    "errno is text": [2, 5, "ENOENT", "detail"],
    "detail is bytes": [2, 5, 2, b"detail"],
    "detail missing": [2, 5, 2],
    "detail and more": [2, 5, 2, "detail", 1],
    "detail too long": [2, 5, 2, "d" * (TEXT_SIZE_MAX + 1)],
    "code unknown": [1, 5, max(CODES.values()) + 1],
    "code zero": [1, 5, 0],
    "code negative": [1, 5, -1],
    "code is bool": [1, 5, True],
    "code is a list": [1, 5, [1]],
    "code is a float": [1, 5, 1.0],
}


@pytest.mark.parametrize("values", ENVELOPE_FAULTS.values(), ids=ENVELOPE_FAULTS.keys())
def test_a_wrong_envelope_is_refused(values: list[object]) -> None:
    refuses(msgpack.packb(values))


LISTS = b"\x91" * NESTED + b"\x90"
RAW_FAULTS = {
    "empty": b"",
    "never used byte": b"\xc1",
    "cut short": encode(FailureEnvelope(RequestId(5), 2, "detail"))[:-1],
    "trailing byte": encode(FailureEnvelope(RequestId(5), 2, "detail")) + b"\x00",
    "two values": encode(FailureEnvelope(RequestId(5), 2, "detail")) * 2,
    "invalid utf-8": b"\x94\x02\x05\x02\xa2\xff\xfe",
    "utf-8 of a surrogate": b"\x94\x02\x05\x02\xa3\xed\xb3\xbf",
    "declares 2^32 elements": b"\xdd\xff\xff\xff\xff" + b"\x01" * 8,
    "declares one element too many": struct.pack(">BI", 0xDD, SEQUENCE_LENGTH_MAX + 1)
    + b"\x01" * (SEQUENCE_LENGTH_MAX + 1),
    "declares 2^32 bytes": b"\x94\x02\x05\x02\xc6\xff\xff\xff\xff",
    "declares a text of 2^32": b"\x94\x02\x05\x02\xdb\xff\xff\xff\xff",
    "declares 2^32 map entries": b"\x94\x02\x05\x02\xdf\xff\xff\xff\xff",
    "map entries": b"\x94\x02\x05\x02\x81\x01\x01",
    "extension": b"\x94\x02\x05\x02\xd4\x05\x00",
    "extension of no bytes": b"\x94\x02\x05\x02\xc7\x00\x05",
    "timestamp": b"\x94\x02\x05\x02\xd6\xff\x00\x00\x00\x00",
    "timestamp of no bytes": b"\x94\x02\x05\x02\xc7\x00\xff",
    "lists in lists": LISTS,
    "lists in lists for the kind": b"\x93" + LISTS + b"\x01\x02",
    "lists in lists for the id": b"\x93\x01" + LISTS + b"\x02",
    "lists in lists for the code": b"\x93\x01\x05" + LISTS,
    "lists in lists for the errno": b"\x94\x02\x05" + LISTS + b"\xa0",
    "lists in lists, then a trailing byte": LISTS + b"\x00",
    "lists without end": b"\x91" * 100_000,
}


@pytest.mark.parametrize("header", RAW_FAULTS.values(), ids=RAW_FAULTS.keys())
def test_bytes_that_no_encoder_makes_are_refused(header: bytes) -> None:
    refuses(header)


@pytest.mark.parametrize("depth", [10, 100, 400, 500, 900, 990, 1010, 1020, 1022, 1023, 1024, 1025, 5000])
def test_no_depth_of_lists_is_anything_but_refused(depth: int) -> None:
    """Printing a nested list recurses in the interpreter: an error message is no place for it."""
    lists = b"\x91" * depth + b"\x90"
    for header in (lists, lists + b"\x00", b"\x93" + lists + b"\x01\x02", b"\x93\x01" + lists + b"\x02"):
        refuses(header)
    for code in CODES.values():
        refuses(b"\x94\x01\x05" + msgpack.packb(code) + lists)


def test_a_small_header_does_not_reserve_much_memory() -> None:
    """A list is allocated at its declared length before its elements are there."""

    header = struct.pack(">BI", 0xDD, SEQUENCE_LENGTH_MAX) * 500
    tracemalloc.start()
    try:
        refuses(header)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


# --- fuzz ---


def decodes_or_refuses(header: bytes) -> None:
    try:
        envelope = decode(header)
    except ProtocolError:
        return
    assert decode(encode(envelope)) == envelope


@given(ENVELOPES.map(encode), st.data())
@settings(max_examples=1000)
def test_mutated_headers_are_decoded_or_refused(header: bytes, data: st.DataObject) -> None:
    mutated = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(["set", "insert", "delete", "repeat"])):
            case "set":
                mutated[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                mutated[at:at] = data.draw(st.binary(min_size=1, max_size=6))
            case "delete":
                del mutated[at : at + data.draw(st.integers(1, 4))]
            case _:
                mutated[at:at] = mutated[at : at + data.draw(st.integers(1, 8))]
    decodes_or_refuses(bytes(mutated))


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_random_bytes_are_decoded_or_refused(header: bytes) -> None:
    decodes_or_refuses(header)

"""Messages to and from msgpack: strict, positional, without reflection at run time.

A frame's header is one msgpack array (`Envelope`):

=======  =================================================================
request  ``[0, id, code, field, field, ...]``
reply    ``[1, id, code, field, field, ...]``
failure  ``[2, id, errno, detail]``
=======  =================================================================

*id* counts up on each side and is never used again, also not over reconnections and in later sessions; a
request that is sent again carries the id of the first try. 0 is the greeting's, which comes before all of it.
Fields are positional: one too many, one too few, or one of the wrong type is a `ProtocolError`; nothing is
converted silently. A message or record may gain a field, at its end and with a default that means what was
meant without it: then what was written down before (in the journal) is still read. Peers of different versions
do not talk to each other at all (PROTOCOL_VERSION), so nobody is sent a field that he does not know.
"""

from __future__ import annotations

import enum
import types as python_types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from operator import attrgetter
from typing import Any, Final

import msgpack

from nfsfuse.protocol.codes import CODES, Message
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, SEQUENCE_LENGTH_MAX, TEXT_SIZE_MAX
from nfsfuse.protocol.messages import Hello
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import RequestId

Check = Callable[[object], Any]
"""Turns what msgpack decoded into the field's value, or raises ProtocolError."""

Fields = Callable[[Any], tuple[object, ...]]
"""The fields of a message or record, in order. What of them msgpack does not know it asks for likewise: see
`_plain`."""

ERRNO_MAX: Final = 4095
"""The largest errno a system call can return: MAX_ERRNO of <linux/err.h>."""

REQUEST: Final = 0
REPLY: Final = 1
FAILURE: Final = 2


_PLAIN_TYPES: Final = (int, bytes, str, bool)
"""What msgpack decodes to just these types."""


@record(frozen=True, slots=True)
class RequestEnvelope:
    """*message* is asked under *id*."""

    id: RequestId
    message: Message


@record(frozen=True, slots=True)
class ReplyEnvelope:
    """Answers the request *id*."""

    id: RequestId
    message: Message


@record(frozen=True, slots=True)
class FailureEnvelope:
    """Answers the request *id* with an errno (positive) for its caller and a detail for people."""

    id: RequestId
    errno: int
    detail: str


Envelope = RequestEnvelope | ReplyEnvelope | FailureEnvelope


def _shown(value: object) -> str:
    # Not the repr of anything a peer sends: that of lists in lists recurses until it is a RecursionError.
    return str(value) if type(value) is int else f"of type {type(value).__name__}"


def _text(detail: str) -> str:
    """*detail* as it can be sent. It may name a file, and a name from os.fsdecode need not be text."""
    raw = detail.encode("utf-8", "backslashreplace")
    return raw[:TEXT_SIZE_MAX].decode("utf-8", "ignore")  # "ignore": a character may be cut in two


def _exactly(expected: type) -> Check:
    # bool is a subclass of int, so isinstance would let True pass for 1.
    def check(value: object) -> object:
        if type(value) is not expected:
            raise ProtocolError(f"expected {expected.__name__}, got {type(value).__name__}")
        return value

    return check


def _optional(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def _sequence(inner: Check) -> Check:
    def check(value: object) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ProtocolError(f"expected a list, got {type(value).__name__}")
        return tuple(map(inner, value))

    return check


def _enumeration(kind: type[enum.IntEnum]) -> Check:
    members = {member.value: member for member in kind}

    def check(value: object) -> enum.IntEnum:
        if type(value) is not int or value not in members:
            raise ProtocolError(f"not a {kind.__name__}: {_shown(value)}")
        return members[value]

    return check


def _bare(annotation: Any) -> Any:
    """*annotation* without the names that `typing.NewType` gives to it."""
    while isinstance(annotation, typing.NewType):
        annotation = annotation.__supertype__
    return annotation


def _check_of(annotation: Any) -> Check:
    """How a field annotated so is checked."""
    annotation = _bare(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN_TYPES:
        return _exactly(annotation)
    if origin in (typing.Union, python_types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _optional(_check_of(inner))
    if origin is tuple and arguments[1:] == (...,):
        return _sequence(_check_of(arguments[0]))
    if _is_enumeration(annotation):
        return _enumeration(annotation)
    if is_dataclass(annotation):
        return _record(typing.cast(type, annotation))
    raise TypeError(f"no wire form for {annotation!r}")


def _is_enumeration(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.IntEnum)


def _wire_types(annotations: list[Any]) -> tuple[type, ...] | None:
    """The types that msgpack decodes the fields to, if each has just one."""
    found = [int if _is_enumeration(annotation) else annotation for annotation in map(_bare, annotations)]
    return tuple(found) if all(kind in _PLAIN_TYPES for kind in found) else None


def _record(kind: type) -> Check:
    """How a message or record, a dataclass, is made of the list of its fields. `_FIELDS` has the way back."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    count = len(names)
    required = sum(field.default is MISSING for field in fields(kind))
    checks = tuple(_check_of(hints[name]) for name in names)
    wire_types = _wire_types([hints[name] for name in names])
    enumerations = [index for index, name in enumerate(names) if _is_enumeration(_bare(hints[name]))]
    _FIELDS[kind] = _fields_of(names)

    def check(values: object) -> Any:
        if type(values) is not list:
            raise ProtocolError(f"expected {kind.__name__}, got {type(values).__name__}")
        # Most have plain fields only, and one comparison of types decides for all of them.
        if wire_types is not None and tuple(map(type, values)) == wire_types:
            for index in enumerations:
                values[index] = checks[index](values[index])
            return kind(*values)
        if not required <= len(values) <= count:
            raise ProtocolError(f"{kind.__name__} has {count} fields, got {len(values)}")
        return kind(*[check(value) for check, value in zip(checks, values, strict=False)])

    return check


def _fields_of(names: list[str]) -> Fields:
    if not names:
        return lambda message: ()
    get = attrgetter(*names)
    if len(names) == 1:  # attrgetter of one name gives the value, of several a tuple
        return lambda message: (get(message),)
    return get


_FIELDS: Final[dict[type, Fields]] = {}
_UNPACK: Final = {code: _record(kind) for kind, code in CODES.items()}
_PACK: Final = {kind: (code, _FIELDS[kind]) for kind, code in CODES.items()}


def _plain(value: object) -> tuple[object, ...]:
    """A record inside a message, which msgpack does not know. (It packs tuples as arrays, and enumerations as
    the integers that they are.)"""
    get = _FIELDS.get(type(value))
    if get is None:
        if isinstance(value, int):  # which msgpack knows, but not such large ones
            raise OverflowError("an integer beyond 64 bit")
        raise TypeError(f"no wire form for {type(value).__name__}")
    return get(value)


_dump: Final[Callable[[object], bytes]] = msgpack.Packer(
    default=_plain, use_bin_type=True, autoreset=True
).pack


def encode(envelope: Envelope) -> bytes:
    """The header of *envelope*'s frame."""
    if isinstance(envelope, FailureEnvelope):
        assert 0 < envelope.errno <= ERRNO_MAX, envelope.errno
        header = _dump((FAILURE, envelope.id, envelope.errno, _text(envelope.detail)))
    else:
        code, get = _PACK[type(envelope.message)]
        kind = REQUEST if type(envelope) is RequestEnvelope else REPLY
        header = _dump((kind, envelope.id, code, *get(envelope.message)))
    assert len(header) <= HEADER_SIZE_MAX, (type(envelope), len(header))
    return header


def decode(header: bytes | bytearray | memoryview) -> Envelope:
    """The envelope in a frame's *header*. Raises ProtocolError for whatever `encode` cannot have made."""
    return _envelope(_load(header))


def version_of(header: bytes) -> int | None:
    """The protocol version of whoever says `Hello` in *header*, whatever else that has in its version; None if
    it is no Hello. Raises ProtocolError for what is no msgpack."""
    match _load(header):
        case [int(kind), 0, int(code), int(version), *_] if (kind, code) == (REQUEST, CODES[Hello]):
            return version
    return None


def _load(header: bytes | bytearray | memoryview) -> object:
    # An element takes a byte at least, and a list is allocated at the length it declares: without the min,
    # lists in lists would make a small header reserve 64 Ki elements for every 5 bytes.
    length_max = min(len(header), SEQUENCE_LENGTH_MAX)
    try:
        values: object = msgpack.unpackb(
            header, raw=False, use_list=True, max_array_len=length_max, max_map_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as exc:  # UnicodeDecodeError is a ValueError
        # str, as the repr of ExtraData has the value in it (see _shown).
        raise ProtocolError(f"not msgpack: {type(exc).__name__}: {exc!s:.200}") from exc
    return values


def _envelope(values: Any) -> Envelope:
    # Types are compared because False and 0.0 equal 0.
    if type(values) is not list or len(values) < 3 or type(values[0]) is not int:
        raise ProtocolError("not an envelope")
    kind, number, code = values[:3]
    if type(number) is not int or number < 0:
        raise ProtocolError(f"not a request id: {_shown(number)}")
    envelope: type[RequestEnvelope] | type[ReplyEnvelope]
    if kind == REQUEST:
        envelope = RequestEnvelope
    elif kind == REPLY:
        envelope = ReplyEnvelope
    elif kind == FAILURE and len(values) == 4:
        return _failure(RequestId(number), code, values[3])
    else:
        raise ProtocolError("not an envelope")
    unpack = _UNPACK.get(code) if type(code) is int else None
    if unpack is None:
        raise ProtocolError(f"unknown message {_shown(code)}")
    return envelope(RequestId(number), unpack(values[3:]))


def _failure(number: RequestId, errno: object, detail: object) -> FailureEnvelope:
    if type(errno) is not int or not 0 < errno <= ERRNO_MAX:
        raise ProtocolError(f"not an errno: {_shown(errno)}")
    if type(detail) is not str or len(detail.encode()) > TEXT_SIZE_MAX:
        raise ProtocolError(f"not a detail of at most {TEXT_SIZE_MAX} bytes: {_shown(detail)}")
    return FailureEnvelope(number, errno, detail)

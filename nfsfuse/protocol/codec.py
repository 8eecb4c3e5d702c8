"""Messages to and from msgpack: strict, positional, without reflection at run time.

A frame's header is one msgpack array (`Envelope`):

=======  =================================================================
request  ``[0, id, code, field, field, ...]``
reply    ``[1, id, code, field, field, ...]``
failure  ``[2, id, errno, detail]``
=======  =================================================================

*id* counts up on each side and is never used again, also not over reconnections and in later sessions; a
request that is sent again carries the id of the first try. 0 is the greeting's, which comes before all of it.
Fields are positional: one too many,
one too few, or one of the wrong type is a `ProtocolError`; nothing is converted silently.
"""

from __future__ import annotations

import enum
import types as python_types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, Final

import msgpack

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.limits import HEADER_SIZE_MAX, SEQUENCE_LENGTH_MAX, TEXT_SIZE_MAX
from nfsfuse.protocol.messages import CODES, Message
from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import RequestId

Check = Callable[[object], Any]
"""Turns what msgpack decoded into the field's value, or raises ProtocolError."""

Plain = Callable[[Any], object]
"""Turns a field's value into what msgpack encodes."""

ERRNO_MAX: Final = 4095
"""The largest errno a system call can return: MAX_ERRNO of <linux/err.h>."""

REQUEST: Final = 0
REPLY: Final = 1
FAILURE: Final = 2


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


def _same(value: Any) -> object:
    return value


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


def _optional(inner: Check, plain: Plain) -> tuple[Check, Plain]:
    return (
        lambda value: None if value is None else inner(value),
        lambda value: None if value is None else plain(value),
    )


def _sequence(inner: Check, plain: Plain) -> tuple[Check, Plain]:
    def check(value: object) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ProtocolError(f"expected a list, got {type(value).__name__}")
        return tuple(map(inner, value))

    return check, lambda value: list(map(plain, value))


def _enumeration(kind: type[enum.IntEnum]) -> tuple[Check, Plain]:
    members = {member.value: member for member in kind}

    def check(value: object) -> enum.IntEnum:
        if type(value) is not int or value not in members:
            raise ProtocolError(f"not a {kind.__name__}: {_shown(value)}")
        return members[value]

    return check, int


def _record(kind: type) -> tuple[Check, Plain]:
    unpack, pack = _fields_of(kind)

    def check(value: object) -> Any:
        if type(value) is not list:
            raise ProtocolError(f"expected {kind.__name__}, got {type(value).__name__}")
        return unpack(value)

    return check, pack


def _converter(annotation: Any) -> tuple[Check, Plain]:
    """How a field annotated so is checked and made plain."""
    while isinstance(annotation, typing.NewType):
        annotation = annotation.__supertype__
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, bytes, str, bool):
        return _exactly(annotation), _same
    if origin in (typing.Union, python_types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _optional(*_converter(inner))
    if origin is tuple and arguments[1:] == (...,):
        return _sequence(*_converter(arguments[0]))
    if isinstance(annotation, type) and issubclass(annotation, enum.IntEnum):
        return _enumeration(annotation)
    if is_dataclass(annotation):
        return _record(typing.cast(type, annotation))
    raise TypeError(f"no wire form for {annotation!r}")


def _plain_types(annotations: list[Any]) -> tuple[type, ...] | None:
    """The types that msgpack decodes the fields to, if for all of them that is already the right value."""
    found = []
    for annotation in annotations:
        while isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        if annotation not in (int, bytes, str, bool):
            return None
        found.append(annotation)
    return tuple(found)


def _fields_of(kind: type) -> tuple[Callable[[list[object]], Any], Callable[[Any], list[object]]]:
    """How the fields of a dataclass are read from, and written to, a list."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    converters = [_converter(hints[name]) for name in names]
    checks = tuple(check for check, _ in converters)
    count = len(names)
    plain_types = _plain_types([hints[name] for name in names])

    def unpack(values: list[object]) -> Any:
        # Most messages have plain fields only, and one comparison of types decides for all of them.
        if plain_types is not None and tuple(map(type, values)) == plain_types:
            return kind(*values)
        if len(values) != count:
            raise ProtocolError(f"{kind.__name__} has {count} fields, got {len(values)}")
        return kind(*[check(value) for check, value in zip(checks, values, strict=True)])

    if count == 0:
        return unpack, lambda message: []
    getters = [(attrgetter(name), plain) for name, (_, plain) in zip(names, converters, strict=True)]
    if any(plain is not _same for _, plain in getters):
        return unpack, lambda message: [plain(get(message)) for get, plain in getters]
    get_all = attrgetter(*names)
    if count == 1:  # attrgetter of one name gives the value, of several a tuple
        return unpack, lambda message: [get_all(message)]
    return unpack, lambda message: list(get_all(message))


_CODECS: Final = {kind: _fields_of(kind) for kind in CODES}
_UNPACK: Final = {code: _CODECS[kind][0] for kind, code in CODES.items()}
_PACK: Final = {kind: (code, _CODECS[kind][1]) for kind, code in CODES.items()}

_dump: Final[Callable[[object], bytes]] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(envelope: Envelope) -> bytes:
    """The header of *envelope*'s frame."""
    match envelope:
        case RequestEnvelope(id=number, message=message):
            code, pack = _PACK[type(message)]
            header = _dump([REQUEST, number, code, *pack(message)])
        case ReplyEnvelope(id=number, message=message):
            code, pack = _PACK[type(message)]
            header = _dump([REPLY, number, code, *pack(message)])
        case FailureEnvelope(id=number, errno=errno, detail=detail):
            assert 0 < errno <= ERRNO_MAX, errno
            header = _dump([FAILURE, number, errno, _text(detail)])
    assert len(header) <= HEADER_SIZE_MAX, (type(envelope), len(header))
    return header


def _message(code: object, values: list[object]) -> Message:
    unpack = _UNPACK.get(code) if type(code) is int else None
    if unpack is None:
        raise ProtocolError(f"unknown message {_shown(code)}")
    return typing.cast(Message, unpack(values))


def _number(value: object) -> RequestId:
    if type(value) is not int or value < 0:
        raise ProtocolError(f"not a request id: {_shown(value)}")
    return RequestId(value)


def decode(header: bytes | bytearray | memoryview) -> Envelope:
    """The envelope in a frame's *header*. Raises ProtocolError for whatever `encode` cannot have made."""
    # An element takes a byte at least, and a list is allocated at the length it declares: without the min,
    # lists in lists would make a small header reserve 64 Ki elements for every 5 bytes.
    length_max = min(len(header), SEQUENCE_LENGTH_MAX)
    try:
        values = msgpack.unpackb(
            header, raw=False, use_list=True, max_array_len=length_max, max_map_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as exc:  # UnicodeDecodeError is a ValueError
        # str, as the repr of ExtraData has the value in it (see _shown).
        raise ProtocolError(f"not msgpack: {type(exc).__name__}: {exc!s:.200}") from exc
    # The kind's type is looked at because False and 0.0 equal 0, which is all that a pattern asks.
    if type(values) is list and values and type(values[0]) is int:
        match values:
            case [0, number, code, *rest]:
                return RequestEnvelope(_number(number), _message(code, rest))
            case [1, number, code, *rest]:
                return ReplyEnvelope(_number(number), _message(code, rest))
            case [2, number, errno, detail]:
                return _failure(_number(number), errno, detail)
    raise ProtocolError("not an envelope")


def _failure(number: RequestId, errno: object, detail: object) -> FailureEnvelope:
    if type(errno) is not int or not 0 < errno <= ERRNO_MAX:
        raise ProtocolError(f"not an errno: {_shown(errno)}")
    if type(detail) is not str or len(detail.encode()) > TEXT_SIZE_MAX:
        raise ProtocolError(f"not a detail of at most {TEXT_SIZE_MAX} bytes: {_shown(detail)}")
    return FailureEnvelope(number, errno, detail)

"""Handlers of open files and their data."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import PAYLOAD_SIZE_MAX
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import AttributeChanges, InodeHandle, Node
from server.service.calls import Answer, Environment, Handler, Reply
from server.service.session import Session

INLINE_WRITE_SIZE_MAX: Final = 64 * 1024
"""Bytes: a write no larger is a short copy into the server's page cache."""


def _open(env: Environment, session: Session, request: m.Open, _: bytes | bytearray) -> Answer:
    def perform() -> Reply:
        handle = request.handle
        if request.flags & os.O_TRUNC:
            attributes = env.storage.setattr(handle, AttributeChanges(size=0))
        else:
            attributes = env.storage.getattr(handle)
        if not stat.S_ISREG(attributes.mode):
            raise FsError(errno.EINVAL, "only regular files are opened")
        return _opened(env, session, Node(handle, attributes))

    return env.disk.quick(perform)


def _create(env: Environment, session: Session, request: m.Create, _: bytes | bytearray) -> Answer:
    def perform() -> Reply:
        node, _ = env.storage.create(
            request.parent,
            request.name,
            request.mode,
            request.credentials,
            exclusive=bool(request.flags & os.O_EXCL),
            truncate=bool(request.flags & os.O_TRUNC),
        )
        return _opened(env, session, node)

    return env.disk.quick(perform)


def _opened(env: Environment, session: Session, node: Node) -> Reply:
    env.storage.pin(node.handle)
    return m.Opened(session.opened(node.handle), node)


def _release(env: Environment, session: Session, request: m.Release, _: bytes | bytearray) -> Answer:
    handle = session.released(request.open_id)

    def perform() -> Reply:
        env.storage.unpin(handle)
        return m.Done()

    return env.disk.quick(perform)


def _read(env: Environment, _: Session, request: m.Read, __: bytes | bytearray) -> Answer:
    handle, offset, size = request.handle, request.offset, request.size
    if not 0 < size <= PAYLOAD_SIZE_MAX or offset < 0:
        raise FsError(errno.EINVAL, f"read of {size} bytes at {offset}")
    data = env.storage.read_nowait(handle, offset, size)
    if data is not None:
        return m.Data(), data
    return env.disk.slow(lambda: (m.Data(), env.storage.read(handle, offset, size)))


def _write(env: Environment, _: Session, request: m.Write, payload: bytes | bytearray) -> Answer:
    if len(payload) > PAYLOAD_SIZE_MAX or request.offset < 0:
        raise FsError(errno.EINVAL, f"write of {len(payload)} bytes at {request.offset}")

    def perform() -> Reply:
        data = memoryview(payload)
        if request.append:
            return m.Written(*env.storage.append(request.handle, data))
        return m.Written(request.offset, env.storage.write(request.handle, request.offset, data))

    return env.disk.quick(perform) if len(payload) <= INLINE_WRITE_SIZE_MAX else env.disk.slow(perform)


def _fsync(env: Environment, _: Session, request: m.Fsync, __: bytes | bytearray) -> Answer:
    def perform() -> Reply:
        handle: InodeHandle = request.handle
        if stat.S_ISDIR(env.storage.getattr(handle).mode):
            env.storage.fsync_dir(handle)
        else:
            env.storage.fsync(handle, request.data_only)
        return m.Done()

    return env.disk.slow(perform)


def _fallocate(env: Environment, _: Session, request: m.Fallocate, __: bytes | bytearray) -> Answer:
    return env.disk.slow(
        lambda: m.Stat(env.storage.fallocate(request.handle, request.mode, request.offset, request.length))
    )


def _seek(env: Environment, _: Session, request: m.Seek, __: bytes | bytearray) -> Answer:
    return env.disk.quick(
        lambda: m.Position(env.storage.seek(request.handle, request.offset, request.whence))
    )


def _copy_range(env: Environment, _: Session, request: m.CopyRange, __: bytes | bytearray) -> Answer:
    return env.disk.slow(
        lambda: m.Position(
            env.storage.copy_range(
                request.source, request.source_offset, request.target, request.target_offset, request.length
            )
        )
    )


FILE_HANDLERS: Final[dict[type[Message], Handler]] = {
    m.Open: _open,
    m.Create: _create,
    m.Release: _release,
    m.Read: _read,
    m.Write: _write,
    m.Fsync: _fsync,
    m.Fallocate: _fallocate,
    m.Seek: _seek,
    m.CopyRange: _copy_range,
}

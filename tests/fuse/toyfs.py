"""A flat in-memory filesystem on pyfuse3 and the supplement, run as ``toyfs.py MOUNTPOINT SETTINGS``.

The test drives it by lines of JSON: one command in, one answer out. Every operation is journaled with the
facts of its request, and can be held at a gate.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import trio

from nfsfuse.cli.mounts import device_of
from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.abi import InitFlag, Opcode
from nfsfuse.fuse.binding.init import InitOptions
from nfsfuse.fuse.binding.libraries import Request, SupplementError, current_request, pyfuse3
from nfsfuse.fuse.binding.read_ahead import set_read_ahead
from nfsfuse.fuse.binding.supplement import mount
from nfsfuse.fuse.notifications.believed_sizes import believed_size
from nfsfuse.fuse.notifications.notifier import Notifier
from nfsfuse.fuse.notifications.own_mount import OwnMount
from nfsfuse.fuse.upcalls.dispatcher import ExtraOperations, FileLock
from nfsfuse.fuse.upcalls.interrupt import interruptible, waiting
from nfsfuse.fuse.upcalls.later import Replies
from nfsfuse.fuse.upcalls.replies import DirectoryEntry, StatxReply
from nfsfuse.protocol.types import LockOwner

FACTS = (
    "opcode",
    "unique",
    "nodeid",
    "uid",
    "gid",
    "pid",
    "fh",
    "lock_owner",
    "offset",
    "size",
    "flags",
    "operation_flags",
    "valid",
    "is_write_back",
    "kill_suidgid",
)
BTIME_NS = 1_234_567_890_123_456_789


class Node:
    def __init__(self, ino: int, mode: int) -> None:
        self.ino = ino
        self.mode = mode
        self.data = bytearray()
        self.mtime_ns = 0


class Toy:
    """What both faces share: the files, the locks, the journal and the gates."""

    def __init__(self) -> None:
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}
        self.names: dict[bytes, int] = {}
        self.locks: list[tuple[int, int, bool, FileLock]] = []
        self.unlocked = trio.Condition()
        self.journal: list[dict[str, Any]] = []
        self.gates: dict[str, trio.Event] = {}
        self.waiting: dict[str, int] = {}
        self.keep_cache = True
        self.direct_append = False
        self.timeout = 3600.0

    def create(self, mode: int) -> Node:
        node = Node(len(self.nodes) + 1, mode)
        self.nodes[node.ino] = node
        return node

    def entry(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.ino)
        entry.st_mode = pyfuse3.ModeT(node.mode)
        entry.st_nlink = 1
        entry.st_size = len(node.data)
        entry.st_blksize = 4096
        entry.st_blocks = (len(node.data) + 511) // 512
        entry.st_mtime_ns = node.mtime_ns
        entry.entry_timeout = entry.attr_timeout = self.timeout
        return entry

    def note(self, operation: str, request: Request, **more: Any) -> None:
        facts = {name: getattr(request, name) for name in FACTS}
        self.journal.append({"operation": operation, "facts": facts, **more})

    async def pass_gate(self, operation: str) -> None:
        gate = self.gates.get(operation)
        if gate is not None:
            self.waiting[operation] = self.waiting.get(operation, 0) + 1
            try:
                await gate.wait()
            finally:
                self.waiting[operation] -= 1

    def conflict(self, nodeid: int, owner: int, is_flock: bool, lock: FileLock) -> FileLock | None:
        for held_nodeid, held_owner, held_flock, held in self.locks:
            same = (held_nodeid, held_flock) == (nodeid, is_flock) and held_owner != owner
            overlap = held.start <= lock.end and lock.start <= held.end
            if same and overlap and fcntl.F_WRLCK in (held.type, lock.type):
                return held
        return None

    async def unlock(self, nodeid: int, owner: int, is_flock: bool) -> None:
        """All of one owner's: this toy knows no partial unlock."""
        self.locks = [held for held in self.locks if held[:3] != (nodeid, owner, is_flock)]
        async with self.unlocked:
            self.unlocked.notify_all()


class Operations(pyfuse3.Operations):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    @interruptible
    async def lookup(self, request: Request, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        self.toy.note("lookup", request, name=name.decode())
        await self.toy.pass_gate("lookup")
        ino = self.toy.names.get(name)
        if ino is None:
            entry = pyfuse3.EntryAttributes()
            entry.entry_timeout = self.toy.timeout
            return entry
        return self.toy.entry(self.toy.nodes[ino])

    @interruptible
    async def getattr(self, request: Request, inode, ctx):  # type: ignore[no-untyped-def]
        self.toy.note("getattr", request)
        await self.toy.pass_gate("getattr")
        return self.toy.entry(self.toy.nodes[inode])

    @interruptible
    async def setattr(self, request: Request, inode, attr, fields, fh, ctx):  # type: ignore[no-untyped-def]
        self.toy.note("setattr", request)
        node = self.toy.nodes[inode]
        if fields.update_size:
            node.data[:] = node.data[: attr.st_size].ljust(attr.st_size, b"\0")
        if fields.update_mode:
            node.mode = attr.st_mode
        return self.toy.entry(node)

    @interruptible
    async def open(self, request: Request, inode, flags, ctx):  # type: ignore[no-untyped-def]
        self.toy.note("open", request)
        if flags & os.O_TRUNC:
            self.toy.nodes[inode].data.clear()
        direct = self.toy.direct_append and bool(flags & os.O_APPEND)
        return pyfuse3.FileInfo(fh=inode + 1000, keep_cache=self.toy.keep_cache, direct_io=direct)

    @interruptible
    async def create(self, request: Request, parent_inode, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        self.toy.note("create", request, name=name.decode())
        await self.toy.pass_gate("create")
        node = self.toy.create(mode)
        self.toy.names[name] = node.ino
        return pyfuse3.FileInfo(fh=node.ino + 1000, keep_cache=self.toy.keep_cache), self.toy.entry(node)

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        request = current_request()
        self.toy.note("read", request)
        with waiting(request):
            await self.toy.pass_gate("read")
        return bytes(self.toy.nodes[fh - 1000].data[off : off + size])

    @interruptible
    async def write(self, request: Request, fh, off, buf):  # type: ignore[no-untyped-def]
        self.toy.note("write", request)
        await self.toy.pass_gate("write")
        node = self.toy.nodes[request.nodeid]
        if len(node.data) < off:
            node.data.extend(bytes(off - len(node.data)))
        node.data[off : off + len(buf)] = buf
        return len(buf)

    @interruptible
    async def flush(self, request: Request, fh):  # type: ignore[no-untyped-def]
        self.toy.note("flush", request)
        await self.toy.pass_gate("flush")
        assert request.lock_owner is not None
        await self.toy.unlock(request.nodeid, request.lock_owner, False)

    @interruptible
    async def fsync(self, request: Request, fh, datasync):  # type: ignore[no-untyped-def]
        self.toy.note("fsync", request)

    @interruptible
    async def release(self, request: Request, fh):  # type: ignore[no-untyped-def]
        self.toy.note("release", request)
        if request.lock_owner is not None:
            await self.toy.unlock(request.nodeid, request.lock_owner, True)

    @interruptible
    async def unlink(self, request: Request, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        del self.toy.names[name]

    @interruptible
    async def opendir(self, request: Request, inode, ctx):  # type: ignore[no-untyped-def]
        return inode

    @interruptible
    async def readdir(self, request: Request, fh, start_id, token):  # type: ignore[no-untyped-def]
        self.toy.note("readdirplus", request)
        for position, (name, ino) in enumerate(self.toy.names.items()):
            if position >= start_id and not pyfuse3.readdir_reply(
                token, name, self.toy.entry(self.toy.nodes[ino]), position + 1
            ):
                break


class QuickXattrs:
    """Answers GETXATTR where it is read, in every way there is, right and wrong, by the attribute's name."""

    opcodes = frozenset({Opcode.GETXATTR})

    def answer(self, request: Request, body: memoryview) -> bytes | int | None:
        name = bytes(body[abi.GETXATTR_IN.size : -1])
        match name:
            case b"user.value":
                return b"quick"
            case b"user.errno":
                return errno.ENODATA
            case b"user.raises":
                raise ValueError("a bug")
            case b"user.no_errno":
                return 100_000
            case b"user.no_answer":
                return "text"  # type: ignore[return-value]
        return None  # the long way


class Extra(ExtraOperations):
    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    async def getlk(
        self, request: Request, nodeid: int, fh: int, owner: LockOwner, lock: FileLock
    ) -> FileLock | None:
        self.toy.note("getlk", request, start=lock.start, end=lock.end, type=lock.type)
        return self.toy.conflict(nodeid, owner, False, lock)

    async def setlk(
        self,
        request: Request,
        nodeid: int,
        fh: int,
        owner: LockOwner,
        lock: FileLock,
        *,
        is_flock: bool,
        wait: bool,
    ) -> None:
        self.toy.note(
            "setlk", request, owner=owner, start=lock.start, end=lock.end, type=lock.type, pid=lock.pid,
            is_flock=is_flock, wait=wait, through=fh,
        )  # fmt: skip
        if lock.type == fcntl.F_UNLCK:
            await self.toy.unlock(nodeid, owner, is_flock)
            return
        while self.toy.conflict(nodeid, owner, is_flock, lock):
            if not wait:
                raise pyfuse3.FUSEError(errno.EAGAIN)
            self.toy.waiting["setlk"] = self.toy.waiting.get("setlk", 0) + 1
            try:
                async with self.toy.unlocked:
                    await self.toy.unlocked.wait()
            finally:
                self.toy.waiting["setlk"] -= 1
        self.toy.locks.append((nodeid, owner, is_flock, lock))

    async def fallocate(
        self, request: Request, nodeid: int, fh: int, offset: int, length: int, mode: int
    ) -> None:
        self.toy.note("fallocate", request, offset=offset, length=length, mode=mode)
        node = self.toy.nodes[nodeid]
        node.data.extend(bytes(max(0, offset + length - len(node.data))))

    async def lseek(self, request: Request, nodeid: int, fh: int, offset: int, whence: int) -> int:
        self.toy.note("lseek", request, offset=offset, whence=whence)
        size = len(self.toy.nodes[nodeid].data)
        if offset >= size:
            raise pyfuse3.FUSEError(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else size

    async def copy_file_range(
        self,
        request: Request,
        nodeid_in: int,
        fh_in: int,
        offset_in: int,
        nodeid_out: int,
        fh_out: int,
        offset_out: int,
        length: int,
    ) -> int:
        data = self.toy.nodes[nodeid_in].data[offset_in : offset_in + length]
        self.toy.nodes[nodeid_out].data[offset_out : offset_out + len(data)] = data
        self.toy.note("copy_file_range", request, nodeid_out=nodeid_out, length=length)
        return len(data)

    async def statx(self, request: Request, nodeid: int, fh: int | None, flags: int, mask: int) -> StatxReply:
        self.toy.note("statx", request, mask=mask)
        return StatxReply(self.toy.entry(self.toy.nodes[nodeid]), BTIME_NS)

    async def tmpfile(
        self, request: Request, parent: int, mode: int, flags: int, umask: int
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self.toy.note("tmpfile", request)
        node = self.toy.create(mode)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node.ino + 1000)), self.toy.entry(node)

    async def readdir(
        self, request: Request, nodeid: int, fh: int, cookie: int, size: int
    ) -> Iterable[DirectoryEntry]:
        self.toy.note("readdir", request)
        return [
            DirectoryEntry(name, ino, self.toy.nodes[ino].mode, position + 1)
            for position, (name, ino) in enumerate(self.toy.names.items())
            if position >= cookie
        ]


class BrokenExtra(Extra):
    """An exception that is no FUSEError must become EIO."""

    async def fallocate(
        self, request: Request, nodeid: int, fh: int, offset: int, length: int, mode: int
    ) -> None:
        raise ZeroDivisionError("a bug")


class Demanding(InitOptions):
    """Cannot be had here, as locks cannot from a very old kernel: only virtiofs offers this flag."""

    def required(self) -> InitFlag:
        return super().required() | InitFlag.MAP_ALIGNMENT


class Control:
    """The commands of the test, by name."""

    def __init__(self, toy: Toy, notifier: Notifier, mountpoint: str, negotiated: str) -> None:
        self.toy = toy
        self.notifier = notifier
        self.mountpoint = mountpoint
        self.negotiated = negotiated

    async def journal(self, operation: str | None = None) -> Any:
        found = [e for e in self.toy.journal if operation in (None, e["operation"])]
        self.toy.journal.clear()
        return found

    async def status(self) -> Any:
        return {
            "waiting": self.toy.waiting,
            "journaled": [entry["operation"] for entry in self.toy.journal],
            "locks": len(self.toy.locks),
            "negotiated": self.negotiated,
        }

    async def shut(self, operation: str) -> None:
        self.toy.gates[operation] = trio.Event()

    async def open(self, operation: str) -> None:
        self.toy.gates.pop(operation).set()

    async def write(self, name: str, data: str) -> int:
        """Change a file behind the kernel's back; its inode number."""
        ino = self.toy.names.get(name.encode()) or self.toy.create(stat.S_IFREG | 0o644).ino
        self.toy.names[name.encode()] = ino
        self.toy.nodes[ino].data[:] = base64.b64decode(data)
        return ino

    async def content(self, name: str) -> str:
        return base64.b64encode(self.toy.nodes[self.toy.names[name.encode()]].data).decode()

    async def forget_name(self, name: str) -> None:
        del self.toy.names[name.encode()]

    async def notify(self, method: str, arguments: list[Any]) -> Any:
        decoded = [a.encode() if isinstance(a, str) else a for a in arguments]
        returned = bytearray(1)
        told: dict[str, Any] = {"returned": returned} if method == "inval_inode" else {}
        if method == "grow":
            node_id: int
            size: int
            node_id, size = arguments
            believes = partial(believed_size, OwnMount(str(self.mountpoint)), node_id, 0)

            async def is_through() -> bool:
                return await trio.to_thread.run_sync(believes) >= size

            told = {"is_through": is_through}
        outcome = await getattr(self.notifier, method)(*decoded, **told)
        return {"errno": outcome.errno, "seconds": outcome.seconds, "returned": returned[0]}

    async def read_ahead(self, kib: int) -> bool:
        return set_read_ahead(device_of(self.mountpoint), kib)


def log_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def command_loop(control: Control) -> None:
    buffer = b""
    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(os.dup(0)) as stream:

        async def run(line: bytes) -> None:
            command = json.loads(line)
            try:
                result = await getattr(control, command["command"])(**command["arguments"])
                log_line(json.dumps({"id": command["id"], "result": result}))
            except Exception as exc:
                log_line(json.dumps({"id": command["id"], "error": repr(exc)}))

        async for chunk in stream:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                nursery.start_soon(run, line)


async def serve_owner(control: Control, nursery: trio.Nursery) -> None:
    """Do as told until there is nobody to tell: a test run that is killed unmounts nothing."""
    await command_loop(control)
    nursery.cancel_scope.cancel()


async def serve(mountpoint: str, settings: dict[str, Any]) -> None:
    toy = Toy()
    toy.keep_cache = settings.pop("keep_cache", True)
    toy.timeout = settings.pop("timeout", 3600.0)
    toy.direct_append = settings.pop("direct_append", False)
    extra: ExtraOperations = BrokenExtra(toy) if settings.pop("broken", False) else Extra(toy)
    if settings.pop("bare", False):
        extra = ExtraOperations()
    fuse_options = {"fsname=toyfs", "default_permissions", "allow_other"}
    make_options = Demanding if settings.pop("demanding", False) else InitOptions
    init = make_options(**settings)
    mounted = mount(Operations(toy), mountpoint, fuse_options, init, extra, Replies(), QuickXattrs())
    try:
        async with trio.open_nursery() as nursery:
            negotiated = await nursery.start(mounted.serve)
            control = Control(toy, mounted.notifier, mountpoint, str(negotiated))
            nursery.start_soon(serve_owner, control, nursery)
            log_line(json.dumps({"id": 0, "result": "mounted"}))
    finally:
        mounted.close()


def _leaf(error: BaseException) -> BaseException:
    """except* keeps the nesting of groups."""
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main() -> None:
    try:
        trio.run(serve, sys.argv[1], json.loads(sys.argv[2]))
    except* SupplementError as group:
        log_line(json.dumps({"id": 0, "error": str(_leaf(group))}))
        sys.exit(1)


if __name__ == "__main__":
    main()

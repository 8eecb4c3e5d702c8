"""Which process serves which mount, and in which session with which server: one small file a mount.

So umount can wait for the daemon, and a mount that replaces one whose daemon has died can tell the server. The
daemon has its file locked (flock(2)) for as long as it lives: whoever finds a file that is not locked knows
that its daemon is dead, whichever process has that number now, and removes it once nothing of its mount is
left. All of this blocks, and fails where the directory is full or cannot be written to: it is not for the event
loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from nfsfuse.cli.mounts import FSTYPE, canonical, targets
from nfsfuse.protocol.types import SessionId

_SUFFIX: Final = ".pid"


def _directory() -> Path:
    if os.geteuid() == 0:
        return Path("/run/nfsfuse")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "nfsfuse"


def _file(target: str) -> Path:
    return _directory() / (target.strip("/").replace("/", "\\") + _SUFFIX)


@contextmanager
def _directory_locked() -> Iterator[None]:
    """Nobody else makes or removes files meanwhile. Raises OSError."""
    directory = os.open(_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


class Registration:
    """This process serves *mountpoint* for *server*. To be made before there is a mount, which its path leads
    to."""

    def __init__(self, mountpoint: str, server: str) -> None:
        self._target = canonical(mountpoint)
        self._server = server
        self._descriptor: int | None = None

    def renew(self, session_id: SessionId) -> None:
        """It does so in this session. Raises OSError, and then what was told before is still told."""
        path = _file(self._target)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        new = path.with_name(f"{os.getpid()}.new")
        target = quote_from_bytes(os.fsencode(self._target))
        with _directory_locked():
            # Whoever knows the session can end it.
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                text = f"{os.getpid()}\n{self._server}\n{session_id.hex()}\n{target}\n".encode()
                if os.write(descriptor, text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                new.replace(path)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        before, self._descriptor = self._descriptor, descriptor
        if before is not None:
            os.close(before)

    def end(self) -> None:
        """It does not any more. Raises OSError."""
        if self._descriptor is not None:
            path = _file(self._target)
            with _directory_locked(), suppress(FileNotFoundError):
                # Else another one serves it since.
                if os.path.samestat(path.stat(), os.fstat(self._descriptor)):
                    path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


class _Record(NamedTuple):
    pid: int
    server: str
    session_id: SessionId
    target: str
    lives: bool


def _read(path: Path) -> _Record | None:
    """What a file says; None if there is none, it is another user's, or says nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    with os.fdopen(descriptor) as file:
        try:
            pid, server, session_id, *target = file.read().splitlines()
            # The files of earlier versions have neither a target nor a lock.
            lives = _is_locked(descriptor) if target else _lives(int(pid))
            name = os.fsdecode(unquote_to_bytes(target[0])) if target else ""
            return _Record(int(pid), server, SessionId(bytes.fromhex(session_id)), name, lives)
        except ValueError:
            return None


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _lives(pid: int) -> bool:
    """Whether there is a process *pid* that has not ended (a zombie has)."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(process)


def served_by(mountpoint: str) -> int | None:
    """The process that serves *mountpoint*, None if there is none or that is not known."""
    record = _read(_file(canonical(mountpoint)))
    return record.pid if record is not None and record.lives else None


def watch(mountpoint: str) -> tuple[int, int] | None:
    """The process that serves *mountpoint*, and a descriptor that becomes readable when it ends; None if there
    is no such process, or it is not known."""
    pid = served_by(mountpoint)
    if pid is None:
        return None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if served_by(mountpoint) != pid:  # it has ended before, and the number may be another's
        os.close(process)
        return None
    return pid, process


def session_of_the_dead(mountpoint: str, server: str) -> SessionId | None:
    """The session that a daemon which is dead had with *server* for *mountpoint*; None if there is no such."""
    record = _read(_file(canonical(mountpoint)))
    if record is None or record.lives or record.server != server:
        return None
    return record.session_id


def clear() -> None:
    """Remove what daemons that were killed have left, where nothing is left of their mounts either. Raises
    OSError."""
    mounted = targets(FSTYPE)
    try:
        with _directory_locked():
            for path in _directory().iterdir():
                if path.suffix == ".new":
                    if path.stem.isdecimal() and not _lives(int(path.stem)):
                        path.unlink()
                elif path.suffix == _SUFFIX:
                    record = _read(path)
                    if record is not None and not record.lives and not _is_mounted(path, record, mounted):
                        path.unlink()
    except FileNotFoundError:
        return  # there is no directory yet


def _is_mounted(path: Path, record: _Record, mounted: set[str]) -> bool:
    """Whether something is still mounted where *record* says, or may be: the next mount needs it then."""
    return record.target in mounted if record.target else any(_file(target) == path for target in mounted)

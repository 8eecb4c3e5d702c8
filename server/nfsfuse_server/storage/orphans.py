"""The hidden directory of an export in which inodes are kept that have lost their last name while in use.

An orphan is a link there, called by the inode's number, so that no two can want one name and that an inode
found there with the link already made is simply that. The link is made *before* the name is taken away: a
crash in between leaves an inode with one link too many, which the next sweep takes back, and never one with
none. (A rename of the name to its place here would be one step; but a name that is overwritten by a rename
has to be linked first all the same.)

Clients never see the directory, nor count its links: `told`.

A file that never had a name (O_TMPFILE) is an orphan from the beginning. Until it has been given one its link
here is called by the number after a NAMELESS, so that a later server knows that it may be.

Where it cannot be had, or an inode not be linked into it, pins keep what they always keep, an open
descriptor, and the log says that a restart loses the inode: on a filesystem that is read-only, full, or
without hard links; a project quota that ends at the directory (EXDEV); another user's file and a server
that is not root (fs.protected_hardlinks).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace

from nfsfuse.protocol.types import Attributes, InodeHandle
from nfsfuse_server.storage.descriptors import Descriptor, OpenInode, by_proc
from nfsfuse_server.storage.handles import Locator
from nfsfuse_server.storage.interface import ORPHANS_NAME
from nfsfuse_server.storage.syscalls import attributes_of

log = logging.getLogger(__name__)

NAMELESS = b"t"
"""No hexadecimal digit."""

_NO_FOLLOW = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Orphans:
    """The directory, made if it is not there, and which inodes are in it.

    *claimable*: handles outlive the server, so what an earlier one left may be asked for by them. The methods
    about one inode are called under its link lock (`LocalBase._link_lock`).
    """

    def __init__(self, root_fd: int, root: InodeHandle, locator: Locator, *, claimable: bool) -> None:
        self._root_fd = root_fd
        self._root = root
        self._names: dict[InodeHandle, bytes] = {}
        self._lock = threading.Lock()  # of link and table together, against `sweep`
        self._directory: Descriptor | None = None
        try:
            directory = self._directory = self._open()
            if claimable:
                for name in os.listdir(directory.number):
                    entry = os.fsencode(name)
                    self._names[locator.handle_at(directory.number, entry)] = entry
        except OSError as exc:
            log.warning(
                "no directory for unlinked files that are open (%s): a restart loses them", exc.strerror
            )

    def __contains__(self, handle: InodeHandle) -> bool:
        return handle in self._names

    def handles(self) -> list[InodeHandle]:
        """All that are kept here."""
        return list(self._names)

    def told(self, handle: InodeHandle, attributes: Attributes) -> Attributes:
        """*attributes*, of the kernel, as clients are told them: without what this directory adds to the link
        counts, of an orphan and of the root (unless that has none that count, as on btrfs)."""
        if handle in self._names:
            return replace(attributes, nlink=max(0, attributes.nlink - 1))
        if handle == self._root and self._directory is not None and attributes.nlink > 2:
            return replace(attributes, nlink=attributes.nlink - 1)
        return attributes

    def keep(self, inode: OpenInode) -> bool:
        """Gives *inode*, no directory, a link here; whether that is new. Where it fails the log says so."""
        if inode.handle in self._names:
            return False
        name = b"%x" % attributes_of(inode.path.number).ino
        for may_be_gone in (True, False):
            try:
                with self._lock:
                    directory = self._directory = self._directory or self._open()
                    os.link(by_proc(inode.path), name, dst_dir_fd=directory.number)
                    self._names[inode.handle] = name
                return True
            except FileNotFoundError:
                # The administrator has removed the directory. (Or the inode's name is gone already, by
                # a program on the server: then nothing can be done for it.)
                if may_be_gone:
                    self._directory = None
            except OSError as exc:
                log.warning(
                    "inode %s is unlinked while open and cannot be kept as an orphan (%s): a restart loses it",
                    name.decode(), exc.strerror,
                )  # fmt: skip
                return False
        return False

    def begin(self, path: Descriptor, adopt: Callable[[Descriptor], OpenInode]) -> OpenInode:
        """Gives the inode that *path* is of, which was made without a name, its link here; the inode as *adopt*
        makes it of *path*. OSError, with EOPNOTSUPP if there is no directory."""
        name = NAMELESS + b"%x" % attributes_of(path.number).ino
        with self._lock:
            try:
                directory = self._directory = self._directory or self._open()
            except OSError as exc:
                raise OSError(errno.EOPNOTSUPP, "no directory for files without a name") from exc
            try:
                os.link(by_proc(path), name, dst_dir_fd=directory.number)
            except FileNotFoundError:  # the administrator has removed the directory
                directory = self._directory = self._open()
                os.link(by_proc(path), name, dst_dir_fd=directory.number)
            try:
                inode = adopt(path)
            except BaseException:
                os.unlink(name, dir_fd=directory.number)
                raise
            self._names[inode.handle] = name
            return inode

    def may_be_named(self, handle: InodeHandle) -> bool:
        """Whether an orphan never had a name."""
        return self._names[handle].startswith(NAMELESS)

    def named(self, handle: InodeHandle) -> None:
        """An inode that may have been without a name has one: from now on it is as any other orphan."""
        name = self._names.get(handle)
        directory = self._directory
        if name is None or directory is None or not name.startswith(NAMELESS):
            return
        with self._lock:
            new_name = name.removeprefix(NAMELESS)
            try:
                os.rename(name, new_name, src_dir_fd=directory.number, dst_dir_fd=directory.number)
            except OSError as exc:
                log.warning("the orphan %s keeps its name: %s", name.decode(), exc.strerror)
                return
            self._names[handle] = new_name

    def discard(self, handle: InodeHandle) -> None:
        """Takes the link away, if there is one: with the last descriptor the inode goes, unless it has a
        name. What cannot be removed stays an orphan, for the next sweep."""
        name = self._names.get(handle)
        directory = self._directory
        if name is None:
            return
        try:
            if directory is not None:
                os.unlink(name, dir_fd=directory.number)
        except FileNotFoundError:
            pass  # by the administrator
        except OSError as exc:
            log.error("cannot remove the orphan %s: %s", name.decode(), exc.strerror)
            return
        del self._names[handle]

    def sweep(
        self,
        link_lock: Callable[[InodeHandle], AbstractContextManager[object]],
        is_pinned: Callable[[InodeHandle], bool],
    ) -> None:
        """Discards all that are not pinned, and whatever else is in the directory."""
        with self._lock:
            directory = self._directory
            found = [] if directory is None else [os.fsencode(name) for name in os.listdir(directory.number)]
            handles = list(self._names)
            known = set(self._names.values())
        for handle in handles:
            with link_lock(handle):
                if not is_pinned(handle):
                    self.discard(handle)
        for name in found:
            if name not in known:
                assert directory is not None
                try:
                    os.unlink(name, dir_fd=directory.number)
                except OSError as exc:
                    log.error("cannot remove %r from the orphans: %s", name, exc.strerror)

    def close(self) -> None:
        """Lets go of the directory, and leaves what is in it."""
        self._directory = None

    def _open(self) -> Descriptor:
        """The directory, made if need be. EPERM for one that others could change; EBUSY for that of another
        server that runs, whose orphans are not ours to sweep; ENOTDIR or ELOOP for what is none; EROFS,
        EACCES."""
        with suppress(FileExistsError):  # of an earlier server
            os.mkdir(ORPHANS_NAME, 0o700, dir_fd=self._root_fd)
        directory = Descriptor(os.open(ORPHANS_NAME, _NO_FOLLOW, dir_fd=self._root_fd))
        found = os.fstat(directory.number)
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"{ORPHANS_NAME.decode()} in the export is somebody else's")
        try:
            fcntl.flock(directory.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise OSError(errno.EBUSY, "another server exports the same directory") from exc
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(directory.number, 0o700)
        return directory

"""Handles: what names an inode permanently, and how a name or a handle leads to an open inode.

`PersistentLocator` (the default) issues the kernel's own file handles (name_to_handle_at(2)), which survive
renames and restarts. A kernel handle can name any inode of the filesystem, also outside the export, so each
is signed (keyed BLAKE2b, 16 bytes): only what was once found inside the export is ever opened. What is moved
out of the export on the server afterwards stays reachable by its old handle, as with NFS (no_subtree_check).

`VolatileLocator` numbers inodes as they are found, and keeps a descriptor of each. It needs no privilege and
works on every filesystem; but its handles die with the process, and that of an inode which is not pinned also
when the descriptor is needed elsewhere (ESTALE; never another inode's).

Both refuse what is on another filesystem, or under another mount, than the export's root: EXDEV.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from abc import ABC, abstractmethod
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.storage.descriptors import Descriptor, DescriptorCache, OpenInode
from nfsfuse_server.storage.interface import StorageError
from nfsfuse_server.storage.syscalls import (
    HANDLE_SIZE_MAX,
    Identity,
    attributes_of,
    identity_of,
    name_to_handle,
    open_by_handle,
)

SECRET_SIZE: Final = 32
"""Bytes of the key that handles are signed with."""

SECRET_FILE: Final = "handle-secret"
"""Its name in the server's state directory."""

SIGNATURE_SIZE: Final = 16
"""Bytes: one guess in 2**128 is right, and each costs a round trip."""

OPEN_TRIES: Final = 30
"""How often to open a handle that fails with ENOMEM; see `_open_raw`. With the growing pauses: 4 ms in
all."""

OPEN_PAUSE_SECONDS: Final = 10e-6
"""By how much each pause between these tries is longer than the last. A create(2) takes 20 to 50 us."""

_TYPE_SIZE: Final = 4
_OPEN_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def load_or_create_secret(state_dir: str | os.PathLike[str]) -> bytes:
    """The key kept in *state_dir*, made (durably, mode 0600) on first use.

    Whoever has it can reach every file of the exported filesystem; when it is lost, every handle is stale.
    `StorageError` for a file of a wrong size.
    """
    path = Path(state_dir) / SECRET_FILE
    if not path.exists():
        draft = path.with_name(f"{SECRET_FILE}.{secrets.token_hex(8)}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(secrets.token_bytes(SECRET_SIZE))
            file.flush()
            os.fsync(fd)
        try:
            os.link(draft, path)  # unlike rename, keeps the secret of a server that was faster
        except FileExistsError:
            pass  # then that one is read below
        finally:
            os.unlink(draft)
        directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    secret = path.read_bytes()
    if len(secret) != SECRET_SIZE:
        raise StorageError(
            f"{path} holds {len(secret)} bytes, not {SECRET_SIZE}: restore it, or remove it (then every "
            "handle that clients hold becomes stale)"
        )
    return secret


class HandleSigner:
    """Makes and checks signed handles of one export: type (4), kernel handle (up to 128), signature (16)."""

    def __init__(self, secret: bytes, root: bytes) -> None:
        """*root* is the kernel's handle of the export's root: another export's handles are refused."""
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"the secret has {len(secret)} bytes, not {SECRET_SIZE}")
        key = blake2b(root, key=secret, digest_size=32, person=b"nfsfuse-handle").digest()
        self._keyed = blake2b(key=key, digest_size=SIGNATURE_SIZE)  # copied: the key is hashed in once

    def sign(self, raw: bytes) -> InodeHandle:
        """The handle that clients get."""
        return InodeHandle(raw + self._signature(raw))

    def verify(self, handle: InodeHandle) -> bytes:
        """The kernel's handle in it. ESTALE for anything that `sign` did not return."""
        raw, signature = handle[:-SIGNATURE_SIZE], handle[-SIGNATURE_SIZE:]
        if not _TYPE_SIZE <= len(raw) <= _TYPE_SIZE + HANDLE_SIZE_MAX:
            raise FsError(errno.ESTALE, "malformed handle")
        if not compare_digest(signature, self._signature(raw)):
            raise FsError(errno.ESTALE, "handle of another server, or forged")
        return raw

    def _signature(self, raw: bytes) -> bytes:
        state = self._keyed.copy()
        state.update(raw)
        return state.digest()


class Locator(ABC):
    """Finds inodes and gives them handles. Methods raise OSError as system calls do, and FsError."""

    def __init__(self, root_fd: int, cache: DescriptorCache) -> None:
        self._root_fd = root_fd
        self._cache = cache
        self._place = self._place_of(identity_of(root_fd))

    @abstractmethod
    def find_cached(self, dir_fd: int, name: bytes) -> OpenInode | None:
        """The inode called *name* if that can be told without opening it. ENOENT, EXDEV."""

    @abstractmethod
    def adopt(self, path: Descriptor) -> OpenInode:
        """The inode that the O_PATH descriptor *path* is of, from now on in the cache. EXDEV."""

    @abstractmethod
    def open(self, handle: InodeHandle) -> OpenInode:
        """The inode of a handle that is not in the cache. ESTALE."""

    @abstractmethod
    def handle_at(self, dir_fd: int, name: bytes) -> InodeHandle:
        """The handle of what `find` would find, for a listing: opens nothing unless it must. ENOENT, EXDEV."""

    def find(self, dir_fd: int, name: bytes) -> OpenInode:
        """The inode called *name*, symbolic links not followed. ENOENT, EXDEV.

        The name is resolved once and everything else asked of the descriptor, so that a rename in between
        cannot mix two inodes.
        """
        inode = self.find_cached(dir_fd, name)
        if inode is not None:
            return inode
        return self.adopt(Descriptor(os.open(name, _OPEN_PATH, dir_fd=dir_fd)))

    def check_place(self, path: Descriptor) -> None:
        """EXDEV if the inode that *path* is of is on another filesystem, or under another mount."""
        self._identify(path)

    def _identify(self, path: Descriptor) -> Identity:
        identity = identity_of(path.number)
        if self._place_of(identity) != self._place:
            raise FsError(errno.EXDEV, "another filesystem is mounted there")
        return identity

    def _place_of(self, identity: Identity) -> tuple[int, int]:
        """What has to be the same all over the export: the mount, and the device, since a client sees inode
        numbers only (a btrfs subvolume has its own)."""
        return identity.mount_id, identity.device


class PersistentLocator(Locator):
    """Signed kernel handles. `StorageError` where filesystem or privilege forbid them."""

    def __init__(self, root_fd: int, cache: DescriptorCache, secret: bytes) -> None:
        super().__init__(root_fd, cache)
        try:
            raw, self._mount_id = name_to_handle(root_fd, b"")
        except OSError as exc:
            raise StorageError(
                f"the exported filesystem gives out no file handles (name_to_handle_at: {exc.strerror}): "
                "export a directory of another filesystem (ext4, XFS, btrfs and tmpfs have them; overlayfs "
                "needs nfs_export=on), or choose volatile handles"
            ) from exc
        try:
            os.close(open_by_handle(root_fd, raw, _OPEN_PATH))
        except OSError as exc:
            raise StorageError(
                f"file handles cannot be opened (open_by_handle_at: {exc.strerror}): run the server as root "
                "or with CAP_DAC_READ_SEARCH, or choose volatile handles"
            ) from exc
        self._signer = HandleSigner(secret, raw)

    def find_cached(self, dir_fd: int, name: bytes) -> OpenInode | None:
        return self._cache.get(self.handle_at(dir_fd, name))

    def handle_at(self, dir_fd: int, name: bytes) -> InodeHandle:
        try:
            raw, mount_id = name_to_handle(dir_fd, name)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:  # the exported filesystem has handles: so it is another
                raise FsError(errno.EXDEV, "another filesystem is mounted there") from exc
            raise
        if mount_id != self._mount_id:
            raise FsError(errno.EXDEV, "another filesystem is mounted there")
        return self._signer.sign(raw)

    def adopt(self, path: Descriptor) -> OpenInode:
        removals = self._cache.removals
        attributes = self._identify(path).attributes
        raw, _ = name_to_handle(path.number, b"")
        inode = OpenInode(self._signer.sign(raw), stat.S_IFMT(attributes.mode), path)
        return self._cache.add(inode, removals)

    def handle_of(self, raw: bytes) -> InodeHandle:
        """The handle of the inode that the kernel calls *raw*, whether it is in the export or not: not for
        clients, who could ask for it then; to be compared with what they have."""
        return self._signer.sign(raw)

    def open(self, handle: InodeHandle) -> OpenInode:
        removals = self._cache.removals
        path = Descriptor(self._open_raw(self._signer.verify(handle)))
        identity = identity_of(path.number)
        attributes = identity.attributes
        # A listing may have told the handle of a btrfs subvolume: its mount is the export's.
        if attributes.nlink == 0 or self._place_of(identity) != self._place:
            raise FsError(errno.ESTALE)
        return self._cache.add(OpenInode(handle, stat.S_IFMT(attributes.mode), path), removals)

    def _open_raw(self, raw: bytes) -> int:
        """open_by_handle_at(2). While the number of a removed inode is being given to a new one (I_CREATING),
        Linux answers ENOMEM instead of ESTALE for the old handle (`iget_locked` of fs/inode.c returns NULL,
        which ext4 takes for a lack of memory). There is nothing to wait on, so it is tried again."""
        for attempt in range(OPEN_TRIES):
            try:
                return open_by_handle(self._root_fd, raw, _OPEN_PATH)
            except OSError as exc:
                if exc.errno != errno.ENOMEM:
                    raise
                time.sleep(attempt * OPEN_PAUSE_SECONDS)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class VolatileLocator(Locator):
    """Numbered inodes: 8 random bytes of this process, then a counter. An inode number cannot be used again
    while a descriptor of the inode is open, so (device, inode number) tells inodes apart as long as they are
    in the cache; `forget` has to be its *on_drop*."""

    def __init__(self, root_fd: int, cache: DescriptorCache) -> None:
        super().__init__(root_fd, cache)
        self._prefix = secrets.token_bytes(8)
        self._issued = 0
        self._handles: dict[tuple[int, int], InodeHandle] = {}
        self._keys: dict[InodeHandle, tuple[int, int]] = {}

    def find_cached(self, dir_fd: int, name: bytes) -> OpenInode | None:
        return None  # a name alone tells no inode: it has to be opened

    def adopt(self, path: Descriptor) -> OpenInode:
        identity = self._identify(path)
        attributes = identity.attributes
        key = (identity.device, attributes.ino)
        with self._cache.lock:
            handle = self._handles.get(key)
            if handle is not None:
                inode = self._cache.get(handle)
                assert inode is not None, "a handle outlived its descriptor"
                return inode
            self._issued += 1
            handle = InodeHandle(self._prefix + self._issued.to_bytes(8, "big"))
            inode = OpenInode(handle, stat.S_IFMT(attributes.mode), path)
            if attributes_of(path.number).nlink == 0:
                return inode  # removed meanwhile: it must not be kept
            self._handles[key] = handle
            self._keys[handle] = key
            return self._cache.add(inode, self._cache.removals)

    def open(self, handle: InodeHandle) -> OpenInode:
        raise FsError(errno.ESTALE)

    def handle_at(self, dir_fd: int, name: bytes) -> InodeHandle:
        return self.find(dir_fd, name).handle

    def forget(self, inode: OpenInode) -> None:
        """The inode left the cache (whose lock is held)."""
        key = self._keys.pop(inode.handle, None)
        if key is not None:
            del self._handles[key]

    def _place_of(self, identity: Identity) -> tuple[int, int]:
        """The mount alone, if the kernel tells it (Linux 5.8): overlayfs, where these handles are needed, has
        files of several devices under one mount."""
        return identity.mount_id, 0 if identity.mount_id else identity.device

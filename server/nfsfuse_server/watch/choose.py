"""The storage of an export together with what watches it: how an export is opened."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from enum import Enum
from pathlib import Path

from nfsfuse_server.storage.local import LocalStorage
from nfsfuse_server.watch.fanotify import FanotifyWatcher
from nfsfuse_server.watch.inotify import InotifyWatcher
from nfsfuse_server.watch.interface import Watcher, WatchError
from nfsfuse_server.watch.own import NotingStorage
from nfsfuse_server.watch.queue import EventQueue

log = logging.getLogger(__name__)


class Watch(Enum):
    """How changes made directly in the export are noticed."""

    AUTO = "auto"
    FANOTIFY = "fanotify"
    INOTIFY = "inotify"
    OFF = "off"


def open_export(path: Path, secret: bytes | None, watch: Watch) -> tuple[LocalStorage, Watcher | None]:
    """Opens the directory *path* as `LocalStorage` does, with the watcher of it. `StorageError`; `WatchError`
    if the one that was asked for cannot be had. With AUTO there may be none, as the log then says."""
    if watch is Watch.OFF:
        return LocalStorage(path, secret), None
    if watch is not Watch.INOTIFY:
        try:
            return _with_fanotify(path, secret)
        except WatchError as exc:
            if watch is Watch.FANOTIFY:
                raise
            log.info("watching with inotify: %s", exc)
    try:
        return _with_inotify(path, secret)
    except WatchError as exc:
        if watch is Watch.INOTIFY:
            raise
        log.warning("what other programs change in %s is not noticed: %s", path, exc)
        return LocalStorage(path, secret), None


def _with_fanotify(path: Path, secret: bytes | None) -> tuple[LocalStorage, Watcher]:
    if secret is None:
        raise WatchError("fanotify needs the kernel's inode handles, not volatile ones")
    storage = LocalStorage(path, secret)
    try:
        return storage, FanotifyWatcher(path, storage.handle_of)
    except WatchError:
        storage.close()
        raise


def _with_inotify(path: Path, secret: bytes | None) -> tuple[LocalStorage, Watcher]:
    queue = EventQueue()
    with ExitStack() as undo:
        undo.callback(queue.close)
        storage = NotingStorage(path, secret, queue)
        undo.callback(storage.close)
        watcher = InotifyWatcher(storage, queue)
        undo.pop_all()
    return storage, watcher

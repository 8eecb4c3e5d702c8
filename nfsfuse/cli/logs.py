"""Where the daemon's log goes: one line an event.

Who reads it may wait for the daemon: a syslogd whose files are in the mount, a `tee` at the end of standard
error. When its pipe or socket is full whoever writes waits for it. So a daemon that serves a mount has a thread
that writes, and nobody waits for that.
"""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import queue
import sys
import threading
from pathlib import Path
from typing import Final

LINES_MAX: Final = 10_000
"""Events that wait to be written. What comes then is lost, and how much that was is said."""

FLUSH_SECONDS_MAX: Final = 2.0
"""How long who ends, or has begun, waits for what waits to be written."""

LINE = "%(asctime)s %(levelname)s %(message)s"


def set_up(target: str, level: str) -> None:
    """Log to *target*: ``stderr``, ``syslog``, or a file's name. Raises OSError. A stream or a file also gets
    the stacks at a fatal signal: what is left of a daemon that stored to guarded memory."""
    handler: logging.Handler
    if target == "stderr":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(LINE))
    elif target == "syslog":
        handler = _syslog()
    else:
        handler = logging.FileHandler(target, encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE))
    if isinstance(handler, logging.StreamHandler):
        faulthandler.enable(handler.stream)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _syslog() -> logging.Handler:
    if not Path("/dev/log").exists():
        # No syslog runs here (a container, say), and nobody would ever see why a mount failed.
        directory = Path("/var/log") if Path("/var/log").is_dir() else Path.home()
        handler: logging.Handler = logging.FileHandler(directory / "nfsfuse.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter(f"%(process)d {LINE}"))
        return handler
    handler = logging.handlers.SysLogHandler("/dev/log")
    handler.setFormatter(logging.Formatter("nfsfuse[%(process)d]: %(levelname)s %(message)s"))
    return handler


class Writer(logging.handlers.QueueHandler):
    """A handler that passes what is logged on to *target* in a thread."""

    queue: queue.Queue[logging.LogRecord | threading.Event]

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(queue.Queue(LINES_MAX))
        self._target = target
        self._lost = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Wait until all that was logged is written, but not for long."""
        written = threading.Event()
        try:
            self.queue.put(written, timeout=FLUSH_SECONDS_MAX)
        except queue.Full:
            return  # nobody reads it
        written.wait(FLUSH_SECONDS_MAX)

    def _write(self) -> None:
        while True:
            found = self.queue.get()
            if isinstance(found, threading.Event):
                found.set()
                continue
            self._target.handle(found)
            lost, self._lost = self._lost, 0
            if lost:
                text = f"{lost} lines of the log are lost here: it was not read"
                self._target.handle(logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None))


def write_in_a_thread() -> None:
    """From now on; after the last fork(2)."""
    root = logging.getLogger()
    root.handlers[:] = [Writer(handler) for handler in root.handlers]


def flush() -> None:
    """Wait until all that was logged is written, but not for long."""
    for handler in logging.getLogger().handlers:
        handler.flush()

"""Where the daemon's log goes: one line an event."""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import sys
from pathlib import Path

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

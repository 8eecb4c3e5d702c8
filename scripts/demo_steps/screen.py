"""The demo's table, row by row as the steps end, with the progress of the one under way."""

from __future__ import annotations

import sys
import time
from typing import Final

TITLE_WIDTH: Final = 50
LINE_SECONDS: Final = 10.0
"""How often progress is printed where it cannot be overwritten (a file, a pipe)."""


class Screen:
    """Prints to stdout; on a terminal the progress of a step is overwritten by its result."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last_line = time.monotonic()

    def note(self, text: str) -> None:
        """A line outside the table."""
        print(text, flush=True)

    def head(self) -> None:
        """The table's first lines."""
        print(f"\n{'what':{TITLE_WIDTH}} {'':6} {'seconds':>7}  what was seen")
        print(f"{'-' * TITLE_WIDTH} {'-' * 6} {'-' * 7}  {'-' * 40}", flush=True)

    def progress(self, title: str, text: str) -> None:
        """*title* is under way."""
        if self._terminal:
            print(f"\r\x1b[K{title:{TITLE_WIDTH}} {text:.60}", end="", flush=True)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"{title:{TITLE_WIDTH}} ... {text}", flush=True)

    def row(self, title: str, held: bool, seconds: float, seen: str) -> None:
        """*title* has ended."""
        start = "\r\x1b[K" if self._terminal else ""
        first, *rest = seen.splitlines() or [""]
        print(f"{start}{title:{TITLE_WIDTH}} {'ok' if held else 'FAILED':6} {seconds:7.2f}  {first}")
        for line in rest:
            print(f"{'':{TITLE_WIDTH + 16}} {line}")
        sys.stdout.flush()
        self._last_line = time.monotonic()

"""A file that grows on one mount, read through the page cache on others: they see what was there before."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from tests.mount.conftest import Proof

SECONDS = 3.0
RECORD = b"0123456789" * 10
SIZE_MAX = 1 << 20


class Growing:
    """What was appended: *begun* and *done* are bytes."""

    def __init__(self, mounts: list[Path]) -> None:
        self.begun = self.done = 0
        self.end = time.monotonic() + SECONDS
        self.wrong: list[str] = []
        self.reads = [0] * (len(mounts) - 1)
        self._paths = [mount / "growing" for mount in mounts]
        self._paths[0].write_bytes(b"")

    def run(self) -> None:
        """All of them, each in its thread."""
        threads = [threading.Thread(target=self._append)]
        threads += [threading.Thread(target=self._read, args=(number,)) for number in range(len(self.reads))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _append(self) -> None:
        descriptor = os.open(self._paths[0], os.O_WRONLY | os.O_APPEND)
        while time.monotonic() < self.end and self.begun < SIZE_MAX:
            self.begun += len(RECORD)
            os.write(descriptor, RECORD)
            self.done += len(RECORD)
        os.close(descriptor)

    def _read(self, number: int) -> None:
        descriptor = os.open(self._paths[number + 1], os.O_RDONLY)
        while time.monotonic() < self.end:
            low = self.done
            found = len(os.pread(descriptor, 2 * SIZE_MAX, 0))
            if not low <= found <= self.begun:
                self.wrong.append(f"{found} bytes, where {low} were written and {self.begun} begun")
            self.reads[number] += 1
        os.close(descriptor)


def test_a_read_that_starts_after_an_append_sees_it(proof: Proof) -> None:
    growing = Growing(proof.mounts)
    growing.run()
    assert growing.wrong == [], f"{len(growing.wrong)} of {growing.reads} reads"
    assert growing.done > 0
    assert all(growing.reads)

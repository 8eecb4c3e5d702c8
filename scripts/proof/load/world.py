"""What the tests of bad days have in common: a server with a short lease, clients, a load, and the verdict."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.proof.load.check import longest_pauses
from scripts.proof.load.load import Load
from scripts.proof.load.worker import KINDS
from scripts.rig.proxy import Proxy
from scripts.rig.rig import Rig, Server
from scripts.rig.sweep import end_process

LEASE_SECONDS = 2.0

MARGIN_SECONDS = 0.2 * LEASE_SECONDS
"""What the server waits beyond it (MARGIN in server/nfsfuse_server/machines/leases.py)."""

SLACK_SECONDS = 3.0
"""For the machine to be busy with something else: between what must happen and the latest that it may."""


class World:
    """Mounts of one server under a load."""

    def __init__(
        self, rig: Rig, seed: int, *, lease_seconds: float = LEASE_SECONDS, kinds: Sequence[str] = tuple(KINDS)
    ) -> None:
        self.rig = rig
        self.lease_seconds = lease_seconds
        self.random = random.Random(seed)
        self.seed = seed
        rig.environment["NFSFUSE_GUARD"] = "1"
        self.server: Server = rig.server(listen="127.0.0.1:0", arguments=["--lease", str(lease_seconds)])
        self.load = Load(rig, self.server.export, seed, kinds)
        self.logs: list[Path] = [self.server.log]
        self.began = time.monotonic()

    def mount(self, proxy: Proxy | None = None, mountpoint: Path | None = None) -> Path:
        """One more client."""
        address = None if proxy is None else proxy.address
        made = self.rig.mount(self.server, address=address, mountpoint=mountpoint)
        log = self.rig.log_of(made)
        if log not in self.logs:
            self.logs.append(log)
        return made

    def work(self, seconds: float) -> None:
        """Let the load work for a while; nobody may fail."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
            if failed := self.load.failed():
                said = self.load.errors.read_text()
                raise AssertionError(f"seed {self.seed}: {failed} ended\n{said}\n{self.said()}")

    def kill_server(self) -> None:
        """End the server as a crash would."""
        self.server.kill()

    def restart_server(self) -> None:
        """The server comes back."""
        self.server = self.rig.restart(self.server)
        self.logs.append(self.server.log)

    def kill_client(self, mountpoint: Path) -> None:
        """Kill a mount's daemon, and with it the programs on it."""
        assert end_process(self.rig.daemon_of(mountpoint), signal.SIGKILL), "the daemon does not end"
        self.load.bury(mountpoint)

    def said(self) -> str:
        """All logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)

    def verdict(self) -> str:
        """Stop, and judge: raises AssertionError, with everything there is to know, unless all was well. The
        figures."""
        statuses = self.load.stop()
        wrong = [f"{name} ended with status {status}" for name, status in statuses.items() if status]
        wrong += self.load.judge()
        wrong += [f"{log.name} has a traceback" for log in self.logs if "Traceback" in log.read_text()]
        if wrong:
            text = "\n".join([*wrong[:50], self.load.errors.read_text(), self.said()])
            raise AssertionError(f"seed {self.seed}: {len(wrong)} things are wrong:\n{text}")
        pauses = self.pauses()
        slowest = max(pauses, key=lambda what: pauses[what], default="nothing")
        return (
            f"{self.load.operations()} operations in {time.monotonic() - self.began:.0f} s, "
            f"longest pause {pauses.get(slowest, 0.0):.2f} s ({slowest}), seed {self.seed}"
        )

    def pauses(self) -> dict[str, float]:
        """The longest that living workers waited, by operation, in seconds."""
        return longest_pauses(self.load.histories(), [worker.name for worker in self.load.workers])

    def longest_pause(self) -> float:
        """The longest that any living worker waited, in seconds."""
        return max(self.pauses().values(), default=0.0)

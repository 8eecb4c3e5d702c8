"""Promises 2 and 3 for three mounts that use a few names at once: every answer fits into one order."""

from __future__ import annotations

from scripts.proof.names_stress import stress
from scripts.rig.rig import Rig

SECONDS = 4.0
"""`python -m scripts.proof.names_stress` does the same for as long as one likes."""

SEED = 5


def test_every_answer_is_explained_by_one_order(rig: Rig) -> None:
    server = rig.server()
    mounts = [rig.mount(server) for _ in range(3)]
    result = stress(rig, mounts, server.export, seconds=SECONDS, programs=2, seed=SEED)
    # How much is done depends on the machine; nothing is proved if nothing succeeds.
    for call in ("create", "unlink", "link", "rename", "exchange", "mkdir", "rmdir", "stat"):
        assert result.calls[call] > 0, result
    for log in (server.log, *map(rig.log_of, mounts)):
        assert "Traceback" not in log.read_text(), log.read_text()

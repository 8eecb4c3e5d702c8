"""What ``scripts/demo --keep`` leaves, and the script that ends it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from scripts.demo_steps.screen import Screen
from scripts.rig.rig import BIN, Rig, Server


def keep(rig: Rig, server: Server, mounts: Sequence[Path], screen: Screen) -> None:
    """Let go of *rig* without ending anything; say how to use it and how to stop it."""
    stop = rig.directory / "stop"
    nfsfuse = shlex.quote(str(BIN / "nfsfuse"))
    lines = [
        "#!/bin/sh -e",
        "cd /",
        *(f"{nfsfuse} umount {shlex.quote(str(mount))}" for mount in mounts),
        f"kill {server.process.pid}",
        f"while kill -0 {server.process.pid} 2>/dev/null; do sleep 0.1; done",
        f"rm -rf --one-file-system {shlex.quote(str(rig.directory))}",
    ]
    stop.write_text("\n".join(lines) + "\n")
    stop.chmod(0o755)
    rig.abandon()
    screen.note(f"""
The server and both mounts stay up:
  mount 1           {mounts[0]}
  mount 2           {mounts[1]}
  export            {server.export}
  server            {server.address}, process {server.process.pid}
  logs              {rig.directory}/*.log
Mount it once more, in a directory of your own:
  {BIN}/nfsfuse mount {server.address} MOUNTPOINT
Stop all, and remove it:
  {stop}""")

"""The nfsfuse command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from nfsfuse.cli import mount, umount
from nfsfuse.cli.options import HELP

COMMANDS = ("mount", "umount")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="nfsfuse",
        description="A network filesystem with one copy of every page for all clients, mmap included.",
        epilog="`nfsfuse SERVER MOUNTPOINT -o ...` is `nfsfuse mount`: so mount(8) and /etc/fstab call it "
        "for type fuse.nfsfuse.",
    )
    result.add_argument("--version", action="version", version=f"nfsfuse {version('nfsfuse')}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    mounting = commands.add_parser(
        "mount",
        help="mount a server's export",
        description="Mount what SERVER exports on MOUNTPOINT. Returns when the mount can be used.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mounting.add_argument("server", metavar="SERVER", help="HOST:PORT or unix:PATH")
    mounting.add_argument("mountpoint", metavar="MOUNTPOINT")
    mounting.add_argument("-o", dest="options", action="append", default=[], metavar="OPT,...")
    mounting.add_argument("-f", "--foreground", action="store_true", help="stay, and log to stderr")
    mounting.set_defaults(run=mount.run)

    unmounting = commands.add_parser(
        "umount",
        help="unmount",
        description="Write everything back, unmount MOUNTPOINT, and wait for its daemon to end.",
    )
    unmounting.add_argument("mountpoint", metavar="MOUNTPOINT")
    unmounting.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="unmount now even if it is used; the daemon ends with the last user",
    )
    unmounting.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for the daemon to end (default: %(default)g)",
    )
    unmounting.set_defaults(run=umount.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS and len(words) > 1:
        words.insert(0, "mount")  # as mount.fuse(8) calls us
    arguments = parser().parse_args(words)
    status: int = arguments.run(arguments)
    return status

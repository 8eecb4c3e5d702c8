"""The manuals tell of every option there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nfsfuse.cli.main import parser as client_parser
from nfsfuse.cli.options import HELP
from nfsfuse_server.cli import parser as server_parser

DOCS = Path(__file__).resolve().parents[2] / "docs"


COLUMN = 19
"""Where the help of -o begins to say what an option is."""


def mount_options() -> list[str]:
    """The names in the help of -o."""
    names = []
    for line in HELP.splitlines()[1:]:
        if line[2] != " ":
            told = line[: COLUMN - 1] if line[COLUMN - 1 : COLUMN] == " " else line
            names += re.findall(r"(?:^| )(\w+)", told.strip())
    return names


def test_the_options_are_found() -> None:
    assert {"allow_other", "noallow_other", "dirty_mib", "loglevel", "noacl", "remount"} <= set(mount_options())


@pytest.mark.parametrize("name", mount_options())
def test_the_manual_tells_of_a_mount_option(name: str) -> None:
    assert re.search(rf"`{name}\b", (DOCS / "client.md").read_text())


@pytest.mark.parametrize(
    ("manual", "option"),
    [
        (manual, option)
        for manual, parser in (("client.md", client_parser()), ("server.md", server_parser()))
        for option in re.findall(r"--[a-z][a-z-]+", parser.format_help())
        if option not in ("--help", "--version")
    ],
)
def test_the_manual_tells_of_a_command_line_option(manual: str, option: str) -> None:
    assert option in (DOCS / manual).read_text()

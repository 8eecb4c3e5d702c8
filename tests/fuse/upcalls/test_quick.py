"""Requests that Python answers where they are read, rightly and wrongly: each program gets one answer."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.fuse.toymount import Mounter

GET = """
name = sys.argv[2]
for _ in range(3):
    try:
        say(os.getxattr(path, name).decode())
    except OSError as exc:
        say(exc.errno)
"""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("user.value", "quick"),
        ("user.errno", errno.ENODATA),
        ("user.raises", errno.EIO),
        ("user.no_errno", errno.EIO),
        ("user.no_answer", errno.EIO),
    ],
)
def test_an_answer_is_given_once_whatever_it_is(toy: Mounter, name: str, answer: Any) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    assert daemon.run(GET, "f", name) == [answer] * 3
    assert daemon.run("say(open(path).read())", "f") == ["x"], "the mount goes on"
    complaint = daemon.stderr.read_text()
    assert ("Error" in complaint) is (answer == errno.EIO), complaint


def test_what_is_not_answered_goes_the_long_way(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    assert daemon.run(GET, "f", "user.other") == [errno.EOPNOTSUPP] * 3, "pyfuse3's operations have none"


def test_everybody_else_gets_a_turn_while_a_program_asks_on_and_on(toy: Mounter) -> None:
    """The next message is waited for where the last was answered, and not in the event loop: for a while."""
    daemon = toy()
    daemon.put("f", b"x")
    program = daemon.program(
        "from threading import Thread\n"
        "def ask():\n"
        "    while not over: os.getxattr(path, 'user.value')\n"
        "over = []\n"
        "threads = [Thread(target=ask) for _ in range(2)]\n"
        "for thread in threads: thread.start()\n"
        "say('asking'); input(); over.append(1)\n"
        "for thread in threads: thread.join()\n"
        "say('over')",
        "f",
    )
    program.listen()
    for _ in range(50):
        daemon.ask("journal")  # by a task of the daemon's event loop
    program.tell()
    assert program.finish() == ["over"]

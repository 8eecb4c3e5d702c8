"""Notifications do to the kernel's caches what they say, and nothing more."""

from __future__ import annotations

import errno

import pytest

from tests.fuse.toymount import Daemon, Mounter

PAGE = 4096

READER = (
    "fd=os.open(path,os.O_RDWR); m=mmap.mmap(fd,0)\n"
    "def look(): say([m[i] for i in range(0,len(m),4096)])\n"
    "look()\n"
    "for line in sys.stdin: look()\n"
)


def notify(daemon: Daemon, method: str, *arguments: int | str) -> int:
    outcome = daemon.ask("notify", method=method, arguments=list(arguments))
    assert outcome["returned"] == (1 if method == "inval_inode" else 0)
    assert 0 <= outcome["seconds"] < 10
    return int(outcome["errno"])


def test_inval_inode_refetches_exactly_its_range(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", bytes(4 * PAGE))
    program = daemon.program(READER, "f")
    assert program.listen() == [0, 0, 0, 0]
    daemon.ask("journal")
    daemon.put("f", b"\1" * 4 * PAGE)
    assert notify(daemon, "inval_inode", ino, PAGE, 2 * PAGE) == 0
    program.tell()
    assert program.listen() == [0, 1, 1, 0]
    reads = daemon.facts("read")
    assert sum(facts["size"] for facts in reads) == 2 * PAGE
    assert min(facts["offset"] for facts in reads) == PAGE


def test_inval_inode_launders_dirty_pages(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", bytes(2 * PAGE))
    code = "m=mmap.mmap(os.open(path,os.O_RDWR),0); m[0]=7; m[4096]=8; say(1); input()"
    program = daemon.program(code, "f")
    program.listen()
    assert daemon.content("f") == bytes(2 * PAGE)
    assert notify(daemon, "inval_inode", ino, 0, PAGE) == 0
    assert (daemon.content("f")[0], daemon.content("f")[PAGE]) == (7, 0)
    assert all(facts["is_write_back"] for facts in daemon.facts("write"))


def test_inval_inode_of_attributes_leaves_the_pages(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"old")
    program = daemon.program(
        "fd=os.open(path,0); os.read(fd,9); os.stat(path); say(1); input()\n"
        "os.stat(path); say(os.pread(fd,9,0).decode())",
        "f",
    )
    program.listen()
    daemon.ask("journal")
    assert notify(daemon, "inval_inode", ino, -1, 0) == 0
    program.tell()
    assert program.finish() == ["old"]
    operations = [e["operation"] for e in daemon.ask("journal")]
    assert "getattr" in operations
    assert "read" not in operations


def test_an_unknown_inode_is_an_answer(toy: Mounter) -> None:
    daemon = toy()
    assert notify(daemon, "inval_inode", 4711, 0, 0) == errno.ENOENT
    assert notify(daemon, "inval_entry", 1, "nobody") == errno.ENOENT


def test_a_refused_message_is_an_error(toy: Mounter) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("os.stat(path)", "f")
    with pytest.raises(AssertionError, match="NotADirectoryError"):
        daemon.ask("notify", method="inval_entry", arguments=[2, "x"])


@pytest.mark.parametrize("method", ["inval_entry", "expire_entry", "inc_epoch"])
def test_a_dentry_is_looked_up_again(toy: Mounter, method: str) -> None:
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("os.stat(path); os.stat(path)", "f")
    assert len(daemon.facts("lookup")) == 1
    arguments = () if method == "inc_epoch" else (1, "f")
    result = notify(daemon, method, *arguments)
    if method == "inc_epoch" and result in (errno.EINVAL, errno.ENOSYS):
        pytest.skip("the kernel has no FUSE_NOTIFY_INC_EPOCH (Linux 6.16)")
    assert result == 0
    daemon.run("os.stat(path)", "f")
    assert len(daemon.facts("lookup")) == 1


@pytest.mark.parametrize("method", ["inval_entry", "inc_epoch"])
def test_a_negative_dentry_is_looked_up_again(toy: Mounter, method: str) -> None:
    daemon = toy()
    assert daemon.run("say(os.path.exists(path)); say(os.path.exists(path))", "f") == [False, False]
    assert len(daemon.facts("lookup")) == 1
    daemon.put("f", b"x")
    arguments = () if method == "inc_epoch" else (1, "f")
    if notify(daemon, method, *arguments) in (errno.EINVAL, errno.ENOSYS):
        pytest.skip("the kernel has no FUSE_NOTIFY_INC_EPOCH (Linux 6.16)")
    assert daemon.run("say(os.path.exists(path))", "f") == [True]


def test_inc_epoch_does_not_wait_for_a_pending_mutation_but_inval_entry_does(toy: Mounter) -> None:
    """DESIGN, deadlock 6: a create holds its directory's lock until it is answered."""
    daemon = toy()
    daemon.put("f", b"x")
    daemon.run("os.stat(path)", "f")
    daemon.ask("shut", operation="create")
    program = daemon.program("os.open(path,os.O_CREAT|os.O_RDWR); say('created')", "new")
    daemon.await_waiting("create")
    blocked = daemon.begin("notify", method="inval_entry", arguments=[1, "f"])
    if notify(daemon, "inc_epoch") != 0:
        pytest.skip("the kernel has no FUSE_NOTIFY_INC_EPOCH (Linux 6.16)")
    daemon.ask("open", operation="create")
    assert daemon.result(blocked)["errno"] == 0
    assert program.finish() == ["created"]


def test_delete_makes_a_name_absent(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"x")
    daemon.run("os.stat(path)", "f")
    daemon.ask("forget_name", name="f")
    assert daemon.run("say(os.path.exists(path))", "f") == [True]
    assert notify(daemon, "delete", 1, ino, "f") == 0
    assert daemon.run("say(os.path.exists(path))", "f") == [False]


def test_a_blocked_notification_blocks_no_other(toy: Mounter) -> None:
    """Invalidating a page whose FUSE_READ is unanswered waits for it; others run meanwhile."""
    daemon = toy()
    ino = daemon.put("f", bytes(PAGE))
    other = daemon.put("g", bytes(PAGE))
    daemon.run("open(path,'rb').read()", "g")
    daemon.ask("shut", operation="read")
    program = daemon.program("say(open(path,'rb').read(1)[0])", "f")
    daemon.await_waiting("read")
    blocked = [
        daemon.begin("notify", method="inval_inode", arguments=[ino, 0, PAGE]) for _ in range(8)
    ]
    for _ in range(20):
        assert notify(daemon, "inval_inode", other, 0, PAGE) == 0
    daemon.ask("open", operation="read")
    assert [daemon.result(number)["errno"] for number in blocked] == [0] * 8
    assert program.finish() == [0]


BELIEVER = (
    "import ctypes\n"
    "fd=os.open(path,0); lib=ctypes.CDLL(None); buffer=ctypes.create_string_buffer(256)\n"
    "def look():\n"
    "    lib.statx(fd,b'',0x5000,0x200,buffer)\n"  # AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE
    "    say(int.from_bytes(buffer.raw[40:48],'little'))\n"
    "say([os.read(fd,9).decode(), os.fstat(fd).st_size])\n"
    "for line in sys.stdin: look()\n"
)
"""Looks what the kernel believes, which asks nobody."""


@pytest.mark.parametrize("size", [4, 100, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 1, 1 << 40])
def test_a_growth_raises_the_size_and_asks_nobody(toy: Mounter, size: int) -> None:
    daemon = toy()
    ino = daemon.put("f", b"old")
    program = daemon.program(BELIEVER, "f")
    assert program.listen() == ["old", 3]
    daemon.ask("journal")
    assert notify(daemon, "grow", ino, size) == 0
    program.tell()
    assert program.listen() == size
    assert daemon.ask("journal") == []


def test_a_growth_lowers_no_size(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"12345678")
    program = daemon.program(BELIEVER, "f")
    program.listen()
    assert notify(daemon, "grow", ino, 5) == 0
    program.tell()
    assert program.listen() == 8


def test_a_growth_leaves_pages_as_they_are(toy: Mounter) -> None:
    """Those that are up to date stay so, and no other becomes so: also where the new end is the first byte of
    a page, which a store that can be read would make up to date."""
    daemon = toy()
    ino = daemon.put("f", b"old")
    code = "fd=os.open(path,0); os.read(fd,9); say(1); input(); say(os.pread(fd,9999,0).decode())"
    program = daemon.program(code, "f")
    program.listen()
    new = b"new" + b"n" * (PAGE - 2)
    daemon.put("f", new)
    for size in (5, PAGE, PAGE + 1):
        assert notify(daemon, "grow", ino, size) == 0
    program.tell()
    (seen,) = program.finish()
    assert seen == "old" + "\0" * (PAGE - 3) + "n"


def test_a_growth_has_a_mapping_reach_further(toy: Mounter) -> None:
    daemon = toy()
    ino = daemon.put("f", b"o" * PAGE)
    program = daemon.program(
        "import ctypes; lib=ctypes.CDLL(None); lib.mmap.restype=ctypes.c_void_p\n"
        "fd=os.open(path,0); a=lib.mmap(None,ctypes.c_size_t(8*4096),1,1,fd,ctypes.c_long(0))\n"
        "say(ctypes.string_at(a,1).decode()); input(); say(ctypes.string_at(a+2*4096,1).decode())\n",
        "f",
    )
    assert program.listen() == "o"
    daemon.put("f", b"n" * 3 * PAGE)
    assert notify(daemon, "grow", ino, 3 * PAGE) == 0
    program.tell()
    assert program.finish() == ["n"]


def test_a_growth_does_not_wait_for_a_page_that_is_being_read(toy: Mounter) -> None:
    """Who answers the read may wait for whoever is told of the growth."""
    daemon = toy()
    ino = daemon.put("f", b"old")
    believer = daemon.program(BELIEVER.replace("os.read(fd,9).decode()", "''"), "f")
    believer.listen()
    daemon.ask("shut", operation="read")
    program = daemon.program("say(open(path,'rb').read(1).decode())", "f")
    daemon.await_waiting("read")
    for size in range(10, 20):
        assert notify(daemon, "grow", ino, size) == 0
    believer.tell()
    assert believer.listen() == 19
    daemon.ask("open", operation="read")
    assert program.finish() == ["o"]
    assert notify(daemon, "grow", ino, 50) == 0


def test_a_growth_of_what_is_unknown_is_an_answer(toy: Mounter) -> None:
    assert notify(toy(), "grow", 4711, 1) == errno.ENOENT

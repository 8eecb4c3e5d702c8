"""nfsfuse mount on the command line: when it succeeds, and what it says when it cannot."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsfuse.protocol.codec import FailureEnvelope, RequestEnvelope, decode, encode
from nfsfuse.protocol.framing import FrameReader, frame_prefix
from nfsfuse.protocol.limits import MAGIC, PROTOCOL_VERSION
from nfsfuse.protocol.messages import Hello
from nfsfuse.protocol.types import ClientId, Epoch, RequestId, SessionId
from scripts.rig.processes import poll_until
from scripts.rig.rig import BIN, Rig


def refusal(rig: Rig, server: str, mountpoint: Path) -> str:
    """The one line that mount says when it fails."""
    ended = rig.command("nfsfuse", "mount", server, mountpoint, "-o", f"log={rig.directory}/refused.log")
    assert ended.status == 1, ended
    assert ended.errors.startswith("nfsfuse: "), ended.errors
    assert ended.errors.count("\n") == 1, ended.errors
    assert rig.kernel_mount(mountpoint) is None
    return ended.errors


def shown(mountpoint: Path) -> list[str]:
    """Source, type and options as mount(8) would show them."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, kind, options, *_ = line.split(" ")
        if target == str(mountpoint):
            return [source, kind, options]
    return []


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A peer on the Unix socket *path* that says *answer* to the first client once it has said hello."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                reader = FrameReader()
                while not reader.received(connection.recv_into(reader.buffer())):
                    pass
                connection.sendall(answer)
                connection.recv(1)  # until the client has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)


def test_mounts_in_the_background_and_shows_its_source(rig: Rig) -> None:
    server = rig.server()
    (server.export / "there").write_text("content")
    mountpoint = rig.mount(server)
    assert (mountpoint / "there").read_text() == "content"
    source, kind, options = shown(mountpoint)
    assert source == server.address
    assert kind == "fuse.nfsfuse"
    assert {"rw", "allow_other", "default_permissions", "nosuid", "nodev"} <= set(options.split(","))
    rig.command("nfsfuse", "umount", mountpoint).succeeded()
    assert shown(mountpoint) == []
    assert list(mountpoint.iterdir()) == []


def test_options_reach_the_kernel(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server, "ro,noexec,noallow_other,defaults,_netdev,x-systemd.automount")
    options = set(shown(mountpoint)[2].split(","))
    assert {"ro", "noexec"} <= options
    assert "allow_other" not in options
    with pytest.raises(OSError, match="Read-only") as caught:
        (mountpoint / "new").touch()
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount"],
        ["mount", "127.0.0.1:1"],
        ["mount", "nowhere", "/mnt"],
        ["mount", "127.0.0.1:1", "/mnt", "-o", "nonsense"],
        ["mount", "127.0.0.1:1", "/mnt", "-o", "loglevel=loud"],
        ["mount", "127.0.0.1:1", "/mnt", "--nonsense"],
        ["umount"],
        ["nonsense"],
        [],
    ],
)
def test_usage_errors_are_status_2(rig: Rig, arguments: list[str]) -> None:
    ended = rig.command("nfsfuse", *arguments)
    assert ended.status == 2, ended
    assert ended.errors
    assert "Traceback" not in ended.errors


def test_nobody_listens(rig: Rig) -> None:
    mountpoint = rig.mountpoint()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert "refused" in refusal(rig, f"127.0.0.1:{port}", mountpoint)
    assert "No such file" in refusal(rig, f"unix:{rig.directory}/no-socket", mountpoint)


def test_an_unknown_host(rig: Rig) -> None:
    assert "cannot connect to nowhere.invalid:1" in refusal(rig, "nowhere.invalid:1", rig.mountpoint())


def test_the_mountpoint_is_a_file_or_missing(rig: Rig) -> None:
    server = rig.server()
    file = rig.directory / "file"
    file.touch()
    assert "not a directory" in refusal(rig, server.address, file)
    assert "No such file or directory" in refusal(rig, server.address, rig.directory / "missing")


def test_already_mounted(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    for again in (mountpoint, Path(f"{mountpoint}/"), mountpoint / ".." / mountpoint.name):
        ended = rig.command("nfsfuse", "mount", server.address, again)
        assert ended.status == 1
        assert f"already mounted from {server.address}" in ended.errors
    (mountpoint / "works").touch()


def test_a_server_of_another_version(rig: Rig) -> None:
    detail = f"the server speaks protocol version {PROTOCOL_VERSION + 1}, the client {PROTOCOL_VERSION}"
    header = encode(FailureEnvelope(RequestId(0), errno.EPROTONOSUPPORT, detail))
    path = rig.directory / "other-version"
    with answering(path, MAGIC + frame_prefix(header, 0)):
        assert detail in refusal(rig, f"unix:{path}", rig.mountpoint())


def test_a_peer_that_is_no_nfsfuse_server(rig: Rig) -> None:
    path = rig.directory / "stranger"
    with answering(path, b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        assert "not an nfsfuse peer" in refusal(rig, f"unix:{path}", rig.mountpoint())


def test_the_server_refuses_a_client_of_another_version(rig: Rig) -> None:
    server = rig.server()
    hello = Hello(
        PROTOCOL_VERSION + 1, ClientId(b"c" * 16), SessionId(b""), Epoch(0), 0, SessionId(b""), "a test", ()
    )
    header = encode(RequestEnvelope(RequestId(0), hello))
    reader = FrameReader()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(server.address.removeprefix("unix:"))
        client.sendall(MAGIC + frame_prefix(header, 0))
        while not (frames := reader.received(client.recv_into(reader.buffer()))):
            pass
    reply = decode(frames[0].header)
    assert isinstance(reply, FailureEnvelope)
    assert reply.errno == errno.EPROTONOSUPPORT
    assert f"version {PROTOCOL_VERSION}" in reply.detail


IN_A_NAMESPACE = """
mount -t tmpfs none /usr/local/bin
ln -s "$NFSFUSE" /usr/local/bin/nfsfuse
mount -t fuse.nfsfuse "$SERVER" "$MOUNTPOINT" -o "$OPTIONS"
grep " $MOUNTPOINT " /proc/self/mounts
echo by mount > "$MOUNTPOINT/file"
umount "$MOUNTPOINT"
mount --fstab "$FSTAB" "$MOUNTPOINT"
grep " $MOUNTPOINT " /proc/self/mounts
cat "$MOUNTPOINT/file"
nfsfuse umount "$MOUNTPOINT"
! grep " $MOUNTPOINT " /proc/self/mounts
"""


def test_mount_8_and_fstab(rig: Rig) -> None:
    """In a mount namespace of its own: mount(8) hands no PATH on, so it finds nfsfuse only where a system has
    its commands."""
    server = rig.server()
    mountpoint = rig.mountpoint()
    options = f"log={rig.directory}/mount8.log,noatime"
    fstab = rig.directory / "fstab"
    fstab.write_text(f"{server.address} {mountpoint} fuse.nfsfuse noauto,_netdev,nofail,{options} 0 0\n")
    rig.environment |= {
        "NFSFUSE": str(BIN / "nfsfuse"),
        "SERVER": server.address,
        "MOUNTPOINT": str(mountpoint),
        "OPTIONS": options,
        "FSTAB": str(fstab),
    }
    ran = rig.command("unshare", "--mount", "sh", "-exc", IN_A_NAMESPACE).succeeded()
    first, second, content = ran.output.splitlines()
    for line in (first, second):
        assert line.startswith(f"{server.address} {mountpoint} fuse.nfsfuse rw,")
        assert "noatime" in line
    assert content == "by mount"


REMOUNTS = """
mount -t tmpfs none /usr/local/bin
ln -s "$NFSFUSE" /usr/local/bin/nfsfuse
change() { mount -o "remount,$1" "$MOUNTPOINT"; grep " $MOUNTPOINT " /proc/self/mounts | cut -d' ' -f4; }
cp /bin/true "$MOUNTPOINT/program"
change ro
! touch "$MOUNTPOINT/file"
! mknod "$MOUNTPOINT/device" c 1 3
change rw,noexec
touch "$MOUNTPOINT/file"
! "$MOUNTPOINT/program"
change exec,strictatime
"$MOUNTPOINT/program"
change relatime,nodiratime
change lazytime
exec 5>> "$MOUNTPOINT/file"
! change ro
exec 5>&-
! mount -o remount,noallow_other "$MOUNTPOINT"
"""


def test_a_remount_changes_the_mount_that_is_there(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server)
    daemon = rig.daemon_of(mountpoint)
    rig.environment |= {"NFSFUSE": str(BIN / "nfsfuse"), "MOUNTPOINT": str(mountpoint)}
    ran = rig.command("unshare", "--mount", "sh", "-exc", REMOUNTS).succeeded()
    told = [set(line.split(",")) for line in ran.output.splitlines()]
    names = {"ro", "rw", "noexec", "nosuid", "nodev", "relatime", "noatime", "nodiratime", "lazytime"}
    assert [options & names for options in told[:5]] == [
        {"ro", "nosuid", "nodev", "relatime"},
        {"rw", "nosuid", "nodev", "relatime", "noexec"},
        {"rw", "nosuid", "nodev"},  # strictatime is what is shown as nothing
        {"rw", "nosuid", "nodev", "relatime", "nodiratime"},
        {"rw", "nosuid", "nodev", "relatime", "nodiratime", "lazytime"},
    ]
    assert rig.daemon_of(mountpoint) == daemon
    assert "Device or resource busy" in ran.errors
    assert "allow_other cannot be changed by a remount" in ran.errors


def test_a_remount_of_what_is_no_mount(rig: Rig) -> None:
    server = rig.server()
    said = rig.command("nfsfuse", "mount", server.address, rig.mountpoint(), "-o", "remount,ro")
    assert said.status == 1
    assert "not an nfsfuse mount" in said.errors
    mountpoint = rig.mount(server)
    said = rig.command("nfsfuse", "mount", "127.0.0.1:1", mountpoint, "-o", "remount,ro")
    assert said.status == 1
    assert f"mounted from {server.address}" in said.errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("strictatime", {"rw", "nosuid", "nodev"}),
        ("relatime,nodiratime,dev", {"rw", "nosuid", "relatime", "nodiratime"}),
        ("lazytime,noexec,noatime", {"rw", "nosuid", "nodev", "noexec", "noatime", "lazytime"}),
    ],
)
def test_mounting_with_options_that_libfuse_does_not_know(rig: Rig, options: str, expected: set[str]) -> None:
    mountpoint = rig.mount(rig.server(), options)
    told = set(shown(mountpoint)[2].split(","))
    assert expected == told - {"user_id=0", "group_id=0", "default_permissions", "allow_other"}
    (mountpoint / "file").write_bytes(b"content")
    assert (mountpoint / "file").read_bytes() == b"content"


def test_mount_8_with_the_commands_path(rig: Rig) -> None:
    """Where nfsfuse is not installed for the system: its path, as mount.fuse(8) allows."""
    server = rig.server()
    mountpoint = rig.mountpoint()
    source = f"{BIN}/nfsfuse#{server.address}"
    rig.command("mount", "-t", "fuse", source, mountpoint, "-o", f"log={rig.directory}/log").succeeded()
    assert shown(mountpoint)[:2] == [server.address, "fuse.nfsfuse"]
    rig.command("umount", mountpoint).succeeded()
    assert shown(mountpoint) == []


def test_foreground_logs_to_stderr_until_it_is_unmounted(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mountpoint()
    with subprocess.Popen(
        [BIN / "nfsfuse", "mount", server.address, mountpoint, "--foreground"],
        env=rig.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as daemon:
        assert daemon.stderr is not None
        assert f"{server.address} is mounted on {mountpoint}" in daemon.stderr.readline()
        assert shown(mountpoint)[:2] == [server.address, "fuse.nfsfuse"]
        rig.command("nfsfuse", "umount", mountpoint).succeeded()
        assert daemon.wait(10) == 0
        assert "Traceback" not in daemon.stderr.read()


def test_foreground_fails_with_the_reason(rig: Rig) -> None:
    ended = rig.command("nfsfuse", "mount", f"unix:{rig.directory}/none", rig.mountpoint(), "-f")
    assert ended.status == 1
    assert "cannot connect" in ended.errors
    assert "Traceback" not in ended.errors


def test_the_kernels_options_are_set_and_said(rig: Rig) -> None:
    server = rig.server()
    mountpoint = rig.mount(server, "read_ahead_kb=512,max_background=7")
    poll_until(lambda: "is mounted on" in rig.log_of(mountpoint).read_text(), 10, "it is said")
    log = rig.log_of(mountpoint).read_text()
    (line,) = [line for line in log.splitlines() if "is mounted on" in line]
    assert "max_background=7" in line
    for flag in ("posix_locks", "flock_locks", "parallel_dirops", "explicit_inval_data"):
        assert flag in line
    for flag in (" auto_inval_data", "writeback_cache"):
        assert flag not in line
    device = os.stat(mountpoint).st_dev
    bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    assert (bdi / "read_ahead_kb").read_text().strip() == "512" or "not allowed to set read_ahead_kb" in log
    connection = rig.kernel_mount(mountpoint)
    assert connection is not None
    limit = Path(f"/sys/fs/fuse/connections/{connection.connection}/max_background")
    assert limit.read_text().strip() == "7"


@pytest.mark.parametrize("option", ["read_ahead_kb=x", "read_ahead_kb=65537", "max_background=0", "nolock=1"])
def test_an_option_without_sense_is_refused(rig: Rig, option: str) -> None:
    ended = rig.command("nfsfuse", "mount", "unix:/nowhere", rig.mountpoint(), "-o", option)
    assert ended.status == 2
    assert option in ended.errors

"""What only the local directory's storage promises: handles, confinement, ownership, restarts."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import AttributeChanges, Credentials, InodeHandle
from nfsfuse_server.storage import handles, local_search
from nfsfuse_server.storage.handles import HandleSigner, load_or_create_secret
from nfsfuse_server.storage.interface import StorageError, set_xattr
from nfsfuse_server.storage.local import LocalStorage
from nfsfuse_server.storage.syscalls import name_to_handle

ME = Credentials(0, 0)
THEM = Credentials(1000, 1000)


@contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(FsError) as caught:
        yield
    assert caught.value.errno == number, caught.value


@contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[None]:
    subprocess.run(["mount", *arguments, str(path)], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=20)


def create(storage: LocalStorage, name: bytes) -> InodeHandle:
    return storage.create(storage.root().handle, name, 0o644, ME).handle


def test_handles_survive_a_restart_and_renames(local_dir: Path, secret: bytes) -> None:
    first = LocalStorage(local_dir, secret)
    root = first.root()
    directory = first.mkdir(root.handle, b"dir", 0o755, ME)
    file = first.create(directory.handle, b"file", 0o644, ME)
    link = first.symlink(root.handle, b"link", b"x", ME)
    first.write(file.handle, 0, b"content")
    first.close()
    os.rename(local_dir / "dir", local_dir / "moved")
    second = LocalStorage(local_dir, secret)
    assert second.root().handle == root.handle
    assert second.read(file.handle, 0, 10) == b"content"
    assert second.lookup(directory.handle, b"file").handle == file.handle
    assert second.lookup(second.root().handle, b"moved").handle == directory.handle
    assert second.readlink(link.handle) == b"x"
    second.unlink(directory.handle, b"file")
    second.close()
    third = LocalStorage(local_dir, secret)
    with raises(errno.ESTALE):
        third.read(file.handle, 0, 10)
    third.close()


def test_a_handle_never_names_the_inode_that_reuses_its_number(local: LocalStorage) -> None:
    root = local.root().handle
    old = create(local, b"old")
    local.unlink(root, b"old")
    for number in range(20):
        assert create(local, b"new%d" % number) != old
    with raises(errno.ESTALE):
        local.getattr(old)


def test_a_handle_is_stale_while_its_number_is_given_to_another_inode(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the model test: ext4 said ENOMEM while another process created a file with the old number."""
    old = create(local, b"old")
    local.unlink(local.root().handle, b"old")
    answers = [errno.ENOMEM, errno.ENOMEM, errno.ESTALE]

    def being_created(mount_fd: int, handle: bytes, flags: int) -> int:
        raise OSError(answers.pop(0), "open_by_handle_at")

    monkeypatch.setattr(handles, "open_by_handle", being_created)
    with raises(errno.ESTALE):
        local.getattr(old)
    assert answers == []
    answers += [errno.ENOMEM] * handles.OPEN_TRIES
    with raises(errno.ENOMEM):
        local.getattr(old)


def test_forged_handles_are_stale(local: LocalStorage, local_dir: Path, secret: bytes) -> None:
    file = create(local, b"file")
    outside = local_dir.parent / "outside-of-the-export"
    outside.write_bytes(b"secret")
    fd = os.open(outside, os.O_RDONLY)
    root_fd = os.open(local_dir, os.O_RDONLY)
    try:
        raw, _ = name_to_handle(fd, b"")
        export, _ = name_to_handle(root_fd, b"")
    finally:
        os.close(fd)
        os.close(root_fd)
        outside.unlink()
    size = handles.SIGNATURE_SIZE
    attempts = [
        raw,
        raw + bytes(size),
        raw + file[-size:],
        HandleSigner(bytes(32), export).sign(raw),  # another secret
        HandleSigner(secret, raw).sign(raw),  # another export
        *(InodeHandle(file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]) for at in range(len(file))),
    ]
    for forged in attempts:
        with raises(errno.ESTALE):
            local.getattr(InodeHandle(forged))
    assert local.getattr(file).size == 0


def test_no_symbolic_link_is_followed(local: LocalStorage, tmp_path: Path) -> None:
    secret_file = tmp_path / "outside"
    secret_file.mkdir()
    (secret_file / "file").write_bytes(b"secret")
    before = secret_file.stat()
    root = local.root().handle
    link = local.symlink(root, b"dir", os.fsencode(secret_file), ME).handle
    leaf = local.symlink(root, b"leaf", os.fsencode(secret_file / "file"), ME).handle
    for attempt in (
        lambda: local.lookup(link, b"file"),
        lambda: local.create(link, b"new", 0o644, ME),
        lambda: local.unlink(link, b"file"),
        lambda: local.readdir(link, 0, 10),
    ):
        with raises(errno.ENOTDIR):
            attempt()
    with raises(errno.EINVAL):
        local.read(leaf, 0, 10)
    with raises(errno.EINVAL):
        local.setattr(leaf, AttributeChanges(size=0))
    local.setattr(link, AttributeChanges(uid=1234, mtime_ns=1))
    local.setxattr(link, b"trusted.x", b"1", 0)
    assert os.listxattr(secret_file) == []
    assert (secret_file.stat().st_uid, secret_file.stat().st_mtime_ns) == (before.st_uid, before.st_mtime_ns)
    assert os.listdir(secret_file) == ["file"]


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "bind"])  # ramfs has no file handles
def test_mounts_below_the_export_are_not_crossed(local: LocalStorage, local_dir: Path, kind: str) -> None:
    root = local.root().handle
    mountpoint = local_dir / "mnt"
    mountpoint.mkdir()
    create(local, b"file")
    source = local_dir.parent / "bound-into-the-export"
    source.mkdir()
    try:
        with mounted(mountpoint, *(["--bind", str(source)] if kind == "bind" else ["-t", kind, "none"])):
            (mountpoint / "inner").write_bytes(b"other filesystem")
            with raises(errno.EXDEV):
                local.lookup(root, b"mnt")
            entries, _ = local.readdir(root, 0, 10)
            assert {e.name: e.handle is None for e in entries} == {b"mnt": True, b"file": False}
            for attempt in (
                lambda: local.rmdir(root, b"mnt"),
                lambda: local.rename(root, b"mnt", root, b"x", 0),
                lambda: local.rename(root, b"file", root, b"mnt", 0),
            ):
                with raises(errno.EBUSY):
                    attempt()
            with raises(errno.EEXIST):
                local.create(root, b"mnt", 0o644, ME)
        assert local.lookup(root, b"mnt").attributes.nlink == 2
    finally:
        (source / "inner").unlink(missing_ok=True)
        source.rmdir()


def test_what_the_server_removes_is_stale_and_freed(local: LocalStorage, local_dir: Path) -> None:
    file = create(local, b"file")
    (local_dir / "file").unlink()
    with raises(errno.ESTALE):
        local.getattr(file)


def test_space_of_an_unlinked_file_is_freed_unless_pinned(local: LocalStorage, local_dir: Path) -> None:
    def used() -> int:
        """Links in /proc to files that are open but unlinked, in this export."""
        found = 0
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue
            found += target.startswith(str(local_dir)) and target.endswith("(deleted)")
        return found

    root = local.root().handle
    for pinned in (False, True):
        file = create(local, b"file")
        if pinned:
            local.pin(file)
        local.write(file, 0, b"x")
        local.read(file, 0, 1)
        local.unlink(root, b"file")
        assert (used() > 0) == pinned
    local.unpin(file)
    assert used() == 0


def test_the_cache_of_descriptors_is_bounded_but_keeps_the_pinned(local_dir: Path, secret: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    storage = LocalStorage(local_dir, secret, descriptors_max=20)
    nodes = [create(storage, b"%d" % number) for number in range(100)]
    for node in nodes[:10]:
        storage.pin(node)
    for number, node in enumerate(nodes):
        storage.write(node, 0, b"%d" % number)
        storage._cache.check()
    assert len(os.listdir("/proc/self/fd")) - before <= 20 + 20
    assert [storage.read(node, 0, 10) for node in nodes] == [b"%d" % number for number in range(100)]
    for number in range(10):
        (local_dir / str(number)).unlink()
        assert storage.read(nodes[number], 0, 10) == b"%d" % number
        storage.unpin(nodes[number])
    storage._cache.check()
    storage.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_more_files_are_open_than_there_are_descriptors(local_dir: Path, secret: bytes) -> None:
    """Ten times as many, also unlinked ones, and such as nobody may open any more."""
    before = len(os.listdir("/proc/self/fd"))
    storage = LocalStorage(local_dir, secret, descriptors_max=20)
    root = storage.root().handle
    files = [create(storage, b"%d" % number) for number in range(200)]
    for number, file in enumerate(files):
        storage.pin(file)
        storage.write(file, 0, b"%d" % number)
        storage._cache.check()
    for number in range(0, 200, 2):
        storage.unlink(root, b"%d" % number)
    for file in files:
        storage.setattr(file, AttributeChanges(mode=0))
    assert len(os.listdir("/proc/self/fd")) - before <= 20 + 2, "and the directory of orphans"
    for number, file in enumerate(files):
        assert storage.read(file, 0, 10) == b"%d" % number
        storage.write(file, storage.getattr(file).size, b"!")
        storage.fsync(file, False)
        assert storage.getattr(file).nlink == number % 2
        storage._cache.check()
    for number, file in enumerate(files):
        assert storage.unpin_nowait(file) == bool(number % 2), "it has a name, or would free its space"
        if number % 2 == 0:
            storage.unpin(file)
            with raises(errno.ESTALE):
                storage.getattr(file)
    assert storage.orphans() == []
    assert sorted(path.read_bytes() for path in local_dir.glob("[0-9]*")) == sorted(
        b"%d!" % number for number in range(1, 200, 2)
    )
    storage._cache.check()
    storage.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_a_program_on_the_server_removes_stays_open_while_there_are_few(
    local_dir: Path, secret: bytes
) -> None:
    storage = LocalStorage(local_dir, secret, descriptors_max=20)
    pinned = [create(storage, b"%d" % number) for number in range(15)]
    for file in pinned:
        storage.pin(file)
        storage.write(file, 0, b"x")
    for number in range(15):
        (local_dir / f"{number}").unlink()
    for number in range(100, 200):
        create(storage, b"%d" % number)
    for file in pinned:
        assert storage.read(file, 0, 1) == b"x"
        storage.unpin(file)
    storage._cache.check()
    storage.close()


def test_an_open_file_takes_one_descriptor(local: LocalStorage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = create(local, b"made")
    local.pin(made)
    local.write(made, 0, b"x")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    local.unpin(made)
    assert local.read(made, 0, 1) == b"x"
    local.pin(made)
    local.read(made, 0, 1)
    local.write(made, 0, b"y")
    local.fsync(made, False)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    local.unpin(made)


def test_close_after_the_last_unpin_lets_the_file_be_executed(local: LocalStorage, local_dir: Path) -> None:
    if os.statvfs(local_dir).f_flag & os.ST_NOEXEC:
        pytest.skip("mounted noexec")
    root = local.root().handle
    tool = local.create(root, b"tool", 0o755, ME).handle
    local.pin(tool)
    local.write(tool, 0, Path("/bin/true").read_bytes())
    local.unpin(tool)
    subprocess.run([local_dir / "tool"], check=True, timeout=20)


def test_nothing_is_found_before_it_has_its_owner(local: LocalStorage) -> None:
    """Regression guard: a lookup between mkdir(2) and chown(2) would cache root as the owner."""
    root = local.root().handle
    stop = threading.Event()
    owners: set[int] = set()
    failures: list[FsError] = []

    def look() -> None:
        while not stop.is_set():
            try:
                owners.add(local.lookup(root, b"new").attributes.uid)
            except FsError as exc:
                if exc.errno != errno.ENOENT:
                    failures.append(exc)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        local.mkdir(root, b"new", 0o755, THEM)
        local.rmdir(root, b"new")
        local.create(root, b"new", 0o644, THEM)
        local.unlink(root, b"new")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert owners <= {1000}


def test_default_acl_combines_with_the_mode(local: LocalStorage, local_dir: Path) -> None:
    """A default ACL (u::rwx,g::r-x,o::---) takes the place of the umask: the mode is masked by it."""
    entries = [(0x01, 7), (0x04, 5), (0x20, 0)]  # ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER
    acl = (2).to_bytes(4, "little")
    for tag, permissions in entries:
        acl += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little") + b"\xff" * 4
    root = local.root().handle
    directory = local.mkdir(root, b"d", 0o755, THEM).handle
    local.setxattr(directory, b"system.posix_acl_default", acl, 0)
    file = local.create(directory, b"f", 0o666, THEM)
    assert stat.S_IMODE(file.attributes.mode) == 0o640
    assert file.attributes.uid == 1000
    assert not file.bare, "it has inherited one"
    masked = Credentials(1000, 1000, 0o077)
    new = local.create(directory, b"g", 0o666, masked)
    below = local.mkdir(directory, b"h", 0o777, masked)
    modes = [stat.S_IMODE(node.attributes.mode) for node in (new, below)]
    assert modes == [0o640, 0o750], "the umask does not count"
    assert local.getxattr(below.handle, b"system.posix_acl_default") == acl


def test_an_acl_clears_set_group_id_if_it_is_to(local: LocalStorage) -> None:
    """As the root that the server is, it would leave it."""
    file = local.create(local.root().handle, b"f", 0o644, THEM).handle
    acl = bytes.fromhex("02000000" "01000700ffffffff" "04000700ffffffff" "20000700ffffffff")
    for kill_sgid, expected in ((False, 0o2777), (True, 0o777)):
        local.setattr(file, AttributeChanges(mode=0o2755))
        told = set_xattr(local, file, b"system.posix_acl_access", acl, 0, kill_sgid=kill_sgid)
        assert stat.S_IMODE(told.mode) == expected


def test_birth_time(local: LocalStorage) -> None:
    found = local.getattr(create(local, b"f"))
    assert found.btime_ns == 0 or abs(found.btime_ns - found.ctime_ns) < 10**10


def test_umask_is_none_of_the_servers_business(local_dir: Path, secret: bytes) -> None:
    os.umask(0o077)
    storage = LocalStorage(local_dir, secret)
    node = storage.mkdir(storage.root().handle, b"d", 0o777, ME)
    assert stat.S_IMODE(node.attributes.mode) == 0o777
    storage.close()


def test_a_listing_of_many_names_while_they_change(local: LocalStorage, local_dir: Path) -> None:
    for number in range(10_000):
        os.close(os.open(local_dir / f"stays{number}", os.O_CREAT | os.O_WRONLY))
    root = local.root().handle
    seen: list[bytes] = []
    cookie, eof, step = 0, False, 0
    while not eof:
        entries, eof = local.readdir(root, cookie, 500)
        cookie = entries[-1].cookie if entries else cookie
        seen += [entry.name for entry in entries if entry.name.startswith(b"stays")]
        for number in range(100):
            os.close(os.open(local_dir / f"new{step}-{number}", os.O_CREAT | os.O_WRONLY))
        if step:
            for number in range(0, 100, 2):
                os.unlink(local_dir / f"new{step - 1}-{number}")
        step += 1
    assert len(seen) == len(set(seen)) == 10_000


def test_what_cannot_be_exported(tmp_path: Path, secret: bytes, as_root: None) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path / "absent"):
        with pytest.raises(StorageError, match="cannot export"):
            LocalStorage(path, secret)
    with pytest.raises(StorageError, match="volatile"):
        LocalStorage("/proc/self/net", secret)
    with pytest.raises(ValueError, match="secret"):
        LocalStorage(tmp_path, b"short")


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    first = load_or_create_secret(tmp_path)
    assert load_or_create_secret(tmp_path) == first
    assert len(first) == 32
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"cut")
    with pytest.raises(StorageError, match="restore it"):
        load_or_create_secret(tmp_path)


def test_volatile_handles_stay_one_per_inode_and_die_when_evicted(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path, None, descriptors_max=10)
    root = storage.root().handle
    pinned = create(storage, b"pinned")
    storage.pin(pinned)
    first = create(storage, b"0")
    for number in range(1, 50):
        create(storage, b"%d" % number)
        storage._cache.check()
    with raises(errno.ESTALE):
        storage.getattr(first)
    again = storage.lookup(root, b"0").handle
    assert again != first
    assert storage.lookup(root, b"0").handle == again
    assert storage.lookup(root, b"pinned").handle == pinned
    storage.unpin(pinned)
    storage.close()


_UNPRIVILEGED = textwrap.dedent("""
    import os, sys
    from nfsfuse.protocol.types import AttributeChanges, Credentials
    from nfsfuse.protocol.errors import FsError
    from nfsfuse_server.storage.interface import StorageError
    from nfsfuse_server.storage.local import LocalStorage
    os.setgroups([]); os.setgid(65534); os.setuid(65534)  # only now: modules may be root's
    try:
        LocalStorage(sys.argv[1], bytes(32))
    except StorageError as exc:
        assert "CAP_DAC_READ_SEARCH" in str(exc), exc
    else:
        raise AssertionError("handles without privilege")
    storage = LocalStorage(sys.argv[1], None)
    root = storage.root().handle
    node = storage.create(root, b"f", 0o444, Credentials(1000, 1000))
    assert node.attributes.uid == 65534
    storage.pin(node.handle)
    assert storage.write(node.handle, 0, b"mine").size == 4
    storage.link(node.handle, root, b"g")
    storage.unlink(root, b"g"); storage.unlink(root, b"f")
    assert storage.read(node.handle, 0, 9) == b"mine"
    try:
        storage.setattr(node.handle, AttributeChanges(uid=0))
    except FsError as exc:
        assert exc.errno == 1, exc
    else:
        raise AssertionError("chown without privilege")
    print("fine")
""")


def test_without_privilege_there_are_volatile_handles(tmp_path: Path, as_root: None) -> None:
    export = tmp_path / "export"
    export.mkdir()
    os.chown(export, 65534, 65534)
    for parent in (tmp_path, *tmp_path.parents[:3]):  # a parallel run has one more of its own
        parent.chmod(parent.stat().st_mode | 0o011)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _UNPRIVILEGED, str(export)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout == "fine\n", run.stderr


def test_nothing_outside_the_export_is_found_by_number_or_above(tmp_path: Path, as_root: None) -> None:
    """Also not from a directory that a program on the server has moved out of it."""
    export, outside = tmp_path / "export", tmp_path / "outside"
    (export / "directory" / "below").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (export / "link").symlink_to(outside)
    storage = LocalStorage(export, bytes(32))
    below = storage.lookup(storage.lookup(storage.root().handle, b"directory").handle, b"below")
    for path in (outside, outside / "secret", tmp_path):
        assert not any(storage.search(path.stat().st_ino))
    (export / "directory").rename(outside / "directory")
    with pytest.raises(FsError) as caught:
        storage.parent(below.handle)
    assert caught.value.errno == errno.ESTALE
    storage.close()


def test_a_search_goes_in_steps(tmp_path: Path, as_root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_search, "STEP_NAMES", 10)
    for number in range(10):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}/file").touch()
    storage = LocalStorage(tmp_path, bytes(32))
    steps = list(storage.search((tmp_path / "d0/file").stat().st_ino))
    assert steps[-1] is not None
    assert not any(steps[:-1])
    assert len(list(storage.search(2**63 - 1))) == 10
    storage.close()

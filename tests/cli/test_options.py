"""The -o options of a mount."""

from __future__ import annotations

import os

import pytest

from nfsfuse.cli.mount_flags import (
    KERNEL_OPTIONS,
    NOATIME,
    NODEV,
    NOEXEC,
    NOSUID,
    RDONLY,
    RELATIME,
    STRICTATIME,
    flags_of,
)
from nfsfuse.cli.options import IGNORED_OPTIONS, BadOption, MountOptions, parse_options

DEFAULT = MountOptions()

GOOD: tuple[tuple[list[str], MountOptions], ...] = (
    ([], DEFAULT),
    ([""], DEFAULT),
    (["defaults,_netdev,nofail,x-systemd.automount,x-mount.mkdir=0755"], DEFAULT),
    (["allow_other"], MountOptions(allow_other=True)),
    (["noallow_other"], MountOptions(allow_other=False, refused=frozenset({"allow_other"}))),
    (["noallow_other", "allow_other"], MountOptions(allow_other=True)),
    (
        ["allow_other,noallow_other"],
        MountOptions(allow_other=False, refused=frozenset({"allow_other"})),
    ),
    (
        ["nodefault_permissions"],
        MountOptions(default_permissions=False, refused=frozenset({"default_permissions"})),
    ),
    (["noacl"], MountOptions(acl=False)),
    (["noacl,acl"], MountOptions(acl=True)),
    (["log=/var/log/a=b"], MountOptions(log="/var/log/a=b")),
    (["log=syslog,log=stderr"], MountOptions(log="stderr")),
    (["loglevel=debug"], MountOptions(log_level="debug")),
    (["ro", "noexec,,nodev"], MountOptions(kernel=("ro", "noexec", "nodev"))),
    (["soft,timeo=5"], MountOptions(soft=True, timeo_seconds=5)),
    (["soft", "hard"], MountOptions(soft=False)),
    (["watchdog=5"], MountOptions(watchdog_seconds=5)),
    (["watchdog=0"], MountOptions(watchdog_seconds=0)),
    (["nowatchdog"], MountOptions(watchdog_seconds=0)),
    (["ro,rw"], MountOptions(kernel=("rw",))),
    (["rw,noatime,ro,ro"], MountOptions(kernel=("noatime", "ro"))),
    (["relatime,nodiratime"], MountOptions(kernel=("relatime", "nodiratime"))),
    (["ro,remount,user_id=0,group_id=0"], MountOptions(kernel=("ro",), remount=True)),
    (["noallow_other,allow_other"], MountOptions(allow_other=True)),
)


@pytest.mark.parametrize(("texts", "expected"), GOOD)
def test_understood(texts: list[str], expected: MountOptions) -> None:
    assert parse_options(texts) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "soft=1", "timeo", "allow_other=1", "ro=1", "log", "log=", "loglevel", "loglevel=loud"),
        *("loglevel=", "=", "RO", "remount=1", "remount=", "user_id=0", "relatime=1"),
    ],
)
def test_refused_by_its_name(text: str) -> None:
    with pytest.raises(BadOption, match="unknown mount option"):
        parse_options([f"ro,{text}"])


def test_no_option_is_both_ignored_and_passed_on() -> None:
    assert not IGNORED_OPTIONS & KERNEL_OPTIONS


def test_other_users_are_allowed_by_default_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert parse_options([]).allow_other
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not parse_options([]).allow_other


def test_what_libfuse_is_given() -> None:
    options = parse_options(["allow_other,ro"])
    assert options.fuse("host:1") == {
        "fsname=host:1", "subtype=nfsfuse", "ro", "allow_other", "default_permissions",
    }  # fmt: skip
    options = parse_options(["noallow_other,nodefault_permissions"])
    assert options.fuse("unix:/a,b\\c") == {"fsname=unix:/a\\,b\\\\c", "subtype=nfsfuse"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), NOSUID | NODEV),
        (("suid", "dev", "ro", "noexec"), RDONLY | NOEXEC),
        (("ro", "rw", "nosuid"), NOSUID | NODEV),
        (("noatime", "relatime"), NOSUID | NODEV | RELATIME),
        (("relatime", "strictatime", "atime"), NOSUID | NODEV | STRICTATIME),
        (("strictatime", "noatime"), NOSUID | NODEV | NOATIME),
        (("relatime", "norelatime"), NOSUID | NODEV),
    ],
)
def test_the_flags_of_mount_2(options: tuple[str, ...], expected: int) -> None:
    assert flags_of(options) == expected


def test_what_libfuse_refuses_comes_later_and_with_all_the_rest() -> None:
    options = parse_options(["noexec,strictatime"])
    assert "strictatime" not in options.fuse("host:1")
    assert "noexec" in options.fuse("host:1")
    assert options.later == ("noexec", "strictatime")
    assert parse_options(["noexec"]).later == ()


@pytest.mark.parametrize("text", ["timeo=0", "timeo=1.5", "timeo=-1", "timeo=86401"])
def test_a_number_out_of_its_range(text: str) -> None:
    with pytest.raises(BadOption, match="a number from 1 to 86400 is needed"):
        parse_options([text])

"""The -o options of a mount."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Final

from nfsfuse.cli.mount_flags import KERNEL_OPTIONS, LATER_OPTIONS

OPPOSITES: Final = {
    first: second
    for one, other in (
        ("ro", "rw"), ("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("sync", "async"),
        ("atime", "noatime"),
    )
    for first, second in ((one, other), (other, one))
}  # fmt: skip
"""libfuse is given a set, in no order: of two opposites the earlier one is left out."""

IGNORED_OPTIONS: Final = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
)
"""What /etc/fstab says to others than the filesystem (mount(8), systemd.mount(5))."""

SHOWN_OPTIONS: Final = frozenset({"user_id", "group_id", "max_read", "blksize", "rootmode", "fd"})
"""What the kernel shows of a FUSE mount with a value, and mount(8) therefore repeats when it is remounted."""

HELP: Final = """\
mount options (-o, separated by commas; those of mount(8) work too):
  allow_other, noallow_other
                   other users may use the mount, or not (root: allowed by default)
  default_permissions, nodefault_permissions
                   the kernel checks permissions, or nobody does (default: the kernel)
  log=FILE|syslog|stderr
                   where the daemon logs (default: syslog in the background, stderr in the foreground)
  loglevel=LEVEL   debug, info, warning or error (default: info)
  hard             while the server is away operations wait, for as long as it takes; waiting programs can be
                   killed (the default)
  soft             they fail with EIO after timeo=SECONDS (1 to 86400, default 60) without the server
  acl, noacl       ACLs are obeyed (the default), or neither obeyed nor to be set: for where nobody has any, and
                   users other than the mount's owner look up paths fast
  nolock           locks are granted by this machine alone and exclude nobody on the others; for programs that
                   take locks where it does not matter, and want them fast. The log says so at every mount
  read_ahead_kb=N  how far the kernel reads ahead, 0 to 65536 KiB (default: 1024; needs the right to write to
                   /sys/class/bdi, else it stays at the kernel's 128)
  max_background=N requests for read-ahead and write-back under way at once, 1 to 65535 (default: 64)
  cache_mib=N      memory of the daemon's own page cache, 1 to 1048576 MiB (default: 256)
  dirty_mib=N      how much of it may be data that are still to be written back; writers wait at the limit
                   (default: a quarter of the cache)
  watchdog=N, nowatchdog
                   the mount of a daemon whose event loop has not turned for N seconds, 1 to 86400, is aborted
                   (default: 60); 0 or nowatchdog: never
  ro, noexec, nodev, nosuid, noatime, relatime, strictatime, lazytime, ...
                   as in mount(8); nodev and nosuid are on unless dev and suid are given
  remount          change those of a mount that is there; what concerns its daemon stays"""


READ_AHEAD_KB_MAX: Final = 65536
"""KiB. More than that at once is no read-ahead but the file."""

TIMEO_SECONDS_MAX: Final = 86400
"""Seconds. Whoever waits longer than a day wants a hard mount."""

BACKGROUND_MAX: Final = 0xFFFF
"""What FUSE_INIT has room for."""

WATCHDOG_SECONDS_MAX: Final = 86400
"""Seconds. Whoever waits longer than a day can switch it off."""

CACHE_MIB_MAX: Final = 1 << 20
"""MiB: a terabyte is a slip of the finger."""


class BadOption(Exception):
    """An option is unknown or has no sense; the text says which and why."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What -o says."""

    allow_other: bool = field(default_factory=lambda: os.geteuid() == 0)
    default_permissions: bool = True
    log: str | None = None
    log_level: str = "info"
    locks: bool = True
    acl: bool = True
    soft: bool = False
    timeo_seconds: int = 60
    read_ahead_kb: int = 1024
    max_background: int = 64
    cache_mib: int = 256
    dirty_mib: int | None = None
    watchdog_seconds: int = 60
    kernel: tuple[str, ...] = ()
    refused: frozenset[str] = frozenset()
    """What was said to be off, although the default may be on."""
    remount: bool = False

    def cache(self) -> tuple[int, int]:
        """The budget of the page cache, and how much of it may be dirty, in bytes."""
        dirty = max(1, self.cache_mib // 4) if self.dirty_mib is None else min(self.dirty_mib, self.cache_mib)
        return self.cache_mib << 20, dirty << 20

    def fuse(self, source: str) -> set[str]:
        """The options for libfuse: mount(8) then shows *source* with type fuse.nfsfuse."""
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        result = {f"fsname={escaped}", "subtype=nfsfuse", *self.kernel} - LATER_OPTIONS
        if self.allow_other:
            result.add("allow_other")
        if self.default_permissions:
            result.add("default_permissions")
        return result

    @property
    def later(self) -> tuple[str, ...]:
        """The options for the kernel, if there are any that libfuse refuses: to be applied once the mount is
        there."""
        return self.kernel if LATER_OPTIONS.intersection(self.kernel) else ()


def parse_options(texts: list[str]) -> MountOptions:
    """The options in all -o together; a later one overrides an earlier one. Raises BadOption."""
    given = [option for text in texts for option in text.split(",") if option]
    result = MountOptions(remount="remount" in given)
    for option in given:
        result = _with(result, option)
    return result


def _with(options: MountOptions, option: str) -> MountOptions:
    name, equals, value = option.partition("=")
    match name, value:
        case (("allow_other" | "noallow_other"), ""):
            return _switched(replace(options, allow_other=name == "allow_other"), name)
        case (("default_permissions" | "nodefault_permissions"), ""):
            return _switched(replace(options, default_permissions=name == "default_permissions"), name)
        case "remount", "" if not equals:
            return options
        case "log", value if value:
            return replace(options, log=value)
        case "loglevel", "debug" | "info" | "warning" | "error":
            return replace(options, log_level=value)
        case (("acl" | "noacl"), ""):
            return replace(options, acl=name == "acl")
        case (("lock" | "nolock"), ""):
            return replace(options, locks=name == "lock")
        case (("hard" | "soft"), ""):
            return replace(options, soft=name == "soft")
        case "timeo", value if value:
            return replace(options, timeo_seconds=_number(option, value, 1, TIMEO_SECONDS_MAX))
        case "read_ahead_kb", value if value:
            return replace(options, read_ahead_kb=_number(option, value, 0, READ_AHEAD_KB_MAX))
        case "max_background", value if value:
            return replace(options, max_background=_number(option, value, 1, BACKGROUND_MAX))
        case "cache_mib", value if value:
            return replace(options, cache_mib=_number(option, value, 1, CACHE_MIB_MAX))
        case "dirty_mib", value if value:
            return replace(options, dirty_mib=_number(option, value, 1, CACHE_MIB_MAX))
        case "watchdog", value if value:
            return replace(options, watchdog_seconds=_number(option, value, 0, WATCHDOG_SECONDS_MAX))
        case "nowatchdog", "":
            return replace(options, watchdog_seconds=0)
    if not equals and name in KERNEL_OPTIONS:
        others = tuple(other for other in options.kernel if other not in (name, OPPOSITES.get(name)))
        return replace(options, kernel=(*others, name))
    if name in IGNORED_OPTIONS or name.startswith("x-") or (options.remount and name in SHOWN_OPTIONS):
        return options
    raise BadOption(f"unknown mount option {option!r}; see nfsfuse mount --help")


def _switched(options: MountOptions, name: str) -> MountOptions:
    off = name.startswith("no")
    switch = frozenset({name.removeprefix("no")})
    return replace(options, refused=options.refused | switch if off else options.refused - switch)


def _number(option: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise BadOption(f"mount option {option!r}: a number from {least} to {most} is needed")
    return int(text)

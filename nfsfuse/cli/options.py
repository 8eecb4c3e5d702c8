"""The -o options of a mount."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Final

KERNEL_OPTIONS: Final = frozenset({
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "atime", "noatime",
    "dirsync",
})  # fmt: skip
"""Options that mount(2) knows and libfuse passes on."""

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
    {"defaults", "auto", "noauto", "user", "nouser", "users", "_netdev", "nofail"}
)
"""What /etc/fstab says to others than the filesystem (mount(8), systemd.mount(5))."""

HELP: Final = """\
mount options (-o, separated by commas; those of mount(8) work too):
  allow_other, noallow_other
                   other users may use the mount, or not (root: allowed by default)
  default_permissions, nodefault_permissions
                   the kernel checks permissions, or nobody does (default: the kernel)
  log=FILE|syslog|stderr
                   where the daemon logs (default: syslog in the background, stderr in the foreground)
  loglevel=LEVEL   debug, info, warning or error (default: info)
  ro, noexec, nodev, nosuid, noatime, ...
                   as in mount(8); nodev and nosuid are on unless dev and suid are given"""


class BadOption(Exception):
    """An option is unknown or has no sense; the text says which and why."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What -o says."""

    allow_other: bool = field(default_factory=lambda: os.geteuid() == 0)
    default_permissions: bool = True
    log: str | None = None
    log_level: str = "info"
    kernel: tuple[str, ...] = ()

    def fuse(self, source: str) -> set[str]:
        """The options for libfuse: mount(8) then shows *source* with type fuse.nfsfuse."""
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        result = {f"fsname={escaped}", "subtype=nfsfuse", *self.kernel}
        if self.allow_other:
            result.add("allow_other")
        if self.default_permissions:
            result.add("default_permissions")
        return result


def parse_options(texts: list[str]) -> MountOptions:
    """The options in all -o together; a later one overrides an earlier one. Raises BadOption."""
    result = MountOptions()
    for option in (option for text in texts for option in text.split(",") if option):
        result = _with(result, option)
    return result


def _with(options: MountOptions, option: str) -> MountOptions:
    name, equals, value = option.partition("=")
    match name, value:
        case (("allow_other" | "noallow_other"), ""):
            return replace(options, allow_other=name == "allow_other")
        case (("default_permissions" | "nodefault_permissions"), ""):
            return replace(options, default_permissions=name == "default_permissions")
        case "log", value if value:
            return replace(options, log=value)
        case "loglevel", "debug" | "info" | "warning" | "error":
            return replace(options, log_level=value)
    if not equals and name in KERNEL_OPTIONS:
        others = tuple(other for other in options.kernel if other not in (name, OPPOSITES.get(name)))
        return replace(options, kernel=(*others, name))
    if name in IGNORED_OPTIONS or name.startswith("x-"):
        return options
    raise BadOption(f"unknown mount option {option!r}; see nfsfuse mount --help")

"""nfsfuse mount: connect, mount, serve."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from nfsfuse.cli import logs, registry
from nfsfuse.cli.daemon import Launch, in_background
from nfsfuse.cli.guardian import Guardian, abort
from nfsfuse.cli.mount_owner import MountOwner
from nfsfuse.cli.mountpoint import MountFailure, check_device, check_mountpoint, remove_dead_mounts
from nfsfuse.cli.mounts import connection_of, device_of, is_mounted
from nfsfuse.cli.options import BadOption, MountOptions, parse_options
from nfsfuse.cli.remount import RemountFailure, apply, remount
from nfsfuse.cli.statistics import Counted, tell_on_signal
from nfsfuse.engine.connector import Greeted
from nfsfuse.engine.filesystem import CacheOptions, Filesystem
from nfsfuse.engine.session import Session
from nfsfuse.machines.access_times import access_times
from nfsfuse.machines.watchdog import BEAT_SECONDS
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.types import ClientId, SessionId
from nfsfuse.rpc.address import Address, connect, parse_address
from nfsfuse.rpc.collector import collect_rarely
from nfsfuse.rpc.streams import ByteStream, ConnectionLost, SocketByteStream

if TYPE_CHECKING:
    from nfsfuse.fuse.binding import supplement

log = logging.getLogger(__name__)

CONNECT_SECONDS_MAX = 20.0
"""How long a mount command waits for the server before it gives up and says so."""


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``nfsfuse mount``; the exit status."""
    try:
        options = parse_options(arguments.options)
        address = parse_address(arguments.server)
    except (BadOption, ValueError) as exc:
        print(f"nfsfuse: {exc}", file=sys.stderr)
        return 2
    try:
        if options.remount:
            remount(str(address), arguments.mountpoint, options)
            return 0
        check_mountpoint(arguments.mountpoint)
        check_device()
    except (MountFailure, RemountFailure) as exc:
        print(f"nfsfuse: {exc}", file=sys.stderr)
        return 1
    serve = partial(serve_mount, address, os.path.abspath(arguments.mountpoint), options)
    if arguments.foreground:
        return serve(options.log or "stderr", Launch(None))
    return in_background(partial(serve, options.log or "syslog"))


def serve_mount(
    address: Address, mountpoint: str, options: MountOptions, log_target: str, launch: Launch
) -> int:
    """Mount, and serve until it is unmounted; the exit status."""
    try:
        logs.set_up(log_target, options.log_level)
    except OSError as exc:
        launch.failed(f"cannot log to {log_target}: {exc.strerror}")
        return 1
    try:
        replaces = remove_dead_mounts(mountpoint, str(address))
        check_mountpoint(mountpoint)
        set_up_log = partial(logs.set_up, log_target, options.log_level)
        guardian = Guardian(set_up_log, options.watchdog_seconds or None)
        logs.write_in_a_thread()
        collect_rarely()
        mount = _Mount(address, mountpoint, options, launch, guardian)
        try:
            trio.run(mount.run, replaces)
        finally:
            if not mount.leaves_dead_mount:  # else the guardian sees to it that this process can end
                guardian.end()
    except (Exception, BaseExceptionGroup) as exc:
        failure = _leaf(exc)
        if isinstance(failure, MountFailure):
            log.error("%s", failure)
            launch.failed(str(failure))
        else:
            # To the log, as nobody looks at a daemon's stderr.
            log.critical("the daemon of %s died of a bug", mountpoint, exc_info=exc)
            logs.flush()
            launch.failed(f"the mount's daemon died: {failure!r}")
        return 1
    finally:
        logs.flush()
    return 0


def _leaf(found: BaseException) -> BaseException:
    """The first exception in a group."""
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def boottime() -> float:
    """Seconds since the machine was started, those included in which it slept: leases run out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Mount:
    """One mount from connecting to goodbye."""

    def __init__(
        self, address: Address, mountpoint: str, options: MountOptions, launch: Launch, guardian: Guardian
    ) -> None:
        self._address = address
        self._mountpoint = mountpoint
        self._options = options
        self._launch = launch
        self._guardian = guardian
        self._connected = False
        self._terminated = False
        self._unmounted = False
        self._usable = False
        self._orderly = False
        self._session_began = trio.Event()
        self._registration = registry.Registration(mountpoint, str(address))

    @property
    def leaves_dead_mount(self) -> bool:
        """Whether the mount stays when this process ends, and everything in it fails with ENOTCONN: after every
        end but an orderly one. An unmounted directory would look empty, to a backup for one."""
        return self._usable and not self._orderly

    async def run(self, replaces: SessionId) -> None:
        session = Session(
            self._connect,
            ClientId(secrets.token_bytes(16)),
            socket.gethostname(),
            clock=boottime,
            replaces=replaces,
            timeo_seconds=self._options.timeo_seconds if self._options.soft else None,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            greeted = await self._greet(session)
            await self._serve(nursery, session, greeted)
            await session.goodbye()
            nursery.cancel_scope.cancel()

    async def _beat(self) -> None:
        while True:
            self._guardian.beat()
            await trio.sleep(BEAT_SECONDS)

    async def _connect(self) -> ByteStream:
        self._connected = False
        stream = SocketByteStream(await connect(self._address))
        self._connected = True
        return stream

    async def _greet(self, session: Session) -> Greeted:
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                greeted = await session.greet()
        except* trio.TooSlowError as group:
            if not self._connected:
                raise MountFailure(f"cannot connect to {self._address}: no answer") from group
            raise MountFailure(f"the server at {self._address} accepts but does not answer") from group
        except* OSError as group:
            failure = _leaf(group)
            assert isinstance(failure, OSError)
            why = failure.strerror or failure
            raise MountFailure(f"cannot connect to {self._address}: {why}") from failure
        except* (FsError, ProtocolError, ConnectionLost) as group:
            raise MountFailure(f"the server at {self._address} refuses: {_leaf(group)}") from None
        return greeted

    async def _serve(self, around: trio.Nursery, session: Session, greeted: Greeted) -> None:
        # Imported late: `nfsfuse --help` should not need libfuse.
        from nfsfuse.fuse.binding.abi import InitFlag
        from nfsfuse.fuse.binding.init import InitOptions
        from nfsfuse.fuse.binding.libraries import SupplementError, pyfuse3
        from nfsfuse.fuse.binding.supplement import mount
        from nfsfuse.fuse.notifications.kernel import FuseKernel
        from nfsfuse.fuse.upcalls.boundary import UPCALLS
        from nfsfuse.fuse.upcalls.extra_operations import Extras
        from nfsfuse.fuse.upcalls.interrupt import INTERRUPTS
        from nfsfuse.fuse.upcalls.later import Replies
        from nfsfuse.fuse.upcalls.operations import Operations
        from nfsfuse.fuse.upcalls.quick import Quick

        root = greeted.welcome.root
        kernel = FuseKernel(self._mountpoint, checks_permissions=self._options.default_permissions)
        guard = os.environ.get("NFSFUSE_GUARD") == "1"
        filesystem = Filesystem(
            session, root, kernel, CacheOptions(*self._options.cache(), guard=guard), time.time_ns
        )
        filesystem.files.access_times = access_times(self._options.kernel)
        filesystem.acls.refused = not self._options.acl
        owner = MountOwner(filesystem, INTERRUPTS.fail, lambda _: self._session_began.set())
        await around.start(session.run, owner, greeted)
        operations = Operations(filesystem, root.attributes, kernel.own_mount)
        fuse_options = self._options.fuse(str(self._address))
        background = self._options.max_background
        init = InitOptions(
            locks=self._options.locks,
            # Not with nodefault_permissions: it would have the kernel check them.
            posix_acl=self._options.acl and self._options.default_permissions,
            max_background=background,
            congestion_threshold=max(1, background * 3 // 4),  # as the kernel's own defaults have it
        )
        extras = Extras(filesystem, operations)
        replies = Replies()
        quick = Quick(filesystem, operations, kernel.own_mount, replies)
        try:
            mounted = mount(operations, self._mountpoint, fuse_options, init, extras, replies, quick)
        except (RuntimeError, SupplementError) as exc:
            raise MountFailure(f"cannot mount on {self._mountpoint}: {exc}") from exc
        kernel.notifier = mounted.notifier
        try:
            connection = connection_of(self._mountpoint)
            self._guardian.guard(connection)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._let_go_after_a_crash, connection)
                await nursery.start(filesystem.run)
                await nursery.start(self._end_on_signal, pyfuse3.terminate, nursery, filesystem)
                await nursery.start(tell_on_signal, Counted(session, filesystem, kernel, UPCALLS))
                until_unmounted = partial(self._until_unmounted, mounted, nursery, connection)
                negotiated = await nursery.start(until_unmounted, session, filesystem)
                log.info("%s is mounted on %s: %s", self._address, self._mountpoint, negotiated)
                if InitFlag.DIRECT_IO_ALLOW_MMAP not in negotiated.granted:
                    filesystem.files.write_directly = False
                    log.warning(
                        "read(2) and write(2) of files open for writing go through the kernel's page cache: "
                        "they may be seen, or end, too early (the kernel is older than Linux 6.6)"
                    )
                if not self._options.locks:
                    log.warning(
                        "%s: nolock: locks are local to this machine and exclude nobody elsewhere",
                        self._mountpoint,
                    )
                self._set_read_ahead()
                await self._apply_later_options()
                await nursery.start(self._keep_registered, session)
                if await kernel.has_epochs():
                    operations.trust_names()
                else:
                    log.warning("names are not cached: the kernel has no epochs (they came with Linux 6.16)")
                self._usable = True
                logs.flush()
                self._launch.ready()
        finally:
            mounted.close(unmount=not self.leaves_dead_mount)
            if self.leaves_dead_mount:
                log.error(
                    "%s is left as a dead mount; %d bytes that were not written back are lost",
                    self._mountpoint, filesystem.cache.dirty_bytes,
                )  # fmt: skip
            else:
                self._unregister()

    async def _let_go_after_a_crash(
        self, connection: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """When a task has failed, the others are cancelled: also those that would answer programs. So these are
        let go first. A thread that tells the kernel something would wait for what they have locked, and is
        waited for."""
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            if self.leaves_dead_mount:
                abort(connection, "the daemon has failed")

    async def _keep_registered(
        self, session: Session, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Say who serves this mount, anew for each session. Where that cannot be said the mount goes on
        without."""
        self._session_began = trio.Event()
        await self._registered(session)
        task_status.started()
        while True:
            await self._session_began.wait()
            self._session_began = trio.Event()
            await self._registered(session)

    async def _registered(self, session: Session) -> None:
        try:
            await trio.to_thread.run_sync(self._register, session.session_id, abandon_on_cancel=True)
        except OSError as exc:
            log.warning(
                "%s: it cannot be said who serves it: umount will not wait for this daemon, nor a mount that "
                "replaces it end its session (%s)",
                self._mountpoint, exc,
            )  # fmt: skip

    def _register(self, session_id: SessionId) -> None:
        registry.clear()
        self._registration.renew(session_id)

    def _unregister(self) -> None:
        try:
            self._registration.end()
        except OSError as exc:
            log.warning("%s: it still says who serves it: %s", self._mountpoint, exc)

    def _set_read_ahead(self) -> None:
        from nfsfuse.fuse.binding.read_ahead import set_read_ahead

        try:
            if not set_read_ahead(device_of(self._mountpoint), self._options.read_ahead_kb):
                log.info("%s: not allowed to set read_ahead_kb; it stays as it is", self._mountpoint)
        except OSError as exc:
            # It only makes reading slower.
            log.warning("%s: read_ahead_kb cannot be set: %s", self._mountpoint, exc)

    async def _apply_later_options(self) -> None:
        """What libfuse cannot mount with. In a thread: the kernel may have us write something back."""
        if not self._options.later:
            return
        try:
            await trio.to_thread.run_sync(apply, self._mountpoint, self._options.later)
        except OSError as exc:
            options = ",".join(self._options.later)
            raise MountFailure(f"cannot mount with {options}: {exc.strerror}") from exc

    async def _until_unmounted(
        self,
        mounted: supplement.Mount,
        nursery: trio.Nursery,
        connection: int,
        session: Session,
        filesystem: Filesystem,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        await mounted.serve(task_status=task_status)
        self._unmounted = True
        if not self._terminated and is_mounted(connection):
            log.error("%s: somebody has aborted its connection; it is a dead mount now", self._mountpoint)
        if filesystem.cache.dirty_bytes and not session.connected:
            log.warning(
                "%s is unmounted; %d bytes wait for the server at %s, which is away; a signal (SIGTERM) gives "
                "them up",
                self._mountpoint, filesystem.cache.dirty_bytes, self._address,
            )  # fmt: skip
        await filesystem.write_back.everything()
        self._orderly = True
        nursery.cancel_scope.cancel()

    async def _end_on_signal(
        self,
        terminate: Callable[[], object],
        nursery: trio.Nursery,
        filesystem: Filesystem,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The first signal unmounts, and what is dirty is written back; a second one gives that up."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if self._terminated or self._unmounted:
                    log.error("ending on %s: %d bytes are lost", name, filesystem.cache.dirty_bytes)
                    self._orderly = True
                    nursery.cancel_scope.cancel()
                    return
                self._terminated = True
                log.info("unmounting on %s", name)
                terminate()

"""nfsfuse-server: export a directory."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import trio

from nfsfuse.rpc.address import DEFAULT_PORT, Address, TcpAddress, UnixAddress, parse_address
from nfsfuse.rpc.collector import collect_rarely
from nfsfuse.rpc.memory import keep_freed_buffers
from nfsfuse.rpc.streams import SocketByteStream
from nfsfuse_server.service.direct import DirectChanges
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.state.directory import StateDirectory, boot_id
from nfsfuse_server.state.interface import StateError
from nfsfuse_server.state.recover import recover
from nfsfuse_server.storage.handles import load_or_create_secret
from nfsfuse_server.storage.interface import StorageError
from nfsfuse_server.watch.choose import Watch, open_export
from nfsfuse_server.watch.interface import Watcher, WatchError

log = logging.getLogger(__name__)

DESCRIPTION = """\
Export a directory to nfsfuse clients. Runs in the foreground; prints "listening on ADDRESS" once it is ready,
and ends cleanly on SIGTERM and SIGINT.

The server does not authenticate clients and trusts the user ids they send, like an NFS export with
sec=sys,no_root_squash: let it listen only where every host that can reach it is trusted. The default is this
machine alone."""

BACKLOG = 128
"""Connections waiting to be accepted."""


class Refusal(Exception):
    """The server cannot start; the text is for the administrator."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="nfsfuse-server", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--export", required=True, metavar="DIR", help="the directory to export")
    result.add_argument(
        "--listen",
        default=f"127.0.0.1:{DEFAULT_PORT}",
        metavar="HOST:PORT|unix:PATH",
        help="where to listen (default: %(default)s); port 0 takes any free port",
    )
    result.add_argument(
        "--state-dir",
        metavar="DIR",
        help="what must survive a restart of the server is kept here; never inside the export "
        "(default: /var/lib/nfsfuse/ID for root, else ~/.local/state/nfsfuse/ID; ID stands for the export)",
    )
    result.add_argument(
        "--volatile-handles",
        action="store_true",
        help="do without name_to_handle_at(2), which needs root and support by the filesystem: clients then "
        "have to remount when the server was restarted",
    )
    result.add_argument(
        "--lease",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="lease of a client (default: %(default)g)",
    )
    result.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="how long, after a restart, clients may take back what they held before anything new is granted "
        "(default: the lease and a fifth more); 0 is dangerous: clients that do not come back at once lose "
        "what they hold and had written but not saved",
    )
    result.add_argument(
        "--watch",
        choices=[watch.value for watch in Watch],
        default=Watch.AUTO.value,
        help="how to notice what other programs change directly in the exported directory "
        "(default: %(default)s, the best that is permitted)",
    )
    result.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: much more")
    result.add_argument("--version", action="version", version=f"nfsfuse {version('nfsfuse')}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; the exit status."""
    options = parser().parse_args(argv)
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(options.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        address = parse_address(options.listen)
    except ValueError as exc:
        parser().error(str(exc))
    keep_freed_buffers()
    os.umask(0)  # the program's comes with the request
    with ExitStack() as stack:
        try:
            service, listener, watcher = _start(options, address, stack)
        except (Refusal, StorageError, StateError, WatchError) as exc:
            print(f"nfsfuse-server: {exc}", file=sys.stderr)
            return 1
        collect_rarely()
        trio.run(_serve, service, listener, address, watcher)
    return 0


def _start(
    options: argparse.Namespace, address: Address, stack: ExitStack
) -> tuple[Service, socket.socket, Watcher | None]:
    """Everything that comes before serving; *stack* undoes it. What the last epoch was in the middle of is
    settled before anybody can connect."""
    export, state_path = _check_export(options.export, options.state_dir)
    lasting = not options.volatile_handles
    state = StateDirectory(state_path, reclaimable=lasting)
    stack.callback(state.close)
    secret = load_or_create_secret(state_path) if lasting else None
    storage, watcher = open_export(export, secret, Watch(options.watch))
    stack.callback(storage.close)
    if watcher is not None:
        stack.callback(watcher.close)
    try:
        recovered = recover(
            storage, state.registry, state.log, boot_id(), options.lease, reclaimable=lasting
        )
    except OSError as exc:
        raise Refusal(f"cannot use the state directory {state_path}: {exc}") from exc
    listener = _listen(address)
    stack.callback(listener.close)
    if isinstance(address, UnixAddress):
        stack.callback(Path(address.path).unlink, missing_ok=True)
    service_options = ServiceOptions(int(options.lease * 1000), options.grace)
    return Service(storage, service_options, recovered, secrets.token_bytes), listener, watcher


def _check_export(export: str, state_dir: str | None) -> tuple[Path, Path]:
    """The directory to export, and that of the state, which is made if it is not there."""
    path = Path(export)
    if not path.exists():
        raise Refusal(f"cannot export {export}: no such directory")
    if not path.is_dir():
        raise Refusal(f"cannot export {export}: not a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise Refusal(f"cannot export {export}: not readable by user {os.geteuid()}")
    path = path.resolve()
    state = Path(state_dir).resolve() if state_dir else _default_state_dir(path)
    if state.is_relative_to(path):
        raise Refusal(f"the state directory {state} is inside the export: clients could change it")
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise Refusal(f"cannot make the state directory {state}: {exc.strerror}") from exc
    return path, state


def _default_state_dir(export: Path) -> Path:
    name = f"{export.name or 'root'}-{blake2b(os.fsencode(export), digest_size=6).hexdigest()}"
    if os.geteuid() == 0:
        return Path("/var/lib/nfsfuse") / name
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "nfsfuse" / name


def _listen(address: Address) -> socket.socket:
    try:
        if isinstance(address, UnixAddress):
            return _listen_unix(address.path)
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, target = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
        return listener
    except OSError as exc:
        raise Refusal(f"cannot listen on {address}: {exc.strerror or exc}") from exc


def _listen_unix(path: str) -> socket.socket:
    """A Unix socket; one left behind by a server that was killed is replaced, one in use is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
    before = os.umask(0o177)  # only this user may connect
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


async def _serve(
    service: Service, listener: socket.socket, address: Address, watcher: Watcher | None
) -> None:
    async with trio.open_nursery() as nursery:
        if watcher is not None:
            nursery.start_soon(_follow, service, watcher)
        await nursery.start(_end_on_signal, nursery.cancel_scope)  # before anybody knows that it is up
        await nursery.start(service.run)
        if isinstance(address, TcpAddress):
            address = TcpAddress(*listener.getsockname()[:2])
        print(f"listening on {address}", flush=True)
        listener.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                connection, peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as exc:
                # Out of descriptors, say: those connected go on, and the next one may find room again.
                log.error("cannot accept a connection: %s", exc)
                await trio.sleep(1)
                continue
            name = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix client"
            nursery.start_soon(service.serve, SocketByteStream(connection), name)


async def _follow(service: Service, watcher: Watcher) -> None:
    """Recall what other programs change. Not before grace is over: it may concern what is reclaimed only
    then. Until then the kernel keeps it."""
    await service.recovery.granting.wait()
    await DirectChanges(service.tokens).follow(watcher)


async def _end_on_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            scope.cancel()
            return

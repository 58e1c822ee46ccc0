"""`nokv up` and `down`: a cluster of several nodes on this machine."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nokv.cli import output
from nokv.cli.main import one_line
from nokv.errors import ConfigError, NokvError, UsageError

if TYPE_CHECKING:
    from nokv.testing.cluster import LocalCluster
    from nokv.testing.folder import ClusterFolder, NodePorts, Store

RPC_PORT: Final = 7101
"""Of node 1; the following nodes have the following ports."""
PEER_PORT: Final = 7201
HTTP_PORT: Final = 7301

NODES: Final = 3

PARENT_POLL_S: Final = 0.25

_started: Final[dict[tuple[Path, int], subprocess.Popen[bytes]]] = {}
"""Nodes that this process started, and which go on when it ends; held so that nobody warns of it.
A program that calls `up` and `down` in one process reaps them."""


def default_folder() -> Path:
    """Return where `nokv up` keeps its cluster (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_DATA_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "nokv" / "local"


def parse_store(text: str, endpoint: str = "", region: str = "") -> Store:
    """Return the store that `local:/directory` or `s3://bucket/prefix` means; '' the default one.

    Raises:
        ConfigError: it means neither.
    """
    from nokv.testing.folder import Store

    if not text:
        return Store()
    if text.startswith("local:"):
        return Store("local", str(Path(text.removeprefix("local:")).absolute()))
    parts = urlsplit(text)
    if parts.scheme == "s3" and parts.netloc:
        prefix = parts.path.strip("/")
        return Store("s3", parts.netloc, endpoint, f"{prefix}/" if prefix else "", region)
    raise ConfigError(f"store {text!r}", hint="write local:/directory or s3://bucket/prefix")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options that name an object store."""
    parser.add_argument(
        "--store", default="", metavar="STORE", help="local:/directory or s3://bucket/prefix"
    )
    parser.add_argument("--endpoint", default="", help="URL of an S3-compatible service")
    parser.add_argument("--region", default="", help="of the bucket")


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"where the cluster lives (default: {default_folder()})",
    )


# ---------------------------------------------------------------- up


def add_up(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv up`."""
    _add_directory(parser)
    parser.add_argument("--nodes", type=int, default=None, help=f"1 to 7 (default: {NODES})")
    add_store(parser)
    parser.add_argument(
        "--free-ports", action="store_true", help="any free ports instead of 7101, 7201, 7301, ..."
    )
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="free ports and a temporary directory, in the foreground; ends with its parent",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=_up)


def _up(options: argparse.Namespace) -> int:
    if options.nodes is not None and not 1 <= options.nodes <= 7:
        raise UsageError(f"{options.nodes} nodes", hint="1 to 7")
    _need_server()
    if options.ephemeral:
        if options.dir is not None:
            raise UsageError("an ephemeral cluster has a directory of its own")
        return _ephemeral(options)
    from nokv.testing.cluster import READY_S

    path: Path = options.dir or default_folder()
    store = parse_store(options.store, options.endpoint, options.region)
    with _alone(path):
        folder = _found_or_made(path, store, options)
        for member in folder.members:
            if not folder.pid(member.node):
                _check_ports(member)
                _reap(folder, member.node)
                _started[folder.path, member.node] = folder.spawn(member.node)
    _wait_ready(folder, READY_S)
    _announce(folder, as_json=options.json)
    if folder.store.kind != "local":
        _warn_of_store(folder)
    return 0


def _reap(folder: ClusterFolder, node: int) -> None:
    """Take the exit status of a node that has ended, if this process started it."""
    process = _started.pop((folder.path, node), None)
    if process is not None:
        process.wait()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a directory (flock(2)): a second `up` there waits, and finds what the first one made."""
    path.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _found_or_made(path: Path, store: Store, options: argparse.Namespace) -> ClusterFolder:
    """Return the cluster in a directory; make it if there is none.

    Raises:
        ConfigError: the one that is there is not the one that is asked for.
    """
    from nokv.testing.folder import ClusterFolder, create

    if not (path / "cluster.json").exists():
        return create(path, _ports(options), store=store)
    folder = ClusterFolder(path)
    if options.store and folder.store != store:
        message = f"the cluster in {path} keeps its bodies elsewhere"
        raise ConfigError(message, hint="choose another --dir")
    nodes = len(folder.members)
    if options.nodes not in {None, nodes}:
        message = f"the cluster in {path} has {output.plural(nodes, 'node')}, not {options.nodes}"
        raise ConfigError(message, hint="leave --nodes out, or choose another --dir")
    return folder


def _warn_of_store(folder: ClusterFolder) -> None:
    """Say so if bodies can't be written: the nodes do well without, but no file can be put."""
    from nokv.cli.cluster_checks import check_store

    try:
        finding = asyncio.run(check_store(folder.addresses))
    except NokvError as error:
        sys.stderr.write(f"nokv: warning: the store was not looked at: {one_line(str(error))}\n")
        return
    if finding.level == "failure":
        text = f"{finding.subject} can't be used: {finding.text}"
        sys.stderr.write(f"nokv: warning: {one_line(text)}\n")
        if finding.advice:
            sys.stderr.write(f"hint: {one_line(finding.advice)}\n")


def _ports(options: argparse.Namespace) -> list[NodePorts]:
    from nokv.testing.folder import NodePorts
    from nokv.testing.ports import free_ports

    nodes = options.nodes or NODES
    if options.free_ports:
        ports = free_ports(3 * nodes)
        return [NodePorts(i + 1, *ports[3 * i : 3 * i + 3]) for i in range(nodes)]
    return [NodePorts(i + 1, PEER_PORT + i, RPC_PORT + i, HTTP_PORT + i) for i in range(nodes)]


def _check_ports(member: NodePorts) -> None:
    from nokv.testing.ports import is_free

    taken = [port for port in (member.peer, member.rpc, member.http) if not is_free(port)]
    if taken:
        message = f"port {taken[0]} of node {member.node} is in use"
        raise ConfigError(message, hint="stop what listens there, or use --free-ports")


def _wait_ready(folder: ClusterFolder, timeout_s: float) -> None:
    """Wait until all nodes are ready.

    Raises:
        ConfigError: one ended.
        DeadlineExceeded: one is not ready in time.
    """
    from nokv.errors import DeadlineExceeded
    from nokv.testing.cluster import POLL_S, ROUND_PROBE_S, probe

    end = time.monotonic() + timeout_s
    left = list(folder.members)
    while left:
        for member in list(left):
            if probe(member.http_address, "/readyz", ROUND_PROBE_S)[0] == 200:
                left.remove(member)
            elif not folder.pid(member.node):
                message = f"node {member.node} ended:\n{folder.log_tail(member.node, 3)}"
                raise ConfigError(message, hint=f"its log: {folder.log_path(member.node)}")
        if left and time.monotonic() > end:
            message = f"node {left[0].node} is not ready after {timeout_s:g} s"
            raise DeadlineExceeded(message, hint=f"its log: {folder.log_path(left[0].node)}")
        if left:
            time.sleep(POLL_S)


def _announce(folder: ClusterFolder, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(describe(folder)), flush=True)
        return
    nodes = output.plural(len(folder.members), "node runs", "nodes run")
    print(f"{nodes}; the files are in {folder.path}")
    print(f"export NOKV_CLUSTER={folder.addresses}")
    sys.stdout.flush()


def describe(folder: ClusterFolder) -> dict[str, Any]:
    """Return what `--json` says of a local cluster."""
    return {
        "cluster": folder.addresses,
        "directory": str(folder.path),
        "store": folder.store._asdict(),
        "nodes": [
            {
                "node": member.node,
                "pid": folder.pid(member.node),
                "rpc": member.rpc_address,
                "http": member.http_address,
                "log": str(folder.log_path(member.node)),
            }
            for member in folder.members
        ],
    }


def _ephemeral(options: argparse.Namespace) -> int:
    """Run a cluster until told to stop, or until whoever started this is gone."""
    parent = os.getppid()
    _on_signals(_interrupt)
    from nokv.testing.cluster import LocalCluster

    store = parse_store(options.store, options.endpoint, options.region)
    given = None if options.store == "" else store
    try:
        with LocalCluster.start(options.nodes or NODES, store=given) as cluster:
            _announce(cluster.folder, as_json=options.json)
            _watch(cluster, parent)
    except KeyboardInterrupt:
        return 0
    finally:
        _on_signals(signal.SIG_IGN)
    return 0


def _watch(cluster: LocalCluster, parent: int) -> None:
    while os.getppid() == parent:
        for node in cluster.nodes:
            if not cluster.is_running(node):
                tail = cluster.folder.log_tail(node, 3)
                raise ConfigError(f"node {node} ended:\n{tail}")
        time.sleep(PARENT_POLL_S)


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _need_server() -> None:
    """Return if the packages that a node needs are installed.

    Raises:
        ConfigError: they are not.
    """
    try:
        import nokv.server.shard
    except ImportError as error:
        message = f"the server's packages are not installed: {error}"
        raise ConfigError(message, hint="pip install 'nokv[server]'") from None
    del nokv


# ---------------------------------------------------------------- down


def add_down(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv down`."""
    _add_directory(parser)
    parser.add_argument(
        "--remove", action="store_true", help="remove the cluster with all that is in it"
    )
    parser.set_defaults(run=_down)


def _down(options: argparse.Namespace) -> int:
    from nokv.testing.folder import ClusterFolder

    folder = ClusterFolder(options.dir or default_folder())
    stopped = folder.stop()
    for member in folder.members:
        _reap(folder, member.node)
    print(_stopped(len(stopped), len(folder.members), folder.path))
    if options.remove:
        remove(folder)
        print(f"removed {folder.path}")
    return 0


def _stopped(stopped: int, nodes: int, path: Path) -> str:
    """Return what is said of the nodes of a cluster after they were told to stop."""
    if not stopped:
        return f"no node was running in {path}"
    idle = nodes - stopped
    rest = f"; {output.plural(idle, 'was', 'were')} not running" if idle else ""
    return f"stopped {output.plural(stopped, 'node')} in {path}{rest}"


def remove(folder: ClusterFolder) -> None:
    """Remove what `nokv up` made in a folder, and the folder if nothing else is in it."""
    import shutil

    for member in folder.members:
        shutil.rmtree(folder.node_path(member.node), ignore_errors=True)
    if folder.store.kind == "local" and folder.store.bucket == str(folder.path / "store"):
        shutil.rmtree(folder.path / "store", ignore_errors=True)
    (folder.path / "cluster.json").unlink(missing_ok=True)
    if not any(folder.path.iterdir()):
        folder.path.rmdir()

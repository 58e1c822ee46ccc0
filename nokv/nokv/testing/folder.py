"""A local cluster in a folder: its nodes' files, and starting and stopping their processes.

    cluster.json       the members, their ports and the store
    node-1/node.toml   as `nokv serve` reads it
    node-1/data/       the node's data directory
    node-1/log         what its processes wrote to standard error
    node-1/running     locked (flock(2)) by the node's processes; holds the supervisor's number
    certs/             with TLS: the authority, and certificates of the nodes and of a client
    store/             object bodies, where the store is a local one

`nokv up` and `LocalCluster` are two ways to use it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nokv.errors import ConfigError, DataDirectoryError, Unavailable

FORMAT: Final = 1
HOST: Final = "127.0.0.1"
CERTS: Final = "certs"
CLIENT: Final = "local"
"""The client whose certificate a cluster with TLS comes with."""
POLL_S: Final = 0.02
LOCK_TRIES: Final = 100
GONE_S: Final = 30.0
"""Processes that were told to end, or killed, are gone by then."""
LOG_TAIL_BYTES: Final = 64 * 1024


class NodePorts(NamedTuple):
    """A member of a local cluster and its loopback ports."""

    node: int
    peer: int
    rpc: int
    http: int
    peer_proxy: int = 0
    rpc_proxy: int = 0
    """Where others reach the ports, if something stands between; 0: directly."""

    @property
    def peer_address(self) -> str:
        """Where the other nodes reach it."""
        return f"{HOST}:{self.peer_proxy or self.peer}"

    @property
    def rpc_address(self) -> str:
        """Where clients reach it."""
        return f"{HOST}:{self.rpc_proxy or self.rpc}"

    @property
    def http_address(self) -> str:
        """Where its probes and metrics are."""
        return f"{HOST}:{self.http}"


class Store(NamedTuple):
    """Where a local cluster keeps bodies; empty strings as in `nokv.server.init.StoreSpec`."""

    kind: str = "local"
    bucket: str = ""
    """Empty with kind 'local': the folder's own `store`."""
    endpoint: str = ""
    prefix: str = ""
    region: str = ""


class ClusterFolder:
    """A folder made by `create`. All methods may be called from any process.

    Raises:
        DataDirectoryError: the folder holds no cluster.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path.absolute()
        try:
            value = json.loads((self.path / "cluster.json").read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                message = f"{self.path} has format {value['format']}; this program speaks {FORMAT}"
                raise DataDirectoryError(message)
            self.members = tuple(NodePorts(**member) for member in value["members"])
            self.store: Final = Store(**value["store"])
        except FileNotFoundError:
            message = f"{self.path} holds no local cluster"
            raise DataDirectoryError(message, hint="make one with: nokv up") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{self.path}/cluster.json: {error}"
            raise DataDirectoryError(message, hint="remove the folder and make it anew") from None

    @property
    def addresses(self) -> str:
        """What NOKV_CLUSTER is for it."""
        return ",".join(member.rpc_address for member in self.members)

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment needs for it: NOKV_CLUSTER, and the files of its TLS."""
        found = {"NOKV_CLUSTER": self.addresses}
        certs = self.path / CERTS
        if certs.is_dir():
            found["NOKV_TLS_CA"] = str(certs / "ca.crt")
            found["NOKV_TLS_CERT"] = str(certs / f"client-{CLIENT}.crt")
            found["NOKV_TLS_KEY"] = str(certs / f"client-{CLIENT}.key")
        return found

    def add(self, member: NodePorts, settings: Mapping[str, str | int | bool] | None = None) -> int:
        """Make the files of a further node; return its incarnation.

        It serves once it was started and added to the running cluster: `LocalCluster.add_node`.

        Raises:
            ConfigError, DataDirectoryError: the number or a setting is wrong, or it exists.
        """
        from nokv.server.init import export_join_file, join

        folder = self.node_path(member.node)
        folder.mkdir()
        tls = (self.path / CERTS).is_dir()
        config, join_file = folder / "node.toml", folder / "join.json"
        config.write_text(_node_toml(member, settings or {}, tls=tls), encoding="utf-8")
        export_join_file(self.node_path(self.members[0].node) / "node.toml", join_file)
        made = join(config, join_file, node=member.node)
        join_file.unlink()
        if tls:
            from nokv.server import certs

            certs.make_node(self.path / CERTS, member.node)
        self._write((*self.members, member))
        return made.incarnation

    def drop(self, node: int) -> None:
        """Forget a node that was removed from the cluster; its files stay."""
        self._write(tuple(member for member in self.members if member.node != node))

    def _write(self, members: tuple[NodePorts, ...]) -> None:
        _write_cluster(self.path, members, self.store)
        self.members = members

    def member(self, node: int) -> NodePorts:
        """Return a member by its number.

        Raises:
            ConfigError: there is none.
        """
        for member in self.members:
            if member.node == node:
                return member
        numbers = ", ".join(str(member.node) for member in self.members)
        raise ConfigError(f"no node {node}", hint=f"the cluster has {numbers}")

    def node_path(self, node: int) -> Path:
        """Return a node's folder."""
        return self.path / f"node-{node}"

    def log_path(self, node: int) -> Path:
        """Return the file that a node's log lines go to."""
        return self.node_path(node) / "log"

    def log_tail(self, node: int, lines: int = 8) -> str:
        """Return the last lines of a node's log."""
        try:
            with self.log_path(node).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    # ------------------------------------------------------------ processes

    def spawn(
        self, node: int, *, lifeline_fd: int = -1, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a node's processes in a session of their own and return at once.

        With `lifeline_fd`, the read end of a pipe, they end when its other end does. `environ` is
        added to their environment.

        Raises:
            DataDirectoryError: the node runs already.
        """
        self.member(node)
        folder = self.node_path(node)
        lock_fd = os.open(folder / "running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(lock_fd):
                message = f"node {node} of {self.path} runs already"
                raise DataDirectoryError(message, hint="stop it first: nokv down")
            os.ftruncate(lock_fd, 0)
            command = [sys.executable, "-m", "nokv.cli", "serve"]
            command += ["--config", str(folder / "node.toml")]
            fds = [lock_fd]
            if lifeline_fd >= 0:
                command += ["--lifeline", str(lifeline_fd)]
                fds.append(lifeline_fd)
            with self.log_path(node).open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=_node_environment() | dict(environ or {}),
                    pass_fds=fds,
                    start_new_session=True,
                )
            os.pwrite(lock_fd, f"{process.pid}\n".encode(), 0)
            return process
        finally:
            # The node's copy of the descriptor keeps the lock.
            os.close(lock_fd)

    def pid(self, node: int) -> int:
        """Return the number of the node's supervisor, which leads its process group; 0: none runs.

        The lock says whether it runs, so a number that was given to another process is never
        returned.
        """
        try:
            fd = os.open(self.node_path(node) / "running", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            return int(text) if text.isdigit() else 0
        else:
            return 0
        finally:
            os.close(fd)

    def signal(self, node: int, number: int) -> bool:
        """Send a signal to all processes of a node; False: it does not run."""
        pid = self.pid(node)
        if not pid:
            return False
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait_gone(self, node: int, timeout_s: float = GONE_S) -> None:
        """Wait until no process holds the node's data directory, so that it can be started.

        Raises:
            Unavailable: one still does.
        """
        from nokv.server.datadir import LOCK_FILE

        end = time.monotonic() + timeout_s
        while self.pid(node) or not is_unlocked(self.node_path(node) / "data" / LOCK_FILE):
            if time.monotonic() > end:
                message = f"node {node} of {self.path} still runs"
                raise Unavailable(message, hint="look at its processes: ps -ef | grep nokv")
            time.sleep(POLL_S)

    def stop(self, nodes: Sequence[int] = (), timeout_s: float = 15.0) -> list[int]:
        """Stop nodes (all of them) gracefully, then by force; return those that had run.

        Raises:
            Unavailable: one would not even be killed.
        """
        chosen = list(nodes) or [member.node for member in self.members]
        # The supervisor alone is told: it stops its processes in their order.
        running = [node for node in chosen if (pid := self.pid(node)) and _terminate(pid)]
        left = self._wait_stopped(running, timeout_s)
        for node in left:
            self.signal(node, signal.SIGKILL)
        left = self._wait_stopped(left, timeout_s)
        if left:
            message = f"nodes {left} of {self.path} do not end"
            raise Unavailable(message, hint="look at their processes: ps -ef | grep nokv")
        return running

    def _wait_stopped(self, nodes: Sequence[int], timeout_s: float) -> list[int]:
        end = time.monotonic() + timeout_s
        left = list(nodes)
        while left and time.monotonic() < end:
            left = [node for node in left if self.pid(node)]
            if left:
                time.sleep(POLL_S)
        return left


def _locked(fd: int) -> bool:
    """Take the lock; whoever only looks whether it is taken holds it for a moment too."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        else:
            return True
    return False


def is_unlocked(lock: Path) -> bool:
    """Return whether no process holds a lock file (flock(2))."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _terminate(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        return True
    return False


def _node_environment() -> dict[str, str]:
    """Return the environment of a node: what `node.toml` says is not overridden by the caller's."""
    return {key: value for key, value in os.environ.items() if not key.startswith("NOKV_NODE_")}


def create(
    path: Path,
    members: Sequence[NodePorts],
    *,
    store: Store | None = None,
    settings: Mapping[str, str | int | bool] | None = None,
    tls: bool = False,
) -> ClusterFolder:
    """Initialise a cluster of one to seven nodes in a new folder; nothing is started.

    `settings` go into every `node.toml`: `{"disk.reserve_bytes": 0}`. With `tls` an authority and
    the certificates of the nodes and of one client are made in `certs`.

    Raises:
        DataDirectoryError: the folder holds a cluster already.
        ConfigError: a setting is wrong.
    """
    from nokv.server.datadir import MemberAddress
    from nokv.server.init import StoreSpec, init_cluster, join

    path = path.absolute()
    if (path / "cluster.json").exists():
        message = f"{path} holds a cluster already"
        raise DataDirectoryError(message, hint="start it with: nokv up")
    path.mkdir(parents=True, exist_ok=True)
    store = store or Store()
    if store.kind == "local" and not store.bucket:
        store = store._replace(bucket=str(path / "store"))
    addresses = [
        MemberAddress(member.node, member.peer_address, member.rpc_address) for member in members
    ]
    join_file = path / "join.json"
    for member in members:
        folder = path / f"node-{member.node}"
        folder.mkdir(exist_ok=True)
        config = folder / "node.toml"
        config.write_text(_node_toml(member, settings or {}, tls=tls), encoding="utf-8")
        if member is members[0]:
            spec = StoreSpec(**store._asdict())
            made = init_cluster(
                config,
                node=member.node,
                members=addresses,
                store=spec,
                join_file=join_file,
            )
        else:
            join(config, join_file, node=member.node)
    join_file.unlink(missing_ok=True)
    if tls:
        _make_certificates(path / CERTS, made.cluster.cluster, members)
    _write_cluster(path, members, store)
    return ClusterFolder(path)


def adopt(
    path: Path, member: NodePorts, settings: Mapping[str, str | int | bool] | None = None
) -> ClusterFolder:
    """Make the folder of a cluster of one around a data directory that comes from elsewhere.

    It belongs at `node_path(member.node) / "data"`; clients are told of the new ports.
    """
    folder = path / f"node-{member.node}"
    folder.mkdir(parents=True)
    own = {"peer.advertise": member.peer_address, "rpc.advertise": member.rpc_address}
    text = _node_toml(member, own | dict(settings or {}))
    (folder / "node.toml").write_text(text, encoding="utf-8")
    _write_cluster(path, [member], Store())
    return ClusterFolder(path)


def _write_cluster(path: Path, members: Sequence[NodePorts], store: Store) -> None:
    text = {
        "format": FORMAT,
        "members": [member._asdict() for member in members],
        "store": store._asdict(),
    }
    new = path / "cluster.json.new"
    new.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    new.replace(path / "cluster.json")


def _make_certificates(folder: Path, cluster: str, members: Sequence[NodePorts]) -> None:
    from nokv.server import certs

    certs.make_authority(folder, cluster)
    for member in members:
        certs.make_node(folder, member.node)
    certs.make_client(folder, CLIENT)


def _node_toml(
    member: NodePorts, settings: Mapping[str, str | int | bool], *, tls: bool = False
) -> str:
    values: dict[str, str | int | bool] = {
        "data_dir": "data",
        "peer.listen": f"{HOST}:{member.peer}",
        "rpc.listen": f"{HOST}:{member.rpc}",
        "http.listen": member.http_address,
    }
    if member.peer_proxy:
        values["peer.advertise"] = member.peer_address
    if member.rpc_proxy:
        values["rpc.advertise"] = member.rpc_address
    if tls:
        values["tls.ca"] = f"../{CERTS}/ca.crt"
        values["tls.cert"] = f"../{CERTS}/node-{member.node}.crt"
        values["tls.key"] = f"../{CERTS}/node-{member.node}.key"
    values |= settings
    sections: dict[str, list[str]] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        # A JSON string, number or boolean is one in TOML too.
        sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    lines = sections.pop("", [])
    for section, own in sections.items():
        lines += ["", f"[{section}]", *own]
    return "\n".join(lines) + "\n"

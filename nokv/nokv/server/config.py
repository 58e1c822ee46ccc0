"""A node's configuration: `node.toml`, then `NOKV_NODE_*`, then flags; the later one wins.

Everything is checked before anything starts. A wrong value names where it came from, its key and
what is expected there; an unknown key names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from nokv.errors import ConfigError, InvalidArgument
from nokv.wire.address import is_loopback, parse_address

ENV_PREFIX: Final = "NOKV_NODE_"

MIB: Final = 1 << 20

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Millis = Annotated[int, msgspec.Meta(ge=1, le=31_536_000_000)]
"""Milliseconds, up to a year."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of `node.toml`."""


class Endpoint(_Section, frozen=True, kw_only=True):
    """Where a port is bound, and where others reach it."""

    listen: str
    """`host:port` to bind."""
    advertise: str = ""
    """`host:port` that others dial; empty: what the member list says of this node."""


class RpcConfig(Endpoint, frozen=True, kw_only=True):
    """The port that clients talk to, and what it takes before it refuses."""

    connections_max: Count = 1024
    """Open connections; a further one is closed at once."""
    requests_per_connection_max: Count = 2048
    """Unanswered requests of one connection; at it, the node stops reading from that connection."""
    requests_max: Count = 16_384
    """Unanswered requests of all connections; above it a request is answered Overloaded."""
    request_bytes_max: Annotated[int, msgspec.Meta(ge=16 * MIB, le=1 << 40)] = 256 * MIB
    """Bytes of all unanswered requests; above it a request is answered Overloaded."""
    deadline_ms: Millis = 30_000
    """Of a request that states none, and the most that one may state."""
    hello_ms: Millis = 5_000
    """A connection that has not said hello by then is closed."""


class HttpConfig(_Section, frozen=True, kw_only=True):
    """The port for probes and metrics. Read-only."""

    listen: str = ""
    """`host:port` to bind, port 0 for any free one; empty: no HTTP."""
    connections_max: Count = 64
    ready_lag_ms: Millis = 3_000
    """A follower that has not confirmed for so long that it is up to date is not ready."""


class TimingConfig(_Section, frozen=True, kw_only=True):
    """Periods of the replication group; the same on every node."""

    heartbeat_ms: Millis = 100
    election_min_ms: Millis = 600
    election_max_ms: Millis = 1200
    commit_interval_ms: Millis = 500
    """The state is committed to its store so often while it changes."""
    stop_ms: Millis = 5_000
    """A graceful stop waits so long for what is in flight."""


class LogConfig(_Section, frozen=True, kw_only=True):
    """The replicated log."""

    segment_bytes: Annotated[int, msgspec.Meta(ge=8 * MIB, le=1 << 40)] = 64 * MIB
    keep_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 256 * MIB
    """Log kept for slow followers."""


class ImagesConfig(_Section, frozen=True, kw_only=True):
    """State images, by which a node that lags too far catches up."""

    bytes_per_second: Annotated[int, msgspec.Meta(ge=64 << 10, le=1 << 40)] = 32 * MIB
    """At most so much leaves this node, all receivers together."""
    log_bytes: Annotated[int, msgspec.Meta(ge=16 * MIB, le=1 << 50)] = 1024 * MIB
    """Log kept while an image is on its way, at most; then the image is begun anew."""


class DiskConfig(_Section, frozen=True, kw_only=True):
    """Free space."""

    reserve_bytes: Bytes = 512 * MIB
    """Below it commands that grow the state are refused with NoSpace; below half of it all are.
    Should be at least twice `log.segment_bytes`: see `reserve_warning`."""


class LoggingConfig(_Section, frozen=True, kw_only=True):
    """What the node says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "logfmt"] = "json"


class SessionsConfig(_Section, frozen=True, kw_only=True):
    """What the leader does for sessions and the feed."""

    marks_interval_ms: Millis = 1_000
    """Changed marks of all sessions go into the log in one command so often."""
    events_keep_ms: Millis = 86_400_000
    """Events older than this, in cluster time, are trimmed."""
    events_keep_bytes: Annotated[int, msgspec.Meta(ge=MIB, le=1 << 50)] = 1024 * MIB
    """Stored events that are kept at most: the oldest are trimmed, however young."""
    reap_limit: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 512
    """Records that one step of background work may remove."""
    reap_busy_per_s: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 10_500
    """Removals of background work, of about two records each, in a second in which others send
    commands too; without them it goes as fast as it can."""


class WorkerConfig(_Section, frozen=True, kw_only=True):
    """The collector and the store's administration."""

    enabled: bool = True
    interval_ms: Millis = 1_000
    """Pause between two rounds of collection."""
    grace_ms: Millis = 900_000
    """Cluster time after which what was dropped or abandoned may be deleted from the store. Must
    exceed the longest single PUT of any client."""
    collect_busy_per_s: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 5_000
    """Ended bodies that are collected in a second in which others send commands too."""
    sweep_interval_ms: Millis = 60_000
    """Pause between two rounds over the uploads of dead sessions."""
    stale_upload_ms: Millis = 86_400_000
    """Remains of uploads that the store itself keeps go after this, by its clock."""
    digest: bool = True
    """Digest the state at each checkpoint."""


class TlsConfig(_Section, frozen=True, kw_only=True):
    """Mutual TLS on the peer and the RPC port. All three or none; read when the node starts."""

    ca: str = ""
    """PEM file of the authority that signs the cluster's certificates; relative to this file."""
    cert: str = ""
    """PEM file of this node's certificate, with what is between it and the authority."""
    key: str = ""
    """PEM file of its key."""

    @property
    def enabled(self) -> bool:
        """Whether the node speaks TLS, and so may be reached from other machines."""
        return bool(self.ca)


class BackupConfig(_Section, frozen=True, kw_only=True):
    """Backups that the leader's worker makes by itself."""

    every_ms: Annotated[int, msgspec.Meta(ge=0, le=31_536_000_000)] = 0
    """One in each period of this length, counted from 1970; 0: none."""
    keep_ms: Millis = 2_592_000_000
    """Retention, in cluster time: 30 days."""
    to: str = "bucket"
    """'bucket', or 'file:' and a directory of the leader's machine."""


class MemberConfig(_Section, frozen=True, kw_only=True):
    """Where one member is reached, where that differs from what `nokv init` wrote."""

    peer: str
    rpc: str


class NodeConfig(_Section, frozen=True, kw_only=True):
    """All of `node.toml`."""

    data_dir: str
    """Made by `nokv init`; relative to the file."""
    peer: Endpoint
    rpc: RpcConfig
    http: HttpConfig = HttpConfig()
    timing: TimingConfig = TimingConfig()
    log: LogConfig = LogConfig()
    disk: DiskConfig = DiskConfig()
    images: ImagesConfig = ImagesConfig()
    logging: LoggingConfig = LoggingConfig()
    sessions: SessionsConfig = SessionsConfig()
    worker: WorkerConfig = WorkerConfig()
    backup: BackupConfig = BackupConfig()
    tls: TlsConfig = TlsConfig()
    members: dict[str, MemberConfig] = {}
    """By node number. Empty: the addresses that `nokv init` wrote."""


def load(
    path: Path,
    overrides: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> NodeConfig:
    """Return the node's configuration; `data_dir` comes back absolute.

    `overrides` are flags, `{"rpc.listen": "127.0.0.1:7101"}`; `environ` is the process's own
    environment unless given. Raises ConfigError.
    """
    table, sources = _read_file(path)
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            _set(table, sources, _key_of_env(name), text, f"environment variable {name}")
    for key, text in (overrides or {}).items():
        if key not in _LEAVES:
            raise ConfigError(f"no setting {key!r} exists", hint=_nearest(key, _LEAVES))
        _set(table, sources, key, text, f"flag for {key}")
    _refuse_unknown(table, path)
    try:
        config = msgspec.convert(table, NodeConfig)
    except msgspec.ValidationError as error:
        raise _typed(error, sources, path) from None
    config = _with_absolute_paths(config, path.resolve().parent)
    _check_values(config, sources, path)
    return config


def reserve_warning(config: NodeConfig) -> str:
    """Return what is wrong with a reserve that is too small to protect anything, or empty.

    A segment of the log is allocated whole. Unless half of the reserve, which nothing but what is
    under way may use, has room for one, the disk fills up before anything is refused, and the
    first write that fails ends the node.
    """
    enough_bytes = 2 * config.log.segment_bytes
    if config.disk.reserve_bytes >= enough_bytes:
        return ""
    return (
        f"disk.reserve_bytes = {config.disk.reserve_bytes} does not protect this node from a full"
        f" disk, which ends it: set at least {enough_bytes}, twice log.segment_bytes"
    )


def _with_absolute_paths(config: NodeConfig, folder: Path) -> NodeConfig:
    """Resolve what is relative to the file."""
    tls = config.tls
    places = {name: getattr(tls, name) for name in ("ca", "cert", "key")}
    return msgspec.structs.replace(
        config,
        data_dir=str((folder / config.data_dir).absolute()),
        tls=TlsConfig(
            **{name: str((folder / place).absolute()) for name, place in places.items() if place}
        ),
    )


def check(path: Path) -> NodeConfig:
    """Return the configuration that `nokv serve --config PATH` would use; raise ConfigError."""
    return load(path)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise ConfigError(message, hint="name the node's file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"{path}: not TOML: {error}"
        raise ConfigError(message) from None
    return table, {}


def _leaves() -> dict[str, Any]:
    """Return `section.key` to type, for every setting that has a fixed name."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(NodeConfig):
        if isinstance(field.type, type) and issubclass(field.type, _Section):
            for inner in msgspec.structs.fields(field.type):
                found[f"{field.name}.{inner.name}"] = inner.type
        elif field.name != "members":
            found[field.name] = field.type
    return found


_LEAVES: Final = _leaves()
_BY_ENV: Final = {ENV_PREFIX + key.upper().replace(".", "_"): key for key in _LEAVES}
assert len(_BY_ENV) == len(_LEAVES), "two settings share an environment variable"


def _key_of_env(name: str) -> str:
    key = _BY_ENV.get(name)
    if key is None:
        raise ConfigError(f"environment variable {name} sets nothing", hint=_nearest(name, _BY_ENV))
    return key


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _set(table: dict[str, Any], sources: dict[str, str], key: str, text: str, source: str) -> None:
    """Put a text from outside the file under `key`, converted to the setting's type."""
    section, _, name = key.rpartition(".")
    target = table.setdefault(section, {}) if section else table
    sources[key] = source
    if not isinstance(target, dict):
        return  # the file is wrong there, and conversion says so
    try:
        target[name] = msgspec.convert(text, _LEAVES[key], strict=False)
    except msgspec.ValidationError as error:
        raise _wrong(source, key, str(error)) from None


def _refuse_unknown(table: Mapping[str, Any], path: Path) -> None:
    top = {field.name: field.type for field in msgspec.structs.fields(NodeConfig)}
    for name, value in table.items():
        if name not in top:
            message = f"{path}: {name}: no such setting"
            raise ConfigError(message, hint=_nearest(name, top | _LEAVES))
        kind = top[name]
        if not isinstance(value, dict):
            continue
        tables: list[tuple[str, Any, type[_Section]]]
        if name == "members":
            tables = [(f"members.{node}", inner, MemberConfig) for node, inner in value.items()]
        elif isinstance(kind, type) and issubclass(kind, _Section):
            tables = [(name, value, kind)]
        else:
            continue
        for where, inner, section in tables:
            known = {field.name for field in msgspec.structs.fields(section)}
            for key in inner if isinstance(inner, dict) else ():
                if key not in known:
                    message = f"{path}: {where}.{key}: no such setting"
                    raise ConfigError(message, hint=_nearest(key, dict.fromkeys(known)))


_AT: Final = re.compile(r"^(?P<what>.*?) - at `\$\.?(?P<key>.*)`$", re.DOTALL)


def _typed(error: msgspec.ValidationError, sources: Mapping[str, str], path: Path) -> ConfigError:
    match = _AT.match(str(error))
    what, key = (match["what"], match["key"]) if match else (str(error), "")
    missing = re.match(r"Object missing required field `(.*)`", what)
    if missing:
        key = f"{key}.{missing[1]}" if key else missing[1]
        return ConfigError(f"{path}: {key}: missing", hint=f'write {key} = "..."')
    return _wrong(sources.get(key, str(path)), key, what)


def _wrong(source: str, key: str, what: str) -> ConfigError:
    return ConfigError(f"{source}: {key}: {what.replace('`', '')}", hint=_expected(key))


def _expected(key: str) -> str:
    kind = _LEAVES.get(key)
    if kind is None:
        return ""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is Annotated:
        meta = typing.get_args(kind)[1]
        return f"an integer of {meta.ge} to {meta.le}"
    return {str: "a string", bool: "true or false"}.get(kind, "")


def _check_values(config: NodeConfig, sources: Mapping[str, str], path: Path) -> None:
    """Check what types can't say: addresses, loopback, and limits that depend on each other."""
    addresses = {
        "peer.listen": config.peer.listen,
        "peer.advertise": config.peer.advertise,
        "rpc.listen": config.rpc.listen,
        "rpc.advertise": config.rpc.advertise,
        "http.listen": config.http.listen,
    }
    for node, member in config.members.items():
        if not (node.isascii() and node.isdigit() and 1 <= int(node) <= 65_535):
            message = f"{path}: members.{node}: not the number of a node"
            raise ConfigError(message, hint="write [members.1], [members.2], ...")
        addresses[f"members.{node}.peer"] = member.peer
        addresses[f"members.{node}.rpc"] = member.rpc
    for key, text in addresses.items():
        if text or key in {"peer.listen", "rpc.listen"}:
            # The pages for probes and metrics are in the clear, and so always for loopback only.
            tls = config.tls.enabled and key != "http.listen"
            check_address(text, f"{sources.get(key, str(path))}: {key}", tls=tls)
    tls_files = (config.tls.ca, config.tls.cert, config.tls.key)
    if any(tls_files) and not all(tls_files):
        message = f"{path}: tls: ca, cert and key belong together, and one is missing"
        raise ConfigError(message, hint="see nokv certs")
    _check_listens(config, sources, path)
    timing = config.timing
    if not timing.heartbeat_ms * 3 < timing.election_min_ms < timing.election_max_ms:
        message = f"{path}: timing: 3 * heartbeat_ms < election_min_ms < election_max_ms is false"
        raise ConfigError(message)


def _check_listens(config: NodeConfig, sources: Mapping[str, str], path: Path) -> None:
    """Refuse two servers on one port; port 0 is any free one."""
    taken: dict[int, str] = {}
    for key, text in (
        ("peer.listen", config.peer.listen),
        ("rpc.listen", config.rpc.listen),
        ("http.listen", config.http.listen),
    ):
        port = parse_address(text)[1] if text else 0
        if port and port in taken:
            message = f"{sources.get(key, str(path))}: {key}: port {port} is {taken[port]}'s"
            raise ConfigError(message, hint="give peer, rpc and http a port each")
        taken[port] = key


def check_address(address: str, where: str, *, tls: bool) -> None:
    """Raise ConfigError unless `address` is one, and on loopback if there is no TLS."""
    try:
        host, _ = parse_address(address)
    except InvalidArgument as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    if not tls and not is_loopback(host):
        raise ConfigError(
            f"{where}: {address} is not a loopback address",
            hint="a port without TLS is for loopback only: set [tls] (nokv certs), or 127.0.0.1",
        )

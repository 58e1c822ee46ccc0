"""`nokv init`: mint a cluster at its first node, and the other first members from a join file.

Nothing here starts a node or touches the network. The shared part of what the first node mints
goes into a *join file* that the operator carries to the other machines; it holds the worker's
token, so it is readable by its owner only and should be removed afterwards.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from nokv.errors import ConfigError, DataDirectoryError
from nokv.server.config import NodeConfig, check_address, load
from nokv.server.datadir import (
    FORMAT,
    IDENTITY_FILE,
    ClusterFile,
    MemberAddress,
    NodeFile,
    log_path,
    make_directory,
    read_identity,
    replication_identity,
    state_path,
    write_durably,
)
from nokv.types.limits import BLOCK_BYTES, CHUNK_BYTES, INLINE_BYTES_CAP, INLINE_BYTES_MAX
from nokv.types.values import Volume
from nokv.wire.address import parse_address
from nokv_replication import DiskFailed, GroupConfig
from nokv_replication.bootstrap import NODES_MAX
from nokv_replication.disk import OsDisk
from nokv_replication.roster import initialise

NODE_MAX: Final = 65_535
"""The largest node number."""

_SEEDED: Final = random.Random(secrets.randbits(128))
"""Draws the log's salts."""


class StoreSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where a new volume keeps its bodies. Credentials come from each client's own AWS chain."""

    kind: str
    """'local' or 's3'."""
    endpoint: str = ""
    """URL of an S3 service; empty: AWS itself."""
    bucket: str = ""
    """Bucket name; of a local store its directory, absolute."""
    prefix: str = ""
    region: str = ""
    inline_max: int = INLINE_BYTES_MAX
    """Bodies up to so many bytes live in the metadata."""


def init_cluster(
    config_path: Path,
    *,
    node: int,
    members: Sequence[MemberAddress],
    store: StoreSpec,
    join_file: Path | None = None,
    overrides: Mapping[str, str] | None = None,
) -> NodeFile:
    """Mint a cluster and initialise its first node's data directory.

    Writes `join_file` for the other members first, so that a cut in between leaves nothing that
    serves. Raises ConfigError for arguments that make no cluster, DataDirectoryError if the
    directory is initialised or not writable.
    """
    config = load(config_path, overrides)
    cluster = ClusterFile(
        cluster=secrets.token_hex(16),
        volume=_volume(store),
        worker_token=secrets.token_hex(32),
        members=_members(members, tls=config.tls.enabled),
        root_uid=os.getuid(),
        root_gid=os.getgid(),
    )
    identity = _identity(cluster, node, config)
    if len(cluster.members) > 1 and join_file is None:
        message = f"{len(cluster.members)} members, and no join file to initialise the others from"
        raise ConfigError(message, hint="name one with --join-file")
    _refuse_initialised(Path(config.data_dir))
    if join_file is not None:
        write_durably(join_file, msgspec.json.format(msgspec.json.encode(cluster), indent=2))
    _write(Path(config.data_dir), identity, config)
    return identity


def join(
    config_path: Path,
    join_file: Path,
    *,
    node: int,
    overrides: Mapping[str, str] | None = None,
) -> NodeFile:
    """Initialise another node's data directory from a join file.

    A number that the file lists is a first member's. A larger one is a new member's, which serves
    once `nokv member add` has named it, with its incarnation, to the cluster (`added_as`).

    Raises ConfigError for a file that is none, for a number that can't be a new member's, or for a
    first member at ports that the configuration does not listen on; DataDirectoryError if the
    directory is initialised or not writable.
    """
    config = load(config_path, overrides)
    try:
        cluster = msgspec.json.decode(join_file.read_bytes(), type=ClusterFile)
    except OSError as error:
        raise ConfigError(f"{join_file}: {error.strerror}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message = f"{join_file} is no join file: {error}"
        raise ConfigError(message, hint="nokv init at the first node writes one") from None
    if cluster.format != FORMAT:
        raise ConfigError(f"{join_file} has format {cluster.format}; this program speaks {FORMAT}")
    _members(cluster.members, tls=config.tls.enabled)
    if node > max(member.node for member in cluster.members):
        identity = _new_member(cluster, node, config)
    else:
        identity = _identity(cluster, node, config)
    _refuse_initialised(Path(config.data_dir))
    _write(Path(config.data_dir), identity, config)
    return identity


def export_join_file(config_path: Path, join_file: Path) -> NodeFile:
    """Write the join file of an initialised node's cluster; return the node's identity.

    Raises ConfigError, DataDirectoryError.
    """
    identity = read_identity(Path(load(config_path).data_dir))
    data = msgspec.json.format(msgspec.json.encode(identity.cluster), indent=2)
    write_durably(join_file.absolute(), data)
    return identity


def added_as(config_path: Path, overrides: Mapping[str, str] | None = None) -> MemberAddress:
    """Return where a node's configuration says that others reach it: `advertise`, or `listen`.

    Raises ConfigError for a port that the system would choose: nobody could be told of it.
    """
    config = load(config_path, overrides)
    identity = read_identity(Path(config.data_dir))
    peer = config.peer.advertise or config.peer.listen
    rpc = config.rpc.advertise or config.rpc.listen
    for key, address in (("peer", peer), ("rpc", rpc)):
        if not parse_address(address)[1]:
            message = f"{key}.listen is {address}: the others can't be told of any free port"
            raise ConfigError(message, hint=f"give {key}.listen a port, or set {key}.advertise")
    return MemberAddress(identity.node, peer, rpc)


def _new_member(cluster: ClusterFile, node: int, config: NodeConfig) -> NodeFile:
    if node > NODE_MAX:
        raise ConfigError(f"member number {node}", hint=f"1 to {NODE_MAX}")
    assert config.data_dir.startswith("/"), "the configuration's data_dir is absolute"
    return NodeFile(node=node, incarnation=_incarnation(), cluster=cluster)


def _incarnation() -> int:
    return 1 + secrets.randbelow((1 << 63) - 1)


def _identity(cluster: ClusterFile, node: int, config: NodeConfig) -> NodeFile:
    numbers = [member.node for member in cluster.members]
    if node not in numbers:
        message = f"node {node} is not among the members {numbers}"
        hint = "choose one of these numbers with --node; for a new member, a larger one"
        raise ConfigError(message, hint=hint)
    assert config.data_dir.startswith("/"), "the configuration's data_dir is absolute"
    _check_addresses(cluster.members[numbers.index(node)], config)
    return NodeFile(node=node, incarnation=_incarnation(), cluster=cluster)


def _check_addresses(member: MemberAddress, config: NodeConfig) -> None:
    """Refuse a node that would not be reached where the member list says.

    The ports must be the same ones, unless the configuration says that others reach it elsewhere:
    `advertise`, or its own entry in `members`.
    """
    own = config.members.get(str(member.node))
    for key, endpoint, listed in (
        ("peer", config.peer, member.peer),
        ("rpc", config.rpc, member.rpc),
    ):
        if endpoint.advertise or own is not None:
            continue
        if parse_address(endpoint.listen)[1] != parse_address(listed)[1]:
            message = (
                f"{key}.listen is {endpoint.listen}, but the member list has node {member.node}"
                f" at {listed}"
            )
            hint = f"is it another node's file? Else listen there, or set {key}.advertise"
            raise ConfigError(message, hint=hint)
    if config.http.listen:
        port = parse_address(config.http.listen)[1]
        if port in {parse_address(member.peer)[1], parse_address(member.rpc)[1]}:
            message = f"http.listen is {config.http.listen}, a port of node {member.node} itself"
            raise ConfigError(message, hint="give peer, rpc and http a port each")


def _refuse_initialised(data_dir: Path) -> None:
    """Refuse a directory that has an identity or a log: a node forgets nothing by `init`."""
    if (data_dir / IDENTITY_FILE).exists():
        message = f"{data_dir} is initialised already"
        raise DataDirectoryError(message, hint="start it with nokv serve, or choose another one")
    if state_path(data_dir).exists():
        message = f"{data_dir} holds a state but no identity"
        raise DataDirectoryError(message, hint="restore node.json, or choose an empty directory")
    # A log alone is what an init leaves that was cut short: no node ever served it.
    shutil.rmtree(log_path(data_dir), ignore_errors=True)


def _write(data_dir: Path, identity: NodeFile, config: NodeConfig) -> None:
    """Found the log, then write the identity: it is what says that all of it is there."""
    make_directory(log_path(data_dir))
    group = GroupConfig(segment_bytes=config.log.segment_bytes)
    try:
        initialise(OsDisk(log_path(data_dir)), group, replication_identity(identity), _SEEDED)
    except DiskFailed as error:
        raise DataDirectoryError(f"{log_path(data_dir)}: {error}") from error
    write_durably(
        data_dir / IDENTITY_FILE, msgspec.json.format(msgspec.json.encode(identity), indent=2)
    )


def _volume(store: StoreSpec) -> Volume:
    if store.kind not in {"local", "s3"}:
        raise ConfigError(f"store kind {store.kind!r}", hint="'local' or 's3'")
    if not store.bucket:
        raise ConfigError("no bucket for bodies", hint="name a bucket, or a local directory")
    if store.kind == "local" and not Path(store.bucket).is_absolute():
        message = f"the local store's directory {store.bucket} is relative"
        raise ConfigError(message, hint="write it from / on: every node and client must find it")
    if not 0 <= store.inline_max <= INLINE_BYTES_CAP:
        raise ConfigError(f"inline_max {store.inline_max}", hint=f"0 to {INLINE_BYTES_CAP} bytes")
    return Volume(
        volume=secrets.token_hex(16),
        kind=store.kind,
        endpoint=store.endpoint,
        bucket=store.bucket,
        prefix=store.prefix,
        region=store.region,
        inline_max=store.inline_max,
        chunk_bytes=CHUNK_BYTES,
        block_bytes=BLOCK_BYTES,
    )


def _members(members: Sequence[MemberAddress], *, tls: bool) -> tuple[MemberAddress, ...]:
    """Return the members in order, if they can be a cluster's."""
    if not 1 <= len(members) <= NODES_MAX:
        raise ConfigError(f"{len(members)} members", hint=f"a cluster has 1 to {NODES_MAX}")
    ordered = tuple(sorted(members, key=lambda member: member.node))
    if len({member.node for member in ordered}) < len(ordered):
        raise ConfigError("two members have the same number")
    addresses = [address for member in ordered for address in (member.peer, member.rpc)]
    if len(set(addresses)) < len(addresses):
        raise ConfigError("two members share an address")
    for member in ordered:
        if not 1 <= member.node <= NODE_MAX:
            raise ConfigError(f"member number {member.node}", hint=f"1 to {NODE_MAX}")
        check_address(member.peer, f"member {member.node}: peer", tls=tls)
        check_address(member.rpc, f"member {member.node}: rpc", tls=tls)
    return ordered

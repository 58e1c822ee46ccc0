"""A node's data directory: who the node is, on disk, and the lock that only one process holds.

node.json       the identity, written last: without it the directory is not initialised;
                `node.json.restoring` until a restore has ended
lock            flock(2)ed by the shard process while it runs, and by a restore
shard-0/log     the replicated log
shard-0/state   the LMDB environment
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Annotated, Final, NoReturn

import msgspec

from nokv.errors import DataDirectoryError
from nokv.types.values import Volume
from nokv_replication import Identity

FORMAT: Final = 1
"""Of `node.json` and of the join file."""

IDENTITY_FILE: Final = "node.json"
LOCK_FILE: Final = "lock"
SHARD: Final = 0
"""The only shard until there are more."""


_DAMAGED_HINT: Final = (
    f"{IDENTITY_FILE} never changes after init: a copy of this one file may be put back, and of"
    " nothing else; without one replace the node (docs/operations.md: A lost node)"
)


class MemberAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one member is reached."""

    node: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    peer: str
    """`host:port` for the other members."""
    rpc: str
    """`host:port` for clients."""


class ClusterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all members of a cluster share, and the join file. Secret: it has the token."""

    format: int = FORMAT
    cluster: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """Random name of the cluster: frames of another one are refused."""
    volume: Volume
    """The volume and where its bodies live. Never holds a credential."""
    worker_token: Annotated[str, msgspec.Meta(min_length=32, max_length=128)]
    """What a worker proves itself by."""
    members: tuple[MemberAddress, ...]
    """The first members, ordered by node."""
    root_uid: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 2)] = 0
    root_gid: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 2)] = 0
    """Who owns the volume's root directory at first: whoever ran `nokv init`."""


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A node's identity; never changes after `init`."""

    format: int = FORMAT
    node: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    incarnation: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
    """Random: a directory that was wiped and made again is another node."""
    cluster: ClusterFile


def replication_identity(node: NodeFile) -> Identity:
    """Return the node's identity as replication writes it into the log."""
    joining = all(member.node != node.node for member in node.cluster.members)
    return Identity(node.cluster.cluster, node.node, node.incarnation, joining=joining)


def log_path(data_dir: Path) -> Path:
    """Return the folder of the log's segments."""
    return data_dir / f"shard-{SHARD}" / "log"


def state_path(data_dir: Path) -> Path:
    """Return the folder of the LMDB environment."""
    return data_dir / f"shard-{SHARD}" / "state"


def read_identity(data_dir: Path) -> NodeFile:
    """Return who the node is.

    Raises DataDirectoryError if the directory was never initialised, is not readable, is of another
    format, or is damaged.
    """
    path = data_dir / IDENTITY_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        message = f"{data_dir} is not an initialised data directory"
        raise DataDirectoryError(
            message,
            hint="a new node: run nokv init. A wiped one can't come back; see docs/operations.md",
        ) from None
    except OSError as error:
        raise DataDirectoryError(f"{path}: {error.strerror}") from None
    try:
        found = msgspec.json.decode(data, type=NodeFile)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message = f"{path} is damaged: {error}"
        raise DataDirectoryError(message, hint=_DAMAGED_HINT) from None
    if found.format != FORMAT or found.cluster.format != FORMAT:
        message = f"{path} has format {found.format}; this program speaks {FORMAT}"
        raise DataDirectoryError(message, hint="use the version of nokv that wrote it")
    return found


def lock(data_dir: Path) -> int:
    """Take the directory for this process; return the descriptor that holds it.

    The system frees the lock with the process, however it ends. Raises DataDirectoryError if
    another process holds it.
    """
    path = data_dir / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataDirectoryError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        message = f"{data_dir} is in use by process {owner}"
        raise DataDirectoryError(message, hint="stop that node first") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent after a power cut, readable by its owner only.

    The bytes are synced under another name, then renamed, then the directory is synced. Raises
    DataDirectoryError.
    """
    made = path.with_name(path.name + ".new")
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        made.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        _failed(path, error)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each name durable. Raises DataDirectoryError."""
    try:
        missing = [path, *path.parents]
        for folder in reversed([folder for folder in missing if not folder.exists()]):
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_directory(folder.parent)
    except OSError as error:
        _failed(path, error)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2), notes)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(path: Path, error: OSError) -> NoReturn:
    raise DataDirectoryError(f"{path}: {error.strerror}") from error

"""How commands reach a cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nokv.cli.main import EXIT_FAILED, complain
from nokv.errors import ConfigError, DataDirectoryError, NokvError

if TYPE_CHECKING:
    from nokv.client.core import Core
    from nokv.client.fs import AsyncClient
    from nokv.client.reads import ReadHandle
    from nokv.types.values import Attr

Work = Callable[["AsyncClient", argparse.Namespace], Awaitable[int]]
Reading = Callable[["ReadHandle", argparse.Namespace], Awaitable[int]]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_CENTURY_S: Final = 100 * 365 * 86_400


def cluster_of(options: argparse.Namespace) -> str:
    """Return the cluster's addresses.

    They are --cluster, or NOKV_CLUSTER, the node that --config names, or what `nokv up` made.

    Raises:
        ConfigError: none is named.
    """
    named: str = options.cluster or os.environ.get("NOKV_CLUSTER", "")
    if named:
        return named
    settings: Path | None = getattr(options, "config", None)
    if settings is not None:
        from nokv.server.config import load

        rpc = load(settings).rpc
        return rpc.advertise or rpc.listen
    from nokv.cli.local import default_folder
    from nokv.testing.folder import ClusterFolder

    try:
        return ClusterFolder(default_folder()).addresses
    except DataDirectoryError:
        message = "no cluster is named"
        hint = "set NOKV_CLUSTER=host:port,... or start a local one: nokv up"
        raise ConfigError(message, hint=hint) from None


# ---------------------------------------------------------------- the token


def add_gone(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--gone`, by which an operator states that clusters which share the bucket are gone."""
    parser.add_argument("--gone", action="append", default=[], metavar="CLUSTER", help=text)


async def own_cluster(core: Core, options: argparse.Namespace) -> str:
    """Return the id of the cluster that is connected."""
    return (await core.router.find_leader(options.timeout)).hello.cluster


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add whose data directory has the cluster's token."""
    parser.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE",
        help="a node's settings: its data directory has the cluster's token (default: node.toml, "
        "or the cluster that nokv up started); where no cluster is named, that node is asked",
    )


def config_path(named: Path | None) -> Path:
    """Return the settings of a node of the cluster: as named, node.toml here, or of `nokv up`."""
    if named is not None:
        return named
    if Path("node.toml").exists():
        return Path("node.toml")
    from nokv.cli.local import default_folder
    from nokv.testing.folder import ClusterFolder

    try:
        folder = ClusterFolder(default_folder())
    except DataDirectoryError:
        message = "no node of the cluster is named, whose node.json would have its token"
        raise ConfigError(message, hint="name its settings: --config /etc/nokv/node.toml") from None
    return folder.node_path(folder.members[0].node) / "node.toml"


def cluster_token(named: Path | None) -> str:
    """Return the token of the cluster whose node the settings are of.

    Raises ConfigError, DataDirectoryError.
    """
    from nokv.server.config import load
    from nokv.server.datadir import read_identity

    return read_identity(Path(load(config_path(named)).data_dir)).cluster.worker_token


# ---------------------------------------------------------------- running


def with_client(work: Work, *, operator: bool = False) -> Callable[[argparse.Namespace], int]:
    """Return what runs `work` with a connected client.

    `operator`: with the cluster's token, for what not every client may (see `add_config`).
    """

    def run(options: argparse.Namespace) -> int:
        token = cluster_token(options.config) if operator else ""
        return asyncio.run(_connected(work, options, token))

    return run


async def _connected(work: Work, options: argparse.Namespace, token: str) -> int:
    from nokv.client.connect import connect
    from nokv.client.core import ClientConfig

    config = ClientConfig(deadline_s=options.timeout, agent=f"nokv-cli:{os.getpid()}")
    async with connect(cluster_of(options), config=config, token=token) as fs:
        return await work(fs, options)


def add_at(parser: argparse.ArgumentParser) -> None:
    """Add which snapshot a reading command reads; `with_reader` runs it."""
    parser.add_argument(
        "--at",
        default="",
        metavar="SNAPSHOT",
        help="what this snapshot shows, under the paths that it was made of (default: the present)",
    )


def with_reader(work: Reading) -> Callable[[argparse.Namespace], int]:
    """Return what runs `work` with a handle of the present, or of the snapshot of --at."""

    async def read(fs: AsyncClient, options: argparse.Namespace) -> int:
        if not options.at:
            return await work(fs, options)
        snapshot = fs.at(options.at)
        await snapshot.info()  # that there is none is one complaint, not one a path
        return await work(snapshot, options)

    return with_client(read)


async def top(fs: ReadHandle) -> str:
    """Return the path of all that a handle shows: a snapshot's own, else the root."""
    from nokv.client.paths import decode_name
    from nokv.client.readonly import SnapshotView

    return decode_name((await fs.info()).path) if isinstance(fs, SnapshotView) else "/"


async def each(paths: list[str], work: Callable[[str], Awaitable[Any]], *, target: str = "") -> int:
    """Do `work` for every path; what fails is complained about and the others go on.

    With `target`, the errors name it too: they may be about it.
    """
    code = 0
    for path in paths:
        try:
            await work(path)
        except NokvError as error:
            complain(error, about=f"{path} to {target}" if target else path)
            code = EXIT_FAILED
    return code


def is_directory(attr: Attr) -> bool:
    """Return whether an inode is a directory."""
    return stat.S_ISDIR(attr.mode)


async def stat_or_none(fs: ReadHandle, path: str) -> Attr | None:
    """Return the attributes of what a path shows, or None if nothing is there."""
    from nokv.errors import NotADirectory, NotFound

    try:
        return await fs.stat(path)
    except (NotFound, NotADirectory):
        return None


def duration_ns(text: str) -> int:
    """Return what `30d`, `12h`, `5m` or `10s` means, ns; for argparse."""
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 30d, 12h, 5m or 10s")
    length_s = int(match[1]) * _UNITS[match[2]]
    if length_s > _CENTURY_S:
        raise argparse.ArgumentTypeError(f"{text!r} is over a hundred years")
    return length_s * 1_000_000_000


def seconds(text: str) -> float:
    """Return a number of seconds, at least 0; for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _CENTURY_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def count(text: str) -> int:
    """Return a number of at least 0; for argparse."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def join(directory: str, name: str) -> str:
    """Return the path of a name in a directory."""
    return f"{directory.rstrip('/')}/{name}"


def basename(path: str) -> str:
    """Return the last name of a path; empty for the root."""
    return path.rstrip("/").rpartition("/")[2]

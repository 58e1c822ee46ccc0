"""`nokv member`: who belongs to a cluster, and the changes of that.

Looking needs nothing. A change needs the cluster's token, which lies in every node's `node.json`,
readable by its owner: whoever could read it could already end sessions and collect objects, while
a user's number, on the wire, is only a claim.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nokv.cli import output
from nokv.cli.client import add_config, cluster_of, cluster_token, config_path
from nokv.cli.main import add_action, add_cluster

if TYPE_CHECKING:
    from nokv.client.admin import Admin
    from nokv.wire.rpc import StatusReply

WAIT_S: Final = 3600.0
"""`--wait` gives a new member so long to catch up."""


def add_member(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv member`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listed = add_action(actions, "list", "show the members and how far each of them is")
    add_cluster(listed)
    listed.add_argument(
        "--config", type=Path, default=None, metavar="FILE",
        help="a node's settings: where no cluster is named, that node is asked",
    )  # fmt: skip
    listed.add_argument("--json", action="store_true", help="one JSON object a member, one a line")
    listed.set_defaults(run=_admin(_list))

    add = add_action(actions, "add", "make a node a learner: it is sent the log")
    add.add_argument("node", type=int, metavar="NUMBER", help="never a member's before")
    add.add_argument(
        "--incarnation", type=int, required=True, metavar="ID", help="as nokv init --join said"
    )
    add.add_argument("--peer", required=True, metavar="ADDRESS", help="where members reach it")
    add.add_argument("--rpc", required=True, metavar="ADDRESS", help="where clients reach it")
    add.add_argument(
        "--wait", action="store_true", help="wait until it has caught up, and promote it"
    )
    _change(add, _add)

    promote = add_action(actions, "promote", "make a learner that has caught up a voter")
    promote.add_argument("node", type=int, metavar="NUMBER", help="of the learner")
    promote.add_argument("--wait", action="store_true", help="wait until it has caught up")
    _change(promote, _promote)

    remove = add_action(actions, "remove", "remove a member for ever; a leader hands over")
    remove.add_argument(
        "node", type=int, metavar="NUMBER", help="of the member; it can never be used again"
    )
    _change(remove, _remove)

    transfer = add_action(actions, "transfer", "hand leadership over")
    transfer.add_argument(
        "node",
        type=int,
        nargs="?",
        default=0,
        metavar="NUMBER",
        help="of the voter that is to lead (default: the one that has most of the log)",
    )
    _change(transfer, _transfer)

    join_file = add_action(actions, "join-file", "write what a new node is initialised from")
    join_file.add_argument("file", type=Path, metavar="FILE", help="a secret; remove it afterwards")
    add_config(join_file)
    join_file.set_defaults(run=_join_file)


Work = Callable[["Admin", argparse.Namespace], Awaitable[int]]


def _change(parser: argparse.ArgumentParser, work: Work) -> None:
    add_cluster(parser)
    add_config(parser)
    parser.set_defaults(run=_admin(work))


def _admin(work: Work) -> Callable[[argparse.Namespace], int]:
    """Return what runs `work` with a connection to the cluster."""

    def run(options: argparse.Namespace) -> int:
        return asyncio.run(_connected(work, options))

    return run


async def _connected(work: Work, options: argparse.Namespace) -> int:
    from nokv.client.admin import Admin
    from nokv.client.routing import parse_cluster
    from nokv.wire.tls import connect_context

    token = cluster_token(options.config) if work is not _list else ""
    addresses = parse_cluster(cluster_of(options))
    async with Admin(addresses, token, timeout_s=options.timeout, tls=connect_context()) as admin:
        return await work(admin, options)


def _join_file(options: argparse.Namespace) -> int:
    from nokv.server.init import export_join_file

    identity = export_join_file(config_path(options.config), options.file)
    print(f"carry {options.file} to a new machine, and remove it there and here afterwards:")
    print(f"nokv init --config node.toml --join {options.file.name} --node NUMBER")
    print(f"it has the token of cluster {identity.cluster.cluster}")
    return 0


# ---------------------------------------------------------------- actions


async def _list(admin: Admin, options: argparse.Namespace) -> int:
    rows = _fields(await admin.status())
    if options.json:
        for row in rows:
            output.line(row)
        return 0
    from nokv.cli.status import table

    head = ("node", "role", "votes", "connected", "lag", "formats", "peer", "rpc", "incarnation")
    text: list[tuple[str, ...]] = [
        (
            str(row["node"]),
            row["role"],
            "yes" if row["voter"] else "no",
            "yes" if row["connected"] else "no",
            str(row["lag_entries"]),
            f"{row['format']} of {row['format_max']}" if row["format_max"] else "?",
            row["peer"],
            row["rpc"],
            str(row["incarnation"]),
        )
        for row in rows
    ]
    print(table(head, text))
    return 0


def _fields(status: StatusReply) -> list[dict[str, Any]]:
    """Return what the leader knows of each member. Indexes and lags count entries of the log."""
    peers = {peer.node: peer for peer in status.peers}
    rows = []
    for member in status.members:
        peer = peers.get(member.node)
        leads = member.node == status.node
        rows.append(
            {
                "node": member.node,
                "role": "leader" if leads else "follower" if member.voter else "learner",
                "voter": member.voter,
                "connected": leads or (peer is not None and peer.connected),
                "match_index": status.commit_index
                if leads
                else (peer.match_index if peer is not None else 0),
                "lag_entries": 0 if leads or peer is None else peer.lag_entries,
                "format": status.format,
                "format_max": status.format_max
                if leads
                else (peer.format_max if peer is not None else 0),
                "peer": member.peer,
                "rpc": member.rpc,
                "incarnation": member.incarnation,
            }
        )
    return rows


async def _add(admin: Admin, options: argparse.Namespace) -> int:
    node = options.node
    await admin.add(node, options.incarnation, options.peer, options.rpc)
    print(f"node {node} is a learner")
    if not options.wait:
        print(f"once it has caught up (nokv member list): nokv member promote {node}")
        return 0
    return await _wait(admin, node)


async def _promote(admin: Admin, options: argparse.Namespace) -> int:
    if options.wait:
        await admin.member(options.node)
        return await _wait(admin, options.node)
    await admin.promote(options.node)
    print(f"node {options.node} is a voter")
    return 0


async def _wait(admin: Admin, node: int) -> int:
    await admin.wait_and_promote(node, WAIT_S)
    print(f"node {node} is a voter")
    return 0


async def _remove(admin: Admin, options: argparse.Namespace) -> int:
    await admin.member(options.node)
    await admin.remove(options.node)
    print(f"node {options.node} is no member any more; stop it, and never use its number again")
    return 0


async def _transfer(admin: Admin, options: argparse.Namespace) -> int:
    print(f"node {await admin.transfer(options.node)} leads")
    return 0

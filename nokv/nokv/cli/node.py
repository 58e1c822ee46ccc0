"""`nokv init`, `serve`, `config`: one node, the way it runs in production."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nokv.cli.main import add_action
from nokv.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from nokv.server.datadir import MemberAddress


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("node.toml"),
        metavar="FILE",
        help="the node's settings (default: node.toml)",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="override a setting of the file, as rpc.listen=127.0.0.1:7101; may be repeated",
    )


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    for text in options.settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}", hint="write --set KEY=VALUE")
        found[key] = value
    return found


# ---------------------------------------------------------------- init


def add_init(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv init`."""
    from nokv.cli.local import add_store

    _add_config(parser)
    _add_settings(parser)
    parser.add_argument("--node", type=int, required=True, help="this node's number")
    parser.add_argument(
        "--join", type=Path, metavar="FILE", help="join the cluster that wrote FILE"
    )
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="NUMBER=PEER,RPC",
        help="a first member and its addresses, as 2=127.0.0.1:7202,127.0.0.1:7102; repeat it",
    )
    parser.add_argument(
        "--join-file", type=Path, metavar="FILE", help="where to write what the others join with"
    )
    add_store(parser)
    parser.add_argument(
        "--inline-max",
        type=int,
        default=None,
        metavar="BYTES",
        help="bodies up to so large are kept in the metadata itself",
    )
    parser.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> int:
    from nokv.cli.local import parse_store
    from nokv.server import init
    from nokv.server.datadir import MemberAddress

    overrides = _overrides(options)
    if options.join is not None:
        if options.member or options.store or options.join_file:
            raise UsageError("what --join names has the members and the store")
        made = init.join(options.config, options.join, node=options.node, overrides=overrides)
        print(f"node {made.node} of cluster {made.cluster.cluster} is initialised")
        if made.node not in {member.node for member in made.cluster.members}:
            here = init.added_as(options.config, overrides)
            print("start it with nokv serve, and add it with the node.toml of a node that belongs:")
            print(
                f"nokv member add {made.node} --incarnation {made.incarnation}"
                f" --peer {here.peer} --rpc {here.rpc} --wait --config NODE.TOML"
            )
        return 0
    if not options.store:
        raise UsageError("no object store", hint="name one: --store s3://bucket/prefix")
    members = []
    for text in options.member:
        number, _, addresses = text.partition("=")
        peer, comma, rpc = addresses.partition(",")
        if not (number.isdigit() and comma):
            raise UsageError(f"--member {text}", hint="write NUMBER=PEER,RPC")
        members.append(MemberAddress(int(number), peer, rpc))
    store = parse_store(options.store, options.endpoint, options.region)
    spec = init.StoreSpec(**store._asdict())
    if options.inline_max is not None:
        spec = init.StoreSpec(**store._asdict(), inline_max=options.inline_max)
    made = init.init_cluster(
        options.config,
        node=options.node,
        members=members or [_own_address(options.config, options.node, overrides)],
        store=spec,
        join_file=options.join_file,
        overrides=overrides,
    )
    print(f"node {made.node} of the new cluster {made.cluster.cluster} is initialised")
    if options.join_file is not None:
        print(f"carry {options.join_file} to the other nodes: nokv init --join FILE --node NUMBER")
    return 0


def _own_address(config_path: Path, node: int, overrides: dict[str, str]) -> MemberAddress:
    """Return the only member of a cluster of one."""
    from nokv.server.config import load
    from nokv.server.datadir import MemberAddress

    config = load(config_path, overrides)
    peer = config.peer.advertise or config.peer.listen
    return MemberAddress(node, peer, config.rpc.advertise or config.rpc.listen)


# ---------------------------------------------------------------- serve


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv serve`."""
    _add_config(parser)
    _add_settings(parser)
    parser.add_argument("--lifeline", type=int, default=-1, help=argparse.SUPPRESS)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        from nokv.server.run import serve
    except ImportError as error:
        message = f"the server's packages are not installed: {error}"
        raise ConfigError(message, hint="pip install 'nokv[server]'") from None
    if options.lifeline >= 0:
        from nokv.testing.lifeline import follow

        follow(options.lifeline)
    return serve(options.config, _overrides(options))


# ---------------------------------------------------------------- config


def add_config(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv config`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = add_action(actions, "check", "say what is wrong with a node's configuration")
    check.add_argument(
        "file", nargs="?", type=Path, default=None, metavar="FILE", help="as with --config"
    )
    _add_config(check)
    _add_settings(check)
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from nokv.server.config import load, reserve_warning

    path = options.file or options.config
    config = load(path, _overrides(options))
    if warning := reserve_warning(config):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path} is fine: data in {config.data_dir}, clients at {config.rpc.listen}")
    return 0

"""`nokv certs`: a certificate authority and certificates for those who have none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nokv.cli.main import add_action
from nokv.errors import ConfigError

if TYPE_CHECKING:
    from nokv.server.certs import Minted


def add_certs(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv certs`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = add_action(actions, "init", "make the certificate authority of a cluster")
    named = init.add_mutually_exclusive_group(required=True)
    named.add_argument("--cluster", metavar="ID", help="the cluster's id, as nokv init prints it")
    named.add_argument(
        "--config", type=Path, metavar="FILE", help="the settings of a node that is initialised"
    )
    init.set_defaults(run=_init)
    node = add_action(actions, "node", "make a node's certificate")
    node.add_argument("number", type=int, metavar="NUMBER", help="of the node")
    node.add_argument(
        "--host",
        action="append",
        default=None,
        metavar="NAME",
        help="a DNS name or IP address of the node, for programs that compare it; may be repeated",
    )
    node.set_defaults(run=_node)
    client = add_action(actions, "client", "make a client's certificate")
    client.add_argument("name", metavar="NAME", help="whom the certificate is for")
    client.set_defaults(run=_client)
    for action in (init, node, client):
        action.add_argument(
            "--dir",
            type=Path,
            default=Path("certs"),
            metavar="DIR",
            help="where the authority and all certificates are (default: certs)",
        )
        action.add_argument(
            "--days",
            type=int,
            default=None,
            help="how many days it is valid (default: 3650 of the authority, else 365)",
        )


def _init(options: argparse.Namespace) -> int:
    certs = _minting()
    cluster = options.cluster or _cluster_of(options.config)
    made = certs.make_authority(options.dir, cluster, options.days or certs.CA_DAYS)
    _tell(made)
    print(f"keep {made.key} away from the nodes: whoever has it can be any of them")
    print(f"next: nokv certs node NUMBER --dir {options.dir}")
    return 0


def _node(options: argparse.Namespace) -> int:
    certs = _minting()
    hosts = options.host or certs.HOSTS
    made = certs.make_node(options.dir, options.number, hosts, options.days or certs.LEAF_DAYS)
    _tell(made)
    print(f"put into node.toml of node {options.number}, with the places of the files there:\n")
    print("[tls]")
    for name in ("ca", "cert", "key"):
        print(f"{name} = {json.dumps(str(getattr(made, name).absolute()))}")
    return 0


def _client(options: argparse.Namespace) -> int:
    certs = _minting()
    made = certs.make_client(options.dir, options.name, options.days or certs.LEAF_DAYS)
    _tell(made)
    print("set for the client, with the places of the files there:\n")
    for name in ("ca", "cert", "key"):
        print(f"export NOKV_TLS_{name.upper()}={getattr(made, name).absolute()}")
    return 0


def _tell(made: Minted) -> None:
    who = made.identity.uri if made.identity is not None else "the authority"
    print(f"wrote {made.cert} and {made.key}: {who}, valid until {made.expires:%Y-%m-%d}")


def _cluster_of(config: Path) -> str:
    from nokv.server.config import load
    from nokv.server.datadir import read_identity

    return read_identity(Path(load(config).data_dir)).cluster.cluster


def _minting() -> ModuleType:
    try:
        from nokv.server import certs
    except ImportError as error:
        message = f"the server's packages are not installed: {error}"
        raise ConfigError(message, hint="pip install 'nokv[server]'") from None
    return certs

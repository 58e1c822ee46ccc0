"""A node's TLS: its own certificate, its RPC port, and who may talk there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import uvloop
from tests.unit.server.test_init import init_first

from nokv.errors import ConfigError, Forbidden, NotReady, Unavailable, WrongCluster
from nokv.server import acceptor, certs
from nokv.server.config import RpcConfig, TlsConfig, load
from nokv.server.datadir import MemberAddress
from nokv.server.init import _members
from nokv.server.rpc import Call, RpcServer
from nokv.server.tls import NodeTls, load_tls
from nokv.wire.connection import RpcConnection
from nokv.wire.identity import Identity, identity_of
from nokv.wire.rpc import PROTOCOL, Hello, HelloReply, Propose, RequestBody, ResultsReply, Role
from nokv.wire.tls import TlsFiles, client_context, connect_context, files_from_environment

CLUSTER = "abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our cluster's certificates, another cluster's, and some of a wide authority."""
    path = tmp_path_factory.mktemp("certs")
    certs.make_authority(path / "ours", CLUSTER)
    certs.make_authority(path / "theirs", "fedcba")
    for node in (1, 2):
        certs.make_node(path / "ours", node)
    certs.make_client(path / "ours", "somebody")
    certs.make_client(path / "theirs", "somebody")
    return path


def files(folder: Path, stem: str, whose: str = "ours", ca: str = "ours") -> TlsFiles:
    return TlsFiles(
        str(folder / ca / "ca.crt"),
        str(folder / whose / f"{stem}.crt"),
        str(folder / whose / f"{stem}.key"),
    )


def config(folder: Path, stem: str, whose: str = "ours", ca: str = "ours") -> TlsConfig:
    return TlsConfig(**files(folder, stem, whose, ca)._asdict())


def node_tls(folder: Path, node: int = 1) -> NodeTls:
    tls = load_tls(config(folder, f"node-{node}"), CLUSTER, node)
    assert tls is not None
    return tls


# ---------------------------------------------------------------- a node's own certificate


def test_a_nodes_own_certificate_is_tried_out(folder: Path) -> None:
    assert load_tls(TlsConfig(), CLUSTER, 1) is None
    tls = node_tls(folder)
    assert tls.left_s == pytest.approx(certs.LEAF_DAYS * 86_400, rel=0.01)
    assert tls.warning() == ""
    assert tls._replace(expires_s=time.time() + 29 * 86_400).warning()


@pytest.mark.parametrize(
    ("stem", "whose", "ca", "said"),
    [
        ("node-2", "ours", "ours", "is the certificate of nokv://abcdef/node/2"),
        ("node-1", "ours", "theirs", "would not be accepted with .*issuer"),
        ("client-somebody", "ours", "ours", "would not be accepted with .*purpose"),
        ("node-9", "ours", "ours", "No such file"),
    ],
)
def test_a_node_with_a_wrong_certificate_does_not_start(
    folder: Path, stem: str, whose: str, ca: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_tls(config(folder, stem, whose, ca), CLUSTER, 1)


def test_the_reason_is_all_that_such_a_node_says(folder: Path, tmp_path: Path) -> None:
    """Its worker is refused for the same, first mostly: that one ended is no news then."""
    init_first(tmp_path)
    path = tmp_path / "node1.toml"
    places = files(folder, "node-1")._asdict()
    tls = "".join(f'{name} = "{place}"\n' for name, place in places.items())
    path.write_text(f"{path.read_text()}\n[tls]\n{tls}")
    command = [sys.executable, "-m", "nokv.cli", "serve", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    said = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert any(line.startswith("the node does not start: ") for line in said)
    assert all("is the certificate of nokv://abcdef/node/1" in line for line in said)


def test_an_expired_certificate_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    monkeypatch.setattr(certs, "_validity", lambda _days: (now - 2 * day, now - day))
    certs.make_node(folder / "ours", 3)
    with pytest.raises(ConfigError, match=r"certificate has expired.*make another"):
        load_tls(config(folder, "node-3"), CLUSTER, 3)


def test_files_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "file.pem"
    other.write_text("nothing")
    good = files(folder, "node-1")
    for wrong in (
        good._replace(ca=str(other)),
        good._replace(cert=str(other)),
        good._replace(key=str(other)),
        good._replace(key=str(folder / "ours" / "node-2.key")),
        good._replace(ca=str(tmp_path / "missing")),
    ):
        with pytest.raises(ConfigError, match=r"\.pem|node-2\.key|missing"):
            client_context(wrong)


@pytest.mark.parametrize(
    "names",
    [
        (),
        (("DNS", "nokv://abcdef/node/1"),),
        (("URI", "https://abcdef/node/1"),),
        (("URI", "nokv://abcdef/node/1/2"),),
        (("URI", "nokv://abcdef/owner/1"),),
        (("URI", "nokv://abcdef/node/1"), ("URI", "nokv://abcdef/node/2")),
        (("URI", "nokv:///node/1"),),
        (("URI", "nokv://abcdef/node/1\n"),),
    ],
)
def test_a_certificate_names_one_node_or_client(names: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Forbidden, match="does not name one"):
        identity_of({"subjectAltName": names})


def test_identities() -> None:
    found = identity_of({"subjectAltName": (("DNS", "x"), ("URI", "nokv://abcdef/node/12"))})
    assert (found, found.node, found.uri) == (
        Identity("abcdef", "node", "12"), 12, "nokv://abcdef/node/12"
    )  # fmt: skip
    assert Identity("abcdef", "client", "12").node == 0
    assert Identity("abcdef", "node", "x").node == 0


# ---------------------------------------------------------------- configuration

NODE = """
data_dir = "data"
[peer]
listen = "0.0.0.0:7201"
[rpc]
listen = "0.0.0.0:7101"
"""


def test_other_machines_reach_a_node_with_tls_only(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(NODE)
    with pytest.raises(ConfigError, match="not a loopback address"):
        load(path, environ={})
    path.write_text(NODE + '[tls]\nca = "ca.crt"\ncert = "/etc/node.crt"\nkey = "node.key"\n')
    tls = load(path, environ={}).tls
    assert tls == TlsConfig(
        ca=str(tmp_path / "ca.crt"), cert="/etc/node.crt", key=str(tmp_path / "node.key")
    )
    with pytest.raises(ConfigError, match="belong together"):
        load(path, {"tls.key": ""}, environ={})
    with pytest.raises(ConfigError, match=r"http\.listen: .*not a loopback"):
        load(path, {"http.listen": "0.0.0.0:7301"}, environ={})
    members = [MemberAddress(1, "node1.example.org:7201", "node1.example.org:7101")]
    assert _members(members, tls=True) == tuple(members)
    with pytest.raises(ConfigError, match="not a loopback"):
        _members(members, tls=False)


def test_a_clients_files_come_from_its_environment(folder: Path) -> None:
    ca, cert, key = files(folder, "client-somebody")
    environ = {"NOKV_TLS_CA": ca, "NOKV_TLS_CERT": cert, "NOKV_TLS_KEY": key}
    assert files_from_environment(environ) == (ca, cert, key)
    assert files_from_environment({}) is None
    assert connect_context() is None
    with pytest.raises(ConfigError, match="one is missing"):
        files_from_environment({"NOKV_TLS_CA": ca})


# ---------------------------------------------------------------- the RPC port


class Node:
    """A handler that answers for a node."""

    def __init__(self, cluster: str, node: int) -> None:
        self.reply = HelloReply(PROTOCOL, cluster, node, "", (), None)

    def hello(self, hello: Hello) -> HelloReply:
        del hello
        return self.reply

    def handle(self, call: Call, body: RequestBody) -> None:
        if not isinstance(body, Propose):
            raise NotReady("nothing else")
        call.answer(ResultsReply(()))

    def end_of_batch(self) -> None:
        pass


def run(
    folder: Path,
    test: Callable[[RpcServer, str], Awaitable[None]],
    *,
    node: Node | None = None,
    uv: bool = True,
    **limits: int,
) -> None:
    async def main() -> None:
        rpc = msgspec.structs.replace(RpcConfig(listen="127.0.0.1:0"), **limits)
        server = RpcServer(rpc, node or Node(CLUSTER, 1), node_tls(folder))
        host, port = await server.start("127.0.0.1", 0)
        try:
            async with asyncio.timeout(30):
                await test(server, f"{host}:{port}")
        finally:
            await server.stop(1)

    (uvloop.run if uv else asyncio.run)(main())


async def connect(
    address: str, tls: ssl.SSLContext | None, role: int = Role.CLIENT
) -> RpcConnection:
    return await RpcConnection.connect(address, Hello(PROTOCOL, role=role), tls=tls)


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_clients_and_nodes_are_served(folder: Path, uv: bool) -> None:
    async def test(server: RpcServer, address: str) -> None:
        for stem, role in (
            ("client-somebody", Role.CLIENT),
            ("node-2", Role.CLIENT),
            ("node-1", Role.WORKER),
        ):
            connection = await connect(address, client_context(files(folder, stem)), role)
            assert await connection.call(Propose((b"x" * 3_000_000,))) == ResultsReply(())
            answers = [connection.call(Propose((b"x",))) for _ in range(100)]
            assert set(await asyncio.gather(*answers)) == {ResultsReply(())}
            await connection.close()
        assert server.hostile_total == 0

    run(folder, test, uv=uv)


def test_a_client_is_no_worker(folder: Path) -> None:
    async def test(_server: RpcServer, address: str) -> None:
        with pytest.raises(Forbidden, match="is no node's"):
            await connect(address, client_context(files(folder, "client-somebody")), Role.WORKER)

    run(folder, test)


@pytest.mark.allow_logs("a TLS handshake failed")
@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_strangers_are_not_served(folder: Path, uv: bool) -> None:
    async def test(server: RpcServer, address: str) -> None:
        strange = files(folder, "client-somebody", "theirs")
        with pytest.raises(Unavailable, match=r"(unknown ca|ended).*check the certificates"):
            await connect(address, client_context(strange))
        with pytest.raises(Unavailable, match=r"does it want TLS.*NOKV_TLS_CERT"):
            await connect(address, None)
        host, _, port = address.rpartition(":")
        for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x02\x00" + bytes(512)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        while server.hostile_total < 5:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        good = await connect(address, client_context(files(folder, "client-somebody")))
        await good.close()

    run(folder, test, uv=uv)


@pytest.mark.allow_logs("is not of this cluster")
def test_a_client_of_another_cluster_with_our_authority_is_not_served(folder: Path) -> None:
    """Where one authority signs for several clusters, which `nokv certs` does not make."""
    tls = node_tls(folder)._replace(cluster="another")

    async def main() -> None:
        server = RpcServer(RpcConfig(listen="127.0.0.1:0"), Node(CLUSTER, 1), tls)
        host, port = await server.start("127.0.0.1", 0)
        context = client_context(files(folder, "client-somebody"))
        with pytest.raises(Unavailable):
            await connect(f"{host}:{port}", context)
        assert server.hostile_total == 1
        await server.stop(1)

    asyncio.run(main())


@pytest.mark.parametrize("node", [Node("fedcba", 1), Node(CLUSTER, 2)], ids=["cluster", "node"])
def test_a_node_that_is_not_whom_its_certificate_names_is_refused(folder: Path, node: Node) -> None:
    async def test(_server: RpcServer, address: str) -> None:
        with pytest.raises(WrongCluster, match="shows the certificate of nokv://abcdef/node/1"):
            await connect(address, client_context(files(folder, "client-somebody")))

    run(folder, test, node=node)


@pytest.mark.allow_logs("a TLS handshake failed")
@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_a_client_does_not_take_another_authoritys_node(
    folder: Path, caplog: pytest.LogCaptureFixture, uv: bool
) -> None:
    async def test(server: RpcServer, address: str) -> None:
        wrong = files(folder, "client-somebody", "theirs", ca="theirs")
        with pytest.raises(Unavailable, match=r"certificate of .* is not accepted.*NOKV_TLS_CA"):
            await connect(address, client_context(wrong))
        while server.hostile_total < 1:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)

    run(folder, test, uv=uv)
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search("a TLS handshake failed: .*(unknown ca|another authority)", said)


def test_why_a_handshake_failed_is_never_empty() -> None:
    for error in (ConnectionResetError(), ConnectionAbortedError(), TimeoutError(), OSError()):
        assert len(acceptor.why(error)) > 4
    assert "another authority" in acceptor.why(ConnectionResetError())


@pytest.mark.allow_logs("a TLS handshake failed")
def test_handshakes_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKES_MAX", 8)

    async def test(server: RpcServer, address: str) -> None:
        host, _, port = address.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        try:
            for one in silent[:12]:  # the oldest
                one.settimeout(5)
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.to_thread(one.recv, 1) == b""
            good = await connect(address, client_context(files(folder, "client-somebody")))
            await good.close()
            assert server.hostile_total >= 12
        finally:
            for one in silent:
                one.close()

    run(folder, test)


@pytest.mark.allow_logs("a TLS handshake failed")
def test_a_handshake_that_does_not_go_on_is_ended(folder: Path) -> None:
    async def test(_server: RpcServer, address: str) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    run(folder, test, hello_ms=100)

"""A real cluster that speaks TLS: the command line, and exchanging the authority under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import Done

from nokv.cli.main import main
from nokv.client import connect
from nokv.server import certs
from nokv.testing.cluster import LocalCluster
from nokv.testing.folder import CERTS
from nokv.wire.tls import TlsFiles

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(tls=True) as made:
        yield made


@pytest.fixture
def environment(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in cluster.folder.environment.items():
        monkeypatch.setenv(name, value)
    return cluster.folder.environment


def nokv(capfd: pytest.CaptureFixture[str], *arguments: str) -> Done:
    capfd.readouterr()
    code = main(list(arguments))
    return Done(code, *capfd.readouterr())


def test_the_command_line_speaks_tls(
    cluster: LocalCluster,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert nokv(capfd, "mkdir", "/tls").code == 0
    assert "tls" in nokv(capfd, "ls", "/").out
    status = nokv(capfd, "status", "--json")
    assert status.code == 0
    config = cluster.folder.node_path(1) / "node.toml"
    doctor = nokv(capfd, "doctor", "--json", "--config", str(config))
    assert [one for one in doctor.json() if one["level"] == "failure"] == []
    assert any("valid for 36" in one["text"] for one in doctor.json())
    certs.make_authority(tmp_path, "fedcba")
    certs.make_client(tmp_path, "stranger")
    strange = {"CERT": "client-stranger.crt", "KEY": "client-stranger.key"}
    for wrong in (strange, {"CA": "ca.crt"}):
        with monkeypatch.context() as patched:
            for name, file in wrong.items():
                patched.setenv(f"NOKV_TLS_{name}", str(tmp_path / file))
            for command in (["ls", "/"], ["member", "list"]):
                refused = nokv(capfd, "--timeout", "2", *command)
                assert refused.code == 1
                assert "hint: check the certificates: NOKV_TLS_CA" in refused.err
    for name in environment:
        if name != "NOKV_CLUSTER":
            monkeypatch.delenv(name)
    refused = nokv(capfd, "--timeout", "2", "ls", "/")
    assert refused.code == 1
    assert "does it want TLS?" in refused.err


def test_the_end_of_the_certificate_is_in_the_metrics(cluster: LocalCluster) -> None:
    status = cluster.status(1)
    assert status is not None
    assert status["tls_expires_s"] > 1.7e9


def test_a_node_with_anothers_certificate_does_not_start(cluster: LocalCluster) -> None:
    folder = cluster.folder
    node = cluster.followers()[0]
    config = folder.node_path(node) / "node.toml"
    text = config.read_text()
    other = next(one for one in cluster.nodes if one != node)
    assert cluster.stop(node) == 0
    config.write_text(text.replace(f"node-{node}.", f"node-{other}."))
    cluster.start_node(node)
    assert cluster.wait_exit(node) == 2
    assert f"/node/{other}" in folder.log_tail(node)
    config.write_text(text)
    cluster.restart(node)


def test_the_authority_is_exchanged_while_clients_work(
    cluster: LocalCluster, environment: dict[str, str], tmp_path: Path
) -> None:
    """As docs/operations.md says: trust both, exchange the certificates, trust the new one."""
    status = cluster.status(1)
    assert status is not None
    path, new = cluster.folder.path / CERTS, tmp_path / "new"
    certs.make_authority(new, str(status["cluster"]))
    for node in cluster.nodes:
        certs.make_node(new, node)
    certs.make_client(new, "local")
    old_ca, new_ca = (path / "ca.crt").read_bytes(), (new / "ca.crt").read_bytes()
    both = tmp_path / "both.crt"
    both.write_bytes(old_ca + new_ca)
    before = TlsFiles(*(environment[f"NOKV_TLS_{name}"] for name in ("CA", "CERT", "KEY")))
    names = ("ca.crt", "client-local.crt", "client-local.key")
    after = TlsFiles(*(str(new / name) for name in names))

    def restart_all() -> None:
        for node in cluster.nodes:
            cluster.stop(node)
            cluster.restart(node)

    def exchange() -> None:
        (path / "ca.crt").write_bytes(both.read_bytes())
        restart_all()
        for node in cluster.nodes:
            for file in (f"node-{node}.crt", f"node-{node}.key"):
                (path / file).write_bytes((new / file).read_bytes())
        restart_all()

    async def work() -> None:
        tls = before._replace(ca=str(both))
        async with connect(cluster.addresses, tls=tls) as fs:
            await fs.mkdir("/exchange")
            exchanging = asyncio.ensure_future(asyncio.to_thread(exchange))
            number = 0
            while not exchanging.done():
                await fs.create(f"/exchange/{number}")
                number += 1
            await exchanging
        (path / "ca.crt").write_bytes(new_ca)
        await asyncio.to_thread(restart_all)
        async with connect(cluster.addresses, tls=after) as fs:
            assert len(await fs.listdir("/exchange")) == number

    asyncio.run(work())
    for node in cluster.nodes:
        log = cluster.folder.log_path(node).read_text()
        assert "Traceback" not in log

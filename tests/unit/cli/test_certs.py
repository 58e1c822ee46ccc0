"""`nokv certs`: what it writes, what it refuses, and that TLS accepts it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509

from nokv.cli.main import main
from nokv.server.config import TlsConfig
from nokv.server.tls import load_tls
from nokv.wire.tls import TlsFiles, client_context, server_context

CLUSTER = "ab" * 16


def certs(folder: Path, *arguments: str) -> int:
    return main(["certs", *arguments, "--dir", str(folder)])


def test_an_authority_and_what_it_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    assert certs(folder, "init", "--cluster", CLUSTER) == 0
    assert f"keep {folder}/ca.key away" in capsys.readouterr().out
    assert certs(folder, "node", "1", "--host", "node1.example.org", "--host", "10.0.0.1") == 0
    out = capsys.readouterr().out
    assert f"nokv://{CLUSTER}/node/1" in out
    assert f"[tls]\nca = {json.dumps(str(folder / 'ca.crt'))}\n" in out
    assert certs(folder, "client", "bench", "--days", "7") == 0
    assert f"export NOKV_TLS_KEY={folder}/client-bench.key" in capsys.readouterr().out
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {
        "ca.crt": 0o644, "ca.key": 0o600, "client-bench.crt": 0o644, "client-bench.key": 0o600,
        "node-1.crt": 0o644, "node-1.key": 0o600,
    }  # fmt: skip
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = x509.load_pem_x509_certificate((folder / "node-1.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node1.example.org"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    ca, cert, key = (str(folder / name) for name in ("ca.crt", "node-1.crt", "node-1.key"))
    assert load_tls(TlsConfig(ca=ca, cert=cert, key=key), CLUSTER, 1) is not None
    client = TlsFiles(ca, str(folder / "client-bench.crt"), str(folder / "client-bench.key"))
    client_context(client)
    server_context(TlsFiles(ca, cert, key))


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certs(tmp_path, "init", "--cluster", CLUSTER) == 0
    assert certs(tmp_path, "node", "1") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert certs(tmp_path, "init", "--cluster", CLUSTER) == 2
    assert certs(tmp_path, "node", "1") == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    (tmp_path / "node-1.crt").unlink()
    assert certs(tmp_path, "node", "1") == 2
    del before["node-1.crt"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("node", "1"), "nokv certs init"),
        (("init", "--cluster", "no/name"), "'no/name' is no name of a cluster"),
        (("init", "--cluster", CLUSTER, "--days", "-1"), "-1 days"),
        (("init", "--config", "/nowhere/node.toml"), "/nowhere/node.toml: No such file"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert certs(tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("node", "0"), "node number 0"),
        (("node", "65536"), "node number 65536"),
        (("node", "1", "--host", "node1:7201"), "without a port"),
        (("node", "1", "--host", "caf\u00e9 bar"), "no host name"),
        (("node", "1", "--days", "4000"), "4000 days"),
        (("client", "../ca"), "'../ca' is no name of a client"),
        (("client", ""), "'' is no name of a client"),
    ],
)
def test_what_an_authority_does_not_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert certs(tmp_path, "init", "--cluster", CLUSTER) == 0
    assert certs(tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]


def test_an_authority_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        assert certs(folder, "init", "--cluster", CLUSTER) == 0
    (one / "ca.key").write_bytes((other / "ca.key").read_bytes())
    assert certs(one, "node", "1") == 2
    assert "is not the key of" in capsys.readouterr().err
    (one / "ca.key").write_text("nothing")
    assert certs(one, "node", "1") == 2
    assert "no authority of nokv certs" in capsys.readouterr().err

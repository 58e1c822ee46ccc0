"""A node's configuration: sources, precedence, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import ConfigError
from nokv.server import config as config_module
from nokv.server.config import check, load, reserve_warning

GOOD = """
data_dir = "n1"
[peer]
listen = "127.0.0.1:7201"
[rpc]
listen = "127.0.0.1:7101"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(GOOD)
    return file


def test_the_data_directory_is_relative_to_the_file(path: Path) -> None:
    assert load(path, environ={}).data_dir == str(path.parent / "n1")


def test_the_environment_wins_over_the_file_and_a_flag_over_both(path: Path) -> None:
    environ = {"NOKV_NODE_RPC_LISTEN": "127.0.0.1:1", "NOKV_NODE_WORKER_ENABLED": "false"}
    loaded = load(path, environ=environ)
    assert (loaded.rpc.listen, loaded.worker.enabled) == ("127.0.0.1:1", False)
    loaded = load(path, {"rpc.listen": "127.0.0.1:2"}, environ)
    assert loaded.rpc.listen == "127.0.0.1:2"


def test_what_belongs_to_clients_and_the_demo_is_ignored(path: Path) -> None:
    environ = {"NOKV_CLUSTER": "x", "NOKV_DEMO_STORE": "s3", "HOME": "/"}
    assert load(path, environ=environ) == load(path, environ={})


def test_check_reads_the_process_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOKV_NODE_TIMING_STOP_MS", "77")
    assert check(path).timing.stop_ms == 77


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_dir = 1", "data_dir: Expected str, got int (a string)"),
        ('data_dirr = "x"', "data_dirr: no such setting (did you mean data_dir?)"),
        ("rpc = 3", "rpc: Expected object, got int"),
        ("[rpc]\nlisten = true", "rpc.listen: Expected str, got bool"),
        ("[rpc]\nlisteen = 'x'", "rpc.listeen: no such setting (did you mean listen?)"),
        ("[rpc]\nlisten = '127.0.0.1:1'\nrequests_max = 0", "an integer of 1 to 1048576"),
        ("[rpc]\nlisten = '127.0.0.1:1'\nrequests_max = '9'", "rpc.requests_max: Expected int"),
        ("[logging]\nlevel = 'loud'", "one of debug, info, warning, error"),
        ("[members.1]\npeer = '127.0.0.1:1'", "rpc: missing"),
        ("[members.x]\npeer = '127.0.0.1:1'\nrpc = '127.0.0.1:2'", "not the number of a node"),
        ("a =", "not TOML"),
        ("[peer]\nlisten = '10.0.0.1:7'", "not a loopback address"),
        ("[peer]\nlisten = 'here'", "not an address"),
        ("[http]\nlisten = '0.0.0.0:80'", "not a loopback address"),
        (
            "[peer]\nlisten = '127.0.0.1:7'\n[rpc]\nlisten = '127.0.0.1:7'",
            "rpc.listen: port 7 is peer.listen's",
        ),
        (
            "[rpc]\nlisten = '127.0.0.1:7'\n[http]\nlisten = 'localhost:7'",
            "http.listen: port 7 is rpc.listen's",
        ),
        ("[timing]\nheartbeat_ms = 500", "3 * heartbeat_ms < election_min_ms"),
        ("[timing]\nheartbeat_ms = 200", "3 * heartbeat_ms < election_min_ms"),
    ],
)
def test_a_wrong_file_says_what_is_wrong_and_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "node.toml"
    sections = {line for line in text.splitlines() if line.startswith("[")}
    rest = [] if "data_dir" in text else ['data_dir = "x"']
    tail = [
        f"{name}\nlisten = '127.0.0.1:{port}'"
        for name, port in (("[peer]", 1), ("[rpc]", 2))
        if name not in sections
    ]
    if text == "rpc = 3":
        tail = ["[peer]\nlisten = '127.0.0.1:1'"]
    file.write_text("\n".join([*rest, text, *tail]))
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert said in str(caught.value)
    assert "node.toml" in str(caught.value)


def test_unknown_environment_and_flags_are_refused(path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"NOKV_NODE_RPC_LISTN sets nothing.*NOKV_NODE_RPC_LISTEN"
    ):
        load(path, environ={"NOKV_NODE_RPC_LISTN": "x"})
    with pytest.raises(ConfigError, match=r"rpc\.listn.*did you mean rpc\.listen"):
        load(path, {"rpc.listn": "x"}, {})
    with pytest.raises(ConfigError, match="environment variable NOKV_NODE_RPC_REQUESTS_MAX"):
        load(path, environ={"NOKV_NODE_RPC_REQUESTS_MAX": "many"})


def test_a_missing_file_and_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", environ={})
    (tmp_path / "node.toml").write_text("")
    with pytest.raises(ConfigError, match="data_dir: missing"):
        load(tmp_path / "node.toml", environ={})


@given(text=st.text(max_size=40), key=st.sampled_from(sorted(config_module._LEAVES)))
def test_any_text_for_any_setting_is_taken_or_refused(text: str, key: str) -> None:
    table = {"data_dir": "x", "peer": {"listen": "127.0.0.1:1"}, "rpc": {"listen": "127.0.0.1:2"}}
    sources: dict[str, str] = {}
    said = key
    try:
        config_module._set(table, sources, key, text, "flag")
    except ConfigError as error:
        said = str(error)
    assert key in said


@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_file_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError):
        load(file, environ={})


def test_a_reserve_that_protects_nothing_is_warned_of(path: Path) -> None:
    assert reserve_warning(load(path)) == ""
    small = reserve_warning(load(path, {"disk.reserve_bytes": "1"}))
    assert "disk.reserve_bytes = 1" in small
    assert str(2 * load(path).log.segment_bytes) in small
    mib = 1 << 20
    overrides = {"log.segment_bytes": str(8 * mib), "disk.reserve_bytes": str(16 * mib)}
    assert reserve_warning(load(path, overrides)) == ""
    assert reserve_warning(load(path, overrides | {"disk.reserve_bytes": str(16 * mib - 1)}))

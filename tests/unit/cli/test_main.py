"""The command line without a cluster: what it refuses, what it loads, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nokv.cli.main import COMMANDS, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, main

CLIENT_COMMANDS = ["ls", "stat /a", "tree", "du", "cat /a", "get /a b", "put - /a", "mkdir /a"]
CLIENT_COMMANDS += ["rm /a", "mv /a /b", "ln /a /b", "chmod 644 /a", "publish . /a", "status"]
CLIENT_COMMANDS += [
    "cp /a /b",
    "quota get /a",
    "snapshot list",
    "clone /a /b",
    "workspace list",
    "rollback /a s",
]


@pytest.fixture(autouse=True)
def _nobodys_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOKV_CLUSTER", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))


def program(*arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *flags, "-m", "nokv.cli", *arguments]


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: nokv {command}")
    summary = COMMANDS[command].summary
    assert summary[1:] in shown


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name}" in shown for name in COMMANDS)
    assert "NOKV_CLUSTER" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nokv ")


WRONG = ["", "lss", "ls --bogus", "cat", "mv /a", "chmod 9 /a", "ls --cluster", "config"]
WRONG += ["publish --replace --merge . /a", "config check --set nonsense", "up --nodes 8"]
WRONG += ["init --node 1", "--cluster 127.0.0.1:x ls", "debug record 93"]
WRONG += ["debug state . --family none", "cat --length -1 /a", "cat --offset -1 /a", "tree -L -1"]
WRONG += ["snapshot create /a", "snapshot create /a --name s --ttl 1d --hold", "rollback /a"]
WRONG += ["snapshot create /a --name s --ttl 7", "workspace", "clone /a", "ls --at"]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("line", CLIENT_COMMANDS)
def test_no_cluster_is_named(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "nokv: no cluster is named"
    assert error[1].startswith("hint: set NOKV_CLUSTER")
    assert len(error) == 2


def test_an_unreachable_cluster_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "ls --cluster 127.0.0.1:1 --timeout 0.2 /",
        "--cluster 127.0.0.1:1 --timeout 0.2 ls /",
        "status --cluster 127.0.0.1:1",
    ):
        assert main(line.split()) == 1
    shown = capsys.readouterr()
    assert shown.err.count("could be reached") == 2
    assert "unreachable" in shown.out


def test_status_of_an_unreachable_cluster_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--cluster", "127.0.0.1:1,127.0.0.1:2"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["reachable"] for one in found] == [False, False]
    assert all(one["error"] for one in found)


def test_errors_of_the_system_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "no\nfile"
    assert main(["config", "check", str(missing)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "no\\nfile" in lines[0]


def test_optimised_python_is_refused() -> None:
    done = subprocess.run(program("--version", flags=("-O",)), capture_output=True, check=False)
    assert done.returncode == 2
    assert b"assertions are off" in done.stderr
    assert done.stdout == b""


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    value = tmp_path / "value"
    value.write_bytes(b"\xdc\xff\xff" + b"\x01" * 0xFFFF)
    with subprocess.Popen(
        program("debug", "record", str(value)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == EXIT_BROKEN_PIPE


def test_an_interrupt_is_quiet(tmp_path: Path) -> None:
    reading = tmp_path / "reading"
    os.mkfifo(reading)
    with subprocess.Popen(program("debug", "record", str(reading)), stderr=subprocess.PIPE) as one:
        # Opening the other end of a FIFO succeeds once the program has opened its own.
        with reading.open("wb"):
            one.send_signal(signal.SIGINT)
            assert one.wait() == EXIT_INTERRUPTED
        assert one.stderr is not None
        assert one.stderr.read() == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_streams_are_one_line(closed: str) -> None:
    line = f"{sys.executable} -m nokv.cli --cluster 127.0.0.1:1 --timeout 0.1 put - /a {closed}"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is closed" in done.stderr


LOADED = """
import sys
from nokv.cli.main import main
code = main(sys.argv[1:])
print(sorted(name for name in sys.modules if name.split(".")[0] in {heads!r} or name in {names!r}))
"""


def loaded(*arguments: str, heads: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> str:
    text = LOADED.format(heads=heads, names=names)
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_help_loads_next_to_nothing() -> None:
    assert loaded("--help", heads=("asyncio", "rich", "msgspec", "aioboto3", "obstore")) == "[]"


def test_client_commands_load_no_server() -> None:
    heads = (
        "lmdb",
        "pysyncobj",
        "crc32c",
        "cryptography",
        "uvloop",
        "nokv_replication",
        "rich",
        "aioboto3",
    )
    names = ("nokv.server", "nokv.state", "nokv.kv")
    line = ("--cluster", "127.0.0.1:1", "--timeout", "0.1", "ls", "/")
    assert loaded(*line, heads=heads, names=names) == "[]"


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:7201"\n[rpc]\nlisten = "127.0.0.1:7101"\n'
    )
    assert main(["config", "check", str(config)]) == 0
    assert str(tmp_path / "data") in capsys.readouterr().out
    assert main(["config", "check", "--config", str(config), "--set", "rpc.listn=x"]) == 2
    assert "rpc.listen" in capsys.readouterr().err
    assert main(["config", "check", str(config), "--set", "log.segment_bytes=many"]) == 2
    assert "hint: an integer" in capsys.readouterr().err


def test_a_directory_without_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--dir", str(tmp_path)]) == 2
    assert "nokv up" in capsys.readouterr().err
    (tmp_path / "cluster.json").write_text("[]")
    assert main(["down", "--dir", str(tmp_path)]) == 2
    assert main(["up", "--dir", str(tmp_path)]) == 2


def test_the_doctor_on_a_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--dir", str(tmp_path)]) == 0
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["level"] for one in findings} <= {"ok", "warning"}
    assert any("fdatasync" in one["text"] for one in findings)
    assert main(["doctor", "--config", str(tmp_path / "none.toml")]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_a_node_is_asked_where_its_settings_are_all_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:2"\n[rpc]\nlisten = "127.0.0.1:1"\n'
    )
    assert main(["member", "list", "--config", str(config), "--timeout", "0.2"]) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
    named = ["--cluster", "127.0.0.1:3", "--timeout", "0.2"]
    assert main(["member", "list", "--config", str(config), *named]) == 1
    told = capsys.readouterr().err
    assert "127.0.0.1:3" in told
    assert "127.0.0.1:1:" not in told

"""`nokv raft-log` on the directory of a stopped node, made with the packages themselves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from nokv.cli.main import main
from nokv.kv.lmdb_store import LmdbKV
from nokv.server.datadir import (
    MemberAddress,
    lock,
    log_path,
    read_identity,
    replication_identity,
    state_path,
)
from nokv.server.init import StoreSpec, init_cluster
from nokv.server.machine import position_of
from nokv.state.machine import StateMachine
from nokv_replication import Applied, GroupConfig, Times, initialise
from nokv_replication.disk import OsDisk
from nokv_replication.frames import EntryKind, encode_entry
from nokv_replication.log import Log
from nokv_replication.segments import segment_name

SMALL = GroupConfig(segment_bytes=4096)
POISON = msgspec.msgpack.encode([2, 0, 0, [b"?"], 0, "new"])

Run = Callable[..., tuple[int, str, str]]


class Node:
    """A stopped node: 40 entries in small segments, the state at entry 10."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "node.toml"
        self.config.write_text(
            'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:7201"\n'
            '[rpc]\nlisten = "127.0.0.1:7101"\n[http]\nlisten = "127.0.0.1:7301"\n'
        )
        init_cluster(
            self.config,
            node=1,
            members=[MemberAddress(1, "127.0.0.1:7201", "127.0.0.1:7101")],
            store=StoreSpec(kind="local", bucket=str(folder / "objects")),
            join_file=None,
        )
        self.data_dir = folder / "data"
        self.folder = log_path(self.data_dir)
        self.identity = replication_identity(read_identity(self.data_dir))
        # The log that init made has segments of 64 MiB.
        for path in self.folder.iterdir():
            path.unlink()
        initialise(OsDisk(self.folder), SMALL, self.identity, Random(0))
        log = self.log()
        for index in range(1, 41):
            entry = encode_entry(
                Times(index * 10**9, index * 10**6), [bytes(200)], EntryKind.COMMANDS
            )
            log.append(entry, index, 1 + index // 20)
            log.sync()
        log.append(POISON, 41, 3)
        log.append(encode_entry(Times(), [], EntryKind.NOOP), 42, 3)
        log.sync()
        log.close()
        self.stand_at(10)

    def log(self) -> Log:
        return Log.open(OsDisk(self.folder), SMALL, self.identity, Random(1))

    def stand_at(self, index: int) -> None:
        kv = LmdbKV(state_path(self.data_dir))
        machine = StateMachine(kv)
        for at in range(machine.applied().index + 1, index + 1):
            list(machine.apply(position_of(Applied(at, 1)), at, at, []))
        machine.commit()
        kv.close()

    def digest(self) -> str:
        files = sorted(self.folder.iterdir())
        data = b"".join(path.name.encode() + path.read_bytes() for path in files)
        return hashlib.sha256(data).hexdigest()

    def newest(self) -> Path:
        return max(self.folder.glob("*.log"))

    def tear(self) -> None:
        """Leave half a record behind the newest one."""
        log = self.log()
        end = log._segments[-1].used_bytes
        log.close()
        data = bytearray(self.newest().read_bytes())
        data[end : end + 16] = b"\xff" * 16
        self.newest().write_bytes(data)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["raft-log", *(str(argument) for argument in arguments)])
        return code, *capfd.readouterr()

    return call


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestDump:
    def test_every_record_is_a_line(self, node: Node, run: Run) -> None:
        code, out, _ = run("dump", node.data_dir, "--json")
        lines = objects(out)
        assert code == 0
        entries = [line for line in lines if line["kind"] == "entry"]
        assert [line["index"] for line in entries] == list(range(1, 43))
        assert entries[0]["wall_ns"] == 10**9
        assert entries[0]["payloads"] == 1
        assert entries[0]["batch_start"]
        assert entries[40]["entry"] == "unreadable"
        assert entries[41]["entry"] == "noop"
        assert not entries[41]["batch_start"]
        assert {line["kind"] for line in lines} == {"header", "entry"}
        for line in entries:
            data = (node.folder / line["file"]).read_bytes()
            assert data[line["offset_bytes"] + 8 :][:8] == line["index"].to_bytes(8, "little")

    def test_a_range_and_text(self, node: Node, run: Run) -> None:
        code, out, _ = run("dump", node.config, "--from", 40, "--to", 41)
        assert code == 0
        first, second = out.splitlines()
        assert "entry 40 term 3 commands of 1 1970-01-01T00:00:40Z cluster 0.040s" in first
        assert "entry 41 term 3 unreadable" in second

    def test_a_time_that_no_calendar_has(self, node: Node, run: Run) -> None:
        log = node.log()
        log.append(encode_entry(Times((1 << 63) - 1, 0), [], EntryKind.TICK), 43, 3)
        log.sync()
        log.close()
        code, out, _ = run("dump", node.data_dir, "--from", 43)
        assert code == 0
        assert "entry 43" in out

    def test_it_goes_on_behind_damage(self, node: Node, run: Run) -> None:
        path = node.folder / segment_name(2)
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        code, out, _ = run("dump", node.data_dir)
        assert code == 0
        assert "damaged: " in out
        assert "entry 42 term 3" in out


class TestVerify:
    def test_a_poisoned_entry_is_named(self, node: Node, run: Run) -> None:
        before = node.digest()
        code, out, _ = run("verify", node.data_dir)
        assert code == 2
        assert "entries 1 to 42" in out
        assert "nokv raft-log skip 41" in out
        assert node.digest() == before

    def test_a_whole_log_is_zero(self, node: Node, run: Run) -> None:
        assert run("skip", 41, "--config", node.data_dir)[0] == 0
        code, out, _ = run("verify", node.data_dir, "--json")
        (found,) = objects(out)
        assert (code, found["state"], found["applied_index"]) == (0, "whole", 10)

    def test_a_torn_tail_is_one_and_harmless(self, node: Node, run: Run) -> None:
        run("skip", 41, "--config", node.data_dir)
        node.tear()
        before = node.digest()
        code, out, _ = run("verify", node.data_dir)
        assert code == 1
        assert f"{node.newest().name}+" in out
        assert "torn tail of 16 bytes" in out
        assert node.digest() == before
        assert node.log().last_index == 42

    def test_damage_is_two_with_the_place(self, node: Node, run: Run) -> None:
        path = node.folder / segment_name(2)
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        code, out, _ = run("verify", node.data_dir)
        assert code == 2
        assert out.startswith(f"{path.name}+")
        assert "A lost node" in out
        _, out, _ = run("verify", node.data_dir, "--json")
        (found,) = objects(out)
        assert found["file"] == path.name
        assert 0 < found["offset_bytes"] <= 1000

    def test_an_older_copy_of_the_state_is_two(self, node: Node, run: Run) -> None:
        log = node.log()
        log.drop_to(30, keep_bytes=0)
        log.close()
        code, out, _ = run("verify", node.data_dir)
        assert code == 2
        assert "the state is an older copy" in out

    def test_a_log_that_lost_its_tail_is_two(self, node: Node, run: Run) -> None:
        node.stand_at(42)
        log = node.log()
        log.truncate_from(30)
        log.sync()
        log.close()
        code, out, _ = run("verify", node.data_dir)
        assert code == 2
        assert "the log has lost its tail" in out
        log = node.log()
        log.announce_install(42, 1)
        log.close()
        assert run("verify", node.data_dir)[0] == 0
        assert "install 42 term 1" in run("dump", node.data_dir)[1]

    def test_a_store_that_is_no_store_is_two(self, node: Node, run: Run) -> None:
        for path in state_path(node.data_dir).iterdir():
            path.write_bytes(b"?" * 8192)
        code, out, _ = run("verify", node.data_dir)
        assert code == 2
        assert "the state can't be read" in out
        assert "A lost node" in out
        code, _, err = run("skip", 41, "--config", node.data_dir)
        assert code == 2
        assert "the state can't be read" in err

    def test_a_store_that_was_cut_short_is_two(self, node: Node) -> None:
        """In a process of its own, for LMDB by itself dies of SIGBUS."""
        data = state_path(node.data_dir) / "data.mdb"
        os.truncate(data, 5000)
        code = "import sys; from nokv.cli.main import main; sys.exit(main(sys.argv[1:]))"
        found = subprocess.run(
            [sys.executable, "-c", code, "raft-log", "verify", str(node.data_dir)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode == 2
        assert "was cut short" in found.stdout
        assert "A lost node" in found.stdout


class TestSkip:
    def test_it_is_stored_listed_and_taken_back(self, node: Node, run: Run) -> None:
        code, out, _ = run("skip", 41, "--config", node.config)
        assert code == 0
        assert "node 1 skips entry 41 (term 3, crc " in out
        command = out.splitlines()[-1].rpartition(": ")[2]
        assert run("skips", node.data_dir)[1].split()[0] == "41"
        assert run("skips", "--config", node.config)[1].split()[0] == "41"
        assert run(*command.split()[2:], "--config", node.data_dir)[0] == 0
        assert run("skip", 41, "--config", node.data_dir, "--remove")[0] == 0
        assert run("skips", node.data_dir)[1] == ""

    def test_refusals(self, node: Node, run: Run) -> None:
        for index, why in ((10, "holds entry 10 already"), (43, "not in this node's log")):
            code, _, err = run("skip", index, "--config", node.data_dir)
            assert code == 1
            assert why in err
        code, _, err = run("skip", 42, "--config", node.data_dir)
        assert (code, "replication's own" in err) == (1, True)
        code, _, err = run("skip", 43, "--config", node.data_dir, "--entry", "x")
        assert (code, "TERM:CRC" in err) == (2, True)

    def test_a_running_node_is_refused(self, node: Node, run: Run) -> None:
        held = lock(node.data_dir)
        for action in (["dump"], ["verify"], ["skip", 41, "--config"], ["skips"]):
            code, _, err = run(*action, node.data_dir)
            assert code == 2
            assert "in use by process" in err
        os.close(held)

    def test_no_directory_and_no_configuration(self, run: Run, tmp_path: Path) -> None:
        assert run("verify", tmp_path)[0] == 2
        assert run("verify", tmp_path / "missing.toml")[0] == 2


@pytest.mark.parametrize("action", [["dump"], ["verify"], ["skips"]])
def test_a_node_is_named_by_its_settings_or_its_directory(
    node: Node, run: Run, action: list[str]
) -> None:
    by_path = run(*action, node.data_dir)
    assert run(*action, "--config", node.config) == by_path
    assert run(*action, node.config) == by_path
    assert run(*action, node.data_dir, "--config", node.config)[0] == 2

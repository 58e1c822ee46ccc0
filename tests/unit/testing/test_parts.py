"""The parts of the testing tools that need no cluster."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from nokv.errors import ConfigError, DataDirectoryError
from nokv.testing.commits import SerialCommits
from nokv.testing.demo import sources
from nokv.testing.folder import ClusterFolder, NodePorts, create
from nokv.testing.ports import RESERVED_MAX, free_ports, is_free, release_ports
from nokv.testing.writers import Journal, read_journal


def test_ports_are_free_different_and_no_outgoing_ones() -> None:
    ports = free_ports(40, random.Random(1))
    assert len(set(ports)) == 40
    first = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if first.exists():
        assert max(ports) < int(first.read_text().split()[0])
    with socket.create_server(("127.0.0.1", ports[0])):
        assert not is_free(ports[0])
    assert all(is_free(port) for port in ports[1:])


CHOOSE = """
import random
from nokv.testing.ports import free_ports
print(*free_ports(20, random.Random(7)))
"""


def test_a_port_is_reserved_while_the_process_that_chose_it_lives() -> None:
    mine = free_ports(20, random.Random(7))
    chosen = subprocess.check_output([sys.executable, "-c", CHOOSE], text=True)
    others = [int(port) for port in chosen.split()]
    assert len(set(others)) == 20
    assert not set(mine) & set(others), "the same draws, and ours are taken though nobody listens"
    assert not set(mine) & set(free_ports(20, random.Random(7)))
    for _ in range(2):  # a server that is started again finds its port as before
        with socket.create_server(("127.0.0.1", mine[0])), socket.socket() as client:
            client.connect(("127.0.0.1", mine[0]))


def test_a_released_port_can_be_chosen_by_another_process() -> None:
    mine = free_ports(20, random.Random(8))
    release_ports([*mine, 1])  # 1 was never reserved
    chosen = subprocess.check_output([sys.executable, "-c", CHOOSE.replace("7", "8")], text=True)
    assert set(mine) & {int(port) for port in chosen.split()}


MANY = f"""
import os
from nokv.testing.ports import free_ports
for _ in range(3):
    free_ports({RESERVED_MAX})
print(len(os.listdir("/proc/self/fd")))
"""


def test_reservations_are_bounded() -> None:
    descriptors = int(subprocess.check_output([sys.executable, "-c", MANY], text=True))
    assert RESERVED_MAX <= descriptors < RESERVED_MAX + 32


FOLLOWER = """
import signal, sys
from nokv.testing.lifeline import follow
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
follow(int(sys.argv[1]))
print("follows", flush=True)
signal.sigwait({signal.SIGTERM})
print("told", flush=True)
"""


def test_a_lifeline_tells_when_its_other_end_is_gone() -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-c", FOLLOWER, str(read_fd)]
    with subprocess.Popen(command, pass_fds=[read_fd], stdout=subprocess.PIPE) as process:
        os.close(read_fd)
        assert process.stdout is not None
        assert process.stdout.readline() == b"follows\n"
        os.close(write_fd)
        assert process.stdout.readline() == b"told\n"
    assert process.returncode == 0


def test_a_lifeline_takes_no_signal_of_the_process() -> None:
    """Its thread blocks all of them: they arrive where the program waits for them."""
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-c", FOLLOWER, str(read_fd)]
    with subprocess.Popen(command, pass_fds=[read_fd], stdout=subprocess.PIPE) as process:
        os.close(read_fd)
        assert process.stdout is not None
        assert process.stdout.readline() == b"follows\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"told\n"
    os.close(write_fd)
    assert process.returncode == 0


# ---------------------------------------------------------------- folders


MEMBERS = [NodePorts(i, 20_000 + i, 21_000 + i, 22_000 + i) for i in (1, 2, 3)]


def test_a_folder_is_found_again(tmp_path: Path) -> None:
    made = create(tmp_path / "cluster", MEMBERS, settings={"timing.heartbeat_ms": 50})
    found = ClusterFolder(tmp_path / "cluster")
    assert found.members == made.members == tuple(MEMBERS)
    assert found.addresses == "127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003"
    assert found.store.bucket == str(tmp_path / "cluster" / "store")
    assert "heartbeat_ms = 50" in (found.node_path(2) / "node.toml").read_text()
    assert not (tmp_path / "cluster" / "join.json").exists()
    assert [found.pid(node) for node in (1, 2, 3)] == [0, 0, 0]
    assert found.stop() == []
    assert not found.signal(1, signal.SIGTERM)
    with pytest.raises(ConfigError, match="no node 4"):
        found.member(4)
    with pytest.raises(DataDirectoryError, match="already"):
        create(tmp_path / "cluster", MEMBERS)


def test_a_wrong_setting_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heartbeat"):
        create(tmp_path / "cluster", MEMBERS, settings={"timing.heartbeat": 50})


# ---------------------------------------------------------------- journals and commits


def test_a_journal_without_an_outcome_is_unknown(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "below" / "journal")
    journal.write(number=2, kind="set")
    journal.write(number=1, kind="create")
    journal.write(number=1, outcome="done", generation=7)
    journal.close()
    found = read_journal(journal.path)
    assert [one["number"] for one in found] == [1, 2]
    assert [one["outcome"] for one in found] == ["done", "unknown"]
    assert found[0]["generation"] == 7


@pytest.mark.parametrize(
    ("times_s", "gap_s"),
    [
        ([], None),
        ([1.0, 2.0], None),
        ([9.0, 11.0], 1.0),
        ([9.0, 10.25, 12.25, 12.5], 2.0),
        ([9.0, 10.5, 10.75, 60.0], 0.5),
        ([60.0], 50.0),
    ],
)
def test_the_time_without_commits(times_s: list[float], gap_s: float | None) -> None:
    commits = SerialCommits()
    commits.times_s = times_s
    assert commits.gap_after(10.0) == gap_s


# ---------------------------------------------------------------- sources of the demonstration


@pytest.mark.parametrize("library", [True, False])
def test_checkpoints_are_safetensors(
    library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    made = sources.make_checkpoint(tmp_path / "checkpoint", 4 << 20)
    assert made.files == sources.SHARDS + 2
    assert 4 << 20 <= made.n_bytes < (4 << 20) + 65_536
    tensors = [
        tensor
        for path in sorted((tmp_path / "checkpoint").glob("model-*.safetensors"))
        for tensor in load_file(path).values()
    ]
    assert len(tensors) == sources.SHARDS * sources.TENSORS
    assert sum(tensor.nbytes for tensor in tensors) == 4 << 20
    assert (tmp_path / "checkpoint" / "latest.safetensors").is_file()

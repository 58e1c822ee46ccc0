"""Entries that no build can apply stop every node, are skipped on all, and the cluster goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest

from nokv import connect_sync
from nokv.cli.main import main
from nokv.server.config import load
from nokv.server.datadir import log_path, read_identity, replication_identity
from nokv.testing.cluster import LocalCluster
from nokv_replication import GroupConfig
from nokv_replication.disk import OsDisk
from nokv_replication.driver import EXIT_FATAL
from nokv_replication.frames import EntryKind, decode_entry, encode_entry
from nokv_replication.log import Log

pytestmark = pytest.mark.cluster


def plant(cluster: LocalCluster) -> int:
    """Write what builds that are gone could have written, as if a leader had replicated it.

    An entry of a format to come, and a command that no build knows; return the first's index.
    """
    logs = {}
    for node in cluster.nodes:
        data_dir = data_directory(cluster, node)
        identity = replication_identity(read_identity(data_dir))
        disk = OsDisk(log_path(data_dir))
        logs[node] = Log.open(disk, GroupConfig(), identity, Random(node))
    longest = max(logs.values(), key=lambda log: log.last_index)
    first, term = longest.last_index + 1, longest.last_term
    times = decode_entry(longest.entry(longest.last_index), longest.last_index).times
    unknown = encode_entry(times, [msgspec.msgpack.encode([9, "?"])], EntryKind.COMMANDS)
    later = msgspec.msgpack.encode([2, 0, 0, [b"?"], 0, "a field to come"])
    tail = [(longest.term_at(i), longest.entry(i)) for i in range(longest.first_index, first)]
    tail += [(term, later), (term, unknown)]
    for log in logs.values():
        for index in range(log.last_index + 1, first + 2):
            entry_term, command = tail[index - longest.first_index]
            log.append(command, index, entry_term)
        log.sync()
    for log in logs.values():
        log.close()
    return first


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.05)


def data_directory(cluster: LocalCluster, node: int) -> Path:
    return Path(load(config(cluster, node)).data_dir)


def config(cluster: LocalCluster, node: int) -> Path:
    return cluster.folder.node_path(node) / "node.toml"


def skip(cluster: LocalCluster, node: int, index: int) -> None:
    assert main(["raft-log", "skip", str(index), "--config", str(config(cluster, node))]) == 0


def test_a_poisoned_entry_is_skipped_by_all_and_the_cluster_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with LocalCluster.start() as cluster:
        with connect_sync(cluster.addresses) as fs:
            fs.mkdir("/before")
        for node in cluster.nodes:
            cluster.stop(node)
        index = plant(cluster)
        for node in cluster.nodes:
            cluster.start_node(node)
        # Whoever learns that it is committed stops; the last one may have nobody to learn it from.
        wait_for(lambda: sum(cluster.is_running(node) for node in cluster.nodes) <= 1)
        fatal = []
        for node in cluster.nodes:
            running = cluster.is_running(node)
            code = cluster.stop(node) if running else cluster.wait_exit(node)
            # One that runs may stop for the entry, too, before the signal arrives.
            assert code in ((0, EXIT_FATAL) if running else (EXIT_FATAL,))
            if code == EXIT_FATAL:
                fatal.append(node)
                text = cluster.folder.log_path(node).read_text()
                assert f"`nokv raft-log skip {index}`" in text
        assert len(fatal) >= 2
        first, second, third = cluster.nodes
        for node in (first, second):
            for poisoned in (index, index + 1):
                skip(cluster, node, poisoned)
        # The third has not been told: the others refuse it, and it stays at the entry before.
        for node in cluster.nodes:
            cluster.start_node(node)
        cluster.wait_ready((first, second))

        def refused() -> bool:
            status = cluster.status(third)
            return status is not None and "must skip the same" in status["problem"]

        wait_for(refused)
        status = cluster.status(third)
        assert status is not None
        assert status["applied_index"] < index
        capfd.readouterr()
        main(["--cluster", cluster.addresses, "status"])
        (row,) = [one for one in capfd.readouterr().out.splitlines() if "not ready" in one]
        assert "must skip the same" in row
        cluster.stop(third)
        for poisoned in (index, index + 1):
            skip(cluster, third, poisoned)
        cluster.start_node(third)
        cluster.wait_ready()
        with connect_sync(cluster.addresses) as fs:
            fs.mkdir("/after")
            assert sorted(fs.listdir("/")) == ["after", "before"]
        for node in cluster.nodes:
            cluster.wait_caught_up(node)
            found = cluster.status(node)
            assert found is not None
            assert [entry["index"] for entry in found["skips"]] == [index, index + 1]
        # A node that is past the entry can't take it back.
        cluster.stop(first)
        arguments = ["raft-log", "skip", str(index), "--remove"]
        assert main([*arguments, "--config", str(config(cluster, first))]) == 1

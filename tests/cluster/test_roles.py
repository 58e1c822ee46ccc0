"""What nodes tell of leadership: one line of log a change, with term and reason; metrics beside."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nokv import connect_sync
from nokv.testing.cluster import LocalCluster, probe

pytestmark = pytest.mark.cluster


def changes(cluster: LocalCluster, node: int) -> list[dict[str, Any]]:
    lines = cluster.folder.log_path(node).read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if "role" in line]


def metrics(cluster: LocalCluster, node: int) -> dict[str, float]:
    (member,) = [one for one in cluster.members if one.node == node]
    code, body = probe(member.http_address, "/metrics")
    assert code == 200
    samples = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in samples)}


def test_each_change_of_role_is_one_line_and_metrics_agree() -> None:
    with LocalCluster.start() as cluster:
        with connect_sync(cluster.addresses) as fs:
            for number in range(20):
                fs.mkdir(f"/{number}")
            first = cluster.leader()
            cluster.kill(first)
            cluster.restart(first)
            fs.mkdir("/after")
        leader = cluster.leader()
        cluster.wait_ready()
        for node in cluster.nodes:
            role = "follower"
            for line in changes(cluster, node):
                # A process starts as a follower, and says nothing of it.
                was = line["was"] if line["was"] != role and node == first else role
                assert line["was"] == was
                assert line["role"] != line["was"]
                assert line["term"] > 0
                assert line["message"].startswith("role changes: ")
                role = line["role"]
            status = cluster.status(node)
            assert status is not None
            assert status["role"] == role or node == first
            found = metrics(cluster, node)
            assert found["nokv_raft_leader"] == (node == leader)
            assert found["nokv_raft_leader_node"] == leader
            assert found["nokv_raft_term"] == status["term"]
            assert found["nokv_raft_log_sync_seconds_count"] > 0
        found = metrics(cluster, leader)
        assert found["nokv_raft_commit_seconds_count"] > 0
        assert found["nokv_raft_commit_seconds_sum"] > 0
        followers = [node for node in cluster.nodes if node != leader]
        for node in followers:
            assert found[f'nokv_raft_peer_connected{{peer="{node}"}}'] == 1
            assert found[f'nokv_raft_peer_lag_entries{{peer="{node}"}}'] < 100
            assert found[f'nokv_raft_peer_sync_seconds{{peer="{node}"}}'] > 0

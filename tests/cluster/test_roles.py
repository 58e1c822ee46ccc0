"""What nodes tell of leadership: one line of log a change, with term and reason; metrics beside."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from nokv import connect_sync
from nokv.testing.cluster import LocalCluster, probe

pytestmark = pytest.mark.cluster

AGREE_S = 60.0
PROBE_S = 10.0


def changes(cluster: LocalCluster, node: int) -> list[dict[str, Any]]:
    lines = cluster.folder.log_path(node).read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if "role" in line]


def last_role(cluster: LocalCluster, node: int, *, restarted: bool) -> str:
    """Return the role that a node's log ends with; every change must begin where the last ended."""
    role = "follower"
    for line in changes(cluster, node):
        # A process starts as a follower, and says nothing of it.
        was = line["was"] if line["was"] != role and restarted else role
        assert line["was"] == was
        assert line["role"] != line["was"]
        assert line["term"] > 0
        assert line["message"].startswith("role changes: ")
        role = line["role"]
    return role


def metrics(cluster: LocalCluster, node: int) -> dict[str, float]:
    (member,) = [one for one in cluster.members if one.node == node]
    code, body = probe(member.http_address, "/metrics", PROBE_S)
    assert code == 200
    samples = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in samples)}


def differences(cluster: LocalCluster, restarted: int) -> list[str]:
    """Return in what the nodes' logs, status and metrics do not agree on who leads."""
    leader = cluster.leader()
    wrong: list[str] = []
    for node in cluster.nodes:
        role = last_role(cluster, node, restarted=node == restarted)
        status, found = cluster.status(node) or {}, metrics(cluster, node)
        facts = {
            "role": status.get("role") == role or node == restarted,
            "leader": found["nokv_raft_leader"] == (node == leader),
            "leader's number": found["nokv_raft_leader_node"] == leader,
            "term": found["nokv_raft_term"] == status.get("term"),
            "syncs": found["nokv_raft_log_sync_seconds_count"] > 0,
        }
        if node == leader:
            facts["commits"] = found["nokv_raft_commit_seconds_count"] > 0
            facts["time of commits"] = found["nokv_raft_commit_seconds_sum"] > 0
            for peer in set(cluster.nodes) - {leader}:
                # A node that led a moment ago has none of these any more.
                of = {
                    name: found.get(f'nokv_raft_peer_{name}{{peer="{peer}"}}')
                    for name in ("connected", "lag_entries", "sync_seconds")
                }
                facts[f"connection with {peer}"] = of["connected"] == 1
                facts[f"lag of {peer}"] = (of["lag_entries"] or 0) < 100
                facts[f"syncs of {peer}"] = (of["sync_seconds"] or 0) > 0
        wrong += [f"node {node}: {name}" for name, holds in facts.items() if not holds]
    return wrong


def test_each_change_of_role_is_one_line_and_metrics_agree() -> None:
    with LocalCluster.start() as cluster, connect_sync(cluster.addresses) as fs:
        for number in range(20):
            fs.mkdir(f"/{number}")
        first = cluster.leader()
        cluster.kill(first)
        cluster.restart(first)
        cluster.wait_ready()
        # Pages and logs are not read in one moment, and a slow machine may elect another leader.
        end_s = time.monotonic() + AGREE_S
        wrong = ["nothing was compared"]
        while wrong and time.monotonic() < end_s:
            fs.mkdir(f"/after-{time.monotonic_ns()}")
            wrong = differences(cluster, first)
        assert wrong == []

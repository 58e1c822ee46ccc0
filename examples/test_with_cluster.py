"""Your own tests against a real cluster: the fixture comes with the package.

pytest examples/test_with_cluster.py
"""

from __future__ import annotations

import nokv
from nokv.testing.cluster import LocalCluster


def test_a_file_survives_the_leader(nokv_cluster: LocalCluster) -> None:
    """Kill the leader between a write and a read."""
    with nokv.connect_sync(nokv_cluster.addresses) as fs:
        fs.mkdir("/example", exist_ok=True)
        fs.write_bytes("/example/file", b"kept")
        leader = nokv_cluster.leader()
        nokv_cluster.kill(leader)
        assert fs.read("/example/file") == b"kept"
        nokv_cluster.restart(leader)

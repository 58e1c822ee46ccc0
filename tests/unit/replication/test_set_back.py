"""A follower that comes back over an older copy of its directory: what its leader makes of it."""

import copy

from tests.regressions.group import bodies, committed, led
from tests.simulation.ports import MS_NS
from tests.simulation.script import Script

from nokv_replication import Status
from nokv_replication.frames import Ack, Append


class Copy:
    """A node's log and state as they were, to be put back."""

    def __init__(self, script: Script, node: int) -> None:
        self._disk = copy.deepcopy(script.disks[node])
        self._storage = copy.deepcopy(script.storages[node])

    def restore(self, script: Script, node: int) -> None:
        """Start a dead node over the copy, and connect it to all."""
        script.disks[node], script.storages[node] = self._disk, self._storage
        script.checker.replicas[node].damaged = True
        script.checker.forget(node)
        script.start(node)
        script.connect_all()


def restored(nodes: int, *payloads: bytes) -> Script:
    """A group whose node 3 alone acknowledged these to the leader, and came back without them."""
    script = led(nodes)
    older = Copy(script, 3)
    for node in range(2, nodes + 1):
        if node != 3:
            script.isolate(node)
    for payload in payloads:
        script.propose(1, payload)
        script.deliver(1, 3)
        script.deliver(3, 1)
    assert script.groups[1].status().peers[1].match_index == script.groups[1].status().last_index
    script.crash(3)
    older.restore(script, 3)
    return script


def restart(script: Script, node: int) -> None:
    script.crash(node, power=True)
    script.start(node)
    script.connect_all()


def beat(script: Script) -> Status:
    """Let the leader's next heartbeat be answered by all."""
    script.wait(100 * MS_NS)
    script.settle()
    return script.groups[1].status()


def test_the_leader_says_which_node_it_is_and_what_to_do() -> None:
    script = restored(3, b"x", b"y")
    index = script.groups[1].status().last_index
    status = beat(script)
    assert status.counters.peers_set_back == 1
    assert [peer.lost_index for peer in status.peers] == [0, index]
    [warning] = script.groups[1].warnings
    assert f"node 3 came back without entries up to {index}" in warning
    assert "Add a new node, and remove node 3" in warning
    assert status.problem == warning
    # It is sent what it lacks all the same, and is told of once.
    script.propose(1, b"z")
    script.settle()
    assert script.machines[3].items == [b"x", b"y", b"z"]
    restart(script, 3)
    assert beat(script).counters.peers_set_back == 1
    assert script.groups[1].status().problem == warning


def test_a_node_that_was_removed_is_no_problem_any_more() -> None:
    script = restored(3, b"x")
    assert "came back" in beat(script).problem
    script.groups[1].remove_member(3, lambda _outcome: None)
    script.settle()
    assert [member.node for member in script.groups[1].status().members] == [1, 2]
    assert script.groups[1].status().problem == ""


def test_what_it_acknowledged_before_does_not_count() -> None:
    """Of five voters the leader and node 2 hold an entry; node 3 did, and its copy does not."""
    script = restored(5, b"x")
    for node in (3, 4, 5):
        script.links[1, node].clear()
    script.wait(100 * MS_NS)
    script.step(1)
    script.deliver(1, 2)
    script.deliver(2, 1)
    script.wait(20 * MS_NS)
    script.step(1)
    assert script.groups[1].status().peers[0].match_index == script.groups[1].status().last_index
    assert not committed(script, b"x")
    assert beat(script).counters.peers_set_back == 1
    assert committed(script, b"x")


def test_a_node_that_was_only_away_counts_again_with_its_next_answer() -> None:
    script = led(3)
    script.isolate(2)
    script.propose(1, b"x")
    script.settle(1, 3)
    for _ in range(3):
        restart(script, 3)
        script.isolate(2)
    script.step(1)
    script.wait(100 * MS_NS)
    script.settle(1, 3)
    status = script.groups[1].status()
    assert status.peers[1].match_index == status.last_index
    assert (status.counters.peers_set_back, status.problem) == (0, "")


def test_a_refusal_of_an_append_behind_a_lost_one_is_no_proof() -> None:
    script = led(3)
    script.cut(1, 3)
    script.connect(1, 3)
    script.propose(1, b"x")  # leaves with the first append of this connection
    assert len(bodies(script, 1, 3, Append)) == 1
    script.links[1, 3].clear()
    script.propose(1, b"y")
    script.deliver(1, 3)
    [refusal] = bodies(script, 3, 1, Ack)
    assert isinstance(refusal, Ack)
    assert refusal.reset
    script.deliver(3, 1)
    assert beat(script).counters.peers_set_back == 0
    assert script.machines[3].items == [b"x", b"y"]


def test_what_another_leader_replaced_was_not_lost() -> None:
    """Node 1 leads again, on the same connection to node 3, which still holds a replaced entry."""
    script = led(5)
    for node in (2, 4, 5):
        script.cut(1, node)
        script.cut(3, node)
    script.propose(1, b"x")
    script.deliver(1, 3)
    script.deliver(3, 1)
    script.cut(1, 3)
    script.connect(1, 3)
    script.step(1)
    assert script.groups[1]._peers[3].owed_index == script.groups[1].status().last_index
    assert bodies(script, 1, 3, Append) == []
    script.elect(2, 4, 5)
    for node in (2, 4, 5):
        script.connect(1, node)
    script.settle(1, 2, 4, 5)
    assert script.log(1) == script.log(2) != script.log(3)
    script.elect(1, 2, 4, 5)
    script.settle(1, 3)
    assert script.log(1) == script.log(3)
    status = script.groups[1].status()
    assert (status.counters.peers_set_back, status.problem) == (0, "")

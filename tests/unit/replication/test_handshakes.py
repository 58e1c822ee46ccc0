"""Handshakes: who is refused, and how long that is an operator's problem."""

from random import Random

import msgspec
import pytest
from tests.simulation.disk import SimDisk
from tests.simulation.machine import ListStorage
from tests.simulation.ports import SECOND_NS
from tests.simulation.script import Script

from nokv_replication import HandshakeRefused, initialise


def leading() -> Script:
    script = Script(3)
    script.lead(1)
    script.settle()
    return script


def test_a_wiped_node_is_a_stranger() -> None:
    script = leading()
    script.crash(3)
    script.incarnations[3] = 999
    script.disks[3], script.storages[3] = SimDisk(), ListStorage()
    script.checker.forget(3)
    initialise(script.disks[3], script.config, script.identity(3), Random(0))
    script.start(3)
    for peer in (1, 2):
        with pytest.raises(HandshakeRefused, match="another incarnation"):
            script.groups[peer].greet(script.groups[3].hello(5))
    assert "another incarnation" in script.groups[1].status().problem
    assert not script.groups[3].status().ready


def test_a_build_that_could_not_apply_the_log_is_refused() -> None:
    script = leading()
    group = script.groups[1]
    group._roster.needed_machine_format = lambda: 2
    with pytest.raises(HandshakeRefused, match="up to 0, and the group is at 2: upgrade node"):
        group.greet(script.groups[2].hello(7))
    able = msgspec.msgpack.decode(script.groups[2].hello(7))
    able[7] = 2
    assert group.greet(msgspec.msgpack.encode(able)).node == 2
    group.disconnected(2)


def test_a_refusal_is_a_problem_until_that_peer_is_accepted() -> None:
    script = leading()
    one, hello = script.groups[1], msgspec.msgpack.decode(script.groups[2].hello(7))
    stranger = msgspec.msgpack.encode([hello[0], "other", *hello[2:]])
    with pytest.raises(HandshakeRefused, match="cluster"):
        one.greet(stranger)
    one.greet(script.groups[3].hello(8))  # says nothing of node 2
    assert "cluster" in one.status().problem
    one.greet(script.groups[2].hello(9))
    assert one.status().problem == ""


def test_a_refusal_is_a_problem_while_it_is_repeated() -> None:
    script = leading()
    one = script.groups[1]
    # By whom this node was refused is not in the refusal; it is asked again every second.
    refusal = msgspec.msgpack.encode("node 1 is no peer of node 9")
    with pytest.raises(HandshakeRefused):
        one.greet(refusal)
    script.wait(9 * SECOND_NS)
    script.settle()
    assert "no peer of node 9" in one.status().problem
    with pytest.raises(HandshakeRefused):
        one.greet(refusal)
    script.wait(9 * SECOND_NS)
    script.settle()
    assert "no peer of node 9" in one.status().problem
    script.wait(SECOND_NS)
    script.settle()
    assert one.status().problem == ""


def test_another_cluster_format_or_unknown_node_is_refused() -> None:
    script = leading()
    hello = msgspec.msgpack.decode(script.groups[2].hello(7))
    for position, value, text in (
        (0, 2, "format"),
        (1, "other", "cluster"),
        (2, 1, "no peer"),
        (4, b"x" * 16, "another list"),
    ):
        changed = [*hello[:position], value, *hello[position + 1 :]]
        with pytest.raises(HandshakeRefused, match=text):
            script.groups[1].greet(msgspec.msgpack.encode(changed))


def test_a_member_replaced_while_founding_stops_the_founding() -> None:
    script = Script(3, found=False)
    script.connect_all()
    script.step(1)  # node 1 has synced {101, 102, 103}
    script.cut(2, 3)
    hello = msgspec.msgpack.decode(script.groups[3].hello(50))
    changed = [*hello[:3], 999, *hello[4:]]
    script.groups[2].greet(msgspec.msgpack.encode(changed))
    script.cut(1, 2)
    script.groups[2].greet(script.groups[1].hello(51))
    script.step(2)
    assert "initialise all anew" in script.groups[2].status().problem
    assert not script.groups[2].status().ready
    script.wait(60 * SECOND_NS)
    script.step(2)
    assert "initialise all anew" in script.groups[2].status().problem
    script.groups[2].greet(script.groups[3].hello(52))
    script.step(2)
    assert script.groups[2].status().problem == ""

"""What a client remembers of a cluster's nodes while its members change."""

from __future__ import annotations

import pytest

from nokv.client.nodes import NODES_MAX, Nodes
from nokv.errors import InvalidArgument
from nokv.wire.rpc import Member


def address(number: int) -> str:
    return f"127.0.0.1:{7100 + number}"


def member(number: int) -> Member:
    return Member(number, 1, True, f"127.0.0.1:{7200 + number}", address(number))


def known(nodes: Nodes) -> set[str]:
    return {node.address for node in nodes}


def test_members_are_learnt_and_removed_ones_are_forgotten() -> None:
    nodes = Nodes([address(1), address(2)])
    for node, number in zip(nodes, (1, 2), strict=True):
        nodes.answered(node, number)
    assert nodes.keep([member(1), member(2), member(3)]) == []
    assert known(nodes) == {address(1), address(2), address(3)}
    (gone,) = nodes.keep([member(2), member(3), member(4)])
    assert gone.number == 1
    assert known(nodes) == {address(2), address(3), address(4)}
    with pytest.raises(InvalidArgument):
        nodes.find(1)
    assert nodes.find(4).address == nodes.resolve(address(4)).address == address(4)


def test_all_the_nodes_that_one_began_with_may_go() -> None:
    nodes = Nodes([address(1)])
    nodes.answered(next(iter(nodes)), 1)
    nodes.keep([member(1), member(2)])
    nodes.keep([member(2)])
    assert known(nodes) == {address(2)}


def test_a_node_that_never_answered_stays() -> None:
    """Which number it has is not known: it may be a member's other address."""
    nodes = Nodes([address(1), "10.0.0.1:7"])
    nodes.answered(nodes.find(address(1)), 1)
    nodes.keep([member(2)])
    assert known(nodes) == {"10.0.0.1:7", address(2)}


def test_a_node_reached_elsewhere_is_found_by_what_others_call_it() -> None:
    nodes = Nodes(["10.0.0.1:7"])
    (node,) = nodes
    nodes.answered(node, 1)
    nodes.learn(1, address(1))
    assert nodes.resolve(address(1)) is node
    assert nodes.find(address(1)) is node
    assert nodes.keep([member(1)]) == []


def test_it_remembers_only_so_many() -> None:
    nodes = Nodes([address(1)])
    for number in range(2, 2 * NODES_MAX):
        nodes.learn(number, address(number))
    assert len(known(nodes)) == NODES_MAX
    assert nodes.resolve("10.0.0.1:7").address == "10.0.0.1:7"
    assert len(known(nodes)) == NODES_MAX

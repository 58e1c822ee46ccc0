"""What operators do to a simulated group: members come and go, leadership is handed over.

Nothing is asked for that would leave the group without a living majority: that is the operator's
duty, and the atlas knows what is lost. All else is tried, at any time.
"""

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.node import Node
from tests.simulation.ports import MS_NS

from nokv_replication import Committed, Member, ReplicationError
from nokv_replication.bootstrap import MEMBERS_MAX, NODES_MAX

if TYPE_CHECKING:
    from tests.simulation.cluster import Simulation

NODES_EVER_MAX = 14


class Operations:
    """Changes of members and leaders of one run."""

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation = simulation
        self.rng: Random = simulation.rng

    def _leader(self) -> Node | None:
        leaders = self.simulation.leaders()
        return self.rng.choice(leaders) if leaders else None

    # ------------------------------------------------------------------ leadership

    def transfer(self) -> bool:
        """Hand leadership to somebody, or to whom the leader chooses."""
        leader = self._leader()
        if leader is None or leader.group is None:
            return False
        targets = [None, *(member.node for member in leader.group.members)]
        leader.group.transfer(self.rng.choice(targets), partial(self._done, "transfer"))
        return True

    def _done(self, what: str, outcome: Committed | ReplicationError) -> None:
        self.simulation.stats[f"{what} {type(outcome).__name__}"] += 1

    # ------------------------------------------------------------------ members

    def change(self) -> bool:
        """Add, promote or remove a member, at a leader."""
        leader = self._leader()
        if leader is None or leader.group is None or not leader.group.members:
            return False
        members = {member.node: member for member in leader.group.members}
        learners = [node for node, member in members.items() if not member.voter]
        choices = [partial(self._add, leader, members)]
        choices += [partial(self._promote, leader, members, node) for node in learners] * 3
        choices += [
            partial(self._remove, leader, members, node)
            for node in members
            if node != leader.node or self.rng.random() < 0.1
        ]
        return self.rng.choice(choices)()

    def _add(self, leader: Node, members: dict[int, Member]) -> bool:
        assert leader.group is not None
        simulation = self.simulation
        if len(members) >= MEMBERS_MAX:
            return False
        highest = max(members)
        free = [n for n in simulation.nodes.values() if n.joins and n.node > highest and not n.dead]
        if free:
            node = free[0]
        elif len(simulation.nodes) < NODES_EVER_MAX:
            node = simulation.new_joiner({n: m.address for n, m in members.items()})
        else:
            return False
        member = Member(node.node, node.incarnation, f"node-{node.node}:1", voter=False)
        leader.group.add_member(member, partial(self._done, "add"))
        return True

    def _voters_after(
        self, members: dict[int, Member], node: int, *, voter: bool
    ) -> frozenset[int]:
        voters = {n for n, member in members.items() if member.voter} - {node}
        return frozenset(voters | {node} if voter else voters)

    def _promote(self, leader: Node, members: dict[int, Member], node: int) -> bool:
        assert leader.group is not None
        voters = self._voters_after(members, node, voter=True)
        if len(voters) > NODES_MAX or not self.simulation.atlas.survives_with(voters):
            return False
        token = self.simulation.atlas.plan(voters)
        leader.group.promote_member(node, partial(self._settled, "promote", token))
        return True

    def _remove(self, leader: Node, members: dict[int, Member], node: int) -> bool:
        assert leader.group is not None
        voters = self._voters_after(members, node, voter=False)
        if not voters or not self.simulation.atlas.survives_with(voters):
            return False
        token = self.simulation.atlas.plan(voters)
        leader.group.remove_member(node, partial(self._removed, node, token))
        return True

    def _settled(self, what: str, token: int, outcome: Committed | ReplicationError) -> None:
        self.simulation.atlas.settled(token)
        self._done(what, outcome)

    def _removed(self, node: int, token: int, outcome: Committed | ReplicationError) -> None:
        self._settled("remove", token, outcome)
        if isinstance(outcome, Committed) and self.rng.random() < 0.5:
            # Its machine is switched off at last; until then it may try what it likes.
            simulation = self.simulation

            def switch_off() -> None:
                simulation.crash(simulation.nodes[node], power=False)
                simulation.nodes[node].dead = "removed"

            simulation.at(simulation.now_ns + self.rng.randint(100, 5000) * MS_NS, switch_off)

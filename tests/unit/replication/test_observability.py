"""What a replica tells of itself: roles with their reasons, latencies, slow disks."""

import pytest
from tests.simulation.disk import SimDisk
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, Role
from nokv_replication.histogram import BOUNDS_NS, Histogram
from nokv_replication.roles import reason_of

Change = tuple[str, int, str]


def watched(nodes: int = 3) -> tuple[Script, dict[int, list[Change]]]:
    script = Script(nodes)
    changes: dict[int, list[Change]] = {node: [] for node in script.groups}
    for node, group in script.groups.items():

        def note(role: Role, term: int, reason: str, node: int = node) -> None:
            changes[node].append((role.name.lower(), term, reason))

        group._on_role_change = note
    return script, changes


class TestRoles:
    def test_one_call_a_change_with_term_and_reason(self) -> None:
        script, changes = watched()
        script.lead(1)
        assert [(role, term) for role, term, _ in changes[1]] == [("candidate", 1), ("leader", 1)]
        assert "a quorum voted" in changes[1][1][2]
        assert changes[2] == changes[3] == [], "a follower that learns a term stays a follower"
        script.isolate(1)
        script.elect(2, 3)
        assert [(role, term) for role, term, _ in changes[2]] == [("candidate", 2), ("leader", 2)]
        script.connect_all()
        script.wait(100 * MS_NS)
        script.step(2)
        script.deliver(2, 1)
        assert changes[1][2] == ("follower", 2, "node 2 leads")
        assert len(changes[1]) == 3

    def test_a_leader_that_is_cut_off_says_so(self) -> None:
        script, changes = watched()
        script.lead(1)
        script.isolate(1)
        for _ in range(24):
            script.wait(100 * MS_NS)
            script.step(1)
        role, _, reason = changes[1][-1]
        assert (role, reason) == ("follower", "a quorum did not answer in time")

    @pytest.mark.parametrize(
        ("was", "role", "newer", "leader", "words"),
        [
            (Role.FOLLOWER, Role.CANDIDATE, True, None, "no leader was heard"),
            (Role.CANDIDATE, Role.LEADER, False, 1, "a quorum voted"),
            (Role.CANDIDATE, Role.FOLLOWER, False, 3, "node 3 leads"),
            (Role.CANDIDATE, Role.FOLLOWER, True, None, "a newer term"),
            (Role.CANDIDATE, Role.FOLLOWER, False, None, "not won"),
            (Role.LEADER, Role.FOLLOWER, True, 2, "node 2 leads"),
            (Role.LEADER, Role.FOLLOWER, True, None, "a newer term"),
            (Role.LEADER, Role.FOLLOWER, False, None, "a quorum did not answer"),
        ],
    )
    def test_reasons(
        self, was: Role, role: Role, newer: bool, leader: int | None, words: str
    ) -> None:
        assert words in reason_of(was, role, newer_term=newer, leader=leader)


class SlowDisk(SimDisk):
    """Each sync takes a while on the node's clock."""

    def __init__(self, script: Script, node: int, duration_ns: int) -> None:
        super().__init__()
        self.__dict__.update(script.disks[node].__dict__)
        self._script, self._node, self.duration_ns = script, node, duration_ns

    def fdatasync(self, handle: int) -> None:
        super().fdatasync(handle)
        clock = self._script.clocks[self._node]
        clock.enter(clock.monotonic_ns() + self.duration_ns)
        self._script.wait(self.duration_ns)


class TestLatency:
    def test_proposals_are_timed_from_their_arrival_to_their_end(self) -> None:
        script = Script(3)
        script.lead(1)
        assert sum(script.groups[1].status().commit_latency.counts) == 0
        for number in range(3):
            script.groups[1].propose(b"%d" % number, lambda _outcome: None)
        script.wait(7 * MS_NS)
        script.settle(rounds=5)
        found = script.groups[1].status().commit_latency
        assert sum(found.counts) == 3
        assert found.total_ns >= 3 * 7 * MS_NS
        assert sum(script.groups[2].status().commit_latency.counts) == 0

    def test_commits_of_the_machine_are_timed_and_their_age_is_told(self) -> None:
        script = Script(3)
        script.lead(1)
        script.settle(rounds=60)
        status = script.groups[1].status()
        assert status.uncommitted_ns == 0
        assert sum(status.machine_commit.counts) == status.counters.machine_commits > 0
        script.propose(1, b"x")
        script.settle(rounds=2)
        assert isinstance(script.outcomes[b"x"], Committed)
        script.wait(100 * MS_NS)
        script.step(1)
        assert 100 * MS_NS <= script.groups[1].status().uncommitted_ns < SECOND_NS

    def test_a_slow_disk_is_told_before_it_costs_anything(self) -> None:
        script = Script(3)
        script.lead(1)
        term = script.groups[1].status().term
        slow = SlowDisk(script, 2, CONFIG.heartbeat_ns // 3)
        script.groups[2]._log._disk = slow
        for number in range(10):
            script.propose(1, b"%d" % number)
            script.settle(rounds=3)
        status = script.groups[2].status()
        assert status.slow_disk
        assert status.recent_sync_ns == CONFIG.heartbeat_ns // 3
        assert "A slow disk" in status.problem
        (peer,) = [one for one in script.groups[1].status().peers if one.node == 2]
        assert peer.sync_ns > CONFIG.heartbeat_ns // 4
        assert not script.groups[1].status().slow_disk
        assert script.groups[1].status().term == term
        slow.duration_ns = 0
        for number in range(20):
            script.propose(1, b"later %d" % number)
            script.settle(rounds=3)
        assert not script.groups[2].status().slow_disk
        assert script.groups[2].status().problem == ""


def test_a_duration_counts_at_the_first_bound_it_does_not_exceed() -> None:
    found = Histogram()
    for duration_ns in (0, BOUNDS_NS[0], BOUNDS_NS[0] + 1, BOUNDS_NS[-1], BOUNDS_NS[-1] + 1):
        found.observe(duration_ns)
    found.observe(BOUNDS_NS[1], times=5)
    picture = found.picture()
    assert picture.counts[:2] == (2, 6)
    assert picture.counts[-2:] == (1, 1)
    assert len(picture.counts) == len(picture.bounds_ns) + 1
    assert sum(picture.counts) == 10

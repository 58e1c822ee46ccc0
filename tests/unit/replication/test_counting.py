"""What was counted under one configuration does not count under the next one.

Votes, pre-votes, confirmations of reads, acknowledgements and clocks are each held while the
configuration in force may change: by an image, by entries, by a change of this leader.
"""

import msgspec
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, GroupConfig, Outcome, Role
from nokv_replication.frames import PreVoteGranted, ProbeOk, TimeoutNow, Vote
from nokv_replication.records import HardState

SMALL = msgspec.structs.replace(
    CONFIG,
    segment_bytes=1024,
    log_keep_bytes=0,
    image_window_bytes=4000,
    inflight_bytes=3000,
    commit_interval_ns=MS_NS,
)
MAJORITY = (1, 2, 4)


def remove(script: Script, node: int, *among: int) -> None:
    outcomes: list[Outcome] = []
    script.groups[1].remove_member(node, outcomes.append)
    script.settle(*among, rounds=10)
    assert isinstance(outcomes[0], Committed), outcomes


class Candidate(Script):
    """Seven nodes; 7 is offered an image without 5 and 6, and stands while it is on its way.

    7 and the lagging 3 and 6 know the first configuration only; 6 has voted, 3's vote is delayed.
    """

    def __init__(self, config: GroupConfig = SMALL) -> None:
        super().__init__(7, config=config)
        self.lead(1)
        self.settle()
        self.groups[1].transfer(7, lambda _outcome: None)
        self.step(1)
        for lagging in (3, 6):
            for other in (1, 2, 4, 5):
                self.cut(lagging, other)
        self.cut(3, 6)
        told = [frame.body for frame in self.on_the_way(1, 7)]
        assert isinstance(told[-1], TimeoutNow)
        # Not delivered to 7: the transfer is given up, and the others go on.
        self.settle(1, 2, 4, 5, rounds=70)
        for removed in (6, 5):
            remove(self, removed, 1, 2, 4, 5)
        for i in range(100):
            self.propose(1, b"%d" % i + bytes(100))
            self.go_on(2)
        while (1, 7) not in self.images:
            self.go_on(1)
            self.connect_images()
        self.move_image()
        assert self.groups[7].status().images
        self.deliver(1, 7, len(told))
        assert (self.role(7), self.groups[7].status().term) == (Role.CANDIDATE, 2)
        self.deliver(7, 6)
        self.deliver(6, 7)
        self.deliver(7, 3)
        assert any(isinstance(frame.body, Vote) for frame in self.on_the_way(3, 7))
        while not self.groups[7].counters.images_installed:
            self.go_on(1)
            self.move_image()

    def go_on(self, rounds: int) -> None:
        """Let the majority talk; nothing reaches 7."""
        for _ in range(rounds):
            self.wait(20 * MS_NS)
            for node in MAJORITY:
                self.step(node)
            for node in MAJORITY:
                for other in MAJORITY:
                    self.deliver(node, other)

    def move_image(self) -> None:
        self.wait(MS_NS)
        self.step(1)
        self.deliver_image(1, 7, 7)
        self.deliver_image(1, 7, 1)


class TestVotes:
    def test_a_candidate_that_installs_an_image_is_none_any_more(self) -> None:
        """Else two votes of five, one of a removed node before, would make a second leader."""
        script = Candidate()
        script.propose(1, b"acknowledged after the image")
        script.go_on(5)
        assert isinstance(script.outcomes[b"acknowledged after the image"], Committed)
        group = script.groups[7]
        assert sorted(group._configurations.voters) == [1, 2, 3, 4, 7]
        assert (script.role(7), group.status().term) == (Role.FOLLOWER, 2)
        for node in MAJORITY:
            script.cut(7, node)
        script.crash(1)
        script.start(1)
        script.connect(1, 2)
        script.connect(1, 4)
        script.go_on(2)
        script.elect(2, 1, 4)
        assert script.groups[2].status().term == 2
        script.deliver(3, 7)
        assert script.role(7) == Role.FOLLOWER

    def test_its_own_vote_of_that_term_stays(self) -> None:
        """It has voted for itself in term 2, and so for nobody else in it, after a crash too."""
        script = Candidate()
        assert script.groups[7]._log.hard_state == HardState(2, 7)
        script.crash(7, power=True)
        script.start(7)
        assert script.groups[7]._log.hard_state == HardState(2, 7)

    def test_entries_taken_back_end_a_candidacy_first(self) -> None:
        """A candidate goes back from four voters to five; a late vote for it counts no more."""
        script = Script(5)
        script.lead(1)
        script.settle()
        script.groups[1].remove_member(5, lambda _outcome: None)
        script.step(1)
        for node in (3, 4, 5):
            script.isolate(node)
        script.deliver(1, 2)  # in force at 1 and 2, and nowhere committed
        assert script.groups[2]._configurations.voters == {1, 2, 3, 4}
        script.isolate(2)
        for one, other in ((3, 4), (4, 5), (3, 5)):
            script.connect(one, other)
        script.elect(3, 4, 5)
        group = script.groups[2]
        term = script.groups[3].status().term
        stand(script, 2, term)
        script.connect(2, 3)
        script.connect(1, 2)
        script.settle(2, 3, 4, 5, rounds=4)
        assert group._configurations.voters == {1, 2, 3, 4, 5}
        for voter in (1, 4, 5):
            group._receiver.handle(voter, 1, Vote(term), group._now_ns)
        assert script.role(2) == Role.FOLLOWER


def stand(script: Script, node: int, term: int) -> None:
    """Let a node that hears nobody become candidate of a term."""
    group = script.groups[node]
    group._receiver.stand_term = group._core.term()
    group._core.expire_election()
    script.step(node)
    assert (script.role(node), group._core.term()) == (Role.CANDIDATE, term)


class TestReads:
    """Confirmations are a set: of the configuration in force, whenever they came."""

    @staticmethod
    def confirm(script: Script, *nodes: int) -> None:
        """Let nodes confirm the newest round; no connection needs to have carried the probe."""
        group = script.groups[1]
        for node in nodes:
            answer = ProbeOk(group._core.term(), group._reads._nonce)
            group._receiver.handle(node, 1, answer, group._now_ns)

    def test_of_a_voter_that_is_removed_in_the_round(self) -> None:
        script = Script(5)
        script.lead(1)
        script.settle()
        script.read(1)
        self.confirm(script, 5)
        script.groups[1].remove_member(5, lambda _outcome: None)
        script.step(1)
        assert script.groups[1]._configurations.voters == {1, 2, 3, 4}
        self.confirm(script, 2)
        script.step(1)
        assert script.reads == [], "two of four are no majority"
        self.confirm(script, 3)
        script.step(1)
        assert len(script.reads) == 1

    def test_of_a_learner_that_is_promoted_in_the_round(self) -> None:
        script = Script(3)
        script.lead(1)
        script.settle()
        script.groups[1].add_member(script.join(4), lambda _outcome: None)
        script.settle()
        script.read(1)
        self.confirm(script, 4)
        script.groups[1].promote_member(4, lambda _outcome: None)
        script.step(1)
        assert script.groups[1]._configurations.quorum == 3
        self.confirm(script, 2)
        script.step(1)
        assert script.reads == [], "what a learner said does not count once it is a voter"
        self.confirm(script, 4)
        script.step(1)
        assert len(script.reads) == 1


def test_pre_votes_of_nodes_that_are_no_voters_any_more_do_not_count() -> None:
    script = Script(5)
    script.lead(1)
    script.settle()
    script.isolate(2)
    group = script.groups[2]
    pre_votes, now_ns = group._pre_votes, group._now_ns + CONFIG.election_max_ns
    question = pre_votes.next_round(now_ns)
    assert question is not None
    for voter in (4, 5):
        granted = PreVoteGranted(question.term, question.round)
        group._receiver.handle(voter, 1, granted, now_ns)
    # As an image or an entry would change it: 5 is gone.
    assert not pre_votes.won(frozenset({1, 2, 3, 4}), 3, now_ns)
    assert pre_votes.won(frozenset({1, 2, 3, 4, 5}), 3, now_ns)


def test_clocks_and_acknowledgements_go_with_their_node() -> None:
    """A stamp needs a quorum's clocks, of voters; commit needs entries that voters hold."""
    script = Script(5)
    script.lead(1)
    script.settle()
    group = script.groups[1]
    assert set(group._timekeeper._heard) == {2, 3, 4, 5}
    assert group._core.match_index(5) > 0
    group.remove_member(5, lambda _outcome: None)
    script.step(1)
    assert set(group._timekeeper._heard) == {2, 3, 4}
    assert group._core.match_index(5) == 0
    assert not group._peers[5].voter

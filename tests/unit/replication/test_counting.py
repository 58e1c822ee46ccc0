"""What was counted under one configuration does not count under the next one.

Votes, pre-votes, confirmations of reads, acknowledgements and clocks are each held while the
configuration in force may change: by an image, by entries, by a change of this leader.
"""

import msgspec
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, GroupConfig, Outcome, Role
from nokv_replication.frames import TimeoutNow, Vote
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

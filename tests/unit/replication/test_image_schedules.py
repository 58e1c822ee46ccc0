"""State images while members change, and in random schedules of scripted nodes."""

from random import Random

import msgspec
import pytest
from tests.simulation.ports import MS_NS, SECOND_NS
from tests.simulation.script import Script
from tests.unit.replication.image_scripts import (
    SMALL,
    caught_up,
    fallen_behind,
    pump,
    to_offer,
    until,
)

from nokv_replication import Committed


class TestMembers:
    def shortened(self) -> Script:
        """Return three nodes that lead on with a log that lacks its beginning."""
        script = Script(3, config=SMALL)
        script.lead(1)
        script.settle()
        for i in range(100):
            script.propose(1, b"%d" % i + bytes(100))
            script.settle(rounds=2)
        assert script.groups[1]._log.base_index > 2
        return script

    def joined(self, script: Script, node: int = 4) -> None:
        done: list[object] = []
        script.groups[1].add_member(script.join(node), done.append)
        until(script, lambda: done)
        assert isinstance(done[0], Committed)

    def test_a_new_member_begins_with_an_image(self) -> None:
        script = self.shortened()
        self.joined(script)
        until(script, lambda: caught_up(script, 4))
        assert script.groups[4].status().counters.images_installed == 1
        listed = {member.node: member.voter for member in script.groups[4].status().members}
        assert listed == {1: True, 2: True, 3: True, 4: False}
        # The leader promotes what has acknowledged the list it is in, no sooner.
        leader = script.groups[1]
        until(script, lambda: leader._core.match_index(4) == leader._log.last_index)
        done: list[object] = []
        leader.promote_member(4, done.append)
        until(script, lambda: done)
        assert isinstance(done[0], Committed)

    @pytest.mark.parametrize("power", [False, True])
    def test_a_new_member_starts_again_from_its_image(self, *, power: bool) -> None:
        script = self.shortened()
        self.joined(script)
        until(script, lambda: caught_up(script, 4))
        script.crash(4, power=power)
        script.start(4)
        assert len(script.groups[4].status().members) == 4
        script.connect_all()
        script.propose(1, b"afterwards")
        until(script, lambda: caught_up(script, 4))

    def test_a_configuration_comes_with_the_image(self) -> None:
        """The node was away while a member was added, and the entry is dropped everywhere."""
        script = self.shortened()
        member = script.join(4)
        script.isolate(3)
        script.groups[1].add_member(member, lambda _outcome: None)
        for i in range(100):
            script.settle(1, 2, 4, rounds=2)
            script.propose(1, b"away %d" % i + bytes(100))
        script.connect_all()
        until(script, lambda: caught_up(script, 3))
        assert {member.node for member in script.groups[3].status().members} == {1, 2, 3, 4}
        assert script.groups[3].status().counters.images_installed == 1

    def test_who_is_removed_gets_no_more_of_it(self) -> None:
        script = fallen_behind(nodes=5, entries=100)
        script.connect_all()
        to_offer(script, 5)
        pump(script, 4, node=5)
        assert script.groups[1].status().images
        done: list[object] = []
        script.groups[1].remove_member(5, done.append)
        for _ in range(5):
            script.step(1)
        assert script.groups[1].status().images == ()
        assert (1, 5) not in script.images
        until(script, lambda: done)
        assert isinstance(done[0], Committed)


class Walk:
    """A random schedule over scripted nodes whose logs are dropped at once: they need images."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        config = msgspec.structs.replace(
            SMALL,
            image_bytes_per_second=rng.choice((20_000, 200_000, 1 << 30)),
            image_hold_ns=rng.choice((SECOND_NS, 60 * SECOND_NS)),
            image_timeout_ns=rng.choice((SECOND_NS, 10 * SECOND_NS)),
            image_log_bytes=rng.choice((8 << 10, 1 << 30)),
        )
        self.script = Script(rng.choice((3, 3, 5)), config=config)
        self.payload = 0
        self.names = list(self.script.addresses)
        self.actions = (
            *[self.propose] * 4,
            *[self.talk] * 8,
            *[self.images] * 8,
            self.cut_image,
            self.isolate,
            self.connect,
            self.crash,
            self.restart,
        )

    def node(self) -> int:
        return self.rng.choice(self.names)

    def propose(self) -> None:
        for node, group in list(self.script.groups.items()):
            if group._core.is_leader():
                for _ in range(self.rng.choice((1, 5))):
                    self.payload += 1
                    self.script.propose(node, b"%d." % self.payload + bytes(300))

    def talk(self) -> None:
        script = self.script
        script.wait(self.rng.choice((1, 10, 30)) * MS_NS)
        for node in list(script.groups):
            script.step(node)
        for one in self.names:
            for other in self.names:
                if other in script.groups and self.rng.random() < 0.9:
                    script.deliver(one, other)

    def images(self) -> None:
        script = self.script
        script.connect_images()
        for dialer, other in list(script.images):
            for receiver in (other, dialer):
                if receiver in script.groups:
                    script.deliver_image(dialer, other, receiver, self.rng.choice((1, 3, 100)))

    def cut_image(self) -> None:
        if self.script.images:
            self.script.cut_image(*self.rng.choice(sorted(self.script.images)))

    def isolate(self) -> None:
        if self.rng.random() < 0.3:
            self.script.isolate(self.node())

    def connect(self) -> None:
        self.script.connect_all()

    def crash(self) -> None:
        node = self.node()
        if node in self.script.groups and self.rng.random() < 0.2:
            self.script.crash(node, power=self.rng.random() < 0.5)

    def restart(self) -> None:
        node = self.node()
        if node not in self.script.groups:
            self.script.start(node)

    def run(self, actions: int) -> None:
        """Act at random, then heal: all nodes must come to hold the same."""
        script = self.script
        for _ in range(actions):
            self.rng.choice(self.actions)()
        for node in self.names:
            if node not in script.groups:
                script.start(node)
        script.wait(100 * MS_NS)
        for _ in range(3000):
            script.connect_all()
            script.settle(rounds=1)
            logs = {script.groups[node]._applier.applied.index for node in self.names}
            leaders = [n for n in self.names if script.groups[n].status().leads]
            if len(logs) == 1 and leaders and logs == {script.groups[leaders[0]]._log.last_index}:
                break
        items = [script.machines[node].items for node in self.names]
        assert all(other == items[0] for other in items), [len(i) for i in items]
        statuses = [script.groups[node].status() for node in self.names]
        assert all(status.problem == "" for status in statuses), statuses


@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_converge(seed: int) -> None:
    walk = Walk(seed)
    walk.run(400)


def test_random_schedules_do_install_images() -> None:
    installed = 0
    for seed in range(100, 106):
        walk = Walk(seed)
        walk.run(300)
        groups = walk.script.groups.values()
        installed += sum(group.counters.images_installed for group in groups)
    assert installed > 0

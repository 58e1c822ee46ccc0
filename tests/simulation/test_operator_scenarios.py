"""Directed schedules of what operators do: members, transfers, images, skipped entries.

Each shows one protection at work, and fails where its bug is planted.
"""

import contextlib
from collections.abc import Callable

import crc32c
import msgspec
import pytest
from tests.simulation.bugs import planted
from tests.simulation.checker import Violation
from tests.simulation.machine import ListSource
from tests.simulation.ports import SECOND_NS
from tests.simulation.script import CONFIG, Script
from tests.unit.replication.image_scripts import (
    SMALL,
    caught_up,
    fallen_behind,
    pump,
    to_offer,
    until,
)
from tests.unit.replication.test_counting import MAJORITY, Candidate

from nokv_replication import Committed, Fatal, HandshakeRefused, Role, Skip, skips
from nokv_replication.frames import PreVote, TimeoutNow, decode_frame
from nokv_replication.image_receiver import Incoming

WIPED = 2


def wiped_member() -> None:
    """A node that lost its disk has forgotten what it acknowledged: it helps to elect nobody."""
    script = Script(config=msgspec.structs.replace(CONFIG, inflight_bytes=1, batch_bytes=1))
    script.lead(1)
    script.settle()
    script.isolate(3)
    script.propose(1, b"acknowledged")
    script.settle(1, WIPED)
    assert isinstance(script.outcomes[b"acknowledged"], Committed)
    script.crash(WIPED)
    script.checker.forget(WIPED)
    with contextlib.suppress(HandshakeRefused):
        script.join(WIPED, incarnation=9_999)
    # Of what it held it gets back the first entries only.
    for _ in range(40):
        group = script.groups[WIPED]
        if not {(1, WIPED), (3, WIPED), (WIPED, 3)} & set(script.links):
            return
        if group._configurations.in_force is not None:
            break
        script.wait(SECOND_NS // 50)
        script.step(1)
        script.deliver(1, WIPED, 1)
        script.deliver(WIPED, 1, 1)
    script.isolate(1)
    with contextlib.suppress(HandshakeRefused):
        script.connect(WIPED, 3)
    script.elect(3, WIPED)


def told_once() -> None:
    """Told to take over, a node stands without asking: this once, and not a term later."""
    script = Script()
    script.lead(1)
    script.settle()
    outcomes: list[object] = []
    script.groups[1].transfer(2, outcomes.append)
    script.step(1)
    assert any(isinstance(decode_frame(f).body, TimeoutNow) for f in script.links[1, 2])
    script.settle(rounds=10)
    assert script.role(2) == Role.LEADER
    script.elect(1, 2, 3)
    script.settle(rounds=10)
    # Later its timer fires, while the others hear their leader.
    term = script.groups[1].status().term
    script.groups[2]._core.expire_election()
    script.step(2)
    assert any(isinstance(frame.body, PreVote) for frame in script.on_the_way(2, 3))
    script.settle(rounds=10)
    assert (script.role(1), script.groups[1].status().term) == (Role.LEADER, term)


def old_image() -> None:
    """A complete, verified image that entries have overtaken meanwhile is not installed."""
    script = fallen_behind()
    script.connect_all()
    until(script, lambda: caught_up(script, 3))
    script.wait(SECOND_NS)
    script.settle()
    group, source = script.groups[3], script.machines[1].image()
    sink = script.machines[3].receive(source.applied)
    while piece := source.read():
        sink.write(piece)
    sink.finish()
    for number in range(5):
        script.propose(1, b"later %d" % number)
        script.settle()
    applied = group._applier.applied.index
    assert applied > source.applied.index
    group._images.receiver._incoming = Incoming(1, 77, source.applied, 0, sink, ended=True)
    script.settle()
    assert group._applier.applied.index >= applied
    assert caught_up(script, 3)


def damaged_image() -> None:
    """Damage that the checksums of the pieces can't see, for it was there before them."""
    script = fallen_behind(entries=200)
    damaged: list[bytes] = []
    whole = ListSource.read

    def read(self: ListSource) -> bytes:
        piece = whole(self)
        if len(piece) > 1000 and not damaged:
            damaged.append(piece)
            return piece[:-1] + bytes([piece[-1] ^ 1])
        return piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ListSource, "read", read)
        script.connect_all()
        for _ in range(400):
            script.settle(rounds=1)
            if caught_up(script, 3):
                break
    assert damaged
    assert caught_up(script, 3)


def log_after_image() -> None:
    """The log goes on behind the image, whatever it held before."""
    script = fallen_behind()
    script.connect_all()
    to_offer(script)
    pump(script, 60)
    until(script, lambda: caught_up(script, 3))
    script.propose(1, b"after")
    until(script, lambda: caught_up(script, 3))
    script.crash(3, power=True)
    script.start(3)
    script.connect_all()
    until(script, lambda: caught_up(script, 3))


def candidate_and_image() -> None:
    """Votes that were given under the members before an image do not count after it."""
    script = Candidate(SMALL_WINDOW)
    script.propose(1, b"acknowledged after the image")
    script.go_on(5)
    assert isinstance(script.outcomes[b"acknowledged after the image"], Committed)
    for node in MAJORITY:
        script.cut(7, node)
    script.crash(1)
    script.start(1)
    for node in (2, 4):
        script.connect(1, node)
    script.go_on(2)
    script.elect(2, 1, 4)
    script.deliver(3, 7)
    assert script.role(7) == Role.FOLLOWER, "two leaders of one term"


SMALL_WINDOW = msgspec.structs.replace(SMALL, inflight_bytes=3000)


def stopped_before(index_of: bytes) -> tuple[Script, int]:
    """Node 2 was stopped before it applied an entry that the others have applied."""
    script = Script()
    script.lead(1)
    script.settle()
    script.isolate(2)
    script.propose(1, index_of)
    script.settle(1, 3)
    outcome = script.outcomes[index_of]
    assert isinstance(outcome, Committed)
    script.crash(2)
    return script, outcome.index


def skip_at_one_node() -> None:
    """One node is to skip what the others have applied: nobody talks to it."""
    script, index = stopped_before(b"x")
    log = script.groups[1]._log
    listed = Skip(index, log.term_at(index), crc32c.crc32c(log.entry(index)))
    skips.store(script.disks[2], "scripted", (listed,))
    script.start(2)
    script.connect_all()
    script.settle()
    assert script.machines[2].items == []


def skip_of_another_entry() -> None:
    """All are to skip an entry that is not the one which was committed there: they stop."""
    script, index = stopped_before(b"x")
    listed = Skip(index + 1, 1, 12345)
    for node in (1, 3):
        script.crash(node)
    for node in (1, 2, 3):
        skips.store(script.disks[node], "scripted", (listed,))
        script.start(node)
    script.connect_all()
    stopped = False
    try:
        script.lead(1)
        script.propose(1, b"y")
        script.settle()
    except Fatal:
        stopped = True
    assert stopped, "another entry than the operator meant was skipped"


@pytest.mark.parametrize(
    ("scenario", "bug"),
    [
        (wiped_member, "stranger accepted"),
        (told_once, "pre-vote never again"),
        (old_image, "old image installed"),
        (damaged_image, "digest not checked"),
        (log_after_image, "log not reset"),
        (candidate_and_image, "candidate installs"),
        (skip_at_one_node, "skip lists differ"),
        (skip_of_another_entry, "any entry skipped"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_protection_holds_and_its_absence_is_found(scenario: Callable[[], None], bug: str) -> None:
    scenario()
    with planted(bug), pytest.raises((AssertionError, Violation, Fatal)):
        scenario()

"""Room on disk: log kept for slow followers up to a limit, and what gives when space is scarce."""

import msgspec
from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, GroupConfig

SEGMENT_BYTES = 4096
KEEP_BYTES = 5 * SEGMENT_BYTES
ROOMY = msgspec.structs.replace(
    CONFIG, segment_bytes=SEGMENT_BYTES, log_keep_bytes=KEEP_BYTES, commit_interval_ns=1
)


def leading(config: GroupConfig = ROOMY) -> Script:
    script = Script(3, config=config)
    script.lead(1)
    return script


def write(script: Script, count: int, *nodes: int) -> list[bytes]:
    payloads = [b"%d:" % (len(script.outcomes) + i) + bytes(200) for i in range(count)]
    for payload in payloads:
        script.propose(1, payload)
        script.settle(*(nodes or (1, 2, 3)), rounds=2)
    return payloads


def test_a_follower_that_was_away_for_less_than_is_kept_needs_no_image() -> None:
    script = leading()
    script.isolate(3)
    payloads = write(script, KEEP_BYTES // 2 // 250, 1, 2)
    assert script.groups[1].counters.segments_dropped == 0
    script.connect_all()
    script.settle(rounds=60)
    assert script.machines[3].items[-1] == payloads[-1]
    assert script.dialed_images == []


def test_what_is_kept_has_a_limit() -> None:
    script = leading()
    script.isolate(3)
    write(script, 3 * KEEP_BYTES // 250, 1, 2)
    status = script.groups[1].status()
    assert script.groups[1].counters.segments_dropped > 0
    assert KEEP_BYTES <= status.log_bytes < KEEP_BYTES + 2 * SEGMENT_BYTES
    assert status.first_index > script.groups[3].status().last_index + 1


def test_where_space_is_scarce_nothing_is_kept_for_others() -> None:
    script = leading()
    write(script, KEEP_BYTES // 2 // 250)
    group = script.groups[1]
    before = group.status()
    assert before.droppable_bytes > SEGMENT_BYTES
    group.set_keeping_log(False)
    # At once, although nothing is written and so nothing is committed any more.
    script.step(1)
    after = group.status()
    assert after.droppable_bytes == 0
    assert after.log_bytes <= 2 * SEGMENT_BYTES
    assert after.first_index > before.first_index
    group.set_keeping_log(True)
    payloads = write(script, 10)
    assert isinstance(script.outcomes[payloads[-1]], Committed)
    assert group.status().first_index == after.first_index


def test_free_space_travels_with_what_may_be_dropped() -> None:
    script = leading()
    script.disks[2].free = 10_000
    write(script, KEEP_BYTES // 2 // 250)
    # Free space is looked at once a second, and told with the next acknowledgement.
    script.settle(rounds=120)
    (told,) = [peer for peer in script.groups[1].status().peers if peer.node == 2]
    assert told.free_bytes == 10_000 + script.groups[2].status().droppable_bytes
    assert told.free_bytes > 10_000


def test_a_follower_without_space_stores_nothing_and_the_others_go_on() -> None:
    script = leading()
    script.groups[3].set_accepting(False)
    before = script.groups[3].status()
    payloads = write(script, 10)
    assert all(isinstance(script.outcomes[payload], Committed) for payload in payloads)
    after = script.groups[3].status()
    assert (after.last_index, after.log_bytes) == (before.last_index, before.log_bytes)
    assert after.leader == 1
    script.groups[3].set_accepting(True)
    script.settle(rounds=60)
    assert script.machines[3].items == script.machines[1].items


def test_two_followers_without_space_stop_the_group_until_there_is_some() -> None:
    script = leading()
    for node in (2, 3):
        script.groups[node].set_accepting(False)
    (payload,) = write(script, 1)
    script.settle(rounds=30)
    assert payload not in script.outcomes
    assert script.groups[1].status().leads, "they listen, and so they are a quorum"
    for node in (2, 3):
        script.groups[node].set_accepting(True)
    script.settle(rounds=60)
    assert isinstance(script.outcomes[payload], Committed)

"""The guards of replication, each with the text that switches it off.

A guard is a piece of source in one module, what replaces it, and the tests likely to notice, the
likeliest first. Text that is no longer there exactly once is an error, not a guard that held.
"""

from pathlib import Path
from typing import NamedTuple

UNIT = "tests/unit/replication"
FIGURE2 = f"{UNIT}/test_figure2.py"
THESIS = f"{UNIT}/test_thesis.py"
GROUP = f"{UNIT}/test_group.py"
DIRECTED = f"{UNIT}/test_guards.py"
LOG = f"{UNIT}/test_log.py"
VALUES = f"{UNIT}/test_values.py"
REPLICATION = "tests/regressions/test_replication.py"
IMAGES = "tests/regressions/test_images.py"
RESTART = "tests/regressions/test_restart.py"
JOURNAL = "tests/regressions/test_journal.py"
MEMBERS = "tests/regressions/test_members.py"
APPLY = "tests/regressions/test_apply.py"
IMAGE_TESTS = f"{UNIT}/test_images.py"
COUNTING = f"{UNIT}/test_counting.py"
SKIPS = f"{UNIT}/test_skips.py"
DAMAGE = f"{UNIT}/test_damage.py"
TCP = f"{UNIT}/test_network.py"
DRIVER = f"{UNIT}/test_driver.py"
GOLDEN = "tests/golden"
SCENARIOS = "tests/simulation/test_scenarios.py"
RANDOM = "tests/simulation/test_simulation.py::test_random_schedules_keep_every_promise"


class Guard(NamedTuple):
    """`changes`: pairs of text in `module` and what takes its place."""

    module: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]
    package: str = "replication/nokv_replication"
    also: tuple[tuple[str, str, str], ...] = ()
    """(module, text, what takes its place) of a second line of defence, switched off with it."""


def _off(module: str, old: str, new: str, *tests: str) -> Guard:
    return Guard(module, ((old, new),), tests)


APPENDS = {
    "append: prefix not stripped": _off(
        "appends.py", "stripped = self._strip_prefix(stripped)", "", FIGURE2, REPLICATION
    ),
    "append: committed entries replaced": _off(
        "appends.py", "if prev_index < committed:", "if False:", FIGURE2
    ),
    "append: own tail acknowledged": _off(
        "appends.py", "self._next_index = known + 1", "self._next_index = None", FIGURE2, SCENARIOS
    ),
    "append: own tail committed": _off(
        "appends.py", "commit_index = min(commit_index, known)", "", FIGURE2
    ),
    "append: two leaders of a term": _off(
        "appends.py",
        "if core.is_leader() and append.term == core.term():",
        "if False:",
        FIGURE2,
    ),
    "append: dropped prefix not skipped": _off(
        "appends.py",
        "stripped = self._skip_dropped(Stripped(append.prev_index, append.prev_term, entries))",
        "stripped = Stripped(append.prev_index, append.prev_term, entries)",
        GROUP,
        IMAGES,
        RANDOM,
    ),
    "append: hint of the library's": _off(
        "appends.py",
        "return known + 1, success, reset",
        'return int(answer["next_node_idx"]), success, reset',
        DIRECTED,
        FIGURE2,
        GOLDEN,
        REPLICATION,
    ),
    "append: older term not answered": _off(
        "receiver.py",
        "            self._send(peer, Stale(self._core.term()))\n            return\n"
        "        self._pre_votes.contact(self._now_ns)",
        "            return\n        self._pre_votes.contact(self._now_ns)",
        FIGURE2,
    ),
    "append: stored for want of space": _off(
        "appends.py",
        "sent = append.entries if accept_entries else []",
        "sent = append.entries",
        GROUP,
    ),
}

ACKS = {
    "ack: of an older term counts": _off(
        "peers.py",
        "return self._core.is_leader() and ack.term == self._core.term()",
        "return self._core.is_leader()",
        REPLICATION,
    ),
    "ack: late resets obeyed": _off(
        "peers.py",
        "if reset and ack.sequence <= peer.reset_at:",
        "if False:",
        DIRECTED,
        GROUP,
        REPLICATION,
    ),
    "ack: success moves next index back": _off(
        "peers.py",
        "if ack.success and not reset and core.next_index(peer.node) < before:",
        "if False:",
        REPLICATION,
    ),
    "ack: reset behind the log": Guard(
        "peers.py",
        (
            (
                "next_index = min(max(ack.next_index, 1), log.last_index + 1)",
                "next_index = max(ack.next_index, 1)",
            ),
            (
                "core.set_next_index(peer.node, log.last_index + 1)\n            prev, entries",
                "prev, entries",
            ),
        ),
        (
            DIRECTED,
            REPLICATION,
        ),
    ),
    "ack: success behind the log": _off(
        "peers.py",
        "if ack.next_index > log.last_index + 1 and ack.success:",
        "if False:",
        DIRECTED,
        GROUP,
    ),
    "window: unbounded": _off(
        "peers.py",
        "if entries and peer.inflight_bytes >= self._config.inflight_bytes:",
        "if False:",
        GROUP,
    ),
    "window: what was lost is not sent again": _off(
        "peers.py",
        "self._core.is_leader() and match > 0:",
        "False:",
        GOLDEN,
    ),
}

ELECTIONS = {
    "pre-vote: not asked": _off(
        "group.py",
        "if self._pre_votes.won(voters, quorum, self._now_ns):",
        "if True:",
        MEMBERS,
        GOLDEN,
    ),
    "pre-vote: given while a leader is heard": _off(
        "elections.py", "and self.leader_is_silent(now_ns)", "", THESIS, MEMBERS
    ),
    "pre-vote: given to a shorter log": _off(
        "elections.py", "and (request.last_term, request.last_index) >= mine", "", GOLDEN, THESIS
    ),
    "pre-vote: an older round counts": _off(
        "elections.py", "if round_number == self._round:", "if True:", THESIS
    ),
    "pre-vote: kept for ever": _off(
        "elections.py",
        "or now_ns - self._started_ns >= self._quiet_ns:",
        "or False:",
        THESIS,
    ),
    "vote: counted twice": _off(
        "receiver.py", "if state.voter and body.term > state.vote_term:", "if state.voter:", FIGURE2
    ),
    "vote: not written": _off(
        "log.py",
        "self._write(RecordType.HARD_STATE, 0, term, msgspec.msgpack.encode(state))",
        "pass",
        FIGURE2,
    ),
    "quorum check: after thirty seconds": _off(
        "_pysyncobj.py",
        "leaderFallbackTimeout=config.election_max_ns / _SECOND_NS",
        "leaderFallbackTimeout=30.0",
        MEMBERS,
        GOLDEN,
    ),
    "founding: votes before the list": Guard(
        "group.py",
        (
            (
                "if epoch == self._peers[peer].epoch and not self._roster.founding:",
                "if epoch == self._peers[peer].epoch:",
            ),
        ),
        (DIRECTED,),
        also=(("receiver.py", "return self._configurations.in_force is not None", "return True"),),
    ),
}

READS = {
    "read rule 1: own entry committed": _off(
        "group.py",
        "return self._leads()\n\n    def _likely_leader",
        "return self._role == Role.LEADER\n\n    def _likely_leader",
        THESIS,
    ),
    "read rule 2: index of the present": _off(
        "group.py", "commit = core.commit_index()", "commit = self._log.base_index", THESIS
    ),
    "read rule 3: the term it is in": _off(
        "receiver.py",
        "return probe.term == self._core.term() and not self._core.is_leader()",
        "return True",
        THESIS,
        SCENARIOS,
    ),
    "read rule 4: a quorum confirms": _off(
        "reads.py",
        "return len(round_.confirmed & voters) + 1 >= quorum",
        "return True",
        THESIS,
        GOLDEN,
    ),
    "read rule 5: applied before served": _off(
        "reads.py", "return applied_index >= index", "return True", THESIS, RANDOM
    ),
}

DURABILITY = {
    "sync: answers leave before it": _off(
        "outbox.py",
        "(self._early if isinstance(body, Append) else self._late)",
        "self._early",
        FIGURE2,
    ),
    "sync: not done": _off(
        "log.py",
        "        self._disk.fdatasync(segment.handle)\n        self._pending = bytearray()",
        "        self._pending = bytearray()",
        FIGURE2,
        LOG,
    ),
    "sync: own copy counted before it": Guard(
        "group.py",
        (
            (
                "self._apply(min(commit_index, log.synced_index))",
                "self._apply(commit_index)",
            ),
        ),
        (DIRECTED, RANDOM, LOG),
    ),
    "log: segment named before its header": _off(
        "log.py",
        "        disk.fdatasync(handle)\n        disk.rename(SPARE",
        "        disk.rename(SPARE",
        LOG,
    ),
    "log: name not synced": _off(
        "log.py",
        "disk.rename(SPARE, segment_name(sequence))\n        disk.fsync_dir()",
        "disk.rename(SPARE, segment_name(sequence))",
        LOG,
    ),
    "log: removals in any order": _off(
        "log.py",
        "            # Oldest first on disk too: a gap between files would count as damage.\n"
        "            self._disk.fsync_dir()\n",
        "",
        LOG,
    ),
    "log: synced damage cut like a torn tail": _off(
        "log.py",
        "if not newest or records.synced_after(data, segment.used_bytes, segment.salt):",
        "if not newest:",
        LOG,
    ),
    "log: torn tail left in place": _off(
        "log.py", "disk.pwrite(handle, zeros, segment.used_bytes)", "pass", LOG
    ),
    "log: not synced when opened": _off(
        "log.py",
        "        if newest:\n            # After",
        "        if False:\n            # After",
        LOG,
    ),
    "log: checksum not compared": _off(
        "records.py",
        "if crc32c.crc32c(payload, start) != checksum:",
        "if False:",
        LOG,
    ),
    "log: checksum without salt": Guard(
        "records.py",
        (
            ("kind), salt)\n    checksum", "kind), 0)\n    checksum"),
            ("kind), salt)\n    if", "kind), 0)\n    if"),
        ),
        (
            DIRECTED,
            LOG,
        ),
    ),
    "log: of another node": _off(
        "segments.py",
        "if mine != (identity.cluster, identity.node, identity.incarnation):",
        "if False:",
        LOG,
    ),
    "log: a file under another name": _off(
        "segments.py", "if header.sequence != sequence:", "if False:", DAMAGE
    ),
    "log: a truncated file": _off(
        "segments.py", "elif size_bytes < header.capacity_bytes:", "elif False:", DAMAGE
    ),
    "log: a state ahead of it": _off("roster.py", "if not installing:", "if False:", DAMAGE),
    "log: an image not announced": _off(
        "image_receiver.py",
        "self._log.announce_install(incoming.applied.index, incoming.applied.term)",
        "pass",
        IMAGE_TESTS,
    ),
    "log: cut before the machine's commit": _off(
        "group.py",
        "drop_index = applier.durable_index",
        "drop_index = applier.applied.index",
        RESTART,
        GROUP,
        RANDOM,
    ),
}

STATE = {
    "start: a gap before the log": _off(
        "roster.py", "if log.base_index > applied.index:", "if False:", RESTART, GROUP
    ),
    "start: a log that lost its tail": _off(
        "roster.py",
        "lost_tail = log.last_index < applied.index",
        "lost_tail = False",
        GROUP,
        RANDOM,
    ),
    "divergence: not compared": _off(
        "receiver.py",
        "if mine is not None and mine != body.fingerprint:",
        "if False:",
        GROUP,
    ),
    "apply: time falls": _off(
        "apply.py",
        "if entry.cluster_ns < last.times.cluster_ns or entry.wall_ns < last.times.wall_ns:",
        "if False:",
        DIRECTED,
        GROUP,
        VALUES,
    ),
    "apply: another leader's entry answers": _off(
        "apply.py",
        "if waiters is not None and waiters.term != term:",
        "if False:",
        DIRECTED,
        GROUP,
    ),
    "time: a leader's clock alone": _off(
        "timekeeping.py",
        "clamped = min(max(wall_ns, median - WALL_CLAMP_NS), median + WALL_CLAMP_NS)",
        "clamped = wall_ns",
        GROUP,
    ),
    "time: a suspended leader's leap": _off(
        "timekeeping.py",
        "min(now_ns - self._advanced_ns, STEP_MAX_NS)",
        "now_ns - self._advanced_ns",
        VALUES,
    ),
    "role: waiters forgotten": _off(
        "group.py",
        "self._fail_proposals(NotLeader(leader or self._transfer.target))",
        "pass",
        GROUP,
        IMAGES,
    ),
}

IMAGE = {
    "image: an older one at its offer": _off(
        "image_receiver.py",
        'if self._is_covered(applied):\n            return ImageRefusal.COVERED, ""',
        'if False:\n            return ImageRefusal.COVERED, ""',
        IMAGES,
    ),
    "image: an older one installed": _off(
        "image_receiver.py", "if not self._may_install(incoming.applied):", "if False:", IMAGES
    ),
    "image: installed by a candidate": _off(
        "image_receiver.py", "self._core.stand_down()", "pass", COUNTING
    ),
    "image: of an old term": _off(
        "image_receiver.py", "if term < self._core.term():", "if False:", DIRECTED
    ),
    "image: checksum of a piece": _off(
        "image_receiver.py", "if crc32c.crc32c(chunk.piece) != chunk.crc:", "if False:", DIRECTED
    ),
    "image: a piece is missing": _off(
        "image_receiver.py",
        "if chunk.offset != incoming.offset or incoming.ended:",
        "if False:",
        DIRECTED,
    ),
    "image: log not begun anew": _off(
        "image_receiver.py", "self._log.reset(applied.index, applied.term)", "pass", GOLDEN
    ),
    "image: the log after it dropped": _off(
        "group.py", "drop_index = min(drop_index, keep_index)", "pass", IMAGE_TESTS, GOLDEN
    ),
    "skip: another entry than was meant": _off(
        "skips.py", "if (skip.term, skip.crc) != (term, crc):", "if False:", SKIPS
    ),
    "skip: an applied one": _off(
        "skips.py",
        "if skip.index <= applied.index and skip not in applied.skips:",
        "if False:",
        SKIPS,
    ),
    "skip: payloads applied": _off(
        "apply.py",
        "last, payloads = self.applied, []",
        "last, payloads = self.applied, self._decode(command, index, term)",
        SKIPS,
    ),
    "skip: an entry that is not there": _off(
        "skips.py", "if not log.base_index < index <= log.last_index:", "if False:", SKIPS
    ),
    "skip: lists that differ": _off(
        "roster.py",
        "if refusal and not self._may_take_list(hello):",
        "if False:",
        GOLDEN,
        SKIPS,
    ),
}

WIRE = {
    "frame: comes twice": _off(
        "endpoint.py", "if frame.sequence <= state.received_sequence:", "if False:", FIGURE2
    ),
    "frame: of another connection": _off(
        "endpoint.py",
        "if (frame.sender, frame.epoch) != (peer, state.epoch):",
        "if False:",
        FIGURE2,
    ),
    "frame: terms fall": _off("frames.py", "if entry_term < term:", "if False:", VALUES),
    "frame: entries of a later term": _off(
        "frames.py", "if term > body.term:", "if False:", VALUES
    ),
    "hello: another cluster": _off(
        "roster.py", "if hello.cluster != self._identity.cluster:", "if False:", GROUP
    ),
    "hello: another incarnation": _off(
        "roster.py",
        "if hello.incarnation != member.incarnation:",
        "if False:",
        GROUP,
    ),
    "hello: other founders": _off(
        "roster.py",
        "if hello.digest and self._digest and hello.digest != self._digest:",
        "if False:",
        GROUP,
    ),
}

CHANGES = {
    "members: two changes at once": _off(
        "changes.py",
        "if self._queued is not None or self._change_is_uncommitted():",
        "if self._queued is not None:",
        THESIS,
    ),
    "members: before an entry of the own term": Guard(
        "changes.py",
        (("if members is None or self._term_is_uncommitted():", "if members is None:"),),
        (THESIS,),
        also=(
            (
                "membership.py",
                "if not (self._leads() and self._leadership.founded):\n                message",
                "if False:\n                message",
            ),
        ),
    ),
    "inbox: without bound": _off(
        "endpoint.py", "if waiting > INBOX_MAX_BYTES:", "if False:", DIRECTED
    ),
    "inbox: frames of a lost connection": _off(
        "group.py",
        "if epoch == self._peers[peer].epoch and not self._roster.founding:",
        "if not self._roster.founding:",
        DIRECTED,
    ),
    "read: questions without bound": _off(
        "reads.py", "if self._remote_count >= self._config.reads_max:", "if False:", DIRECTED
    ),
    "members: a number used again": _off(
        "changes.py", "if member.node <= members.highest:", "if False:", GOLDEN
    ),
    "members: promoted before it has caught up": _off(
        "changes.py",
        "if behind or not self._is_active(node, now_ns):",
        "if False:",
        THESIS,
    ),
    "members: promoted before it holds the list it is in": _off(
        "changes.py", "behind = unaware or lag", "behind = lag", f"{UNIT}/test_membership.py"
    ),
    "members: a removal that leaves no quorum": _off(
        "changes.py", "if active < len(voters) // 2 + 1:", "if False:", DIRECTED
    ),
    "members: the leader removed": _off(
        "changes.py", "if node == self._node:", "if False:", THESIS
    ),
    "members: a learner counts": _off(
        "bootstrap.py",
        "frozenset(member.node for member in self.members if member.voter)",
        "frozenset(member.node for member in self.members)",
        DIRECTED,
        THESIS,
    ),
    "members: not rolled back": _off(
        "configurations.py",
        "while self._above and self._above[-1][0] >= index:",
        "while False:",
        THESIS,
    ),
    "members: forgotten at a restart": _off(
        "configurations.py",
        "self._above.append((at, self._decode(command, at)))",
        "pass",
        THESIS,
    ),
    "members: in force when committed only": _off(
        "_pysyncobj.py", "self._owner.core_members_appended(index, entry)", "pass", THESIS
    ),
    "members: an answer of a stranger": _off(
        "receiver.py",
        "if not state.member or not self._peers.is_current(body):",
        "if not self._peers.is_current(body):",
        DIRECTED,
    ),
    "members: a vote of a stranger": _off(
        "receiver.py",
        "if state.voter and body.term > state.vote_term:",
        "if body.term > state.vote_term:",
        DIRECTED,
    ),
    "members: a pre-vote of a stranger": Guard(
        "receiver.py",
        (("if self._peers[peer].voter and body.term", "if body.term"),),
        (DIRECTED,),
        also=(("elections.py", "self._granted & voters", "self._granted"),),
    ),
    "members: a confirmation of a stranger": Guard(
        "receiver.py",
        (("if voter and self._core.is_leader()", "if self._core.is_leader()"),),
        (DIRECTED,),
        also=(("reads.py", "round_.confirmed & voters", "round_.confirmed"),),
    ),
    "members: a learner stands": _off(
        "membership.py",
        "return self._configurations.is_voter and not self._removed()",
        "return not self._removed()",
        DIRECTED,
    ),
    "members: a single voter's term not durable": _off(
        "outbox.py", "if self._log.term_is_durable:", "if True:", DIRECTED
    ),
    "transfer: before the log is complete": _off(
        "transfer.py",
        "if target is None or self._core.match_index(target) != self._log.last_index:",
        "if target is None:",
        THESIS,
    ),
    "transfer: never given up": _off(
        "transfer.py",
        "if self.target is not None and now_ns >= self._deadline_ns:",
        "if False:",
        THESIS,
    ),
    "transfer: entries go on meanwhile": _off(
        "group.py",
        "if self._transfer.target is None:\n                self._leadership",
        "if True:\n                self._leadership",
        THESIS,
    ),
    "transfer: anybody may have a node stand": _off(
        "receiver.py",
        "if body.term != self._core.term() or peer != self._core.leader():",
        "if False:",
        THESIS,
    ),
    "transfer: no pre-vote ever after": _off(
        "group.py", "        self._receiver.stand_term = 0\n", "", DIRECTED
    ),
}

NETWORK = {
    "network: plain beyond loopback": _off(
        "tcp.py",
        "if not loopback:",
        "if False:",
        f"{DRIVER}::test_without_tls_only_loopback_is_used",
    ),
    "network: certificate of another node": _off(
        "connection.py",
        "if self._certified is not None and greeting.node != self._certified:",
        "if False:",
        f"{TCP}::test_a_node_speaks_for_itself_only",
    ),
    "network: another node at the address": _off(
        "connection.py",
        "if self._certified != self.dialed:",
        "if False:",
        f"{TCP}::test_a_node_at_anothers_address_is_not_greeted",
    ),
    "network: a frame of any size": _off(
        "connection.py", "if not 0 < length <= limit:", "if False:", DIRECTED
    ),
    "network: any number of strangers": _off(
        "tcp.py",
        "if len(self._pending) > PENDING_MAX:",
        "if False:",
        f"{TCP}::test_connections_that_say_nothing_are_bounded",
    ),
    "network: any number of visitors": _off(
        "tcp.py",
        "if len(visitors - {peer}) >= VISITORS_MAX:",
        "if False:",
        f"{TCP}::test_visitors_are_bounded",
    ),
    "network: both connections of a pair stay": _off(
        "tcp.py",
        "return not (young and self._wins(present, peer) and not self._wins(connection, peer))",
        "return True",
        f"{TCP}::test_of_two_connections_the_one_the_smaller_id_dialed_stays",
    ),
}

GUARDS: dict[str, Guard] = {
    **APPENDS,
    **ACKS,
    **ELECTIONS,
    **READS,
    **DURABILITY,
    **STATE,
    **IMAGE,
    **WIRE,
    **CHANGES,
    **NETWORK,
}


def mutated(package: Path, guard: Guard) -> dict[Path, str]:
    """Return the changed modules of a package, by path, with the guard switched off.

    Raises:
        ValueError: some text of the guard is not there exactly once.
    """
    sources: dict[Path, str] = {}
    changes = [(guard.module, *change) for change in guard.changes]
    for module, old, new in (*changes, *guard.also):
        path = package / module
        source = sources[path] if path in sources else path.read_text()
        if source.count(old) != 1:
            message = f"{module} holds {old!r} {source.count(old)} times, not once"
            raise ValueError(message)
        sources[path] = source.replace(old, new)
    return sources

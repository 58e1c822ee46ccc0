"""Guards of elections, replication, reads, durability and the state machine."""

from tests.mutations.guard import (
    DAMAGE,
    DIRECTED,
    FIGURE2,
    GOLDEN,
    GROUP,
    IMAGE_TESTS,
    IMAGES,
    LOG,
    MEMBERS,
    RANDOM,
    REPLICATION,
    RESTART,
    SCENARIOS,
    SET_BACK,
    SLOW,
    THESIS,
    VALUES,
    Guard,
    off,
)

APPENDS = {
    "append: prefix not stripped": off(
        "appends.py", "stripped = self._strip_prefix(stripped)", "", FIGURE2, REPLICATION
    ),
    "append: committed entries replaced": off(
        "appends.py", "if prev_index < committed:", "if False:", FIGURE2
    ),
    "append: own tail acknowledged": off(
        "appends.py", "self._next_index = known + 1", "self._next_index = None", FIGURE2, SCENARIOS
    ),
    "append: own tail committed": off(
        "appends.py", "commit_index = min(commit_index, known)", "", FIGURE2
    ),
    "append: two leaders of a term": off(
        "appends.py",
        "if core.is_leader() and append.term == core.term():",
        "if False:",
        FIGURE2,
    ),
    "append: dropped prefix not skipped": off(
        "appends.py",
        "stripped = self._skip_dropped(Stripped(append.prev_index, append.prev_term, entries))",
        "stripped = Stripped(append.prev_index, append.prev_term, entries)",
        GROUP,
        IMAGES,
        RANDOM,
    ),
    "append: hint of the library's": off(
        "appends.py",
        "return known + 1, success, reset",
        'return int(answer["next_node_idx"]), success, reset',
        DIRECTED,
        FIGURE2,
        GOLDEN,
        REPLICATION,
    ),
    "append: older term not answered": off(
        "receiver.py",
        "            self._send(peer, Stale(self._core.term()))\n            return\n"
        "        self._pre_votes.contact(self._now_ns)",
        "            return\n        self._pre_votes.contact(self._now_ns)",
        FIGURE2,
    ),
    "append: stored for want of space": off(
        "appends.py",
        "sent = append.entries if accept_entries else []",
        "sent = append.entries",
        GROUP,
    ),
}

ACKS = {
    "ack: of an older term counts": off(
        "peers.py",
        "return self._core.is_leader() and ack.term == self._core.term()",
        "return self._core.is_leader()",
        REPLICATION,
    ),
    "ack: late resets obeyed": off(
        "peers.py",
        "if reset and ack.sequence <= peer.reset_at:",
        "if False:",
        DIRECTED,
        GROUP,
        REPLICATION,
    ),
    "ack: success moves next index back": off(
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
    "ack: success behind the log": off(
        "peers.py",
        "if ack.next_index > log.last_index + 1 and ack.success:",
        "if False:",
        DIRECTED,
        GROUP,
    ),
    "ack: counts though its sender came back without it": off(
        "peers.py", "self._core.forget_match(peer.node)", "pass", SET_BACK
    ),
    "ack: any refusal is taken for a loss": off(
        "peers.py",
        "if ack.reset and peer.owed_sequence and ack.sequence == peer.owed_sequence:",
        "if ack.reset and peer.owed_index:",
        SET_BACK,
    ),
    "ack: a loss is not noticed": off("peers.py", "self._set_back(peer)", "pass", SET_BACK),
    "ack: what a newer leader replaced is taken for lost": off(
        "peers.py",
        "election_max_ns\n            peer.owed_index = peer.owed_sequence = 0",
        "election_max_ns",
        SET_BACK,
    ),
    "commit: members hear of it with the heartbeat only": off(
        "group.py", "if leads and self._peers.must_tell(commit_index, now_ns):", "if False:", GROUP
    ),
    "commit: told by a frame of its own each time": off(
        "peers.py",
        "self.tell_due_ns = now_ns + self._config.heartbeat_ns // 20",
        "self.tell_due_ns, self._told_index = NEVER_NS, commit_index\n            return True",
        GROUP,
    ),
    "window: unbounded": off(
        "peers.py",
        "if entries and peer.inflight_bytes >= self._config.inflight_bytes:",
        "if False:",
        GROUP,
    ),
    "window: what was lost is not sent again": off(
        "peers.py",
        "self._core.set_next_index(peer.node, peer.owed_index + 1)",
        "pass",
        GOLDEN,
    ),
}

ELECTIONS = {
    "pre-vote: not asked": off(
        "group.py",
        "if self._pre_votes.won(voters, quorum, self._now_ns):",
        "if True:",
        MEMBERS,
        GOLDEN,
    ),
    "pre-vote: given while a leader is heard": off(
        "elections.py", "and self.leader_is_silent(now_ns)", "", THESIS, MEMBERS
    ),
    "pre-vote: given to a shorter log": off(
        "elections.py", "and (request.last_term, request.last_index) >= mine", "", GOLDEN, THESIS
    ),
    "pre-vote: an older round counts": off(
        "elections.py", "if round_number == self._round:", "if True:", THESIS
    ),
    "pre-vote: kept for ever": off(
        "elections.py",
        "or now_ns - self._started_ns >= self._quiet_ns:",
        "or False:",
        THESIS,
    ),
    "vote: counted twice": off(
        "receiver.py", "if state.voter and body.term > state.vote_term:", "if state.voter:", FIGURE2
    ),
    "vote: not written": off(
        "log.py",
        "self._write(RecordType.HARD_STATE, 0, term, msgspec.msgpack.encode(state))",
        "pass",
        FIGURE2,
    ),
    "quorum check: after thirty seconds": off(
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
    "read rule 1: own entry committed": off(
        "group.py",
        "return self._leads()\n\n    def _likely_leader",
        "return self._role == Role.LEADER\n\n    def _likely_leader",
        THESIS,
    ),
    "read rule 2: index of the present": off(
        "group.py", "commit = core.commit_index()", "commit = self._log.base_index", THESIS
    ),
    "read rule 3: the term it is in": off(
        "receiver.py",
        "return probe.term == self._core.term() and not self._core.is_leader()",
        "return True",
        THESIS,
        SCENARIOS,
    ),
    "read rule 4: a quorum confirms": off(
        "reads.py",
        "return len(round_.confirmed & voters) + 1 >= quorum",
        "return True",
        THESIS,
        GOLDEN,
    ),
    "read: a question ends with its connection": off(
        "group.py", "self._reads.forget(peer)", "pass", THESIS
    ),
    "read rule 5: applied before served": off(
        "reads.py", "return applied_index >= index", "return True", THESIS, RANDOM
    ),
}

DURABILITY = {
    "sync: answers leave before it": off(
        "outbox.py",
        "(self._early if isinstance(body, Append) else self._late)",
        "self._early",
        FIGURE2,
    ),
    "sync: not done": off(
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
    "log: segment named before its header": off(
        "log.py",
        "        disk.fdatasync(handle)\n        disk.rename(SPARE",
        "        disk.rename(SPARE",
        LOG,
    ),
    "log: name not synced": off(
        "log.py",
        "disk.rename(SPARE, segment_name(sequence))\n        disk.fsync_dir()",
        "disk.rename(SPARE, segment_name(sequence))",
        LOG,
    ),
    "log: removals in any order": off(
        "log.py",
        "            # Oldest first on disk too: a gap between files would count as damage.\n"
        "            self._disk.fsync_dir()\n",
        "",
        LOG,
    ),
    "log: synced damage cut like a torn tail": off(
        "log.py",
        "if not newest or records.synced_after(data, segment.used_bytes, segment.salt):",
        "if not newest:",
        LOG,
    ),
    "log: torn tail left in place": off(
        "log.py", "disk.pwrite(handle, zeros, segment.used_bytes)", "pass", LOG
    ),
    "log: not synced when opened": off(
        "log.py",
        "        if newest:\n            # After",
        "        if False:\n            # After",
        LOG,
    ),
    "log: checksum not compared": off(
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
    "log: of another node": off(
        "segments.py",
        "if mine != (identity.cluster, identity.node, identity.incarnation):",
        "if False:",
        LOG,
    ),
    "log: a file under another name": off(
        "segments.py", "if header.sequence != sequence:", "if False:", DAMAGE
    ),
    "log: a truncated file": off(
        "segments.py", "elif size_bytes < header.capacity_bytes:", "elif False:", DAMAGE
    ),
    "log: a state ahead of it": off("roster.py", "if not installing:", "if False:", DAMAGE),
    "log: an image announced long ago": off(
        "log.py",
        "if self.announced is not None and index >= self.announced[0]:",
        "if False:",
        DAMAGE,
    ),
    "log: an image not announced": off(
        "image_receiver.py",
        "self._log.announce_install(incoming.applied.index, incoming.applied.term)",
        "pass",
        IMAGE_TESTS,
    ),
    "log: cut before the machine's commit": off(
        "group.py",
        "drop_index = applier.durable_index",
        "drop_index = applier.applied.index",
        RESTART,
        GROUP,
        RANDOM,
    ),
}

STATE = {
    "start: a gap before the log": off(
        "roster.py", "if log.base_index > applied.index:", "if False:", RESTART, GROUP
    ),
    "start: a log that lost its tail": off(
        "roster.py",
        "lost_tail = log.last_index < applied.index",
        "lost_tail = False",
        GROUP,
        RANDOM,
    ),
    "divergence: not compared": off(
        "receiver.py",
        "if mine is not None and mine != body.fingerprint:",
        "if False:",
        GROUP,
    ),
    "apply: time falls": off(
        "apply.py",
        "if entry.cluster_ns < last.times.cluster_ns or entry.wall_ns < last.times.wall_ns:",
        "if False:",
        DIRECTED,
        GROUP,
        VALUES,
    ),
    "apply: another leader's entry answers": off(
        "apply.py",
        "if waiters is not None and waiters.term != term:",
        "if False:",
        DIRECTED,
        GROUP,
    ),
    "time: a leader's clock alone": off(
        "timekeeping.py",
        "clamped = min(max(wall_ns, median - WALL_CLAMP_NS), median + WALL_CLAMP_NS)",
        "clamped = wall_ns",
        GROUP,
    ),
    "time: a suspended leader's leap": off(
        "timekeeping.py",
        "min(now_ns - self._advanced_ns, STEP_MAX_NS)",
        "now_ns - self._advanced_ns",
        VALUES,
    ),
    "step: again and again for a tick that waits": off(
        "group.py",
        "may_append = transfer_ns is None and self._leads()",
        "may_append = self._leads()",
        SLOW,
    ),
    "step: again and again for a quorum's clocks": off(
        "group.py",
        "self._leads() and self._timekeeper.hears(quorum)",
        "self._leads()",
        SLOW,
    ),
    "role: waiters forgotten": off(
        "group.py",
        "self._fail_proposals(NotLeader(leader or self._transfer.target))",
        "pass",
        GROUP,
        IMAGES,
    ),
}

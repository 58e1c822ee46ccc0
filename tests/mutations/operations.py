"""Guards of images, skipped entries, frames, members, transfers and the network."""

from tests.mutations.guard import (
    COUNTING,
    DIRECTED,
    DRIVER,
    FIGURE2,
    GOLDEN,
    HANDSHAKES,
    IMAGE_TESTS,
    IMAGES,
    SKIPS,
    SLOW,
    TCP,
    THESIS,
    UNIT,
    VALUES,
    Guard,
    off,
)

IMAGE = {
    "image: an older one at its offer": off(
        "image_receiver.py",
        'if self._is_covered(applied):\n            return ImageRefusal.COVERED, ""',
        'if False:\n            return ImageRefusal.COVERED, ""',
        IMAGES,
    ),
    "image: an older one installed": off(
        "image_receiver.py", "if not self._may_install(incoming.applied):", "if False:", IMAGES
    ),
    "image: installed by a candidate": off(
        "image_receiver.py", "self._core.stand_down()", "pass", COUNTING
    ),
    "counting: pre-votes of former voters": off(
        "elections.py", "self._granted & voters", "self._granted", COUNTING
    ),
    "counting: confirmations of former voters": off(
        "reads.py", "round_.confirmed & voters", "round_.confirmed", COUNTING
    ),
    "counting: confirmations of learners": off(
        "receiver.py",
        "if voter and self._core.is_leader() and body.term == self._core.term():",
        "if self._core.is_leader() and body.term == self._core.term():",
        COUNTING,
    ),
    "counting: clocks of former voters": off(
        "membership.py", "self._timekeeper.keep(configurations.voters)", "pass", COUNTING
    ),
    "image: a newer term not adopted": off(
        "image_receiver.py",
        "if offer.term > self._core.term() and not self._core.is_leader():",
        "if False:",
        DIRECTED,
    ),
    "image: of a term to come": off(
        "image_receiver.py", "if applied.term > term:", "if False:", DIRECTED
    ),
    "image: of an old term": off(
        "image_receiver.py", "if term < self._core.term():", "if False:", DIRECTED
    ),
    "image: checksum of a piece": off(
        "image_receiver.py", "if crc32c.crc32c(chunk.piece) != chunk.crc:", "if False:", DIRECTED
    ),
    "image: a piece is missing": off(
        "image_receiver.py",
        "if chunk.offset != incoming.offset or incoming.ended:",
        "if False:",
        DIRECTED,
    ),
    "image: log not begun anew": off(
        "image_receiver.py", "self._log.reset(applied.index, applied.term)", "pass", GOLDEN
    ),
    "image: the log after it dropped": off(
        "group.py", "drop_index = min(drop_index, keep_index)", "pass", IMAGE_TESTS, GOLDEN
    ),
    "skip: another entry than was meant": off(
        "skips.py", "if (skip.term, skip.crc) != (term, crc):", "if False:", SKIPS
    ),
    "skip: an applied one": off(
        "skips.py",
        "if skip.index <= applied.index and skip not in applied.skips:",
        "if False:",
        SKIPS,
    ),
    "skip: payloads applied": off(
        "apply.py",
        "last, payloads = self.applied, []",
        "last, payloads = self.applied, self._decode(command, index, term)",
        SKIPS,
    ),
    "skip: an entry that is not there": off(
        "skips.py", "if not log.base_index < index <= log.last_index:", "if False:", SKIPS
    ),
    "skip: lists that differ": off(
        "roster.py",
        "if refusal and not self._may_take_list(hello):",
        "if False:",
        GOLDEN,
        SKIPS,
    ),
}

WIRE = {
    "frame: comes twice": off(
        "endpoint.py", "if frame.sequence <= state.received_sequence:", "if False:", FIGURE2
    ),
    "frame: of another connection": off(
        "endpoint.py",
        "if (frame.sender, frame.epoch) != (peer, state.epoch):",
        "if False:",
        FIGURE2,
    ),
    "frame: terms fall": off("frames.py", "if entry_term < term:", "if False:", VALUES),
    "frame: entries of a later term": off("frames.py", "if term > body.term:", "if False:", VALUES),
    "hello: another cluster": off(
        "roster.py", "if hello.cluster != self._identity.cluster:", "if False:", HANDSHAKES
    ),
    "hello: another incarnation": off(
        "roster.py",
        "if hello.incarnation != member.incarnation:",
        "if False:",
        HANDSHAKES,
    ),
    "hello: a refusal that is over": off(
        "roster.py",
        "holds = latest is not None and now_ns - latest.at_ns < _REFUSAL_HOLDS_NS",
        "holds = True",
        HANDSHAKES,
    ),
    "hello: a refusal of who was accepted since": off(
        "roster.py",
        "if self._refusal is not None and self._refusal.node == hello.node:",
        "if False:",
        HANDSHAKES,
    ),
    "hello: other founders": off(
        "roster.py",
        "if hello.digest and self._digest and hello.digest != self._digest:",
        "if False:",
        HANDSHAKES,
    ),
}

CHANGES = {
    "members: two changes at once": off(
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
    "inbox: without bound": off(
        "endpoint.py", "if waiting > INBOX_MAX_BYTES:", "if False:", DIRECTED
    ),
    "inbox: frames of a lost connection": off(
        "group.py",
        "if epoch == self._peers[peer].epoch and not self._roster.founding:",
        "if not self._roster.founding:",
        DIRECTED,
    ),
    "read: questions without bound": off(
        "reads.py", "if self._remote_count >= self._config.reads_max:", "if False:", DIRECTED
    ),
    "members: a number used again": off(
        "changes.py", "if member.node <= members.highest:", "if False:", GOLDEN
    ),
    "members: promoted before it has caught up": off(
        "changes.py",
        "if behind or not self._is_active(node, now_ns):",
        "if False:",
        THESIS,
    ),
    "members: promoted before it holds the list it is in": off(
        "changes.py", "behind = unaware or lag", "behind = lag", f"{UNIT}/test_membership.py"
    ),
    "members: a removal that leaves no quorum": off(
        "changes.py", "if active < len(voters) // 2 + 1:", "if False:", DIRECTED
    ),
    "members: the leader removed": off("changes.py", "if node == self._node:", "if False:", THESIS),
    "members: a learner counts": off(
        "bootstrap.py",
        "frozenset(member.node for member in self.members if member.voter)",
        "frozenset(member.node for member in self.members)",
        DIRECTED,
        THESIS,
    ),
    "members: not rolled back": off(
        "configurations.py",
        "while self._above and self._above[-1][0] >= index:",
        "while False:",
        THESIS,
    ),
    "members: forgotten at a restart": off(
        "configurations.py",
        "self._above.append((at, self._decode(command, at)))",
        "pass",
        THESIS,
    ),
    "members: in force when committed only": off(
        "_pysyncobj.py", "self._owner.core_members_appended(index, entry)", "pass", THESIS
    ),
    "members: an answer of a stranger": off(
        "receiver.py",
        "if not state.member or not self._peers.is_current(body):",
        "if not self._peers.is_current(body):",
        DIRECTED,
    ),
    "members: a vote of a stranger": off(
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
    "members: a learner stands": off(
        "membership.py",
        "return self._configurations.is_voter and not self._removed()",
        "return not self._removed()",
        DIRECTED,
    ),
    "members: a single voter's term not durable": off(
        "outbox.py", "if self._log.term_is_durable:", "if True:", DIRECTED
    ),
    "members: a single voter's commit not synced": off(
        "peers.py",
        "commit_index = min(core.commit_index(), log.synced_index)",
        "commit_index = core.commit_index()",
        SLOW,
    ),
    "transfer: before the log is complete": off(
        "transfer.py",
        "if target is None or self._core.match_index(target) != self._log.last_index:",
        "if target is None:",
        THESIS,
    ),
    "transfer: never given up": off(
        "transfer.py",
        "if self.target is not None and now_ns >= self._deadline_ns:",
        "if False:",
        THESIS,
    ),
    "transfer: entries go on meanwhile": off(
        "group.py",
        "if self._transfer.target is None:\n                self._leadership",
        "if True:\n                self._leadership",
        THESIS,
    ),
    "transfer: anybody may have a node stand": off(
        "receiver.py",
        "if body.term != self._core.term() or peer != self._core.leader():",
        "if False:",
        THESIS,
    ),
    "transfer: no pre-vote ever after": off(
        "group.py", "            self._receiver.stand_term = 0\n", "", DIRECTED
    ),
    "members: a stranger says who was removed": off(
        "receiver.py",
        "self.told_removed |= self._peers[peer].member",
        "self.told_removed = True",
        DIRECTED,
    ),
    "members: removed for ever": off(
        "receiver.py",
        "self.told_removed = False  # leaders send entries to members only",
        "pass",
        DIRECTED,
    ),
    "transfer: a request to stand that is over": off(
        "group.py", "core.end_stand()", "pass", DIRECTED
    ),
}

NETWORK = {
    "network: plain beyond loopback": off(
        "tcp.py",
        "if not loopback:",
        "if False:",
        f"{DRIVER}::test_without_tls_only_loopback_is_used",
    ),
    "network: certificate of another node": off(
        "connection.py",
        "if self._certified is not None and greeting.node != self._certified:",
        "if False:",
        f"{TCP}::test_a_node_speaks_for_itself_only",
    ),
    "network: another node at the address": off(
        "connection.py",
        "if self._certified != self.dialed:",
        "if False:",
        f"{TCP}::test_a_node_at_anothers_address_is_not_greeted",
    ),
    "network: a dial that was cancelled is waited for": off(
        "tcp.py",
        "if not made:",
        "if False:",
        f"{TCP}::test_a_dial_that_is_cancelled_as_it_succeeds_holds_nobody_up",
    ),
    "network: a frame of any size": off(
        "connection.py", "if not 0 < length <= limit:", "if False:", DIRECTED
    ),
    "network: any number of strangers": off(
        "tcp.py",
        "if len(self._pending) > PENDING_MAX:",
        "if False:",
        f"{TCP}::test_connections_that_say_nothing_are_bounded",
    ),
    "network: any number of visitors": off(
        "tcp.py",
        "if len(visitors - {peer}) >= VISITORS_MAX:",
        "if False:",
        f"{TCP}::test_visitors_are_bounded",
    ),
    "network: both connections of a pair stay": off(
        "tcp.py",
        "return not (young and self._wins(present, peer) and not self._wins(connection, peer))",
        "return True",
        f"{TCP}::test_of_two_connections_the_one_the_smaller_id_dialed_stays",
    ),
}

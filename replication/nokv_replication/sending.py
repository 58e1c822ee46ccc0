"""What the library says, as frames: its appends, answers and votes on their way to a peer."""

from collections.abc import Callable
from typing import Any

from nokv_replication._pysyncobj import Core
from nokv_replication.apply import Applier
from nokv_replication.frames import Ack, RequestVote, TooFar, Vote
from nokv_replication.log import Log
from nokv_replication.outbox import Outbox
from nokv_replication.peers import Peers
from nokv_replication.ports import Clock
from nokv_replication.reads import Send
from nokv_replication.receiver import Receiver


class Sending:
    """Turns each message of the library into a frame; the step's instant is `now_ns`."""

    def __init__(
        self,
        core: Core,
        log: Log,
        peers: Peers,
        receiver: Receiver,
        applier: Applier,
        outbox: Outbox,
        clock: Clock,
        send: Send,
    ) -> None:
        self._core = core
        self._log = log
        self._peers = peers
        self._receiver = receiver
        self._applier = applier
        self._outbox = outbox
        self._clock = clock
        self._send = send
        self.now_ns = 0
        self.too_far: Callable[[int, int], None] = lambda _peer, _now_ns: None
        """Told of a peer that needs what this log no longer holds, and of the step's instant."""
        self.free_bytes = 0
        """Free disk space as last measured, for acknowledgements."""

    def message(self, peer: int, message: dict[str, Any]) -> None:
        """Send one message of the library."""
        kind = message["type"]
        if kind == "append_entries":
            self._append(peer, message)
        elif kind == "next_node_idx":
            self._ack(peer, message)
        elif kind == "request_vote":
            body = RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
            self._send(peer, body)
        elif kind == "response_vote":
            self._send(peer, Vote(message["term"]))
        else:
            message_text = f"the library sent {kind!r}"
            raise AssertionError(message_text)

    def _append(self, peer: int, message: dict[str, Any]) -> None:
        if "prevLogIdx" not in message:
            # The library would send its dump: the peer needs what this log no longer holds.
            self._core.set_next_index(peer, self._log.last_index + 1)
            self.too_far(peer, self.now_ns)
            self._send(peer, TooFar(self._core.term(), self._log.base_index, self._log.base_term))
            return
        assert "transmission" not in message
        prev_index = message["prevLogIdx"]
        prev = None if prev_index is None else (prev_index, message["prevLogTerm"])
        state = self._peers[peer]
        body = self._peers.make_append(state, prev, message["entries"], self.now_ns)
        self._send(peer, body)

    def _ack(self, peer: int, message: dict[str, Any]) -> None:
        answering = self._receiver.filter.answering
        assert answering is not None
        term, sequence = answering
        next_index, success, reset = self._receiver.filter.rewrite_answer(message)
        if success:
            self._receiver.too_far_base = None
        applier = self._applier
        ack = Ack(
            term=term,
            sequence=sequence,
            success=success,
            reset=reset,
            next_index=next_index,
            applied_index=applier.applied.index,
            fingerprint=applier.fingerprint(),
            wall_ns=max(0, self._clock.wall_ns()),
            free_bytes=self.free_bytes,
            sync_ns=self._outbox.recent_sync_ns(),
        )
        self._send(peer, ack)

"""Leadership transfer (Raft thesis, section 3.10), asked for or because this leader is unfit.

The leader appends nothing more, waits until the target has its whole log, and tells it to stand at
once. The target needs no pre-vote: the leader itself asked for the election. After one election
timeout the leader goes on as if nothing had been.
"""

from nokv_replication._pysyncobj import Core
from nokv_replication.errors import ReplicationError, TransferFailed
from nokv_replication.frames import TimeoutNow
from nokv_replication.log import Log
from nokv_replication.outbox import Outbox
from nokv_replication.peers import Peer, Peers
from nokv_replication.reads import Send
from nokv_replication.timekeeping import Timekeeper
from nokv_replication.types import ChangeDone, Committed, Counters, GroupConfig, Outcome


class Transfer:
    """The one transfer that is under way at a node that leads or has just led."""

    def __init__(
        self,
        core: Core,
        log: Log,
        peers: Peers,
        outbox: Outbox,
        timekeeper: Timekeeper,
        config: GroupConfig,
        counters: Counters,
        send: Send,
    ) -> None:
        self._core = core
        self._log = log
        self._peers = peers
        self._outbox = outbox
        self._timekeeper = timekeeper
        self._config = config
        self._counters = counters
        self._send = send
        self.target: int | None = None
        """Who is to lead, None while there is no transfer."""
        self._done: ChangeDone | None = None
        self._deadline_ns = 0
        self._sent_ns: int | None = None
        self._retry_ns = 0
        # Since when this leader's clock is off, None while it is not.
        self._clamped_ns: int | None = None
        self.reason = ""
        """Why this node handed over by itself the last time it did."""

    # ------------------------------------------------------------------ leader

    def begin(self, target: int | None, done: ChangeDone, now_ns: int) -> None:
        """Hand over; the caller has checked that this node leads. Raises TransferFailed."""
        if self.target is not None:
            message = f"leadership is on its way to node {self.target} already"
            raise TransferFailed(message)
        chosen = self._most_caught_up(now_ns) if target is None else self._peers.all.get(target)
        if chosen is None or not self._may_lead(chosen, now_ns):
            who = "no other voter" if target is None else f"node {target} is no other voter that"
            message = f"{who} is connected and answers: nobody can take over"
            raise TransferFailed(message)
        self._counters.transfers_started += 1
        self.target, self._done = chosen.node, done
        self._deadline_ns = now_ns + self._config.election_max_ns
        self._sent_ns = None

    def _may_lead(self, peer: Peer, now_ns: int) -> bool:
        recent = now_ns - peer.heard_ns < self._config.election_max_ns
        return peer.voter and peer.epoch > 0 and recent

    def _most_caught_up(self, now_ns: int) -> Peer | None:
        able = [peer for peer in self._peers.all.values() if self._may_lead(peer, now_ns)]
        return max(
            able,
            key=lambda p: (self._core.match_index(p.node), -p.sync_ns, -p.node),
            default=None,
        )

    def pursue(self, now_ns: int) -> None:
        """Tell the target to stand once it has the whole log; again, should that be lost."""
        target = self.target
        if target is None or self._core.match_index(target) != self._log.last_index:
            return
        if self._sent_ns is None or now_ns - self._sent_ns >= self._config.heartbeat_ns:
            self._sent_ns = now_ns
            self._send(target, TimeoutNow(self._core.term()))

    def deadline_ns(self) -> int | None:
        """Return when a transfer is given up, None while there is none."""
        return None if self.target is None else self._deadline_ns

    def note_leader(self, leader: int | None, me: int) -> None:
        """A leader is known: the transfer has come to its end, unless it is still this node."""
        if self.target is None or leader is None or leader == me:
            return
        if leader == self.target:
            self._counters.transfers_done += 1
            self._end(Committed(self._core.commit_index(), b""))
        else:
            self._end(TransferFailed(f"node {leader} was elected instead of node {self.target}"))

    def expire(self, now_ns: int) -> None:
        """Give up after one election timeout."""
        if self.target is not None and now_ns >= self._deadline_ns:
            self._end(TransferFailed(f"node {self.target} did not take over within its time"))

    def fail(self, error: ReplicationError) -> None:
        """End a transfer that nobody pursues any more."""
        if self.target is not None:
            self._end(error)

    def _end(self, outcome: Outcome) -> None:
        done, self._done, self.target = self._done, None, None
        assert done is not None
        done(outcome)

    # ------------------------------------------------------------------ unfit leaders

    def hand_over_if_unfit(self, now_ns: int) -> None:
        """Hand over to a fitter voter where the clock is off or the log's disk stalls."""
        if not self._timekeeper.clamped_now:
            self._clamped_ns = None
        elif self._clamped_ns is None:
            self._clamped_ns = now_ns
        if self.target is not None or now_ns < self._retry_ns:
            return
        clamped_ns = self._clamped_ns
        if clamped_ns is not None and now_ns - clamped_ns >= self._config.election_max_ns:
            self._hand_over(self._with_good_clock(now_ns), "its clock is off", now_ns)
        elif self._outbox.stalls(self._config):
            self._hand_over(self._with_faster_disk(now_ns), "its log's disk stalls", now_ns)

    def _with_good_clock(self, now_ns: int) -> list[Peer]:
        able = [peer for peer in self._peers.all.values() if self._may_lead(peer, now_ns)]
        return [peer for peer in able if self._timekeeper.is_near(peer.node, now_ns)]

    def _with_faster_disk(self, now_ns: int) -> list[Peer]:
        mine = self._outbox.recent_sync_ns()
        able = [peer for peer in self._peers.all.values() if self._may_lead(peer, now_ns)]
        return [peer for peer in able if 2 * peer.sync_ns < mine]

    def _hand_over(self, fitter: list[Peer], reason: str, now_ns: int) -> None:
        if not fitter:
            return
        self._retry_ns = now_ns + self._config.handover_retry_ns
        peer = max(fitter, key=lambda p: (self._core.match_index(p.node), -p.sync_ns, -p.node))
        self.reason = reason
        self._counters.handovers += 1
        self.begin(peer.node, lambda _outcome: None, now_ns)

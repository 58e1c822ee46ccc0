"""Pre-vote (Raft thesis, section 9.6): ask before disturbing.

When the election timer fires, the node first asks whether a majority would vote for it in a newer
term. A peer that hears from a leader says no, so a node that was merely cut off returns without
deposing anybody. Only the answers to the latest round count, and only for a short time.
"""

from nokv_replication._pysyncobj import Core
from nokv_replication.frames import PreVote
from nokv_replication.log import Log
from nokv_replication.types import Counters, GroupConfig


class PreVotes:
    """One node's pre-vote rounds, asked and answered."""

    def __init__(self, core: Core, log: Log, config: GroupConfig, counters: Counters) -> None:
        self._core = core
        self._log = log
        self._counters = counters
        self._retry_ns = 2 * config.heartbeat_ns
        self._quiet_ns = config.election_min_ns
        # When a leader of this or a newer term was last heard.
        self._contact_ns = -self._quiet_ns
        self._round = 0
        self._started_ns: int | None = None
        self._granted: set[int] = set()

    def contact(self, now_ns: int) -> None:
        """A leader was heard: any round is over."""
        self._contact_ns = now_ns
        self._started_ns = None

    def leader_is_silent(self, now_ns: int) -> bool:
        """Whether no leader was heard for the shortest election timeout."""
        return now_ns - self._contact_ns >= self._quiet_ns

    def grants(self, request: PreVote, now_ns: int) -> bool:
        """Whether this node would vote for that log in a newer term; changes nothing."""
        mine = (self._log.last_term, self._log.last_index)
        return (
            request.term >= self._core.term()
            and (request.last_term, request.last_index) >= mine
            and not self._core.is_leader()
            and self.leader_is_silent(now_ns)
        )

    def granted(self, peer: int, round_number: int) -> None:
        """Count a peer's yes to the latest round."""
        if round_number == self._round:
            self._granted.add(peer)

    def won(self, voters: frozenset[int], quorum: int, now_ns: int) -> bool:
        """Whether the latest round has a majority and is fresh; if so it is used up."""
        if self._started_ns is None or now_ns - self._started_ns >= self._quiet_ns:
            return False
        if len(self._granted & voters) + 1 < quorum:
            return False
        self._started_ns = None
        self._counters.elections_started += 1
        return True

    def next_round(self, now_ns: int) -> PreVote | None:
        """Return the question of a new round, None while the latest is still being answered."""
        if self._started_ns is not None and now_ns - self._started_ns < self._retry_ns:
            return None
        self._round += 1
        self._started_ns = now_ns
        self._granted.clear()
        self._counters.pre_votes_started += 1
        return PreVote(self._core.term(), self._log.last_index, self._log.last_term, self._round)

    def retry_at_ns(self) -> int | None:
        """Return when a new round may start, None when no round is open."""
        return None if self._started_ns is None else self._started_ns + self._retry_ns

"""The ages of sessions as the leader counts them.

Ages move with cluster time, which the leader lets run at most one second a step: a leader that was
suspended has not seen its clients' silence. A session that this leader never heard from counts from
its taking office. Nothing here knows a clock: `now_ns` is the leader's cluster time.
"""

from __future__ import annotations


class SessionAges:
    """Which sessions live, when this leader heard of each, and which are being ended."""

    def __init__(self, live: list[tuple[int, int]]) -> None:
        self._ttl_ns: dict[int, int] = dict(live)
        """Every live session, also while this node does not lead."""
        self._heard_ns: dict[int, int] = {}
        self._suspects: set[int] = set()
        self._ending: set[int] = set()
        """Their `expire` was proposed: no renewal is answered any more."""

    def reload(self, live: list[tuple[int, int]]) -> None:
        """Take over the live sessions of a state that came as a whole, at a node that follows."""
        self._ttl_ns = dict(live)
        self._heard_ns.clear()
        self._suspects.clear()
        self._ending.clear()

    @property
    def live(self) -> int:
        """Number of live sessions."""
        return len(self._ttl_ns)

    def take_office(self, now_ns: int) -> None:
        """Begin to lead: everybody has a full time to live from now."""
        self._heard_ns = dict.fromkeys(self._ttl_ns, now_ns)
        self._suspects.clear()
        self._ending.clear()

    def opened(self, session: int, ttl_ns: int, now_ns: int) -> None:
        """Take a session that was opened, when that is applied: it counts as a renewal."""
        self._ttl_ns[session] = ttl_ns
        self._heard_ns[session] = now_ns
        self._suspects.discard(session)

    def ended(self, session: int) -> None:
        """Forget a session that is over."""
        self._ttl_ns.pop(session, None)
        self._heard_ns.pop(session, None)
        self._suspects.discard(session)
        self._ending.discard(session)

    def ttl_ns(self, session: int) -> int | None:
        """Return a live session's time to live, None for any other."""
        return self._ttl_ns.get(session)

    def is_ending(self, session: int) -> bool:
        """Return whether `expire` was proposed by this leader."""
        return session in self._ending

    def renew(self, session: int, now_ns: int) -> bool:
        """Note a renewal; return whether it may be answered."""
        if session not in self._ttl_ns or session in self._ending:
            return False
        self._heard_ns[session] = now_ns
        self._suspects.discard(session)
        return True

    def take_overdue(self, now_ns: int, limit: int) -> list[int]:
        """Return at most `limit` sessions to end now, and count them as ending.

        A session goes only when it is overdue at two calls in a row: between them the owner has
        read its sockets once, so a renewal that had arrived is never overtaken by the verdict.
        """
        overdue = {
            session
            for session, heard_ns in self._heard_ns.items()
            if now_ns - heard_ns > self._ttl_ns[session] and session not in self._ending
        }
        found = sorted(overdue & self._suspects)[:limit]
        self._suspects = overdue.difference(found)
        self._ending.update(found)
        return found

    def proposal_failed(self, session: int) -> None:
        """Take back an ending whose proposal certainly never entered the log."""
        self._ending.discard(session)

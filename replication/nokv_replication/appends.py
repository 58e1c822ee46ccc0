"""The follower's side of replication: what of an append frame the library may see.

The library truncates its log at every append, even where nothing conflicts, so a duplicate of an
old frame would throw away entries it has acknowledged. Here the part that the log holds already is
stripped first; what is left either extends the log or replaces a conflicting, uncommitted tail.
"""

from typing import Any, NamedTuple

from nokv_replication._pysyncobj import Core
from nokv_replication.errors import Fatal
from nokv_replication.frames import Append
from nokv_replication.log import Log
from nokv_replication.types import Counters

LogEntry = tuple[bytes, int, int]
"""An entry as the library has it: bytes, index, term."""


class Stripped(NamedTuple):
    """What is left of an append: entries after a previous one that is to match."""

    prev_index: int
    prev_term: int
    entries: list[LogEntry]


class AppendFilter:
    """Judges append frames of one group; remembers the one the library is answering."""

    def __init__(self, core: Core, log: Log, counters: Counters) -> None:
        self._core = core
        self._log = log
        self._counters = counters
        # Of the frame being handled: term, sequence, and the next index to acknowledge where the
        # library would claim a tail that the leader has not spoken of.
        self.answering: tuple[int, int] | None = None
        self._next_index: int | None = None
        self._accepts = True

    def handle(self, peer: int, sequence: int, append: Append, *, accept_entries: bool) -> None:
        """Hand the append to the library, filtered; its answer comes through `rewrite_answer`.

        The caller has dropped appends of older terms. `accept_entries` False keeps a node without
        disk space a listening follower: it stores, and so acknowledges, nothing new.

        Raises:
            Fatal: the append contradicts what is committed, or a second leader sent it.
        """
        core, log = self._core, self._log
        if core.is_leader() and append.term == core.term():
            message = f"node {peer} and this node both lead term {append.term}"
            raise Fatal(message)
        first = append.prev_index + 1
        self._accepts = accept_entries
        sent = append.entries if accept_entries else []
        entries = [(command, first + i, term) for i, (term, command) in enumerate(sent)]
        last_new = append.prev_index + len(entries)
        commit_index = append.commit_index
        stripped = self._skip_dropped(Stripped(append.prev_index, append.prev_term, entries))
        stripped = self._strip_prefix(stripped)
        self._next_index = None
        prev_index, prev_term, entries = stripped
        matches = prev_index <= log.last_index and log.term_at(prev_index) == prev_term
        if matches and entries:
            self._check_overwrite(prev_index)
        elif matches and prev_index < log.last_index:
            # All of it is here already, and more. The rest of the tail stays: it may be the
            # leader's own, on its way. But only what the leader spoke of counts as matching.
            known = max(last_new, log.base_index)
            self._next_index = known + 1
            commit_index = min(commit_index, known)
            prev_index, prev_term = log.last_index, log.last_term
        message_dict: dict[str, Any] = {
            "type": "append_entries",
            "term": append.term,
            "commit_index": commit_index,
            "entries": entries,
            "prevLogIdx": prev_index,
            "prevLogTerm": prev_term,
        }
        self.answering = (append.term, sequence)
        try:
            core.deliver(peer, message_dict)
        finally:
            self.answering = None

    def _skip_dropped(self, append: Stripped) -> Stripped:
        """Start at the log's base: what lies before it is committed, the same everywhere."""
        log = self._log
        if append.prev_index >= log.base_index:
            return append
        skip = log.base_index - append.prev_index
        if skip <= len(append.entries) and append.entries[skip - 1][2] != log.base_term:
            message = f"the leader's entry {log.base_index} is not the one applied here"
            raise Fatal(message)
        return Stripped(log.base_index, log.base_term, append.entries[skip:])

    def _strip_prefix(self, append: Stripped) -> Stripped:
        """Drop the entries that the log holds with the same term: those are the same entries."""
        log = self._log
        prev_index, prev_term, entries = append
        if prev_index > log.last_index or log.term_at(prev_index) != prev_term:
            return append
        held = 0
        for _, index, term in entries:
            if index > log.last_index or log.term_at(index) != term:
                break
            held += 1
        if held:
            self._counters.entries_skipped += held
            prev_index += held
        return Stripped(prev_index, log.term_at(prev_index), entries[held:])

    def _check_overwrite(self, prev_index: int) -> None:
        committed = min(self._core.commit_index(), self._log.last_index)
        if prev_index < committed:
            message = (
                f"the leader wants to replace entries after {prev_index}, but up to {committed}"
                " they are committed here: the group's logs contradict each other"
            )
            raise Fatal(message)

    def rewrite_answer(self, answer: dict[str, Any]) -> tuple[int, bool, bool]:
        """Return (next_index, success, reset) of the library's answer, corrected.

        A mismatch is answered with the end of what is certain to match any leader, the commit
        index: one round trip, where the library walks back one entry per heartbeat and may be sent
        to and fro for ever by answers to frames that were already on their way.
        """
        success, reset = bool(answer["success"]), bool(answer["reset"])
        if reset and not self._accepts:
            # A hint would have the leader send again, each heartbeat, what is not stored anyway.
            return int(answer["next_node_idx"]), success, False
        if reset:
            self._counters.reset_hints += 1
            known = min(self._core.commit_index(), self._log.last_index)
            return known + 1, success, reset
        if success and self._next_index is not None:
            return self._next_index, success, reset
        return int(answer["next_node_idx"]), success, reset

"""Planted bugs: each takes one protection away, by name, for as long as the context lasts.

A test machine that finds nothing proves nothing unless it finds these.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from tests.simulation.disk import SimDisk
from tests.simulation.machine import ListSink

from nokv_replication import Role
from nokv_replication._pysyncobj import Core
from nokv_replication.appends import AppendFilter
from nokv_replication.bootstrap import Member, Members
from nokv_replication.changes import Changes
from nokv_replication.configurations import Configurations
from nokv_replication.frames import Hello
from nokv_replication.group import Group
from nokv_replication.image_receiver import ImageReceiver
from nokv_replication.log import Log
from nokv_replication.outbox import Outbox
from nokv_replication.peers import Peers
from nokv_replication.reads import Reads
from nokv_replication.receiver import Receiver
from nokv_replication.records import HardState
from nokv_replication.roster import Roster
from nokv_replication.skips import Skips

Patch = tuple[type, str, Any]
"""A class, the name of one of its attributes, and what takes its place."""


def _no_fdatasync() -> Patch:
    """What the log calls durable is in the page cache only."""

    def fdatasync(self: SimDisk, handle: int) -> None:
        self.on_call("fdatasync")
        self.syncs += 1
        assert handle in self._handles

    return SimDisk, "fdatasync", fdatasync


def _answers_before_sync() -> Patch:
    """Votes, acknowledgements and confirmations leave like appends, before the sync."""

    def put(self: Outbox, peer: Any, body: Any) -> None:
        self._early.append((peer, body))

    return Outbox, "put", put


def _prefix_not_stripped() -> Patch:
    """The library sees entries it has, and truncates before it adds them again."""
    return AppendFilter, "_strip_prefix", lambda _self, append: append


def _tail_acknowledged() -> Patch:
    """A follower acknowledges its own tail, of which the leader has not spoken."""
    original = AppendFilter.rewrite_answer

    def rewrite(self: AppendFilter, answer: dict[str, Any]) -> tuple[int, bool, bool]:
        self._next_index = None
        return original(self, answer)

    return AppendFilter, "rewrite_answer", rewrite


def _old_acks_counted() -> Patch:
    """An acknowledgement of an older term counts in this one."""
    return Peers, "is_current", lambda self, _ack: self._core.is_leader()


def _read_rule_1() -> Patch:
    """A new leader serves reads before it has committed an entry of its own term."""
    return Group, "_may_confirm_reads", lambda self: self._role == Role.LEADER


def _read_rule_2() -> Patch:
    """The read index is one taken before the read arrived."""
    original = Reads.start_round

    def start_round(self: Any, term: int, commit_index: int, *rest: Any) -> None:
        stale = getattr(self, "stale_index", 0)
        self.stale_index = commit_index
        original(self, term, stale, *rest)

    return Reads, "start_round", start_round


def _read_rule_3() -> Patch:
    """A follower confirms a term that is over."""
    return Receiver, "_confirms", lambda _self, _probe: True


def _read_rule_4() -> Patch:
    """Nobody is asked whether the leader still leads."""
    return Reads, "_is_confirmed", staticmethod(lambda _round, _quorum: True)


def _read_rule_5() -> Patch:
    """Reads do not wait for apply."""
    return Reads, "_may_serve", staticmethod(lambda _index, _applied: True)


def _votes_counted_twice() -> Patch:
    """A node's pre-vote is enough for a majority of one more."""

    def on_vote(self: Any, peer: int, _sequence: int, body: Any) -> None:
        for _ in range(2):
            self._core.deliver(peer, {"type": "response_vote", "term": body.term})

    return Receiver, "_on_vote", on_vote


def _vote_forgotten() -> Patch:
    """Term and vote are not written to the log."""

    def set_hard_state(self: Any, term: int, vote: int) -> None:
        self._hard_state = HardState(term, vote)

    return Log, "set_hard_state", set_hard_state


def _log_cut_too_early() -> Patch:
    """The log drops what the machine has applied but not committed."""
    original = Log.drop_to

    def drop_to(self: Log, _index: int, _keep_bytes: int) -> int:
        return original(self, self.synced_index, 0)

    return Log, "drop_to", drop_to


def _two_changes() -> Patch:
    """A change of members begins while another is not committed."""
    return Changes, "_change_is_uncommitted", lambda self: self._queued is not None


def _learner_counted() -> Patch:
    """A learner's acknowledgements, votes and confirmations count."""
    return Members, "voters", lambda self: frozenset(m.node for m in self.members)


def _stranger_accepted() -> tuple[Patch, ...]:
    """A wiped node comes back under its number and counts as before."""
    check = Roster._check

    def no_check(self: Any, hello: Hello) -> None:
        settled = self._configurations.settled
        member: Member | None = settled.get(hello.node) if settled is not None else None
        if member is not None:
            hello = msgspec.structs.replace(hello, incarnation=member.incarnation)
        check(self, hello)

    def is_member(self: Configurations, node: int, _incarnation: int) -> bool:
        members = self.in_force
        return members is not None and members.get(node) is not None

    return (Roster, "_check", no_check), (Configurations, "member", is_member)


def _pre_vote_never_again() -> Patch:
    """Once told to take over, a node never asks before it stands."""

    def may_stand(self: Any) -> bool:
        self._told_once = getattr(self, "_told_once", False) or self._receiver.stand_term > 0
        return bool(self._told_once or asks(self))

    asks = Group.core_may_stand
    return Group, "core_may_stand", may_stand


def _old_image_installed() -> Patch:
    """An image takes the state's place whatever state and log hold already."""
    return ImageReceiver, "_is_covered", lambda _self, _applied: False


def _candidate_installs() -> tuple[Patch, ...]:
    """A candidate goes on counting the votes that it had before an image changed the members."""

    def start_at(self: Core, applied_index: int) -> None:
        self._SyncObj__raftLastApplied = applied_index
        self._SyncObj__raftCommitIndex = applied_index

    def configure(self: Core, voters: list[int], learners: list[int]) -> None:
        role, self._SyncObj__raftState = self._SyncObj__raftState, 0
        configured(self, voters, learners)
        self._SyncObj__raftState = role

    configured = Core.configure
    return (
        (Core, "stand_down", lambda _self: None),
        (Core, "start_at", start_at),
        (Core, "configure", configure),
    )


def _digest_not_checked() -> Patch:
    """An image is taken as it came."""

    def finish(self: ListSink) -> None:
        self.finished = True

    return ListSink, "finish", finish


def _log_not_reset() -> Patch:
    """After an image the log goes on where it was."""
    return Log, "reset", lambda _self, _index, _term: None


def _any_entry_skipped() -> Patch:
    """An entry is skipped by its index, whichever it is."""
    return Skips, "check", lambda _self, _skip, _term, _command: None


def _skip_lists_differ() -> Patch:
    """Nodes with different lists of skipped entries talk to each other."""
    return Roster, "_may_take_list", lambda _self, _hello: True


BUGS: dict[str, Callable[[], Patch | tuple[Patch, ...]]] = {
    "no fdatasync": _no_fdatasync,
    "answers before sync": _answers_before_sync,
    "prefix not stripped": _prefix_not_stripped,
    "tail acknowledged": _tail_acknowledged,
    "old acks counted": _old_acks_counted,
    "read rule 1": _read_rule_1,
    "read rule 2": _read_rule_2,
    "read rule 3": _read_rule_3,
    "read rule 4": _read_rule_4,
    "read rule 5": _read_rule_5,
    "votes counted twice": _votes_counted_twice,
    "vote forgotten": _vote_forgotten,
    "log cut too early": _log_cut_too_early,
    "two changes at once": _two_changes,
    "learner counted": _learner_counted,
    "stranger accepted": _stranger_accepted,
    "pre-vote never again": _pre_vote_never_again,
    "old image installed": _old_image_installed,
    "candidate installs": _candidate_installs,
    "digest not checked": _digest_not_checked,
    "log not reset": _log_not_reset,
    "any entry skipped": _any_entry_skipped,
    "skip lists differ": _skip_lists_differ,
}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant the bug of that name, or none."""
    with contextlib.ExitStack() as stack:
        found = BUGS[name]() if name is not None else ()
        patches = found if not found or isinstance(found[0], tuple) else (found,)
        for patch in patches:
            stack.enter_context(_patched(*patch))
        yield


@contextlib.contextmanager
def _patched(owner: type, attribute: str, replacement: object) -> Iterator[None]:
    # A handler is in a table beside its name.
    table = getattr(owner, "_HANDLERS", {})
    original = owner.__dict__[attribute]
    keys = [key for key, value in table.items() if value is original]
    setattr(owner, attribute, replacement)
    for key in keys:
        table[key] = replacement
    try:
        yield
    finally:
        setattr(owner, attribute, original)
        for key in keys:
            table[key] = original

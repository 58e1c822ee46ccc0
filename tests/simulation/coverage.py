"""Which guards of the layer a run has hit: its counters, and methods that say no.

A guard that no seed ever hits is not tested by the simulator, whatever the seeds say.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from nokv_replication import MembershipRefused, ProtocolError, TransferFailed, records
from nokv_replication.appends import AppendFilter
from nokv_replication.changes import Changes
from nokv_replication.configurations import Configurations
from nokv_replication.elections import PreVotes
from nokv_replication.group import Group
from nokv_replication.image_receiver import ImageReceiver
from nokv_replication.images import Images
from nokv_replication.log import Log
from nokv_replication.peers import Peers
from nokv_replication.proposals import Proposals
from nokv_replication.reads import Reads
from nokv_replication.receiver import Receiver
from nokv_replication.roster import Roster
from nokv_replication.timekeeping import Timekeeper
from nokv_replication.transfer import Transfer

COUNTED = (
    "entries_skipped",
    "appends_stale",
    "acks_stale",
    "resets_ignored",
    "reset_hints",
    "next_index_repairs",
    "window_full",
    "step_downs",
    "transfers_started",
    "transfers_done",
    "handovers",
    "members_changed",
    "removed_told",
    "pre_votes_started",
    "failed_not_leader",
    "failed_overloaded",
    "failed_unknown",
    "segments_dropped",
    "wall_clamped",
    "images_sent",
    "images_installed",
    "images_refused",
    "images_failed",
    "images_resumed",
)
"""Fields of the group's `Counters` that say that a guard did something."""

Fired = Callable[[tuple[Any, ...], Any], bool]
"""Called with a guarded method's arguments and result: whether it protected something."""


def _said_no(_arguments: tuple[Any, ...], result: object) -> bool:
    return not result


def _said_something(_arguments: tuple[Any, ...], result: object) -> bool:
    return result is not None


def _called(_arguments: tuple[Any, ...], _result: object) -> bool:
    return True


def _changed(arguments: tuple[Any, ...], result: object) -> bool:
    return result is not arguments[1]


def _ended_in_vain(arguments: tuple[Any, ...], _result: object) -> bool:
    return isinstance(arguments[1], TransferFailed)


GUARDS: tuple[tuple[str, Any, str, Fired], ...] = (
    ("append begins behind the log's base", AppendFilter, "_skip_dropped", _changed),
    ("a conflicting tail is replaced", AppendFilter, "_check_overwrite", _called),
    ("acknowledgement of another term", Peers, "is_current", _said_no),
    ("pre-vote refused", PreVotes, "grants", _said_no),
    ("pre-vote not won", PreVotes, "won", _said_no),
    ("probe of another term", Receiver, "_confirms", _said_no),
    ("told of a newer term", Receiver, "_on_stale", _called),
    ("told that entries are gone", Receiver, "_on_too_far", _called),
    ("read before the term's first commit", Group, "_may_confirm_reads", _said_no),
    ("read not confirmed by a quorum", Reads, "_is_confirmed", _said_no),
    ("read waits for apply", Reads, "_may_serve", _said_no),
    ("no stamp before a quorum's clocks", Timekeeper, "stamp", lambda _a, r: r is None),
    ("proposal refused by a limit", Proposals, "refusal", _said_something),
    ("log starts anew behind the state", Log, "reset", _called),
    ("damage found in synced records", records, "synced_after", _said_something),
    ("torn tail cut", records, "synced_after", lambda _a, r: r is None),
    ("change of members under way", Changes, "_change_is_uncommitted", lambda _a, r: bool(r)),
    (
        "change before the term's first commit",
        Changes,
        "_term_is_uncommitted",
        lambda _a, r: bool(r),
    ),
    ("voter or learner does not answer", Changes, "_is_active", _said_no),
    ("configuration rolled back", Configurations, "truncated", lambda _a, r: bool(r)),
    ("stands without a pre-vote, told to", Receiver, "_on_timeout_now", _called),
    ("told that it was removed", Receiver, "_on_removed", _called),
    ("transfer given up", Transfer, "_end", _ended_in_vain),
    ("image covered by the log", ImageReceiver, "_is_covered", lambda _a, r: bool(r)),
    ("image became old on its way", ImageReceiver, "_may_install", _said_no),
    ("image damaged or out of order", ImageReceiver, "_give_up", _called),
)
RAISING: tuple[tuple[str, Any, str, type[Exception]], ...] = (
    ("frame repeated or of another connection", Group, "receive", ProtocolError),
    ("image frame refused", Images, "receive", ProtocolError),
    ("handshake refused", Roster, "greet", ProtocolError),
    ("addition refused", Changes, "add", MembershipRefused),
    ("promotion refused", Changes, "promote", MembershipRefused),
    ("removal refused", Changes, "remove", MembershipRefused),
    ("transfer refused", Transfer, "begin", TransferFailed),
)

hits: Counter[str] = Counter()
"""Hits of this process, by guard."""


def names() -> list[str]:
    """Return every guard there is a count for."""
    return [*COUNTED, *(name for name, *_ in GUARDS), *(name for name, *_ in RAISING)]


def install() -> None:
    """Count from now on, for as long as the process lives."""
    for name, owner, attribute, fired in GUARDS:
        _wrap(owner, attribute, functools.partial(_counting, name=name, fired=fired))
    for name, owner, attribute, error in RAISING:
        _wrap(owner, attribute, functools.partial(_counting_refusals, name=name, refusal=error))


def _wrap(owner: Any, attribute: str, wrapper: Callable[[Any], Any]) -> None:
    # Where it is defined: a class may inherit what it guards by.
    owner = next(o for o in getattr(owner, "__mro__", (owner,)) if attribute in vars(o))
    original = vars(owner)[attribute]
    if isinstance(original, staticmethod):
        setattr(owner, attribute, staticmethod(wrapper(original.__func__)))
        return
    replacement = wrapper(original)
    setattr(owner, attribute, replacement)
    # A handler is in a table beside its name.
    table = getattr(owner, "_HANDLERS", {})
    for key, value in list(table.items()):
        if value is original:
            table[key] = replacement


def _counting(original: Any, *, name: str, fired: Fired) -> Any:
    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if fired(arguments, result):
            hits[name] += 1
        return result

    return counted


def _counting_refusals(original: Any, *, name: str, refusal: type[Exception]) -> Any:
    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        try:
            return original(*arguments, **options)
        except refusal:
            hits[name] += 1
            raise

    return counted

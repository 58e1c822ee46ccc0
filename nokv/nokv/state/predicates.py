"""Predicates: what must hold for a command to run, checked in their order as its caller."""

from __future__ import annotations

from nokv.errors import GenerationMismatch, NotADirectory, NotFound, PredicateFailed, TooLarge
from nokv.state.arguments import check_at
from nokv.state.context import Context
from nokv.state.resolve import Found, resolve
from nokv.types.commands import Absent, Exists, GenerationIs, Predicate, VersionIs
from nokv.types.limits import PREDICATES_MAX


def check_predicates(ctx: Context, predicates: tuple[Predicate, ...]) -> None:
    """Raise PredicateFailed, GenerationMismatch, or what the resolution of an address raises.

    More than PREDICATES_MAX of them are TooLarge.
    """
    if len(predicates) > PREDICATES_MAX:
        message = f"{len(predicates)} predicates; the limit is {PREDICATES_MAX}"
        raise TooLarge(message)
    for number, predicate in enumerate(predicates):
        _check(number, predicate, _look(ctx, predicate))


def _look(ctx: Context, predicate: Predicate) -> Found | None:
    check_at(predicate.at)
    try:
        return resolve(ctx.txn, ctx.caller, ctx.session_id, predicate.at)
    except (NotFound, NotADirectory):
        return None


def _check(number: int, predicate: Predicate, found: Found | None) -> None:
    if isinstance(predicate, Absent):
        if found is not None:
            message = f"predicate {number}: inode {found.ino} is there"
            raise PredicateFailed(message)
        return
    if found is None:
        message = f"predicate {number}: nothing is there"
        raise PredicateFailed(message)
    if isinstance(predicate, VersionIs) and found.version != predicate.version:
        message = f"predicate {number}: version {found.version}, not {predicate.version}"
        raise PredicateFailed(message)
    if isinstance(predicate, GenerationIs) and found.inode.generation != predicate.generation:
        have = found.inode.generation
        message = f"predicate {number}: generation {have}, not {predicate.generation}"
        raise GenerationMismatch(message)
    assert isinstance(predicate, Exists | VersionIs | GenerationIs)

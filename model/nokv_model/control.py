"""Operations that are not about names: sessions, uploads, pins, and the node's own commands."""

from __future__ import annotations

from nokv.errors import (
    AlreadyExists,
    GenerationMismatch,
    InvalidArgument,
    NotFound,
    NotPermitted,
    PredicateFailed,
    ResultTooLarge,
    Stale,
    TooLarge,
)
from nokv.types import commands as c
from nokv.types.limits import PINS_PER_SESSION_MAX, PREDICATES_MAX
from nokv.types.results import Checkpointed, Done, Leased, Pinned, Reaped, SessionOpened
from nokv.types.values import ROOT_INODE, ROOT_VIEW, FileType
from nokv_model.sessions import Session, apply_marks
from nokv_model.state import View
from nokv_model.step import Step
from nokv_model.tree import ROOT, Inode
from nokv_model.views import require_pinnable

TOMBSTONE_NS = 24 * 3600 * 1_000_000_000
"""A tombstone answers retries for a day."""


def check_predicates(step: Step, predicates: tuple[c.Predicate, ...]) -> None:
    """Check the predicates in order; raise TooLarge, PredicateFailed or GenerationMismatch."""
    if len(predicates) > PREDICATES_MAX:
        message = "too many predicates"
        raise TooLarge(message)
    for predicate in predicates:
        inode = step.resolver.exists(predicate.at)
        if isinstance(predicate, c.Absent):
            holds = inode is None
        elif inode is None:
            holds = False
        elif isinstance(predicate, c.VersionIs):
            holds = inode.version == predicate.version
        elif isinstance(predicate, c.GenerationIs):
            if inode.generation != predicate.generation:
                message = f"generation {inode.generation}, not {predicate.generation}"
                raise GenerationMismatch(message)
            holds = True
        else:
            holds = True
        if not holds:
            message = f"{type(predicate).__name__} does not hold"
            raise PredicateFailed(message)


# ---------------------------------------------------------------- sessions


def open_session(step: Step, op: c.OpenSession) -> SessionOpened:
    """Open a session, or answer as the opening of the same nonce did."""
    for known in step.state.sessions.values():
        if known.nonce == op.nonce:
            return SessionOpened(known.number, known.ttl_ns, known.opened)
    assert step.state.volume is not None
    number = step.state.volume.owner_epoch << 32 | step.state.next_session
    step.state.next_session += 1
    step.state.sessions[number] = Session(number, op.nonce, op.ttl_ns, step.version, step.version)
    return SessionOpened(number, op.ttl_ns, step.version)


def expire_session(step: Step, op: c.ExpireSession) -> Done:
    """End a session, its pins, leases, locks and staged trees."""
    if step.session is not None and step.session.number != op.target:
        message = "a client ends only its own session"
        raise NotPermitted(message)
    session = step.state.sessions.get(op.target)
    if session is None:
        message = f"no session {op.target}"
        raise NotFound(message)
    if session.died:
        return Done()
    session.died, session.died_cluster_ns = step.version, step.cluster_ns
    session.leases = ()
    for table in step.state.locks.values():
        table.end_session(op.target)
    for pin, (owner, _) in list(step.state.pins.items()):
        if owner == op.target:
            del step.state.pins[pin]
    for key, owner in list(step.forest.staged.items()):
        if owner == op.target:
            step.drop(step.forest.inodes[key])
    return Done()


def lease_uploads(step: Step, op: c.LeaseUploads) -> Leased:
    """Lease upload numbers."""
    assert step.session is not None
    return Leased(step.session.lease_uploads(op.count), op.count)


def pin_view(step: Step, op: c.PinView) -> Pinned:
    """Keep the view as it was before this command."""
    if op.view not in step.state.views or step.state.views[op.view].dead:
        message = f"no view {op.view}"
        raise Stale(message)
    require_pinnable(step.state, [op.view])
    held = sum(owner == step.session_number for owner, _ in step.state.pins.values())
    if held >= PINS_PER_SESSION_MAX:
        message = "the session has too many pins"
        raise ResultTooLarge(message)
    pin = (op.view, step.version - 1, step.version)
    step.state.pins[pin] = (step.session_number, step.forest.of_view(op.view))
    return Pinned(*pin)


def unpin_view(step: Step, op: c.UnpinView) -> Done:
    """Let a pin go."""
    pin = (op.view, op.version, op.pin)
    if pin not in step.state.pins:
        message = "no such pin"
        raise NotFound(message)
    if step.state.pins[pin][0] != step.session_number:
        message = "the pin is another session's"
        raise NotPermitted(message)
    del step.state.pins[pin]
    return Done()


# ---------------------------------------------------------------- the node's own commands


def init_volume(step: Step, op: c.InitVolume) -> Done:
    """Make the volume and its root directory."""
    if step.state.volume is not None:
        message = "the volume exists"
        raise AlreadyExists(message)
    step.state.volume = op
    step.state.views[ROOT_VIEW] = View(ROOT_VIEW, ROOT_INODE, step.version, step.wall_ns, ROOT)
    step.forest.inodes[ROOT] = Inode(
        view=ROOT_VIEW,
        number=ROOT_INODE,
        mode=FileType.DIRECTORY << 12 | op.mode,
        uid=op.uid,
        gid=op.gid,
        atime_ns=step.wall_ns,
        mtime_ns=step.wall_ns,
        ctime_ns=step.wall_ns,
        version=step.version,
    )
    return Done()


def session_marks(step: Step, op: c.SessionMarks) -> Done:
    """Apply the marks of many sessions."""
    for frame in op.frames:
        apply_marks(step.state.sessions, frame, step.version, step.cluster_ns)
    return Done()


def swept(step: Step, op: c.Swept) -> Done:
    """Forget a session that has been dead for long enough."""
    session = step.state.sessions.get(op.target)
    if session is None:
        message = f"no session {op.target}"
        raise NotFound(message)
    if not session.died:
        message = "the session lives"
        raise NotPermitted(message)
    old = step.cluster_ns >= session.died_cluster_ns + TOMBSTONE_NS
    graced_ns = session.died_cluster_ns + max(0, op.grace_ns)
    if old and graced_ns <= op.begun_cluster_ns <= step.cluster_ns:
        del step.state.sessions[op.target]
    return Done()


def trim_events(step: Step, op: c.TrimEvents) -> Reaped:
    """Drop the oldest event records."""
    if not 0 <= op.below <= step.version:
        message = "events that are not yet"
        raise InvalidArgument(message)
    old = [key for key, _ in step.state.events if key < op.below]
    removed = old[: op.limit]
    step.state.events = step.state.events[len(removed) :]
    if removed:
        step.state.first_event = max(step.state.first_event, removed[-1])
    return Reaped(len(removed), len(removed) < len(old))


def checkpoint(step: Step, op: c.Checkpoint) -> Checkpointed:
    """Change nothing: every replica commits here."""
    del step
    return Checkpointed(op.number)


def reap(step: Step, op: c.Reap | c.Collected) -> Reaped:
    """Change nothing: what is detached here is gone at once, and nothing is stored twice."""
    del step, op
    return Reaped(0, more=False)


def raise_format(step: Step, op: c.RaiseFormat) -> Done:
    """Change nothing: the model has no stored format."""
    del step, op
    return Done()

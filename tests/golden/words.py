"""How a transcript names frames, entries and outcomes."""

import msgspec

from nokv_replication import Committed, ReplicationError
from nokv_replication.frames import Ack, Append, Body, EntryKind, decode_entry
from nokv_replication.image_frames import ImageBody, ImageOffer, decode_position

# What says nothing about the protocol, or changes with every frame.
UNTOLD = {"fingerprint", "wall_ns", "free_bytes", "sequence", "crc", "piece", "image"}


def position(index: int, term: int) -> str:
    """An entry as index/term."""
    return f"{index}/{term}"


def describe(body: Body | ImageBody) -> str:
    """One frame in a line."""
    name = type(body).__name__
    if isinstance(body, Append):
        entries = [
            f"{position(body.prev_index + 1 + i, term)} {entry(command)}"
            for i, (term, command) in enumerate(body.entries)
        ]
        held = f" [{', '.join(entries)}]" if entries else ""
        after = position(body.prev_index, body.prev_term)
        return f"{name} term {body.term} after {after} commit {body.commit_index}{held}"
    if isinstance(body, Ack):
        verdict = "ok" if body.success else "reset" if body.reset else "no"
        applied = f" applied {body.applied_index}"
        return f"{name} term {body.term} {verdict} next {body.next_index}{applied}"
    if isinstance(body, ImageOffer):
        state = decode_position(body.applied)
        return f"{name} term {body.term} state at {position(state.index, state.term)}"
    fields = [
        f"{field.replace('_', ' ')} {value}"
        for field, value in msgspec.structs.asdict(body).items()
        if field not in UNTOLD
    ]
    return " ".join([name, *fields])


def entry(command: bytes) -> str:
    """The content of an entry."""
    decoded = decode_entry(command, 0)
    if decoded.kind != EntryKind.COMMANDS:
        return decoded.kind.name.lower()
    return "+".join(p.partition(b":")[0].decode() for p in decoded.payloads)


def text(outcome: object) -> str:
    """What a client was told."""
    if isinstance(outcome, Committed):
        return f"is committed at {outcome.index}"
    if isinstance(outcome, ReplicationError):
        return f"fails with {type(outcome).__name__}: {outcome}"
    return f"may read at {outcome}"

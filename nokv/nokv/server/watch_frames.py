"""The frames of watches: events in order, cut by size, each encoded once for all who get it."""

from __future__ import annotations

from typing import Final

import msgspec

from nokv.state.records import Counters
from nokv.types.events import EventKind
from nokv.types.watch import WatchEvent
from nokv.wire.rpc import WatchFrame

FRAME_BYTES: Final = 256 * 1024
"""A frame ends when its events have about so many bytes; one event may pass it."""

EVENT_BYTES: Final = 96
"""About what an event takes beside its names and chains."""

_encode: Final = msgspec.msgpack.Encoder().encode


class Frames:
    """Builds encoded frames out of events in order; each with the cursor after it."""

    __slots__ = ("_events", "_size_bytes", "done", "removed")

    def __init__(self) -> None:
        self._events: list[WatchEvent] = []
        self._size_bytes = 0
        self.done: list[tuple[int, bytes]] = []
        """(cursor, encoded frame)."""
        self.removed = False
        """One of the events took a name of the watched inode away."""

    def add(self, events: list[WatchEvent], counters: Counters) -> None:
        """Take events; a frame that is full is encoded."""
        for event in events:
            self._events.append(event)
            self._size_bytes += _size_of(event)
            if not event.chain and event.kind == EventKind.REMOVE:
                self.removed = True
            if self._size_bytes >= FRAME_BYTES:
                self.cut(event.version, counters)

    def cut(self, cursor: int, counters: Counters) -> None:
        """Encode what there is; everything up to `cursor` is in this frame or an earlier one."""
        if self._events:
            events, self._events = tuple(self._events), []
            self._size_bytes = 0
            frame = WatchFrame(cursor, counters.version, counters.first_event, events)
            self.done.append((cursor, _encode(frame)))


def _size_of(event: WatchEvent) -> int:
    steps = 9 * (len(event.chain) + len(event.to_chain))
    size_bytes = EVENT_BYTES + steps + len(event.name) + len(event.to_name)
    size_bytes += len(event.directory or b"") + len(event.to_directory or b"")
    return size_bytes + sum(len(name) + 3 for name in event.names)

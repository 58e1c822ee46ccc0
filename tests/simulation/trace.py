"""The trace of a run: one line an event, hashed as it goes, printed on demand.

The hash tells whether two runs are the same one; the printed lines are what it covers, and frames
as they arrive beside them.
"""

import hashlib
from collections.abc import Callable

from nokv_replication.frames import decode_frame


class Trace:
    """Lines of one run. `out` gets each line, with its time, if it is given."""

    def __init__(self, out: Callable[[str], None] | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._out = out

    @property
    def printing(self) -> bool:
        """Whether somebody reads along."""
        return self._out is not None

    def note(self, now_ns: int, line: str) -> None:
        """Add an event."""
        self._hash.update(b"%d %s\n" % (now_ns, line.encode()))
        if self._out is not None:
            self._out(f"{now_ns / 1e9:12.6f} {line}")

    def frame(self, now_ns: int, sender: int, receiver: int, data: bytes) -> None:
        """Print a frame that arrives; it follows from the events and is not hashed."""
        assert self._out is not None
        body = decode_frame(data).body
        fields = []
        for name in body.__struct_fields__:
            value = getattr(body, name)
            if isinstance(value, list):
                text = f"{name}={len(value)}"
            elif isinstance(value, bytes):
                text = f"{name}={value.hex()[:8]}"
            else:
                text = f"{name}={value}"
            fields.append(text)
        words = " ".join(fields)
        self._out(f"{now_ns / 1e9:12.6f} {sender}->{receiver} {type(body).__name__} {words}")

    def hexdigest(self) -> str:
        """Return the hash of all events so far."""
        return self._hash.hexdigest()

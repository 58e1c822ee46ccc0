"""Backups at this replica: images held open at exactly their entries, read piece by piece.

A client pulls: what it does not ask for is not read, so the node's memory is one answer. At most
`OPEN_MAX` images are open, each lets go of its pages after `IDLE_S` without a request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from nokv.errors import BackupGone, InvalidArgument, NotReady
from nokv.kv.image import LmdbImageSource
from nokv.kv.lmdb_store import LmdbKV
from nokv.wire.rpc import BackupOpened, BackupPieces

log = logging.getLogger("nokv.backup")

OPEN_MAX: Final = 2
IDLE_S: Final = 60.0
REPLY_BYTES: Final = 512 * 1024
"""Pieces of one answer, about."""
MISSED_MAX: Final = 16


class _Open:
    """One image that is being read."""

    def __init__(self, source: LmdbImageSource, now_s: float) -> None:
        self.source = source
        self.used_s = now_s
        self.offset = 0
        """Bytes handed out, the last answer included."""
        self.last: tuple[int, BackupPieces] | None = None
        """(offset, answer) of the last request, which may come again."""


class BackupImages:
    """The shard's open backups."""

    def __init__(self, kv: LmdbKV, node: int, now_s: Callable[[], float]) -> None:
        self._kv = kv
        self._node = node
        self._now_s = now_s
        self._open: dict[int, _Open] = {}
        self._missed: dict[int, str] = {}
        """Backups that this node was to read and did not, and why."""

    def reached(self, backup: int, node: int, commit: Callable[[], object]) -> None:
        """Commit and open a backup that was just applied, if it is for this node."""
        if node != self._node:
            return
        self.tick()
        if len(self._open) >= OPEN_MAX:
            self._miss(backup, f"{OPEN_MAX} backups are being read here")
            return
        commit()
        self._open[backup] = _Open(LmdbImageSource(self._kv.open_reader()), self._now_s())

    def tick(self) -> None:
        """Let go of what nobody reads."""
        limit_s = self._now_s() - IDLE_S
        for backup in [number for number, one in self._open.items() if one.used_s < limit_s]:
            self._miss(backup, "nobody read it")
            self.close(backup)

    def _miss(self, backup: int, reason: str) -> None:
        log.warning("backup %d is not read here: %s", backup, reason)
        self._missed[backup] = reason
        while len(self._missed) > MISSED_MAX:
            del self._missed[next(iter(self._missed))]

    def close(self, backup: int) -> None:
        """Let go of an image."""
        found = self._open.pop(backup, None)
        if found is not None:
            found.source.close()

    def close_all(self) -> None:
        """Let go of all images."""
        for backup in list(self._open):
            self.close(backup)

    def open(self, backup: int, applied_version: int) -> BackupOpened:
        """Return what a backup's image is. Raises NotReady, BackupGone."""
        found = self._need(backup, applied_version)
        header = found.source.header
        return BackupOpened(
            header.version, header.state_format, header.index, header.term, header.size_bytes
        )

    def read(self, backup: int, offset: int, applied_version: int) -> BackupPieces:
        """Return the pieces from `offset` on; none at the end.

        Only the next offset and the one before can be asked for. Raises NotReady, BackupGone,
        InvalidArgument.
        """
        found = self._need(backup, applied_version)
        if found.last is not None and found.last[0] == offset:
            return found.last[1]
        if offset != found.offset:
            raise InvalidArgument(f"offset {offset}; the image stands at {found.offset}")
        pieces: list[bytes] = []
        size = 0
        while size < REPLY_BYTES and (piece := found.source.read()):
            pieces.append(piece)
            size += len(piece)
        answer = BackupPieces(tuple(pieces))
        found.last = (offset, answer)
        found.offset += size
        return answer

    def _need(self, backup: int, applied_version: int) -> _Open:
        found = self._open.get(backup)
        if found is not None:
            found.used_s = self._now_s()
            return found
        if backup > applied_version:
            raise NotReady(f"backup {backup} is not applied here yet")
        else_reason = "it was read to its end, or the node was started again or took an image"
        reason = self._missed.get(backup, else_reason)
        raise BackupGone(f"backup {backup} is not open here: {reason}")

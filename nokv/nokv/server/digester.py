"""The worker's side of checkpoints: open a read transaction in time, scan it, answer.

The scan runs in a thread of the worker's process, never in the replica's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import msgspec

from nokv.kv.digest import DIGEST_BYTES, combine, digest
from nokv.kv.errors import StoreFailed
from nokv.kv.lmdb_store import LmdbReader, open_reader
from nokv.server import channel
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import decode_position

log = logging.getLogger("nokv.digest")


class Digester:
    """Answers the shard's checkpoints, one after another."""

    def __init__(self, end: socket.socket, state: Path) -> None:
        self._end = end
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._scanning: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen, and say so."""
        self._loop.add_reader(self._end.fileno(), self._readable)
        channel.send(self._end, channel.WorkerReady())

    async def stop(self) -> None:
        """Stop listening; a scan that runs is waited for."""
        self._loop.remove_reader(self._end.fileno())
        if self._scanning is not None:
            await self._scanning
        self._end.close()

    def _readable(self) -> None:
        try:
            messages = channel.receive(self._end)
        except (EOFError, OSError, msgspec.DecodeError):
            self._loop.remove_reader(self._end.fileno())
            return
        for message in messages:
            if isinstance(message, channel.CheckpointMade):
                self._checkpoint(message)

    def _checkpoint(self, made: channel.CheckpointMade) -> None:
        if self._scanning is not None and not self._scanning.done():
            self._missed(made.number, "the digest before it is still being made")
            return
        try:
            reader = open_reader(self._state)
        except StoreFailed as error:
            self._missed(made.number, str(error))
            return
        row = reader.get(Family.META, keys.POSITION)
        if row is None or decode_position(row).index != made.applied_index:
            reader.close()
            self._missed(made.number, "the store had moved on")
            return
        channel.send(self._end, channel.CheckpointOpened(made.number))
        self._scanning = self._loop.create_task(self._scan(made, reader))

    async def _scan(self, made: channel.CheckpointMade, reader: LmdbReader) -> None:
        try:
            families = await asyncio.to_thread(digest, reader)
        except StoreFailed as error:
            self._missed(made.number, str(error))
            return
        finally:
            reader.close()
        named = {
            family.name.lower(): value.to_bytes(DIGEST_BYTES, "big")
            for family, value in families.items()
        }
        channel.send(self._end, channel.CheckpointDigested(made.number, named, combine(families)))

    def _missed(self, number: int, reason: str) -> None:
        log.info("checkpoint %d is not digested: %s", number, reason)
        channel.send(self._end, channel.CheckpointMissed(number, reason[:500]))

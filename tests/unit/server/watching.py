"""A shard with its watches, and the connections of clients that watch, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from tests.unit.state.shard import ROOT, Shard, at

from nokv.errors import BadRequest, NokvError
from nokv.server.rpc import Call, Stream
from nokv.server.watches import Watches
from nokv.types.commands import BulkCreate
from nokv.types.watch import WATCH_WINDOW_BYTES_MIN, WatchEvent
from nokv.wire.rpc import OpenWatch, ResponseBody, WatchFrame, WatchOpened

WINDOW = WATCH_WINDOW_BYTES_MIN
_decode = msgspec.msgpack.Decoder(ResponseBody).decode


class Client:
    """The connection of one client, which reads or does not."""

    def __init__(self) -> None:
        self.writable = True
        self.streams: dict[int, Stream] = {}
        self.frames: dict[int, list[WatchFrame]] = {}
        self.payloads: list[bytes] = []
        self.errors: dict[int, NokvError] = {}

    def open_stream(self, call: Call, stream: Stream) -> None:
        if call.id in self.streams:
            raise BadRequest("taken")
        self.streams[call.id] = stream

    def push(self, number: int, body: bytes) -> None:
        assert number in self.streams, "nothing is told after the end"
        frame = _decode(body)
        assert isinstance(frame, WatchFrame)
        self.frames.setdefault(number, []).append(frame)
        self.payloads.append(body)

    def end_stream(self, number: int, error: NokvError) -> None:
        del self.streams[number]
        self.errors[number] = error

    def told(self, number: int) -> list[WatchEvent]:
        return [event for frame in self.frames.get(number, []) for event in frame.events]

    def versions(self, number: int) -> list[int]:
        return [event.version for event in self.told(number)]


class Asked:
    """What `Watches.open` needs of a `nokv.server.rpc.Call`."""

    def __init__(self, connection: Client, number: int) -> None:
        self.connection = connection
        self.id = number
        self.opened: WatchOpened | None = None

    def answer(self, body: ResponseBody) -> None:
        assert isinstance(body, WatchOpened)
        self.opened = body


class Node:
    """A shard and its watches; an entry is told like the server tells it."""

    def __init__(self) -> None:
        self.shard = Shard()
        self.in_entry = False
        self.watches = Watches(self.shard.machine, lambda: not self.in_entry, limit=8)

    def open(self, client: Client, number: int = 1, **how: Any) -> WatchOpened:
        how = dict[str, Any](caller=ROOT, root=at(), window_bytes=WINDOW) | how
        body = OpenWatch(**how)
        self.watches.check(body)
        call = Asked(client, number)
        self.watches.open(cast("Call", call), body)
        assert call.opened is not None
        return call.opened

    def mkdir(self, path: str) -> int:
        version = self.shard.mkdir(path).version
        self.watches.applied()
        return version

    def bulk(self, count: int, number: int) -> int:
        """One event with so many names of 250 bytes."""
        names = tuple(b"%0250d" % (number * 4096 + n) for n in range(count))
        self.shard.do(BulkCreate(at(), names, 0o644))
        self.watches.applied()
        return self.shard.machine.version


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(test: Callable[[Node, Client], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Node(), Client())

    asyncio.run(main())

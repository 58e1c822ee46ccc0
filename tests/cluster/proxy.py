"""A TCP proxy that harms what passes through it, in a thread of its own.

It stands before a port of a node, so that it sees the bytes of TLS and none of what they say. It
can cut connections, refuse new ones, slow them down, stop one direction, end one in the middle of
what was sent, and deliver the bytes of an old connection after those of a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

PIECE_BYTES: Final = 64 << 10
HELD_BYTES_MAX: Final = 4 << 20
HELD_S: Final = 3.0
"""Held bytes are delivered at last, also if no newer connection comes."""

Way = Literal["up", "down"]
"""Towards the node, or from it."""

T = TypeVar("T")


class Link:
    """One connection through a proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        node: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._ends = {"up": (client[0], node[1]), "down": (node[0], client[1])}
        self._gates = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._gates.values():
            gate.set()
        self.delay_s = 0.0
        self.pieces = 0
        """Delivered to the node."""
        self.truncate: random.Random | None = None
        """The next piece ends somewhere in its middle, and the connection with it."""
        self.held: bytearray | None = None
        """What the client sent while it is being held back."""

    async def run(self) -> None:
        ways = [asyncio.ensure_future(self._pump(way)) for way in ("up", "down")]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if self.held is not None:
                await self._deliver_late(self.held)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for _, writer in self._ends.values():
                writer.close()

    async def _pump(self, way: Way) -> None:
        reader, writer = self._ends[way]
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(PIECE_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._gates[way].wait()
                if way == "up" and self.held is not None:
                    self.held += data
                    if len(self.held) > HELD_BYTES_MAX:
                        return
                    continue
                if self.truncate is not None:
                    writer.write(data[: self.truncate.randrange(len(data))])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
                self.pieces += way == "up"

    async def _deliver_late(self, held: bytearray) -> None:
        """Send what was held once a newer connection has delivered something."""
        _, writer = self._ends["up"]
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(HELD_S):
                await self._proxy.until_newer(self)
        with contextlib.suppress(ConnectionError):
            writer.write(bytes(held))
            await writer.drain()
            await asyncio.sleep(0.05)  # let it arrive before the end of the connection does

    def cut(self) -> None:
        """End both connections at once."""
        for _, writer in self._ends.values():
            writer.transport.abort()

    def stop(self, way: Way) -> None:
        """Deliver nothing one way until `go`."""
        self._gates[way].clear()

    def go(self) -> None:
        """Deliver again, at full speed."""
        self.delay_s = 0.0
        for gate in self._gates.values():
            gate.set()

    def hold(self) -> None:
        """Keep what the client sends from now on."""
        if self.held is None:
            self.held = bytearray()

    def drop_client(self) -> None:
        """End the connection to the client alone; what is held comes later."""
        self._ends["down"][1].transport.abort()


class Proxy:
    """All connections to one port."""

    def __init__(self, listen: int, target: int) -> None:
        self.listen: Final = listen
        self.target: Final = target
        self.links: list[Link] = []
        """Open ones, the oldest first."""
        self.refusing = False
        self._server: asyncio.Server | None = None
        self._moved = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.listen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: Link | None = None
        try:
            if self.refusing:
                writer.transport.abort()
                return
            node = await asyncio.open_connection("127.0.0.1", self.target)
            link = Link(self, (reader, writer), node)
            self.links.append(link)
            await link.run()
        except OSError:
            writer.transport.abort()
        finally:
            if link is not None:
                self.links.remove(link)

    async def until_newer(self, link: Link) -> None:
        """Wait until a connection that was made after `link` has delivered something."""
        while True:
            newer = self.links[self.links.index(link) + 1 :]
            if any(other.pieces > 1 for other in newer):
                return
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.refusing = True
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.cut()


class Proxies:
    """Proxies by name, with a loop in a thread of their own.

    Its methods may be called from any thread and return when the fault is in force.
    """

    def __init__(self, ports: dict[str, tuple[int, int]]) -> None:
        """Stand before ports: name to (where to listen, where to connect)."""
        self._proxies = {name: Proxy(*pair) for name, pair in ports.items()}
        self.names: Final = tuple(ports)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for proxy in self._proxies.values():
            asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        for proxy in self._proxies.values():
            await proxy.stop()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * HELD_S)  # the connections are cut

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _on_links(self, name: str, rng: random.Random, work: Callable[[Link], None]) -> int:
        """Do something to a random half of a proxy's connections, at least one; return how many."""

        def run() -> int:
            links: Sequence[Link] = self._proxies[name].links
            if not links:
                return 0
            chosen = rng.sample(links, max(1, rng.randint(0, len(links))))
            for link in chosen:
                work(link)
            return len(chosen)

        return self._call(run)

    # ------------------------------------------------------------ faults

    def cut(self, name: str, rng: random.Random) -> int:
        """Cut some connections."""
        return self._on_links(name, rng, Link.cut)

    def isolate(self, name: str) -> int:
        """Cut all connections and let none be made until `heal`."""

        def run() -> int:
            proxy = self._proxies[name]
            proxy.refusing = True
            for link in list(proxy.links):
                link.cut()
            return 1

        return self._call(run)

    def slow(self, name: str, rng: random.Random, delay_s: float) -> int:
        """Delay every piece of some connections until `heal`."""
        return self._on_links(name, rng, lambda link: setattr(link, "delay_s", delay_s))

    def stop(self, name: str, rng: random.Random, way: Way) -> int:
        """Deliver nothing one way on some connections until `heal`."""
        return self._on_links(name, rng, lambda link: link.stop(way))

    def truncate(self, name: str, rng: random.Random) -> int:
        """End some connections in the middle of their next piece."""
        return self._on_links(name, rng, lambda link: setattr(link, "truncate", rng))

    def hold(self, name: str, rng: random.Random) -> int:
        """Keep what clients send on some connections, until `reorder`."""
        return self._on_links(name, rng, Link.hold)

    def reorder(self, name: str) -> int:
        """Let held connections' clients connect anew; what was held comes after that."""

        def run() -> int:
            held = [link for link in self._proxies[name].links if link.held is not None]
            for link in held:
                link.drop_client()
            return len(held)

        return self._call(run)

    def heal(self, name: str) -> None:
        """Let everything pass again."""

        def run() -> None:
            proxy = self._proxies[name]
            proxy.refusing = False
            for link in proxy.links:
                link.go()

        self._call(run)

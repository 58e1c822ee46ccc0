"""A listening socket whose connections begin with TLS, on a bounded number at a time.

The loops' own servers would take any number of sockets that never finish a handshake.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from nokv.wire.tls import reason_of

log = logging.getLogger("nokv.rpc")

BACKLOG: Final = 256

HANDSHAKES_MAX: Final = 64
"""Connections whose TLS is not up yet; a further one costs the oldest."""

LOG_PAUSE_S: Final = 10.0
"""Between two log lines of failed handshakes; all are counted."""

ACCEPT_PAUSE_S: Final = 0.1
"""After the system could not accept: no descriptor is left, most likely."""


class TlsAcceptor:
    """Makes a protocol for each connection whose certificate was verified.

    Args:
        factory: makes the protocol.
        context: of the side that is connected to.
        handshake_s: a connection whose TLS is not up by then is closed.
        on_failure: called for each connection that came to nothing.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        handshake_s: float,
        on_failure: Callable[[], None],
    ) -> None:
        self._factory = factory
        self._context = context
        self._handshake_s = handshake_s
        self._on_failure = on_failure
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        # The oldest first.
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._log_after_s = 0.0

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; return the address that was bound. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        self._socket = socket.create_server(
            cast("tuple[str, int]", address[:2]), family=family, backlog=BACKLOG
        )
        self._socket.settimeout(0)
        self._accepting = loop.create_task(self._accept_forever(self._socket), name="rpc-accept")
        bound = self._socket.getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stop listening, and drop whoever is in a handshake."""
        tasks = [task for task in (self._accepting, *self._handshakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept_forever(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._handshakes) >= HANDSHAKES_MAX:
                self._on_failure()
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = loop.create_task(self._admit(accepted), name="rpc-handshake")
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _admit(self, accepted: socket.socket) -> None:
        """Shake hands; the protocol exists once the certificate is verified."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._factory, accepted, ssl=self._context, ssl_handshake_timeout=self._handshake_s
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are
            self._on_failure()
            self._report(error)

    def _report(self, error: OSError) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._log_after_s:
            self._log_after_s = now_s + LOG_PAUSE_S
            log.warning("a TLS handshake failed: %s", why(error))


def why(error: OSError) -> str:
    """Return why a handshake came to nothing; an end without a word has no text of its own."""
    if isinstance(error, ssl.SSLError):
        return reason_of(error)
    if isinstance(error, ConnectionError):
        return (
            "the client ended the connection; does it trust another authority than that of this"
            " node's certificate?"
        )
    return error.strerror or str(error) or type(error).__name__

"""Free loopback ports that stay free.

A port from the range that the system gives to outgoing connections may be taken by one of those
while its server is down, and a client that dials such a port on loopback can even end up connected
to itself. So ports come from below that range.

Below it, others choose ports in the same way: tests that run beside this one, say. So each port
that is given out is reserved until this process ends or releases it: a socket stays bound to it
that never listens. To such a port a server can bind, with SO_REUSEADDR as servers do, and bind
again after it was killed; who looks for a free one without SO_REUSEADDR finds it taken (socket(7)).
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

LOWEST = 10_240
TRIES = 2_000
RESERVED_MAX = 512
"""Ports one process keeps reserved; beyond them the oldest is let go (each is a descriptor)."""

_reserved: dict[int, int] = {}
"""Port -> descriptor of the socket that reserves it, oldest first. They end with the process."""


def _below_outgoing() -> int:
    """Return the lowest port of outgoing connections (ip(7), ip_local_port_range)."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now, reserved or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int, rng: random.Random | None = None) -> list[int]:
    """Return different loopback ports that nobody listens on or has reserved, and reserve them.

    Raises:
        OSError: none are left.
    """
    assert count <= RESERVED_MAX
    rng = rng or random.Random()
    top = _below_outgoing()
    found: list[int] = []
    for _ in range(TRIES):
        if len(found) == count:
            return found
        port = _reserve(rng.randrange(LOWEST, top) if top > LOWEST + count else 0)
        if port:
            found.append(port)
    message = f"{count} free ports between {LOWEST} and {top} were not found"
    raise OSError(message)


def release_ports(ports: Iterable[int]) -> None:
    """End the reservation of ports; those that this process has not reserved are passed over."""
    for port in ports:
        if (fd := _reserved.pop(port, None)) is not None:
            os.close(fd)


def _reserve(port: int) -> int:
    """Bind a socket to a port (0: any) for as long as this process lives; 0 if it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return 0
        # Set once the port is ours alone: from here on a server may bind to it too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        got: int = sock.getsockname()[1]
        _reserved[got] = sock.detach()
    if len(_reserved) > RESERVED_MAX:
        release_ports([next(iter(_reserved))])
    return got

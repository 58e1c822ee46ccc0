"""Free loopback ports that stay free.

A port from the range that the system gives to outgoing connections may be taken by one of those
while its server is down, and a client that dials such a port on loopback can even end up connected
to itself. So ports come from below that range.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOWEST = 10_240
TRIES = 2_000


def _below_outgoing() -> int:
    """Return the lowest port of outgoing connections (ip(7), ip_local_port_range)."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int, rng: random.Random | None = None) -> list[int]:
    """Return different loopback ports that nobody listens on.

    Raises:
        OSError: none are left.
    """
    rng = rng or random.Random()
    top = _below_outgoing()
    found: list[int] = []
    for _ in range(TRIES):
        if len(found) == count:
            return found
        port = rng.randrange(LOWEST, top) if top > LOWEST + count else _any_port()
        if port not in found and is_free(port):
            found.append(port)
    message = f"{count} free ports between {LOWEST} and {top} were not found"
    raise OSError(message)


def _any_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

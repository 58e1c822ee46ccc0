"""Addresses of nodes as people write them: `host:port`, `[::1]:7101`."""

from __future__ import annotations

import ipaddress

from nokv.errors import InvalidArgument


def parse_address(text: str) -> tuple[str, int]:
    """Return (host, port) of `host:port`; an IPv6 address is in brackets.

    Raises InvalidArgument with the text for anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    valid = (
        bool(colon)
        and bool(inner)
        and (bracketed or ":" not in inner)
        and port.isascii()
        and port.isdigit()
        and int(port) <= 65_535
        and not any(character.isspace() for character in inner)
    )
    if not valid:
        message = f"{text!r} is not an address"
        raise InvalidArgument(message, hint="write host:port, for example 127.0.0.1:7101")
    return inner, int(port)


def format_address(host: str, port: int) -> str:
    """Return the text that `parse_address` reads back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether `host` is reached without leaving the machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

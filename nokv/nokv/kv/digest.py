"""The state digest: replicas at the same applied index have the same one.

A family's digest is the sum, modulo 2**128, of XXH3-128 over `len(key) || key || value` of its
records, the length as 2 bytes big-endian. A sum does not depend on the order, so it can also be
kept up record by record (`record_digest`). It finds divergence and damage; it is no defence against
somebody who chooses records on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from xxhash import xxh3_128_digest, xxh3_128_intdigest

from nokv.state.families import REPLICATED, Family
from nokv.state.port import KEY_BYTES_MAX

DIGEST_BYTES = 16
SCAN_END = b"\xff" * (KEY_BYTES_MAX + 1)
"""Greater than every key: the end of a scan over a whole family."""

_MASK = (1 << 128) - 1


class Scanner(Protocol):
    """What a digest reads: a KV, or a snapshot of one."""

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < end."""
        ...


def record_digest(key: bytes, value: bytes) -> int:
    """Return one record's share of its family's digest, below 2**128."""
    return xxh3_128_intdigest(len(key).to_bytes(2, "big") + key + value)


def family_digest(records: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the digest of one family's (key, value) records, in any order, below 2**128."""
    total = 0
    for key, value in records:
        total += xxh3_128_intdigest(len(key).to_bytes(2, "big") + key + value)
    return total & _MASK


def digest(reader: Scanner) -> dict[Family, int]:
    """Return the digest of every replicated family, from one scan over all of it."""
    return {family: family_digest(reader.scan(family, b"", SCAN_END)) for family in REPLICATED}


def combine(families: Mapping[Family, int]) -> bytes:
    """Return the 16 bytes that stand for all families: XXH3-128 over (number, digest) in order.

    An empty family adds nothing, so a family that a newer release adds changes no digest until it
    holds a record.
    """
    return xxh3_128_digest(
        b"".join(
            family.to_bytes(2, "big") + total.to_bytes(DIGEST_BYTES, "big")
            for family, total in sorted(families.items())
            if total
        )
    )

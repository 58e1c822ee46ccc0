"""State machines for the tests of replication: a durable list of everything applied."""

import hashlib
from collections.abc import Iterator, Sequence

from nokv_replication import Applied, Times


class ListMachine:
    """Applies a payload by appending it; its result is the position it got.

    `durable` stands for the disk: it outlives a process that opens the machine anew.
    """

    def __init__(self, durable: "Durable | None" = None) -> None:
        self.durable = durable if durable is not None else Durable()
        self.applied = self.durable.applied
        self.items: list[bytes] = []
        self.times: list[Times] = []
        self._hash = self.durable.hash

    def open(self) -> Applied:
        self.items = list(self.durable.items)
        self._hash = self.durable.hash
        return self.durable.applied

    def apply(
        self, applied: Applied, times: Times, payloads: Sequence[bytes]
    ) -> Iterator[bytes]:
        assert applied.index == self.applied.index + 1
        assert applied.times == times
        for payload in payloads:
            self.items.append(payload)
            result = b"%d" % len(self.items)
            self._hash = hashlib.blake2b(self._hash + payload + result, digest_size=16).digest()
            yield result
        self.times.append(times)
        self.applied = applied

    def commit(self) -> int:
        self.durable.items = list(self.items)
        self.durable.applied = self.applied
        self.durable.hash = self._hash
        return self.applied.index

    def fingerprint(self) -> bytes:
        return self._hash

    def digest(self) -> bytes:
        return hashlib.blake2b(b"\0".join(self.items), digest_size=16).digest()


class Durable:
    """What a machine's last commit left."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.applied = Applied()
        self.hash = b""

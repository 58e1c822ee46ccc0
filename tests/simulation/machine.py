"""The simulator's own state machine: an append-only list with a running hash."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random

from nokv_replication import Applied, Times


class ListStorage:
    """What the last commit of a `ListMachine` left; commits are atomic."""

    def __init__(self) -> None:
        # Shared by all lives of a machine; what lies behind `count` was never committed.
        self.items: list[bytes] = []
        self.count = 0
        self.applied = Applied()
        self.hash = b""

    def machine(self, on_call: Callable[[str], None]) -> "ListMachine":
        return ListMachine(self, on_call)

    def power_cut(self, rng: Random) -> None:
        """A commit is one atomic, synced operation: nothing else is stored."""


class ListMachine:
    """Appends each payload; the result is its position."""

    def __init__(self, storage: ListStorage, on_call: Callable[[str], None]) -> None:
        self._storage = storage
        self._on_call = on_call
        self.items = storage.items
        self.applied = Applied()
        self._hash = b""

    def open(self) -> Applied:
        self._on_call("open")
        del self.items[self._storage.count :]
        self.applied = self._storage.applied
        self._hash = self._storage.hash
        return self.applied

    def apply(self, applied: Applied, times: Times, payloads: Sequence[bytes]) -> Iterator[bytes]:
        assert applied.times == times
        items = self.items
        for payload in payloads:
            items.append(payload)
            yield b"%d" % len(items)
        if payloads:
            text = b"%d " % len(items) + b"\0".join(payloads)
            self._hash = hashlib.blake2b(text, key=self._hash, digest_size=16).digest()
        self.applied = applied

    def commit(self) -> int:
        self._on_call("commit")
        self._storage.count = len(self.items)
        self._storage.applied = self.applied
        self._storage.hash = self._hash
        self._on_call("committed")
        return self.applied.index

    def fingerprint(self) -> bytes:
        return self._hash

    def digest(self) -> bytes:
        return hashlib.blake2b(b"\0".join(self.items), digest_size=16).digest()

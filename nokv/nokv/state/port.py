"""The ordered-KV port: all the IO that the state machine knows.

Two implementations, memory (`nokv.state.memory`) and LMDB (`nokv.kv`), pass one conformance suite.
A store has one writer and one write transaction that is always open: `get` and `scan` see every
`write` at once, `commit` makes all of it durable together, and a crash goes back to the last
commit. Keys are 1 to 511 bytes (LMDB's limit), ordered as unsigned bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Protocol

from nokv.state.families import Family

KEY_BYTES_MAX = 511


class KV(Protocol):
    """An ordered map per family, with one open write transaction."""

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of `key` in the open transaction, or None."""
        ...

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < end, ascending (or descending) by bytes.

        The iterator must not be used after the next `write` or `commit`.
        """
        ...

    def write(self, family: Family, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put each (key, value), or delete the key where the value is None.

        Keys are distinct; sorted input is fastest. Deleting an absent key is not an error.
        """
        ...

    def commit(self) -> None:
        """Make every write so far durable, atomically; a failure is for the process to die of."""
        ...


class StoreFailed(Exception):
    """The store cannot go on: a failed read, write or sync, a full disk or map, a damaged file.

    Nothing may be retried in place: after a failed sync the kernel has dropped the pages, and a
    second sync would succeed over the hole. The process exits; the next one opens the last commit
    and replays the log. `errno` is the system's number where there is one, else EIO.
    """

    def __init__(self, what: str, code: int = errno.EIO) -> None:
        super().__init__(what)
        self.errno = code if code > 0 else errno.EIO


class StoreDamaged(StoreFailed):
    """This copy of the state has lost something, or was changed: no start will do better.

    The message says what is wrong, and then what the node's operator does.
    """

    def __init__(self, what: str, code: int = errno.EIO) -> None:
        super().__init__(
            f"{what}: this node's state is damaged. Keep the directory, and the node stopped; the"
            " others go on while they are a majority (docs/operations.md: A lost node)",
            code,
        )

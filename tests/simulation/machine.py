"""The simulator's own state machine: an append-only list with a running hash."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random

import msgspec

from nokv_replication import Applied, ImageDamaged, ImageSink, Times

PIECE_ITEMS = 16
"""Items in one piece of an image: few, so that a small state takes many pieces."""


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


class _Head(msgspec.Struct, frozen=True, array_like=True, tag=1):
    applied: Applied
    count: int
    hash: bytes


class _Items(msgspec.Struct, frozen=True, array_like=True, tag=2):
    items: list[bytes]


class _Tail(msgspec.Struct, frozen=True, array_like=True, tag=3):
    digest: bytes


_decoder = msgspec.msgpack.Decoder(_Head | _Items | _Tail)


def _digest(head: _Head, items: list[bytes]) -> bytes:
    text = msgspec.msgpack.encode([head, items])
    return hashlib.blake2b(text, digest_size=16).digest()


class ListSource:
    """An image of the last commit: the committed part of a list never changes."""

    def __init__(self, head: _Head, items: list[bytes]) -> None:
        self._head = head
        self._items = items
        self._closed = False
        self._pieces = self._make_pieces()
        self.applied = head.applied
        self.size_bytes = 100 * head.count

    def _make_pieces(self) -> Iterator[bytes]:
        encode = msgspec.msgpack.encode
        yield encode(self._head)
        for start in range(0, self._head.count, PIECE_ITEMS):
            yield encode(_Items(self._items[start : min(start + PIECE_ITEMS, self._head.count)]))
        yield encode(_Tail(_digest(self._head, self._items[: self._head.count])))

    def read(self) -> bytes:
        assert not self._closed
        return next(self._pieces, b"")

    def again(self) -> "ListSource":
        assert not self._closed
        return ListSource(self._head, self._items)

    def close(self) -> None:
        self._closed = True


class ListSink:
    """An image on its way in; it is gone with the process."""

    def __init__(self, on_call: Callable[[str], None], applied: Applied) -> None:
        self._on_call = on_call
        self._expected = applied
        self._tail: _Tail | None = None
        self.head: _Head | None = None
        self.items: list[bytes] = []
        self.finished = False

    def write(self, piece: bytes) -> None:
        self._on_call("image_write")
        try:
            part = _decoder.decode(piece)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ImageDamaged(f"no piece: {error}") from error
        if (self.head is None) != isinstance(part, _Head) or self._tail is not None:
            raise ImageDamaged("pieces out of order")
        if isinstance(part, _Head):
            self.head = part
        elif isinstance(part, _Items):
            self.items += part.items
        else:
            self._tail = part

    def finish(self) -> None:
        self._on_call("image_finish")
        head, tail = self.head, self._tail
        if head is None or tail is None or head.applied != self._expected:
            raise ImageDamaged("it ends early, or stands elsewhere")
        if len(self.items) != head.count or _digest(head, self.items) != tail.digest:
            raise ImageDamaged("its digest is wrong")
        self.finished = True
        self._on_call("image_finished")

    def abort(self) -> None:
        self.finished = False


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

    def image(self) -> ListSource:
        self._on_call("image")
        storage = self._storage
        return ListSource(_Head(storage.applied, storage.count, storage.hash), storage.items)

    def receive(self, applied: Applied) -> ListSink:
        self._on_call("receive")
        return ListSink(self._on_call, applied)

    def install(self, sink: ImageSink) -> Applied:
        assert isinstance(sink, ListSink)
        assert sink.finished
        assert sink.head is not None
        self._on_call("install")
        storage, head = self._storage, sink.head
        storage.items, storage.count = sink.items, head.count
        storage.applied, storage.hash = head.applied, head.hash
        self.items = storage.items
        self._on_call("installed")
        return self.open()

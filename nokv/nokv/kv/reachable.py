"""Which pages of an LMDB file are in use: a walk that reads the file, and never maps it.

The layouts are those of `mdb.c` of LMDB 0.9 on a 64-bit machine (MDB_meta, MDB_page, MDB_node,
MDB_db), in this machine's byte order. There are no duplicate keys here.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_HEADER = struct.Struct("=QHHHH")
"""Of a page: number, padding, flags, end of the list of nodes, begin of the nodes."""
_NODE = struct.Struct("=HHHH")
"""Length of the value, low and high half; flags; length of the key. Of a branch the three first
halves are the child's number."""
_U64 = struct.Struct("=Q")

_BRANCH, _LEAF = 1, 2
_PAGES_OF_ITS_OWN, _TREE = 1, 2
"""Flags of a node: its value fills pages of its own, or is the record of a tree."""
_FREE_ROOT_AT, _MAIN_ROOT_AT, _TXN_AT = 80, 128, 144
"""Places in a meta page: the roots of its two trees, and the transaction that wrote it."""
_ROOT_AT = 40
"""Place of the root in the record of a tree."""
_NO_PAGE = 2**64 - 1


def missing_page(data: Path, page_bytes: int) -> int | None:
    """Return a page that holds something and that the file lacks, whole or in part; else None.

    What else may be wrong with a page is not looked for, but raises ValueError where the walk meets
    it. Nobody may write the file meanwhile.
    """
    with data.open("rb") as file:
        return _Walk(file.fileno(), page_bytes).missing()


class _Walk:
    def __init__(self, fd: int, page_bytes: int) -> None:
        self._fd = fd
        self._page_bytes = page_bytes
        self._file_bytes = os.fstat(fd).st_size
        self._left = self._file_bytes // page_bytes
        """Pages that can be met before one is met twice."""

    def missing(self) -> int | None:
        """Walk all trees from the newer of the two meta pages."""
        metas = [self._page(number) for number in (0, 1)]
        meta = max(metas, key=lambda page: _at(page, _TXN_AT))
        pending = [_at(meta, _FREE_ROOT_AT), _at(meta, _MAIN_ROOT_AT)]
        while pending:
            number = pending.pop()
            if number == _NO_PAGE:  # an empty tree
                continue
            if self._lacks(number):
                return number
            below, last_own = self._below(number)
            if self._lacks(last_own):
                return last_own
            pending += below
        return None

    def _lacks(self, number: int) -> bool:
        return (number + 1) * self._page_bytes > self._file_bytes

    def _page(self, number: int) -> bytes:
        page = os.pread(self._fd, self._page_bytes, number * self._page_bytes)
        if len(page) < self._page_bytes:
            message = f"page {number} is cut"
            raise ValueError(message)
        return page

    def _below(self, number: int) -> tuple[list[int], int]:
        """Return the pages that a page of a tree leads to, and the last one that a value fills.

        How many pages a value has in its header may be more than it needs: LMDB leaves one that
        becomes shorter in the same transaction where it is.
        """
        self._left -= 1
        page = self._page(number)
        _, _, flags, lower, _ = _HEADER.unpack_from(page)
        count = (lower - _HEADER.size) // 2
        kind = flags & (_BRANCH | _LEAF)
        fits = 0 <= count <= (self._page_bytes - _HEADER.size) // 2
        if kind not in (_BRANCH, _LEAF) or not fits or self._left < 0:
            message = f"page {number} is none of a tree"
            raise ValueError(message)
        below, last_own = [], 0
        for place in struct.unpack_from(f"={count}H", page, _HEADER.size):
            low, high, node_flags, key_bytes = _node(page, place)
            value_at = place + _NODE.size + key_bytes
            if kind == _BRANCH:
                below.append(low | high << 16 | node_flags << 32)
            elif node_flags & _PAGES_OF_ITS_OWN:
                pages = (_HEADER.size - 1 + (low | high << 16)) // self._page_bytes + 1
                last_own = max(last_own, _at(page, value_at) + pages - 1)
            elif node_flags & _TREE:
                below.append(_at(page, value_at + _ROOT_AT))
        return below, last_own


def _node(page: bytes, place: int) -> tuple[int, int, int, int]:
    if place + _NODE.size > len(page):
        message = "a node beyond its page"
        raise ValueError(message)
    low, high, flags, key_bytes = _NODE.unpack_from(page, place)
    return low, high, flags, key_bytes


def _at(page: bytes, place: int) -> int:
    if place + _U64.size > len(page):
        message = "a number beyond its page"
        raise ValueError(message)
    number: int = _U64.unpack_from(page, place)[0]
    return number

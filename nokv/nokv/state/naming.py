"""How names and paths are told in messages.

A message is part of a result, and results are state: every replica must write the same bytes. So
what is escaped does not depend on a Python's tables of Unicode: control characters, line and
paragraph separators, the marks that turn the direction of text, and bytes that are not UTF-8.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from nokv.types.values import ROOT_INODE, ROOT_VIEW, At

SHOWN_BYTES: Final = 300
"""Of a longer path the end is told: results are kept until the client has them."""

_HIDDEN: Final = {
    code: chr(code).encode("unicode_escape").decode()
    for code in chain(
        range(0x20),
        range(0x7F, 0xA0),
        range(0x2028, 0x202F),
        range(0x2066, 0x206A),
        (0x200E, 0x200F),
    )
}


def told(name: bytes) -> str:
    """Return the text of a name or path, on one line."""
    text = name[-SHOWN_BYTES:].decode("utf-8", "backslashreplace").translate(_HIDDEN)
    return text if len(name) <= SHOWN_BYTES else f"...{text}"


def told_at(at: At, name: bytes = b"") -> str:
    """Return the text of the path that a command said; below an inode it is a relative one."""
    parts = (*at.path, name) if name else at.path
    absolute = (at.view, at.inode) == (ROOT_VIEW, ROOT_INODE)
    return told(b"/" * absolute + b"/".join(parts)) or f"inode {at.view}:{at.inode}"

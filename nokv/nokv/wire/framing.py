"""Frames: a 32-bit big-endian length and so many bytes of one MessagePack message."""

from __future__ import annotations

import struct

from nokv.errors import TooLarge
from nokv.types.limits import FRAME_BYTES_MAX

HEADER = struct.Struct(">I")
"""A frame's length, as it stands in front of it."""

HEADER_BYTES = HEADER.size


def frame(payload: bytes) -> bytes:
    """Return `payload` with its length in front; raise TooLarge over FRAME_BYTES_MAX."""
    if len(payload) > FRAME_BYTES_MAX:
        message = f"a frame of {len(payload)} bytes; the limit is {FRAME_BYTES_MAX}"
        raise TooLarge(message)
    return HEADER.pack(len(payload)) + payload


class FrameParser:
    """Cuts a byte stream into frames. Holds at most one frame and one read beyond it."""

    def __init__(self, limit_bytes: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._limit_bytes = limit_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Take `data` and return the frames that are complete now.

        Raises TooLarge for a length over the limit: the stream can't be read on.
        """
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            (length,) = HEADER.unpack_from(buffer, start)
            if length > self._limit_bytes:
                message = f"a frame of {length} bytes; the limit is {self._limit_bytes}"
                raise TooLarge(message)
            end = start + HEADER_BYTES + length
            if len(buffer) < end:
                break
            frames.append(bytes(memoryview(buffer)[start + HEADER_BYTES : end]))
            start = end
        if start:
            del buffer[:start]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)

"""What two nodes say to each other on an image connection, as MessagePack array structs.

Tags 20 to 29. The dialer, which sends the image, offers it; the receiver accepts from an offset,
acknowledges what it received, and tells when the image is installed; or it refuses, and says why.
Decoding is strict: what no correct peer sends is a `ProtocolError`, which costs the connection.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated

import msgspec

from nokv_replication.bootstrap import NodeId
from nokv_replication.errors import ProtocolError
from nokv_replication.frames import UNDECODABLE, Count
from nokv_replication.ports import IMAGE_PIECE_MAX_BYTES
from nokv_replication.types import Applied

CONFIG_MAX_BYTES = 64 << 10
"""Encoded `Applied`, with the members and the skipped entries, at most."""
ImagePosition = Annotated[bytes, msgspec.Meta(max_length=CONFIG_MAX_BYTES)]
"""A MessagePack `Applied`; decoded by the receiver."""


class ImageOffer(msgspec.Struct, tag=20, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A leader of `term` offers the state at `applied`; `image` names this very image."""

    term: Count
    image: Count
    applied: ImagePosition
    size_bytes: Count


class ImageAccept(msgspec.Struct, tag=21, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Send it from byte `offset`: all before was received."""

    image: Count
    offset: Count


class ImageChunk(msgspec.Struct, tag=22, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One piece of the image, which begins at byte `offset`; `crc` is the piece's CRC-32C."""

    image: Count
    offset: Count
    crc: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
    piece: Annotated[bytes, msgspec.Meta(min_length=1, max_length=IMAGE_PIECE_MAX_BYTES)]


class ImageEnd(msgspec.Struct, tag=23, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All of it was sent: `offset` bytes."""

    image: Count
    offset: Count


class ImageAck(msgspec.Struct, tag=24, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything before `offset` was received."""

    image: Count
    offset: Count


class ImageRefusal(IntEnum):
    """Why an image is not taken. Numbers are never reused."""

    COVERED = 0
    """The receiver holds everything up to its position already."""
    OLD_TERM = 1
    """The offer is of a leader whose term is over."""
    LEADS = 2
    """The receiver leads."""
    DAMAGED = 3
    """Bytes of it were changed, or are missing."""
    UNABLE = 4
    """The receiver has no room for it, or cannot read it; the message says so."""
    UNKNOWN = 5
    """The receiver knows nothing of that image (any more)."""


class ImageRefuse(msgspec.Struct, tag=25, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The image is not taken, at its offer or later; `message` is for the sender's operator."""

    image: Count
    reason: ImageRefusal
    message: Annotated[str, msgspec.Meta(max_length=512)]


class ImageInstalled(
    msgspec.Struct, tag=26, frozen=True, array_like=True, forbid_unknown_fields=True
):
    """The image is the receiver's state, durably. It counts for nothing: appends are answered."""

    image: Count


ImageBody = (
    ImageOffer | ImageAccept | ImageChunk | ImageEnd | ImageAck | ImageRefuse | ImageInstalled
)
"""Bodies on an image connection; nothing else is sent there, nor these on any other."""

SendImage = Callable[[int, ImageBody], None]
"""Sends a body to a peer, on the connection of its direction."""


class ImageFrame(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """One message on an image connection; as `Frame`, with sequences of the connection alone."""

    sender: NodeId
    epoch: Count
    sequence: Count
    body: ImageBody


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ImageFrame)
_position_decoder = msgspec.msgpack.Decoder(Applied)


def decode_position(position: bytes) -> Applied:
    """Return the position in an offer.

    Raises:
        ProtocolError: it is none.
    """
    try:
        applied = _position_decoder.decode(position)
    except UNDECODABLE as error:
        message = f"an image offered at no position: {error}"
        raise ProtocolError(message) from error
    if applied.index < 1 or applied.term < 1:
        message = f"an image offered at entry {applied.index}, term {applied.term}"
        raise ProtocolError(message)
    return applied


def encode_image_frame(frame: ImageFrame) -> bytes:
    """Return the bytes of a frame."""
    return _encoder.encode(frame)


def decode_image_frame(data: bytes) -> ImageFrame:
    """Return the frame of an image connection in `data`.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _decoder.decode(data)
    except UNDECODABLE as error:
        message = f"undecodable image frame of {len(data)} bytes: {error}"
        raise ProtocolError(message) from error

"""Any bytes become a message or a typed error; frames survive any cutting of the stream."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire.samples import sample

from nokv import errors
from nokv.errors import BadRequest, NokvError, NotFound, TooLarge, from_wire
from nokv.types.commands import Command
from nokv.types.limits import COMMAND_BYTES_MAX, FRAME_BYTES_MAX
from nokv.wire.codec import (
    Codec,
    command_codec,
    decode_command,
    encode_failure,
    read_value_codec,
    result_codec,
)
from nokv.wire.framing import FrameParser, frame
from nokv.wire.rpc import request_codec, response_codec

CODECS = (command_codec, result_codec, read_value_codec, request_codec, response_codec)
DEEP = b"\x91" * 100_000 + b"\x01"


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_typed_error(codec: Codec[object], data: bytes) -> None:
    try:
        value = codec.decode(data)
    except BadRequest:
        return
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_damaged_messages_are_typed_errors(codec: Codec[object], data: st.DataObject) -> None:
    good = bytearray(msgspec.msgpack.encode(sample(Command)))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        codec.decode(bytes(good))
    except BadRequest:
        return


@pytest.mark.parametrize("codec", CODECS)
def test_deep_nesting_is_a_typed_error(codec: Codec[object]) -> None:
    with pytest.raises(BadRequest):
        codec.decode(DEEP)


def test_nesting_in_a_skipped_field_is_a_typed_error() -> None:
    reply = msgspec.msgpack.encode([1, [6]])
    with pytest.raises(BadRequest):
        response_codec.decode(b"\x93" + reply[1:] + DEEP)


def test_another_command_format_is_refused() -> None:
    command = msgspec.structs.replace(sample(Command), format=2)
    with pytest.raises(BadRequest, match="format 2"):
        decode_command(msgspec.msgpack.encode(command))


def test_a_command_over_the_limit_is_refused() -> None:
    with pytest.raises(BadRequest, match="limit"):
        decode_command(bytes(COMMAND_BYTES_MAX + 1))


@given(st.lists(st.binary(max_size=300), max_size=12), st.data())
def test_frames_survive_any_cutting(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    parser = FrameParser()
    found: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += parser.feed(stream[:cut])
        stream = stream[cut:]
    assert found == payloads
    assert parser.pending_bytes == 0


def test_a_length_over_the_limit_ends_the_stream() -> None:
    with pytest.raises(TooLarge):
        FrameParser().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(TooLarge):
        frame(bytes(FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize("cls", errors.BY_CODE.values(), ids=lambda cls: cls.__name__)
def test_errors_cross_the_wire_as_themselves(cls: type[NokvError]) -> None:
    sent = cls("what happened", hint="what to do")
    received = from_wire(sent.code, sent.message, sent.hint)
    assert type(received) is cls
    assert received.errno == cls.errno_value
    assert str(received) == "what happened (what to do)"
    assert from_wire(cls.code, "again").hint == cls.default_hint
    assert cls.__doc__


def test_codes_do_not_change() -> None:
    lines = Path(__file__).with_name("codes.txt").read_text().splitlines()
    assert [f"{code} {cls.__name__}" for code, cls in sorted(errors.BY_CODE.items())] == lines


def test_an_unknown_code_is_still_an_error() -> None:
    assert "9999" in str(from_wire(9999, "from the future"))


def test_a_message_with_a_name_that_is_not_utf8_is_sent() -> None:
    """An error that can't be encoded would stop every replica at the same command."""
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    result = result_codec.decode(encode_failure(3, NotFound(name, hint=name)))
    assert result.code == NotFound.code
    assert result.message == result.hint == r"\udcff\udcfe"

"""Bytes to messages and back. Any bytes become a message or a typed error, never anything else."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from nokv.errors import BadRequest, NokvError
from nokv.types.commands import COMMAND_FORMAT, Command
from nokv.types.formats import FIRST_STATE_FORMAT, encode_at
from nokv.types.limits import COMMAND_BYTES_MAX
from nokv.types.reads import ReadValue
from nokv.types.results import Result, ResultValue

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


class Codec(Generic[T]):
    """Encode and decode one message type; `decode` raises `error` for anything malformed."""

    def __init__(self, kind: Any, name: str, error: type[NokvError] = BadRequest) -> None:  # noqa: ANN401  a union type
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._name = name
        self._error = error

    def encode(self, value: T) -> bytes:
        """Return the MessagePack bytes of `value`."""
        return _encoder.encode(value)

    def decode(self, data: bytes | memoryview) -> T:
        """Return the message that `data` holds; raise the codec's error class otherwise.

        msgspec raises RecursionError for deep nesting, also in skipped fields.
        """
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as error:
            message = f"not a valid {self._name}: {error}"
            raise self._error(message) from None


command_codec: Codec[Command] = Codec(Command, "command")
result_codec: Codec[Result] = Codec(Result, "result")
read_value_codec: Codec[ReadValue] = Codec(ReadValue, "read reply")


def encode_command(command: Command) -> bytes:
    """Return the bytes of `command`, which must fit COMMAND_BYTES_MAX (asserted by the caller)."""
    return _encoder.encode(command)


def decode_command(data: bytes | memoryview) -> Command:
    """Return the command, strictly: unknown fields and formats raise BadRequest."""
    if len(data) > COMMAND_BYTES_MAX:
        message = f"a command of {len(data)} bytes; the limit is {COMMAND_BYTES_MAX}"
        raise BadRequest(message)
    command = command_codec.decode(data)
    if command.format != COMMAND_FORMAT:
        message = f"command format {command.format}; this node speaks {COMMAND_FORMAT}"
        raise BadRequest(message, hint="upgrade the older side")
    return command


def encode_success(
    version: int, value: ResultValue, state_format: int = FIRST_STATE_FORMAT
) -> bytes:
    """Return the bytes of a successful result: they are part of the state, so of its format."""
    return encode_at(Result(version, 0, "", "", value), state_format)


def encode_failure(version: int, error: NokvError) -> bytes:
    """Return the bytes of a failed result; only a hint of the error's own is kept."""
    hint = "" if error.hint == error.default_hint else error.hint
    return _encoder.encode(Result(version, error.code, _sendable(error.message), _sendable(hint)))


def _sendable(text: str) -> str:
    """Return a text with no lone surrogates: a name may have brought some, UTF-8 has none."""
    return text.encode("utf-8", "backslashreplace").decode()

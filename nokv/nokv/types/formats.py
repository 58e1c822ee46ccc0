"""State formats: what of the log's commands and of the state's records exists from which one on.

The format in force is a number in the state itself, raised by a command in the log once every
member speaks the next one; a newer binary alone changes nothing. So two builds apply one log to the
same bytes as long as both run, and each declares what it adds where it adds it:

    class Inode(Strict, frozen=True):
        ...
        changes: Annotated[int, since(2)] = 0

Below format 2 that field has its default, is not encoded, and a command that uses it is refused by
the leader. A new kind of command says `SINCE: ClassVar[int] = 2` in its class.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Any, Final

import msgspec

FIRST_STATE_FORMAT: Final = 1
"""Of every new state, whatever builds its members are: newer ones come through the log alone."""

STATE_FORMAT: Final = 1
"""The newest one that this build applies."""

_KEY: Final = "since"
_encode: Final = msgspec.msgpack.Encoder().encode


def since(number: int) -> msgspec.Meta:
    """Return the annotation of a field that exists from state format `number` on.

    Such a field stands behind all older ones and has an immutable default.
    """
    assert number > FIRST_STATE_FORMAT, "what the first format has needs no mark"
    return msgspec.Meta(extra={_KEY: number})


def encode_at(value: object, state_format: int) -> bytes:
    """Return the MessagePack bytes of a record as `state_format` has it.

    AssertionError if a field that does not exist there differs from its default.
    """
    kind: Any = type(value)
    if state_format >= STATE_FORMAT or state_format >= _newest(kind):
        return _encode(value)
    return _encode(_cut(value, state_format))


def needed_format(value: object) -> int:
    """Return the state format that a command needs: that of the newest thing it uses."""
    if isinstance(value, tuple):
        return max(map(needed_format, value), default=FIRST_STATE_FORMAT)
    kind: Any = type(value)
    if not isinstance(value, msgspec.Struct) or _newest(kind) == FIRST_STATE_FORMAT:
        return FIRST_STATE_FORMAT
    needed: int = getattr(kind, "SINCE", FIRST_STATE_FORMAT)
    for field, number in zip(msgspec.structs.fields(kind), _formats(kind), strict=True):
        inner = getattr(value, field.name)
        if number > needed and inner != field.default:
            needed = number
        needed = max(needed, needed_format(inner))
    return needed


def _cut(value: object, state_format: int) -> object:
    """Return `value` as plain arrays, without what `state_format` does not have."""
    if isinstance(value, tuple):
        return [_cut(inner, state_format) for inner in value]
    if not isinstance(value, msgspec.Struct):
        return value
    kind: Any = type(value)
    tag = kind.__struct_config__.tag
    kept: list[object] = [] if tag is None else [tag]
    for field, number in zip(msgspec.structs.fields(kind), _formats(kind), strict=True):
        inner = getattr(value, field.name)
        if number <= state_format:
            kept.append(_cut(inner, state_format))
        else:
            assert inner == field.default, (
                f"{kind.__name__}.{field.name} of format {number} is set at {state_format}"
            )
    return kept


@cache
def _formats(kind: type[msgspec.Struct]) -> tuple[int, ...]:
    """Return the format of each field, in order; they never fall."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = tuple(_mark(hints[name]) for name in kind.__struct_fields__)
    assert list(found) == sorted(found), f"{kind.__name__}: newer fields stand behind older ones"
    return found


def _mark(hint: Any) -> int:  # noqa: ANN401  a type hint
    marks = (meta.extra for meta in getattr(hint, "__metadata__", ()) if hasattr(meta, "extra"))
    return max((extra[_KEY] for extra in marks if extra), default=FIRST_STATE_FORMAT)


@cache
def _newest(kind: Any) -> int:  # noqa: ANN401  a type
    """Return the newest format that anything in a type, or in what it holds, is of."""
    return max(_inside(kind, set()), default=FIRST_STATE_FORMAT)


def _inside(hint: Any, seen: set[type]) -> list[int]:  # noqa: ANN401  a type hint
    found = [_mark(hint), *(n for inner in typing.get_args(hint) for n in _inside(inner, seen))]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct) and hint not in seen:
        seen.add(hint)
        found.append(getattr(hint, "SINCE", FIRST_STATE_FORMAT))
        for inner in typing.get_type_hints(hint, include_extras=True).values():
            found += _inside(inner, seen)
    return found

"""One fully filled sample of every message and value of the vocabulary, made from its type.

Numbers count up, so that two fields that change places change the bytes.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec

from nokv.types import commands, diffs, gc, locks, reads, results, values, views
from nokv.wire import rpc

MODULES = (values, views, diffs, gc, locks, commands, results, reads, rpc)
BASES = (values.Strict, values.Lenient)


def structs() -> Iterator[type[msgspec.Struct]]:
    """Yield every message type, in the order of modules and definitions."""
    for module in MODULES:
        for value in vars(module).values():
            defined_here = getattr(value, "__module__", None) == module.__name__
            if defined_here and inspect.isclass(value) and issubclass(value, BASES):
                if value in BASES:
                    continue
                yield value


def sample(kind: Any, numbers: Iterator[int] | None = None) -> Any:
    """Return a value of the annotated type, filled to the last field."""
    numbers = numbers or count(1)
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return (sample(inner[0], numbers),)
        return tuple(sample(one, numbers) for one in inner)
    if origin is dict:
        key, value = typing.get_args(kind)
        return {sample(key, numbers): sample(value, numbers)}
    if origin in (typing.Union, types.UnionType):
        return sample(next(one for one in typing.get_args(kind) if one is not type(None)), numbers)
    if kind is bool:
        return True
    if kind is int:
        return next(numbers)
    if kind is bytes:
        return b"b%d" % next(numbers)
    if kind is str:
        return f"s{next(numbers)}"
    assert issubclass(kind, msgspec.Struct), kind
    hints = typing.get_type_hints(kind)
    return kind(*(sample(hints[name], numbers) for name in kind.__struct_fields__))

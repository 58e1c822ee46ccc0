"""What callers may pass, checked where a call enters the client, before anything is sent.

`checked` reads a method's annotations: the text of one (`int`, `AnyPath | None`) names the rule
that its argument must pass. So a signature is all there is to write, and no parameter is left out:
one without a rule is an AssertionError when its module is imported. A rule knows types and what the
wire can carry; what depends on the volume (a name that is taken, a limit that is set) it decides.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import os
import random
import reprlib
import ssl
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn, SupportsIndex, TypeAlias, TypeVar

import msgspec

from nokv.errors import InvalidArgument
from nokv.types.commands import TIME_NOW, Predicate
from nokv.types.limits import UINT63_MAX
from nokv.types.trash import Trashed, TrashRow
from nokv.types.values import Caller
from nokv.wire.tls import TlsFiles

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T", bound=type)

SECONDS_MAX: Final = UINT63_MAX // 1_000_000_000
"""292 years: a longer time has no number of nanoseconds in 63 bits."""

Time: TypeAlias = int
"""A time in ns since 1970, or NOW."""

Device: TypeAlias = int
"""A device number of 64 bits, as mknod(2) takes it."""

Offset: TypeAlias = int
"""A position or size that may be negative, as lseek(2) and read() of a file object take it."""

Encoding: TypeAlias = str
"""Name of a text encoding that Python knows."""


class Rule(NamedTuple):
    """What one kind of argument must be."""

    holds: Callable[[Any], bool]
    wanted: str
    """What to pass instead: the error's hint."""
    always: frozenset[type] = frozenset()
    """Of exactly these types any value holds: so it is not asked for each path of each call."""


def _whole(low: int, high: int) -> Callable[[object], bool]:
    def holds(value: object) -> bool:
        if type(value) is int:
            return low <= value <= high
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return holds


_count = _whole(0, UINT63_MAX)


def _seconds(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= SECONDS_MAX  # type: ignore[operator]  # NaN is in no range


def _text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoding(value: object) -> bool:
    try:
        return isinstance(value, str) and "".encode(value) is not None
    except (LookupError, ValueError):
        return False


def _local(value: object) -> bool:
    if not isinstance(value, (str, os.PathLike)):
        return False
    path = os.fspath(value)
    try:
        return isinstance(path, str) and path != "" and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _body(value: object) -> bool:
    kinds = (bytes, bytearray, memoryview, os.PathLike, AsyncIterable)
    # Text is refused where a body is read, which says why.
    return isinstance(value, (*kinds, str)) or callable(getattr(value, "read", None))


def _buffer(value: object) -> bool:
    return isinstance(value, (bytes, bytearray)) or (
        isinstance(value, memoryview) and value.c_contiguous
    )


def _several(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _entry(value: object) -> bool:
    if isinstance(value, (Trashed, TrashRow)):
        return _count(value.view) and _count(value.trash)
    return isinstance(value, tuple) and len(value) == 2 and all(map(_count, value))


def _predicates(value: object) -> bool:
    """Whether these are conditions that the wire carries: their fields are the caller's too."""
    if not value:
        return value == ()
    try:
        data = msgspec.msgpack.encode(value)
        return msgspec.msgpack.decode(data, type=tuple[Predicate, ...]) == value
    except (msgspec.MsgspecError, OverflowError, TypeError, UnicodeEncodeError):
        return False


def _caller(value: object) -> bool:
    return (
        isinstance(value, Caller)
        and isinstance(value.groups, tuple)
        and all(map(_count, (value.uid, value.gid, *value.groups)))
        and _text(value.principal)
    )


_PATH: Final = "an absolute path: text, bytes or a PurePosixPath"
_NAMES: Final = frozenset({str, bytes})
_BYTES: Final = frozenset({bytes})
_MODES: Final = ("create", "replace", "merge")

RULES: Final[Mapping[str, Rule]] = {
    "AnyPath": Rule(lambda value: isinstance(value, (str, bytes, os.PathLike)), _PATH, _NAMES),
    "Caller": Rule(_caller, "a nokv.types.values.Caller of whole numbers"),
    "ClientConfig": Rule(lambda value: hasattr(value, "session_ttl_s"), "a nokv.ClientConfig"),
    "Device": Rule(_whole(0, 2**64 - 1), "a device number of 64 bits"),
    "Encoding": Rule(_encoding, "the name of a text encoding, such as utf-8"),
    "FaultPoint": Rule(callable, "a coroutine function that takes a text"),
    "Iterable[Trashed | TrashRow | Id]": Rule(_several, "entries, as trash.list answers them"),
    "Iterable[str | bytes]": Rule(_several, "several names, in a list for example"),
    "Iterable[str | int]": Rule(_several, "several kinds, in a list for example"),
    "Mapping[str, SourceLike]": Rule(lambda value: isinstance(value, Mapping), "a dict of bodies"),
    "Mode": Rule(lambda value: _text(value) and value in _MODES, "create, replace or merge"),
    "Offset": Rule(_whole(-UINT63_MAX, UINT63_MAX), "a whole number of 64 bits"),
    "Progress": Rule(callable, "a function that takes a number of bytes"),
    "Sequence[str]": Rule(
        lambda value: _several(value) and all(map(_text, value)), "several texts, in a list"
    ),
    "SourceLike": Rule(_body, "bytes, a pathlib.Path, a binary file object or an async iterator"),
    "Time": Rule(_whole(TIME_NOW, UINT63_MAX), "nanoseconds since 1970, or NOW"),
    "Trashed | TrashRow | Id": Rule(_entry, "an entry as trash.put or trash.list answered it"),
    "TlsFiles": Rule(lambda value: isinstance(value, TlsFiles), "nokv.TlsFiles(ca, cert, key)"),
    "bool": Rule(lambda value: isinstance(value, bool), "True or False", frozenset({bool})),
    "bytes": Rule(_buffer, "bytes", _BYTES),
    "bytes | bytearray | memoryview": Rule(_buffer, "bytes", _BYTES),
    "bytearray | memoryview": Rule(
        lambda value: _buffer(value) and not memoryview(value).readonly, "a writable buffer"
    ),
    "float": Rule(_seconds, f"seconds, from 0 to {SECONDS_MAX}"),
    "int": Rule(_count, f"a whole number from 0 to {UINT63_MAX}"),
    "int | str": Rule(lambda value: _count(value) or isinstance(value, str), "number or address"),
    "random.Random": Rule(lambda value: isinstance(value, random.Random), "a random.Random"),
    "ssl.SSLContext": Rule(lambda value: isinstance(value, ssl.SSLContext), "an SSLContext"),
    "str": Rule(_text, "text that UTF-8 can hold"),
    "str | Sequence[str]": Rule(
        lambda value: _text(value) or (_several(value) and all(map(_text, value))),
        "addresses host:port, separated by commas or in a list",
    ),
    "str | os.PathLike[str]": Rule(_local, "the path of a local file or directory"),
    "str | bytes": Rule(lambda value: isinstance(value, (str, bytes)), "text or bytes", _NAMES),
    "tuple[Predicate, ...]": Rule(_predicates, "Exists, Absent, VersionIs ... in a tuple"),
    "tuple[int, int]": Rule(
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_count, value)),
        "(first byte, length), whole numbers",
    ),
}
"""By the text of an annotation, without ` | None`."""

_OBJECTS: Final = frozenset({"ObjectStore"})
"""Not looked at here: a store is what behaves like one."""


def check(where: str, name: str, annotation: str, value: object) -> None:
    """Return if `value` may be the argument `name` of `where`.

    Raises:
        InvalidArgument: it may not.
    """
    rule = rule_of(annotation)
    if rule is not None and not rule.holds(value):
        _refuse(where, name, rule, value)


def rule_of(annotation: str) -> Rule | None:
    """Return the rule of an annotation; None: anything goes."""
    plain = annotation.removesuffix(" | None")
    if plain in _OBJECTS:
        return None
    assert plain in RULES, f"arguments of type {annotation} have no rule"
    rule = RULES[plain]
    if plain == annotation:
        return rule
    return Rule(
        lambda value: value is None or rule.holds(value),
        f"{rule.wanted}; or None",
        rule.always | {type(None)},
    )


def _refuse(where: str, name: str, rule: Rule, value: object) -> NoReturn:
    message = f"{where}: {name} can't be {reprlib.repr(value)}"
    raise InvalidArgument(message, hint=f"give {rule.wanted}")


def _plain(where: str, name: str, rule: Rule, value: object) -> object:
    """Return an argument as the built-in type that the wire takes: numpy's numbers and texts too.

    Raises:
        InvalidArgument: the rule does not hold.
    """
    if rule.holds(value):
        if isinstance(value, str):
            return str.__str__(value)
        return bytes(value) if isinstance(value, bytes) else value
    if not isinstance(value, int) and isinstance(value, SupportsIndex):
        with contextlib.suppress(TypeError):  # as an array of several says
            number = operator.index(value)
            if rule.holds(number):
                return number
    _refuse(where, name, rule, value)


def checked(function: C) -> C:
    """Return a function, coroutine function or method that checks its arguments first.

    Raises:
        InvalidArgument: (what it returns does) naming the argument, with what it may be.
    """
    if hasattr(function, "checks_arguments"):
        return function
    rules = _rules(function)
    if not any(rule is not None for _, rule in rules):
        return function
    by_name = dict(rules)
    where = function.__name__

    def look(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, ...]:
        """Check all, put plain values in place of those in `kwargs`, and return those of `args`."""
        plain = list(args)
        for place, ((name, rule), value) in enumerate(zip(rules, args, strict=False)):
            if rule is not None and type(value) not in rule.always:
                plain[place] = _plain(where, name, rule, value)
        for name, value in kwargs.items():
            rule = by_name.get(name)
            if rule is not None and type(value) not in rule.always:
                kwargs[name] = _plain(where, name, rule, value)
        return tuple(plain)

    call: Callable[..., Any]
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: object, **kwargs: object) -> object:
            return await function(*look(args, kwargs), **kwargs)

    else:

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            return function(*look(args, kwargs), **kwargs)

    call.checks_arguments = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _rules(function: Callable[..., Any]) -> list[tuple[str, Rule | None]]:
    """Return the parameters of a function, each with its rule; `self` has none."""
    found: list[tuple[str, Rule | None]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if parameter.annotation is parameter.empty or not plain:
            found.append((name, None))
        else:
            found.append((name, rule_of(parameter.annotation)))
    return found


def checked_methods(cls: T) -> T:
    """Return a class whose public methods check their arguments; properties have none."""
    for name, method in list(vars(cls).items()):
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(cls, name, checked(method))
    return cls

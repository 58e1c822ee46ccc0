"""Histories: what clients asked and were told, on one monotonic base.

A recorder is shared by the clients of one run. An operation is invoked, and then ends in one of
three ways: `ok` (it happened, with this result), `fail` (it certainly did not happen) or `unknown`
(nobody can tell). The process of an unknown operation never acts again under the same number: the
operation may take effect at any later moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

FOREVER = 2**63 - 1
"""End of an operation whose outcome is unknown."""


class Operation(msgspec.Struct, frozen=True):
    """One operation with its interval, closed at both ends: equal times count as concurrent."""

    process: int
    call_ns: int
    return_ns: int
    """FOREVER where the outcome is unknown."""
    argument: Any
    result: Any = None
    known: bool = True
    """False: whether it happened, and with what result, is unknown."""


class Line(msgspec.Struct, frozen=True, array_like=True):
    """One line of a history as it is written down."""

    process: int
    kind: str
    """'invoke', 'ok', 'fail' or 'unknown'."""
    at_ns: int
    value: Any


class Recorder:
    """Collects the lines of a run; the clock is the caller's and must never fall."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._open: dict[int, Line] = {}
        self.lines: list[Line] = []

    def _add(self, process: int, kind: str, value: Any) -> Line:  # noqa: ANN401  the object's own
        line = Line(process, kind, self._clock_ns(), value)
        assert not self.lines or self.lines[-1].at_ns <= line.at_ns, "the clock fell"
        self.lines.append(line)
        return line

    def invoke(self, process: int, argument: Any) -> None:  # noqa: ANN401  the object's own
        """Note that a process asks for something, before it does."""
        assert process not in self._open, f"process {process} has an operation under way"
        self._open[process] = self._add(process, "invoke", argument)

    def ok(self, process: int, result: Any) -> None:  # noqa: ANN401  the object's own
        """Note that the operation happened, after its answer arrived."""
        del self._open[process]
        self._add(process, "ok", result)

    def fail(self, process: int) -> None:
        """Note that the operation certainly had no effect."""
        del self._open[process]
        self._add(process, "fail", None)

    def unknown(self, process: int) -> None:
        """Note that nobody can tell; the process's number is used up."""
        assert process in self._open, f"process {process} has no operation under way"
        self._add(process, "unknown", None)

    def dump(self) -> bytes:
        """Return the lines as JSON, one a line."""
        return b"".join(msgspec.json.encode(line) + b"\n" for line in self.lines)


def load(data: bytes) -> list[Line]:
    """Return the lines of a `Recorder.dump`."""
    lines = [msgspec.json.decode(line, type=Line) for line in data.splitlines() if line]
    return [msgspec.structs.replace(line, value=_frozen(line.value)) for line in lines]


def _frozen(value: Any) -> Any:  # noqa: ANN401  JSON has lists where there were tuples
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def operations(lines: Iterable[Line]) -> Iterator[Operation]:
    """Pair the lines: what failed is left out, what was never answered is unknown."""
    pending: dict[int, Line] = {}
    for line in lines:
        if line.kind == "invoke":
            assert line.process not in pending, f"process {line.process} asks twice"
            pending[line.process] = line
            continue
        asked = pending[line.process]
        if line.kind == "unknown":
            continue  # stays pending: it is yielded at the end
        del pending[line.process]
        if line.kind == "ok":
            yield Operation(line.process, asked.at_ns, line.at_ns, asked.value, line.value)
        else:
            assert line.kind == "fail", f"a line of kind {line.kind}"
    for asked in pending.values():
        yield Operation(asked.process, asked.at_ns, FOREVER, asked.value, known=False)

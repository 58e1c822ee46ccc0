"""Is a history linearizable? The search of Wing and Gong with the memory of Lowe.

J. Wing, C. Gong, "Testing and Verifying Concurrent Objects" (1993); G. Lowe, "Testing for
linearizability" (2017). The search linearizes some operation that was called before every operation
left has returned, and remembers each (set of linearized operations, state) it has been in. An
unknown operation may be linearized with any result, or never. An object that splits into
independent parts is checked part by part, the parts in turns: a broken part is often found long
before the first one is searched through.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

from nokv_model.history import FOREVER, Operation

Apply = Callable[[Any, Operation], "Hashable | None"]
"""(state, operation) -> the state after it, or None if its result can't be."""


class Verdict(Enum):
    """What the search found."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNKNOWN = "unknown"
    """The budget was used up: never a pass."""


def check(
    parts: Iterable[Sequence[Operation]],
    initial: Hashable,
    apply: Apply,
    *,
    steps: int = 5_000_000,
    turn: int = 20_000,
) -> Verdict:
    """Check independent parts of one history; `steps` bounds the search over all of them."""
    searches = [_search(list(part), initial, apply, turn) for part in parts]
    while searches:
        left = []
        for search in searches:
            steps -= turn
            found = next(search)
            if found is False:
                return Verdict.NOT_LINEARIZABLE
            if found is None:
                left.append(search)
        if left and steps <= 0:
            return Verdict.UNKNOWN
        searches = left
    return Verdict.LINEARIZABLE


def _search(
    history: list[Operation], initial: Hashable, apply: Apply, turn: int
) -> Iterator[bool | None]:
    """Yield None each `turn` steps, and at the end whether the history is linearizable."""
    history.sort(key=lambda operation: operation.call_ns)
    must = _mask(i for i, operation in enumerate(history) if operation.known)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    steps = 0
    while stack:
        done, state = stack.pop()
        if done & must == must:
            yield True
            return
        for index in _candidates(history, done):
            steps += 1
            after = apply(state, history[index])
            if after is None:
                continue
            entry = (done | 1 << index, after)
            if entry not in seen:
                seen.add(entry)
                stack.append(entry)
        if steps >= turn:
            steps = 0
            yield None
    yield False


def _mask(indexes: Iterable[int]) -> int:
    return sum(1 << index for index in indexes)


def _candidates(history: list[Operation], done: int) -> list[int]:
    """Return the operations that may come next: called before every one left has returned."""
    earliest = FOREVER
    found: list[int] = []
    lowest = (~done & (done + 1)).bit_length() - 1
    for index in range(lowest, len(history)):
        operation = history[index]
        if done >> index & 1:
            continue
        if operation.call_ns > earliest:
            break
        earliest = min(earliest, operation.return_ns)
        found.append(index)
    return [index for index in found if history[index].call_ns <= earliest]


# ---------------------------------------------------------------- objects


ABSENT = ("absent",)
"""State of a register before its first write. States are never None."""


def register(state: Any, operation: Operation) -> Hashable | None:  # noqa: ANN401  the object's own
    """A register: arguments ('read',), ('write', v) and ('cas', old, new).

    The result of a read is the value, of a cas whether it found `old`; of an unknown one anything.
    """
    match operation.argument:
        case ("read",):
            return state if not operation.known or operation.result == state else None
        case ("write", value):
            return value  # type: ignore[no-any-return]
        case ("cas", old, new):
            if operation.known and operation.result != (state == old):
                return None
            return new if state == old else state  # type: ignore[no-any-return]
    message = f"no operation of a register: {operation.argument}"
    raise AssertionError(message)


def text(state: Any, operation: Operation) -> Hashable | None:  # noqa: ANN401  the object's own
    """A string: arguments ('get',), ('put', s) and ('append', s); initially ''."""
    match operation.argument:
        case ("get",):
            return state if not operation.known or operation.result == state else None
        case ("put", value):
            return value  # type: ignore[no-any-return]
        case ("append", value):
            return state + value  # type: ignore[no-any-return]
    message = f"no operation of a string: {operation.argument}"
    raise AssertionError(message)


def by_key(
    operations: Iterable[Operation], key: Callable[[Operation], Hashable]
) -> list[list[Operation]]:
    """Split a history of independent parts."""
    parts: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        parts.setdefault(key(operation), []).append(operation)
    return list(parts.values())

"""Is a history linearizable? The search of Wing and Gong with the memory of Lowe.

J. Wing, C. Gong, "Testing and Verifying Concurrent Objects" (1993); G. Lowe, "Testing for
linearizability" (2017). The search linearizes some operation that was called before every operation
left has returned, and remembers each (set of linearized operations, state) it has been in. An
unknown operation may be linearized with any result, or never. An object that splits into
independent parts is checked part by part, the parts in turns: a broken part is often found long
before the first one is searched through.

A register has a search of its own (`_RegisterSearch`): every unknown operation doubles what the
general one may have to look at, and with a register most of them can't matter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

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
    """Check independent parts of one history; `steps` bounds the search over all of them.

    For `register` itself the search is much stronger than for a function that wraps it.
    """
    searches = [
        _RegisterSearch(part, initial).run(turn)
        if apply is register
        else _search(list(part), initial, apply, turn)
        for part in parts
    ]
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


def _candidates(history: Sequence[Operation | _Step], done: int) -> list[int]:
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


# ---------------------------------------------------------------- registers


_NOTHING: Final = object()
"""Stands where an operation needs, forbids or sets no value; equal to no state."""
_OTHER: Final = object()
"""Stands for every value that no operation asks about: nothing can tell them apart."""


class _Step(NamedTuple):
    """What an operation of a register asks of the state, and makes of it."""

    call_ns: int
    return_ns: int
    needs: Hashable
    """The state before it; _NOTHING: any."""
    forbids: Hashable
    """What the state before it is not: `old` of a cas that is known to have missed."""
    sets: Hashable
    """The state after it; _NOTHING: as before."""

    def may_follow(self, state: Hashable) -> bool:
        return self.forbids != state and (self.needs is _NOTHING or self.needs == state)


class _Node(NamedTuple):
    """What was linearized so far: bits of known and of unknown operations; and the state then."""

    done: int
    used: int
    state: Hashable


class _RegisterSearch:
    """The search for a register; exact, by these rules.

    1. A known operation that sets nothing (a read, a cas that missed) is linearized as soon as it
       may come next and the state allows it: moved to there from later in any linearization, it
       takes nothing from the others.
    2. An unknown operation is linearized only where it sets another state, and some operation that
       may come next asks about it: one that needs that state, or a cas that missed and could not
       have in the state before. In any other place the next operation to ask comes after a write,
       or none does, and leaving the unknown operation out changes nothing for anybody. Unknown
       reads are left out for the same reason.
    3. Of unknown operations with equal needs and effects the one called first is taken: in any
       linearization they can change places, for none of them has an end.
    4. A state is not left while a known operation left still needs it and none left can set it.
    5. Where one way failed, another to the same state and the same known operations fails if it
       used up at least the same unknown ones.
    """

    def __init__(self, history: Iterable[Operation], initial: Hashable) -> None:
        ordered = sorted(history, key=lambda operation: operation.call_ns)
        asked = {o.result for o in ordered if o.argument[0] == "read" and o.known}
        asked |= {o.argument[1] for o in ordered if o.argument[0] == "cas"}
        steps = [(o.known, _step(o, asked)) for o in ordered]
        self._known = [step for known, step in steps if known]
        self._unknown = [s for known, s in steps if not known and s.sets is not _NOTHING]
        self._initial = initial if initial in asked else _OTHER
        self._needing = _masks(self._known, lambda step: step.needs)
        self._setting = _masks(self._known, lambda step: step.sets)
        self._perhaps_setting = _masks(self._unknown, lambda step: step.sets)
        alike: dict[tuple[Hashable, Hashable], list[int]] = {}
        for index, step in enumerate(self._unknown):
            alike.setdefault((step.needs, step.sets), []).append(index)
        self._alike = list(alike.values())

    def run(self, turn: int) -> Iterator[bool | None]:
        """Yield None each `turn` steps, and at the end whether the history is linearizable."""
        every = (1 << len(self._known)) - 1
        seen: dict[tuple[int, Hashable], list[int]] = {}
        stack = [_Node(0, 0, self._initial)]
        steps = 0
        while stack:
            steps += 1
            if steps >= turn:
                steps = 0
                yield None
            node, ready = self._observe(stack.pop())
            if node.done == every:
                yield True
                return
            ways = seen.setdefault((node.done, node.state), [])
            if any(way & ~node.used == 0 for way in ways):
                continue
            ways.append(node.used)
            after = [one for one in self._successors(node, ready) if not self._lost(node, one)]
            steps += len(after)
            stack.extend(reversed(after))
        yield False

    def _observe(self, node: _Node) -> tuple[_Node, list[int]]:
        """Linearize what only asks and may (rule 1); return the known ones that may come next."""
        done, state = node.done, node.state
        while True:
            ready = _candidates(self._known, done)
            asking = [
                index
                for index in ready
                if self._known[index].sets is _NOTHING and self._known[index].may_follow(state)
            ]
            if not asking:
                return node._replace(done=done), ready
            done |= _mask(asking)

    def _successors(self, node: _Node, ready: list[int]) -> Iterator[_Node]:
        """Yield the nodes after one operation more, the likeliest first."""
        done, used, state = node
        for index in sorted(ready, key=lambda index: self._known[index].return_ns):
            step = self._known[index]
            if step.sets is not _NOTHING and step.may_follow(state):
                yield _Node(done | 1 << index, used, step.sets)
        latest_ns = min(self._known[index].return_ns for index in ready)
        free = self._free(used, latest_ns)
        wanted = {self._known[index].needs for index in ready}
        wanted |= {self._unknown[index].needs for index in free}
        missed = any(self._known[index].forbids == state for index in ready)
        for index in free:
            step = self._unknown[index]
            if step.may_follow(state) and step.sets != state and (missed or step.sets in wanted):
                yield _Node(done, used | 1 << index, step.sets)

    def _free(self, used: int, latest_ns: int) -> list[int]:
        """Return the unknown ones that were called by then, the first of those alike (rule 3)."""
        found = []
        for indexes in self._alike:
            index = next((index for index in indexes if not used >> index & 1), -1)
            if index >= 0 and self._unknown[index].call_ns <= latest_ns:
                found.append(index)
        return found

    def _lost(self, before: _Node, after: _Node) -> bool:
        """Whether a state was left that is needed again and nothing sets again (rule 4)."""
        state = before.state
        return (
            after.state != state
            and self._needing.get(state, 0) & ~after.done != 0
            and self._setting.get(state, 0) & ~after.done == 0
            and self._perhaps_setting.get(state, 0) & ~after.used == 0
        )


def _step(operation: Operation, asked: set[Hashable]) -> _Step:
    """Return what an operation of a `register` does; values outside of `asked` become one."""
    needs, forbids, sets = _NOTHING, _NOTHING, _NOTHING
    match operation.argument:
        case ("read",):
            needs = operation.result
        case ("write", value):
            sets = value
        case ("cas", old, _) if operation.known and not operation.result:
            forbids = old
        case ("cas", old, new):
            needs, sets = old, new
        case _:
            message = f"no operation of a register: {operation.argument}"
            raise AssertionError(message)
    if sets is not _NOTHING and sets not in asked:
        sets = _OTHER
    return _Step(operation.call_ns, operation.return_ns, needs, forbids, sets)


def _masks(steps: list[_Step], value: Callable[[_Step], Hashable]) -> dict[Hashable, int]:
    masks: dict[Hashable, int] = {}
    for index, step in enumerate(steps):
        masks[value(step)] = masks.get(value(step), 0) | 1 << index
    return masks


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

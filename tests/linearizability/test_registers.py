"""The search for registers: right on small random histories, and fast on long hard ones."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from nokv_model.checkers import Verdict, check, register
from nokv_model.history import FOREVER, Operation

SMALL = 6_000
HARD_STEPS = 200_000
"""A few per operation; the general search gives most of these histories up after 5,000,000."""


def plain(state: object, operation: Operation) -> object:
    """`register` in a wrapper, which `check` does not know: the general search is the oracle."""
    return register(state, operation)


def simulate(
    rng: random.Random, *, clients: int, calls: int, unknown: float, values: int | None
) -> list[Operation]:
    """Return a linearizable history of one register, initially 0, over integer time.

    Each client's operations take effect between call and return; an unknown one also long after
    its call, or never. `values` bounds the values written; None: all differ.
    """
    state: int = 0
    number = now = 0
    written = [0]
    found: list[Operation] = []
    idle = list(range(clients))
    open_: list[tuple[int, int, tuple[object, ...]]] = []  # process, call, argument
    late: list[tuple[object, ...]] = []
    ended: list[tuple[int, int, tuple[object, ...], object]] = []  # took effect, not returned yet

    def effect(argument: tuple[object, ...]) -> object:
        nonlocal state
        result, state_after = state, state
        if argument[0] == "write":
            state_after = argument[1]  # type: ignore[assignment]
        elif argument[0] == "cas":
            result = state == argument[1]
            state_after = argument[2] if result else state  # type: ignore[assignment]
        state = state_after
        return result

    while number < calls or open_ or ended:
        now += 1
        kind = rng.random()
        if idle and number < calls and kind < 0.4:
            process = idle.pop(rng.randrange(len(idle)))
            number += 1
            new = number if values is None else rng.randrange(values)
            old = state if rng.random() < 0.5 else rng.choice(written[-clients:])
            choices: list[tuple[object, ...]] = [("read",), ("write", new), ("cas", old, new)]
            argument = rng.choices(choices, [2, 1, 1])[0]
            written.append(new)
            open_.append((process, now, argument))
        elif open_ and kind < 0.7:
            process, call, argument = open_.pop(rng.randrange(len(open_)))
            if rng.random() < unknown:
                # Its client goes on under another number.
                found.append(Operation(process, call, FOREVER, argument, known=False))
                late.append(argument)
                idle.append(clients + number)
            else:
                ended.append((process, call, argument, effect(argument)))
        elif ended and kind < 0.97:
            process, call, argument, result = ended.pop(rng.randrange(len(ended)))
            found.append(Operation(process, call, now, argument, result))
            idle.append(process)
        elif late:
            argument = late.pop(rng.randrange(len(late)))
            if rng.random() < 0.7:
                effect(argument)
    return found


def corrupt(rng: random.Random, history: list[Operation]) -> None:
    """Change one result: a read finds another written value, a cas the contrary."""
    known = [i for i, o in enumerate(history) if o.known and o.argument[0] != "write"]
    if not known:
        return
    index = rng.choice(known)
    operation = history[index]
    result: object = not operation.result
    if operation.argument[0] == "read":
        result = rng.choice([o.argument[-1] for o in history if o.argument[0] != "read"] or [0])
    history[index] = msgspec.structs.replace(operation, result=result)


def test_it_agrees_with_the_general_search() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    verdicts: Counter[Verdict] = Counter()
    for _ in range(SMALL):
        history = simulate(
            rng,
            clients=rng.randint(2, 5),
            calls=rng.randint(2, 11),
            unknown=rng.choice([0.1, 0.3, 0.6]),
            values=rng.choice([2, 3, None]),
        )
        for _ in range(rng.choice([0, 1, 1, 2])):
            corrupt(rng, history)
        expected = check([history], 0, plain)
        assert check([history], 0, register) == expected, history
        verdicts[expected] += 1
    assert verdicts[Verdict.LINEARIZABLE] > SMALL // 8
    assert verdicts[Verdict.NOT_LINEARIZABLE] > SMALL // 8
    assert not verdicts[Verdict.UNKNOWN]


@pytest.mark.parametrize(("clients", "unknown"), [(12, 0.1), (12, 0.3), (20, 0.1)])
def test_long_histories_with_many_unknown_outcomes_are_decided(
    clients: int, unknown: float
) -> None:
    rng = random.Random(clients)
    parts = [
        simulate(rng, clients=clients, calls=2_000, unknown=unknown, values=None) for _ in range(3)
    ]
    assert sum(not one.known for part in parts for one in part) > 400
    assert check(parts, 0, register, steps=HARD_STEPS) == Verdict.LINEARIZABLE


def test_a_broken_long_history_is_decided() -> None:
    """The last read finds what was overwritten long before: all else has to be searched first."""
    history = simulate(random.Random(12), clients=12, calls=2_000, unknown=0.1, values=None)
    end_ns = max(o.return_ns for o in history if o.known) + 1
    first = next(o for o in history if o.known and o.argument[0] == "write")
    history += [
        Operation(10_001, end_ns, end_ns, ("write", -1), True),
        Operation(10_002, end_ns + 1, end_ns + 2, ("read",), first.argument[1]),
    ]
    assert check([history], 0, register, steps=HARD_STEPS) == Verdict.NOT_LINEARIZABLE

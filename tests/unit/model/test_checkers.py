"""Small histories with known verdicts, and the recorder."""

from __future__ import annotations

from itertools import count

import pytest

from nokv_model.checkers import ABSENT, Verdict, check, register, text
from nokv_model.history import FOREVER, Operation, Recorder, load, operations

LINEARIZABLE, NOT, UNKNOWN = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE, Verdict.UNKNOWN


def op(
    process: int, call: int, end: int, argument: tuple[object, ...], result: object = None
) -> Operation:
    known = end != FOREVER
    return Operation(process, call, end, argument, result, known)


def write(process: int, call: int, end: int, value: int) -> Operation:
    return op(process, call, end, ("write", value))


def read(process: int, call: int, end: int, value: object) -> Operation:
    return op(process, call, end, ("read",), value)


HISTORIES = {
    "nothing": ([], LINEARIZABLE),
    "a read of nothing": ([read(0, 1, 2, ABSENT)], LINEARIZABLE),
    "a read from nowhere": ([read(0, 1, 2, 7)], NOT),
    "a write is seen": ([write(0, 1, 2, 7), read(1, 3, 4, 7)], LINEARIZABLE),
    "a write is lost": ([write(0, 1, 2, 7), read(1, 3, 4, ABSENT)], NOT),
    "a concurrent write may be seen": ([write(0, 1, 9, 7), read(1, 2, 3, 7)], LINEARIZABLE),
    "or not yet": ([write(0, 1, 9, 7), read(1, 2, 3, ABSENT)], LINEARIZABLE),
    "but not seen and gone": (
        [write(0, 1, 9, 7), read(1, 2, 3, 7), read(1, 4, 5, ABSENT)],
        NOT,
    ),
    "equal times are concurrent": ([write(0, 1, 2, 7), read(1, 2, 3, ABSENT)], LINEARIZABLE),
    "an unknown write may be seen late": (
        [write(0, 1, FOREVER, 7), read(1, 5, 6, ABSENT), read(1, 7, 8, 7)],
        LINEARIZABLE,
    ),
    "or never": ([write(0, 1, FOREVER, 7), read(1, 5, 6, ABSENT)], LINEARIZABLE),
    "but once only": (
        [
            write(0, 1, FOREVER, 7),
            read(1, 5, 6, 7),
            write(1, 7, 8, 9),
            read(1, 9, 10, 9),
            read(1, 11, 12, 7),
        ],
        NOT,
    ),
    "a compare that found": (
        [write(0, 1, 2, 1), op(0, 3, 4, ("cas", 1, 2), True), read(0, 5, 6, 2)],
        LINEARIZABLE,
    ),
    "a compare that must have found": (
        [write(0, 1, 2, 1), op(0, 3, 4, ("cas", 1, 2), False)],
        NOT,
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_register(name: str) -> None:
    history, verdict = HISTORIES[name]
    assert check([history], ABSENT, register) == verdict


def test_text() -> None:
    history = [op(0, 1, 2, ("append", "a")), op(0, 3, 4, ("append", "b"))]
    assert check([[*history, op(1, 5, 6, ("get",), "ab")]], "", text) == LINEARIZABLE
    assert check([[*history, op(1, 5, 6, ("get",), "ba")]], "", text) == NOT


def test_one_bad_part_is_found_beside_a_hard_one() -> None:
    """Parts take turns: the hard one alone would use up the budget."""
    hard = [write(n, 0, 100, n) for n in range(20)] + [read(30, 200, 201, 99)]
    bad = [read(0, 1, 2, 7)]
    assert check([hard, bad], ABSENT, register, steps=200_000, turn=1_000) == NOT
    assert check([hard], ABSENT, register, steps=20_000, turn=1_000) == UNKNOWN


def test_recorder() -> None:
    ticks = count(1)
    recorder = Recorder(lambda: next(ticks))
    recorder.invoke(0, ("write", 1))
    recorder.invoke(1, ("write", 2))
    recorder.ok(0, None)
    recorder.invoke(0, ("write", 3))
    recorder.fail(0)
    recorder.unknown(1)
    lines = load(recorder.dump())
    assert [line.kind for line in lines] == ["invoke", "invoke", "ok", "invoke", "fail", "unknown"]
    found = list(operations(lines))
    assert [(o.process, o.call_ns, o.return_ns, o.known) for o in found] == [
        (0, 1, 3, True),
        (1, 2, FOREVER, False),
    ]


def test_a_process_does_one_thing_at_a_time() -> None:
    recorder = Recorder(lambda: 0)
    recorder.invoke(0, ("read",))
    with pytest.raises(AssertionError, match="under way"):
        recorder.invoke(0, ("read",))
    recorder.unknown(0)
    with pytest.raises(AssertionError, match="under way"):
        recorder.invoke(0, ("read",))

"""Orders for the collector: taken once, told as finished once, and only by who took them."""

from __future__ import annotations

import pytest

from nokv.cli.gc import reason_text
from nokv.server.gc_desk import BUSY_PER_S, GcDesk
from nokv.types.gc import GcTotals, Reason, Why
from nokv.wire.rpc import ReportGc


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_run_is_ordered_taken_and_finished(clock: Clock) -> None:
    desk = GcDesk(5, clock)
    assert desk.status(0).reported_ms == -1
    orders = desk.report(ReportGc(GcTotals(), 0, 0), leads=True, commands=0)
    assert (orders.run, orders.leads) == (0, True)
    desk.order()
    desk.order()
    orders = desk.report(ReportGc(GcTotals(), 0, 0), leads=True, commands=0)
    assert orders.run == 2
    assert desk.status(0).finished == 0
    clock.now_s += 1.5
    done = ReportGc(GcTotals(rows=7), orders.office, 2, "why")
    desk.report(done, leads=True, commands=0)
    clock.now_s += 0.25
    status = desk.status(9)
    assert (status.ordered, status.finished, status.error) == (2, 2, "why")
    assert (status.totals.rows, status.reaped, status.reported_ms, status.grace_ns) == (
        7,
        9,
        250,
        5,
    )


def test_what_the_worker_tells_of_an_adoption_stands_until_it_tells_otherwise(clock: Clock) -> None:
    desk = GcDesk(5, clock)
    assert desk.gone == ""
    desk.report(ReportGc(GcTotals(), 0, 0, gone="c2 has it"), leads=False, commands=0)
    assert desk.gone == "c2 has it"
    desk.report(ReportGc(GcTotals(), 0, 0), leads=False, commands=0)
    assert desk.gone == "c2 has it", "a worker that was started again and has not looked yet"
    desk.report(ReportGc(GcTotals(), 0, 0, gone=""), leads=False, commands=0)
    assert desk.gone == ""


def test_what_another_process_ordered_finishes_nothing_here(clock: Clock) -> None:
    before, desk = GcDesk(5, clock), GcDesk(5, clock)
    before.order()
    old = before.report(ReportGc(GcTotals(), 0, 0), leads=True, commands=0)
    desk.order()
    orders = desk.report(ReportGc(GcTotals(), old.office, 1), leads=True, commands=0)
    assert orders.office != old.office
    assert desk.status(0).finished == 0
    desk.report(ReportGc(GcTotals(), orders.office, 2), leads=True, commands=0)
    assert desk.status(0).finished == 0, "a run that was never ordered"


def test_the_worker_is_told_when_it_is_not_alone(clock: Clock) -> None:
    desk = GcDesk(5, clock)
    report = ReportGc(GcTotals(), 0, 0)
    assert not desk.report(report, leads=True, commands=10**6).busy, "no time was measured yet"
    clock.now_s += 0.5
    assert not desk.report(report, leads=True, commands=10**6 + BUSY_PER_S // 2).busy
    clock.now_s += 0.5
    assert desk.report(report, leads=True, commands=10**6 + 2 * BUSY_PER_S).busy


@pytest.mark.parametrize("why", [*Why, 999])
def test_every_reason_has_words(why: int) -> None:
    text = reason_text(Reason(why, 3, 5, "name"), 1)
    assert text
    assert ("name" in text) == (why in (Why.SNAPSHOT, Why.BACKUP))

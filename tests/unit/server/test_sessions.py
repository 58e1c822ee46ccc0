"""The leader's ages of sessions, under a clock that the test holds."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nokv.server.sessions import SessionAges

S = 1_000_000_000
ALL = 1_000


def overdue_twice(ages: SessionAges, now_ns: int) -> list[int]:
    assert ages.take_overdue(now_ns, ALL) == []
    return ages.take_overdue(now_ns, ALL)


def test_a_session_ends_after_a_full_time_to_live_of_silence() -> None:
    ages = SessionAges([])
    ages.take_office(0)
    ages.opened(7, 10 * S, 5 * S)
    assert overdue_twice(ages, 15 * S) == []
    assert overdue_twice(ages, 15 * S + 1) == [7]
    assert ages.is_ending(7)


def test_a_renewal_starts_the_time_anew() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    assert ages.renew(7, 9 * S)
    assert overdue_twice(ages, 19 * S) == []
    assert overdue_twice(ages, 20 * S) == [7]


def test_a_renewal_between_the_two_looks_saves_the_session() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    assert ages.take_overdue(11 * S, ALL) == []
    assert ages.renew(7, 11 * S)
    assert ages.take_overdue(11 * S, ALL) == []


def test_no_renewal_is_answered_once_the_end_is_proposed() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    assert overdue_twice(ages, 11 * S) == [7]
    assert not ages.renew(7, 11 * S)
    ages.proposal_failed(7)
    assert ages.renew(7, 11 * S)


def test_an_opening_that_repeats_does_not_save_what_is_ending() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    assert overdue_twice(ages, 11 * S) == [7]
    ages.opened(7, 10 * S, 11 * S)
    assert not ages.renew(7, 11 * S)


def test_whoever_was_not_heard_counts_from_taking_office() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    assert overdue_twice(ages, 11 * S) == [7]
    ages.take_office(12 * S)
    assert ages.renew(7, 12 * S)
    assert overdue_twice(ages, 22 * S) == []


def test_unknown_and_dead_sessions_are_not_renewed() -> None:
    ages = SessionAges([(7, 10 * S)])
    ages.take_office(0)
    ages.ended(7)
    assert not ages.renew(7, S)
    assert not ages.renew(8, S)
    assert ages.live == 0
    assert overdue_twice(ages, 100 * S) == []


def test_the_number_of_endings_at_a_time_is_bounded() -> None:
    ages = SessionAges([(n, S) for n in range(1, 6)])
    ages.take_office(0)
    assert ages.take_overdue(2 * S, 2) == []
    assert ages.take_overdue(2 * S, 2) == [1, 2]
    assert ages.take_overdue(2 * S, 2) == [3, 4]
    assert ages.take_overdue(2 * S, 2) == [5]


class Ages(RuleBasedStateMachine):
    """No session ends that was heard of within its time to live, whatever happens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.ages = SessionAges([])
        self.now_ns = 0
        self.heard: dict[int, tuple[int, int]] = {}
        self.ending: set[int] = set()
        self.ages.take_office(0)

    @rule(session=st.integers(1, 4), ttl=st.integers(1, 5))
    def open(self, session: int, ttl: int) -> None:
        self.ages.opened(session, ttl * S, self.now_ns)
        self.heard[session] = (self.now_ns, ttl * S)

    @rule(session=st.integers(1, 4))
    def end(self, session: int) -> None:
        self.ages.ended(session)
        self.heard.pop(session, None)
        self.ending.discard(session)

    @rule(session=st.integers(1, 4))
    def renew(self, session: int) -> None:
        answered = self.ages.renew(session, self.now_ns)
        assert answered == (session in self.heard and session not in self.ending)
        if answered:
            self.heard[session] = (self.now_ns, self.heard[session][1])

    @rule(seconds=st.integers(0, 3))
    def pass_time(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @rule()
    def look(self) -> None:
        for session in self.ages.take_overdue(self.now_ns, ALL):
            heard_ns, ttl_ns = self.heard[session]
            assert self.now_ns - heard_ns > ttl_ns
            assert session not in self.ending
            self.ending.add(session)

    @rule()
    def take_office(self) -> None:
        self.ages.take_office(self.now_ns)
        self.heard = {s: (self.now_ns, ttl_ns) for s, (_, ttl_ns) in self.heard.items()}
        self.ending.clear()

    @invariant()
    def counts(self) -> None:
        assert self.ages.live == len(self.heard)


def test_a_state_that_came_as_a_whole_brings_its_sessions() -> None:
    ages = SessionAges([(1, S), (2, S)])
    ages.take_office(0)
    ages.reload([(2, 3 * S), (5, S)])
    assert ages.live == 2
    assert ages.ttl_ns(1) is None
    assert ages.ttl_ns(2) == 3 * S
    assert ages.take_overdue(100 * S, ALL) == ages.take_overdue(100 * S, ALL) == []
    ages.take_office(100 * S)
    assert ages.renew(5, 101 * S)
    assert not ages.renew(1, 101 * S)


TestAges = Ages.TestCase

"""One suite for every implementation of the ordered-KV port.

A rule machine writes, scans, commits and crashes; a plain dictionary, sorted when asked, is the
specification.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nokv.kv.digest import SCAN_END, combine, digest
from nokv.kv.lmdb_store import LmdbKV
from nokv.state.families import Family
from nokv.state.memory import MemoryKV
from nokv.state.port import KEY_BYTES_MAX

FAMILIES = (Family.META, Family.DENTRY, Family.EVENT)
ALPHABET = b"\x00\x01a\xfe\xff"

short_keys = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=4).map(bytes)
keys = short_keys | st.binary(min_size=1, max_size=24) | st.just(b"\xff" * KEY_BYTES_MAX)
bounds = st.just(b"") | keys | st.just(SCAN_END)
values = st.binary(max_size=40) | st.integers(0, 40_000).map(lambda size: b"v" * size)
families = st.sampled_from(FAMILIES)


class MemoryStore:
    def __init__(self) -> None:
        self.kv = MemoryKV()

    def crash(self) -> None:
        self.kv.crash()

    def close(self) -> None:
        pass


class LmdbStore:
    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="nokv-kv-"))
        self.kv = LmdbKV(self._directory / "state")

    def crash(self) -> None:
        self.kv.close()
        self.kv = LmdbKV(self._directory / "state")

    def close(self) -> None:
        self.kv.close()
        shutil.rmtree(self._directory)


Rows = dict[bytes, bytes | None]
STORES: dict[str, Callable[[], Any]] = {"memory": MemoryStore, "lmdb": LmdbStore}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = STORES[request.param]()
    yield made
    made.close()


class Conformance(RuleBasedStateMachine):
    """The port beside a model: families of a dictionary, and a copy of it at the last commit."""

    make: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).make()
        self.model: dict[Family, dict[bytes, bytes]] = {family: {} for family in FAMILIES}
        self.committed = {family: dict(rows) for family, rows in self.model.items()}

    @rule(family=families, items=st.dictionaries(keys, values | st.none(), max_size=12))
    def write(self, family: Family, items: Rows) -> None:
        self.store.kv.write(family, items.items())
        for key, value in items.items():
            if value is None:
                self.model[family].pop(key, None)
            else:
                self.model[family][key] = value

    @rule(family=families, prefix=short_keys, count=st.integers(1, 300), size=st.integers(0, 300))
    def write_many(self, family: Family, prefix: bytes, count: int, size: int) -> None:
        items = {prefix + b"%04d" % number: b"m" * size for number in range(count)}
        self.store.kv.write(family, sorted(items.items()))
        self.model[family].update(items)

    @rule(family=families, start=bounds, end=bounds)
    def delete_range(self, family: Family, start: bytes, end: bytes) -> None:
        doomed = [key for key, _ in self.store.kv.scan(family, start, end)]
        self.store.kv.write(family, [(key, None) for key in doomed])
        for key in doomed:
            del self.model[family][key]

    @rule(family=families, key=keys)
    def get(self, family: Family, key: bytes) -> None:
        assert self.store.kv.get(family, key) == self.model[family].get(key)

    @rule(family=families, start=bounds, end=bounds, reverse=st.booleans())
    def scan(self, family: Family, start: bytes, end: bytes, reverse: bool) -> None:
        expected = sorted(
            (item for item in self.model[family].items() if start <= item[0] < end),
            reverse=reverse,
        )
        assert list(self.store.kv.scan(family, start, end, reverse=reverse)) == expected

    @rule(family=families, start=bounds, count=st.integers(0, 3), reverse=st.booleans())
    def scan_a_few(self, family: Family, start: bytes, count: int, reverse: bool) -> None:
        """A page: the iterator is dropped before its end."""
        low, high = (b"", start) if reverse else (start, SCAN_END)
        found = self.store.kv.scan(family, low, high, reverse=reverse)
        page = [item for item, _ in zip(found, range(count), strict=False)]
        expected = sorted(
            (item for item in self.model[family].items() if low <= item[0] < high),
            reverse=reverse,
        )
        assert page == expected[:count]

    @rule()
    def commit(self) -> None:
        self.store.kv.commit()
        self.committed = {family: dict(rows) for family, rows in self.model.items()}

    @rule()
    def crash(self) -> None:
        self.store.crash()
        self.model = {family: dict(rows) for family, rows in self.committed.items()}

    @invariant()
    def whole_content(self) -> None:
        for family, rows in self.model.items():
            assert list(self.store.kv.scan(family, b"", SCAN_END)) == sorted(rows.items())

    def teardown(self) -> None:
        self.store.close()


@pytest.mark.parametrize(("name", "examples"), [("memory", 100), ("lmdb", 25)])
def test_behaves_like_the_model(name: str, examples: int) -> None:
    class Machine(Conformance):
        make = STORES[name]

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_scan_sees_writes_of_the_open_transaction(store: Any) -> None:
    store.kv.write(Family.INODE, [(b"b", b"2")])
    store.kv.commit()
    store.kv.write(Family.INODE, [(b"a", b"1"), (b"b", None), (b"c", b"")])
    assert list(store.kv.scan(Family.INODE, b"", SCAN_END)) == [(b"a", b"1"), (b"c", b"")]
    assert list(store.kv.scan(Family.INODE, b"c", b"a")) == []
    assert list(store.kv.scan(Family.INODE, b"a", b"a", reverse=True)) == []
    assert store.kv.get(Family.DENTRY, b"a") is None


def test_families_do_not_share_keys(store: Any) -> None:
    for family in Family:
        store.kv.write(family, [(b"key", b"%d" % family)])
    assert [store.kv.get(family, b"key") for family in Family] == [b"%d" % f for f in Family]


def test_deleting_what_is_absent_is_no_error(store: Any) -> None:
    store.kv.write(Family.PIN, [(b"never", None)])
    store.kv.commit()
    assert store.kv.get(Family.PIN, b"never") is None


@pytest.mark.parametrize("key", [b"", b"k" * (KEY_BYTES_MAX + 1)])
def test_a_key_out_of_bounds_is_an_assertion(store: Any, key: bytes) -> None:
    with pytest.raises(AssertionError):
        store.kv.write(Family.INODE, [(key, b"value")])


@pytest.mark.parametrize("step", ["write", "commit"])
def test_an_old_iterator_is_refused(store: Any, step: str) -> None:
    store.kv.write(Family.INODE, [(b"%d" % number, b"") for number in range(4)])
    found = store.kv.scan(Family.INODE, b"", SCAN_END)
    next(found)
    store.kv.write(Family.DENTRY, [(b"x", b"")]) if step == "write" else store.kv.commit()
    with pytest.raises(AssertionError, match="scan was used after"):
        next(found)


def test_implementations_agree_on_the_digest() -> None:
    stores = [make() for make in STORES.values()]
    try:
        for one in stores:
            for family in Family:
                one.kv.write(family, [(b"%d" % number, b"v" * number) for number in range(200)])
                one.kv.write(family, [(b"%d" % number, None) for number in range(0, 200, 3)])
            one.kv.commit()
        assert len({combine(digest(one.kv)) for one in stores}) == 1
    finally:
        for one in stores:
            one.close()

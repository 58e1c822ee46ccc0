"""Views at the level of records: what a chain of origins shows, against copies of dictionaries."""

from __future__ import annotations

from random import Random

import pytest

from nokv.state import keys
from nokv.state.branches import PRESENT, page_at
from nokv.state.families import Family
from nokv.state.memory import MemoryKV
from nokv.state.pinned import PinnedSource
from nokv.state.records import Counters, Pin, View, body_of
from nokv.state.txn import Txn

NAMES = [bytes([letter]) for letter in b"abcdef"]
DIRECTORY = 7


class World:
    """A transaction over views of one directory, and what each of them ought to show."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.txn = Txn(MemoryKV(), Counters())
        self.live: dict[int, dict[bytes, bytes]] = {0: {}}
        self.pinned: dict[tuple[int, int], dict[bytes, bytes]] = {}
        self.txn.begin()
        self.txn.set_view(0, View(1, self.txn.version))
        self.txn.merge()

    def step(self) -> None:
        """Do one random command, perhaps in vain, and perhaps end the entry."""
        choice = self.random.random()
        self.txn.begin()
        if choice < 0.12:
            self._clone()
        elif choice < 0.2:
            self._pin()
        else:
            self._write()
        if self.random.random() < 0.3:
            self.txn.flush()

    def _write(self) -> None:
        view, name = self.random.choice(list(self.live)), self.random.choice(NAMES)
        key = keys.dentry(view, DIRECTORY, name)
        body = b"%d" % self.txn.version
        keeps, aborts = self.random.random() < 0.6, self.random.random() < 0.15
        if keeps:
            self.txn.put(Family.DENTRY, key, body)
        else:
            self.txn.delete(Family.DENTRY, key)
        if aborts:
            self.txn.abort()
            return
        self.txn.merge()
        if keeps:
            self.live[view][name] = body
        else:
            self.live[view].pop(name, None)

    def _pin(self) -> None:
        view = self.random.choice(list(self.live))
        version = self.txn.version - 1
        self._hold(view, version)
        self.txn.merge()
        self.pinned[view, version] = dict(self.live[view])

    def _hold(self, view: int, version: int) -> None:
        self.txn.put_pin(view, version, self.txn.version, Pin(0))

    def _clone(self) -> None:
        new = len(self.live)
        if self.pinned and self.random.random() < 0.4:
            origin, version = self.random.choice(list(self.pinned))
            shown = self.pinned[origin, version]
        else:
            origin, version = self.random.choice(list(self.live)), self.txn.version - 1
            shown = self.live[origin]
        self._hold(origin, version)
        self.txn.set_view(new, View(1, self.txn.version, origin, version))
        if self.random.random() < 0.2:
            self.txn.abort()
            return
        self.txn.merge()
        self.live[new] = dict(shown)
        self.pinned[origin, version] = dict(shown)

    def check(self) -> None:
        """Compare gets, scans both ways and pages of every view, now and at every pin."""
        self.txn.flush()
        for view, shown in self.live.items():
            self._compare(view, PRESENT, shown)
        for (view, version), shown in self.pinned.items():
            self._compare(view, version, shown)

    def _compare(self, view: int, version: int, shown: dict[bytes, bytes]) -> None:
        present = self.txn.present
        source = present if version == PRESENT else PinnedSource(present, version)
        prefix = keys.inode(view, DIRECTORY)
        end = keys.after_prefix(prefix)
        expected = sorted(shown.items())
        for sources in (source, self.txn) if version == PRESENT else (source,):
            rows = sources.scan(Family.DENTRY, prefix, end)
            assert [(key[16:], body_of(value)) for key, value in rows] == expected
            rows = sources.scan(Family.DENTRY, prefix, end, reverse=True)
            assert [(key[16:], body_of(value)) for key, value in rows] == expected[::-1]
            for name in NAMES:
                value = sources.get(Family.DENTRY, prefix + name)
                assert (None if value is None else body_of(value)) == shown.get(name)
        found, after = [], b""
        for _ in range(100):
            rows_of_page, cut = page_at(
                present, Family.DENTRY, prefix, after, self.random.randint(1, 3), version
            )
            found += [(key[16:], body_of(value)) for key, value in rows_of_page]
            if cut is None:
                break
            assert cut[16:] > after
            after = cut[16:]
        assert found == expected


@pytest.mark.parametrize("seed", range(150))
def test_every_view_and_pin_shows_what_it_ought_to(seed: int) -> None:
    world = World(seed)
    for _ in range(60):
        world.step()
        if world.random.random() < 0.1:
            world.check()
    world.check()


def test_what_is_remembered_of_an_origin_goes_with_a_command_that_fails() -> None:
    """Its view's number is given to the next one, which has another origin."""
    world = World(0)
    key = keys.dentry(1, DIRECTORY, b"a")
    world.txn.begin()
    world.txn.put(Family.DENTRY, keys.dentry(0, DIRECTORY, b"a"), b"old")
    world.txn.merge()
    world.txn.begin()
    world.txn.set_view(1, View(1, world.txn.version, 0, world.txn.version - 1))
    assert world.txn.get(Family.DENTRY, key) is not None
    world.txn.abort()
    world.txn.begin()
    world.txn.set_view(1, View(1, world.txn.version, None))
    world.txn.merge()
    assert world.txn.get(Family.DENTRY, key) is None

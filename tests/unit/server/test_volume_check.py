"""The check of a serving volume: real state, real store; the image is that of the test's own KV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.state.bodies import DAY_NS, GRACE_NS, Files
from tests.unit.state.shard import VOLUME, at

from nokv.backup.epochs import tell_epoch
from nokv.backup.gone import state_gone
from nokv.client.core import Core
from nokv.errors import NotPermitted
from nokv.kv.lmdb_store import LmdbKV, LmdbReader
from nokv.objects.faults import flip_bit
from nokv.objects.layout import ObjectName, format_name, sums_of
from nokv.objects.memory import MemoryStore
from nokv.server import volume_check
from nokv.server.volume_check import Report, check_volume
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import Origin, Usage, encode
from nokv.types.commands import ExpireSession, SessionMarks, Swept, Unlink
from nokv.types.values import ChunkMap, Extent, ObjectPart


class Serving(Files):
    """A volume whose bodies are in a store, and its check."""

    def __init__(self, folder: Path) -> None:
        self.lmdb = LmdbKV(folder / "serving")
        super().__init__(self.lmdb)
        self.store = MemoryStore()
        self.folder = folder
        self.checks = 0
        self.images = 0
        self.before_image: list[Any] = []
        """Done, one each, before an image is made: what happens while the check runs."""

    def name(self, upload: int, session: int = 0) -> str:
        owner = session or self.session
        return format_name(ObjectName(VOLUME.volume, 0, owner, upload, 0, 0, 0))

    def put(self, upload: int, data: bytes = b"data", session: int = 0) -> str:
        name = self.name(upload, session)
        asyncio.run(self.store.put(name, data))
        return name

    def write(self, path: str, data: bytes) -> str:
        """Publish a file of one object, which is stored; return its name."""
        upload = self.upload()
        name = self.put(upload, data)
        part = ObjectPart(0, 0, 0, len(data), sums_of(data))
        chunk = ChunkMap(0, (part,), (Extent(0, len(data), 0, 0),))
        self.publish(path, chunk, upload=upload)
        return name

    def delete(self, name: str) -> None:
        asyncio.run(self.store.delete([name]))

    def run(self, *, deep: bool = False, repair: bool = False) -> Report:
        self.checks += 1
        folder = self.folder / f"check-{self.checks}"
        folder.mkdir()
        core = cast("Core", self)
        return asyncio.run(
            check_volume(core, self.store, folder, cluster="c1", deep=deep, repair=repair)
        )

    # What the check asks of its client.

    @property
    def volume(self) -> Any:
        return VOLUME


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    serving = Serving(tmp_path)

    @asynccontextmanager
    async def image(_core: Core, _path: Path) -> AsyncIterator[LmdbReader]:
        serving.images += 1
        if serving.before_image:
            await serving.before_image.pop(0)()
        serving.lmdb.commit()
        with serving.lmdb.open_reader() as reader:
            yield reader

    monkeypatch.setattr(volume_check, "_image", image)
    yield serving
    serving.lmdb.close()


def kinds(report: Report) -> dict[str, int]:
    return report.counts


def test_a_clean_volume(files: Serving) -> None:
    names = [files.write(f"f{n}", b"x" * (n + 1)) for n in range(20)]
    files.write("f3", b"replaced")
    for deep in (False, True):
        report = files.run(deep=deep)
        assert (report.damaged, kinds(report)) == (0, {})
        assert report.objects == report.listed == 21
        assert report.size_bytes == sum(range(1, 21)) + 8
        assert report.read == (21 if deep else 0)
    assert files.images == 2
    assert sorted(files.store.names) == sorted([*names, files.name(21)])


def test_what_is_missing_short_or_damaged_is_told_by_name(files: Serving) -> None:
    gone, short, damaged = (files.write(name, b"0123456789") for name in "abc")
    files.delete(gone)
    asyncio.run(files.store.put(short, b"0123"))
    asyncio.run(flip_bit(files.store, damaged, 3))
    shallow = files.run()
    assert kinds(shallow) == {"missing": 1, "length": 1}
    assert {finding.what for finding in shallow.findings} == {gone, short}
    deep = files.run(deep=True, repair=True)
    assert kinds(deep) == {"missing": 1, "length": 1, "corrupt": 1}
    assert deep.damaged == 3
    assert deep.repaired == 0


def test_what_the_collector_may_have_deleted_is_not_missing(files: Serving) -> None:
    name = files.write("f", b"old")
    files.do(Unlink(at(), b"f"))
    kept = files.run()
    assert (kept.damaged, kept.objects) == (0, 1)
    files.raise_floor()
    files.delete(name)
    assert files.run(deep=True).damaged == 0
    files.write("g", b"new")
    files.pin()
    files.do(Unlink(at(), b"g"))
    files.raise_floor()
    files.delete(files.name(2))
    assert kinds(files.run()) == {"missing": 1}, "a pin still shows it"


def test_a_body_that_is_published_while_the_check_runs_is_looked_for(files: Serving) -> None:
    async def publish() -> None:
        data, upload = b"late", files.upload()
        await files.store.put(files.name(upload), data)
        part = ObjectPart(0, 0, 0, len(data), sums_of(data))
        files.publish("late", ChunkMap(0, (part,), (Extent(0, 4, 0, 0),)), upload=upload)

    files.before_image.append(publish)
    report = files.run(deep=True)
    assert (report.damaged, report.listed, report.objects, report.read) == (0, 0, 1, 1)


def test_what_is_collected_while_the_check_runs_is_not_missing(files: Serving) -> None:
    name = files.write("f", b"old")
    files.do(Unlink(at(), b"f"))
    removed = files.store

    class Collecting(MemoryStore):
        async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            await self.delete([name])
            return await super().get(name, offset, length)

    collecting = Collecting()
    asyncio.run(collecting.put(name, b"old"))
    files.store = collecting

    async def nothing() -> None:
        return

    async def let_go() -> None:
        files.raise_floor()

    files.before_image += [nothing, let_go]
    assert files.run(deep=True).damaged == 0
    assert files.images == 2
    files.store = removed


def test_objects_that_nothing_names_are_judged_by_their_session_alone(files: Serving) -> None:
    first = files.upload(5)
    given_up, published, open_ = first, first + 1, first + 4
    files.put(given_up)
    files.put(open_)
    files.put(published)
    chunk = ChunkMap(0, (ObjectPart(0, 0, 0, 4, sums_of(b"data")),), (Extent(0, 4, 0, 0),))
    files.publish("f", chunk, upload=published)
    leaked = format_name(ObjectName(VOLUME.volume, 0, files.session, published, 0, 7, 0))
    asyncio.run(files.store.put(leaked, b"never named"))
    files.internal(SessionMarks((files.marks(1, watermark=first + 3),)))
    dead = files.open(b"\x07" * 16)
    late = files.upload(session=dead)
    files.internal(ExpireSession(dead))
    files.wait(DAY_NS)
    files.internal(Swept(dead, files.cluster_ns, GRACE_NS))
    files.put(late, session=dead)
    files.put(1, session=0xDEAD_0000_0001)
    shallow = files.run()
    assert (shallow.waiting, shallow.in_flight, shallow.unjudged) == (1, 1, 3)
    assert shallow.damaged == 0
    deep = files.run(deep=True)
    assert (deep.waiting, deep.in_flight, deep.unjudged) == (1, 1, 1)
    assert {finding.what for finding in deep.findings} == {leaked, files.name(late, dead)}
    assert deep.damaged == 2
    before = set(files.store.names)
    repaired = files.run(deep=True, repair=True)
    assert (repaired.damaged, repaired.repaired) == (0, 2)
    assert before - set(files.store.names) == {leaked, files.name(late, dead)}
    assert files.run(deep=True).damaged == 0


def test_a_restored_volume_repairs_nothing_before_it_is_adopted(files: Serving) -> None:
    files.write("f", b"data")
    stranger = files.put(9, session=0x1_0000_0099)
    origin = Origin("c", 1, (), 5, ready=True, epochs=(1,))
    files.lmdb.write(Family.META, [(keys.ORIGIN, encode(origin))])
    with pytest.raises(NotPermitted, match="not adopted"):
        files.run(deep=True, repair=True)
    report = files.run(deep=True)
    assert (report.unjudged, report.damaged) == (1, 0)
    adopted = Origin("c", 1, (), 5, ready=True, adopted=True, epochs=(1,))
    files.lmdb.write(Family.META, [(keys.ORIGIN, encode(adopted))])
    assert files.run(deep=True, repair=True).repaired == 1
    assert stranger not in files.store.names


@pytest.mark.parametrize("told", ["before", "after"])
def test_what_a_discarded_copy_stored_is_leaked_once_it_is_stated_to_be_gone(
    files: Serving, told: str
) -> None:
    own = files.write("f", b"data")
    theirs = files.put(1, session=0x0000_0009_0000_0007)
    others = files.put(1, session=0x0000_000A_0000_0007)
    origin = Origin("c1", 1, (), 5, ready=True, adopted=True, epochs=(2,))
    files.lmdb.write(Family.META, [(keys.ORIGIN, encode(origin))])
    asyncio.run(tell_epoch(files.store, VOLUME.volume, "d", 10))
    steps = [
        tell_epoch(files.store, VOLUME.volume, "b-1", 9),
        state_gone(files.store, VOLUME.volume, ["b-1"], "c1"),
    ]
    for step in steps if told == "before" else reversed(steps):
        report = files.run(deep=True, repair=True)
        assert (report.unjudged, report.damaged, report.repaired) == (2, 0, 0)
        asyncio.run(step)
    assert files.run().unjudged == 2
    report = files.run(deep=True, repair=True)
    assert (report.unjudged, report.damaged, report.repaired) == (1, 0, 1)
    # The other one may live: nobody said that it is gone.
    assert {own, others} <= {*files.store.names}
    assert theirs not in files.store.names


def test_no_volume_s_epochs_are_another_s(files: Serving) -> None:
    theirs = files.put(1, session=0x0000_0009_0000_0007)
    for name in (f"epochs/{'cd' * 16}/b-00000009.json", f"epochs/{VOLUME.volume}/b-9.json"):
        asyncio.run(files.store.put(name, b"{}"))
    asyncio.run(state_gone(files.store, VOLUME.volume, ["b"], "c1"))
    assert files.run(deep=True, repair=True).unjudged == 1
    assert theirs in files.store.names


@pytest.mark.parametrize(
    ("family", "key", "value", "what"),
    [
        (Family.USAGE, keys.inode(0, 1), bytes(7) + b"\x05" + encode(Usage(7, 7)), "usage"),
        (Family.INODE, keys.inode(0, 2), None, ""),
        (Family.INODE, keys.inode(0, 2), b"\x00" * 8 + b"\xff\xff", "records"),
        (Family.RECLAIM, b"\x00" * 40, b"", ""),
    ],
)
def test_damaged_metadata_is_told(
    files: Serving, family: Family, key: bytes, value: bytes | None, what: str
) -> None:
    files.write("f", b"data")
    files.lmdb.write(family, [(key, value)])
    report = files.run()
    told = [f"{f.what}: {f.detail}" for f in report.findings if f.kind == "metadata"]
    assert told
    assert any(what in one for one in told)

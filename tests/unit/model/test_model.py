"""The model by itself: examples that read like the rules of docs/namespace.md."""

from __future__ import annotations

import pytest

from nokv import errors
from nokv.types import commands as c
from nokv.types import reads as r
from nokv.types.limits import CHUNK_BYTES
from nokv.types.results import AtomicDone, Leased, Made, Pinned, Published, Result, SessionOpened
from nokv.types.values import At, Caller, ChunkMap, Extent, Lease, Marks, ObjectPart, Volume
from nokv_model.body import ObjectName, Run, cut, effective, merge
from nokv_model.model import Model
from nokv_model.reads import stored_chunks

ROOT, ALICE, BOB = Caller(), Caller(1, 1), Caller(2, 2)
HOUR_NS = 3_600_000_000_000
SESSION = 7 << 32 | 1


class Shard:
    """A model with one session, a command an entry."""

    def __init__(self) -> None:
        self.model = Model()
        self.seq = 0
        self.internal(c.InitVolume(Volume("0" * 32, "memory"), 7, 0o777))
        opened = self.internal(c.OpenSession(b"n" * 16, 1_000_000_000))
        assert opened.value == SessionOpened(SESSION, 1_000_000_000, 2)

    def _apply(self, command: c.Command, cluster_step: int) -> Result:
        model = self.model
        [result] = model.apply(model.wall_ns + 1, model.cluster_ns + cluster_step, [command])
        return result

    def internal(self, op: c.Op, cluster_step: int = 1) -> Result:
        """A command of the node itself."""
        return self._apply(c.Command(1, 0, 0, 0, ROOT, op), cluster_step)

    def send(self, op: c.Op, caller: Caller = ROOT, seq: int = 0) -> Result:
        """A command of the session."""
        self.seq += not seq
        return self._apply(c.Command(1, SESSION, seq or self.seq, 0, caller, op), 1)

    def do(self, op: c.Op, caller: Caller = ROOT) -> Result:
        """A command that succeeds."""
        result = self.send(op, caller)
        assert result.code == 0, errors.BY_CODE[result.code]
        return result

    def error(self, op: c.Op, caller: Caller = ROOT) -> type[errors.NokvError]:
        """The error of a command that fails."""
        return errors.BY_CODE[self.send(op, caller).code]

    def attr(self, *path: bytes) -> r.AttrReply:
        """What getattr answers."""
        reply = self.model.read(ROOT, r.GetAttr(At(path=path)))
        assert isinstance(reply, r.AttrReply)
        return reply


def body() -> ChunkMap:
    """One object in chunk 0."""
    return ChunkMap(0, (ObjectPart(0, 0, 0, 8, b"s" * 8),), (Extent(0, 8, 0),))


def publish(name: bytes, upload: int, mode: int = c.PublishMode.REPLACE) -> c.Publish:
    """Eight bytes in one object."""
    return c.Publish(At(), name, int(mode), 0o666, 8, upload, (body(),))


def test_an_atomic_uses_a_version_for_each_operation_also_when_it_fails() -> None:
    shard = Shard()
    done = shard.do(c.Atomic((c.Mkdir(At(), b"a", 0o755), c.Create(At(path=(b"a",)), b"f", 0o644))))
    assert isinstance(done.value, AtomicDone)
    assert (done.version, done.value.first_version) == (4, 3)
    failed = shard.send(c.Atomic((c.Create(At(), b"b", 0o644), c.Mkdir(At(), b"a", 0o755))))
    assert (failed.version, failed.code) == (6, errors.AlreadyExists.code)
    assert list(shard.model.state.forest.inodes[0, 1].entries) == [b"a"]
    made = shard.do(c.Create(At(), b"b", 0o644)).value
    assert isinstance(made, Made)
    assert (made.attr.inode, made.attr.version) == (4, 7)


def test_a_retry_answers_the_first_result() -> None:
    shard = Shard()
    first = shard.do(c.Mkdir(At(), b"a", 0o755))
    shard.do(c.Rmdir(At(), b"a"))
    assert shard.send(c.Mkdir(At(), b"a", 0o755), seq=1) == first
    shard.internal(c.ExpireSession(SESSION))
    assert shard.send(c.Mkdir(At(), b"a", 0o755), seq=1) == first
    assert shard.error(c.Mkdir(At(), b"a", 0o755)) is errors.SessionExpired


def test_only_owners_take_names_out_of_a_sticky_directory() -> None:
    shard = Shard()
    shard.do(c.Mkdir(At(), b"tmp", 0o1777))
    shard.do(c.Create(At(path=(b"tmp",)), b"f", 0o666), ALICE)
    assert shard.error(c.Unlink(At(path=(b"tmp",)), b"f"), BOB) is errors.NotPermitted
    shard.do(c.Unlink(At(path=(b"tmp",)), b"f"), ALICE)


def test_a_directory_never_moves_below_itself() -> None:
    shard = Shard()
    shard.do(c.Mkdir(At(), b"a", 0o755))
    shard.do(c.Mkdir(At(path=(b"a",)), b"b", 0o755))
    below = At(path=(b"a", b"b"))
    assert shard.error(c.Rename(At(), b"a", below, b"a")) is errors.InvalidArgument
    assert shard.error(c.Rename(At(path=(b"a",)), b"b", At(), b"a")) is errors.NotEmpty


def test_symbolic_links_end() -> None:
    shard = Shard()
    shard.do(c.Symlink(At(), b"l", b"l"))
    with pytest.raises(errors.TooManyLinks):
        shard.attr(b"l")


def test_what_was_cut_off_never_comes_back() -> None:
    shard = Shard()
    shard.do(c.LeaseUploads(2))
    shard.do(publish(b"f", 1))
    shard.do(c.SetAttr(At(path=(b"f",)), size=3))
    shard.do(c.SetAttr(At(path=(b"f",)), size=8))
    [inode] = [i for i in shard.model.state.forest.inodes.values() if i.is_regular]
    assert [(run.offset, run.length) for run in inode.content] == [(0, 3)]
    shard.do(c.SetAttr(At(path=(b"f",)), size=0))
    assert shard.attr(b"f").attr.body == 0


def test_an_append_crosses_a_chunk() -> None:
    shard = Shard()
    shard.do(c.LeaseUploads(2))
    shard.do(c.Create(At(), b"f", 0o666))
    shard.do(c.SetAttr(At(path=(b"f",)), size=CHUNK_BYTES - 3))
    done = shard.do(publish(b"f", 1, c.PublishMode.APPEND)).value
    assert isinstance(done, Published)
    assert (done.offset, done.size) == (CHUNK_BYTES - 3, CHUNK_BYTES + 5)
    inode = shard.model.state.forest.inodes[0, 2]
    assert [(run.offset, run.length, run.object_offset) for run in inode.content] == [
        (CHUNK_BYTES - 3, 3, 0),
        (CHUNK_BYTES, 5, 3),
    ]


def test_a_pin_shows_what_was_before_it() -> None:
    shard = Shard()
    shard.do(c.Create(At(), b"f", 0o666))
    pinned = shard.do(c.PinView(0)).value
    assert isinstance(pinned, Pinned)
    shard.do(c.Unlink(At(), b"f"))
    read = r.ReadDir(At(), at_version=pinned.version)
    page = shard.model.read(ROOT, read)
    assert isinstance(page, r.DirPage)
    assert [entry.name for entry in page.entries] == [b"f"]
    shard.do(c.UnpinView(0, pinned.version, pinned.pin))
    with pytest.raises(errors.VersionNotPinned):
        shard.model.read(ROOT, read)


def test_objects_are_held_by_pins_leases_floors_and_the_grace() -> None:
    shard = Shard()
    state = shard.model.state
    assert shard.do(c.LeaseUploads(3)).value == Leased(1, 3)
    shard.do(publish(b"f", 1))
    first = ObjectName(SESSION, 1, 0, 0, 0)
    lease = Lease(0, 2, 1, shard.model.version)
    shard.internal(c.SessionMarks((Marks(SESSION, 1, 0, 1, (lease,)),)))
    shard.do(publish(b"f", 2))
    state = shard.model.state
    assert state.named_objects(shard.model.cluster_ns) == {first, ObjectName(SESSION, 2, 0, 0, 0)}
    shard.internal(c.SessionMarks((Marks(SESSION, 2, 2**62, 1, ()),)))
    state, now = shard.model.state, shard.model.cluster_ns
    assert first not in state.named_objects(shard.model.cluster_ns)
    assert state.droppable(now, HOUR_NS) == set()
    assert state.droppable(now + HOUR_NS, HOUR_NS) == {first}


def test_a_staged_tree_enters_by_one_command() -> None:
    shard = Shard()
    staged = shard.do(c.StageBegin(0, 0o040755)).value
    assert isinstance(staged, Made)
    shard.do(c.Mkdir(At(inode=staged.attr.inode), b"d", 0o755))
    with pytest.raises(errors.Stale):
        shard.model.read(ROOT, r.GetAttr(At(inode=staged.attr.inode)))
    inside = At(inode=staged.attr.inode, path=(b"d",))
    swap = c.StageSwap(0, staged.attr.inode, At(), b"x", 0)
    assert shard.error(c.StageSwap(0, staged.attr.inode, inside, b"x", 0)) is errors.CrossesView
    shard.do(swap)
    assert shard.model.read(ROOT, r.GetUsage(At())) == r.UsageReply(2, 0)
    assert shard.error(swap) is errors.Stale


def test_runs() -> None:
    name = ObjectName(1, 1, 0, 0, 0)
    whole = Run(0, 10, name, 0, b"")
    assert cut((whole,), 3, 5) == (Run(0, 3, name, 0, b""), Run(5, 5, name, 5, b""))
    patched = merge((whole,), (Run(3, 2, None, 0, b"xy"),))
    assert [run.offset for run in patched] == [0, 3, 5]
    assert effective(merge(patched, (Run(3, 2, name, 3, b""),))) == (whole,)
    assert stored_chunks(Shard().model.state, (), 0, 10) == ()

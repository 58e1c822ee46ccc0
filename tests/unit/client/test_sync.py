"""The synchronous client: the same names, from any thread, over a fork, as files."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import os
import random
import threading
import traceback
import zipfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.unit.client.loopback import ROOT, Cluster, cluster

import nokv
from nokv.client import AsyncClient, ClientConfig, PinnedView, SnapshotView
from nokv.client.readonly import CHANGES
from nokv.client.reads import ReadHandle
from nokv.client.sync import (
    Client,
    SyncPinnedView,
    SyncReadHandle,
    SyncSnapshots,
    SyncSnapshotView,
    SyncTrashCan,
    SyncWorkspaces,
    connect_sync,
)
from nokv.client.trash import TrashCan
from nokv.client.views import Snapshots, Workspaces
from nokv.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ObjectCorrupt,
    ReadOnly,
    Stale,
    Unavailable,
)
from nokv.objects.faults import flip_bit
from nokv.objects.memory import MemoryStore

T = TypeVar("T")


class Served:
    """A cluster whose event loop runs in a thread, as another process's would."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self._block = cluster()
        self.cluster: Cluster = self.run(self._block.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        self.run(self._block.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def connect(self) -> Client:
        config = ClientConfig(deadline_s=20.0)
        store = self.cluster.store
        return connect_sync(self.cluster.addresses, config=config, caller=ROOT, store=store)


@pytest.fixture
def served() -> Iterator[Served]:
    running = Served()
    yield running
    running.stop()


@pytest.fixture
def fs(served: Served) -> Iterator[Client]:
    with served.connect() as client:
        yield client


def noise(n_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def test_the_same_names() -> None:
    def names(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert names(ReadHandle) == names(SyncReadHandle)
    # What an administration tool builds on belongs to the loop of its owner.
    assert names(AsyncClient) - {"core"} == names(Client)
    assert names(PinnedView) == names(SyncPinnedView)
    assert names(SnapshotView) == names(SyncSnapshotView)
    assert names(Snapshots) == names(SyncSnapshots)
    assert names(Workspaces) == names(SyncWorkspaces)
    assert names(TrashCan) == names(SyncTrashCan)
    changes = names(AsyncClient) - names(ReadHandle)
    changes -= {"core", "close", "session_id", "pinned", "at", "quota", "snapshots", "workspaces"}
    changes -= {"trash", "diff", "history"}
    assert changes == set(CHANGES)
    for name in names(AsyncClient) - {
        "core",
        "open",
        "pinned",
        "volume",
        "within",
        "reading_from",
        "stale",
        "at",
        "snapshots",
        "workspaces",
        "trash",
    }:
        one, other = getattr(AsyncClient, name), getattr(Client, name)
        assert inspect.signature(one).parameters == inspect.signature(other).parameters or (
            name == "close"
        )
        assert one.__doc__


def test_the_package_exports() -> None:
    for name in nokv.__all__:
        assert getattr(nokv, name) is not None
    with pytest.raises(AttributeError):
        nokv.nothing  # noqa: B018


def test_everyday_work(fs: Client, tmp_path: Path) -> None:
    fs.mkdir("/d/e", parents=True)
    info = fs.put("/d/f", noise(9_000_000))
    assert fs.stat("/d/f").generation == info.generation
    assert fs.read("/d/f", 5, 10) == noise(9_000_000)[5:15]
    assert fs.listdir("/d") == ["e", "f"]
    assert [entry.path for entry in fs.scandir("/d")] == ["/d/e", "/d/f"]
    assert [path for path, _, _ in fs.walk("/")] == ["/", "/d", "/d/e"]
    assert list(fs.glob("/*/f")) == ["/d/f"]
    assert [event.name for event in fs.events()] == [b"d", b"e", b"f"]
    done = fs.publish("/set", {"a": b"1", "b": b"2"})
    assert done.files["a"].size == 1
    with pytest.raises(AlreadyExists):
        fs.mkdir("/d")
    with pytest.raises(FileNotFoundError):
        fs.stat("/gone")
    fs.get_file("/d/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == noise(9_000_000)
    with fs.pinned() as view:
        fs.unlink("/d/f")
        assert view.exists("/d/f")
        assert not fs.exists("/d/f")
        assert view.version > 0
    assert fs.reading_from(2).within(3.0).exists("/set")
    assert fs.volume.kind == "memory"


def test_iterators_cross_their_batches(fs: Client) -> None:
    names = [f"{number:05}" for number in range(1000)]
    fs.bulk_create("/", names)
    assert [entry.name for entry in fs.scandir("/")] == names
    first = next(iter(fs.scandir("/")))
    assert first.name == names[0]
    with pytest.raises(NotFound):
        list(fs.scandir("/gone"))


def test_threads(fs: Client) -> None:
    def work(number: int) -> bytes:
        fs.put(f"/{number}", noise(20_000, number))
        with fs.open(f"/{number}") as file:
            return bytes(file.read())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [noise(20_000, n) for n in range(40)]
    assert len(fs.listdir("/")) == 40


def test_files_behave_like_files(fs: Client) -> None:
    data = b"".join(b"%d\n" % number for number in range(1_000_000))
    with fs.open("/f", "wb") as file:
        for at in range(0, len(data), 100_000):
            assert file.write(data[at : at + 100_000]) == min(100_000, len(data) - at)
        assert not fs.exists("/f")
    assert file.info.size == len(data)
    with fs.open("/f", "rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.read(10) == data[:10]
        assert file.seek(-7, io.SEEK_END) == len(data) - 7
        assert file.read() == data[-7:]
        assert file.seek(0) == 0
        buffer = bytearray(5000)
        assert file.readinto(buffer) == 5000
        assert bytes(buffer) == data[:5000]
        assert file.readline() == data[5000 : data.index(b"\n", 5000) + 1]
        assert file.raw.attr.size == len(data)
        assert file.name == "/f"
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with fs.open("/f", "rb", buffering=0) as raw:
        assert raw.read(3) == data[:3]
        assert raw.readall() == data[3:]
    with fs.open("/f", "r") as text:
        assert text.readline() == "0\n"
        assert len(text.readlines()) == 999_999
    with fs.open("/t", "w") as text:
        text.write("grüße\n")
    with fs.open("/t", "a") as text:
        print("more", file=text)
    assert fs.read_text("/t") == "grüße\nmore\n"
    with pytest.raises(InvalidArgument):
        fs.open("/f", "r", buffering=0)


def _fail_midway(fs: Client, mode: str) -> None:
    with fs.open("/f", mode) as file:
        file.write("x" if mode == "w" else noise(6_000_000))
        raise RuntimeError("midway")


def _lose_a_writer(fs: Client, mode: str) -> None:
    file = fs.open("/f", mode)
    file.write("x" if mode == "w" else noise(6_000_000))
    del file
    gc.collect()


def test_a_writer_that_fails_or_is_lost_publishes_nothing(fs: Client, served: Served) -> None:
    for mode in ("wb", "w"):
        with pytest.raises(RuntimeError, match="midway"):
            _fail_midway(fs, mode)
        with pytest.warns(ResourceWarning, match="/f was not closed: what was written is dropped"):
            _lose_a_writer(fs, mode)
    file = fs.open("/f", "wb")
    file.write(b"x")
    file.abort()
    file.close()
    assert not fs.exists("/f")
    fs.put("/after", noise(10_000))
    memory = served.cluster.store.inner
    assert isinstance(memory, MemoryStore)
    with fs.open("/f", "xb") as file:
        file.write(b"1")
    with pytest.raises(AlreadyExists), fs.open("/f", "xb") as file:
        file.write(b"2")
    assert fs.read("/f") == b"1"


def test_zipfile_and_safetensors(fs: Client, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    with fs.open("/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("one", noise(100_000))
        archive.writestr("two", b"2")
    with fs.open("/a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["one", "two"]
        assert archive.read("one") == noise(100_000)
    tensors = {"w": numpy.arange(1000.0), "b": numpy.ones((3, 4))}
    fs.put("/t.safetensors", safetensors.save(tensors))
    with fs.open("/t.safetensors") as file:
        loaded = safetensors.load(file.read())
    assert (loaded["w"] == tensors["w"]).all()
    fs.get_file("/t.safetensors", tmp_path / "t")
    assert (safetensors.load_file(tmp_path / "t")["b"] == tensors["b"]).all()


def test_a_flipped_bit_is_an_error_here_too(fs: Client, served: Served) -> None:
    fs.put("/f", noise(600_000))
    memory = served.cluster.store.inner
    assert isinstance(memory, MemoryStore)
    (name,) = [name for name in memory.names if name.startswith("blocks/")]
    served.run(flip_bit(memory, name, 300_000))
    with fs.open("/f", buffering=0) as raw:
        assert raw.read(1) == noise(600_000)[:1]  # its own 256 KiB are whole
    with pytest.raises(ObjectCorrupt, match=name):
        fs.read("/f")
    with fs.open("/f") as file, pytest.raises(ObjectCorrupt, match=name):
        file.read()


def test_after_close(served: Served) -> None:
    client = served.connect()
    client.mkdir("/a")
    client.close()
    client.close()
    with pytest.raises(Unavailable, match="closed"):
        client.stat("/a")


def test_a_call_from_the_clients_own_loop_is_refused(fs: Client) -> None:
    def progress(_: int) -> None:
        fs.stat("/")

    with pytest.raises(InvalidArgument, match="own event loop"):
        fs.put("/f", noise(100), progress=progress)


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(Unavailable):
        connect_sync("127.0.0.1:1", config=ClientConfig(deadline_s=0.2))
    assert not set(threading.enumerate()) - before  # one of another test may end meanwhile


def in_child(work: object) -> None:
    """Run `work` in a fork; fail with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()  # type: ignore[operator]
        except BaseException:  # noqa: BLE001  told to the parent
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert not said, said.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_connects_afresh(served: Served) -> None:
    client = served.connect()
    client.put("/f", noise(10_000))
    parent_session = client.session_id()
    file = client.open("/f", buffering=0)
    writer = client.open("/w", "wb")
    writer.write(b"parent")
    view = client.reading_from(2)

    def child() -> None:
        with pytest.raises(Stale, match="fork"):
            file.read(1)
        with pytest.raises(Stale, match="fork"):
            writer.write(b"child")
        assert view.read("/f") == noise(10_000)
        client.put("/child", noise(9_000, 2))
        assert client.session_id() != parent_session
        with client.open("/f") as mine:
            assert mine.read() == noise(10_000)
        del writer.__dict__["_file"]
        client.close()

    in_child(child)
    assert client.session_id() == parent_session
    assert file.read(10) == noise(10_000)[:10]
    writer.close()
    file.close()
    assert client.read("/w") == b"parent"
    assert client.listdir("/") == ["child", "f", "w"]
    client.close()


def test_snapshots_and_clones(fs: Client) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"old")
    fs.snapshots.create("/d", "s", ttl_s=60)
    fs.write_bytes("/d/f", b"new")
    old = fs.at("s")
    assert old.name == "s"
    assert old.info().path == b"/d"
    assert old.read("/d/f") == b"old"
    assert [entry.name for entry in old.within(5).scandir("/d")] == ["f"]
    with old.open("/d/f") as file:
        assert file.read() == b"old"
    with pytest.raises(ReadOnly):
        old.open("/d/f", "wb")
    for name in CHANGES:
        with pytest.raises(ReadOnly, match=name):
            getattr(old, name)("/d")
    fs.clone("/d", "/c", at="s")
    assert fs.read("/c/f") == b"old"
    undo = fs.rollback("/d", "s")
    assert fs.read("/d/f") == b"old"
    assert [row.name for row in fs.snapshots.list()] == [undo, "s"]
    fs.snapshots.renew("s", hold=True)
    assert fs.snapshots.get("s").left_s is None
    fs.snapshots.delete("s")
    fs.workspaces.create("/ws")
    assert [row.path for row in fs.workspaces.list() if row.path] == [b"/c", b"/d", b"/ws"]
    fs.workspaces.delete("/ws")
    with pytest.raises(NotFound):
        fs.stat("/ws")

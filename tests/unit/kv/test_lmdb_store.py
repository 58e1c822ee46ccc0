"""What LMDB adds to the port: durability, exclusivity, snapshots, sizes, and failing once."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from nokv.kv import lmdb_store
from nokv.kv.digest import SCAN_END, combine, digest
from nokv.kv.errors import StoreBusy, StoreDamaged, StoreFailed
from nokv.kv.lmdb_store import DIRTY_BYTES_MAX, LmdbKV, open_reader
from nokv.kv.reachable import missing_page
from nokv.state.families import Family


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def kv(path: Path) -> Iterator[LmdbKV]:
    opened = LmdbKV(path)
    yield opened
    opened.close()


def rows(count: int, size: int = 40) -> list[tuple[bytes, bytes]]:
    return [(b"%08d" % number, b"v" * size) for number in range(count)]


def in_another_process(code: str, *arguments: object) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


def test_only_commits_survive_a_reopening(path: Path) -> None:
    kv = LmdbKV(path)
    kv.write(Family.INODE, rows(100))
    kv.commit()
    kv.write(Family.INODE, [(b"lost", b"")])
    kv.close()
    again = LmdbKV(path)
    assert list(again.scan(Family.INODE, b"", SCAN_END)) == rows(100)
    again.close()


def test_a_second_process_is_refused(kv: LmdbKV, path: Path) -> None:
    code = (
        "import sys, pathlib; from nokv.kv.lmdb_store import LmdbKV; from nokv.kv.errors import *\n"
        "try: LmdbKV(pathlib.Path(sys.argv[1]))\n"
        "except StoreBusy as error: print(error.errno)"
    )
    assert in_another_process(code, path) == str(errno.EBUSY)
    kv.write(Family.INODE, rows(1))
    kv.commit()


def test_closing_lets_the_next_one_in(path: Path) -> None:
    LmdbKV(path).close()
    with pytest.raises(StoreFailed):
        LmdbKV(path / "no" / "parent")
    LmdbKV(path).close()


def test_an_interrupted_creation_is_done_again(path: Path) -> None:
    made = path.with_name("state.new")
    made.mkdir()
    (made / "data.mdb").write_bytes(b"half a page")
    kv = LmdbKV(path)
    kv.write(Family.INODE, rows(1))
    kv.commit()
    kv.close()
    assert not made.exists()


def test_a_directory_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(StoreDamaged, match=r"not a store.*A lost node") as caught:
        LmdbKV(tmp_path)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(StoreDamaged, match=r"not a store.*A lost node"):
        open_reader(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes"]


def test_a_damaged_or_foreign_file_is_refused(path: Path) -> None:
    path.mkdir()
    (path / "data.mdb").write_bytes(b"\xa5" * 8192)
    with pytest.raises(StoreDamaged, match=r"open.*A lost node"):
        LmdbKV(path)
    (path / "data.mdb").unlink()
    with lmdb.open(str(path), max_dbs=4) as env:
        env.open_db(b"something else")
    with pytest.raises(StoreFailed, match="format"):
        LmdbKV(path)


OPEN = """
import os, sys
from pathlib import Path
from nokv.kv.errors import StoreDamaged
from nokv.kv.lmdb_store import LmdbKV, open_reader
path = Path(sys.argv[1])
data = path / "data.mdb"
whole = data.read_bytes()
for size in map(int, sys.argv[2:]):
    for open_it in (lambda: open_reader(path, at_rest=True), lambda: LmdbKV(path)):
        data.write_bytes(whole[:size])
        try:
            open_it()
        except StoreDamaged as error:
            assert "A lost node" in str(error), error
        else:
            sys.exit(f"{size} bytes were taken for a store")
print("refused")
"""


@pytest.mark.parametrize("value_bytes", [40, 9_000])
def test_a_file_that_was_cut_short_is_refused(path: Path, value_bytes: int) -> None:
    """In a process of its own: LMDB by itself dies of SIGBUS."""
    kv = LmdbKV(path)
    kv.write(Family.INODE, rows(3_000, 40))
    kv.write(Family.CHUNK, rows(100, value_bytes))
    kv.commit()
    kv.close()
    size = (path / "data.mdb").stat().st_size
    sizes = [0, 100, 4_095, 4_096, 5_000, 8_191, 8_192, 9_000, size // 2, size - 4_096, size - 1]
    assert in_another_process(OPEN, path, *sizes) == "refused"


def test_a_file_may_lack_pages_that_nothing_uses(path: Path) -> None:
    """LMDB does not write what was allocated and freed in one transaction."""
    kv = LmdbKV(path)
    kv.write(Family.INODE, rows(3_000))
    kv.commit()
    kv.write(Family.CHUNK, rows(50, 100_000))
    kv.write(Family.CHUNK, [(key, None) for key, _ in rows(50)])
    kv.commit()
    assert (path / "data.mdb").stat().st_size < kv.file_bytes()
    kv.close()
    with open_reader(path, at_rest=True) as reader:
        assert list(reader.scan(Family.INODE, b"", SCAN_END)) == rows(3_000)
    again = LmdbKV(path)
    assert list(again.scan(Family.INODE, b"", SCAN_END)) == rows(3_000)
    again.close()


def test_nor_is_a_value_that_became_shorter_in_its_transaction_damage(path: Path) -> None:
    """LMDB leaves it in the pages that the longer one had, which `lmdb.verify` takes for damage."""
    kv = LmdbKV(path)
    kv.write(Family.CHUNK, rows(300, 9_000))
    kv.write(Family.CHUNK, rows(300, 21))
    kv.commit()
    kv.write(Family.INODE, rows(50, 100_000))
    kv.write(Family.INODE, [(key, None) for key, _ in rows(50)])
    kv.commit()
    data = path / "data.mdb"
    assert data.stat().st_size < kv.file_bytes()
    kv.close()
    again = LmdbKV(path)
    assert list(again.scan(Family.CHUNK, b"", SCAN_END)) == rows(300, 21)
    again.close()


@pytest.mark.parametrize("pages", [1, 2, 3])
def test_the_last_pages_of_a_long_value_are_missed(path: Path, pages: int) -> None:
    kv = LmdbKV(path)
    kv.commit()
    kv.write(Family.CHUNK, [(b"long", b"v" * 100_000)])
    kv.commit()
    kv.close()
    data, page_bytes = path / "data.mdb", 4096
    whole = data.read_bytes()
    end = -(-(whole.rindex(b"v" * 100) + 100) // page_bytes) * page_bytes
    assert missing_page(data, page_bytes) is None
    data.write_bytes(whole[: end - pages * page_bytes + 1])
    assert missing_page(data, page_bytes) is not None


def test_a_disk_that_fills_up_within_a_write_is_told_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that meets the end is short, and LMDB calls that an I/O error."""
    kv = LmdbKV(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    end = (path / "data.mdb").stat().st_size + 50_000
    monkeypatch.setattr(lmdb_store, "disk_free_bytes", lambda _: 0)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (end, limits[1]))
        kv.write(Family.CHUNK, rows(10, size=100_000))
        with pytest.raises(StoreFailed, match=r"commit: .*Input/output.*no space left") as caught:
            kv.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.ENOSPC
    kv.close()


def test_another_format_is_refused(path: Path) -> None:
    LmdbKV(path).close()
    with lmdb.open(str(path), max_dbs=32, map_size=1 << 30) as env:
        store = env.open_db(b"store")
        with env.begin(db=store, write=True) as txn:
            txn.put(b"format", (99).to_bytes(8, "big"))
    with pytest.raises(StoreFailed, match="format"):
        LmdbKV(path)


def test_every_opening_is_a_commit(path: Path) -> None:
    """So that what an opening shows is on the disk, not only in the page cache."""
    ids = []
    for _ in range(3):
        kv = LmdbKV(path)
        with kv.open_reader() as reader:
            ids.append(reader.commit_id)
        kv.close()
    assert ids[0] < ids[1] < ids[2]


@pytest.mark.parametrize("where", ["same process", "another process"])
def test_a_reader_keeps_its_snapshot(kv: LmdbKV, path: Path, where: str) -> None:
    kv.write(Family.INODE, rows(500))
    kv.commit()
    expected = combine(digest(kv)).hex()
    if where == "same process":
        reader = kv.open_reader()
        kv.write(Family.INODE, [(key, None) for key, _ in rows(400)])
        kv.commit()
        assert combine(digest(reader)).hex() == expected
        assert reader.get(Family.INODE, b"00000000") is not None
        assert kv.get(Family.INODE, b"00000000") is None
        reader.close()
    else:
        kv.write(Family.INODE, [(b"uncommitted", b"")])
        code = (
            "import sys, pathlib; from nokv.kv.lmdb_store import open_reader\n"
            "from nokv.kv.digest import combine, digest\n"
            "with open_reader(pathlib.Path(sys.argv[1])) as r: print(combine(digest(r)).hex())"
        )
        assert in_another_process(code, path) == expected


def test_no_reader_without_a_store(path: Path) -> None:
    with pytest.raises(StoreFailed):
        open_reader(path)
    assert not path.exists()


def test_a_dead_readers_slot_is_freed(kv: LmdbKV, path: Path) -> None:
    code = (
        "import sys, os, pathlib; from nokv.kv.lmdb_store import open_reader\n"
        "reader = open_reader(pathlib.Path(sys.argv[1])); print('open'); sys.stdout.flush()\n"
        "os.kill(os.getpid(), 9)"
    )
    with pytest.raises(subprocess.CalledProcessError):
        in_another_process(code, path)
    assert kv.reader_check() == 1
    assert kv.reader_check() == 0


def test_sizes(kv: LmdbKV) -> None:
    kv.write(Family.INODE, rows(5000))
    kv.write(Family.CHUNK, rows(3, size=100_000))
    kv.commit()
    stats = kv.stats()
    assert stats[Family.INODE].entries == 5000
    assert stats[Family.INODE].used_bytes > 5000 * 48
    assert stats[Family.CHUNK].used_bytes > 300_000
    assert stats[Family.EVENT] == (0, 0)
    assert kv.used_bytes() <= kv.file_bytes()
    full = kv.free_bytes()
    kv.write(Family.CHUNK, [(key, None) for key, _ in rows(3)])
    kv.commit()
    assert kv.free_bytes() >= full + 290_000
    assert kv.stats()[Family.CHUNK].entries == 0


def test_freed_pages_are_used_again(kv: LmdbKV) -> None:
    for _ in range(20):
        kv.write(Family.CHUNK, rows(4, size=100_000))
        kv.commit()
    assert kv.file_bytes() < 4 * 400_000


def test_dirty_bytes_bound_the_transaction(kv: LmdbKV) -> None:
    assert kv.dirty_bytes == 0
    kv.write(Family.INODE, rows(1))
    assert 0 < kv.dirty_bytes <= 4096
    kv.write(Family.CHUNK, rows(3, size=100_000))
    assert kv.dirty_bytes >= 300_000
    kv.commit()
    assert kv.dirty_bytes == 0
    pages = DIRTY_BYTES_MAX // 4096
    kv.write(Family.INODE, rows(pages))
    assert kv.dirty_bytes < DIRTY_BYTES_MAX, "never more pages than the family has"


def test_a_failed_commit_stops_the_store(path: Path) -> None:
    """A real failure: the file may not grow (Python ignores SIGXFSZ, so pwrite gets EFBIG)."""
    kv = LmdbKV(path)
    kv.write(Family.INODE, rows(100))
    kv.commit()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((path / "data.mdb").stat().st_size, limits[1]))
        kv.write(Family.CHUNK, rows(10, size=100_000))
        with pytest.raises(StoreFailed, match="commit") as caught:
            kv.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    for refused in (
        lambda: kv.get(Family.INODE, b"k"),
        lambda: list(kv.scan(Family.INODE, b"", SCAN_END)),
        lambda: kv.write(Family.INODE, rows(1)),
        kv.commit,
        kv.open_reader,
    ):
        with pytest.raises(StoreFailed, match="only a new process"):
            refused()
    kv.close()
    again = LmdbKV(path)
    assert list(again.scan(Family.INODE, b"", SCAN_END)) == rows(100)
    assert list(again.scan(Family.CHUNK, b"", SCAN_END)) == []
    again.close()


def test_a_full_map_stops_the_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "MAP_BYTES", 1 << 20)
    kv = LmdbKV(path)
    with pytest.raises(StoreFailed, match="write") as caught:
        kv.write(Family.CHUNK, rows(30, size=100_000))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(StoreFailed, match="only a new process"):
        kv.commit()
    kv.close()


def test_errors_tell_their_kind() -> None:
    assert isinstance(StoreBusy("what"), StoreFailed)
    assert StoreFailed("what").errno == errno.EIO
    assert StoreFailed("what", -30792).errno == errno.EIO
    assert StoreBusy("what").errno == errno.EBUSY

"""LMDB under the ordered-KV port; DESIGN.md beside this file says why each choice is so."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import lmdb

from nokv.kv.errors import StoreBusy, StoreDamaged, StoreFailed
from nokv.kv.reachable import missing_page
from nokv.state.families import Family
from nokv.state.port import KEY_BYTES_MAX

MAP_BYTES = 1 << 40
"""Address space for the file, 1 TiB. It costs nothing until used; the disk fills up long before."""

READERS_MAX = 32
"""Read transactions at a time, over all processes: images, digests, stale reads by name."""

DIRTY_BYTES_MAX = 96 << 20
"""The caller commits at the latest when `LmdbKV.dirty_bytes` reaches this: it bounds the anonymous
memory of the write transaction, which keeps what it once had. Less costs commits (DESIGN.md)."""

FORMAT = 1
"""Layout of the environment: one named B-tree a family, and one for the store's own rows."""

FULL_BYTES = 16 << 20
"""With less room than this left, a failed write is put down to the full disk."""

_DAMAGE = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)
"""What LMDB says of a file that it can't go on with."""

_ENGINE = 0
"""LMDB 0.9: the file format that every LMDB tool of today reads."""

_LARGE_BYTES = 1 << 10
"""A longer value may fill pages of its own (LMDB's limit is near half a page)."""

INCOMING_SUFFIX = ".image"
"""A store's directory, so suffixed, is where its next image arrives; removed at every opening."""

_OLD_SUFFIX = ".old"
"""So suffixed, the store that `LmdbKV.replace` is replacing; removed at every opening."""

_DATA_FILE = "data.mdb"
_REFUSED = "the store failed or was closed; only a new process may open it again"
_STORE_DB = b"store"
_FORMAT_ROW = b"format"
_OPENS_ROW = b"opens"
_U64 = struct.Struct(">Q")


class FamilyStats(NamedTuple):
    """Size of one family in the open transaction."""

    entries: int
    """Number of records."""
    used_bytes: int
    """Its B-tree's pages, branch and overflow pages included."""


def sync_directory(path: Path) -> None:
    """Make the names of a directory durable (fsync(2), notes)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_free_bytes(path: Path) -> int:
    """Return the bytes that an unprivileged writer may still allocate there (statvfs(3))."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def store_failed(what: str, error: Exception, path: Path | None = None) -> NoReturn:
    """Raise the `StoreFailed` that stands for an error of LMDB or of the system.

    `path` is a directory on the store's disk: LMDB makes EIO of a short write, which is what a disk
    does that fills up in the middle of one.
    """
    if isinstance(error, _DAMAGE):
        raise StoreDamaged(f"{what}: {error}") from error
    if isinstance(error, lmdb.BadValsizeError):
        raise AssertionError(f"{what}: a key is not of 1 to {KEY_BYTES_MAX} bytes") from error
    if isinstance(error, lmdb.MapFullError):
        raise StoreFailed(f"{what}: {error}", errno.ENOSPC) from error
    code = getattr(error, "code", 0) or getattr(error, "errno", 0) or 0
    if path is not None and code in {errno.EIO, errno.ENOSPC}:
        left = _free_bytes(path)
        if left < FULL_BYTES or code == errno.ENOSPC:
            message = (
                f"{what}: {error}: no space left on the disk of {path} ({left} bytes): free some,"
                " and start the node again; nothing that was acknowledged is lost"
            )
            raise StoreFailed(message, errno.ENOSPC) from error
    raise StoreFailed(f"{what}: {error}", code) from error


def _free_bytes(path: Path) -> int:
    """Return what is free; a disk that does not even say is not full for that reason."""
    try:
        return disk_free_bytes(path)
    except OSError:
        return FULL_BYTES


def _check_exists(path: Path) -> None:
    data = path / _DATA_FILE
    if not data.exists():
        raise StoreDamaged(f"{path} is not a store: it has no {_DATA_FILE}", errno.ENOENT)
    if not data.stat().st_size:  # LMDB would make a store of it
        raise StoreDamaged(f"{path} is not a store: {_DATA_FILE} is empty", errno.ENOENT)


def check_length(env: lmdb.Environment, path: Path) -> None:
    """Raise `StoreDamaged` if pages that hold something lie past the end of the file.

    LMDB would die of SIGBUS at the first of them. Opening an environment reads only its two meta
    pages. Nobody may write the store meanwhile. A file that is shorter than its last page is not
    damaged if nothing uses the pages that it lacks: LMDB never writes a page that was allocated and
    freed in one transaction. In that rare case all trees are walked.
    """
    data, page_bytes = path / _DATA_FILE, env.stat()["psize"]
    if data.stat().st_size >= (env.info()["last_pgno"] + 1) * page_bytes:
        return
    try:
        missing = missing_page(data, page_bytes)
    except ValueError as error:
        raise StoreDamaged(f"{data} was cut short, {error}") from error
    if missing is not None:
        raise StoreDamaged(f"{data} was cut short, it lacks page {missing}")


def open_environment(path: Path, *, readonly: bool) -> lmdb.Environment:
    """Open a store's environment with this store's settings. Raises lmdb.Error."""
    # Durability is LMDB's default: fdatasync of the data, then a synchronous write of the meta
    # page. DESIGN.md has the measurements behind writemap and meminit.
    return lmdb.open(
        os.fspath(path),
        map_size=MAP_BYTES,
        max_dbs=len(Family) + 1,
        max_readers=READERS_MAX,
        mode=0o700,
        create=False,
        readonly=readonly,
        writemap=False,
        meminit=True,
        lib_version=_ENGINE,
    )


def family_name(family: Family) -> bytes:
    """Return the name of a family's B-tree."""
    return b"%03d" % family


def _scan(
    cursor: lmdb.Cursor[Any], start: bytes, end: bytes, *, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Yield [start, end) of the cursor's B-tree, ascending or descending."""
    if not reverse:
        if cursor.set_range(start):
            for item in cursor.iternext():
                if item[0] >= end:
                    return
                yield item
        return
    # A set_range beyond the last key fails; the last key is then the first one wanted.
    if cursor.prev() if cursor.set_range(end) else cursor.last():
        for item in cursor.iterprev():
            if item[0] < start:
                return
            yield item


class LmdbReader:
    """A read-only snapshot: the last commit before it was opened, unchanged until `close`.

    While it is open no page freed since then is reused, so the file grows: whoever holds one must
    bound the time. Raises `StoreFailed`.
    """

    def __init__(
        self, env: lmdb.Environment, dbs: dict[Family, Any] | None = None, *, owns_env: bool = False
    ) -> None:
        self._env, self._owns_env = env, owns_env
        try:
            if dbs is None:
                dbs = {f: env.open_db(family_name(f), create=False) for f in Family}
            self._dbs = dbs
            self._txn = env.begin()
        except lmdb.Error as error:
            if owns_env:
                env.close()
            store_failed("open a reader", error)

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of `key` in the snapshot, or None."""
        try:
            value: bytes | None = self._txn.get(key, db=self._dbs[family])
        except lmdb.Error as error:
            store_failed("read", error)
        return value

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < end, ascending or descending by bytes."""
        try:
            yield from _scan(self._txn.cursor(self._dbs[family]), start, end, reverse=reverse)
        except lmdb.Error as error:
            store_failed("scan", error)

    def used_bytes(self) -> int:
        """Return the bytes of the pages that hold records."""
        try:
            return sum(_tree_bytes(self._txn.stat(db)) for db in self._dbs.values())
        except lmdb.Error as error:
            store_failed("measure", error)

    @property
    def commit_id(self) -> int:
        """LMDB's number of the commit that this snapshot shows; it grows with each commit."""
        return int(self._txn.id())

    def close(self) -> None:
        """End the snapshot; its pages may be reused."""
        self._txn.abort()
        if self._owns_env:
            self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_reader(path: Path, *, at_rest: bool = False) -> LmdbReader:
    """Open the last commit of a store that another process writes.

    The process that has the `LmdbKV` open uses `LmdbKV.open_reader`: LMDB forbids a second
    environment on one file in a process. `at_rest` says that nobody writes the store: then its
    length is checked first. Raises `StoreFailed`, also where there is no store.
    """
    _check_exists(path)
    try:
        env = open_environment(path, readonly=True)
    except lmdb.Error as error:
        store_failed(f"open {path}", error)
    if at_rest:
        try:
            check_length(env, path)
        except BaseException:
            env.close()
            raise
    return LmdbReader(env, owns_env=True)


class LmdbKV:
    """`nokv.state.port.KV` over an LMDB environment in the directory `path`.

    Opening creates the store if `path` does not exist (its parent must), holds it exclusively until
    `close`, and commits once: what it then shows is durable, whatever the process before it died
    of. Every method raises `StoreFailed` when LMDB or the system fails, and the store refuses
    everything from then on: the caller exits the process. One thread uses it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False
        self._writes = 0
        """Number of writes and commits so far: an older iterator is refused."""
        self._records: dict[Family, int] = dict.fromkeys(Family, 0)
        """Records written since the last commit."""
        self._large_bytes = 0
        """Bytes of values written since the last commit that fill pages of their own."""
        self.opens = 0
        """How often this store was opened for writing, this time included; durable."""
        self._cursors: dict[Family, lmdb.Cursor[Any]] = {}
        """One cursor a family for the open transaction; LMDB drops them at its commit."""
        try:
            _clean(path)
            if not path.exists():
                _create(path)
        except OSError as error:
            store_failed(f"open {path}", error)
        self._open()

    def _open(self) -> None:
        path = self._path
        try:
            _check_exists(path)
            self._lock_fd = _lock(path)
        except OSError as error:
            store_failed(f"open {path}", error)
        try:
            self._env = open_environment(path, readonly=False)
        except lmdb.Error as error:
            os.close(self._lock_fd)
            store_failed(f"open {path}", error)
        try:
            self._page_bytes = self._env.stat()["psize"]
            check_length(self._env, path)
            self._env.reader_check()
            self._check_format()
            self._dbs = {f: self._env.open_db(family_name(f), create=False) for f in Family}
            self._begin()
            self._count_opening()
            self.commit()
        except (lmdb.Error, OSError) as error:
            self.close()
            store_failed(f"open {path}", error, path)
        except StoreFailed:
            self.close()
            raise

    def _begin(self) -> None:
        self._txn: lmdb.Transaction[Any] = self._env.begin(write=True)
        self._cursors = {f: self._txn.cursor(db) for f, db in self._dbs.items()}
        self._records = dict.fromkeys(Family, 0)
        self._large_bytes = 0

    def _check_format(self) -> None:
        try:
            self._store_db = self._env.open_db(_STORE_DB, create=False)
            with self._env.begin(db=self._store_db) as txn:
                found = txn.get(_FORMAT_ROW, b"")
        except lmdb.NotFoundError:
            found = b""
        if not found:
            raise StoreDamaged(f"{self._path}: store format unknown")
        if found != _U64.pack(FORMAT):
            raise StoreFailed(
                f"{self._path}: store format {found.hex()}, this release has {FORMAT}"
            )

    def _count_opening(self) -> None:
        """Write one row, which makes the commit that follows a real one.

        LMDB skips a commit that wrote nothing. After a failed write of the meta page the page cache
        may show a commit that the disk does not hold; a new one above it settles that.
        """
        (opens,) = _U64.unpack(self._txn.get(_OPENS_ROW, b"", db=self._store_db))
        self.opens = opens + 1
        self._txn.put(_OPENS_ROW, _U64.pack(self.opens), db=self._store_db)

    def _fail(self, what: str, error: Exception) -> NoReturn:
        self._failed = True
        store_failed(what, error, self._path)

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Return the value of `key` in the open transaction, or None."""
        if self._failed:
            raise StoreFailed(_REFUSED)
        try:
            value: bytes | None = self._cursors[family].get(key)
        except lmdb.Error as error:
            self._fail("read", error)
        return value

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) with start <= key < end, ascending or descending by bytes."""
        if self._failed:
            raise StoreFailed(_REFUSED)
        writes = self._writes
        try:
            cursor = self._txn.cursor(self._dbs[family])
            for item in _scan(cursor, start, end, reverse=reverse):
                yield item
                assert writes == self._writes, "a scan was used after a write or a commit"
        except lmdb.Error as error:
            self._fail("scan", error)

    def write(self, family: Family, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Put each (key, value), or delete the key where the value is None."""
        if self._failed:
            raise StoreFailed(_REFUSED)
        self._writes += 1
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        for item in items:
            value = item[1]
            if value is None:
                deletes.append(item[0])
            else:
                puts.append(item)  # type: ignore[arg-type]  # the value is checked above
                if len(value) > _LARGE_BYTES:
                    self._large_bytes += len(value)
        self._records[family] += len(puts) + len(deletes)
        try:
            if puts:
                self._cursors[family].putmulti(puts)
            if deletes:
                cursor = self._cursors[family]
                for _ in filter(cursor.set_key, deletes):  # it looks at its own page first
                    cursor.delete()
        except lmdb.Error as error:
            self._fail("write", error)

    def commit(self) -> None:
        """Make every write so far durable, atomically; a failure is for the process to die of."""
        if self._failed:
            raise StoreFailed(_REFUSED)
        self._writes += 1
        try:
            self._txn.commit()
            self._begin()
        except lmdb.Error as error:
            self._fail("commit", error)

    @property
    def dirty_bytes(self) -> int:
        """At most so much memory the open transaction holds: commit before `DIRTY_BYTES_MAX`.

        A record dirties one page at worst, and no family more pages than it has.
        """
        pages = 0
        for family, records in self._records.items():
            if records:
                pages += min(records, self._txn.stat(self._dbs[family])["leaf_pages"])
        return pages * self._page_bytes + self._large_bytes

    def stats(self) -> dict[Family, FamilyStats]:
        """Return the size of each family in the open transaction, in O(families)."""
        return {
            family: FamilyStats(stat["entries"], _tree_bytes(stat))
            for family, stat in ((f, self._txn.stat(db)) for f, db in self._dbs.items())
        }

    def file_bytes(self) -> int:
        """Return the length of the data file that LMDB uses, as of the last commit."""
        return int(self._env.info()["last_pgno"] + 1) * self._page_bytes

    def used_bytes(self) -> int:
        """Return the bytes of the pages that hold records, in the open transaction."""
        return sum(s.used_bytes for s in self.stats().values()) + _tree_bytes(self._txn.stat())

    def free_bytes(self) -> int:
        """Return the bytes of the file's pages that LMDB can reuse once no reader needs them.

        A file never shrinks. The figure includes the few pages of LMDB's own list of free pages,
        and lags by the open transaction.
        """
        return max(0, self.file_bytes() - self.used_bytes())

    def open_reader(self) -> LmdbReader:
        """Return a snapshot of the last commit, in this process."""
        if self._failed:
            raise StoreFailed(_REFUSED)
        return LmdbReader(self._env, self._dbs)

    def reader_check(self) -> int:
        """Free the slots of readers whose process died; return how many there were."""
        try:
            return int(self._env.reader_check())
        except lmdb.Error as error:
            self._fail("reader check", error)

    @property
    def incoming(self) -> Path:
        """Where the next image of this store is received."""
        return self._path.with_name(self._path.name + INCOMING_SUFFIX)

    def replace(self, made: Path) -> None:
        """Put the store in `made`, a sibling that is whole and closed, in the place of this one.

        Durable when it returns; a crash before that leaves the old store or the new one. What is
        not committed is dropped, and readers of this process must be closed: their snapshots end.
        Other processes keep what they have open, and open the new one from then on.
        """
        if self._failed:
            raise StoreFailed(_REFUSED)
        self._writes += 1
        self._failed = True  # until the new one is open
        old = _old(self._path)
        try:
            self._env.close()
            # A directory is not renamed over another; an opening between the two renames goes back.
            rename(self._path, old)
            sync_directory(self._path.parent)
            rename(made, self._path)
            sync_directory(self._path.parent)
            os.close(self._lock_fd)
            self._lock_fd = -1
            remove_tree(old)
        except (OSError, lmdb.Error) as error:
            store_failed(f"replace {self._path}", error)
        self._failed = False
        try:
            self._open()
        except BaseException:
            self._failed = True
            raise

    def close(self) -> None:
        """Drop what is not committed and let go of the store."""
        if self._lock_fd >= 0:
            self._failed = True
            self._env.close()
            os.close(self._lock_fd)
            self._lock_fd = -1


def _tree_bytes(stat: Any) -> int:  # noqa: ANN401 - a typed dictionary that only stubs know
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return pages * int(stat["psize"])


def _old(path: Path) -> Path:
    return path.with_name(path.name + _OLD_SUFFIX)


def _clean(path: Path) -> None:
    """Undo a replacement that was cut off, and discard an image that was on its way in."""
    old, incoming = _old(path), path.with_name(path.name + INCOMING_SUFFIX)
    try:
        if old.exists() and not path.exists():
            rename(old, path)
            sync_directory(path.parent)
        for leftover in (old, incoming):
            if leftover.exists():
                remove_tree(leftover)
    except OSError as error:
        store_failed(f"open {path}", error)


def rename(source: Path, target: Path) -> None:
    """Rename a directory to a name that is free (rename(2))."""
    source.rename(target)


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it."""
    shutil.rmtree(path)


def _create(path: Path) -> None:
    """Make an empty store at `path`, whole or not at all.

    LMDB writes a new file's first pages unsynced, so a power cut can leave a file that it then
    refuses. It is made under another name and renamed when all of it is durable.
    """
    made = path.with_name(path.name + ".new")
    try:
        make_environment(made)
        rename(made, path)
        sync_directory(path.parent)
    except (OSError, lmdb.Error) as error:
        store_failed(f"create {path}", error)


def make_environment(path: Path) -> None:
    """Make an empty store in the directory `path`, which is emptied first; synced but for its name.

    Raises OSError, lmdb.Error.
    """
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    with open_environment(path, readonly=False) as env, env.begin(write=True) as txn:
        for family in Family:
            env.open_db(family_name(family), txn=txn)
        store = env.open_db(_STORE_DB, txn=txn)
        txn.put(_FORMAT_ROW, _U64.pack(FORMAT), db=store)
        txn.put(_OPENS_ROW, _U64.pack(0), db=store)
    sync_directory(path)


def _lock(path: Path) -> int:
    """Take the store for this process; return the descriptor that holds it.

    A second writer would otherwise wait in LMDB for ever.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        store_failed(f"open {path}", error)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreBusy(f"{path} is open in another process") from None
    return fd

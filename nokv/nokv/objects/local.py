"""The object store in a local directory: one file an object, durable and whole or not there.

A put writes a temporary file, syncs it, renames it and syncs the directory: after a power cut an
object that was acknowledged is there, and no object is ever there in part. A delete syncs the
directory too, because the collector forgets an object once its deletion returned.

The file calls run in a bounded pool of threads, so a slow disk never stops the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from nokv.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreDenied,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from nokv.objects.port import (
    DELETE_NAMES_MAX,
    LIST_NAMES_MAX,
    OBJECT_BYTES_MAX,
    Data,
    ObjectInfo,
    Page,
    check_name,
    check_prefix,
)

P = ParamSpec("P")
T = TypeVar("T")

TEMPORARY = ".tmp"
"""The directory of files being written. No object's name can start with a dot."""

RACE_TRIES = 8
"""How often a put makes its directories again when a delete removes them, empty, under it."""

DURABLE_MAX = 65_536
"""Directories that a store remembers as durable before it starts to remember anew."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_PASSING = (errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ETIMEDOUT)


def _no_hook(call: str, path: str) -> None:
    """Let every file call pass."""


class LocalStore:
    """An `ObjectStore` in a directory.

    Args:
        root: the directory. Only `ensure_bucket` creates it, so that a file system that is not
            mounted is an error and not a second, empty store.
        threads: how many file calls run at the same time.
        before_call: called with the name of each file call (`mkdir`, `create`, `write`, `sync`,
            `rename`, `sync_directory`, `read`, `stat`, `scan`, `unlink`, `rmdir`) and its path, in
            the thread that makes it; a test raises an OSError there to fail exactly that call.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        threads: int = 8,
        before_call: Callable[[str, str], None] = _no_hook,
    ) -> None:
        self.root = Path(root).absolute()
        self._before = before_call
        self._threads_count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="nokv-objects")
        self._durable: set[Path] = set()
        """Directories known to be there and synced into their parents; at most DURABLE_MAX."""

    async def put(self, name: str, data: Data) -> None:
        """Store an object; when this raises CancelledError, its thread is done with it."""
        check_name(name)
        assert len(data) <= OBJECT_BYTES_MAX
        rename = threading.Lock()
        done = self._threads.submit(self._put, name, data, rename)
        waiter = asyncio.wrap_future(done)
        try:
            await asyncio.shield(waiter)
        except asyncio.CancelledError:
            # A thread cannot be stopped, but whoever takes the lock first decides whether the
            # object appears. If the thread did, its few calls are waited for: the caller may
            # delete the object next.
            if not done.cancel() and not rename.acquire(blocking=False):
                await asyncio.wait([waiter])
            waiter.add_done_callback(_consume)
            raise

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range."""
        check_name(name)
        assert offset >= 0
        assert length is None or length > 0
        return await self._run(self._get, name, offset, length)

    async def head(self, name: str) -> ObjectInfo:
        """Return the file's length and time."""
        return await self._run(self._head, check_name(name))

    async def list(self, prefix: str, after: str = "", limit: int = LIST_NAMES_MAX) -> Page:
        """Return a page of the names."""
        check_prefix(prefix)
        assert 1 <= limit <= LIST_NAMES_MAX
        return await self._run(self._list, prefix, after, limit)

    async def delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        """Remove files, and the directories that this left empty.

        All threads share a batch: alone, each call would wait for the file system's journal.
        """
        assert len(names) <= DELETE_NAMES_MAX
        for name in names:
            check_name(name)
        ordered = sorted(names)  # neighbours share directories
        share = max(1, -(-len(ordered) // self._threads_count))
        parts = [ordered[at : at + share] for at in range(0, len(ordered), share)]
        done = await asyncio.gather(*(self._run(self._delete, tuple(part)) for part in parts))
        return {name: error for failed in done for name, error in failed.items()}

    async def ensure_bucket(self) -> None:
        """Create the directory and its parents unless they are there."""
        await self._run(self._ensure)

    async def abort_stale(self, prefix: str, before_ns: int) -> int:
        """Remove the temporary files, of whatever prefix, written last before `before_ns`."""
        check_prefix(prefix)
        return await self._run(self._abort_stale, before_ns)

    async def close(self) -> None:
        """Wait for the calls that run and end the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._threads.submit(call, *args, **kwargs))

    # ------------------------------------------------------------ in a thread

    def _put(self, name: str, data: Data, rename: threading.Lock) -> None:
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{os.urandom(12).hex()}"
        try:
            self._write(temporary, data)
            if rename.acquire(blocking=False):
                self._rename(temporary, self.root / name)
            else:
                self._discard(temporary)
        except OSError as error:
            self._discard(temporary)
            raise self._typed("put", name, error) from error

    def _write(self, path: Path, data: Data) -> None:
        self._make_directory(path.parent)
        self._before("create", str(path))
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(data)
            while view.nbytes:
                self._before("write", str(path))
                view = view[os.write(file, view) :]
            self._before("sync", str(path))
            _sync(file)
        finally:
            os.close(file)

    def _rename(self, temporary: Path, final: Path) -> None:
        for _ in range(RACE_TRIES - 1):
            try:
                return self._rename_once(temporary, final)
            except FileNotFoundError:
                self._forget(final.parent)
        return self._rename_once(temporary, final)

    def _rename_once(self, temporary: Path, final: Path) -> None:
        self._make_directory(final.parent)
        self._before("rename", str(final))
        temporary.replace(final)
        self._sync_directory(final.parent)

    def _make_directory(self, path: Path) -> None:
        """Make `path` and its missing parents below the root, each synced into its parent.

        Also one that is there already is synced the first time: its maker may not have done it yet.
        """
        if path in self._durable:
            return
        if path == self.root:
            if not path.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the store's directory is not there")
            return
        self._make_directory(path.parent)
        self._before("mkdir", str(path))
        path.mkdir(exist_ok=True)
        self._sync_directory(path.parent)
        if len(self._durable) >= DURABLE_MAX:
            self._durable.clear()
        self._durable.add(path)

    def _forget(self, path: Path) -> None:
        """Doubt that `path` and its parents are there."""
        while path != self.root:
            self._durable.discard(path)
            path = path.parent

    def _sync_directory(self, path: Path) -> None:
        self._before("sync_directory", str(path))
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(directory)
        finally:
            os.close(directory)

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # never made, or `abort_stale` removes it
            path.unlink()

    def _get(self, name: str, offset: int, length: int | None) -> bytes:
        try:
            self._before("read", name)
            file = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(file)
                if stat.S_ISDIR(found.st_mode):
                    raise IsADirectoryError(errno.EISDIR, "a part of other names")
                size = found.st_size
                end = size if length is None else offset + length
                if end > size or offset > size or end - offset > OBJECT_BYTES_MAX:
                    raise ObjectCorrupt(
                        f"get {name}: bytes [{offset}, {end}) of an object of {size} bytes"
                    )
                data = os.pread(file, end - offset, offset)
            finally:
                os.close(file)
        except ObjectStoreError:
            raise
        except OSError as error:
            raise self._typed("get", name, error) from error
        if len(data) != end - offset:
            raise ObjectCorrupt(f"get {name}: {len(data)} of {end - offset} bytes at {offset}")
        return data

    def _head(self, name: str) -> ObjectInfo:
        try:
            self._before("stat", name)
            found = (self.root / name).stat()
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, "a part of other names")
        except OSError as error:
            raise self._typed("head", name, error) from error
        return ObjectInfo(name, found.st_size, found.st_mtime_ns)

    def _list(self, prefix: str, after: str, limit: int) -> Page:
        found: list[ObjectInfo] = []
        try:
            self._make_directory(self.root)
            for info in self._walk("", prefix, after):
                if len(found) == limit:
                    return Page(tuple(found), more=True)
                found.append(info)
        except OSError as error:
            raise self._typed("list", prefix, error) from error
        return Page(tuple(found), more=False)

    def _walk(self, base: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Yield the objects below `base` in name order, entering only directories that matter."""
        self._before("scan", base)
        try:
            with os.scandir(self.root / base) as entries:
                names = sorted(
                    base + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                    for entry in entries
                    if not entry.name.startswith(".")
                )
        except FileNotFoundError:
            return  # a delete removed it, empty
        for name in names:
            if name.endswith("/"):
                # Everything below a directory sorts with its own name: skip what lies before.
                if (name > after or after.startswith(name)) and (
                    name.startswith(prefix) or prefix.startswith(name)
                ):
                    yield from self._walk(name, prefix, after)
            elif name > after and name.startswith(prefix):
                try:
                    found = (self.root / name).stat()
                except FileNotFoundError:
                    continue  # deleted while the page was made
                yield ObjectInfo(name, found.st_size, found.st_mtime_ns)

    def _delete(self, names: Sequence[str]) -> dict[str, ObjectStoreError]:
        failed: dict[str, ObjectStoreError] = {}
        inside: dict[Path, list[str]] = {}
        left: dict[Path, list[str]] = {}
        for name in names:
            inside.setdefault((self.root / name).parent, []).append(name)
        for directory, children in inside.items():
            try:
                self._make_directory(self.root)
                for name in children:
                    try:
                        self._before("unlink", name)
                        (self.root / name).unlink(missing_ok=True)
                    except NotADirectoryError:
                        continue  # a parent is an object, so this is none
                    except OSError as error:
                        failed[name] = self._typed("delete", name, error)
                left.setdefault(self._prune(directory), []).extend(children)
            except OSError as error:
                failed |= {name: self._typed("delete", name, error) for name in children}
        # Bodies of one session mostly end below one directory: it is synced once.
        for directory, children in left.items():
            try:
                self._sync_left(directory)
            except OSError as error:
                failed |= {name: self._typed("delete", name, error) for name in children}
        return failed

    def _prune(self, directory: Path) -> Path:
        """Remove `directory` and its parents while they are empty; return the last one left."""
        while directory != self.root:
            self._durable.discard(directory)
            self._before("rmdir", str(directory))
            try:
                directory.rmdir()
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                break
            directory = directory.parent
        return directory

    def _sync_left(self, directory: Path) -> None:
        """Sync a directory, or the one that is left above it once it is gone."""
        while True:
            try:
                self._sync_directory(directory)
            except FileNotFoundError:
                if directory == self.root:
                    raise
                directory = self._prune(directory.parent)
            else:
                return

    def _ensure(self) -> None:
        try:
            missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
            for path in reversed(missing):
                self._before("mkdir", str(path))
                path.mkdir(exist_ok=True)
                self._sync_directory(path.parent)
            if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "the directory is not readable and writable")
        except OSError as error:
            raise self._typed("ensure_bucket", str(self.root), error) from error

    def _abort_stale(self, before_ns: int) -> int:
        removed = 0
        try:
            self._make_directory(self.root)
            self._make_directory(self.root / TEMPORARY)
            for path in list((self.root / TEMPORARY).iterdir()):
                with contextlib.suppress(FileNotFoundError):  # its put has just ended
                    if path.stat().st_mtime_ns < before_ns:
                        self._before("unlink", str(path))
                        path.unlink()
                        removed += 1
        except OSError as error:
            raise self._typed("abort_stale", TEMPORARY, error) from error
        return removed

    def _typed(self, operation: str, name: str, error: OSError) -> ObjectStoreError:
        text = f"{operation} {name}: {error.strerror or error}"
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            if operation in ("get", "head") and self.root.is_dir():
                return ObjectMissing(f"{operation} {name}: no such object")
            return ObjectStoreUnavailable(text, hint=f"is {self.root} there and mounted?")
        if error.errno in _DENIED:
            return ObjectStoreDenied(text, hint=f"check the permissions of {self.root}")
        if error.errno in _FULL:
            return ObjectStoreError(text, hint=f"free space on the file system of {self.root}")
        if error.errno in _PASSING:
            return ObjectStoreUnavailable(text)
        return ObjectStoreError(text)


def _sync(file: int) -> None:
    """Make a file or directory durable; on macOS fsync(2) leaves it in the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def _consume(waiter: asyncio.Future[None]) -> None:
    """Take note of the outcome of a put that nobody waits for."""
    if not waiter.cancelled():
        waiter.exception()

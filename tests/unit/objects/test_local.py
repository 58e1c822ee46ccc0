"""The directory store, call by call: what each failure leaves, and what is synced when."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nokv.errors import (
    ObjectMissing,
    ObjectStoreDenied,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from nokv.objects.local import LocalStore

NAME = "blocks/a/b/0000.0000"

PUT_CALLS = ("mkdir", "sync_directory", "create", "write", "sync", "rename")
CALLS = (*PUT_CALLS, "read", "stat", "scan", "unlink", "rmdir")


class Hook:
    """Notes every file call and fails those it is told to."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self._failing: dict[str, int] = {}
        self.act: Callable[[str, str], None] | None = None

    def fail(self, call: str, number: int) -> None:
        self._failing[call] = number

    def heal(self) -> None:
        self._failing.clear()

    def __call__(self, call: str, path: str) -> None:
        assert call in CALLS
        self.log.append((call, path))
        if self.act is not None:
            self.act(call, path)
        if call in self._failing:
            raise OSError(self._failing[call], os.strerror(self._failing[call]))


def run(tmp_path: Path, body: Callable[[LocalStore, Hook], Awaitable[None]]) -> None:
    async def main() -> None:
        hook = Hook()
        store = LocalStore(tmp_path / "objects", threads=2, before_call=hook)
        await store.ensure_bucket()
        try:
            await body(store, hook)
        finally:
            await store.close()

    asyncio.run(main())


ERRORS = [
    (errno.EIO, ObjectStoreError),
    (errno.ENOSPC, ObjectStoreError),
    (errno.EACCES, ObjectStoreDenied),
    (errno.EROFS, ObjectStoreDenied),
    (errno.EMFILE, ObjectStoreUnavailable),
]


@pytest.mark.parametrize("call", PUT_CALLS)
@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_a_put_that_fails_anywhere_leaves_no_part(
    tmp_path: Path, call: str, number: int, error: type[ObjectStoreError]
) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        hook.fail(call, number)
        with pytest.raises(error, match=f"put {NAME}: ") as caught:
            await store.put(NAME, b"data")
        assert type(caught.value) is error
        hook.heal()
        try:
            assert await store.get(NAME) == b"data"  # only its last sync is in doubt
            assert call == "sync_directory"
        except ObjectMissing:
            assert (await store.list("")).objects == ()
        await store.put(NAME, b"data")
        assert await store.get(NAME) == b"data"
        assert await store.abort_stale("", 2**62) == 0, "temporary files went with their puts"

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        ("read", lambda store: store.get(NAME)),
        ("stat", lambda store: store.head(NAME)),
        ("scan", lambda store: store.list("")),
    ],
)
@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_reads_that_fail_are_typed(
    tmp_path: Path,
    call: str,
    operation: Callable[[LocalStore], Awaitable[object]],
    number: int,
    error: type[ObjectStoreError],
) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        await store.put(NAME, b"data")
        hook.fail(call, number)
        with pytest.raises(error) as caught:
            await operation(store)
        assert type(caught.value) is error

    run(tmp_path, body)


@pytest.mark.parametrize("call", ["unlink", "rmdir", "sync_directory"])
@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_a_delete_that_fails_says_which_objects_may_be_left(
    tmp_path: Path, call: str, number: int, error: type[ObjectStoreError]
) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        await store.put(NAME, b"data")
        hook.fail(call, number)
        failed = await store.delete([NAME])
        assert list(failed) == [NAME]
        assert type(failed[NAME]) is error
        hook.heal()
        assert await store.delete([NAME]) == {}
        assert await store.list("") == ((), False)

    run(tmp_path, body)


def test_a_put_syncs_the_file_before_its_name_and_every_new_directory(tmp_path: Path) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        root = str(store.root)
        hook.log.clear()
        await store.put("a/b/x", b"data")
        calls = [(call, path.removeprefix(root)) for call, path in hook.log]
        temporary = next(path for call, path in calls if call == "create")
        assert calls == [
            ("mkdir", "/.tmp"),
            ("sync_directory", ""),
            ("create", temporary),
            ("write", temporary),
            ("sync", temporary),
            ("mkdir", "/a"),
            ("sync_directory", ""),
            ("mkdir", "/a/b"),
            ("sync_directory", "/a"),
            ("rename", "/a/b/x"),
            ("sync_directory", "/a/b"),
        ]
        hook.log.clear()
        await store.put("a/b/y", b"data")
        assert [call for call, _ in hook.log] == [
            *("create", "write", "sync", "rename", "sync_directory")
        ]
        hook.log.clear()
        await store.delete(["a/b/x"])
        assert [(call, path.removeprefix(root)) for call, path in hook.log] == [
            ("unlink", "a/b/x"),
            ("rmdir", "/a/b"),
            ("sync_directory", "/a/b"),
        ]
        hook.log.clear()
        await store.delete(["a/b/y"])
        assert [(call, path.removeprefix(root)) for call, path in hook.log] == [
            ("unlink", "a/b/y"),
            ("rmdir", "/a/b"),
            ("rmdir", "/a"),
            ("sync_directory", ""),
        ]

    run(tmp_path, body)


def test_a_directory_that_another_process_made_is_synced_too(tmp_path: Path) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        (store.root / "a").mkdir()
        hook.log.clear()
        await store.put("a/x", b"")
        assert ("sync_directory", str(store.root)) in hook.log[3:]

    run(tmp_path, body)


@pytest.mark.parametrize("races", [1, 7, 8])
def test_a_put_makes_its_directory_again_when_a_delete_removes_it(
    tmp_path: Path, races: int
) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        left = races

        def remove(call: str, path: str) -> None:
            nonlocal left
            if call == "rename" and left:
                left -= 1
                Path(path).parent.rmdir()

        hook.act = remove
        if races < 8:
            await store.put("a/x", b"data")
            assert await store.get("a/x") == b"data"
        else:
            with pytest.raises(ObjectStoreUnavailable, match="put a/x"):
                await store.put("a/x", b"data")

    run(tmp_path, body)


def test_a_directory_that_is_not_mounted_is_not_made_anew(tmp_path: Path) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        assert hook.log
        store.root.rmdir()
        for call in (store.put(NAME, b""), store.get(NAME), store.head(NAME), store.list("")):
            with pytest.raises(ObjectStoreUnavailable) as caught:
                await call
            assert "mounted" in caught.value.hint
        failed = await store.delete([NAME])
        assert isinstance(failed[NAME], ObjectStoreUnavailable)
        with pytest.raises(ObjectStoreUnavailable):
            await store.abort_stale("", 1)
        assert not store.root.exists()

    run(tmp_path, body)


def test_a_root_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def main() -> None:
        store = LocalStore(tmp_path / "file" / "objects")
        with pytest.raises(ObjectStoreError):
            await store.ensure_bucket()
        await store.close()

    asyncio.run(main())


def test_parents_are_made_and_synced(tmp_path: Path) -> None:
    async def main() -> None:
        hook = Hook()
        store = LocalStore(tmp_path / "x" / "y", before_call=hook)
        await store.ensure_bucket()
        assert hook.log == [
            ("mkdir", str(tmp_path / "x")),
            ("sync_directory", str(tmp_path)),
            ("mkdir", str(tmp_path / "x" / "y")),
            ("sync_directory", str(tmp_path / "x")),
        ]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("at", ["write", "sync", "rename", "sync_directory"])
def test_a_cancelled_put_is_over_when_it_says_so(tmp_path: Path, at: str) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        await store.put("a/first", b"")  # makes the directories
        loop = asyncio.get_running_loop()
        reached, go_on = asyncio.Event(), threading.Event()

        def stop(call: str, path: str) -> None:
            if call == at and "first" not in path:
                loop.call_soon_threadsafe(reached.set)
                assert go_on.wait(30)

        hook.act = stop
        put = asyncio.ensure_future(store.put("a/x", b"data"))
        await reached.wait()
        put.cancel()
        await asyncio.sleep(0)
        renaming = at in ("rename", "sync_directory")
        assert put.done() != renaming, "once it renames, it is waited for"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await put
        hook.act = None
        if renaming:
            assert await store.get("a/x") == b"data"
        # Whatever the thread still does, the object never appears later.
        await store.delete(["a/x"])
        await store.close()
        assert not (store.root / "a/x").exists()
        assert list((store.root / ".tmp").iterdir()) == []

    run(tmp_path, body)


def test_old_temporary_files_are_removed(tmp_path: Path) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        await store.put("x", b"")
        old, new = store.root / ".tmp/1-old", store.root / ".tmp/2-new"
        old.write_bytes(b"half")
        new.write_bytes(b"half")
        os.utime(old, ns=(1000, 1000))
        assert await store.abort_stale("x/", 10**9) == 1
        assert not old.exists()
        assert new.exists()
        assert [info.name for info in (await store.list("")).objects] == ["x"]
        assert hook.log[-1][0] == "unlink" or ("unlink", str(old)) in hook.log

    run(tmp_path, body)


def test_two_stores_share_a_directory(tmp_path: Path) -> None:
    async def body(store: LocalStore, hook: Hook) -> None:
        other = LocalStore(store.root)
        names = [f"d{i % 3}/{i}" for i in range(60)]
        await asyncio.gather(
            *((store if i % 2 else other).put(name, b"x") for i, name in enumerate(names))
        )
        assert {info.name for info in (await store.list("")).objects} == set(names)
        half = len(names) // 2
        one, two = await asyncio.gather(store.delete(names[:half]), other.delete(names[half:]))
        assert one == two == {}
        assert await store.list("") == ((), False)
        assert hook.log
        await other.close()

    run(tmp_path, body)

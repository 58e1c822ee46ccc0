"""Every public method, with every hostile argument: a typed error that names it, and no change."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec import structs
from tests.unit.client import loopback
from tests.unit.client.loopback import Cluster

from nokv.client import AsyncClient, ClientConfig, connect
from nokv.client.admin import Admin
from nokv.client.arguments import check, checked, rule_of
from nokv.client.files import (
    AsyncReader,
    AsyncTextReader,
    AsyncTextWriter,
    AsyncWriter,
    Opening,
)
from nokv.client.locks import AsyncLock
from nokv.client.reads import ReadHandle
from nokv.client.sync import (
    Client,
    SyncPinnedView,
    SyncSnapshots,
    SyncSnapshotView,
    SyncTrashCan,
    SyncWorkspaces,
)
from nokv.client.trash import TrashCan
from nokv.client.views import Snapshots, Workspaces
from nokv.client.watch import SyncWatch, Watch
from nokv.errors import InvalidArgument, NokvError, Unavailable
from nokv.objects.port import OBJECT_BYTES_MAX
from nokv.types.commands import Absent, Exists, GenerationIs
from nokv.types.values import At, Caller

HOSTILE: tuple[object, ...] = (
    2**70,
    -1,
    math.nan,
    math.inf,
    "",
    "x",
    "\udcff",
    "\ud800",
    None,
    b"..",
    [],
    ["x"],
    [None],
    (2**70, "x"),
    {"a": None},
    object(),
    True,
    (GenerationIs(At(0, 1, (b"f",)), 2**70),),
)
"""What no parameter takes, but for FITS."""

FITS: dict[str, tuple[object, ...]] = {
    "Iterable[str | int]": ([],),
    "Iterable[Trashed | TrashRow | Id]": ([],),
    "Offset": (-1, None),
    "SourceLike": (b"..",),
    "Time": (-1,),
    "bool": (True,),
    "bytes": (b"..",),
    "bytes | bytearray | memoryview": (b"..",),
    "bytearray | memoryview": (),
    "float": (),
    "int": (),
    "Snapshots.create.name": ("x",),
    "AsyncTextWriter.write.text": ("", "x"),
    "AsyncClient.at.snapshot": (),
    "AsyncClient.bulk_create.names": (["x"], {"a": None}),
    "str | os.PathLike[str]": ("x", "\udcff"),
    "str | bytes": ("", "x", "\udcff", b".."),
}
"""What may be taken, by annotation or by the name of the parameter."""


class Call(NamedTuple):
    """A method, and arguments that it takes."""

    owner: type
    name: str
    arguments: dict[str, object]


def new(cluster: Cluster) -> str:
    """Return a path that is free."""
    return f"/new-{len(cluster.commands)}"


def calls(cluster: Cluster, local: Path) -> Iterator[Call]:
    """Yield a call of each method that changes something, reads, or makes a handle."""
    free = new(cluster)
    path: dict[str, object] = {"path": "/f"}
    both: dict[str, object] = {"source": "/f", "target": free}
    yield from (
        Call(AsyncClient, name, path)
        for name in (
            *("stat", "lstat", "exists", "is_dir", "is_file", "is_symlink", "access", "listxattr"),
            *("locate", "read", "read_bytes", "read_text", "open", "history", "lock"),
            *("chmod", "utime", "truncate", "set_flags", "setxattr", "removexattr"),
            *("getxattr", "append", "patch", "write_bytes", "put", "revert"),
        )
    )
    for name in ("create", "mkdir"):
        yield Call(AsyncClient, name, {"path": free})
    yield Call(AsyncClient, "chown", {"path": "/f", "uid": 0})
    yield Call(AsyncClient, "mknod", {"path": free, "mode": 0o010644})
    yield Call(AsyncClient, "symlink", {"path": free, "target": "/f"})
    for name in ("copy", "rename", "move", "replace"):
        yield Call(AsyncClient, name, both)
    for name in ("unlink", "remove"):
        yield Call(AsyncClient, name, {"path": "/gone", "missing_ok": True})
    for name in ("scandir", "listdir", "usage", "walk", "read_page", "watch", "set_quota", "quota"):
        yield Call(AsyncClient, name, {"path": "/d"})
    for name in ("statfs", "read_events", "events"):
        yield Call(AsyncClient, name, {})
    yield Call(AsyncClient, "glob", {"pattern": "/*"})
    yield Call(AsyncClient, "readlink", {"path": "/l"})
    yield Call(AsyncClient, "link", {"source": "/f", "path": free})
    yield Call(AsyncClient, "copy_range", {"source": "/f", "target": "/g"})
    yield Call(AsyncClient, "clone", {"source": "/d", "target": free})
    yield Call(AsyncClient, "rollback", {"path": "/w", "snapshot": "of-w"})
    yield Call(AsyncClient, "diff", {"left": "of-w"})
    yield Call(AsyncClient, "at", {"snapshot": "of-w"})
    yield Call(AsyncClient, "within", {"deadline_s": 10.0})
    yield Call(AsyncClient, "stale", {"max_stale_s": 10.0})
    yield Call(AsyncClient, "reading_from", {"node": 1})
    yield Call(AsyncClient, "bulk_create", {"directory": "/d", "names": [free[1:]]})
    yield Call(AsyncClient, "rmdir", {"path": "/empty"})
    yield Call(AsyncClient, "remove_tree", {"path": "/gone", "missing_ok": True})
    yield Call(AsyncClient, "publish", {"path": free, "files": {"a": b"a"}})
    yield Call(AsyncClient, "publish_tree", {"local": local, "path": free})
    yield Call(AsyncClient, "put_file", {"local": local / "a", "path": "/f"})
    yield Call(AsyncClient, "get_file", {"local": local / "b", "path": "/f"})
    yield Call(Snapshots, "create", {"path": "/d", "name": f"s{len(cluster.commands)}"})
    yield Call(Snapshots, "get", {"name": "of-w"})
    yield Call(Snapshots, "list", {})
    yield Call(Snapshots, "renew", {"name": "of-w"})
    yield Call(Snapshots, "delete", {"name": "of-w"})
    yield Call(Workspaces, "create", {"path": free})
    yield Call(Workspaces, "list", {})
    yield Call(Workspaces, "own_bytes", {"view": 0})
    yield Call(Workspaces, "delete", {"path": "/w"})
    yield Call(TrashCan, "put", {"path": "/gone", "missing_ok": True})
    yield Call(TrashCan, "list", {})
    yield Call(TrashCan, "restore", {"entry": (0, 0)})
    yield Call(TrashCan, "empty", {"entries": []})
    yield Call(TrashCan, "keep", {"keep_s": 604_800.0})
    yield Call(Watch, "take", {"timeout_s": 0.0})
    yield Call(AsyncReader, "seek", {"offset": 0})
    yield Call(AsyncReader, "read", {})
    yield Call(AsyncReader, "pread", {"offset": 0, "size": 1})
    yield Call(AsyncReader, "readinto", {"buffer": bytearray(1)})
    yield Call(AsyncReader, "readline", {})
    yield Call(AsyncTextReader, "seek", {"offset": 0})
    yield Call(AsyncWriter, "write", {"data": b"x"})
    yield Call(AsyncTextWriter, "write", {"text": "x"})


DEFAULTS: dict[str, object] = {
    "mode": 0o644,
    "flags": 0,
    "name": "user.a",
    "value": b"v",
    "data": b"d",
    "offset": 0,
    "size": 1,
    "generation": 0,
}
"""Of parameters without a default of their own, where the call does not say."""

PLAIN = {"close", "open", "acquire", "release", "check", "abort", "arrived"}
"""Without arguments, or called by the client itself."""


def parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a method but `self`."""
    found = dict(inspect.signature(method).parameters)
    found.pop("self")
    return found


def complete(call: Call) -> dict[str, object]:
    """Return all arguments that the method needs."""
    wanted = parameters(getattr(call.owner, call.name))
    needed = {
        name: DEFAULTS[name]
        for name, parameter in wanted.items()
        if parameter.default is inspect.Parameter.empty and name not in call.arguments
    }
    return needed | call.arguments


async def run(target: object, name: str, arguments: dict[str, object]) -> object:
    """Call a method, and use what it returns as far as its first answer."""
    done = getattr(target, name)(**arguments)
    if isinstance(done, AsyncIterator) and not isinstance(done, Watch):
        async for _ in done:
            break
    elif isinstance(done, AsyncLock | Opening | Watch):
        async with done:
            pass
    elif isinstance(done, ReadHandle):
        await done.stat("/w")
    elif inspect.isawaitable(done):
        await done
    return done


async def prepare(fs: AsyncClient, local: Path) -> None:
    """Make what the calls work on."""
    (local / "a").write_bytes(b"a")
    await fs.write_bytes("/f", b"text\n")
    await fs.write_bytes("/g", b"text\n")
    await fs.symlink("/f", "/l")
    await fs.mkdir("/d")
    await fs.mkdir("/empty")
    await fs.setxattr("/f", "user.a", b"v")
    await fs.workspaces.create("/w")
    await fs.snapshots.create("/w", "of-w")


async def targets(fs: AsyncClient) -> dict[type, object]:
    """Return what the methods are called of."""
    return {
        AsyncClient: fs,
        Snapshots: fs.snapshots,
        Workspaces: fs.workspaces,
        TrashCan: fs.trash,
        Watch: await fs.watch("/d").open(),
        AsyncReader: await fs.open("/f"),
        AsyncTextReader: await fs.open("/f", "r"),
        AsyncWriter: await fs.open("/never", "wb"),
        AsyncTextWriter: await fs.open("/never", "w"),
    }


async def close(made: dict[type, object]) -> None:
    """Let everything go, and publish nothing."""
    for one in made.values():
        if isinstance(one, AsyncWriter | AsyncTextWriter):
            await one.abort()
        elif isinstance(one, AsyncReader | AsyncTextReader):
            await one.close()
        elif isinstance(one, Watch):
            one.close()


async def state(fs: AsyncClient) -> list[object]:
    """Return all that a caller can see."""
    seen: list[object] = [await fs.stat("/"), await fs.quota("/d")]
    seen += [entry async for _, dirs, files in fs.walk() for entry in (*dirs, *files)]
    seen += [structs.replace(one, cluster_ns=0) for one in await fs.snapshots.list()]
    return [*seen, await fs.workspaces.list(), await fs.trash.list()]


def fits(name: str, annotation: str, value: object) -> bool:
    """Whether a parameter may take a hostile value."""
    plain = annotation.removesuffix(" | None")
    if value is None and plain != annotation:
        return True
    known = (*FITS.get(plain, ()), *FITS.get(name, ()))
    return any(type(one) is type(value) and one == value for one in known)


def test_hostile_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def test() -> None:
        async with loopback.client(count=1) as (cluster, fs):
            await prepare(fs, tmp_path)
            made = await targets(fs)
            before = await state(fs)
            failures = []
            for call in calls(cluster, tmp_path):
                arguments = complete(call)
                method = getattr(call.owner, call.name)
                for name, parameter in parameters(method).items():
                    for value in HOSTILE:
                        shown = f"{call.owner.__name__}.{call.name}.{name}"
                        if fits(shown, parameter.annotation, value):
                            continue
                        shown += f" = {value!r}"
                        try:
                            await run(made[call.owner], call.name, {**arguments, name: value})
                        except NokvError as error:
                            if not error.hint:
                                failures.append(f"{shown}: no hint: {error!r}")
                        except FileNotFoundError as error:
                            if name != "local":
                                failures.append(f"{shown}: {error!r}")
                        except BaseException as error:  # noqa: BLE001  all are listed
                            failures.append(f"{shown}: {error!r}")
                        else:
                            failures.append(f"{shown}: accepted")
            assert not failures, "\n".join(failures)
            assert await state(fs) == before
            await close(made)

    asyncio.run(test())


def test_the_arguments_of_the_sweep_are_good(tmp_path: Path) -> None:
    """What is refused above is refused for the hostile argument, and no method is left out."""

    async def test() -> None:
        async with loopback.client(count=1) as (cluster, fs):
            await prepare(fs, tmp_path)
            made = await targets(fs)
            swept = set()
            for name in [(call.owner, call.name) for call in calls(cluster, tmp_path)]:
                call = next(c for c in calls(cluster, tmp_path) if (c.owner, c.name) == name)
                swept.add(name)
                if name == (TrashCan, "restore"):
                    await fs.create("/trashed")
                    entry = await fs.trash.put("/trashed")
                    call = call._replace(arguments={"entry": entry})
                if name == (AsyncClient, "set_quota"):
                    call.arguments["size_bytes"] = 1 << 40
                if name == (AsyncClient, "revert"):
                    generation = (await fs.stat("/f")).generation
                    call = call._replace(arguments={"path": "/f", "generation": generation})
                if name in {(AsyncClient, one) for one in ("rename", "move", "replace")}:
                    await fs.create("/moving" + call.name)
                    call = call._replace(
                        arguments={"source": "/moving" + call.name, "target": new(cluster)}
                    )
                if name == (AsyncClient, "removexattr"):
                    await fs.setxattr("/f", "user.a", b"v")
                if name == (AsyncClient, "getxattr"):
                    await fs.setxattr("/f", "user.a", b"v")
                await run(made[call.owner], call.name, complete(call))
            for owner in made:
                public = {
                    name
                    for name, method in inspect.getmembers(owner, inspect.isfunction)
                    if not name.startswith("_") and parameters(method) and name not in PLAIN
                }
                assert not {(owner, name) for name in public} - swept
            await close(made)

    asyncio.run(test())


@pytest.mark.parametrize(
    "owner",
    [
        *(AsyncClient, Snapshots, Workspaces, TrashCan, Admin, Watch, AsyncReader, AsyncWriter),
        *(AsyncTextReader, AsyncTextWriter, Client, SyncSnapshots, SyncWorkspaces, SyncTrashCan),
        *(SyncPinnedView, SyncSnapshotView, SyncWatch),
    ],
)
def test_every_method_checks(owner: type) -> None:
    """Also the synchronous ones, which are the same functions."""
    for name, method in inspect.getmembers(owner, inspect.isfunction):
        if name.startswith("_") or name == "arrived" or not parameters(method):
            continue
        kinds = {parameter.kind for parameter in parameters(method).values()}
        if kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            continue  # what only refuses
        assert hasattr(method, "checks_arguments"), f"{owner.__name__}.{name}"


def test_the_message_names_method_argument_and_what_fits() -> None:
    with pytest.raises(InvalidArgument, match=r"f: size can't be 1180591620717411303424") as found:
        check("f", "size", "int", 2**70)
    assert found.value.hint == "give a whole number from 0 to 9223372036854775807"
    with pytest.raises(InvalidArgument, match="or None"):
        check("f", "size", "int | None", "x" * 1000)
    assert len(str(found.value)) < 200
    check("f", "size", "int | None", None)


def test_a_parameter_without_a_rule_does_not_import() -> None:
    def wrong(size: complex) -> None:
        del size

    with pytest.raises(AssertionError, match="complex"):
        checked(wrong)


def test_good_values_pass() -> None:
    for annotation, value in (
        ("int", 2**63 - 1),
        ("Device", 2**64 - 1),
        ("float", 0),
        ("float", 1.5),
        ("AnyPath", PurePosixPath("/a")),
        ("tuple[Predicate, ...]", (Absent(At(0, 1, (b"a",))), Exists(At(0, 1)))),
        ("Encoding", "utf-16"),
        ("Caller", Caller(1, 2, (3,), principal="x")),
        ("ObjectStore | None", object()),
    ):
        check("f", "it", annotation, value)
    assert rule_of("TlsFiles | None") is not None


@pytest.mark.parametrize("value", [2**70, -1, math.nan, math.inf, "x", None, [], True])
def test_bounds_of_a_client(value: Any) -> None:
    for name in ("deadline_s", "session_ttl_s", "upload_bytes", "read_bytes", "cache_bytes"):
        with pytest.raises(InvalidArgument):
            ClientConfig(**{name: value})
    with pytest.raises(InvalidArgument):
        ClientConfig(parallel=value)


@pytest.mark.parametrize("name", ["upload_bytes", "read_bytes"])
def test_a_budget_holds_an_object(name: str) -> None:
    def bounds(n_bytes: int) -> dict[str, Any]:
        return {name: n_bytes}

    with pytest.raises(InvalidArgument) as caught:
        ClientConfig(**bounds(OBJECT_BYTES_MAX - 1))
    assert str(OBJECT_BYTES_MAX) in caught.value.hint
    ClientConfig(**bounds(OBJECT_BYTES_MAX))


def test_numbers_and_texts_of_numpy_are_taken() -> None:
    async def test() -> None:
        async with loopback.client(count=1) as (_, fs):
            path: Any = np.str_("/f")
            place: Any = np.int64(2)
            first: Any = np.uint8(1)
            no_numbers: Any = (np.float64(2), np.array([1, 2]), np.True_)
            await fs.write_bytes(path, np.bytes_(b"abcdef"))
            await fs.patch(path, place, b"xy")
            await fs.truncate(path, size=place + 3)
            assert await fs.read(path, first, place + 1) == b"bxy"
            await fs.snapshots.create("/", np.str_("then"))
            for no_number in no_numbers:
                with pytest.raises(InvalidArgument):
                    await fs.truncate(path, no_number)

    asyncio.run(test())


def test_a_closed_client_says_so_at_once() -> None:
    async def test() -> None:
        async with loopback.client(count=1) as (_, fs):
            await fs.stat("/")
            await fs.close()
            for call in (fs.stat, fs.mkdir, fs.read_bytes, fs.listdir, fs.usage):
                with pytest.raises(Unavailable, match="closed"):
                    await call("/f")

    asyncio.run(test())


@pytest.mark.parametrize("value", [2**70, -1, math.nan, b"x", [], [None], {}, "\udcff"])
def test_addresses_that_are_none(value: Any) -> None:
    with pytest.raises(NokvError):
        connect(value)


@pytest.mark.parametrize(
    "caller",
    [Caller(2**70), Caller(-1), Caller("x"), Caller(groups=5), Caller(principal="\udcff"), "root"],  # type: ignore[arg-type]
)
def test_callers_that_are_none(caller: Any) -> None:
    with pytest.raises(InvalidArgument):
        connect("127.0.0.1:1", caller=caller)

"""What proves that a publish happened exactly once, and that every byte came back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from nokv.client.fs import AsyncClient
from nokv.client.options import Options, expect, query
from nokv.client.publish import Published
from nokv.client.reads import ReadHandle
from nokv.errors import DeadlineExceeded, NokvError, NotFound, NotReady, Stale
from nokv.objects.layout import ObjectName, format_name, session_prefix, volume_prefix
from nokv.objects.port import ObjectStore
from nokv.testing.harness import Harness
from nokv.types.commands import Command
from nokv.types.events import EventKind
from nokv.types.limits import BLOCK_BYTES
from nokv.types.reads import AttrReply, BodiesReply, BodyRow, Event, GetAttr, ListBodies
from nokv.types.values import At
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import PROTOCOL, DigestReply, Hello, MakeDigest
from nokv.wire.tls import connect_context

PARALLEL: Final = 16
PAGE: Final = 1000
TRIES: Final = 20
DIGESTS_S: Final = 60.0
"""All workers have digested one common checkpoint by then, or something is wrong with one."""
DIGEST_PAUSE_S: Final = 0.2
SHARD: Final = 0


# ---------------------------------------------------------------- objects


async def list_names(store: ObjectStore, prefix: str) -> list[str]:
    """Return the names of all objects that start with `prefix`."""
    found: list[str] = []
    more = True
    while more:
        page = await store.list(prefix, found[-1] if found else "", PAGE)
        found += [one.name for one in page.objects]
        more = page.more
    return found


async def list_session(store: ObjectStore, volume: str, session: int) -> list[str]:
    """Return the names of all objects that a session has stored."""
    return await list_names(store, session_prefix(volume, SHARD, session))


def count_objects(root: Path, inline_max: int) -> int:
    """Return how many objects a publish of a local tree stores."""
    total = 0
    for path in root.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size > inline_max:
            total += -(-found.st_size // BLOCK_BYTES)
    return total


class Bucket(NamedTuple):
    """The objects that are stored and those that records name."""

    stored: int
    named: int
    """By live chunk records."""
    queued: int
    """By records of replaced bodies, which wait for the collector."""
    missing: list[str]
    """Named and not stored."""
    orphans: list[str]
    """Stored and not named."""


async def compare_bucket(client: Harness, store: ObjectStore, tries: int = TRIES) -> Bucket:
    """Compare the bucket with the records, once nobody writes.

    The collector works meanwhile, so the comparison is made again, up to `tries` times, while
    something is missing or too much: a true difference stays.
    """
    assert tries > 0
    volume = client.core.volume.volume
    for attempt in range(tries):
        stored = set(await list_names(store, volume_prefix(volume)))
        live, queued = await _named(client, volume)
        bucket = Bucket(
            len(stored),
            len(live),
            len(queued - live),
            sorted((live | queued) - stored),
            sorted(stored - live - queued),
        )
        if not (bucket.missing or bucket.orphans):
            return bucket
        await asyncio.sleep(0.05 * attempt)
    return bucket


async def _named(client: Harness, volume: str) -> tuple[set[str], set[str]]:
    """Return the objects of present bodies, and those of bodies that were replaced or removed."""
    rows: list[BodyRow] = []
    options = Options(client.core.config.deadline_s)
    after, more = b"", True
    while more:
        _, value = await query(client.core, options, ListBodies(after, PAGE))
        reply = expect(value, BodiesReply)
        rows += reply.rows
        after, more = reply.after, reply.more
    present: dict[tuple[int, int], int] = {}
    places = asyncio.Semaphore(PARALLEL)

    async def look(view: int, inode: int) -> None:
        async with places:
            try:
                _, value = await query(client.core, options, GetAttr(At(view, inode)))
            except (Stale, NotFound):
                return
        present[view, inode] = expect(value, AttrReply).attr.body

    await asyncio.gather(*(look(*key) for key in {(row.view, row.inode) for row in rows}))
    live: set[str] = set()
    queued: set[str] = set()
    for row in rows:
        named = live if row.live and present.get((row.view, row.inode)) == row.body else queued
        for one in row.objects:
            numbers = (one.session, one.upload, one.chunk, one.block, one.piece)
            named.add(format_name(ObjectName(volume, SHARD, *numbers)))
    return live, queued


# ---------------------------------------------------------------- exactly once


class Once(NamedTuple):
    """What the feed and the namespace say of one publish."""

    events: int
    """Publish events of its (session, seq)."""
    generations: int
    """Different generations among its files; a file has one."""
    problems: list[str]


async def check_once(fs: AsyncClient, published: Published, command: Command, cursor: int) -> Once:
    """Return whether a publish of a new directory happened exactly once.

    Args:
        fs: where to look.
        published: what the publish returned.
        command: the one that made it visible.
        cursor: a version before the publish began.
    """
    own: list[Event] = []
    problems: list[str] = []
    parent = await fs.stat(published.path.rpartition("/")[0] or "/")
    name = os.fsencode(published.path.rpartition("/")[2])
    appeared = 0
    async for event in fs.events(cursor):
        if (event.session, event.seq) == (command.session, command.seq):
            own.append(event)
        if event.chain[:1] == (parent.inode,) and event.name == name:
            appeared += 1
    if appeared != 1:
        problems.append(f"{published.path} appeared {appeared} times in the feed")
    swaps = [event for event in own if event.kind == EventKind.MOVE_IN]
    bodies = Counter(event.inode for event in own if event.kind == EventKind.PUBLISH)
    if len(swaps) != 1:
        # Without a swap one command made all of it: one event a file.
        if swaps or sorted(bodies) != sorted(info.inode for info in published.files.values()):
            problems.append(f"{len(swaps)} swaps and {len(bodies)} files in the feed")
        twice = [inode for inode, count in bodies.items() if count > 1]
        problems += [f"inode {inode} was published more than once" for inode in twice]
    generations: set[int] = set()
    async for path, _, others in fs.walk(published.path):
        for entry in others:
            if not entry.is_file():
                continue
            assert entry.attr is not None
            below = f"{path}/{entry.name}".removeprefix(published.path).lstrip("/")
            info = published.files.get(below)
            generations.add(entry.attr.generation)
            if info is None or info.generation != entry.attr.generation:
                problems.append(f"{below} has generation {entry.attr.generation}, not as answered")
    if len(generations) != len(published.files):
        problems.append(f"{len(generations)} generations of {len(published.files)} files")
    return Once(len(swaps) + len(bodies), len(generations), problems)


# ---------------------------------------------------------------- every byte


class Compared(NamedTuple):
    """A tree of the namespace beside its source."""

    files: int
    links: int
    directories: int
    n_bytes: int
    problems: list[str]


async def compare_tree(fs: ReadHandle, path: str, source: Path) -> Compared:
    """Read a tree back whole; compare each name, mode, time, link and SHA-256 with its source."""
    wanted = await asyncio.to_thread(_describe, source)
    found: dict[str, tuple[object, ...]] = {}
    files: list[str] = []
    problems: list[str] = []
    async for folder, directories, others in fs.walk(path):
        for entry in [*directories, *others]:
            below = f"{folder}/{entry.name}".removeprefix(path).lstrip("/")
            assert entry.attr is not None
            mode = entry.attr.mode & 0o7777
            if entry.is_symlink():
                found[below] = ("link", await fs.readlink(entry.path))
            elif entry.is_dir():
                found[below] = ("directory", mode)
            else:
                found[below] = ("file", mode, entry.attr.size, entry.attr.mtime_ns)
                files.append(below)
    problems += [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is too much" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    n_bytes = 0
    places = asyncio.Semaphore(PARALLEL)

    async def one(below: str) -> int:
        async with places:
            digest, size = await _hash_remote(fs, f"{path}/{below}")
        if below in wanted and digest != await asyncio.to_thread(_hash_local, source / below):
            problems.append(f"{below} has other bytes than its source")
        return size

    n_bytes = sum(await asyncio.gather(*(one(below) for below in files)))
    kinds = Counter(value[0] for value in found.values())
    return Compared(
        kinds["file"], kinds["link"], kinds["directory"], n_bytes, sorted(problems)[:20]
    )


def _describe(source: Path) -> dict[str, tuple[object, ...]]:
    """Return name to what must be kept of it: kind, mode, size and time, or target."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, directories, names in os.walk(source):
        for name in [*directories, *names]:
            path = Path(folder) / name
            below = str(path.relative_to(source))
            status = path.lstat()
            mode = status.st_mode & 0o7777
            if stat.S_ISLNK(status.st_mode):
                found[below] = ("link", str(path.readlink()))
            elif stat.S_ISDIR(status.st_mode):
                found[below] = ("directory", mode)
            else:
                found[below] = ("file", mode, status.st_size, status.st_mtime_ns)
    return found


async def _hash_remote(fs: ReadHandle, path: str) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    async with fs.open(path, "rb") as file:
        async for data in file.chunks():
            await asyncio.to_thread(digest.update, data)
            size += len(data)
    return digest.hexdigest(), size


def _hash_local(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- digests


async def compare_digests(leader: str, addresses: dict[int, str]) -> dict[int, DigestReply]:
    """Make a checkpoint at the leader and return every node's digest of the state there.

    Raises:
        DeadlineExceeded: there was no checkpoint that all nodes digested.
    """
    end = time.monotonic() + DIGESTS_S
    reason = ""
    while time.monotonic() < end:
        try:
            first = await _digest(leader, 0)
            numbers = {node: _digest(address, first.number) for node, address in addresses.items()}
            replies = await asyncio.gather(*numbers.values())
        except NokvError as error:
            # A node misses a checkpoint where its worker was not ready for it: make another.
            reason = str(error)
            await asyncio.sleep(DIGEST_PAUSE_S)
            continue
        return dict(zip(numbers, replies, strict=True))
    message = f"no checkpoint was digested by all nodes in {DIGESTS_S:g} s: {reason}"
    raise DeadlineExceeded(message)


async def _digest(address: str, number: int) -> DigestReply:
    hello = Hello(PROTOCOL, agent="nokv evidence")
    connection = await RpcConnection.connect(address, hello, tls=connect_context())
    try:
        reply = await connection.call(MakeDigest(number), timeout_s=10.0)
    finally:
        await connection.close()
    if not isinstance(reply, DigestReply):
        message = f"{address} answered a digest with {type(reply).__name__}"
        raise NotReady(message)
    return reply

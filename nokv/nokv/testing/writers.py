"""Writers that log what they were told, and the proof that it is so afterwards.

Each writer has a directory and a file `state` in it. It makes files, sets the body of `state`, and
replaces the body of `state` if the generation is the one it last saw. What it is about to do goes
into a journal outside the cluster before it is sent, and what came of it afterwards:

- `done`: acknowledged. It must be there, exactly once.
- `unknown`: sent, and nobody knows. It may be there, at most once.
- `failed`: certainly not applied. It must not be there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nokv.client.core import ClientConfig
from nokv.client.fs import AsyncClient
from nokv.errors import DeadlineExceeded, GenerationMismatch, NokvError, OutcomeUnknown
from nokv.testing.harness import harness
from nokv.types.events import EventKind
from nokv.types.limits import INLINE_BYTES_MAX
from nokv.types.reads import Event

WRITERS: Final = 8
LARGE_EVERY: Final = 24
"""Every so manieth body is too large for the metadata, so that objects are dropped too."""


class Journal:
    """A file of JSON lines, each written before the program goes on."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, **fields: object) -> None:
        """Add a line."""
        os.write(self._fd, json.dumps(fields).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return what was attempted, in order, each with its `outcome`: unknown unless noted."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        found.setdefault(fields["number"], {"outcome": "unknown"}).update(fields)
    return [found[number] for number in sorted(found)]


class Writer:
    """One writer with its own client, session and journal."""

    def __init__(self, cluster: str, directory: str, journal: Path, name: str) -> None:
        self.directory: Final = directory
        self.journal: Final = Journal(journal)
        self.acknowledged = 0
        self._told = asyncio.Event()
        self._cluster = cluster
        self._name = name
        self._generation = 0
        self._number = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Write, one thing after the other, until told to stop."""
        config = ClientConfig(agent=f"writer-{self._name}", parallel=2)
        async with harness(self._cluster, config=config) as client:
            fs = client.fs
            try:
                await fs.mkdir(self.directory)
                while not stop.is_set():
                    self._number += 1
                    await self._one(fs, self._number)
            finally:
                self.journal.close()

    async def _one(self, fs: AsyncClient, number: int) -> None:
        kind = ("create", "set", "replace")[number % 3]
        self.journal.write(number=number, kind=kind, generation_before=self._generation)
        try:
            if kind == "create":
                attr = await fs.create(f"{self.directory}/file-{number}")
                generation = attr.version
            else:
                expected = None if kind == "set" else self._generation
                info = await fs.write_bytes(
                    f"{self.directory}/state", self.body(number), if_generation=expected
                )
                self._generation = generation = info.generation
        except (DeadlineExceeded, OutcomeUnknown):
            self.journal.write(number=number, outcome="unknown")
            self._generation = (await fs.stat(f"{self.directory}/state")).generation
        except NokvError as error:
            self.journal.write(number=number, outcome="failed", error=str(error))
            if not isinstance(error, GenerationMismatch):
                raise
            self._generation = (await fs.stat(f"{self.directory}/state")).generation
        else:
            self.acknowledged += 1
            self._told.set()
            self.journal.write(number=number, outcome="done", generation=generation)

    async def wait_acknowledged(self, count: int) -> None:
        """Wait until so many writes were acknowledged."""
        while self.acknowledged < count:
            self._told.clear()
            await self._told.wait()

    def body(self, number: int) -> bytes:
        """Return the body that write `number` gives to `state`."""
        text = f"{self.directory} {number}\n".encode()
        return text * (INLINE_BYTES_MAX // len(text) + 1 if number % LARGE_EVERY == 1 else 1)


@dataclass
class Verdict:
    """What a check of the journals found."""

    done: int = 0
    unknown: int = 0
    unknown_applied: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything is as it was promised."""
        return not (self.lost or self.duplicated or self.wrong)

    def problems(self) -> str:
        """Return the first problems, for people."""
        return "; ".join([*self.lost, *self.duplicated, *self.wrong][:5])


@asynccontextmanager
async def writing(
    cluster: str, base: str, journals: Path, count: int = WRITERS
) -> AsyncIterator[list[Writer]]:
    """Run writers below `base`, which is made, for the length of a block."""
    async with harness(cluster) as client:
        await client.fs.mkdir(base)
    writers = [
        Writer(cluster, f"{base}/writer-{i}", journals / f"writer-{i}", f"{i}")
        for i in range(count)
    ]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run(stop))
        try:
            yield writers
        finally:
            stop.set()


async def check_writers(fs: AsyncClient, writers: Iterable[Writer], cursor: int = 0) -> Verdict:
    """Compare the journals with the namespace and with the feed of events after `cursor`."""
    by_parent: dict[int, list[Event]] = {}
    async for event in fs.events(cursor):
        if event.chain:
            by_parent.setdefault(event.chain[0], []).append(event)
    verdict = Verdict()
    for writer in writers:
        directory = await fs.stat(writer.directory)
        await _check_one(fs, writer, by_parent.get(directory.inode, []), verdict)
    return verdict


async def _check_one(
    fs: AsyncClient, writer: Writer, events: list[Event], verdict: Verdict
) -> None:
    journal = read_journal(writer.journal.path)
    there = set(await fs.listdir(writer.directory))
    created = Counter(event.name for event in events if event.kind == EventKind.CREATE)
    published = [event for event in events if event.kind == EventKind.PUBLISH]
    generations = Counter(event.generation for event in published)
    outcomes = Counter((event.session, event.seq) for event in events)
    verdict.duplicated += [
        f"{writer.directory}: {key} twice" for key, n in outcomes.items() if n > 1
    ]
    acknowledged = 0
    possible = 0
    for attempt in journal:
        number, outcome = attempt["number"], attempt["outcome"]
        shown = f"{writer.directory} {attempt['kind']} {number}"
        verdict.done += outcome == "done"
        verdict.unknown += outcome == "unknown"
        if attempt["kind"] == "create":
            name = f"file-{number}"
            seen = created[name.encode()]
            _judge(verdict, shown, outcome, seen)
            if (name in there) != (seen > 0):
                verdict.wrong.append(f"{shown}: the listing and the feed differ")
        elif outcome == "done":
            acknowledged += 1
            _judge(verdict, shown, outcome, generations[attempt["generation"]])
        else:
            possible += outcome == "unknown"
    extra = len(published) - acknowledged
    if extra > possible:
        verdict.duplicated.append(
            f"{writer.directory}/state: {len(published)} generations of {acknowledged} "
            f"acknowledged and {possible} unknown writes"
        )
    verdict.unknown_applied += max(0, extra)
    await _check_state(fs, writer, journal, max(generations, default=0), verdict)


def _judge(verdict: Verdict, shown: str, outcome: str, seen: int) -> None:
    if outcome == "done" and seen == 0:
        verdict.lost.append(shown)
    elif seen > 1:
        verdict.duplicated.append(shown)
    elif outcome == "failed" and seen:
        verdict.wrong.append(f"{shown}: failed, and is there")
    elif outcome == "unknown":
        verdict.unknown_applied += seen


async def _check_state(
    fs: AsyncClient, writer: Writer, journal: list[dict[str, Any]], newest: int, verdict: Verdict
) -> None:
    """The present generation is the newest of the feed, and has the body of the write it was."""
    if not newest:
        return
    state = f"{writer.directory}/state"
    attr, body = await fs.stat(state), await fs.read(state)
    if attr.generation != newest:
        verdict.wrong.append(f"{state} has generation {attr.generation}, the feed {newest}")
    writes = [attempt for attempt in journal if attempt["kind"] != "create"]
    known = [a["number"] for a in writes if a.get("generation") == newest]
    allowed = known or [a["number"] for a in writes if a["outcome"] == "unknown"]
    if body not in [writer.body(number) for number in allowed]:
        verdict.wrong.append(f"{state} is {body[:60]!r}, which is none of {allowed}")

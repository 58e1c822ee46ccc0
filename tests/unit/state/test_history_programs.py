"""What a pin shows never changes, whatever happens and is reaped after it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.state.bodies import Files, inline
from tests.unit.state.programs import Programs
from tests.unit.state.shard import at

from nokv.errors import Internal, NokvError
from nokv.state.families import Family
from nokv.types import reads as r
from nokv.types.commands import (
    Collected,
    Create,
    ExpireSession,
    Link,
    Op,
    PinView,
    PublishMode,
    Rename,
    SetAttr,
    Unlink,
    UnpinView,
)
from nokv.types.results import Pinned
from nokv.types.values import At, Caller

COMMANDS = 120


def look(files: Files, version: int = 0) -> dict[Any, Any]:
    """Return all that can be read at a version: every name, attribute, body and inode."""
    shown: dict[Any, Any] = {}
    ask = files.machine.read
    caller = Caller()

    def answer(request: r.Read) -> Any:
        try:
            return ask(caller, request)[1]
        except NokvError as error:
            assert not isinstance(error, Internal)  # noqa: PT017  any other is an answer
            return type(error)

    def walk(path: tuple[bytes, ...]) -> None:
        address, after = At(0, 1, path, follow=False), b""
        shown[path] = answer(r.GetAttr(address, version))
        while True:
            page = answer(r.ReadDir(address, after, 2, plus=True, at_version=version))
            if not isinstance(page, r.DirPage):
                return
            for entry in page.entries:
                shown[path, entry.name] = entry
                walk((*path, entry.name))
            after = page.after
            if not page.more:
                return

    walk(())
    for ino in range(1, 40):
        here = At(0, ino)
        shown[ino] = (
            answer(r.GetAttr(here, version)),
            answer(r.BodyMap(here, 0, 2**62, version)),
            answer(r.ListXattr(here, version)),
            answer(r.GetXattr(here, b"user.a", version)),
            answer(r.ReadLink(here, version)),
        )
    return shown


def compare(files: Files, pins: dict[Pinned, dict[Any, Any]]) -> None:
    for pin, before in pins.items():
        now = look(files, pin.version)
        for key in before.keys() | now.keys():
            assert now.get(key) == before.get(key), f"at {pin.version}: {key}"


def collect_some(files: Files) -> None:
    """Do what a worker does in the middle of everything."""
    files.raise_floor()
    files.wait()
    reply = files.drops(2)
    files.internal(Collected(tuple((d.drop, d.through) for d in reply.drops)))


@pytest.mark.seeds(25)
def test_pins_show_what_was_there(seed: int) -> None:
    files = Files()
    files.upload(500)
    programs = Programs(seed, odd=0.0)
    pins: dict[Pinned, dict[Any, Any]] = {}
    for number in range(COMMANDS):
        op, node = programs.op()
        if isinstance(op, ExpireSession):
            continue
        before = look(files) if isinstance(op, PinView) else {}
        command = files.command(op, programs.caller(), session=0 if node else None)
        [result] = files.entry(command)
        if isinstance(op, UnpinView) and not result.code:
            pins.pop(Pinned(op.view, op.version, op.pin))
        if isinstance(result.value, Pinned):
            pins[result.value] = before
        if number % 10 == 0:
            collect_some(files)
        programs.look(files)
        files.check()
        if number % 6 == 0:
            compare(files, pins)
    compare(files, pins)
    files.reap(1)
    compare(files, pins)
    files.quiesce()


STEPS = st.sampled_from(
    (
        Create(at(), b"a", 0o644),
        Create(at(), b"b", 0o644),
        Unlink(at(), b"a"),
        Unlink(at(), b"b"),
        Rename(at(), b"a", at(), b"b"),
        Rename(at(), b"b", at(), b"a"),
        Link(at("a"), at(), b"b"),
        SetAttr(at("a"), size=0),
        SetAttr(at("a"), size=2),
        "replace",
        "patch",
        "append",
        "pin",
        "unpin oldest",
        "unpin newest",
        "reap",
        "collect",
    )
)


@given(st.lists(STEPS, min_size=3, max_size=30))
@settings(max_examples=120)
def test_two_names_and_pins_in_all_positions(steps: list[Op | str]) -> None:
    files = Files()
    pins: dict[Pinned, dict[Any, Any]] = {}
    modes = {
        "replace": PublishMode.REPLACE,
        "patch": PublishMode.PATCH,
        "append": PublishMode.APPEND,
    }
    for number, step in enumerate(steps):
        if step == "pin":
            before = look(files)
            pinned = files.do(PinView(0))
            assert isinstance(pinned, Pinned)
            pins[pinned] = before
        elif step in {"unpin oldest", "unpin newest"}:
            if pins:
                pin = list(pins)[0 if step == "unpin oldest" else -1]
                del pins[pin]
                files.do(UnpinView(pin.view, pin.version, pin.pin))
        elif step == "reap":
            files.reap(1)
        elif step == "collect":
            collect_some(files)
        elif isinstance(step, str):
            chunk = inline(b"%d" % number, number % 3)
            files.entry(files.command(files.publishing(at(), b"a", chunk, mode=modes[step])))
        else:
            files.entry(files.command(step))
        files.check()
        compare(files, pins)
    files.quiesce()


def test_reclaiming_costs_what_is_freed() -> None:
    files = Files()
    for i in range(20):
        files.create(f"f{i}")
    pins = []
    for i in range(20):
        pinned = files.do(PinView(0))
        assert isinstance(pinned, Pinned)
        pins.append(pinned)
        files.do(SetAttr(at(f"f{i}"), mode=0o600))
    assert files.count(Family.HISTORY) == files.count(Family.RECLAIM)
    for pin in (pins[10], pins[3], pins[19], *pins[4:10], *pins[11:19], *pins[:3]):
        files.do(UnpinView(pin.view, pin.version, pin.pin))
        before = files.count(Family.HISTORY) + files.count(Family.TOUCHED)
        done = files.reap(2)
        after = files.count(Family.HISTORY) + files.count(Family.TOUCHED)
        assert done == before - after + 1, "the job's own row, and what went"
        files.check()
    assert files.count(Family.HISTORY) == files.count(Family.RECLAIM) == 0
    assert not files.count(Family.TOUCHED)

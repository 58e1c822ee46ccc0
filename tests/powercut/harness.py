"""Runs the workload step by step, and judges what a power cut left of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.powercut.disk import ROOT
from tests.powercut.workload import expected_digests

STEPS_MAX = 160
DIGESTS = expected_digests(STEPS_MAX)


class DiedError(Exception):
    """The process ended without an answer."""


class Workload:
    """A process of `workload.py`."""

    def __init__(self, *arguments: object, pass_fds: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.powercut.workload", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            pass_fds=pass_fds,
        )

    def listen(self) -> list[Any]:
        """Return its next message. Raises DiedError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DiedError
        message: list[Any] = json.loads(line)
        return message

    def tell(self, line: str) -> None:
        """Send a line. Raises DiedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise DiedError from None

    def ask(self, line: str) -> list[Any]:
        """Send a line and return the answer. Raises DiedError."""
        self.tell(line)
        return self.listen()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it, as far as it still runs."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@dataclass
class Acknowledged:
    """What the workload was promised, and when, counted in events."""

    messages: list[tuple[int, list[Any]]] = field(default_factory=list)
    replaced: int | None = None
    """Events before the store was first replaced by an image, which counts openings anew."""

    def add(self, events: int, message: list[Any]) -> None:
        """Note a message that came after that many events."""
        self.messages.append((events, message))

    def judge(self, event: int, found: list[Any]) -> str:
        """Return what is wrong with a survivor of a cut just before `event`, or nothing.

        Its step is the last one committed or the next, its content that of the step, and it counts
        every opening that was answered.
        """
        if found[0] != "opened":
            return f"it does not open: {found[1]}"
        past = [message for count, message in self.messages if count <= event]
        step = max((m[1] for m in past if m[0] == "committed"), default=0)
        opens = max((m[1] for m in past if m[0] == "opened"), default=0)
        if found[2] not in {step, step + 1}:
            return f"step {step} was acknowledged, step {found[2]} is there"
        if found[3] != DIGESTS[found[2]]:
            return f"the content is not that of step {found[2]}"
        replaced = self.replaced is not None and event >= self.replaced
        if found[1] <= opens and not replaced:
            return f"opening {opens} was answered, the next one is number {found[1]}"
        return ""


def run_steps(
    workload: Workload, commands: Iterable[str], events: Callable[[], int]
) -> Acknowledged:
    """Let the workload do each command ("step", "install" or "reopen"), noting when it answered."""
    acknowledged = Acknowledged()
    message = workload.listen()
    acknowledged.add(events(), message)
    for command in commands:
        if command == "install" and acknowledged.replaced is None:
            acknowledged.replaced = events()
        message = workload.ask(command)
        acknowledged.add(events(), message)
    return acknowledged


def first_problem(images: Path, store: str, acknowledged: Acknowledged) -> tuple[int, str]:
    """Judge images NNNNN/KIND/store; return how many were judged, and the first problem or "".

    They are opened in another process: a damaged one may kill it.
    """
    checker, judged = Workload("check"), 0
    try:
        for point in sorted(images.iterdir()):
            for image in sorted(point.iterdir()):
                try:
                    found = checker.ask(str(image / store))
                except DiedError:
                    found = ["failed", "the process died"]
                judged += 1
                problem = acknowledged.judge(int(point.name), found)
                if problem:
                    return judged, f"{point.name}/{image.name}: {problem}"
    finally:
        checker.kill()
    return judged, ""

"""A disk that loses power: `PowerCutDisk` mounts it, cuts it, and tells what happened on it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.powercut.server import mount, unmount

ROOT = Path(__file__).parents[2]


@functools.cache
def why_unusable() -> str:
    """Return why this machine cannot mount the disk, or an empty string. Tries it once."""
    if sys.platform != "linux":
        return "the power-cut disk needs Linux"
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"the power-cut disk needs /dev/fuse and root: {error}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            mount(Path(folder), fd)
            os.close(fd)
            fd = -1
            unmount(Path(folder))
    except OSError as error:
        return f"the power-cut disk cannot be mounted here: {error}"
    finally:
        if fd >= 0:
            os.close(fd)
    return ""


class PowerCutDisk:
    """A file system at `mountpoint` that holds, after a cut, only what was synced.

    It runs in a process of its own; a program on it must run in another process than this one's
    too (after a cut its mapped pages are gone, and it dies of SIGBUS). `backing` is an empty folder
    for the content. Both folders must exist. What the disk keeps and loses: `volume.py`.

    An event is a write, a sync or a change of names; events and syncs are numbered from 0.
    """

    def __init__(self, mountpoint: Path, backing: Path) -> None:
        self.mountpoint = mountpoint
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.powercut.server", str(mountpoint), str(backing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            assert self._answer() == "ready"
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the power-cut disk's process ended; its standard error says why"
        return json.loads(line)

    def _call(self, name: str, *arguments: object) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
        self._server.stdin.flush()
        return self._answer()

    def cut(self, seed: int | None) -> None:
        """Cut the power now (or where `cut_at` did), and turn it on again.

        With a seed a part of what was not synced is kept, torn at sectors; with None nothing is.
        Whatever ran on the disk gets errors: kill it first. Returns with the survivor mounted.
        """
        self._call("cut", seed)

    def cut_at(self, event: int) -> None:
        """Turn the power off just before that event: all requests fail from there until `cut`."""
        self._call("cut_at", event)

    def events(self) -> list[str]:
        """Return every event so far: what was done, and to which file."""
        events: list[str] = self._call("events")
        return events

    def syncs(self) -> list[str]:
        """Return those events that are syncs, of files, of synchronous writes, of directories."""
        syncs: list[str] = self._call("syncs")
        return syncs

    def ignore_sync(self, number: int) -> None:
        """Let that sync succeed and do nothing: a planted bug."""
        self._call("ignore_sync", number)

    def take_images(self, directory: Path, seeds: list[int]) -> None:
        """Before each event from now on, write what a cut there would leave as plain files.

        They lie in `directory`/NNNNN/drop (nothing unsynced is kept) and NNNNN/tear-SEED.
        """
        self._call("take_images", str(directory), seeds)

    def take_image(self) -> None:
        """Write the same for a cut now, where the next event would be."""
        self._call("take_image")

    def close(self) -> None:
        """End the disk and its process, and leave no mount, whatever happened before."""
        try:
            if self._server.stdin is not None:
                self._server.stdin.close()
            self._server.wait(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._server.kill()
            self._server.wait()
        finally:
            if self._server.stdout is not None:
                self._server.stdout.close()
            unmount(self.mountpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

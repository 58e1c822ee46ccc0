"""The supervisor: starts a node's shard and worker process and watches them.

A worker that dies is started again, at growing distances. A shard process that ends, for whatever
reason, ends the node with its exit code: systemd, or whoever started it, decides about the next
try. The children die with the supervisor, also when it is killed. It has no loop and imports
little, so that an idle node costs little memory.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Final

import msgspec

from nokv._guard import EXIT_REFUSED
from nokv.server import channel
from nokv.server.config import NodeConfig
from nokv.server.process import ProcessSpec

log = logging.getLogger("nokv.supervisor")

_STOP: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_WATCHED: Final = _STOP | {signal.SIGCHLD}
BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
STABLE_S: Final = 60.0
"""A worker that lived so long is started again at once."""
WORKER_STOP_S: Final = 5.0
SHARD_STOP_EXTRA_S: Final = 10.0
"""Beyond `timing.stop_ms`, before the shard process is killed."""


class Supervisor:
    """One node's processes."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._shard_end, self._worker_end = channel.make_pair()
        self._shard: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._worker_started_s = 0.0
        self._backoff_s = BACKOFF_MIN_S
        self._restart_at_s: float | None = None

    def run(self) -> int:
        """Run the node until it is told to stop or its shard process ends; return the exit code.

        The process's signal mask is changed: these signals arrive here and nowhere else.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._shard = self._start("nokv.server.shard", self._shard_end)
        self._shard_end.close()
        if self._config.worker.enabled:
            self._start_worker()
        while True:
            code = self._shard.poll()
            if code is not None:
                self._end_worker()
                return code if code >= 0 else 128 - code
            self._mind_worker()
            arrived = signal.sigtimedwait(_WATCHED, self._patience_s())
            if arrived is not None and arrived.si_signo in _STOP:
                return self._stop()

    def _patience_s(self) -> float:
        if self._restart_at_s is None:
            return 3600.0
        return max(0.0, self._restart_at_s - time.monotonic())

    def _start(self, module: str, end: socket.socket) -> subprocess.Popen[bytes]:
        spec = ProcessSpec(self._config, os.getpid(), end.fileno())
        process = subprocess.Popen(
            [sys.executable, "-m", "nokv.server.launch", module],
            stdin=subprocess.PIPE,
            pass_fds=(end.fileno(),),
        )
        assert process.stdin is not None, "a pipe was asked for"
        try:
            with process.stdin as pipe:
                pipe.write(msgspec.json.encode(spec) + b"\n")
        except BrokenPipeError:
            log.error("%s ended before it was told what to do", module)
        return process

    # ------------------------------------------------------------ worker

    def _start_worker(self) -> None:
        self._restart_at_s = None
        self._worker_started_s = time.monotonic()
        self._worker = self._start("nokv.server.worker", self._worker_end)

    def _mind_worker(self) -> None:
        """Start a worker that died again, once its distance is over."""
        now_s = time.monotonic()
        if self._worker is not None and self._worker.poll() is not None:
            lived_s = now_s - self._worker_started_s
            self._backoff_s = (
                BACKOFF_MIN_S if lived_s >= STABLE_S else min(self._backoff_s * 2, BACKOFF_MAX_S)
            )
            # A worker that refuses to start has said why; and mostly the shard process ends for the
            # same reason a moment later.
            refused = self._worker.returncode == EXIT_REFUSED
            log.log(
                logging.DEBUG if refused else logging.WARNING,
                "the worker ended; it is started again",
                extra={"fields": {"code": self._worker.returncode, "in_s": self._backoff_s}},
            )
            self._worker = None
            self._restart_at_s = now_s + self._backoff_s
        if self._restart_at_s is not None and now_s >= self._restart_at_s:
            self._start_worker()

    def _end_worker(self) -> None:
        if self._worker is None:
            return
        self._worker.terminate()
        try:
            self._worker.wait(WORKER_STOP_S)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self._worker = None

    # ------------------------------------------------------------ stopping

    def _stop(self) -> int:
        """Stop both, gracefully within bounds; return the shard's exit code."""
        assert self._shard is not None, "stopped before it was started"
        self._shard.terminate()
        self._end_worker()
        try:
            code = self._shard.wait(self._config.timing.stop_ms / 1000 + SHARD_STOP_EXTRA_S)
        except subprocess.TimeoutExpired:
            log.error("the shard process does not stop; it is killed")
            self._shard.kill()
            code = self._shard.wait()
        if code == -signal.SIGTERM:
            return 0  # told to stop before it had begun to serve
        return code if code >= 0 else 128 - code

"""Processes that end with whoever started them, however that one ends.

The starter keeps the write end of a pipe, the process gets the read end: it reads the end of file
when the last holder of the write end is gone, `kill -9` included. Unlike PR_SET_PDEATHSIG this does
not depend on which thread started the process, and works on every POSIX system.
"""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE_S = 10.0
"""A process that was told to stop is killed after so long."""


def follow(read_fd: int) -> None:
    """Have this process stop when the other end of the pipe is closed: SIGTERM, then SIGKILL."""
    os.set_inheritable(read_fd, False)  # noqa: FBT003 - its only parameter
    thread = threading.Thread(target=_wait, args=(read_fd,), name="nokv-lifeline", daemon=True)
    # A thread inherits the mask of its maker: no signal of the process may end up in this one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(read_fd: int) -> None:
    while os.read(read_fd, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)

"""Small truths about processes on Linux."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

import msgspec

from nokv.server.config import NodeConfig

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2), linux/prctl.h."""


class ProcessSpec(msgspec.Struct, frozen=True):
    """What the supervisor tells a process it starts: one line of JSON on its standard input."""

    config: NodeConfig
    parent: int
    """The supervisor's process id."""
    channel_fd: int
    """The process's end of the channel between shard and worker; -1: none."""


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the system send this process a signal when the thread that started it ends.

    `parent` is the process that started it, as it said itself: if that is gone already, exit now.
    Does nothing where there is no prctl(2). Raises OSError.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)

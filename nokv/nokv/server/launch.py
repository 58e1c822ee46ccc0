"""`python -m nokv.server.launch MODULE`: the start of a node's child process."""

from __future__ import annotations

import signal
import sys
from typing import Final

_ROLES: Final = ("nokv.server.shard", "nokv.server.worker")


def main() -> int:
    """Run one of a node's processes; return its exit code."""
    # The supervisor blocks the signals that it waits for, and a child inherits the mask.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    role = sys.argv[1] if len(sys.argv) == 2 else ""
    if role == _ROLES[0]:
        from nokv.server import shard

        return shard.main()
    if role == _ROLES[1]:
        from nokv.server import worker

        return worker.main()
    sys.stderr.write("this is started by nokv serve\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())

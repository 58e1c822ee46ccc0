"""The errors of the LMDB store."""

from __future__ import annotations

import errno


class StoreFailed(Exception):
    """The store cannot go on: a failed read, write or sync, a full disk or map, a damaged file.

    Nothing may be retried in place: after a failed sync the kernel has dropped the pages, and a
    second sync would succeed over the hole. The process exits; the next one opens the last commit
    and replays the log. `errno` is the system's number where there is one, else EIO.
    """

    def __init__(self, what: str, code: int = errno.EIO) -> None:
        super().__init__(what)
        self.errno = code if code > 0 else errno.EIO


class StoreBusy(StoreFailed):
    """Another process has this store open for writing."""

    def __init__(self, what: str) -> None:
        super().__init__(what, errno.EBUSY)

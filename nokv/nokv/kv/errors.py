"""The errors of the LMDB store."""

from __future__ import annotations

import errno

from nokv.state.port import StoreFailed

__all__ = ["StoreBusy", "StoreFailed"]


class StoreBusy(StoreFailed):
    """Another process has this store open for writing."""

    def __init__(self, what: str) -> None:
        super().__init__(what, errno.EBUSY)

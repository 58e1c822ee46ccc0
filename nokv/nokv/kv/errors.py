"""The errors of the LMDB store."""

from __future__ import annotations

import errno

from nokv.state.port import StoreDamaged, StoreFailed

__all__ = ["ImageDamaged", "ImageNewer", "StoreBusy", "StoreDamaged", "StoreFailed"]


class StoreBusy(StoreFailed):
    """Another process has this store open for writing."""

    def __init__(self, what: str) -> None:
        super().__init__(what, errno.EBUSY)


class ImageDamaged(Exception):
    """Bytes of a state image were changed, are missing, or never were one."""


class ImageNewer(Exception):
    """A newer build made this image, and this one cannot read it."""

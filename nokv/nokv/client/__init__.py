"""The client: routing, sessions, files, publish; and a thin synchronous facade. See DESIGN.md."""

from __future__ import annotations

from nokv.client.connect import connect
from nokv.client.core import ClientConfig
from nokv.client.diff import Difference, Generation
from nokv.client.entries import Entry
from nokv.client.files import AsyncReader, AsyncTextReader, AsyncTextWriter, AsyncWriter
from nokv.client.fs import AsyncClient
from nokv.client.publish import Published
from nokv.client.readonly import PinnedView, SnapshotView
from nokv.client.upload import FileInfo
from nokv.client.watch import Change, Watch
from nokv.wire.tls import TlsFiles

__all__ = [
    "AsyncClient",
    "AsyncReader",
    "AsyncTextReader",
    "AsyncTextWriter",
    "AsyncWriter",
    "Change",
    "ClientConfig",
    "Difference",
    "Entry",
    "FileInfo",
    "Generation",
    "PinnedView",
    "Published",
    "SnapshotView",
    "TlsFiles",
    "Watch",
    "connect",
]

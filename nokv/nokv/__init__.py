"""NoKV: a replicated metadata control plane with immutable bodies in object storage.

import nokv

async with nokv.connect("127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103") as fs:
    done = await fs.publish("/models/run-7", {"meta.json": b"{}"})

with nokv.connect_sync() as fs:  # the cluster that NOKV_CLUSTER names
    print(fs.read("/models/run-7/meta.json"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nokv import errors

if TYPE_CHECKING:
    from nokv import types
    from nokv.client import (
        AsyncClient,
        Change,
        ClientConfig,
        Entry,
        FileInfo,
        Published,
        TlsFiles,
        Watch,
        connect,
    )
    from nokv.client.sync import Client, connect_sync

_LAZY = {
    "types": "nokv.types",
    "connect": "nokv.client",
    "AsyncClient": "nokv.client",
    "Change": "nokv.client",
    "ClientConfig": "nokv.client",
    "Entry": "nokv.client",
    "FileInfo": "nokv.client",
    "Published": "nokv.client",
    "TlsFiles": "nokv.client",
    "Watch": "nokv.client",
    "Client": "nokv.client.sync",
    "connect_sync": "nokv.client.sync",
}
"""Loaded at first use: a node's processes import this package and need no client."""

__all__ = [
    "AsyncClient",
    "Change",
    "Client",
    "ClientConfig",
    "Entry",
    "FileInfo",
    "Published",
    "TlsFiles",
    "Watch",
    "connect",
    "connect_sync",
    "errors",
    "types",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        message = f"module 'nokv' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    module = import_module(_LAZY[name])
    found = module if name == "types" else getattr(module, name)
    globals()[name] = found
    return found

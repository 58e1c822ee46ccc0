"""Copying a file out: a temporary file beside the target, verified, synced, then renamed."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from nokv.client.bodies import OpenBody, open_body
from nokv.client.core import Core
from nokv.client.options import Options
from nokv.errors import ObjectCorrupt
from nokv.types.values import At, Attr

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with the bytes of each piece that was written."""


async def get_file(
    core: Core,
    options: Options,
    where: At,
    local: str | os.PathLike[str],
    progress: Progress | None,
) -> Attr:
    """Copy the file at `where` to `local`; see `ReadHandle.get_file`."""
    body = await open_body(core, options, where)
    try:
        target = Path(local)
        file, temporary = await _run(lambda: _create(target))
        try:
            await _copy(body, file, progress)
            await _run(lambda: _finish(file, body.attr))
            await _run(lambda: _rename(Path(temporary), target))
        except BaseException:
            file.close()
            await _run(lambda: Path(temporary).unlink(missing_ok=True))
            raise
        return body.attr
    finally:
        body.close()


async def _copy(body: OpenBody, file: BinaryIO, progress: Progress | None) -> None:
    attr = body.attr
    digest = hashlib.sha256() if attr.sha256 else None

    def write(data: bytes) -> None:
        file.write(data)
        if digest is not None:
            digest.update(data)

    written = 0
    async for data in body.stream(0):
        await _run(functools.partial(write, data))
        written += len(data)
        if progress is not None:
            progress(len(data))
    if written != attr.size or (digest is not None and digest.digest() != attr.sha256):
        message = f"inode {attr.inode} generation {attr.generation}: {written} bytes"
        wanted = f"{attr.size} bytes with SHA-256 {attr.sha256.hex()}"
        raise ObjectCorrupt(f"{message} that are not the {wanted} that were published")


def _create(target: Path) -> tuple[BinaryIO, str]:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    return os.fdopen(descriptor, "wb"), name


def _finish(file: BinaryIO, attr: Attr) -> None:
    file.flush()
    descriptor = file.fileno()
    os.fchmod(descriptor, attr.mode & 0o777)
    os.utime(descriptor, ns=(attr.atime_ns, attr.mtime_ns))
    os.fsync(descriptor)
    file.close()


def _rename(temporary: Path, target: Path) -> None:
    temporary.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _run(call: Callable[[], T]) -> T:
    """Call in a thread, and wait for it to end even if the caller is cancelled."""
    done = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        done.exception()
        raise

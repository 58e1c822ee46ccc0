"""`nokv put`, `get`: what they do with this machine's files and pipes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from nokv.cli.files import _read_pipe, _scan


def test_a_pipe_without_bytes_does_not_hold_the_loop() -> None:
    """A writer that is slow, and one that stays: the loop goes on, and can be cancelled."""

    async def run(read_fd: int, write_fd: int) -> None:
        pipe = _read_pipe(read_fd)
        for data in (b"one", b"two", b"three"):
            os.write(write_fd, data)
            assert await anext(pipe) == data
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(anext(pipe))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        os.write(write_fd, b"four")
        assert await waiting == b"four"
        waiting = asyncio.ensure_future(anext(pipe))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    read_fd, write_fd = os.pipe()
    try:
        asyncio.run(run(read_fd, write_fd))
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_a_link_has_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "lnk").symlink_to("file")
    assert _scan(str(tmp_path / "lnk"), recursive=False).name == "lnk"
    for path in (tmp_path / ".", f"{tmp_path}/x/..", f"{tmp_path}/"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert _scan(str(path), recursive=True).name == tmp_path.name

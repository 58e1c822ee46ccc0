"""Publish a checkpoint as one change, and read it while the next one replaces it.

export NOKV_CLUSTER=127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
python examples/publish_checkpoint.py
"""

from __future__ import annotations

import asyncio
import json
import os

import nokv


async def main() -> None:
    """Publish twice; a reader that opened the first one keeps it."""
    async with nokv.connect() as fs:
        await fs.mkdir("/models", exist_ok=True)
        first = {"weights.bin": os.urandom(8 << 20), "meta.json": json.dumps({"step": 1}).encode()}
        done = await fs.publish("/models/run", first, "replace")
        print(f"version {done.version}, sha256 {done.files['weights.bin'].sha256[:16]}...")

        async with fs.open("/models/run/weights.bin") as weights:
            second = {"weights.bin": os.urandom(8 << 20), "meta.json": b'{"step": 2}'}
            await fs.publish("/models/run", second, "replace")
            # What was opened stays what it was: one generation, verified.
            assert await weights.read() == first["weights.bin"]
        assert await fs.read("/models/run/weights.bin") == second["weights.bin"]


if __name__ == "__main__":
    asyncio.run(main())

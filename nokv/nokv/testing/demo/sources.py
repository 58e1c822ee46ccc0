"""What the demonstration publishes: a real tree, and a sharded checkpoint made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sysconfig
from pathlib import Path
from typing import Final, NamedTuple

MIB: Final = 1 << 20
SHARDS: Final = 8
TENSORS: Final = 4
"""Of one shard."""
COLUMNS: Final = 1024

SKIPPED: Final = ("__pycache__", "site-packages", "dist-packages", "*.pyc", "*.pyo", "*.a")


class Source(NamedTuple):
    """A local tree."""

    title: str
    path: Path
    files: int
    n_bytes: int


def copy_library(target: Path) -> Source:
    """Copy the running Python's standard library, so that nobody writes to it meanwhile."""
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        library,
        target,
        symlinks=True,
        ignore=shutil.ignore_patterns(*SKIPPED),
        copy_function=_copy_readable,
        ignore_dangling_symlinks=True,
    )
    return measure("the standard library of this Python", target)


def _copy_readable(source: str, target: str) -> str:
    """Copy a regular file with its mode and times."""
    return shutil.copy2(source, target, follow_symlinks=False)


def make_checkpoint(target: Path, n_bytes: int) -> Source:
    """Write a model of random tensors in shards of the safetensors format, with its index."""
    target.mkdir(parents=True)
    rows = max(1, n_bytes // SHARDS // TENSORS // COLUMNS // 4)
    weights: dict[str, str] = {}
    for shard in range(1, SHARDS + 1):
        name = f"model-{shard:05d}-of-{SHARDS:05d}.safetensors"
        names = [f"layers.{(shard - 1) * TENSORS + i}.weight" for i in range(TENSORS)]
        weights |= dict.fromkeys(names, name)
        _write_shard(target / name, names, rows)
    total = SHARDS * TENSORS * rows * COLUMNS * 4
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (target / "config.json").write_text(json.dumps({"hidden_size": COLUMNS, "dtype": "float32"}))
    (target / "latest.safetensors").symlink_to(f"model-{SHARDS:05d}-of-{SHARDS:05d}.safetensors")
    return measure("a safetensors checkpoint", target)


def _write_shard(path: Path, names: list[str], rows: int) -> None:
    try:
        import numpy as np
        from safetensors.numpy import save_file
    except ImportError:
        _write_plain(path, names, rows)
        return
    rng = np.random.default_rng()
    save_file(
        {name: rng.standard_normal((rows, COLUMNS), dtype=np.float32) for name in names}, path
    )


def _write_plain(path: Path, names: list[str], rows: int) -> None:
    """Write the format without its library: length of the header, header, tensors."""
    size = rows * COLUMNS * 4
    header = {
        name: {"dtype": "F32", "shape": [rows, COLUMNS], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in names:
            file.write(os.urandom(size))


def measure(title: str, path: Path) -> Source:
    """Count a tree's regular files and their bytes."""
    files = n_bytes = 0
    for folder, _, names in os.walk(path):
        for name in names:
            found = (Path(folder) / name).lstat()
            if stat.S_ISREG(found.st_mode):
                files += 1
                n_bytes += found.st_size
    return Source(title, path, files, n_bytes)

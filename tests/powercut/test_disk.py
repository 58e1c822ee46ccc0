"""The power-cut disk itself: an ordinary file system until the cut, then only what was synced."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.powercut.disk import PowerCutDisk, why_unusable
from tests.powercut.volume import SECTOR_BYTES, Volume

OLD, NEW = b"o" * 4096, b"n" * 4096


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerCutDisk]:
    (tmp_path / "mount").mkdir()
    (tmp_path / "backing").mkdir()
    with PowerCutDisk(tmp_path / "mount", tmp_path / "backing") as made:
        yield made


on_fuse = [
    pytest.mark.fuse,
    pytest.mark.skipif(bool(why_unusable()), reason=why_unusable() or "usable"),
]


def needs_fuse(function: Any) -> Any:
    for mark in on_fuse:
        function = mark(function)
    return function


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def in_another_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# The model


def test_unsynced_bytes_are_dropped_or_torn(volume: Volume) -> None:
    node = volume.create(volume.root, b"file", 0o100644)
    volume.write(node, 0, OLD)
    volume.sync(node)
    volume.write(node, 0, NEW)
    assert volume.surviving_content(node, None) == OLD
    survivors = {volume.surviving_content(node, random.Random(seed)) for seed in range(20)}
    assert len(survivors) > 10
    for content in survivors:
        for start in range(0, 4096, SECTOR_BYTES):
            sector = content[start : start + SECTOR_BYTES]
            assert sector in {b"o" * SECTOR_BYTES, b"n" * SECTOR_BYTES}
    volume.cut(None)
    assert volume.read(node, 0, 1 << 20) == OLD


def test_any_content_since_the_last_sync_may_survive(volume: Volume) -> None:
    node = volume.create(volume.root, b"file", 0o100644)
    for number in range(9):
        volume.write(node, 0, b"%d" % number * SECTOR_BYTES)
        if number == 0:
            volume.sync(node)
    survivors = {volume.surviving_content(node, random.Random(seed))[:1] for seed in range(200)}
    assert b"0" in survivors
    assert b"8" in survivors
    assert len(survivors) == 5, "the synced one, three of the past, the present"


def test_sizes_are_lost_too(volume: Volume) -> None:
    node = volume.create(volume.root, b"file", 0o100644)
    volume.write(node, 0, OLD)
    volume.sync(node)
    volume.write(node, 4096, NEW)
    sizes = {len(volume.surviving_content(node, random.Random(seed))) for seed in range(20)}
    assert sizes == {4096, 8192}
    volume.truncate(node, 100)
    assert volume.surviving_content(node, None) == OLD
    volume.cut(None)
    assert volume.read(node, 0, 1 << 20) == OLD


def test_a_synchronous_write_is_durable_alone(volume: Volume) -> None:
    node = volume.create(volume.root, b"file", 0o100644)
    volume.write(node, 0, OLD * 2)
    volume.sync(node)
    volume.write(node, 0, NEW)
    volume.write(node, 4096, NEW)
    volume.sync_range(node, 4096, 4096)
    assert volume.surviving_content(node, None) == OLD + NEW


def test_names_survive_in_order(volume: Volume) -> None:
    for number in range(4):
        volume.create(volume.root, b"%d" % number, 0o100644)
    for seed in range(20):
        names = sorted(volume.surviving_names(random.Random(seed))[volume.root])
        assert names == [b"%d" % number for number in range(len(names))]
    assert volume.surviving_names(None)[volume.root] == {}
    volume.sync_directory(volume.root)
    assert len(volume.surviving_names(None)[volume.root]) == 4


def test_a_rename_happens_whole_or_not_at_all(volume: Volume) -> None:
    old = volume.create(volume.root, b"config", 0o100644)
    new = volume.create(volume.root, b"config.new", 0o100644)
    volume.sync_directory(volume.root)
    volume.set_names([(volume.root, b"config.new", None), (volume.root, b"config", new)])
    outcomes = []
    for seed in range(20):
        names = volume.surviving_names(random.Random(seed))[volume.root]
        outcomes.append(names)
        assert names in ({b"config": old, b"config.new": new}, {b"config": new})
    assert {len(names) for names in outcomes} == {1, 2}


def test_a_directorys_sync_does_not_name_the_directory(volume: Volume) -> None:
    directory = volume.create(volume.root, b"d", 0o040755)
    volume.create(directory, b"file", 0o100644)
    volume.sync_directory(directory)
    assert volume.surviving_names(None)[volume.root] == {}
    volume.sync_directory(volume.root)
    assert list(volume.surviving_names(None)[directory]) == [b"file"]


# The mount


@needs_fuse
def test_it_is_a_file_system(disk: PowerCutDisk) -> None:
    root = disk.mountpoint
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"x" * 300_000)
    with (root / "a" / "b" / "file").open("r+b") as file:
        file.seek(299_999)
        file.write(b"yz")
    assert (root / "a" / "b" / "file").read_bytes() == b"x" * 299_999 + b"yz"
    os.truncate(root / "a" / "b" / "file", 10)
    assert (root / "a" / "b" / "file").read_bytes() == b"x" * 10
    (root / "a" / "b" / "file").rename(root / "moved")
    assert names(root) == ["a", "moved"]
    (root / "moved").chmod(0o600)
    assert (root / "moved").stat().st_mode == 0o100600
    with pytest.raises(OSError, match="not empty") as caught:
        (root / "a").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    (root / "a" / "b").rmdir()
    (root / "second").hardlink_to(root / "moved")
    with pytest.raises(FileExistsError):
        (root / "second").hardlink_to(root / "moved")
    assert (root / "second").read_bytes() == b"x" * 10
    (root / "second").unlink()
    (root / "moved").unlink()
    assert names(root / "a") == []
    fd = os.open(root / "log", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20
    os.close(fd)
    for number in range(300):
        (root / "a" / f"{number}").touch()
    assert len(names(root / "a")) == 300


@needs_fuse
def test_a_mapping_sees_what_is_written(disk: PowerCutDisk) -> None:
    """In another process, as everything on the disk: LMDB reads this way."""
    code = """if True:
        import mmap, os, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"1" * 8192, 0)
        view = mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ)
        seen = [view[5000:5001]]
        os.pwrite(fd, b"2" * 100, 5000)
        seen.append(view[5000:5001])
        print(seen)
    """
    assert mmap.PAGESIZE <= 8192
    assert in_another_process(code, disk.mountpoint / "f").stdout == "[b'1', b'2']\n"


@needs_fuse
def test_the_cut_keeps_what_was_synced(disk: PowerCutDisk) -> None:
    root = disk.mountpoint
    (root / "kept").write_bytes(OLD)
    sync(root / "kept")
    sync(root)
    (root / "unnamed").write_bytes(OLD)
    sync(root / "unnamed")
    (root / "kept").write_bytes(NEW)
    disk.cut(None)
    assert names(root) == ["kept"]
    assert (root / "kept").read_bytes() == OLD


@needs_fuse
def test_the_cut_comes_before_the_named_event(disk: PowerCutDisk) -> None:
    path = disk.mountpoint / "f"
    path.write_bytes(OLD)
    sync(path)
    sync(disk.mountpoint)
    assert disk.events()[-4:] == ["name f in /", "write f", "sync f", "sync directory /"]
    code = """if True:
        import os, sys
        fd = os.open(sys.argv[1], os.O_WRONLY)
        os.pwrite(fd, b"1", 0)
        os.fsync(fd)
        os.pwrite(fd, b"2", 0)
        try: os.fsync(fd)
        except OSError as error: print(error.errno)
    """
    disk.cut_at(len(disk.events()) + 3)
    assert in_another_process(code, path).stdout == f"{errno.EIO}\n"
    disk.cut(None)
    assert path.read_bytes()[:1] == b"1"


@needs_fuse
def test_a_mapping_of_a_lost_disk_is_a_signal(disk: PowerCutDisk) -> None:
    """Why a program on the disk runs in a process of its own."""
    path = disk.mountpoint / "f"
    path.write_bytes(OLD)
    sync(path)
    sync(disk.mountpoint)
    disk.cut(None)
    code = """if True:
        import mmap, os, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        view = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
        try: os.pwrite(fd, b"off", 0)
        except OSError: view[0]
    """
    disk.cut_at(len(disk.events()))
    assert in_another_process(code, path).returncode == -signal.SIGBUS
    disk.cut(None)
    assert path.read_bytes() == OLD


@needs_fuse
def test_an_ignored_sync_keeps_nothing(disk: PowerCutDisk) -> None:
    path = disk.mountpoint / "f"
    path.write_bytes(OLD)
    sync(path)
    sync(disk.mountpoint)
    disk.ignore_sync(2)
    path.write_bytes(NEW)
    sync(path)
    assert disk.syncs() == ["sync f", "sync directory /", "sync f"]
    disk.cut(None)
    assert path.read_bytes() == OLD


@needs_fuse
def test_closing_leaves_no_mount(disk: PowerCutDisk) -> None:
    (disk.mountpoint / "f").touch()
    assert disk.mountpoint.is_mount()
    disk.close()
    assert not disk.mountpoint.is_mount()
    assert names(disk.mountpoint) == []

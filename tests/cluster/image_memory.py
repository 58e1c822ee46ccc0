"""How much memory a state image costs its sender and its receiver, on a state of any size.

    python -m tests.cluster.image_memory --mib 2048

A store of that many MiB is made in a temporary folder; one process streams its image, another
receives it, over a pipe with one piece in it at a time. What counts is memory that the system
cannot take back (`RssAnon` of proc_pid_status(5)): mapped pages of the store are page cache. The
sender's must stay below `SENDER_MAX_BYTES` above what it was before; the copy is verified.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nokv.kv.image import (
    LmdbImageSource,
    read_pieces,
    restore_image,
    source_pieces,
    verify_image,
)
from nokv.kv.lmdb_store import LmdbKV, open_reader
from nokv.state import keys
from nokv.state.families import Family
from nokv.state.records import Counters, Position, encode

MIB = 1 << 20
SENDER_MAX_BYTES = 64 * MIB
RECORD_BYTES = 200
_EVERY = 64
"""Pieces between two looks at the memory."""


def fill(path: Path, size_bytes: int) -> None:
    """Make a store with about `size_bytes` of small records, in order of their keys."""
    kv = LmdbKV(path)
    kv.write(Family.META, [(keys.COUNTERS, encode(Counters(version=1)))])
    kv.write(Family.META, [(keys.POSITION, encode(Position(1, 1, b"")))])
    number, batch = 0, 50_000
    while kv.used_bytes() < size_bytes:
        rows = [(b"%016d" % (number + i), os.urandom(16) * 12) for i in range(batch)]
        kv.write(Family.DENTRY, rows)
        kv.commit()
        number += batch
    kv.close()


def anonymous_bytes() -> int:
    """Return this process's memory that is backed by no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def send(path: Path) -> None:
    """Stream the image to standard output; report on standard error."""
    before = highest = anonymous_bytes()
    source = LmdbImageSource(open_reader(path))
    total, started_s = 0, time.monotonic()
    for number, piece in enumerate(source_pieces(source)):
        sys.stdout.buffer.write(piece)
        total += len(piece)
        if not number % _EVERY:
            highest = max(highest, anonymous_bytes())
    sys.stdout.buffer.flush()
    source.close()
    report("sender", highest - before, total, started_s)
    if highest - before > SENDER_MAX_BYTES:
        sys.exit("the sender's memory grew too much")


def receive(path: Path) -> None:
    """Receive an image from standard input; report on standard error."""
    before = highest = anonymous_bytes()
    total, started_s = 0, time.monotonic()

    def watched() -> Iterator[bytes]:
        nonlocal highest, total
        for number, piece in enumerate(read_pieces(sys.stdin.buffer)):
            yield piece
            total += len(piece)
            if not number % _EVERY:
                highest = max(highest, anonymous_bytes())

    restore_image(watched(), path)
    report("receiver", highest - before, total, started_s)


def digest_of(path: Path) -> bytes:
    """Return the state digest of a store, from an image of it."""
    source = LmdbImageSource(open_reader(path))
    found = verify_image(source_pieces(source)).digest
    source.close()
    return found


def report(who: str, extra_bytes: int, total_bytes: int, started_s: float) -> None:
    """Print one line of figures."""
    took_s = time.monotonic() - started_s
    print(
        f"{who}: {extra_bytes / MIB:.1f} MiB extra, {total_bytes / MIB:.0f} MiB in {took_s:.1f} s"
        f" ({total_bytes / MIB / took_s:.0f} MiB/s)",
        file=sys.stderr,
    )


def main() -> None:
    """Run all of it, or one side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--side", choices=["send", "receive"])
    parser.add_argument("--path", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        (send if arguments.side == "send" else receive)(arguments.path)
        return
    with tempfile.TemporaryDirectory(prefix="nokv-image-") as folder:
        store, copy = Path(folder) / "state", Path(folder) / "copy"
        fill(store, arguments.mib * MIB)
        command = [sys.executable, "-m", __spec__.name, "--side"]
        sender = subprocess.Popen([*command, "send", "--path", str(store)], stdout=subprocess.PIPE)
        receiver = subprocess.Popen([*command, "receive", "--path", str(copy)], stdin=sender.stdout)
        assert sender.stdout is not None
        sender.stdout.close()
        codes = (sender.wait(), receiver.wait())
        if codes != (0, 0):
            sys.exit(f"sender and receiver ended with {codes}")
        if digest_of(store) != digest_of(copy):
            sys.exit("the copy differs")


if __name__ == "__main__":
    main()

"""What runs on the disk: a store that takes numbered steps, in a process that may die at any time.

Speaks JSON lines. At its start, and again after each reopening, it says
`["opened", openings, step, digest]`; for each line it reads it takes one step, commits it, and says
`["committed", step]`. With `check` as its argument it reads folders instead, and says for each what
an opening of the store there says, or `["failed", why]`. With `--watch FD` its syncs are watched
(`sync_watch.py`), or it says `["unwatched", why]` and ends.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from lmdb.verify import VerifyError, verify

from nokv.kv.digest import combine, digest
from nokv.kv.errors import StoreFailed
from nokv.kv.image import LmdbImageSink, LmdbImageSource, source_pieces
from nokv.kv.lmdb_store import LmdbKV
from nokv.state.families import Family
from nokv.state.memory import MemoryKV
from nokv.state.port import KV

STEP_ROW = b"step"
FAMILIES = (Family.INODE, Family.DENTRY, Family.EVENT)


def take_step(kv: KV, step: int) -> None:
    """Write what belongs to this step: puts, deletes, large values; the same in every run."""
    rng = random.Random(step)
    kv.write(Family.META, [(STEP_ROW, b"%d" % step)])
    for family in FAMILIES:
        items: dict[bytes, bytes | None] = {
            b"%04d" % rng.randrange(120): rng.randbytes(rng.choice((0, 20, 300))) for _ in range(25)
        }
        items.update((b"%04d" % rng.randrange(120), None) for _ in range(8))
        items[b"large"] = rng.randbytes(rng.choice((10, 3000, 9000)))
        kv.write(family, sorted(items.items()))


def expected_digests(steps: int) -> list[str]:
    """Return the digest after each step, the empty store's first: a list of steps + 1."""
    kv, digests = MemoryKV(), []
    for step in range(steps + 1):
        if step > 0:
            take_step(kv, step)
        digests.append(combine(digest(kv)).hex())
    return digests


def opened(kv: LmdbKV) -> list[object]:
    """Describe a store that was just opened."""
    step = int(kv.get(Family.META, STEP_ROW) or b"0")
    return ["opened", kv.opens, step, combine(digest(kv)).hex()]


def say(message: list[object]) -> None:
    """Write one line."""
    print(json.dumps(message), flush=True)


def run(path: Path) -> None:
    """Take a step for each line, `install` by an image; `reopen` closes and opens the store."""
    kv = LmdbKV(path)
    step = int(kv.get(Family.META, STEP_ROW) or b"0")
    say(opened(kv))
    for line in sys.stdin:
        if line == "reopen\n":
            kv.close()
            kv = LmdbKV(path)
            say(opened(kv))
            continue
        step += 1
        if line == "install\n":
            install(kv, step)
        else:
            take_step(kv, step)
            kv.commit()
        say(["committed", step])
    kv.close()


def install(kv: LmdbKV, step: int) -> None:
    """Put the state of that step in the place of the store, by an image of a store elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        other = LmdbKV(Path(folder) / "state")
        for number in range(1, step + 1):
            take_step(other, number)
        other.commit()
        source = LmdbImageSource(other.open_reader())
        sink = LmdbImageSink(kv.incoming)
        for piece in source_pieces(source):
            sink.write(piece)
        sink.finish()
        kv.replace(sink.path)
        source.close()
        other.close()


def check(image: Path) -> list[object]:
    """Judge the store in a folder; the folder is used up."""
    try:
        data = image / "data.mdb"
        problems = verify(str(data)) if data.exists() else []  # type: ignore[no-untyped-call]
        if problems:
            return ["failed", "; ".join(problems[:3])]
        kv = LmdbKV(image)
    except (StoreFailed, VerifyError) as error:
        return ["failed", str(error)]
    found = opened(kv)
    kv.close()
    shutil.rmtree(image)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "check":
        for folder in sys.stdin:
            say(check(Path(folder.rstrip("\n"))))
    else:
        if sys.argv[2:3] == ["--watch"]:
            from tests.powercut.sync_watch import be_watched

            try:
                be_watched(int(sys.argv[3]))
            except OSError as error:
                say(["unwatched", str(error)])
                sys.exit(1)
        run(Path(sys.argv[1]))

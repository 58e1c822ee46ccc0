"""Access control lists beside the kernel's: the same programs on a directory of this machine.

Needs root, to act as others, and a file system with POSIX ACLs; else it is skipped, saying why.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from tests.unit.state.shard import ROOT, Shard, at

from nokv.errors import NokvError
from nokv.types.commands import Create, Mkdir, Mknod, Op, RemoveXattr, SetAttr, SetXattr
from nokv.types.reads import Access, BytesReply, GetXattr, ListXattr, NamesReply
from nokv.types.values import Caller, FileType

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NO_ID = 2**32 - 1
CALLERS = (Caller(20_001, 30_001), Caller(20_002, 30_002, (30_001,)), Caller(20_003, 30_003))
IDS = {2: (20_001, 20_002, 20_003), 8: (30_001, 30_002, 30_004)}
PATHS = ("a", "d", "d/a", "d/e", "d/e/a")
READ = 4
"""In every mask: with a mask of nothing Linux looks at no list at all, and a named user gets what
others do (`acl_permission_check` in fs/namei.c), where acl(5) gives nothing, as this does."""

MODES = (0o777, 0o755, 0o750, 0o740, 0o666, 0o640, 0o644, 0o070, 0o347, 0o050)
UMASKS = (0, 0o022, 0o027, 0o077)
SEEDS = range(16)
STEPS = 60


def act(do: str, path: str, *rest: Any) -> int:
    """Do something as the user of this process; return 0, or the errno of access(2)."""
    if do == "mkdir":
        os.umask(rest[1])
        os.mkdir(path, rest[0])  # noqa: PTH102  paths are relative to the working directory
    elif do == "create":
        os.umask(rest[1])
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, rest[0]))
    elif do == "fifo":
        os.umask(rest[1])
        os.mkfifo(path, rest[0])
    elif do == "chmod":
        os.chmod(path, rest[0])  # noqa: PTH101
    elif do == "chown":
        os.chown(path, *rest)
    elif do == "set":
        os.setxattr(path, rest[0], bytes.fromhex(rest[1]))
    elif do == "remove":
        os.removexattr(path, rest[0])
    elif do == "access" and not os.access(path, rest[0]):
        return errno.EACCES
    return 0


def serve(caller: Caller, base: Path, lines: TextIO, answers: TextIO) -> None:
    """Become a caller, and act as the lines say: each is answered with 0 or an errno."""
    os.chdir(base)
    os.setgroups(caller.groups)
    os.setresgid(caller.gid, caller.gid, caller.gid)
    os.setresuid(caller.uid, caller.uid, caller.uid)
    for line in lines:
        try:
            code = act(*json.loads(line))
        except OSError as error:
            code = error.errno or -1
        answers.write(f"{code}\n")
        answers.flush()


class Agent:
    """A process of another user: this one's fork, as not everybody may start this Python."""

    def __init__(self, caller: Caller, base: Path) -> None:
        (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(in_write)
            os.close(out_read)
            try:
                serve(caller, base, os.fdopen(in_read), os.fdopen(out_write, "w"))
            finally:
                os._exit(0)
        os.close(in_read)
        os.close(out_write)
        self._lines, self._answers = os.fdopen(in_write, "w"), os.fdopen(out_read)

    def do(self, *request: Any) -> int:
        """Let it do something; return 0 or its errno."""
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        return int(self._answers.readline())

    def close(self) -> None:
        """End the process."""
        self._lines.close()
        self._answers.close()
        os.waitpid(self._pid, 0)


class Kernel:
    """A directory of this machine, and a process for each caller."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._agents: dict[Caller, Agent] = {}
        for caller in (ROOT, *CALLERS):
            self._agents[caller] = Agent(caller, base)

    def do(self, caller: Caller, *request: Any) -> int:
        """Let a caller do something; return 0 or its errno."""
        return self._agents[caller].do(*request)

    def close(self) -> None:
        """End the processes, the last one first: it holds copies of the others' pipes."""
        for agent in reversed(self._agents.values()):
            agent.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """Return the machine's own lists, or skip."""
    if os.geteuid():
        pytest.skip("only root may act as other users")
    base = Path(tempfile.mkdtemp(prefix="nokv-acl-"))
    try:
        base.chmod(0o777)
        try:
            os.setxattr(base, DEFAULT, b"")
        except OSError as error:
            pytest.skip(f"no POSIX ACLs in {base}: {error.strerror}")
        found = Kernel(base)
        yield found
        found.close()
    finally:
        shutil.rmtree(base)


def acl(rng: random.Random) -> bytes:
    """Return a valid list; small ones are equal to mode bits."""
    entries = [(1, rng.randrange(8), NO_ID)]
    named = rng.random() < 0.8
    for tag, after in ((2, (4, rng.randrange(8), NO_ID)), (8, None)):
        chosen = sorted(rng.sample(IDS[tag], rng.randrange(3))) if named else []
        entries += [(tag, rng.randrange(8), number) for number in chosen]
        if after is not None:
            entries.append(after)
    if any(tag in IDS for tag, _, _ in entries) or rng.random() < 0.2:
        entries.append((16, rng.randrange(8) | READ, NO_ID))
    entries.append((32, rng.randrange(8), NO_ID))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


class Both:
    """The same calls to a shard and to the kernel."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel = kernel
        self.shard = Shard()
        self.shard.do(SetAttr(at(), mode=0o777))
        self.rng = random.Random(seed)
        self.codes: set[int] = set()

    def command(self, do: str, path: str, *rest: Any) -> Op:
        """Return a call as a command."""
        above, _, last = path.rpartition("/")
        parent, name = at(above), last.encode()
        if do == "mkdir":
            return Mkdir(parent, name, *rest)
        if do == "create":
            return Create(parent, name, *rest)
        if do == "fifo":
            return Mknod(parent, name, FileType.FIFO << 12 | rest[0], 0, rest[1])
        if do == "chmod":
            return SetAttr(at(path), mode=rest[0])
        if do == "chown":
            return SetAttr(at(path), uid=rest[0], gid=rest[1])
        if do == "set":
            return SetXattr(at(path), rest[0].encode(), bytes.fromhex(rest[1]))
        return RemoveXattr(at(path), rest[0].encode())

    def step(self) -> None:
        """Let some caller do something, and compare what becomes of it."""
        rng = self.rng
        caller, path = rng.choice((ROOT, *CALLERS)), rng.choice(PATHS)
        mode, umask = rng.choice(MODES), rng.choice(UMASKS)
        name = rng.choice((ACCESS, DEFAULT))
        request = rng.choice(
            (
                (
                    "mkdir" if path[-1] in "de" else rng.choice(("create", "fifo")),
                    path,
                    mode,
                    umask,
                ),
                ("chmod", path, mode),
                ("chown", path, 20_001, 30_001),
                ("set", path, name, acl(rng).hex()),
                ("set", path, name, acl(rng).hex()),
                ("set", path, name, rng.choice(("", "02000000"))),
                ("remove", path, name),
            )
        )
        if request[0] == "chown":
            caller = ROOT
        wanted = self.kernel.do(caller, *request)
        try:
            self.shard.do(self.command(*request), caller)
            got = 0
        except NokvError as error:
            got = error.errno_value
        self.codes.add(wanted)
        assert got == wanted, (request, caller, errno.errorcode.get(wanted))

    def compare(self) -> None:
        """Compare mode bits, lists and what every caller may do."""
        for path in PATHS:
            there = (self.kernel.base / path).exists()
            for caller in CALLERS:
                for mask in (1, 2, 4, 6):
                    wanted = self.kernel.do(caller, "access", path, mask)
                    assert bool(self.access(caller, path, mask)) == bool(wanted), (path, caller)
            if there:
                real = self.kernel.base / path
                assert self.shard.stat(path).mode == real.stat().st_mode, path
                names = sorted(os.listxattr(real))
                reply = self.shard.read(ListXattr(at(path)))
                assert isinstance(reply, NamesReply)
                assert [name.decode() for name in reply.names] == names
                for name in names:
                    value = self.shard.read(GetXattr(at(path), name.encode()))
                    assert value == BytesReply(os.getxattr(real, name)), (path, name)
                bits = sum(1 << (ACCESS, DEFAULT).index(name) for name in names)
                assert self.shard.stat(path).acls == bits

    def access(self, caller: Caller, path: str, mask: int) -> int:
        """Return 0 or the errno of access(2) of the shard."""
        try:
            self.shard.read(Access(at(path), mask), caller)
        except NokvError as error:
            return error.errno_value
        return 0


@pytest.mark.parametrize("seed", SEEDS)
def test_lists_do_what_the_kernel_does(kernel: Kernel, seed: int) -> None:
    both = Both(kernel, seed)
    for caller, path in ((CALLERS[0], "d"), (CALLERS[0], "d/e"), (ROOT, "a")):
        do = "mkdir" if path[-1] in "de" else "create"
        both.kernel.do(caller, do, path, 0o777, 0)
        both.shard.do(both.command(do, path, 0o777, 0), caller)
    for _ in range(STEPS):
        both.step()
        both.compare()
    assert {0, errno.EACCES, errno.EPERM} <= both.codes


def test_malformed_lists_are_refused_alike(kernel: Kernel) -> None:
    both = Both(kernel, 0)
    for do, path in (("mkdir", "d"), ("create", "a")):
        both.kernel.do(ROOT, do, path, 0o777, 0)
        both.shard.do(both.command(do, path, 0o777, 0), ROOT)
    user, group, other = (1, 7, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID)
    mask, named = (16, 7, NO_ID), (2, 7, 20_001)
    bad = [
        [user, group],
        [user, other],
        [group, other],
        [user, group, other, mask],
        [user, named, group, other],
        [user, (2, 7, NO_ID), group, mask, other],
        [user, group, mask, mask, other],
        [(1, 8, NO_ID), group, other],
        [user, group, (64, 7, NO_ID), other],
        [user, user, group, other],
        [group, user, other],
    ]
    values = [
        struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)
        for entries in bad
    ]
    good = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *o) for o in (user, group, other))
    values += [good[:-1], good[:3], b"\3" + good[1:], b"\1" + good[1:]]
    for value in values:
        for path, name in (("a", ACCESS), ("d", ACCESS), ("d", DEFAULT)):
            request = ("set", path, name, value.hex())
            wanted = both.kernel.do(ROOT, *request)
            assert wanted in (errno.EINVAL, errno.EOPNOTSUPP)
            with pytest.raises(NokvError) as caught:
                both.shard.do(both.command(*request))
            assert caught.value.errno == wanted, value

"""What messages say of names: paths as they were given, on one line, the same on every replica."""

from __future__ import annotations

import pytest
from tests.unit.state.shard import Shard

from nokv.errors import AlreadyExists, NokvError, NotADirectory, NotEmpty, NotFound
from nokv.state.naming import SHOWN_BYTES, told, told_at
from nokv.types.commands import (
    Atomic,
    Create,
    Mkdir,
    Mknod,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from nokv.types.reads import GetAttr
from nokv.types.values import At


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name", "plain name"),
        ("Zo\u00eb".encode(), "Zo\u00eb"),
        (b"two\nlines\x1b[31m", "two\\nlines\\x1b[31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("a\u202eb\u2028c\x85".encode(), "a\\u202eb\\u2028c\\x85"),
    ],
)
def test_names_are_text_on_one_line(name: bytes, text: str) -> None:
    assert told(name) == text


def test_of_a_long_path_the_end_is_told() -> None:
    assert told(b"x" * 5000 + b"/end") == "..." + "x" * (SHOWN_BYTES - 4) + "/end"


def test_paths() -> None:
    assert told_at(At(0, 1, (b"a", b"b"))) == "/a/b"
    assert told_at(At(0, 1, (b"a",)), b"b") == "/a/b"
    assert told_at(At(0, 1)) == "/"
    assert told_at(At(3, 9, (b"a",)), b"b") == "a/b"
    assert told_at(At(3, 9)) == "inode 3:9"


def test_errors_name_the_path() -> None:
    shard = Shard()
    root = At(0, 1)
    shard.do(Mkdir(root, b"d", 0o755))
    d = At(0, 1, (b"d",))
    shard.do(Create(d, b"f\n", 0o644))
    with pytest.raises(NotFound, match=r"^/d/nope: no such file or directory$"):
        shard.read(GetAttr(At(0, 1, (b"d", b"nope"))))
    with pytest.raises(NotFound, match=r"^/d/no/way: no such file or directory \(no 'no' on the"):
        shard.read(GetAttr(At(0, 1, (b"d", b"no", b"way"))))
    with pytest.raises(NotADirectory, match=r"^/d/f\\n/x: what stands before 'x' is not a dir"):
        shard.read(GetAttr(At(0, 1, (b"d", b"f\n", b"x"))))
    with pytest.raises(NotFound, match=r"^/d/nope: no such file or directory$"):
        shard.do(Unlink(d, b"nope"))
    with pytest.raises(AlreadyExists, match=r"^/d/f\\n: file exists \(choose another name"):
        shard.do(Create(d, b"f\n", 0o644))
    with pytest.raises(NotEmpty, match=r"^/d: directory not empty"):
        shard.do(Rmdir(root, b"d"))
    with pytest.raises(AlreadyExists, match=r"^/d: file exists"):
        shard.do(Rename(d, b"f\n", root, b"d", int(RenameFlag.NOREPLACE)))


def test_the_number_of_an_operation_is_told_where_there_are_several() -> None:
    shard = Shard()
    make = Mkdir(At(0, 1), b"d", 0o755)
    shard.do(make)
    with pytest.raises(AlreadyExists, match=r"^/d: file exists"):
        shard.do(Atomic((make,)))
    with pytest.raises(AlreadyExists, match=r"^operation 1: /d: file exists"):
        shard.do(Atomic((Mkdir(At(0, 1), b"e", 0o755), make)))


def test_what_is_out_of_range_has_a_hint() -> None:
    shard = Shard()
    shard.create("f")
    f = At(0, 1, (b"f",))
    for op in (
        Mkdir(At(0, 1), b"d", 0o10000),
        Mknod(At(0, 1), b"n", 0o40755, 0),
        SetAttr(f, uid=2**32),
        SetAttr(f, size=2**62),
        SetAttr(f, mtime_ns=-2),
        SetAttr(f, flags=1 << 20),
        SetXattr(f, b"user." + b"x" * 255, b""),
        SetXattr(f, b"user.x", b"", 7),
    ):
        with pytest.raises(NokvError) as found:
            shard.do(op)
        assert found.value.hint

"""Paths: what is accepted, what is refused, and with which error."""

from __future__ import annotations

import errno
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.client.paths import (
    components,
    decode_name,
    encode_name,
    join,
    relative,
    split,
)
from nokv.errors import InvalidArgument, NameTooLong, NokvError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ()),
        (b"/", ()),
        ("/a", (b"a",)),
        ("/a/b", (b"a", b"b")),
        ("/ä", ("ä".encode(),)),
        (b"/\xff", (b"\xff",)),
        ("/\udcff", (b"\xff",)),
        ("/a/", (b"a", b".")),
        ("/a/./b", (b"a", b".", b"b")),
        (PurePosixPath("/x/y"), (b"x", b"y")),
    ],
)
def test_components(path: str | bytes, expected: tuple[bytes, ...]) -> None:
    assert components(path) == expected


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("a", InvalidArgument, "absolute"),
        ("", InvalidArgument, "absolute"),
        ("/a/../b", InvalidArgument, "'..'"),
        ("/..", InvalidArgument, "'..'"),
        ("//a", InvalidArgument, "empty"),
        ("/a//b", InvalidArgument, "empty"),
        ("/a\0b", InvalidArgument, "NUL"),
        ("/" + "x" * 256, NameTooLong, "256 bytes"),
        ("/" + "ä" * 128, NameTooLong, "256 bytes"),
        ("/" + "/".join(["x" * 100] * 41), NameTooLong, "4140 bytes"),
        ("/\ud800", InvalidArgument, "bytes"),
    ],
)
def test_refused(path: str, error: type[NokvError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        components(path)
    assert caught.value.errno in {errno.EINVAL, errno.ENAMETOOLONG}
    assert caught.value.hint


def test_split_needs_a_name() -> None:
    assert split("/a/b") == ((b"a",), b"b")
    assert split("/a/") == ((), b"a")
    for path in ("/", "/."):
        with pytest.raises(InvalidArgument, match="no name"):
            split(path)


def test_relative() -> None:
    assert relative("a/b") == (b"a", b"b")
    assert relative(b"\xfe") == (b"\xfe",)
    for path in ("/a", "", "../a", "a//b", "./a", "."):
        with pytest.raises(InvalidArgument):
            relative(path)


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"/" not in b and b"\0" not in b))
def test_every_name_has_a_text_that_leads_back(name: bytes) -> None:
    text = decode_name(name)
    assert encode_name(text) == name
    if name not in {b".", b".."}:
        assert components("/" + text) == (name,)
        assert join(components("/" + text)) == b"/" + name

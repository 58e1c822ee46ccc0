"""Names and sums: strict, fixed-width, and never two ways to say one thing."""

from __future__ import annotations

import os

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nokv.errors import InvalidArgument, ObjectCorrupt
from nokv.objects.layout import (
    ObjectName,
    check_volume_id,
    format_name,
    parse_name,
    session_prefix,
    sums_count,
    sums_of,
    upload_prefix,
    verify,
    volume_prefix,
)
from nokv.objects.port import check_name, check_prefix
from nokv.types.limits import SUM_BYTES

VOLUME = "00112233445566778899aabbccddeeff"
GOLDEN = f"blocks/{VOLUME}/0001-0000000200000003/0000000000000004/00000005/0006.0007"

names = st.builds(
    ObjectName,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**16 - 1),
)


def test_the_golden_name() -> None:
    name = ObjectName(VOLUME, 1, 0x2_0000_0003, 4, 5, 6, 7)
    assert format_name(name) == GOLDEN
    assert parse_name(GOLDEN) == name


@given(names)
def test_a_name_is_parsed_to_what_it_was_made_of(name: ObjectName) -> None:
    text = format_name(name)
    assert parse_name(text) == name
    assert check_name(text) == text
    assert len(text) == len(GOLDEN)
    volume, shard, session, upload, *_ = name
    assert text.startswith(upload_prefix(volume, shard, session, upload))
    assert text.startswith(session_prefix(volume, shard, session))
    assert text.startswith(volume_prefix(volume))


@given(names, names)
def test_names_sort_as_their_parts(one: ObjectName, two: ObjectName) -> None:
    assert (format_name(one) < format_name(two)) == (one < two)


@given(
    st.one_of(
        st.text(max_size=200),
        st.text("0123456789abcdefABCDEF/.-blocks\n", min_size=90, max_size=120),
        st.builds(
            lambda at, new: GOLDEN[:at] + new + GOLDEN[at + 1 :],
            st.integers(0, len(GOLDEN) - 1),
            st.text(max_size=2),
        ),
    )
)
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = parse_name(text)
    except InvalidArgument:
        return
    assert format_name(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOLDEN + "\n",
        GOLDEN + "0",
        GOLDEN[:-1],
        GOLDEN.upper(),
        "/" + GOLDEN,
        GOLDEN.replace(".", "-"),
        GOLDEN.replace("0006", "+006"),
        GOLDEN.replace("0006", "0x06"),
        GOLDEN.replace("0006", "\u0660006"),
        "volume.json",
    ],
)
def test_what_is_almost_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_name(text)


@pytest.mark.parametrize(
    "name",
    [
        ObjectName(VOLUME, 2**16, 1, 1, 1, 1, 1),
        ObjectName(VOLUME, 1, 2**64, 1, 1, 1, 1),
        ObjectName(VOLUME, 1, 1, -1, 1, 1, 1),
        ObjectName(VOLUME, 1, 1, 1, 2**32, 1, 1),
        ObjectName(VOLUME, 1, 1, 1, 1, 2**16, 1),
        ObjectName(VOLUME, 1, 1, 1, 1, 1, 2**16),
        ObjectName(VOLUME.upper(), 1, 1, 1, 1, 1, 1),
        ObjectName("..", 1, 1, 1, 1, 1, 1),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: ObjectName) -> None:
    with pytest.raises(InvalidArgument):
        format_name(name)


@pytest.mark.parametrize("volume", ["", "x" * 32, VOLUME.upper(), VOLUME + "0", VOLUME + "\n"])
def test_what_is_no_volume_id_is_refused(volume: str) -> None:
    with pytest.raises(InvalidArgument):
        check_volume_id(volume)


@pytest.mark.parametrize("prefix", ["a//", "/", "../", "a/\n", ".tmp", "a/."])
def test_what_no_name_starts_with_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidArgument):
        check_prefix(prefix)


@given(st.text(st.characters(max_codepoint=0x180), max_size=20))
def test_every_name_is_safe_as_a_path(text: str) -> None:
    try:
        check_name(text)
    except InvalidArgument:
        return
    assert text.isascii()
    assert not text.startswith("/")
    assert all(part and not part.startswith(".") for part in text.split("/"))


@pytest.mark.parametrize(
    "length", [0, 1, SUM_BYTES - 1, SUM_BYTES, SUM_BYTES + 1, 3 * SUM_BYTES, 3 * SUM_BYTES + 5]
)
def test_sums_are_those_of_the_pieces(length: int) -> None:
    data = os.urandom(length)
    wanted = b"".join(
        xxhash.xxh3_64_intdigest(data[at : at + SUM_BYTES]).to_bytes(8, "big")
        for at in range(0, length, SUM_BYTES)
    )
    assert sums_of(data) == sums_of(memoryview(bytearray(data))) == wanted
    assert len(wanted) == 8 * sums_count(length)


def test_the_golden_sum() -> None:
    assert sums_of(b"nokv").hex() == "69dd112004ff32ec"


def test_verify_names_the_object_and_the_offset() -> None:
    data = bytearray(os.urandom(3 * SUM_BYTES + 7))
    sums = sums_of(data)
    verify("x", data, 0, sums)
    verify("x", data[SUM_BYTES : 2 * SUM_BYTES], 1, sums)
    verify("x", data[3 * SUM_BYTES :], 3, sums)
    verify("x", b"", 4, sums)
    data[2 * SUM_BYTES + 9] ^= 0x80
    with pytest.raises(ObjectCorrupt, match=f"get x: the bytes at {2 * SUM_BYTES} "):
        verify("x", data, 0, sums)
    with pytest.raises(ObjectCorrupt, match=f"get x: the bytes at {2 * SUM_BYTES} "):
        verify("x", data[2 * SUM_BYTES :], 2, sums)
    with pytest.raises(ObjectCorrupt, match="get x"):
        verify("x", data[:SUM_BYTES], 1, sums)
    with pytest.raises(ObjectCorrupt, match=f"get x: the bytes at {4 * SUM_BYTES} "):
        verify("x", b"more than there are sums for", 4, sums)

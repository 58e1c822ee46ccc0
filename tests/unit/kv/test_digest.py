"""The state digest: order does not matter, every byte does."""

from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nokv.kv.digest import DIGEST_BYTES, combine, digest, family_digest, record_digest
from nokv.state.families import Family
from nokv.state.memory import MemoryKV

records = st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=8), max_size=8)


def filled() -> MemoryKV:
    kv = MemoryKV()
    for family in Family:
        kv.write(family, [(b"%d-%d" % (family, n), b"value %d" % n) for n in range(5)])
    return kv


def test_one_record_is_the_stated_hash() -> None:
    assert record_digest(b"ab", b"c") == xxhash.xxh3_128_intdigest(b"\x00\x02abc")


def test_the_combined_digest_is_fixed() -> None:
    """Golden: replicas of different releases compare these bytes."""
    assert combine(digest(filled())).hex() == "c8a6508f6295acd2fedca52eb2c82e2e"
    assert len(combine({})) == DIGEST_BYTES


@given(records)
def test_order_does_not_matter(rows: dict[bytes, bytes]) -> None:
    items = list(rows.items())
    assert family_digest(items) == family_digest(reversed(items))


@given(records, records)
def test_different_records_differ(left: dict[bytes, bytes], right: dict[bytes, bytes]) -> None:
    assert (family_digest(left.items()) == family_digest(right.items())) == (left == right)


@pytest.mark.parametrize("family", Family)
def test_one_byte_in_any_family_changes_it(family: Family) -> None:
    before = digest(filled())
    for row in range(5):
        key = b"%d-%d" % (family, row)
        for change in (
            [(key, b"Value %d" % row)],
            [(key, b"value %d\x00" % row)],
            [(key, None)],
            [(key, None), (key + b"\x00", b"value %d" % row)],
        ):
            kv = filled()
            kv.write(family, change)
            after = digest(kv)
            assert {f for f in Family if after[f] != before[f]} == {family}
            assert combine(after) != combine(before)


def test_moving_a_record_to_another_family_changes_it() -> None:
    left, right = MemoryKV(), MemoryKV()
    left.write(Family.INODE, [(b"key", b"value")])
    right.write(Family.DENTRY, [(b"key", b"value")])
    assert combine(digest(left)) != combine(digest(right))


def test_a_byte_moved_from_key_to_value_changes_it() -> None:
    assert family_digest([(b"ab", b"c")]) != family_digest([(b"a", b"bc")])

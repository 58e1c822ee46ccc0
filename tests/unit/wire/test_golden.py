"""The bytes of every message: a changed, moved or removed field changes a line of golden.txt.

After a field was appended on purpose, write the file anew:
`python -m tests.unit.wire.test_golden > tests/unit/wire/golden.txt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from tests.unit.wire.samples import sample, structs

GOLDEN = Path(__file__).with_name("golden.txt")
KINDS = {f"{kind.__module__}.{kind.__name__}": kind for kind in structs()}


def _lines() -> dict[str, str]:
    return dict(line.split(" ", 1) for line in GOLDEN.read_text().splitlines())


def test_every_message_has_golden_bytes() -> None:
    assert sorted(_lines()) == sorted(KINDS)
    assert len(KINDS) > 100


@pytest.mark.parametrize("name", KINDS)
def test_bytes_do_not_change(name: str) -> None:
    kind = KINDS[name]
    golden = bytes.fromhex(_lines()[name])
    value = sample(kind)
    assert msgspec.msgpack.encode(value) == golden
    assert msgspec.msgpack.decode(golden, type=kind) == value


@pytest.mark.parametrize("name", KINDS)
def test_an_independent_decoder_reads_the_same(name: str) -> None:
    kind = KINDS[name]
    value = sample(kind)
    plain = msgpack.unpackb(bytes.fromhex(_lines()[name]), strict_map_key=False)
    assert plain == _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        fields = [_plain(getattr(value, name)) for name in value.__struct_fields__]
        return fields if tag is None else [tag, *fields]
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


@pytest.mark.parametrize("name", KINDS)
def test_strict_refuses_and_lenient_drops_a_further_field(name: str) -> None:
    kind = KINDS[name]
    value = sample(kind)
    longer = msgspec.msgpack.encode([*_plain(value), "more"])
    if kind.__struct_config__.forbid_unknown_fields:
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(longer, type=kind)
    else:
        assert msgspec.msgpack.decode(longer, type=kind) == value


if __name__ == "__main__":
    for _name, _kind in KINDS.items():
        print(_name, msgspec.msgpack.encode(sample(_kind)).hex())

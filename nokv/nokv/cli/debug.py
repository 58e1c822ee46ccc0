"""`nokv debug`: records, state and log as they lie on disk, shown without their schema.

Everything that is stored is MessagePack in arrays (docs/formats.md says what the places mean), so
it can be shown by a program that knows nothing of it: with the `msgpack` package where that is
installed, else with msgspec's untyped decoder.
"""

from __future__ import annotations

import argparse
import binascii
import importlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from nokv.cli import output
from nokv.cli.main import add_action
from nokv.errors import NokvError, NotFound, UsageError

SHOWN_BYTES: Final = 96
"""Longer byte strings are cut, with their length beside."""

VERSION_BYTES: Final = 8

COMMANDS_AT: Final = 3
"""Where an entry of the log has its commands."""

END: Final = b"\xff" * 512
"""Above every key."""


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv debug`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    record = add_action(actions, "record", "show one encoded value")
    record.add_argument("source", metavar="FILE|HEX|-", help="a file, hexadecimal digits, or -")
    record.set_defaults(run=_record)
    state = add_action(actions, "state", "show the records of a data directory's store")
    state.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    state.add_argument("--family", default="", help="one family only, as inode or dentry")
    state.add_argument("--limit", type=int, default=100, help="records a family (default: 100)")
    state.set_defaults(run=_state)
    log = add_action(actions, "log", "show the records of a data directory's log")
    log.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    log.add_argument("--first", type=int, default=0, help="first entry")
    log.add_argument("--limit", type=int, default=100, help="entries (default: 100)")
    log.set_defaults(run=_log)


def decode(data: bytes) -> object:
    """Return what MessagePack bytes hold, schema or not.

    Raises:
        UsageError: they are no MessagePack.
    """
    try:
        msgpack = importlib.import_module("msgpack")
    except ImportError:
        import msgspec

        try:
            return msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"not MessagePack: {error}") from None
    try:
        found: object = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"not MessagePack: {reason}") from None
    return found


def plain(value: object) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return what JSON can hold: bytes as text where they are printable, else as hex."""
    if isinstance(value, bytes):
        cut = value[:SHOWN_BYTES]
        more = f" ... {len(value)} bytes" if len(value) > SHOWN_BYTES else ""
        if cut.isascii() and cut.decode().isprintable():
            return f"b'{cut.decode()}'{more}"
        return f"0x{cut.hex()}{more}"
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return value


def unfolded(value: object) -> object:
    """Return a log entry with the commands in it decoded: each is bytes of its own."""
    if (
        isinstance(value, list)
        and len(value) > COMMANDS_AT
        and isinstance(value[COMMANDS_AT], list)
    ):
        commands = [decode(one) for one in value[COMMANDS_AT] if isinstance(one, bytes)]
        return [*value[:COMMANDS_AT], commands, *value[COMMANDS_AT + 1 :]]
    return value


def _record(options: argparse.Namespace) -> int:
    source = options.source
    path = Path(source)
    if source == "-":
        data = sys.stdin.buffer.read()
    elif path.exists():
        data = path.read_bytes()
    else:
        try:
            data = bytes.fromhex(source.removeprefix("0x"))
        except (ValueError, binascii.Error):
            raise NotFound(f"{source} is no file, and no hexadecimal digits") from None
    print(json.dumps(plain(decode(data)), indent=1))
    return 0


def _state(options: argparse.Namespace) -> int:
    from nokv.kv.errors import StoreFailed
    from nokv.kv.lmdb_store import open_reader
    from nokv.server.datadir import state_path
    from nokv.state.families import Family

    families = list(Family)
    if options.family:
        names = {family.name.lower(): family for family in Family}
        if options.family not in names:
            raise UsageError(f"no family {options.family}", hint=", ".join(names))
        families = [names[options.family]]
    path = state_path(options.data_dir)
    if not path.is_dir():
        raise NotFound(f"{options.data_dir} holds no state", hint="name a node's data_dir")
    try:
        with open_reader(path) as reader:
            for family in families:
                for count, (key, value) in enumerate(reader.scan(family, b"", END)):
                    if count == options.limit:
                        break
                    fields: dict[str, Any] = {"family": family.name.lower(), "key": key.hex()}
                    output.line(fields | {"value": _shown(value)})
    except StoreFailed as error:
        raise NokvError(str(error)) from None
    return 0


def _shown(value: bytes) -> Any:  # noqa: ANN401 - whatever JSON can hold
    try:
        return plain(unfolded(decode(value)))
    except UsageError:
        pass
    try:
        # A record that has a history is stored behind the version that wrote it.
        record = plain(decode(value[VERSION_BYTES:]))
    except UsageError:
        return plain(value)
    return {"version": int.from_bytes(value[:VERSION_BYTES]), "record": record}


def _log(options: argparse.Namespace) -> int:
    from nokv.server.datadir import log_path
    from nokv_replication import records

    segments = sorted(log_path(options.data_dir).glob("*.log"))
    if not segments:
        raise NotFound(f"{options.data_dir} holds no log", hint="name a node's data_dir")
    left = options.limit
    for segment in segments:
        data = memoryview(segment.read_bytes())
        first = records.decode_at(data, 0, 0)
        if first is None:
            output.line({"segment": segment.name, "error": "no valid header"})
            continue
        header: Any = decode(bytes(first.payload))
        output.line({"segment": segment.name, "header": plain(header)})
        for record in records.scan(data, first.end, header[5]):
            entry = record.type == records.RecordType.ENTRY
            if entry and record.entry_index < options.first:
                continue
            if left <= 0:
                return 0
            left -= 1
            output.line(
                {
                    "type": record.type.name.lower(),
                    "index": record.entry_index,
                    "term": record.term,
                    "payload": _shown(bytes(record.payload)),
                }
            )
    return 0

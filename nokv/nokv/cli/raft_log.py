"""`nokv raft-log`: a stopped node's replicated log: its records, their health, what to pass over.

Exit codes of `verify`: 0 whole, 1 a torn tail that the next start cuts, 2 a start would stop.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nokv.cli import output
from nokv.cli.main import add_action
from nokv.errors import DataDirectoryError, InvalidArgument, UsageError

if TYPE_CHECKING:
    from nokv.server.datadir import NodeFile
    from nokv_replication import Applied, Skip
    from nokv_replication.disk import OsDisk
    from nokv_replication.logtool import Line, Report

EXIT_TORN: Final = 1
EXIT_DAMAGED: Final = 2

_ENTRY: Final = re.compile(r"(\d{1,19}):([0-9a-f]{8})")
_INDEXED: Final = frozenset({"entry", "truncate", "install"})


def add_raft_log(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv raft-log`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    dump = add_action(actions, "dump", "show every record, one a line")
    _add_path(dump)
    dump.add_argument(
        "--from",
        type=int,
        default=0,
        dest="first",
        metavar="INDEX",
        help="the first entry to show (default: all that is there)",
    )
    dump.add_argument(
        "--to", type=int, default=None, dest="last", metavar="INDEX", help="the last entry to show"
    )
    dump.add_argument("--json", action="store_true", help="one JSON object a record")
    dump.set_defaults(run=_dump)
    verify = add_action(actions, "verify", "check that the node can start from its log")
    _add_path(verify)
    verify.add_argument("--json", action="store_true", help="one JSON object")
    verify.set_defaults(run=_verify)
    skip = add_action(actions, "skip", "have the node pass over an entry nothing can apply")
    skip.add_argument("index", type=int, metavar="INDEX", help="the entry's index")
    _add_path(skip)
    skip.add_argument(
        "--entry",
        metavar="TERM:CRC",
        help="the entry as another node names it, for a node whose log ends before it",
    )
    skip.add_argument(
        "--remove", action="store_true", help="take it back; only before the node applied it"
    )
    skip.set_defaults(run=_skip)
    skips = add_action(actions, "skips", "list the entries that the node passes over")
    _add_path(skips)
    skips.set_defaults(run=_skips)


def _add_path(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "path",
        nargs="?",
        type=Path,
        default=None,
        metavar="DATA_DIR|CONFIG",
        help="the node's data directory or its settings (default: node.toml)",
    )
    either.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="the same, as an option"
    )  # fmt: skip


# ---------------------------------------------------------------- the directory


def data_directory(path: Path) -> Path:
    """Return the data directory that a path names, itself or through a configuration.

    Raises ConfigError.
    """
    if path.is_dir():
        return path
    from nokv.server.config import load

    return Path(load(path).data_dir)


@contextmanager
def _stopped(options: argparse.Namespace) -> Iterator[tuple[Path, NodeFile, OsDisk]]:
    """Hold a stopped node's directory: its path, its identity, and the disk of its log.

    Errors of the log leave as `NokvError`s.
    """
    from nokv.server.datadir import lock, log_path, read_identity
    from nokv_replication import ReplicationError
    from nokv_replication.disk import OsDisk

    data_dir = data_directory(options.path or options.config or Path("node.toml"))
    identity = read_identity(data_dir)
    folder = log_path(data_dir)
    if not folder.is_dir():
        raise DataDirectoryError(f"{data_dir} holds no log")
    held = lock(data_dir)
    try:
        yield data_dir, identity, OsDisk(folder)
    except ReplicationError as error:
        raise InvalidArgument(str(error)) from error
    finally:
        os.close(held)


def _position(data_dir: Path) -> Applied:
    """Return where the state stands durably; at the start where there is none yet.

    Raises DataDirectoryError if the store can't be read, or not by this build.
    """
    import msgspec

    from nokv.kv.errors import StoreFailed
    from nokv.kv.lmdb_store import open_reader
    from nokv.server.datadir import state_path
    from nokv.server.machine import applied_of
    from nokv.state import keys
    from nokv.state.families import Family
    from nokv.state.records import decode_counters, decode_position
    from nokv_replication import Applied

    path = state_path(data_dir)
    if not path.exists():
        return Applied()
    try:
        with open_reader(path, at_rest=True) as reader:
            position = reader.get(Family.META, keys.POSITION)
            counters = reader.get(Family.META, keys.COUNTERS)
        if position is None or counters is None:
            return Applied()
        return applied_of(decode_position(position), decode_counters(counters))
    except StoreFailed as error:
        raise DataDirectoryError(f"the state can't be read: {error}") from None
    except msgspec.MsgspecError as error:
        message = f"the state is of a build that this one does not know: {error}"
        raise DataDirectoryError(message, hint="use the build that wrote it") from None


# ---------------------------------------------------------------- dump


def _dump(options: argparse.Namespace) -> int:
    from nokv_replication import logtool

    whole = not options.first and options.last is None
    last = options.last if options.last is not None else sys.maxsize
    with _stopped(options) as (_, _, disk):
        for line in logtool.dump(disk):
            if line.kind in _INDEXED:
                if not options.first <= line.index <= last:
                    continue
            elif not whole and line.kind not in {"torn", "damaged"}:
                continue
            fields = _line_fields(line)
            if options.json:
                output.line(fields)
            else:
                print(_line_text(fields))
    return 0


def _line_fields(line: Line) -> dict[str, Any]:
    """Return what JSON says of a record: sizes in bytes, times in nanoseconds."""
    from nokv_replication import logtool

    fields: dict[str, Any] = {
        "file": line.file,
        "offset_bytes": line.offset_bytes,
        "size_bytes": line.size_bytes,
        "kind": line.kind,
    }
    if line.kind in {"torn", "damaged"}:
        return fields
    fields |= {"index": line.index, "term": line.term, "batch_start": line.batch_start}
    fields |= {"payload_bytes": len(line.payload), "crc": f"{line.crc:08x}"}
    if line.kind == "entry":
        entry = logtool.entry_of(line)
        if entry is None:
            return fields | {"entry": "unreadable"}
        fields |= {"entry": entry.kind.name.lower(), "payloads": len(entry.payloads)}
        fields |= {"wall_ns": entry.wall_ns, "cluster_ns": entry.cluster_ns}
    return fields


def _line_text(fields: dict[str, Any]) -> str:
    where = f"{fields['file']}+{fields['offset_bytes']}"
    kind = fields["kind"]
    if kind in {"torn", "damaged"}:
        return f"{where} {kind}: {fields['size_bytes']} bytes that are no record"
    words = [where, kind]
    if kind in _INDEXED or kind == "header":
        words.append(str(fields["index"]))
    words.append(f"term {fields['term']}")
    if kind == "entry":
        words.append(fields["entry"])
        if "wall_ns" in fields:
            words.append(f"of {fields['payloads']}")
            words.append(_time(fields["wall_ns"]))
            words.append(f"cluster {fields['cluster_ns'] / 1e9:.3f}s")
    words.append(f"{fields['payload_bytes']} bytes crc {fields['crc']}")
    return " ".join(words) + (" synced-before" if fields["batch_start"] else "")


def _time(wall_ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(wall_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{wall_ns} ns"


# ---------------------------------------------------------------- verify


def _verify(options: argparse.Namespace) -> int:
    from nokv.server.datadir import replication_identity
    from nokv_replication import DiskFailed, LogDamaged, StartRefused, logtool, skips

    with _stopped(options) as (data_dir, node, disk):
        try:
            report = logtool.examine(disk, replication_identity(node))
            skipped = skips.load(disk, node.cluster.cluster)
            applied = _position(data_dir)
        except (LogDamaged, StartRefused, DiskFailed, DataDirectoryError) as error:
            where = {"file": getattr(error, "file", ""), "offset_bytes": _offset(error)}
            _tell(options, {"state": "damaged", **where, "problem": str(error)})
            return EXIT_DAMAGED
    problem = _gap(report, applied) or _poison(report, applied, skipped)
    state = "damaged" if problem else "torn" if report.cuts else "whole"
    fields: dict[str, Any] = {"state": state, "problem": problem} | _report_fields(report, applied)
    _tell(options, fields)
    if problem:
        return EXIT_DAMAGED
    return EXIT_TORN if report.cuts else 0


def _offset(error: Exception) -> int:
    offset: int = getattr(error, "offset_bytes", 0)
    return offset


def _gap(report: Report, applied: Applied) -> str:
    position = applied.index, applied.term
    if report.last_index < applied.index and report.announced != position:
        return (
            f"the log ends with entry {report.last_index}, the state stands at {applied.index}: the"
            " log has lost its tail. Keep this node stopped (docs/operations.md: A lost node)"
        )
    if report.first_index <= applied.index + 1:
        return ""
    return (
        f"the log begins with entry {report.first_index}, the state stands at {applied.index}: the"
        " state is an older copy. Keep this node stopped (docs/operations.md: A lost node)"
    )


def _poison(report: Report, applied: Applied, skipped: tuple[Skip, ...]) -> str:
    passed = {skip.index for skip in skipped}
    for index, reason in report.unreadable_first:
        if index > applied.index and index not in passed:
            return reason
    return ""


def _report_fields(report: Report, applied: Applied) -> dict[str, Any]:
    return {
        "segments": report.segments,
        "size_bytes": report.size_bytes,
        "first_index": report.first_index,
        "last_index": report.last_index,
        "last_term": report.last_term,
        "term": report.hard_state.term,
        "vote": report.hard_state.vote,
        "applied_index": applied.index,
        "unreadable": report.unreadable,
        "torn": [
            {"file": cut.file, "offset_bytes": cut.offset_bytes, "size_bytes": cut.size_bytes}
            for cut in report.cuts
        ],
    }


def _tell(options: argparse.Namespace, fields: dict[str, Any]) -> None:
    if options.json:
        output.line(fields)
        return
    if "segments" in fields:
        count = fields["last_index"] - fields["first_index"] + 1
        held = f"entries {fields['first_index']} to {fields['last_index']}" if count else "no entry"
        print(
            f"{held} in {fields['segments']} segments, {output.size(fields['size_bytes'])}; term"
            f" {fields['term']}; the state stands at {fields['applied_index']}"
        )
        for cut in fields["torn"]:
            # With a state ahead of the log it was synced after all: the problem below says so.
            meaning = (
                " never synced: nothing in it was acknowledged, and the next start cuts it"
                if not fields["problem"]
                else " which look as if they were never synced"
            )
            print(
                f"{cut['file']}+{cut['offset_bytes']}: torn tail of {cut['size_bytes']} bytes,"
                f"{meaning}"
            )
    if fields["problem"]:
        where = f"{fields['file']}+{fields['offset_bytes']}: " if fields.get("file") else ""
        print(f"{where}{fields['problem']}")
    else:
        print("the node can start from this log")


# ---------------------------------------------------------------- skip


def _skip(options: argparse.Namespace) -> int:
    from nokv.server.datadir import replication_identity
    from nokv_replication import logtool, skips

    given = _given(options.index, options.entry)
    with _stopped(options) as (data_dir, node, disk):
        cluster = node.cluster.cluster
        applied, pending = _position(data_dir), skips.load(disk, cluster)
        if options.remove:
            kept = skips.without(applied, pending, options.index)
            skips.store(disk, cluster, kept)
            print(f"node {node.node} does not skip entry {options.index}")
            return 0
        log, _ = logtool.open_read_only(disk, replication_identity(node))
        chosen = skips.choose(log, applied, pending, options.index, given)
        log.close()
        skips.store(disk, cluster, skips.merged(pending, (chosen,)))
    print(f"node {node.node} skips entry {skips.named((chosen,))} from its next start on")
    print(
        "run the same on every other node before it starts; where the log ends before that entry:"
        f" nokv raft-log skip {chosen.index} --entry {chosen.term}:{chosen.crc:08x}"
    )
    return 0


def _given(index: int, text: str | None) -> Skip | None:
    from nokv_replication import Skip

    if text is None:
        return None
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise UsageError(f"--entry {text}", hint="write TERM:CRC as another node printed it")
    return Skip(index, int(match[1]), int(match[2], 16))


def _skips(options: argparse.Namespace) -> int:
    from nokv_replication import skips

    with _stopped(options) as (data_dir, node, disk):
        applied = _position(data_dir)
        every = skips.merged(applied.skips, skips.load(disk, node.cluster.cluster))
    for skip in every:
        state = "applied" if skip.index <= applied.index else "waits"
        print(f"{skip.index} --entry {skip.term}:{skip.crc:08x} {state}")
    return 0

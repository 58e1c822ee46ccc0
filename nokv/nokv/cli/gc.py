"""`nokv gc` and `nokv fsck`: what waits for the collector and why, its runs, and the whole check.

Exit codes of `nokv fsck`: 0 clean, EXIT_REPAIRED, EXIT_DAMAGED; 1 where it could not check.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nokv.cli import output
from nokv.cli.client import add_config, count, own_cluster, seconds, with_client
from nokv.cli.main import EXIT_FAILED, add_action, add_cluster
from nokv.errors import NotPermitted, Unavailable, UsageError

if TYPE_CHECKING:
    from nokv.client.core import Core
    from nokv.client.fs import AsyncClient
    from nokv.server.collector import Collector, Orphan
    from nokv.server.volume_check import Report
    from nokv.types.commands import Op
    from nokv.types.gc import PendingDrop, Reason, WaitingReply, WaitingSession
    from nokv.types.reads import Read
    from nokv.types.results import Result
    from nokv.wire.rpc import GcStatus

EXIT_REPAIRED: Final = 3
"""`nokv fsck --repair` put right all that it found."""
EXIT_DAMAGED: Final = 4
"""`nokv fsck` found what is still wrong."""
POLL_S: Final = 0.2
SILENT_MS: Final = 10_000
"""A worker that was not heard for so long is said to be silent."""

V = TypeVar("V")


def add_gc(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv gc`."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    status = add_action(actions, "status", "show how much waits and what was freed")
    status.set_defaults(run=with_client(_status, operator=True))
    run = add_action(actions, "run", "free now all that can go, and say what was freed")
    run.add_argument(
        "--wait", type=seconds, default=600.0, metavar="SECONDS",
        help="for the end of the run, which goes on in any case (default: 600)",
    )  # fmt: skip
    run.set_defaults(run=with_client(_run, operator=True))
    pending = add_action(actions, "pending", "show each thing that waits, with all that keeps it")
    pending.add_argument(
        "--limit", type=count, default=1000, metavar="ROWS", help="rows at most (default: 1000)"
    )
    pending.add_argument("--sessions", action="store_true", help="show sessions instead of bodies")
    pending.set_defaults(run=with_client(_pending, operator=True))
    orphans = add_action(
        actions, "orphans", "delete the objects of uploads that were given up, with the proof"
    )
    orphans.add_argument("--dry-run", action="store_true", help="show them only")
    orphans.set_defaults(run=with_client(_orphans, operator=True))
    for action in (status, run, pending, orphans):
        add_cluster(action)
        add_config(action)
        action.add_argument("--json", action="store_true", help="JSON, one object a line")


def add_fsck(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv fsck`."""
    parser.epilog = (
        f"Exit codes: 0 clean, {EXIT_REPAIRED} everything that was found is repaired, "
        f"{EXIT_DAMAGED} damaged, {EXIT_FAILED} not checked."
    )
    add_cluster(parser)
    add_config(parser)
    parser.add_argument(
        "--deep", action="store_true",
        help="read and verify every body, and judge objects whose session nobody remembers",
    )  # fmt: skip
    parser.add_argument("--repair", action="store_true", help="with --deep: delete what is leaked")
    parser.add_argument(
        "--scratch", type=Path, default=None, metavar="DIRECTORY",
        help="where to put an image of the metadata meanwhile (default: the system's)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=with_client(_fsck, operator=True))


# ---------------------------------------------------------------- the cluster


async def _ask(core: Core, request: Read, kind: type[V]) -> V:
    value: Any = await core.read(request)
    assert isinstance(value, kind), value
    return value


async def _gc(core: Core, *, run: bool = False) -> GcStatus:
    """Ask the leader how its collector stands, or order a run of it."""
    from nokv.wire.rpc import GcStatus, RunGc

    reply = await core.router.call_leader(RunGc(run), core.config.deadline_s)
    assert isinstance(reply, GcStatus), reply
    return reply


class _Reader:
    """The collector's node, for looking only."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def read(self, request: Read, kind: type[V]) -> V:
        """Read linearizably."""
        return await _ask(self._core, request, kind)

    async def run(self, op: Op) -> Result:
        """Refuse: only workers run internal commands."""
        raise NotPermitted(f"{type(op).__name__} is for the cluster itself")


# ---------------------------------------------------------------- status and run


async def _status(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.types.gc import GetWaiting, WaitingReply
    from nokv.types.reads import GetOrigin, OriginReply

    status = await _gc(fs.core)
    waiting = await _ask(fs.core, GetWaiting(), WaitingReply)
    adopted = (await _ask(fs.core, GetOrigin(), OriginReply)).adopted
    if options.json:
        output.line({**_waiting_fields(waiting), **_status_fields(status), "adopted": adopted})
        return 0
    jobs = ", ".join(f"{number} {kind}" for kind, number in waiting.jobs_by_kind.items())
    totals = status.totals
    print(f"ended bodies    {waiting.drops} wait (nokv gc pending says for what)")
    print(f"history         {waiting.history} records that snapshots, clones or leases keep")
    print(f"background      {waiting.jobs} jobs{f': {jobs}' if jobs else ''}")
    print(f"removed views   {waiting.views_dead} wait for what they name")
    print(f"sessions        {waiting.sessions}, ended ones that answer retries too")
    print(
        f"freed           {output.plural(totals.objects, 'object')} of "
        f"{output.size(totals.size_bytes)}, {output.plural(totals.orphans, 'orphan')} of "
        f"{output.size(totals.orphan_bytes)}, {output.plural(status.reaped, 'record')} reaped, "
        "since the leader's processes started"
    )
    print(f"grace           {status.grace_ns / 1e9:g} s")
    for problem in _problems(status, adopted=adopted):
        print(f"problem         {problem}")
    return 0


def _problems(status: GcStatus, *, adopted: bool) -> list[str]:
    found = []
    if not adopted:
        found.append("the restored volume is not adopted, nothing is deleted: nokv volume adopt")
    if status.reported_ms < 0 or status.reported_ms > SILENT_MS:
        found.append("the leader's worker process is not heard")
    if status.totals.failures:
        found.append(f"{status.totals.failures} rounds failed; the worker's log says why")
    if status.error:
        found.append(status.error)
    return found


def _waiting_fields(waiting: WaitingReply) -> dict[str, Any]:
    import msgspec

    return {"waiting": msgspec.structs.asdict(waiting)}


def _status_fields(status: GcStatus) -> dict[str, Any]:
    import msgspec

    return {
        "freed": {**msgspec.structs.asdict(status.totals), "reaped": status.reaped},
        "grace_ns": status.grace_ns,
        "reported_ms": status.reported_ms,
        "error": status.error,
    }


async def _run(fs: AsyncClient, options: argparse.Namespace) -> int:
    before = await _gc(fs.core)
    ordered = await _gc(fs.core, run=True)
    try:
        async with asyncio.timeout(options.wait):
            while True:
                now = await _gc(fs.core)
                if now.office != ordered.office:
                    message = "another node leads now, whose collector knows nothing of the run"
                    raise Unavailable(message, hint="run it again")
                if now.finished >= ordered.ordered:
                    break
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        message = f"the run is not over after {options.wait:g} s; it goes on"
        raise Unavailable(message, hint="nokv gc status shows its end") from None
    freed = _difference(before, now)
    if options.json:
        output.line({"freed": freed, "error": now.error})
    else:
        bodies = output.plural(freed["rows"], "ended body", "ended bodies")
        print(
            f"freed {output.plural(freed['objects'], 'object')} of "
            f"{output.size(freed['size_bytes'])}, {output.plural(freed['orphans'], 'orphan')} of "
            f"{output.size(freed['orphan_bytes'])}, {bodies} "
            f"and {output.plural(freed['reaped'], 'record')}"
        )
        if now.error:
            print(f"not all: {now.error}")
    return EXIT_FAILED if now.error else 0


def _difference(before: GcStatus, after: GcStatus) -> dict[str, int]:
    """Return what was freed between two replies; a worker that started anew began at nothing."""
    import msgspec

    first, last = msgspec.structs.asdict(before.totals), msgspec.structs.asdict(after.totals)
    restarted = last["rounds"] < first["rounds"]
    names = ("rows", "objects", "size_bytes", "orphans", "orphan_bytes", "sessions")
    freed = {name: last[name] - (0 if restarted else first[name]) for name in names}
    return {**freed, "reaped": after.reaped - before.reaped}


# ---------------------------------------------------------------- pending


async def _pending(fs: AsyncClient, options: argparse.Namespace) -> int:
    grace_ns = (await _gc(fs.core)).grace_ns
    if options.sessions:
        return await _pending_sessions(fs.core, options, grace_ns)
    from nokv.types.gc import GetPendingDrops, PendingDropsReply

    after, left, more = 0, options.limit, True
    while more and left > 0:
        request = GetPendingDrops(after, min(left, 512), grace_ns)
        page = await _ask(fs.core, request, PendingDropsReply)
        for row in page.rows:
            if options.json:
                output.line(_drop_fields(row, page.cluster_ns))
            else:
                print(_drop_line(row, page.cluster_ns))
        after, more = page.after, page.more
        left -= len(page.rows)
    if more and not options.json:
        print(f"there are more: --limit {2 * options.limit} shows them")
    return 0


def _drop_line(row: PendingDrop, cluster_ns: int) -> str:
    what = f"view {row.view} inode {row.inode} body {row.body}" if row.body else f"view {row.view}"
    if row.chunk >= 0:
        what += f" chunk {row.chunk}"
    size = f"{output.plural(row.objects, 'object')}, {output.size(row.size_bytes)}"
    keeps = "; ".join(dict.fromkeys(reason_text(reason, cluster_ns) for reason in row.reasons))
    return f"{what} ({size}), ended at version {row.death}: {keeps or 'goes next'}"


def reason_text(reason: Reason, cluster_ns: int) -> str:
    """Return what keeps a row, in words."""
    from nokv.types.gc import Why

    left_s = max(0, reason.at - cluster_ns) / 1e9
    texts = {
        Why.SNAPSHOT: f"snapshot {reason.name or reason.by}",
        Why.CLONE: f"clone (view {reason.by}) of version {reason.at}",
        Why.SESSION_PIN: f"a pin of session {reason.by:016x}",
        Why.BACKUP: f"backup {reason.name or reason.by}",
        Why.LEASE: f"a lease of session {reason.by:016x}, which has it open",
        Why.FLOOR: f"session {reason.by:016x} may still read version {reason.at}",
        Why.GRACE: f"the grace, {left_s:.0f} s more",
        Why.FOREIGN: "the restored volume is not adopted",
        Why.SHARED: f"copies share {output.plural(reason.at, 'object')}: the last one deletes",
    }
    return next((text for why, text in texts.items() if why == reason.why), _why(reason))


def _drop_fields(row: PendingDrop, cluster_ns: int) -> dict[str, Any]:
    import msgspec

    fields = msgspec.structs.asdict(row)
    fields["reasons"] = [
        {
            **msgspec.structs.asdict(reason),
            "why": _why(reason),
            "text": reason_text(reason, cluster_ns),
        }
        for reason in row.reasons
    ]
    return fields


def _why(reason: Reason) -> str:
    from nokv.types.gc import Why

    return Why(reason.why).name.lower() if reason.why in set(Why) else str(reason.why)


async def _pending_sessions(core: Core, options: argparse.Namespace, grace_ns: int) -> int:
    from nokv.types.gc import ListWaitingSessions, WaitingSessionsReply

    after, left, more = 0, options.limit, True
    while more and left > 0:
        request = ListWaitingSessions(after, min(left, 512), grace_ns)
        page = await _ask(core, request, WaitingSessionsReply)
        for row in page.rows:
            if options.json:
                output.line(_session_fields(row))
            else:
                print(f"session {row.session:016x}: {_session_text(row, page.cluster_ns)}")
            after = row.session
        more = page.more
        left -= len(page.rows)
    return 0


def _session_text(row: WaitingSession, cluster_ns: int) -> str:
    from nokv.types.gc import WhySession

    left_s = max(0, row.until_cluster_ns - cluster_ns) / 1e9
    uploads = output.plural(row.abandoned, "upload")
    if row.why == WhySession.ALIVE:
        return f"alive, {row.pins} pins, {row.leases} leases, reads from version {row.floor} on"
    if row.why == WhySession.ABANDONED:
        wait = f"after the grace, {left_s:.0f} s more" if row.until_cluster_ns else "next"
        return f"alive; {uploads} given up: the last of them goes {wait}"
    if row.why == WhySession.GRACE:
        return f"ended; its last PUTs may arrive for {left_s:.0f} s more"
    if row.why == WhySession.ANSWERS:
        return f"ended; answers retries for {left_s:.0f} s more"
    return "ended; goes when a whole listing finds nothing of it left"


def _session_fields(row: WaitingSession) -> dict[str, Any]:
    import msgspec

    from nokv.types.gc import WhySession

    name = WhySession(row.why).name.lower() if row.why in set(WhySession) else str(row.why)
    return {**msgspec.structs.asdict(row), "session": f"{row.session:016x}", "why": name}


# ---------------------------------------------------------------- orphans


async def _orphans(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.backup.gone import check_not_gone
    from nokv.objects.port import DELETE_NAMES_MAX
    from nokv.server.collector import Collector
    from nokv.types.reads import GetOrigin, OriginReply

    core = fs.core
    if not (await _ask(core, GetOrigin(), OriginReply)).adopted:
        message = "the restored volume is not adopted: its original may need what looks orphaned"
        raise NotPermitted(message, hint="if the original is gone for good: nokv volume adopt")
    grace_ns = (await _gc(core)).grace_ns
    store = await core.object_store()
    collector: Collector = Collector(
        _Reader(core), store, volume=core.volume.volume, grace_ns=grace_ns
    )
    own = await own_cluster(core, options)

    async def delete(names: list[str]) -> int:
        if options.dry_run or not names:
            return 0
        await check_not_gone(store, core.volume.volume, own)
        return len(await store.delete(names))

    found, size_bytes, failed = 0, 0, 0
    names: list[str] = []
    async for orphan in collector.find_orphans():
        found += 1
        size_bytes += orphan.info.length
        if options.json:
            output.line(_orphan_fields(orphan))
        elif options.dry_run:
            print(f"{orphan.info.name}  {output.size(orphan.info.length)}  {_proof(orphan)}")
        names.append(orphan.info.name)
        if len(names) == DELETE_NAMES_MAX:
            failed += await delete(names)
            names = []
    failed += await delete(names)
    if not options.json:
        done = "found" if options.dry_run else "deleted"
        print(f"{output.plural(found - failed, 'orphan')} of {output.size(size_bytes)} {done}")
    if failed:
        raise Unavailable(f"{output.plural(failed, 'object')} could not be deleted")
    return 0


def _proof(orphan: Orphan) -> str:
    session = orphan.session
    if session.died:
        return f"session {session.session:016x} ended at version {session.died}, unpublished"
    return f"session {session.session:016x} gave up uploads below {session.watermark}, unpublished"


def _orphan_fields(orphan: Orphan) -> dict[str, Any]:
    session = orphan.session
    return {
        "name": orphan.info.name,
        "size_bytes": orphan.info.length,
        "modified_ns": orphan.info.modified_ns,
        "session": f"{session.session:016x}",
        "died": session.died,
        "watermark": session.watermark,
        "proof": _proof(orphan),
    }


# ---------------------------------------------------------------- fsck


async def _fsck(fs: AsyncClient, options: argparse.Namespace) -> int:
    from nokv.server.volume_check import check_volume

    if options.repair and not options.deep:
        raise UsageError("--repair without --deep", hint="say both: nokv fsck --deep --repair")
    store = await fs.core.object_store()
    own = await own_cluster(fs.core, options)
    with tempfile.TemporaryDirectory(prefix="nokv-fsck-", dir=options.scratch) as folder:
        report = await check_volume(
            fs.core, store, Path(folder), cluster=own, deep=options.deep, repair=options.repair
        )
    if options.json:
        output.line(_report_fields(report))
    else:
        _print_report(report, deep=options.deep)
    if report.damaged:
        return EXIT_DAMAGED
    return EXIT_REPAIRED if report.repaired else 0


def _report_fields(report: Report) -> dict[str, Any]:
    import msgspec

    fields = msgspec.structs.asdict(report)
    fields["findings"] = [finding._asdict() for finding in report.findings]
    return {**fields, "damaged": report.damaged}


def _print_report(report: Report, *, deep: bool) -> None:
    for finding in report.findings:
        print(f"{finding.kind}: {finding.what}: {finding.detail}")
    told = len(report.findings)
    if sum(report.counts.values()) > told:
        print(f"... and {sum(report.counts.values()) - told} more")
    print(
        f"version {report.version}: {output.plural(report.inodes, 'inode')}, "
        f"{output.plural(report.objects, 'object')} of {output.size(report.size_bytes)}"
        + (f", {report.read} read and verified" if deep else "")
    )
    for number, what in (
        (report.waiting, "of uploads given up wait for the collector"),
        (report.in_flight, "are of uploads under way"),
        (report.unjudged, "are named by nothing known" + ("" if deep else ": --deep judges them")),
    ):
        if number:
            print(f"{output.plural(number, 'object')} {what}")
    if report.repaired:
        print(f"{output.plural(report.repaired, 'leaked object')} deleted")
    print("damaged" if report.damaged else "clean" if not report.repaired else "repaired")

"""The exposition: its golden text, its grammar, and names that say their unit."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest

from nokv.server.metrics import Exposition, Histogram, raft_metrics
from nokv_replication import (
    Applied,
    DurationHistogram,
    PeerStatus,
    Role,
    Skip,
    Status,
)
from nokv_replication.types import Counters, ImageStatus

GOLDEN = Path(__file__).with_name("metrics.txt")

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
HELP = re.compile(rf"# HELP ({NAME}) (\S.*\.)")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge|histogram)")
SAMPLE = re.compile(rf'({NAME})(\{{{NAME}="[^"\\\n]*"\}})? (-?[0-9.e+-]+)')


def durations(*counts: int) -> DurationHistogram:
    bounds_ns = (16_000, 1_000_000)
    return DurationHistogram(bounds_ns=bounds_ns, counts=counts, total_ns=1_500_000_000)


def status() -> Status:
    """Return a leader's status with a different number in every place."""
    values = {name: at for at, name in enumerate(Counters.__struct_fields__, 100)}
    peer = PeerStatus(
        node=2,
        connected=True,
        match_index=41,
        lag_entries=3,
        inflight_bytes=512,
        applied_index=40,
        free_bytes=1 << 30,
        wall_skew_ns=-2_500_000,
        machine_format=1,
        sync_ns=400_000,
    )
    return Status(
        cluster="c",
        node=1,
        role=Role.LEADER,
        ready=True,
        leads=True,
        term=7,
        leader=1,
        commit_index=43,
        applied_index=42,
        durable_index=30,
        first_index=5,
        last_index=44,
        log_bytes=4096,
        droppable_bytes=1024,
        free_bytes=1 << 31,
        cluster_ns=9,
        members=(),
        peers=(peer,),
        counters=Counters(**values),
        log_sync=durations(1, 2, 3),
        commit_latency=durations(4, 5, 6),
        machine_commit=durations(7, 8, 9),
        recent_sync_ns=30_000_000,
        slow_disk=True,
        uncommitted_ns=250_000_000,
        skips=(Skip(3, 1, 2),),
        images=(ImageStatus(peer=3, outgoing=True, index=30, done_bytes=100, size_bytes=1000),),
        removed=False,
        transferring_to=None,
        problem="",
    )


def exposition() -> str:
    out = Exposition()
    raft_metrics(out, status())
    return out.render().decode()


def golden() -> str:
    """Return the exposition without the plain counters, which are named like their fields."""
    lines = exposition().splitlines(keepends=True)
    plain = {at for at, line in enumerate(lines) if " Replication: " in line}
    return "".join(line for at, line in enumerate(lines) if not {at, at - 1, at - 2} & plain)


def test_the_exposition_is_the_golden_one() -> None:
    """`python -m tests.unit.server.test_metrics > tests/unit/server/metrics.txt` writes it anew."""
    assert golden() == GOLDEN.read_text()


def test_every_line_follows_the_grammar_and_every_name_says_its_unit() -> None:
    kinds: dict[str, str] = {}
    helped = ""
    for line in exposition().splitlines():
        if match := HELP.fullmatch(line):
            helped = match[1]
            continue
        if match := TYPE.fullmatch(line):
            name, kind = match[1], match[2]
            assert name == helped
            assert name not in kinds, "a metric twice"
            kinds[name] = kind
            assert (kind == "counter") == name.endswith("_total")
            assert kind != "histogram" or name.endswith("_seconds")
            assert not re.search(r"_(ns|ms|us|kib|mib)(_|$)", name), "base units only"
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        base = re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert match[1] in kinds or kinds.get(base) == "histogram", line
        float(match[3])


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    lines = [line for line in exposition().splitlines() if "nokv_raft_commit_seconds" in line]
    assert lines[2:] == [
        'nokv_raft_commit_seconds_bucket{le="1.6e-05"} 4',
        'nokv_raft_commit_seconds_bucket{le="0.001"} 9',
        'nokv_raft_commit_seconds_bucket{le="+Inf"} 15',
        "nokv_raft_commit_seconds_sum 1.5",
        "nokv_raft_commit_seconds_count 15",
    ]


def test_failed_proposals_have_their_reason() -> None:
    text = exposition()
    for name in Counters.__struct_fields__:
        if name.startswith("failed_"):
            reason = name.removeprefix("failed_")
            assert f'nokv_raft_proposals_failed_total{{reason="{reason}"}} ' in text
        else:
            assert f"\nnokv_raft_{name}_total " in text


def test_labels_are_escaped() -> None:
    out = Exposition()
    out.gauges("g", "Text.", "label", [('a"b\\c\nd', 1)])
    assert out.render().decode().splitlines()[-1] == 'g{label="a\\"b\\\\c\\nd"} 1'


def test_counters_must_be_named_so() -> None:
    out = Exposition()
    with pytest.raises(AssertionError):
        out.counter("things", "Text.", 1)
    with pytest.raises(AssertionError):
        out.counters("things", "Text.", "label", [])


def test_a_duration_on_a_bound_counts_below_it() -> None:
    found = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.2, 1.0, 1.1):
        found.observe(seconds)
    assert found.counts == [1, 2, 1]


def test_status_has_a_place_for_each_field() -> None:
    """What /status and the metrics can show is there: nothing is silently dropped."""
    assert set(msgspec.structs.asdict(status())) == set(Status.__struct_fields__)
    assert Applied().skips == ()


if __name__ == "__main__":
    sys.stdout.write(golden())

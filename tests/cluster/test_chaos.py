"""Real nodes with TLS behind proxies that harm them; a longer run: tests/cluster/chaos.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cluster import chaos

from nokv_model import checkers
from nokv_model.history import Recorder

SECONDS = 45.0
SEED = 20261121


@pytest.mark.cluster
@pytest.mark.timeout(280)
def test_a_harmed_cluster_keeps_its_promises(tmp_path: Path) -> None:
    print(f"again: python tests/cluster/chaos.py --seconds {SECONDS:g} --seed {SEED}")
    report = chaos.run(SECONDS, SEED, tmp_path)
    assert report.verdict == checkers.Verdict.LINEARIZABLE
    assert report.writers.problems() == ""
    assert report.alarms == []
    assert report.digests == 1
    # It did work, and it was harmed in many ways; how much is a matter of the machine.
    assert report.writers.done > 10
    assert report.operations > 100
    assert len(report.faults) >= 4


@pytest.mark.parametrize(
    ("read", "verdict"),
    [
        ("second", checkers.Verdict.LINEARIZABLE),
        ("first", checkers.Verdict.NOT_LINEARIZABLE),
        ("lost", checkers.Verdict.LINEARIZABLE),
    ],
)
def test_a_stale_read_is_found(read: str, verdict: checkers.Verdict) -> None:
    times = iter(range(100))
    recorder = Recorder(lambda: next(times))
    recorder.invoke(1, ("/a", "write", "second"))
    recorder.ok(1, True)
    recorder.invoke(2, ("/a", "cas", "second", "lost"))
    recorder.unknown(2)
    recorder.invoke(3, ("/a", "read"))
    recorder.ok(3, read)
    assert chaos.judge(recorder)[0] == verdict

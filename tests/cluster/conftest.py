"""Real clusters: what the tests of this folder share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nokv.cli.main import main
from nokv.testing.cluster import LocalCluster

FAST = {"worker.interval_ms": 200}

NO_HELLO = "closing the connection with .+: no hello within"
"""Logged where a node, or the other, stood still for two seconds, as on a busy machine it may."""


class Done(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Nokv = Callable[..., Done]


@pytest.fixture
def nokv(
    nokv_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Nokv:
    """Run the command line, in this process, on the shared cluster."""
    monkeypatch.setenv("NOKV_CLUSTER", nokv_cluster.addresses)

    def run(*arguments: str | os.PathLike[str]) -> Done:
        capfd.readouterr()
        code = main([os.fspath(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def _rough_cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(settings=FAST) as cluster:
        yield cluster


@pytest.fixture
def rough_cluster(_rough_cluster: LocalCluster) -> LocalCluster:
    """A cluster whose nodes a test may kill; each test finds all of them ready."""
    for node in _rough_cluster.nodes:
        if not _rough_cluster.is_running(node):
            _rough_cluster.start_node(node)
    _rough_cluster.wait_ready()
    return _rough_cluster


@pytest.fixture(scope="session")
def _judged() -> dict[Path, int]:
    """Log file of the shared cluster to how many of its bytes were judged."""
    return {}


@pytest.fixture
def quiet(
    nokv_cluster: LocalCluster,
    check_log: Callable[[Path, int], None],
    allow_logs: Callable[..., None],
    _judged: dict[Path, int],
) -> Iterator[None]:
    """No node of the shared cluster may log a warning that the test did not declare.

    Each line is judged once, by the first such test that ends after it: one warning fails one test.
    """
    allow_logs(NO_HELLO)
    logs = [nokv_cluster.folder.log_path(node) for node in nokv_cluster.nodes]
    for log in logs:
        check_log(log, _judged.get(log, 0))
    yield
    for log in logs:
        _judged[log] = log.stat().st_size

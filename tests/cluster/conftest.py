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

Check = Callable[[Path], None]

FAST = {"worker.interval_ms": 200}


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


@pytest.fixture
def quiet(nokv_cluster: LocalCluster, check_log: Check) -> None:
    """No node of the shared cluster may log a warning that the test did not declare."""
    for node in nokv_cluster.nodes:
        check_log(nokv_cluster.folder.log_path(node))

"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nokv.testing.cluster import LocalCluster

pytestmark = pytest.mark.cluster

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["publish_checkpoint.py", "work_queue.py"])
def test_scripts(name: str, nokv_cluster: LocalCluster) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=os.environ | {"NOKV_CLUSTER": nokv_cluster.addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_fixture_works_in_somebody_elses_tests(pytester: pytest.Pytester) -> None:
    pytester.copy_example(str(EXAMPLES / "test_with_cluster.py"))
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)

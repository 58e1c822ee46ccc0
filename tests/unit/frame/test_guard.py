"""A program refuses to start when its assertions are compiled away."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nokv._guard import EXIT_REFUSED, refuse_optimised

ASK = "from nokv._guard import refuse_optimised; refuse_optimised(); print('started')"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_starts_with_assertions_on() -> None:
    refuse_optimised()
    assert run("-c", ASK).stdout == "started\n"


@pytest.mark.parametrize("level", ["-O", "-OO"])
def test_refuses_the_option(level: str) -> None:
    done = run(level, "-c", ASK)
    assert (done.returncode, done.stdout) == (EXIT_REFUSED, "")
    assert "assertions are off" in done.stderr


def test_refuses_the_environment_variable() -> None:
    done = run("-c", ASK, PYTHONOPTIMIZE="1")
    assert (done.returncode, done.stdout) == (EXIT_REFUSED, "")
    assert "PYTHONOPTIMIZE" in done.stderr

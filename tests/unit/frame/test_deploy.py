"""What an operator copies from `deploy/` is what the program takes."""

from __future__ import annotations

import re
import subprocess

import pytest
from tests.unit.frame import source

from nokv._guard import EXIT_REFUSED
from nokv.server import config

DEPLOY = source.ROOT / "deploy"


def unit() -> dict[str, str]:
    lines = (DEPLOY / "nokv.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z][A-Za-z]+=", line))


def test_the_example_configuration_is_accepted() -> None:
    loaded = config.load(DEPLOY / "node.toml", environ={})
    assert loaded.data_dir.startswith("/var/lib/" + unit()["StateDirectory"])


def test_the_unit_starts_again_at_growing_distances_and_never_gives_up() -> None:
    keys = unit()
    assert keys["Restart"] == "always"
    assert keys["StartLimitIntervalSec"] == "0"
    assert {"RestartSec", "RestartSteps", "RestartMaxDelaySec"} <= set(keys)
    # Except for what no new attempt can cure.
    assert keys["RestartPreventExitStatus"] == str(EXIT_REFUSED)


@pytest.mark.parametrize("script", ["deploy/system-packages.sh", "deploy/clean-room.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", source.ROOT / script], check=True)


def test_the_systems_python_is_found() -> None:
    done = subprocess.run(
        ["sh", DEPLOY / "system-packages.sh"], capture_output=True, text=True, check=True
    )
    found = done.stdout.strip()
    subprocess.run(
        [found, "-c", "import sys, venv; assert sys.version_info >= (3, 11)"], check=True
    )

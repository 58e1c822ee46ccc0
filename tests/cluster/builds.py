"""Two builds of NoKV side by side: this one, and one whose state format is the next."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nokv
import nokv_replication

PATCH = Path(__file__).with_name("next_build") / "state-format-2.patch"


def make_next_build(folder: Path) -> dict[str, str]:
    """Copy the packages, change their state format; return the environment that runs them."""
    for package in (nokv, nokv_replication):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / source.name, ignore=ignored)
    done = subprocess.run(
        ["git", "apply", "--unidiff-zero", str(PATCH)],
        cwd=folder,
        env={"GIT_CEILING_DIRECTORIES": str(folder.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{PATCH} does not apply: see the README beside it\n{done.stderr}"
    return {"PYTHONPATH": str(folder)}

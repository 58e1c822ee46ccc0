"""`python -m nokv.testing.demo [down]`: run the demonstration, or stop what it left running.

NOKV_DEMO_DIR    where its files are (default: .demo in the working directory)
NOKV_DEMO_STORE  local (default): bodies in a directory; s3: a real S3 server on loopback
NOKV_DEMO_MIB    size of the checkpoint (default: 256)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nokv._guard import refuse_optimised
from nokv.errors import DataDirectoryError, UsageError

if TYPE_CHECKING:
    from nokv.testing.demo.report import Report
    from nokv.testing.folder import Store

BUCKET: Final = "nokv-demo"


def main() -> int:
    """Run the demonstration; return 0 if everything it claims holds."""
    refuse_optimised()
    parser = argparse.ArgumentParser(prog="python -m nokv.testing.demo", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("run", "down"), default="run")
    parser.add_argument("--down", action="store_true", help="the same as the action down")
    parser.add_argument("--stop", action="store_true", help="stop the cluster at the end")
    options = parser.parse_args()
    folder = Path(os.environ.get("NOKV_DEMO_DIR") or ".demo").absolute()
    if options.down or options.action == "down":
        sys.stdout.write(f"stopped, removed {folder}\n" if remove(folder) else "nothing runs\n")
        return 0
    try:
        return run(folder, stop=options.stop)
    except KeyboardInterrupt:
        return 130


def remove(folder: Path) -> bool:
    """Stop the cluster of an earlier demonstration and remove its files."""
    from nokv.testing.folder import ClusterFolder

    if not folder.exists():
        return False
    with contextlib.suppress(DataDirectoryError):
        ClusterFolder(folder / "cluster").stop()
    shutil.rmtree(folder)
    return True


def run(folder: Path, *, stop: bool) -> int:
    """Run it in a new folder."""
    from nokv.testing.cluster import LocalCluster
    from nokv.testing.demo.report import Report
    from nokv.testing.demo.sources import MIB, copy_library, make_checkpoint
    from nokv.testing.demo.story import Story
    from nokv.testing.folder import Store

    kind = os.environ.get("NOKV_DEMO_STORE") or "local"
    if kind not in {"local", "s3"}:
        raise UsageError(f"NOKV_DEMO_STORE={kind}", hint="local or s3")
    size = int(os.environ.get("NOKV_DEMO_MIB") or 256) * MIB
    report = Report()
    remove(folder)
    folder.mkdir(parents=True)
    report.step(f"copying the standard library and making a checkpoint below {folder}")
    library = copy_library(folder / "source" / "stdlib")
    checkpoint = make_checkpoint(folder / "source" / "checkpoint", size)
    with ExitStack() as stack:
        store = stack.enter_context(_s3(folder)) if kind == "s3" else Store()
        cluster = LocalCluster.start(
            directory=folder / "cluster", store=store, detached=kind == "local" and not stop
        )
        stack.callback(cluster.close)
        report.step(f"three nodes run, bodies go to a {kind} store")
        holds = asyncio.run(Story(cluster, folder / "journals", report).tell(library, checkpoint))
        if kind == "local" and not stop:
            stack.pop_all()
            _suggest(cluster.addresses, report)
        else:
            report.step("the cluster stops")
    return 0 if holds else 1


@contextmanager
def _s3(folder: Path) -> Iterator[Store]:
    """Run an S3 server with an empty bucket; its keys are in the environment meanwhile."""
    from nokv.testing.folder import Store
    from nokv.testing.s3server import REGION, s3_server

    buckets = folder / "s3"
    (buckets / BUCKET).mkdir(parents=True)
    with s3_server(buckets) as server:
        yield Store("s3", BUCKET, server.endpoint, "", REGION)


def _suggest(addresses: str, report: Report) -> None:
    lines = (
        "",
        "The cluster runs on. Try:",
        f"  export NOKV_CLUSTER={addresses}",
        "  nokv status",
        "  nokv ls -l /demo/checkpoint",
        "  nokv stat --json /demo/checkpoint/model.safetensors.index.json",
        "  nokv cat /demo/stdlib/this.py | head",
        "  nokv publish docs /demo/docs && nokv tree /demo/docs",
        "and stop it with: make demo-down",
    )
    report.console.print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())

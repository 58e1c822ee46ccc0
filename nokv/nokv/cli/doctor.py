"""`nokv doctor`: what is wrong with this machine, a node's configuration, or a cluster."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nokv.cli import output
from nokv.cli.main import EXIT_FAILED, add_cluster

if TYPE_CHECKING:
    from nokv.cli.checks import Finding

MARKS: Final = {"ok": "ok  ", "warning": "WARN", "failure": "FAIL"}


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Describe `nokv doctor`."""
    add_cluster(parser)
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="look at this node's settings too"
    )
    parser.add_argument(
        "--dir", type=Path, default=None, metavar="DIR", help="measure the disk of this directory"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a finding, one a line")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        if options.json:
            output.line(finding._asdict())
            return
        print(f"{MARKS[finding.level]}  {finding.subject}: {finding.text}")
        if finding.advice:
            print(f"      {finding.advice}")
        sys.stdout.flush()

    from nokv.cli import checks

    for finding in checks.machine():
        tell(finding)
    directory: Path | None = options.dir
    if options.config is not None:
        for finding in checks.configuration(options.config):
            tell(finding)
        directory = directory or checks.data_directory(options.config)
    for finding in checks.disk(directory or Path.cwd(), named=directory is not None):
        tell(finding)
    cluster = options.cluster or os.environ.get("NOKV_CLUSTER", "") or _local_cluster()
    if cluster:
        from nokv.cli import cluster_checks

        every_ms = 0 if options.config is None else checks.backup_every_ms(options.config)
        cluster_checks.run(cluster, tell, every_ms)
    elif options.config is None:
        text = "none is named, so none was looked at"
        tell(checks.Finding("ok", "cluster", text, "set NOKV_CLUSTER, or start one: nokv up"))
    return EXIT_FAILED if any(one.level == "failure" for one in findings) else 0


def _local_cluster() -> str:
    """Return the addresses of the cluster that `nokv up` made, or nothing."""
    from nokv.cli.local import default_folder
    from nokv.errors import DataDirectoryError
    from nokv.testing.folder import ClusterFolder

    try:
        return ClusterFolder(default_folder()).addresses
    except DataDirectoryError:
        return ""

"""`nokv serve`: run one node in the foreground."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from nokv._guard import refuse_optimised
from nokv.server import logs
from nokv.server.config import load
from nokv.server.datadir import read_identity
from nokv.server.process import die_with_parent
from nokv.server.supervisor import Supervisor


def serve(
    config_path: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    with_parent: bool = False,
) -> int:
    """Run the node of `config_path` until SIGTERM or a failure; return the exit code.

    0: stopped as told. 2: the configuration or the data directory is refused. 70: the node could
    not vouch for its state and stopped itself; start it again. With `with_parent` the node is
    killed when the process that started it ends.

    Raises ConfigError and DataDirectoryError before anything is started.
    """
    refuse_optimised()
    if with_parent:
        die_with_parent(os.getppid(), signal.SIGKILL)
    config = load(config_path, overrides)
    identity = read_identity(Path(config.data_dir))
    logs.configure(
        config.logging.level, config.logging.format, node=identity.node, process="supervisor"
    )
    return Supervisor(config).run()

"""The checks of `nokv doctor` that need no running node: machine, disk, configuration."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nokv.cli import output
from nokv.errors import ConfigError, DataDirectoryError, NokvError

if TYPE_CHECKING:
    from nokv.server.config import NodeConfig
    from nokv.server.datadir import NodeFile

MIB: Final = 1 << 20
PYTHON_MIN: Final = (3, 11)
FDS_MIN: Final = 4096
FREE_BYTES_MIN: Final = 2048 * MIB
SYNCS: Final = 40
SYNC_BYTES: Final = 4096
SYNC_SLOW_S: Final = 0.005
"""Above it every commit waits noticeably."""
SYNC_NONE_S: Final = 0.000_008
"""Below it nothing can have reached a disk."""

SERVER_PACKAGES: Final = ("lmdb", "pysyncobj", "crc32c", "cryptography", "uvloop")
CLIENT_PACKAGES: Final = ("msgspec", "xxhash", "obstore", "aioboto3", "rich")


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str
    """'ok', 'warning' or 'failure'."""
    subject: str
    text: str
    advice: str = ""
    """What to do about it."""


# ---------------------------------------------------------------- machine


def machine() -> Iterator[Finding]:
    """Look at this interpreter and this machine."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= PYTHON_MIN:
        yield Finding("ok", "python", f"{version}, assertions are on")
    else:
        wanted = ".".join(str(part) for part in PYTHON_MIN)
        yield Finding("failure", "python", version, f"install Python {wanted} or newer")
    yield _packages("client", CLIENT_PACKAGES, "pip install nokv", "failure")
    yield _packages(
        "server", SERVER_PACKAGES, "to run nodes: pip install 'nokv[server]'", "warning"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FDS_MIN:
        yield Finding("ok", "open files", f"{soft} allowed")
    else:
        advice = f"a node with many clients needs more: ulimit -n {FDS_MIN} (hard limit {hard})"
        yield Finding("warning", "open files", f"{soft} allowed", advice)


def _packages(side: str, names: tuple[str, ...], advice: str, level: str) -> Finding:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("ok", f"{side} packages", "all there")
    return Finding(level, f"{side} packages", f"missing: {', '.join(missing)}", advice)


# ---------------------------------------------------------------- disk


def disk(directory: Path, *, named: bool) -> Iterator[Finding]:
    """Measure free space and the cost of a sync where a node's data is, or would be."""
    place = _existing(directory)
    free = shutil.disk_usage(place).free
    subject = f"disk of {place}" if named else f"disk of the working directory {place}"
    if free >= FREE_BYTES_MIN:
        yield Finding("ok", subject, f"{output.size(free)} free")
    else:
        advice = "free space, or put data_dir on another disk: a node that runs full refuses growth"
        yield Finding("warning", subject, f"{output.size(free)} free", advice)
    try:
        median_s, worst_s = sync_cost_s(place)
    except OSError as error:
        advice = "a node must be able to write here" if named else "name a directory with --dir"
        yield Finding("failure" if named else "warning", subject, str(error), advice)
        return
    text = f"one fdatasync of 4 KiB: median {median_s * 1e3:.2f} ms, worst {worst_s * 1e3:.2f} ms"
    if median_s > SYNC_SLOW_S:
        yield Finding("warning", subject, text, "each commit waits for one: use a faster disk")
    elif median_s < SYNC_NONE_S:
        advice = "this is no disk (tmpfs?): what is acknowledged would not survive a power cut"
        yield Finding("warning", subject, text, advice)
    else:
        yield Finding("ok", subject, text)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def sync_cost_s(directory: Path) -> tuple[float, float]:
    """Return the median and the worst time of an fdatasync inside a file that is written already.

    Raises:
        OSError: nothing can be written there.
    """
    with tempfile.NamedTemporaryFile(prefix=".nokv-doctor-", dir=directory) as file:
        fd = file.fileno()
        os.write(fd, b"\0" * SYNC_BYTES * SYNCS)
        os.fsync(fd)
        times_s = []
        for number in range(SYNCS):
            os.pwrite(fd, bytes([number + 1]) * SYNC_BYTES, number * SYNC_BYTES)
            started_s = time.perf_counter()
            os.fdatasync(fd)
            times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s), max(times_s)


# ---------------------------------------------------------------- configuration


def data_directory(config_path: Path) -> Path | None:
    """Return where a configuration keeps its data; None if it can't be read."""
    from nokv.server.config import load

    try:
        return Path(load(config_path).data_dir)
    except ConfigError:
        return None


def backup_every_ms(config_path: Path) -> int:
    """Return the period of a configuration's backups; 0 for none, or if it can't be read."""
    from nokv.server.config import load

    try:
        return load(config_path).backup.every_ms
    except ConfigError:
        return 0


def configuration(config_path: Path) -> Iterator[Finding]:
    """Look at a node's settings, its data directory and its ports."""
    from nokv.server.config import load, reserve_warning
    from nokv.server.datadir import read_identity

    subject = str(config_path)
    try:
        config = load(config_path)
    except NokvError as error:
        yield Finding("failure", subject, error.message, error.hint)
        return
    yield Finding("ok", subject, "every setting is understood")
    if warning := reserve_warning(config):
        yield Finding(
            "warning", subject, warning, "see docs/operations.md: When a node stops by itself"
        )
    data_dir = Path(config.data_dir)
    running = False
    try:
        identity = read_identity(data_dir)
        members = [str(member.node) for member in identity.cluster.members]
        text = f"node {identity.node} of nodes {', '.join(members)}"
        yield Finding("ok", str(data_dir), text)
        running = _is_locked(data_dir)
        if config.tls.enabled:
            yield _certificate(config, identity)
    except DataDirectoryError as error:
        yield Finding("failure", str(data_dir), error.message, error.hint)
    if running:
        yield Finding("ok", "node", "it runs")
        return
    for name, address in (
        ("peer.listen", config.peer.listen),
        ("rpc.listen", config.rpc.listen),
        ("http.listen", config.http.listen),
    ):
        if address:
            yield _port(name, address)


def _certificate(config: NodeConfig, identity: NodeFile) -> Finding:
    """Say whether the node may show its certificate, and for how long."""
    from nokv.server.tls import load_tls

    path = config.tls.cert
    try:
        tls = load_tls(config.tls, identity.cluster.cluster, identity.node)
    except ConfigError as error:
        return Finding("failure", path, error.message, error.hint)
    assert tls is not None, "TLS is configured"
    if tls.warning():
        return Finding("warning", path, tls.warning(), "nokv certs node NUMBER")
    mode = Path(config.tls.key).stat().st_mode
    if mode & 0o077:
        text = f"others than its owner may use it: mode {mode & 0o777:o}"
        return Finding("warning", config.tls.key, text, f"chmod 600 {config.tls.key}")
    return Finding("ok", path, f"valid for {tls.left_s / 86_400:.0f} more days")


def _port(name: str, address: str) -> Finding:
    from nokv.testing.ports import is_free
    from nokv.wire.address import parse_address

    _, port = parse_address(address)
    if port == 0 or is_free(port):
        return Finding("ok", name, f"{address} is free")
    advice = f"see who listens there: ss -ltnp 'sport = :{port}'"
    return Finding("failure", name, f"{address} is in use", advice)


def _is_locked(data_dir: Path) -> bool:
    """Return whether a node holds the directory."""
    from nokv.testing.folder import is_unlocked

    return not is_unlocked(data_dir / "lock")

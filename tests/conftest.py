"""What holds for every test: declared log lines, repeatable examples, no network but loopback.

A log line of WARNING or above that the test did not declare fails it: with the marker
`@pytest.mark.allow_logs("pattern")`, or the fixture `allow_logs("pattern")`, whose patterns are
searched for in `logger name: message`. The logs of child processes are held to the same rule by
`check_log(path)`, which reads the file when the test ends.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import signal
import socket
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

DEFAULT_SEEDS = 5
"""Seeds a test with a `seed` argument tries when neither it nor the command line says."""

# The same examples in every run: a failure belongs to the change, and its blob replays it. The
# campaign draws new ones and searches longer; it prints a blob to paste into the failing test.
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "campaign",
    derandomize=False,
    deadline=None,
    database=None,
    print_blob=True,
    max_examples=2_000,
    stateful_step_count=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


# --- seeds ----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nokv")
    group.addoption("--seeds", type=int, help="how many seeds each simulation tries")
    group.addoption("--first-seed", type=int, default=0, help="the first of these seeds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test with an undeclared `seed` argument one run a seed; the test id names the seed."""
    if "seed" not in metafunc.fixturenames:
        return
    declared: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        declared.update(re.split(r"[,\s]+", names) if isinstance(names, str) else names)
    if "seed" in declared:
        return
    marker = metafunc.definition.get_closest_marker("seeds")
    count = metafunc.config.getoption("--seeds")
    if count is None:
        count = marker.args[0] if marker else DEFAULT_SEEDS
    first = metafunc.config.getoption("--first-seed")
    metafunc.parametrize("seed", range(first, first + count))


# --- order and workers ----------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep real clusters on one worker: two at once would starve each other of the two cores."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


# --- log lines ------------------------------------------------------------------------------------


class _Collector(logging.Handler):
    """Remembers the lines of WARNING and above since it was last emptied."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


_collector = _Collector()
_ALLOWED = pytest.StashKey[list[str]]()
_LOG_FILES = pytest.StashKey[list[tuple[Path, int]]]()


def _undeclared(lines: Iterable[str], allowed: Iterable[str]) -> list[str]:
    patterns = [re.compile(pattern) for pattern in allowed]
    return [line for line in lines if not any(pattern.search(line) for pattern in patterns)]


def loud_lines(text: str) -> list[str]:
    """The lines of a process's log that are of WARNING or above, and tracebacks.

    Lines of JSON are judged by their `level`; any other line by the words in it.
    """
    return [line for line in text.splitlines() if _is_loud(line)]


def _is_loud(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return str(value.get("level", "")).upper() in {"WARNING", "ERROR", "CRITICAL"}
    return bool(re.search(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback ", line))


@pytest.fixture
def allow_logs(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Declare log lines of WARNING and above: `allow_logs("pattern", ...)`."""

    def allow(*patterns: str) -> None:
        request.node.stash[_ALLOWED].extend(patterns)

    return allow


@pytest.fixture
def check_log(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hold the log file of a child process to the same rule: `check_log(path)`, at any time.

    `check_log(path, start)` judges what comes after so many bytes.
    """

    def check(path: Path, start: int = 0) -> None:
        request.node.stash[_LOG_FILES].append((path, start))

    return check


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_ALLOWED] = [
        pattern for marker in item.iter_markers("allow_logs") for pattern in marker.args
    ]
    item.stash[_LOG_FILES] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a phase that passed, but logged what nobody declared, into a failure."""
    report = yield
    lines = _collector.take()
    if call.when == "teardown":
        for path, start in item.stash.get(_LOG_FILES, None) or []:
            text = path.read_bytes()[start:].decode(errors="replace") if path.exists() else ""
            lines += [f"{path.name}: {line}" for line in loud_lines(text)]
    allowed = item.stash.get(_ALLOWED, None) or []
    undeclared = _undeclared(lines, allowed)
    if undeclared and report.passed:
        report.outcome = "failed"
        report.longrepr = "\n".join(["log lines that the test did not declare:", *undeclared])
    return report


# --- network --------------------------------------------------------------------------------------


class NetworkForbiddenError(AssertionError):
    """A test tried to reach an address other than loopback."""


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex


def _guarded_connect(self: socket.socket, address: Any) -> None:
    if not _is_local(address):
        raise NetworkForbiddenError(f"tests may connect to loopback only, not to {address!r}")
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    if not _is_local(address):
        raise NetworkForbiddenError(f"tests may connect to loopback only, not to {address!r}")
    return _connect_ex(self, address)


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Generator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _guarded_connect)
    patch.setattr(socket.socket, "connect_ex", _guarded_connect_ex)
    yield
    patch.undo()


def pytest_configure(config: pytest.Config) -> None:
    del config
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So a shell starts what runs in the background, and the programs under test inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hypothesis.settings.get_current_profile_name() == "ci":
        # It draws constants of the modules imported so far too: the tests that a worker happened
        # to run before would choose the examples.
        providers.HypothesisProvider._local_constants = Constants()  # type: ignore[assignment]
    logging.getLogger().addHandler(_collector)


def pytest_unconfigure(config: pytest.Config) -> None:
    del config
    logging.getLogger().removeHandler(_collector)

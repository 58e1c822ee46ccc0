"""The checks that hold for every test are themselves tested, in a pytest of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import loud_lines

CONFTEST = Path(__file__).parents[2] / "conftest.py"
PARALLEL = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-ra")
OPTIONS = (*PARALLEL, "-p", "no:xdist")

# Loopback, and an address that documentation may use (RFC 5737): nothing answers at either.
REFUSED = ("127.0.0.1", 1)
FOREIGN = ("192.0.2.1", 80)


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory whose tests run below the project's own conftest."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini(
        "[pytest]\nmarkers =\n    allow_logs(*patterns): x\n    seeds(count): x\n    cluster: x\n"
    )
    return pytester


def run(inner: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    inner.makepyfile(source)
    # A process of its own: the checks patch the socket class and the root logger.
    return inner.runpytest_subprocess(*OPTIONS, *options)


def test_an_undeclared_warning_fails_the_test(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        import logging
        def test_quiet(): logging.getLogger("a").info("fine")
        def test_loud(): logging.getLogger("a").warning("disk %d", 7)
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*did not declare*", "*WARNING a: disk 7*"])


def test_real_clusters_share_one_worker(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import pytest
        @pytest.mark.cluster
        def test_real(): pass
        def test_other(): pass
        """
    )
    result = inner.runpytest_subprocess(*PARALLEL, "-v", "-n", "1", "--dist", "loadgroup")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(["*::test_real@cluster*", "*::test_other *"])


def test_a_warning_in_teardown_fails_the_test(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        import logging, pytest
        @pytest.fixture
        def late():
            yield
            logging.error("too late")
        def test_loud(late): pass
        """,
    )
    result.assert_outcomes(passed=1, errors=1)


def test_declared_lines_pass(inner: pytest.Pytester) -> None:
    run(
        inner,
        """
        import logging, pytest
        @pytest.mark.allow_logs("disk [0-9]")
        def test_marker(): logging.warning("disk 7")
        def test_fixture(allow_logs):
            allow_logs("^ERROR root: full$")
            logging.error("full")
        @pytest.mark.allow_logs("disk")
        def test_other_line_still_fails(): logging.warning("net")
        """,
    ).assert_outcomes(passed=2, failed=1)


def test_log_files_of_children_are_held_to_it(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        """
        def test_quiet(check_log, tmp_path):
            (tmp_path / "node.log").write_text('{"level":"info","message":"ERROR is a word"}')
            check_log(tmp_path / "node.log")
            check_log(tmp_path / "never-started.log")
        def test_loud(check_log, tmp_path):
            check_log(tmp_path / "node.log")
            (tmp_path / "node.log").write_text('{"level":"warning","message":"slow"}')
        def test_declared(check_log, allow_logs, tmp_path):
            check_log(tmp_path / "node.log")
            allow_logs("slow")
            (tmp_path / "node.log").write_text('{"level":"warning","message":"slow"}')
        def test_appended(check_log, tmp_path):
            path = tmp_path / "node.log"
            path.write_text('{"level":"warning","message":"before"}\\n')
            check_log(path, path.stat().st_size)
            with path.open("a") as file: file.write('{"level":"info","message":"fine"}\\n')
        def test_loudly_appended(check_log, tmp_path):
            path = tmp_path / "node.log"
            path.write_text('{"level":"info","message":"before"}\\n')
            check_log(path, path.stat().st_size)
            with path.open("a") as file: file.write('{"level":"error","message":"after"}\\n')
        """,
    )
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*node.log: *after*"])
    result.stdout.fnmatch_lines(["*node.log: *slow*"])


def test_loud_lines_of_any_format() -> None:
    text = (
        '{"level":"info"}\n{"level":"error"}\n[1]\nplain\n'
        "12:00 WARNING x\nTraceback (most recent call last):\nnokv.errors.NoSpaceError: full\n"
    )
    assert loud_lines(text) == [
        '{"level":"error"}',
        "12:00 WARNING x",
        "Traceback (most recent call last):",
    ]


def test_only_loopback_can_be_reached(inner: pytest.Pytester) -> None:
    result = run(
        inner,
        f"""
        import asyncio, socket, pytest
        def test_loopback():
            with socket.socket() as s, pytest.raises(ConnectionRefusedError):
                s.connect({REFUSED})
        def test_foreign():
            with socket.socket() as s: s.connect({FOREIGN})
        def test_foreign_asyncio():
            asyncio.run(asyncio.open_connection(*{FOREIGN}))
        """,
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*NetworkForbiddenError*loopback only*192.0.2.1*"])


def test_skips_are_listed_with_their_reason(inner: pytest.Pytester) -> None:
    result = run(
        inner, "import pytest\n@pytest.mark.skip(reason='no such device')\ndef test_a(): pass"
    )
    result.stdout.fnmatch_lines(["SKIPPED*no such device*"])


def test_the_project_asks_for_that_list(pytestconfig: pytest.Config) -> None:
    assert "-ra" in pytestconfig.getini("addopts")
    assert pytestconfig.getini("filterwarnings")[0] == "error"


def test_seeds(inner: pytest.Pytester) -> None:
    source = """
        import pytest
        def test_default(seed): pass
        @pytest.mark.seeds(2)
        def test_marked(seed): pass
        @pytest.mark.parametrize("seed", [9])
        def test_own(seed): assert seed == 9
        @pytest.mark.parametrize(("seed", "x"), [(9, 1)])
        def test_own_pair(seed, x): assert seed == 9
        """
    run(inner, source).assert_outcomes(passed=5 + 2 + 1 + 1)
    result = run(inner, source, "--seeds", "3", "--first-seed", "70", "-v")
    result.assert_outcomes(passed=3 + 3 + 1 + 1)
    result.stdout.fnmatch_lines(["*test_default?70?*", "*test_marked?72?*"])


def test_hypothesis_repeats_itself(inner: pytest.Pytester) -> None:
    source = """
        from hypothesis import given, settings, strategies as st
        drawn = []
        @given(st.integers())
        def test_draw(n): drawn.append(n)
        def test_say():
            assert settings().derandomize and settings().deadline is None
            assert settings().database is None
            print("drawn", hash(tuple(drawn)))
        """
    options = ("-s", "-p", "hypothesispytest")
    first, second = (
        [line for line in run(inner, source, *options).outlines if "drawn" in line]
        for _ in range(2)
    )
    assert first
    assert first == second

"""Golden scripts: the whole conversation of a group, as it is meant to be."""

import pytest
from tests.golden.__main__ import SCRIPTS
from tests.golden.interpreter import run


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.txt")))
def test_transcript(name: str) -> None:
    """Accept an intended change with `python -m tests.golden --rewrite`, and read the diff."""
    source = (SCRIPTS / name).read_text()
    assert run(source) == source


def test_a_changed_transcript_is_noticed() -> None:
    source = (SCRIPTS / "election.txt").read_text()
    assert run(source.replace("> campaign 1", "> campaign 2", 1)) != source


@pytest.mark.parametrize("line", ["> dance", "what is this"])
def test_what_is_no_script_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"unknown command|neither"):
        run(f"> nodes 1\n{line}\n")

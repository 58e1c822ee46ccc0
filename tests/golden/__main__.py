"""`python -m tests.golden [--rewrite] [FILE ...]`: show, or accept, what the scripts print now."""

import argparse
import difflib
import sys
from pathlib import Path

from tests.golden.interpreter import run

SCRIPTS = Path(__file__).parent / "scripts"


def main() -> int:
    """Return 0 when every script prints what it says."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--rewrite", action="store_true", help="write the transcripts down")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    differing = 0
    for path in options.files or sorted(SCRIPTS.glob("*.txt")):
        source = path.read_text()
        transcript = run(source)
        if transcript == source:
            continue
        differing += 1
        if options.rewrite:
            path.write_text(transcript)
        else:
            before, after = source.splitlines(keepends=True), transcript.splitlines(keepends=True)
            sys.stdout.writelines(difflib.unified_diff(before, after, path.name, "now"))
    return int(differing > 0 and not options.rewrite)


if __name__ == "__main__":
    sys.exit(main())

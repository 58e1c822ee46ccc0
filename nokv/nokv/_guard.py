"""Refusal to run without assertions.

The assertions are part of the design: they stop a node before it can act on a broken state. Under
`python -O` or `PYTHONOPTIMIZE` they are compiled away, so every program's entry point asks here
first.
"""

from __future__ import annotations

import sys

EXIT_REFUSED = 2
"""The exit code of a program that refuses its surroundings: the same as for wrong usage."""


def refuse_optimised() -> None:
    """Return if assertions are on; otherwise say so on standard error and exit.

    Raises:
        SystemExit: with `EXIT_REFUSED`, if this interpreter compiles assertions away.
    """
    if __debug__:
        return
    sys.stderr.write(
        "nokv: refusing to start: assertions are off (python -O or PYTHONOPTIMIZE is set), and\n"
        "they protect the data. Start it without -O and with PYTHONOPTIMIZE unset.\n"
    )
    raise SystemExit(EXIT_REFUSED)

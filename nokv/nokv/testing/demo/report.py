"""What the demonstration prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from nokv.testing.demo.story import Shown


class Report:
    """Prints steps and checks as they come, and remembers whether all checks held."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.holds = True
        self._started_s = time.monotonic()

    def step(self, text: str) -> None:
        """Say what is being done, with the seconds since the start."""
        self._print(f"[dim]{time.monotonic() - self._started_s:6.1f} s[/]  {escape(text)}")

    def _print(self, text: str) -> None:
        # A line that is piped somewhere stays one line.
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def check(self, claim: str, problems: str) -> None:
        """Say that a claim holds, or what is wrong with it."""
        if not problems:
            self._print(f"[green]    holds[/]  {escape(claim)}")
            return
        self.holds = False
        self._print(f"[bold red]   BROKEN[/]  {escape(claim)}: {escape(problems)}")

    def publishes(self, shown: Sequence[Shown]) -> None:
        """Print the table of the publishes, one a column."""
        table = Table(title="Two publishes through kill -9 of the leader", title_justify="left")
        table.add_column()
        for one in shown:
            table.add_column(escape(one.path))
        rows: dict[str, list[str]] = {
            "files": [f"{one.source.files}" for one in shown],
            "MiB": [f"{one.source.n_bytes / (1 << 20):.0f}" for one in shown],
            "at the kill": [one.kill.evidence for one in shown],
            "killed": [f"node {one.kill.node}" for one in shown],
            "leads now": [f"node {one.leader}" for one in shown],
            "no commits for": [f"{one.gap_s:.2f} s" for one in shown],
            "publish took": [f"{one.took_s:.1f} s" for one in shown],
            "killed node back": [f"after {one.back_s:.1f} s" for one in shown],
        }
        for head, cells in rows.items():
            table.add_row(head, *(escape(cell) for cell in cells))
        self.console.print(table)

"""What may still be destroyed: never more copies than the group claims to survive.

A group of n voters survives the loss of (n - 1) // 2 of them. As long as no more are lost than
that, in each configuration that may be in force, every failure of a run is a failure of the layer.
"""

from collections.abc import Callable

from tests.simulation.checker import Configuration


class Atlas:
    """Who lost its copy, and why. `configurations` returns all that may be in force now."""

    def __init__(
        self, founders: frozenset[int], configurations: Callable[[], list[Configuration]]
    ) -> None:
        self._founders = founders
        self._configurations = configurations
        self.lost: dict[int, str] = {}
        # Voters of changes that were asked for and may be on their way into the log.
        self._planned: dict[int, frozenset[int]] = {}
        self._token = 0

    def plan(self, voters: frozenset[int]) -> int:
        """Count on a change of members that is asked for, until it is `settled`."""
        self._token += 1
        self._planned[self._token] = voters
        return self._token

    def settled(self, token: int) -> None:
        """The change is in the logs, or never will be."""
        del self._planned[token]

    def voters(self) -> list[frozenset[int]]:
        """Return the voters of each configuration that may be in force."""
        configurations = self._configurations()
        known = [c.voters for c in configurations] or [self._founders]
        return [*known, *self._planned.values()]

    def may_lose(self, node: int) -> bool:
        """Whether the group survives without what this node holds."""
        if node in self.lost:
            return True
        lost = {*self.lost, node}
        return all(self._survives(voters, lost) for voters in self.voters())

    def survives_with(self, voters: frozenset[int]) -> bool:
        """Whether a configuration of these voters would be alive with what is lost already."""
        return self._survives(voters, set(self.lost))

    @staticmethod
    def _survives(voters: frozenset[int], lost: set[int]) -> bool:
        return 2 * len(voters & lost) < len(voters)

    def lose(self, node: int, why: str) -> None:
        """Count a node's copy as destroyed; what is left of it promises nothing."""
        assert self.may_lose(node)
        self.lost.setdefault(node, why)

"""Every program up to a length, on both sides, with everything compared after each step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.exhaustive.canonical import canonical
from tests.exhaustive.programs import Step, Tiny, alphabet, further, start
from tests.machine import comparing


class Disagreement(Exception):
    """A program on which model and state machine differ, or an invariant breaks."""

    def __init__(self, program: tuple[str, ...], error: BaseException) -> None:
        self.program = program
        super().__init__(f"{error}\n\nprogram: {'; '.join(program)}")


@dataclass
class Explored:
    """What a search went through."""

    depth: int
    steps: int = 0
    """Steps that were applied and compared."""
    refused: int = 0
    """Those of them that answered an error: nothing follows them, the state is as before."""
    states: set[bytes] = field(default_factory=set)
    """Canonical states that were met."""
    succeeded: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def told(self) -> str:
        """Return one line for people."""
        return (
            f"depth {self.depth}: {self.steps} steps compared ({self.refused} refused),"
            f" {len(self.states)} different states, {self.seconds:.0f} s"
        )


class Search:
    """Depth first from the tiny tree.

    Without `reduce` every program is tried. With it a state is gone on from once for each number
    of steps that are left, however it was reached.
    """

    def __init__(
        self,
        depth: int,
        *,
        reduce: bool,
        only: Sequence[str] = (),
        until: float = float("inf"),
    ) -> None:
        self.explored = Explored(depth)
        self._reduce = reduce
        steps = alphabet()
        self._steps = {name: (steps | further())[name] for name in only or steps}
        self._left: dict[bytes, int] = {}
        """Canonical state -> most steps that were left when it was gone on from."""
        self._until = until

    def run(self) -> Explored:
        """Search; raise Disagreement."""
        began = time.monotonic()
        root = start()
        comparing.compare(root.world)
        self._from(root, (), self.explored.depth)
        self.explored.seconds = time.monotonic() - began
        return self.explored

    def _from(self, tiny: Tiny, program: tuple[str, ...], left: int) -> None:
        for name, step in self._steps.items():
            if time.monotonic() > self._until:
                return
            child = self._try(tiny, (*program, name), step)
            if child is not None and left > 1 and self._is_new(child, left - 1):
                self._from(child, (*program, name), left - 1)

    def _try(self, tiny: Tiny, program: tuple[str, ...], step: Step) -> Tiny | None:
        """Return the world after the step; None where it was refused."""
        child = tiny.fork()
        self.explored.steps += 1
        try:
            result = step(child)
            if result is not None and result.code:
                self.explored.refused += 1
                return None
            comparing.compare(child.world)
        except Exception as error:
            raise Disagreement(program, error) from error
        self.explored.succeeded[program[-1]] += 1
        return child

    def _is_new(self, tiny: Tiny, left: int) -> bool:
        """Note the state; say whether it must be gone on from."""
        world = tiny.world
        more = (world.cluster_ns, tuple(sorted(world.deleted)), world.settled)
        state = canonical(world.kv, more)
        self.explored.states.add(state)
        if self._reduce and self._left.get(state, -1) >= left:
            return False
        self._left[state] = max(left, self._left.get(state, -1))
        return True

"""From a failure to the few actions that still show it (A. Zeller, R. Hildebrandt, ddmin, 2002)."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from tests.machine.world import Action, World

MakeWorld = Callable[[], World]
REPLAYS_MAX = 1_000
MESSAGE_CHARS = 22
"""So much of a message tells one failure from another."""

Signature = tuple[str, str, str]


def signature(error: BaseException) -> Signature:
    """What makes two failures the same one: class, place, and the beginning of the message."""
    place = traceback.extract_tb(error.__traceback__)[-1].name
    return type(error).__name__, place, str(error)[:MESSAGE_CHARS]


def replay(make: MakeWorld, actions: list[Action]) -> None:
    """Run the actions against a new world."""
    world = make()
    try:
        for name, arguments, named in actions:
            getattr(world, name)(*arguments, **named)
    finally:
        world.close()


class Shrinker:
    """Removes actions, then commands of entries, as long as the failure stays the same."""

    def __init__(self, make: MakeWorld, error: BaseException) -> None:
        self._make = make
        self._wanted = signature(error)
        self._left = REPLAYS_MAX

    def _fails(self, actions: list[Action]) -> bool:
        self._left -= 1
        try:
            replay(self._make, actions)
        except Exception as error:  # noqa: BLE001  any failure may be the one
            return signature(error) == self._wanted
        return False

    def shrink(self, actions: list[Action]) -> list[Action]:
        """Return as few actions as the budget finds."""
        if not self._fails(actions):
            return actions
        parts = 2
        while len(actions) > 1 and self._left > 0:
            size = max(1, len(actions) // parts)
            for start in range(0, len(actions), size):
                fewer = actions[:start] + actions[start + size :]
                if self._fails(fewer):
                    actions, parts = fewer, max(2, parts - 1)
                    break
            else:
                if size == 1:
                    break
                parts = min(len(actions), parts * 2)
        return self._shrink_entries(actions)

    def _shrink_entries(self, actions: list[Action]) -> list[Action]:
        for at, (name, arguments, named) in enumerate(actions):
            if name != "apply":
                continue
            commands = arguments[0]
            for index in reversed(range(len(commands))):
                fewer = commands[:index] + commands[index + 1 :]
                tried = [*actions[:at], (name, (fewer,), named), *actions[at + 1 :]]
                if fewer and self._left > 0 and self._fails(tried):
                    commands, actions = fewer, tried
        return actions


def program(actions: list[Action]) -> str:
    """The actions, one a line, commands of an entry indented below it."""
    lines = []
    for name, arguments, named in actions:
        if name == "apply":
            lines.append(f"apply {named or ''}")
            lines += [f"    {command}" for command in arguments[0]]
        else:
            lines.append(f"{name} {arguments or ''} {named or ''}")
    return "\n".join(lines)

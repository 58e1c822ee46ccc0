"""Any well-typed command gets a result: none of them stops the node, and every state holds."""

from __future__ import annotations

import pytest
from tests.unit.state.bodies import Files
from tests.unit.state.programs import Programs

from nokv.errors import BY_CODE, Internal, NokvError
from nokv.types.commands import Command

COMMANDS = 250


def run(shard: Files, programs: Programs, count: int, *, odd: bool = True) -> None:
    """Apply random commands, several an entry; no result may be a defect's."""
    rng = programs.rng
    shard.upload(2000)
    left = count
    while left > 0:
        commands: list[Command] = []
        for _ in range(rng.choice((1, 1, 2, 5))):
            if odd and programs.odd():
                commands.append(programs.raw())
                continue
            op, node = programs.op()
            session = 0 if node else shard.session
            checks = programs.predicates()
            commands.append(
                shard.command(op, programs.caller(), session=session, predicates=checks)
            )
        left -= len(commands)
        for command, result in zip(commands, shard.entry(*commands), strict=True):
            assert result.code in {0, *BY_CODE}
            assert result.code != Internal.code, f"{command} raised inside: {result.message}"
        programs.look(shard)
        shard.check()
        if odd:
            read_any(shard, programs)
        revive(shard, programs)


def revive(shard: Files, programs: Programs) -> None:
    """Open another session where the program has ended the shard's own."""
    if shard.session not in dict(shard.machine.live_sessions()):
        shard.seq, programs.uploads = 0, 1
        shard.session = shard.open(b"again" + shard.machine.version.to_bytes(11, "big"))
        shard.upload(2000)


def read_any(shard: Files, programs: Programs) -> None:
    """Ask anything: the answer is a reply or a typed error."""
    for _ in range(3):
        request = programs.read()
        try:
            shard.machine.read(programs.caller(), request)
        except NokvError as error:
            assert not isinstance(error, Internal)  # noqa: PT017  any other one will do


@pytest.mark.seeds(30)
def test_no_command_and_no_read_stops_the_node(seed: int) -> None:
    shard = Files()
    run(shard, Programs(seed), COMMANDS)
    shard.reap(3)
    shard.quiesce()

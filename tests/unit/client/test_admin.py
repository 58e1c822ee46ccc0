"""An operator's tool and a leader that can't hand over yet, or never will."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.client.loopback import Cluster, cluster

from nokv.client.admin import Admin
from nokv.errors import ChangeRefused


def admin_of(running: Cluster) -> Admin:
    return Admin(running.addresses.split(","))


def test_a_leader_that_has_not_heard_of_the_others_is_asked_again() -> None:
    async def main() -> None:
        async with cluster() as running:
            asked: list[int] = []
            running.voters = (1, 2, 3)

            def take(node: int) -> int:
                asked.append(node)
                if len(asked) < 3:
                    raise ChangeRefused("nobody can take over")
                return 2

            running.on_transfer = take
            async with admin_of(running) as admin:
                assert await admin.transfer() == 2
                assert asked == [0, 0, 0]

    asyncio.run(main())


@pytest.mark.parametrize(("node", "voters"), [(3, (1, 2)), (9, (1, 2)), (0, (1,))])
def test_whom_no_time_would_help_is_asked_once(node: int, voters: tuple[int, ...]) -> None:
    async def main() -> None:
        async with cluster() as running:
            asked: list[int] = []
            running.voters = voters

            def refuse(node: int) -> int:
                asked.append(node)
                raise ChangeRefused("it can't lead")

            running.on_transfer = refuse
            async with admin_of(running) as admin:
                with pytest.raises(ChangeRefused, match="can't lead"):
                    await admin.transfer(node)
            assert asked == [node]

    asyncio.run(main())

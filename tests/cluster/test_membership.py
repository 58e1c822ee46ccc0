"""Members come and go while a cluster works: added, promoted, replaced, removed, all of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import FAST, Done

from nokv.cli.main import main as nokv_main
from nokv.client import connect
from nokv.client.admin import Admin
from nokv.errors import ChangeRefused, DeadlineExceeded, Forbidden, InvalidArgument, Unavailable
from nokv.testing.cluster import LocalCluster
from nokv.testing.evidence import compare_digests
from nokv.testing.folder import NodePorts
from nokv.testing.ports import free_ports
from nokv.testing.writers import Writer, check_writers, writing

pytestmark = pytest.mark.cluster

WRITERS = 3
CALM = {"timing.election_min_ms": 3000, "timing.election_max_ms": 4000}
"""No election for a machine that stands still for a moment."""
DEADLINE_S = 60.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes of a test's own: it changes who they are."""
    with LocalCluster.start(settings=FAST) as one:
        yield one


async def in_thread(call: Callable[..., Any], *arguments: object) -> Any:
    return await asyncio.to_thread(call, *arguments)


async def more(writers: list[Writer]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(one.wait_acknowledged(one.acknowledged + 3) for one in writers))


async def equal_digests(cluster: LocalCluster) -> None:
    addresses = {member.node: member.rpc_address for member in cluster.members}
    leader = await in_thread(cluster.leader)
    replies = await compare_digests(addresses[leader], addresses)
    assert sorted(replies) == sorted(addresses)
    assert len({reply.digest for reply in replies.values()}) == 1


async def members(cluster: LocalCluster) -> dict[int, bool]:
    """Node to whether it votes."""
    async with cluster.admin() as admin:
        return {member.node: member.voter for member in (await admin.status()).members}


def test_all_three_nodes_are_replaced_while_writers_run(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """The clients know the first three nodes only, and follow the cluster to three others."""

    async def main() -> None:
        async with connect(cluster.addresses) as fs:
            cursor = (await fs.mkdir("/replaced")).version
            async with writing(cluster.addresses, "/replaced/w", tmp_path, WRITERS) as writers:
                for old in (1, 2, 3):
                    await more(writers)
                    new = await in_thread(cluster.add_node, FAST)
                    assert new == old + 3
                    await more(writers)
                    await in_thread(cluster.remove_node, old)
                    await more(writers)
            verdict = await check_writers(fs, writers, cursor)
            assert verdict.problems() == ""
            assert verdict.done > 50
        assert await members(cluster) == {4: True, 5: True, 6: True}
        await equal_digests(cluster)

    asyncio.run(main())


def test_a_dead_node_is_replaced_by_a_new_one(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with connect(cluster.addresses) as fs:
            await fs.mkdir("/dead")
            dead = (await in_thread(cluster.followers))[0]
            await in_thread(cluster.kill, dead)
            new = await in_thread(cluster.add_node, FAST)
            await in_thread(cluster.remove_node, dead)
            voters = await members(cluster)
            assert len(voters) == 3
            assert all(voters.values())
            assert dead not in voters
            # The spare is back: a second one may die.
            second = next(node for node in cluster.nodes if node != new)
            await in_thread(cluster.kill, second)
            await fs.mkdir("/dead/and-on")
            await in_thread(cluster.restart, second)
        await equal_digests(cluster)

    asyncio.run(main())


def test_a_learner_does_not_count(cluster: LocalCluster) -> None:
    """With a learner and one voter of three no majority is left."""

    async def main() -> None:
        ports = NodePorts(4, *free_ports(3, random.Random()))
        incarnation = cluster.folder.add(ports, FAST)
        await in_thread(cluster.start_node, 4)
        async with cluster.admin() as admin:
            await admin.add(4, incarnation, ports.peer_address, ports.rpc_address)
            await admin.add(4, incarnation, ports.peer_address, ports.rpc_address)
        await in_thread(cluster.wait_ready, [4])
        assert await members(cluster) == {1: True, 2: True, 3: True, 4: False}
        async with connect(cluster.addresses) as fs, connect(ports.rpc_address) as asking:
            await fs.mkdir("/learner")
            assert await asking.reading_from(4).listdir("/") == ["learner"]
            for node in (1, 2):
                await in_thread(cluster.kill, node)
            async with connect(cluster.addresses) as alone:
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await alone.within(1.5).mkdir("/learner/no")
            await in_thread(cluster.restart, 1)
            await fs.mkdir("/learner/yes")

    asyncio.run(main())


def test_what_is_refused(cluster: LocalCluster) -> None:
    async def main() -> None:
        addresses = cluster.addresses.split(",")
        async with Admin(addresses) as nobody:
            assert len((await nobody.status()).members) == 3
            with pytest.raises(Forbidden, match="operators"):
                await nobody.transfer()
        with pytest.raises((Forbidden, Unavailable), match="token"):
            async with Admin(addresses, "0" * 64, timeout_s=2.0):
                pass
        async with cluster.admin() as admin:
            with pytest.raises(InvalidArgument):
                await admin.add(4, 5, "127.0.0.1:1", "nowhere")
            with pytest.raises(InvalidArgument, match="another's"):
                await admin.add(4, 5, "127.0.0.1:1", addresses[0])
            with pytest.raises(InvalidArgument):
                await admin.add(70_000, 5, "127.0.0.1:1", "127.0.0.1:2")
            with pytest.raises(ChangeRefused, match="another node is member 2"):
                await admin.add(2, 5, "127.0.0.1:1", "127.0.0.1:2")
            with pytest.raises(ChangeRefused, match="no member"):
                await admin.promote(9)
            with pytest.raises(ChangeRefused, match="no voter"):
                await admin.transfer(9)
            await admin.promote(2)
            with pytest.raises(InvalidArgument, match="no member"):
                await admin.member(9)

    asyncio.run(main())


# ---------------------------------------------------------------- the command line


def test_the_commands_of_an_operator(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOKV_CLUSTER", cluster.addresses)
    settings = cluster.folder.node_path(1) / "node.toml"

    def nokv(*arguments: str) -> Done:
        capfd.readouterr()
        return Done(nokv_main([str(argument) for argument in arguments]), *capfd.readouterr())

    def roles() -> dict[int, str]:
        listed = nokv("member", "list", "--json")
        assert listed.code == 0, listed
        return {row["node"]: row["role"] for row in listed.json()}

    # A new machine: a join file, a configuration, and the line that init prints.
    home = cluster.folder.path / "node-4"
    home.mkdir()
    ports = free_ports(3, random.Random())
    config = home / "node.toml"
    config.write_text(
        f'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:{ports[0]}"\n'
        f'[rpc]\nlisten = "127.0.0.1:{ports[1]}"\n[http]\nlisten = "127.0.0.1:{ports[2]}"\n'
    )
    join_file = home / "join.json"
    assert nokv("member", "join-file", str(join_file), "--config", str(settings)).code == 0
    assert join_file.stat().st_mode & 0o777 == 0o600
    made = nokv("init", "--config", str(config), "--join", str(join_file), "--node", "4")
    assert made.code == 0, made
    (line,) = [one for one in made.out.splitlines() if one.startswith("nokv member add 4 ")]
    cluster.folder.members = (*cluster.folder.members, NodePorts(4, *ports))
    cluster.start_node(4)
    added = nokv(*shlex.split(line)[1:], "--config", str(settings))
    assert added.code == 0, added
    assert "node 4 is a voter" in added.out
    cluster.wait_ready([4])

    table = nokv("member", "list").out.splitlines()
    assert len(table) == 5
    assert table[0].split()[:5] == ["node", "role", "votes", "connected", "lag"]
    handed = nokv("member", "transfer", "4", "--config", str(settings))
    assert (handed.code, handed.out) == (0, "node 4 leads\n")
    assert roles() == {1: "follower", 2: "follower", 3: "follower", 4: "leader"}

    # The leader itself hands over first; its number is never used again.
    removed = nokv("member", "remove", "4", "--config", str(settings))
    assert removed.code == 0, removed
    assert "leader" in roles().values()
    assert 4 not in roles()
    again = nokv(*shlex.split(line)[1:], "--config", str(settings))
    assert again.code == 1
    assert "4" in again.err
    missing = nokv("member", "remove", "44", "--config", str(settings))
    assert missing.code == 1
    assert "node 44 is no member" in missing.err
    with contextlib.suppress(ProcessLookupError):
        cluster.kill(4)


def test_a_removed_node_disturbs_nobody() -> None:
    """It is started again with all that it had, and is told that it was removed.

    Of all nodes it is the first to stand for election: the others stay calm.
    """

    async def main(cluster: LocalCluster) -> None:
        new = await in_thread(cluster.add_node, FAST | CALM)
        async with cluster.admin() as admin:
            await admin.remove(new)
            term = (await admin.status()).term
            await in_thread(cluster.stop, new)
            config = cluster.folder.node_path(new) / "node.toml"
            eager = config.read_text().replace(" = 3000", " = 400").replace(" = 4000", " = 500")
            assert "election_max_ms = 500\n" in eager
            config.write_text(eager)
            await in_thread(cluster.start_node, new)
            with pytest.raises((DeadlineExceeded, Unavailable)):
                await in_thread(cluster.wait_ready, [new], 4.0)
            assert (await admin.status()).term == term
        async with connect(cluster.addresses) as fs:
            await fs.mkdir("/undisturbed")

    with LocalCluster.start(settings=FAST | CALM) as one:
        asyncio.run(main(one))

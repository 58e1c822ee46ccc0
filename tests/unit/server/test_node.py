"""Real nodes on loopback: one, then three with a leader that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.unit.server.nodes import DEADLINE_S, RUN, Caller1, Nodes, connect, leader, until

from nokv.errors import (
    BackupGone,
    BadRequest,
    ChangeRefused,
    Forbidden,
    NokvError,
    NotLeader,
    NotReady,
    SessionExpired,
    TooLarge,
    Unavailable,
    UnknownSession,
    WrongCluster,
)
from nokv.server.datadir import read_identity
from nokv.types.commands import (
    COMMAND_FORMAT,
    AdoptVolume,
    BulkCreate,
    Command,
    Create,
    CreateBackup,
    EndBackup,
    ExpireSession,
    FinishBackup,
    Mkdir,
    OpenSession,
    RaiseFormat,
    Reap,
)
from nokv.types.limits import BATCH_MAX
from nokv.types.reads import AttrReply, GetAttr, GetSession, SessionReply, StatFs, StatFsReply
from nokv.types.trash import ExpireTrash
from nokv.types.values import At, Caller, Marks
from nokv.types.views import ExpireSnapshots, Flatten
from nokv.wire.codec import encode_command, result_codec
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import (
    PROTOCOL,
    CloseBackup,
    Consistency,
    DigestReply,
    Hello,
    MakeDigest,
    MemberChanged,
    OpenBackup,
    Propose,
    Query,
    ReadBackup,
    RemoveMember,
    Renew,
    RenewReply,
    ResultsReply,
    Role,
    Status,
    StatusReply,
    TransferLeadership,
)

S = 1_000_000_000
pytestmark = [
    pytest.mark.cluster,
    # A node, or the other, stood still for two seconds: on a busy machine it may.
    pytest.mark.allow_logs("closing the connection with .+: no hello within"),
]


@pytest.fixture
def make_nodes(tmp_path: Path, check_log: Callable[[Path], None]) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(count: int, extra: str = "") -> Nodes:
        nodes = Nodes(tmp_path, count, extra)
        made.append(nodes)
        for member in nodes.members:
            check_log(nodes.log(member.node))
        return nodes

    yield make
    for nodes in made:
        nodes.close()


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


async def status_of(connection: RpcConnection) -> StatusReply:
    reply = await connection.call(Status())
    assert isinstance(reply, StatusReply)
    return reply


# ---------------------------------------------------------------- one node


def test_one_node(make_nodes: Callable[..., Nodes]) -> None:
    nodes = make_nodes(1)
    nodes.start()

    async def main() -> None:
        address, connection = await leader(nodes.addresses)
        client = Caller1(connection)
        await client.open(30 * S)
        await client.run(Mkdir(At(), b"d", 0o755))
        await refusals(client, address, nodes)
        await batches(client)
        await renewals(client)
        await hostile(address)
        reply = await client.read(StatFs())
        assert isinstance(reply, StatFsReply)
        assert reply.files == 4
        digest = await until_digest(connection)
        assert await connection.call(MakeDigest(digest.number)) == digest
        await connection.close()
        pages(nodes)

    asyncio.run(main())
    assert nodes.stop() == {1: 0}
    nodes.start()
    asyncio.run(still_there(nodes))
    assert nodes.stop() == {1: 0}


async def refusals(client: Caller1, address: str, nodes: Nodes) -> None:
    for internal in (Reap(1), ExpireSnapshots(1), ExpireTrash(1), Flatten(1, 1)):
        with pytest.raises(Forbidden):
            await client.raw(0, 0, internal)
    with pytest.raises(Forbidden):
        await client.raw(0, 0, ExpireSession(client.session))
    with pytest.raises(UnknownSession):
        await client.raw(12345, 1, Mkdir(At(), b"x", 0o755))
    identity = read_identity(nodes.folder / "data1").cluster
    for hello, error in (
        (Hello(PROTOCOL, cluster="another"), WrongCluster),
        (Hello(PROTOCOL, volume="another"), WrongCluster),
        (Hello(PROTOCOL + 1), WrongCluster),
        (Hello(PROTOCOL, role=7), BadRequest),
        (Hello(PROTOCOL, agent="x" * 256), BadRequest),
        (Hello(PROTOCOL, role=Role.WORKER), Forbidden),
        (Hello(PROTOCOL, role=Role.WORKER, token=b"x" * 64), Forbidden),
    ):
        with pytest.raises(error):
            await RpcConnection.connect(address, hello)
    token = identity.worker_token.encode()
    worker = await RpcConnection.connect(
        address, Hello(PROTOCOL, identity.cluster, role=Role.WORKER, token=token)
    )
    await Caller1(worker).raw(0, 0, Reap(1))
    for number in (1, 2, 2**40):
        with pytest.raises(Forbidden, match="leader itself"):
            await Caller1(worker).raw(0, 0, RaiseFormat(number))
    with pytest.raises(Forbidden, match="operators"):
        await worker.call(RemoveMember(1))
    await worker.close()
    admin = await RpcConnection.connect(
        address, Hello(PROTOCOL, identity.cluster, role=Role.ADMIN, token=token)
    )
    with pytest.raises(Forbidden):
        await Caller1(admin).raw(0, 0, Reap(1))
    with pytest.raises(ChangeRefused, match="leads"):
        await admin.call(RemoveMember(1))
    await backups_are_for_operators(client, admin)
    assert await admin.call(TransferLeadership(1)) == MemberChanged(1)
    await admin.close()


async def backups_are_for_operators(client: Caller1, admin: RpcConnection) -> None:
    for request in (OpenBackup(1), ReadBackup(1, 0), CloseBackup(1)):
        with pytest.raises(Forbidden, match="operators"):
            await client.connection.call(request)
    with pytest.raises(BackupGone):
        await admin.call(OpenBackup(1))
    create = CreateBackup("b", 1, 10**12, "bucket", "c")
    for op in (create, FinishBackup(1, 1, bytes(16)), EndBackup(1), AdoptVolume()):
        with pytest.raises(Forbidden, match="operators"):
            await client.raw(client.session, client.seq + 1, op)
    await Caller1(admin).raw(0, 0, EndBackup(1))


async def batches(client: Caller1) -> None:
    """Commands of a batch are applied in order, each with its own outcome."""

    def make(seq: int, name: bytes) -> bytes:
        op = Create(At(0, 1, (b"d",)), name, 0o644)
        return encode_command(Command(COMMAND_FORMAT, client.session, seq, 1, Caller(), op))

    newer = msgspec.msgpack.encode([COMMAND_FORMAT + 1, *msgspec.msgpack.decode(make(9, b"z"))[1:]])
    commands = (make(2, b"a"), b"\xc1", make(3, b"a"), newer, make(4, b"b"), make(2, b"a"))
    reply = await client.connection.call(Propose(commands))
    assert isinstance(reply, ResultsReply)
    codes = [outcome.error.code if outcome.error else 0 for outcome in reply.outcomes]
    assert codes == [0, BadRequest.code, 0, BadRequest.code, 0, 0]
    first, _, taken, _, second, again = (
        result_codec.decode(outcome.result) if outcome.result else None
        for outcome in reply.outcomes
    )
    assert first is not None
    assert taken is not None
    assert second is not None
    assert again == first
    assert (first.code, taken.code, second.code) == (0, 11, 0)
    assert first.version < taken.version < second.version
    assert await client.connection.call(Propose(())) == ResultsReply(())
    with pytest.raises(TooLarge):
        await client.connection.call(Propose((b"",) * (BATCH_MAX + 1)))
    client.seq = 4


async def renewals(client: Caller1) -> None:
    session = client.session
    reply = await client.connection.call(Renew(Marks(session, 1, 1, 0)))
    assert isinstance(reply, RenewReply)
    assert reply.ttl_ns == 30 * S
    for marks in (Marks(session, -1, 0, 0), Marks(session, 1, 2**63, 0)):
        with pytest.raises(NokvError):
            await client.connection.call(Renew(marks))
    with pytest.raises(UnknownSession):
        await client.connection.call(Renew(Marks(99, 1, 0, 0)))
    other = Caller1(client.connection)
    await other.open(30 * S)
    await other.run(ExpireSession(other.session))
    with pytest.raises(SessionExpired):
        await client.connection.call(Renew(Marks(other.session, 1, 0, 0)))


async def hostile(address: str) -> None:
    """Reads with impossible values, and bytes that are none of ours, get an error; no more."""
    connection = await RpcConnection.connect(address, Hello(PROTOCOL))
    for at in (At(-1, 1), At(0, -5), At(2**63, 2**63), At(0, 1, (b"\x00/",)), At(0, 2**64 - 1)):
        with pytest.raises(NokvError):
            await connection.call(Query(Caller(), GetAttr(at)))
    for query in (
        Query(Caller(), StatFs(), 7),
        Query(Caller(), StatFs(), Consistency.BOUNDED, -1),
        Query(Caller(uid=-1), StatFs()),
    ):
        with pytest.raises(NokvError):
            await connection.call(query)
    with pytest.raises(NokvError):
        await connection.call(MakeDigest(-1))
    host, _, port = address.rpartition(":")
    for data in (b"\x00" * 100, b"\xff" * 100, os.urandom(5000)):
        with socket.create_connection((host, int(port))) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
    await connection.call(Query(Caller(), StatFs(), Consistency.BOUNDED, 60_000))
    await connection.close()


def pages(nodes: Nodes) -> None:
    assert get(nodes.http[0], "/healthz") == (200, "ok\n")
    assert get(nodes.http[0], "/readyz") == (200, "ready\n")
    code, text = get(nodes.http[0], "/status")
    assert code == 200
    assert json.loads(text)["role"] == "leader"
    code, text = get(nodes.http[0], "/metrics")
    assert code == 200
    assert "nokv_raft_term 1\n" in text
    assert 'nokv_raft_log_sync_seconds_bucket{le="+Inf"}' in text
    assert 'nokv_rpc_request_seconds_bucket{le="+Inf"}' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


async def still_there(nodes: Nodes) -> None:
    _, connection = await leader(nodes.addresses)
    reply = await Caller1(connection).read(GetAttr(At(0, 1, (b"d", b"b"))))
    assert isinstance(reply, AttrReply)
    await connection.close()


def test_a_silent_session_ends_and_a_renewed_one_lives(make_nodes: Callable[..., Nodes]) -> None:
    nodes = make_nodes(1)
    nodes.start()

    async def main() -> None:
        _, connection = await leader(nodes.addresses)
        silent, loud = Caller1(connection), Caller1(connection)
        await silent.open(5 * S)
        await loud.open(5 * S)
        number = 0
        while True:
            number += 1
            await connection.call(Renew(Marks(loud.session, number, 0, 0)))
            reply = await silent.read(GetSession(silent.session))
            assert isinstance(reply, SessionReply)
            if not reply.alive:
                break
            await asyncio.sleep(0.1)
        with pytest.raises(SessionExpired):
            await silent.run(Mkdir(At(), b"late", 0o755))
        await loud.run(Mkdir(At(), b"d", 0o755))
        await connection.close()

    asyncio.run(main())
    assert nodes.stop() == {1: 0}


@pytest.mark.allow_logs("does not start")
def test_a_directory_that_was_never_initialised_or_is_in_use_is_refused(
    make_nodes: Callable[..., Nodes],
) -> None:
    nodes = make_nodes(1)
    nodes.start()

    async def main() -> None:
        _, connection = await leader(nodes.addresses)
        await connection.close()

    asyncio.run(main())
    second = subprocess.run(
        [sys.executable, "-c", RUN, str(nodes.config(1))],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert second.returncode == 2
    assert "in use by process" in second.stderr
    (nodes.folder / "node9.toml").write_text(
        'data_dir = "none"\n[peer]\nlisten = "127.0.0.1:1"\n[rpc]\nlisten = "127.0.0.1:2"\n'
    )
    third = subprocess.run(
        [sys.executable, "-c", RUN, str(nodes.folder / "node9.toml")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert third.returncode != 0
    assert "not an initialised data directory" in third.stderr
    assert nodes.stop() == {1: 0}


@pytest.mark.allow_logs("the worker ended")
def test_a_worker_that_dies_is_started_again_and_children_die_with_their_parent(
    make_nodes: Callable[..., Nodes],
) -> None:
    nodes = make_nodes(1)
    nodes.start()
    supervisor = nodes.processes[1].pid

    def children() -> dict[str, int]:
        found: dict[str, int] = {}
        for name in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # gone meanwhile
            if b"nokv.server.launch" in words:  # not before its exec, not as a zombie
                found[words[-2].decode()] = int(name)
        return found

    async def main() -> None:
        # Killed while its parent still writes to it, a worker makes its parent say so.
        _, connection = await leader(nodes.addresses)
        await until_digest(connection)
        await connection.close()
        before = children()
        assert len(before) == 2, before
        os.kill(before["nokv.server.worker"], signal.SIGKILL)
        dead = before["nokv.server.worker"]
        await until(lambda: children().get("nokv.server.worker", dead) != dead, "a new worker")
        assert children()["nokv.server.shard"] == before["nokv.server.shard"]
        _, connection = await leader(nodes.addresses)
        await until_digest(connection)
        await connection.close()
        pids = list(children().values())
        nodes.kill(1)
        await until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "gone")

    asyncio.run(main())


async def until_digest(connection: RpcConnection) -> DigestReply:
    """Ask for a checkpoint until a worker listens: a new one needs a moment to say so."""
    while True:
        try:
            reply = await connection.call(MakeDigest(0))
        except NokvError:
            await asyncio.sleep(0.1)
            continue
        assert isinstance(reply, DigestReply)
        return reply


@pytest.mark.allow_logs("disk space is low")
def test_a_full_disk_refuses_what_grows(make_nodes: Callable[..., Nodes]) -> None:
    from nokv.errors import NoSpace

    nodes = make_nodes(1, f"[disk]\nreserve_bytes = {1 << 50}\n")
    nodes.start()

    async def main() -> None:
        _, connection = await leader(nodes.addresses)
        with pytest.raises(NoSpace, match="removals are refused too") as caught:
            await Caller1(connection).open(30 * S)
        assert caught.value.hint == "free disk space on the metadata nodes"
        await connection.close()

    asyncio.run(main())
    assert nodes.stop() == {1: 0}


# ---------------------------------------------------------------- three nodes


@pytest.mark.allow_logs("closing the connection")
def test_three_nodes_through_the_death_of_their_leader(make_nodes: Callable[..., Nodes]) -> None:
    nodes = make_nodes(3)
    nodes.start()
    asyncio.run(through_a_kill(nodes))
    assert nodes.stop() == {1: 0, 2: 0, 3: 0}


async def through_a_kill(nodes: Nodes) -> None:
    address, connection = await leader(nodes.addresses)
    client = Caller1(connection)
    await client.open(60 * S)
    await client.run(Mkdir(At(), b"d", 0o755))
    names = tuple(b"%d" % n for n in range(1000))
    made = await client.run(BulkCreate(At(0, 1, (b"d",)), names, 0o644))
    old = next(member.node for member in nodes.members if member.rpc == address)
    for member in nodes.members:
        if member.node != old:
            await ask_follower(member.rpc, address)
    nodes.kill(old)
    rest = [member.rpc for member in nodes.members if member.node != old]
    _, second = await leader(rest)
    again = Caller1(second)
    again.session = client.session
    # The same command again, at another leader, is answered with its first result.
    op = BulkCreate(At(0, 1, (b"d",)), names, 0o644)
    assert await retried(again, client.seq, op) == made
    again.seq = client.seq
    await again.run(Create(At(0, 1, (b"d",)), b"after", 0o644))
    nodes.start(old)
    third = await connect(address)
    await caught_up(second, third)
    digests = await digests_of(nodes, second)
    assert len(set(digests)) == 1
    reply = await Caller1(third).read(StatFs())
    assert isinstance(reply, StatFsReply)
    assert reply.files == 1003
    for connection in (second, third):
        await connection.close()


async def ask_follower(address: str, leads: str) -> None:
    """A follower answers reads, and says who takes commands."""
    connection = await connect(address)
    follower = Caller1(connection)
    reply = await follower.read(GetAttr(At(0, 1, (b"d",))))
    assert isinstance(reply, AttrReply)
    assert reply.attr.children == 1000
    reply = await follower.read(GetAttr(At(0, 1, (b"d",))), Consistency.BOUNDED, 60_000)
    assert isinstance(reply, AttrReply)
    with pytest.raises(NotLeader):
        await follower.raw(0, 0, OpenSession(os.urandom(16), S))
    assert connection.leader == leads
    with pytest.raises(NotLeader):
        await connection.call(Renew(Marks(1, 1, 0, 0)))
    await connection.close()


async def retried(client: Caller1, seq: int, op: BulkCreate) -> object:
    while True:
        try:
            return await client.raw(client.session, seq, op)
        except (NotLeader, NotReady, Unavailable):
            await asyncio.sleep(0.05)


async def caught_up(leads: RpcConnection, follows: RpcConnection) -> None:
    wanted = (await status_of(leads)).commit_index
    while True:
        if (await status_of(follows)).applied_index >= wanted:
            return
        await asyncio.sleep(0.05)


async def digests_of(nodes: Nodes, leads: RpcConnection) -> list[bytes]:
    """The digests of all replicas at one checkpoint."""
    while True:
        digest = await until_digest(leads)
        found = [digest.digest]
        for address in nodes.addresses:
            connection = await connect(address)
            with contextlib.suppress(NokvError):
                reply = await connection.call(MakeDigest(digest.number))
                assert isinstance(reply, DigestReply)
                found.append(reply.digest)
            await connection.close()
        if len(found) == len(nodes.members) + 1:
            return found

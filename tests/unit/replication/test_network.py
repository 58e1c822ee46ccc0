"""The TCP network by itself: who dials, which of two connections stays, TLS, images, limits."""

import asyncio
import contextlib
import datetime as dt
import random
import re
import socket
from pathlib import Path

import pytest
from tests.unit.replication.networks import CLUSTER, LENGTH, End, Net, Stranger, peer_tls, run

from nokv.server import certs
from nokv_replication import connection as connections
from nokv_replication import tcp
from nokv_replication.connection import Connection
from nokv_replication.errors import ConfigurationError
from nokv_replication.frames import Purpose, decode_hello
from nokv_replication.tcp import TcpNetwork


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection ends or is dialed because the loop that both its ends share stood still."""
    monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 60.0)
    monkeypatch.setattr(tcp, "DEFER_S", 60.0)


@pytest.fixture
def the_larger_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """In these tests it has to: the smaller one does not know it."""
    monkeypatch.setattr(tcp, "DEFER_S", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cluster's authority, three nodes and a client; another cluster's beside it."""
    path = tmp_path_factory.mktemp("certs")
    certs.make_authority(path / "ours", CLUSTER)
    certs.make_authority(path / "theirs", "fedcba")
    for node in (1, 2, 3):
        certs.make_node(path / "ours", node)
    certs.make_node(path / "theirs", 1)
    certs.make_client(path / "ours", "somebody")
    return path


@pytest.fixture(params=["tls", "clear"])
def either(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    return folder if request.param == "tls" else None


# ---------------------------------------------------------------- who dials


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_two_nodes_exchange_frames(either: Path | None, uv: bool) -> None:
    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        await asyncio.gather(first.until("connected", 2), second.until("connected", 1))
        large = random.Random(1).randbytes(3 << 20)
        for frame in (b"one", large, b"three"):
            net.networks[1].send(2, frame)
            net.networks[2].send(1, frame)
        await asyncio.gather(first.until("frame", 2, b"three"), second.until("frame", 1, b"three"))
        assert [said[2] for said in first.said if said[0] == "frame"] == [b"one", large, b"three"]
        assert ("disconnected", 2) not in first.said

    run(scenario, either, uv)


@pytest.mark.usefixtures("the_larger_dials")
def test_the_larger_id_dials_when_nobody_came(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, ())
        second = await net.start(2, (1,))
        await asyncio.gather(first.until("connected", 2), second.until("connected", 1))
        net.networks[2].send(1, b"hello")
        await first.until("frame", 2, b"hello")
        # It learns of the other later: the connection that there is stays.
        net.networks[1].set_peers({1: net.addresses[1], 2: net.addresses[2]})
        net.networks[1].send(2, b"still there")
        await second.until("frame", 1, b"still there")
        assert first.said.count(("connected", 2)) == 1

    run(scenario, either)


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_dial_that_is_cancelled_as_it_succeeds_holds_nobody_up(
    either: Path | None, uv: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the connection is told to be made; what closes the network waits for it."""
    made = Connection.connection_made
    cancelled = 0

    def cancelling(self: Connection, transport: asyncio.BaseTransport) -> None:
        nonlocal cancelled
        dials = self.dialed is not None
        if dials and when == "before":
            self._network._dialers[2].cancel()
            asyncio.get_running_loop().call_soon(made, self, transport)
        else:
            made(self, transport)
        if dials and when == "after":
            self._network._dialers[2].cancel()
        cancelled += dials

    async def scenario(net: Net) -> None:
        monkeypatch.setattr(Connection, "connection_made", cancelling)
        await net.start(2, ())
        await net.start(1, (2,))
        while not cancelled:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        await net.networks[1].close()
        assert not net.networks[1]._open

    run(scenario, either, uv)
    assert cancelled == 1


def test_peers_change_while_it_runs(either: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "DEFER_S", 1.0)

    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        await asyncio.gather(first.until("connected", 2), second.until("connected", 1))
        third = await net.start(3, ())
        addresses = net.addresses
        net.networks[1].set_peers({2: addresses[2], 3: addresses[3]})
        await asyncio.gather(first.until("connected", 3), third.until("connected", 1))
        net.networks[1].set_peers({3: addresses[3]})
        await asyncio.gather(first.until("disconnected", 2), second.until("disconnected", 1))
        # Node 2 still has node 1 among its peers and dials: it is a visitor there.
        await first.until("connected", 2, times=2)
        assert ("disconnected", 3) not in first.said

    run(scenario, either)


def test_a_changed_address_is_dialed(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, (2,))
        net.networks[1].set_peers({2: net.addresses[4]})
        net.addresses[2] = net.addresses[4]
        await net.start(2, ())
        await first.until("connected", 2)

    run(scenario, either)


@pytest.mark.usefixtures("the_larger_dials")
def test_a_name_that_is_none_is_tried_again(folder: Path) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, ())
        net.networks[1].set_peers({2: f"{'x' * 70}..nowhere:1"})
        await net.start(2, (1,))
        await first.until("connected", 2)
        assert not net.networks[1]._dialers[2].done()

    run(scenario, folder)


@pytest.mark.allow_logs("is not loopback", "write host:port")
def test_an_unusable_address_is_not_dialed() -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, (2,))
        net.networks[1].set_peers({2: "10.0.0.1:1", 4: "no", 3: net.addresses[3]})
        await net.start(3, ())
        await first.until("connected", 3)

    run(scenario, None)


def test_of_two_connections_the_one_the_smaller_id_dialed_stays(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        await asyncio.gather(first.until("connected", 2), second.until("connected", 1))
        # The larger one dials beside it: it is closed, and nobody is told.
        extra = await net.networks[2]._dial(1, Purpose.RAFT)
        assert extra is not None
        await extra.closed.wait()
        assert first.said == [("connected", 2)]
        assert second.said == [("connected", 1)]
        # The smaller one dials beside it: it replaces the older.
        newer = await net.networks[1]._dial(2, Purpose.RAFT)
        assert newer is not None
        await asyncio.gather(
            first.until("connected", 2, times=2), second.until("connected", 1, times=2)
        )
        assert first.said == [("connected", 2), ("disconnected", 2), ("connected", 2)]
        assert second.said == [("connected", 1), ("disconnected", 1), ("connected", 1)]

    run(scenario, either)


@pytest.mark.allow_logs("too many nodes")
@pytest.mark.usefixtures("the_larger_dials")
def test_visitors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "VISITORS_MAX", 1)

    async def scenario(net: Net) -> None:
        first = await net.start(1, ())
        await net.start(2, (1,))
        await first.until("connected", 2)
        await net.start(3, (1,))
        await net.until_rejected(1)
        assert ("connected", 3) not in first.said

    run(scenario, None)


# ---------------------------------------------------------------- images


def test_an_image_travels_on_its_own_connection(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        await asyncio.gather(first.until("connected", 2), second.until("connected", 1))
        net.networks[2].open_image(1)
        await asyncio.gather(first.until("image", 2, False), second.until("image", 1, True))
        net.networks[2].send_image(1, b"offer", outgoing=True)
        await first.until("piece", 2, b"offer", False)
        net.networks[1].send_image(2, b"accept", outgoing=False)
        await second.until("piece", 1, b"accept", True)
        pieces = [bytes([n]) * (200 << 10) for n in range(80)]
        for piece in pieces:
            net.networks[2].send_image(1, piece, outgoing=True)
        net.networks[2].send(1, b"beside it")
        # What was queued arrives, and then the end; the closing side is not told.
        net.networks[2].close_image(1, outgoing=True)
        await first.until("no image", 2, False)
        assert [said[2] for said in first.said if said[0] == "piece"] == [b"offer", *pieces]
        # Raft does not wait for an image that fills the sockets.
        beside = first.said.index(("frame", 2, b"beside it"))
        assert beside < first.said.index(("piece", 2, pieces[-1], False))
        assert ("no image", 1, True) not in second.said
        # The other way round at the same time as once more this way.
        net.networks[1].open_image(2)
        net.networks[2].open_image(1)
        await asyncio.gather(first.until("image", 2, True), second.until("image", 1, True, times=2))
        assert ("disconnected", 2) not in first.said

    run(scenario, either)


def test_a_newer_image_connection_replaces_the_older(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        net.networks[2].open_image(1)
        await asyncio.gather(first.until("image", 2, False), second.until("image", 1, True))
        net.networks[2].open_image(1)
        await first.until("image", 2, False, times=2)
        image = [said for said in first.said if "image" in str(said[0])]
        assert image == [("image", 2, False), ("no image", 2, False), ("image", 2, False)]

    run(scenario, either)


def test_an_image_connection_that_fails_is_told_once(either: Path | None) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, (2,))
        net.networks[1].open_image(2)  # nobody listens
        net.networks[1].open_image(3)  # no peer
        await first.until("no image", 2, True)
        await first.until("no image", 3, True)
        net.networks[1].open_image(2)
        net.networks[1].close_image(2, outgoing=True)
        second = await net.start(2, ())
        await second.until("connected", 1)
        assert first.said.count(("no image", 2, True)) == 1

    run(scenario, either)


# ---------------------------------------------------------------- TLS


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_a_frame_leaves_when_it_is_written(either: Path | None, uv: bool) -> None:
    """Not when the loop turns: followers store a batch while the leader syncs it."""

    async def scenario(net: Net) -> None:
        first = await net.start(1, ())
        tls = None if either is None else peer_tls(either, "node-2")
        with Stranger(net.addresses[1], tls) as stranger:
            if tls is not None:
                await stranger.shake_hands()
            stranger.send(End(2).hello(5))
            assert decode_hello(await stranger.receive()).node == 1
            await first.until("connected", 2)
            net.networks[1].send(2, b"at once")
            assert stranger.receive_now() == LENGTH.pack(7) + b"at once"

    run(scenario, either, uv)


def forge(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own authority's certificates that it would not make: an expired one, a foreign one."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    validity, authority = certs._validity, certs._authority
    for name, span in (
        ("expired", (now - 2 * day, now - day)),
        ("early", (now + day, now + 2 * day)),
    ):
        folder = path / name
        folder.mkdir()
        for file in ("ca.crt", "ca.key"):
            (folder / file).write_bytes((path / "ours" / file).read_bytes())
        monkeypatch.setattr(certs, "_validity", lambda _days, span=span: span)
        certs.make_node(folder, 2)
    monkeypatch.setattr(certs, "_validity", validity)
    folder = path / "foreign"
    folder.mkdir()
    for file in ("ca.crt", "ca.key"):
        (folder / file).write_bytes((path / "ours" / file).read_bytes())
    monkeypatch.setattr(certs, "_authority", lambda path: (*authority(path)[:2], "fedcba"))
    certs.make_node(folder, 2)
    monkeypatch.setattr(certs, "_authority", authority)


@pytest.fixture(scope="module")
def forged(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        forge(folder, monkeypatch)
    return folder


@pytest.mark.allow_logs("closing the connection")
@pytest.mark.parametrize(
    ("whose", "stem", "reason"),
    [
        ("theirs", "node-1", "unable to get local issuer|self.signed|signature failure"),
        ("expired", "node-2", "certificate has expired"),
        ("early", "node-2", "not yet valid"),
        ("foreign", "node-2", "permitted subtree violation"),
        ("ours", "client-somebody", "is that of nokv://abcdef/client/somebody, not of a node"),
    ],
)
def test_a_wrong_certificate_costs_the_connection(
    forged: Path,
    whose: str,
    stem: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, (2,))
        second = await net.start(2, (1,))
        await first.until("connected", 2)
        with Stranger(net.addresses[1], peer_tls(forged, stem, whose)) as stranger:
            with contextlib.suppress(ConnectionResetError):
                await stranger.shake_hands()
                stranger.send(End(2).hello(5))
            await stranger.ended()
        assert net.networks[1].rejected == 1
        net.networks[1].send(2, b"still here")
        await second.until("frame", 1, b"still here")
        assert first.said == [("connected", 2)]

    run(scenario, forged)
    assert re.search(reason, caplog.text), caplog.text


@pytest.mark.allow_logs("by its certificate, says it is node 3")
def test_a_node_speaks_for_itself_only(folder: Path) -> None:
    async def scenario(net: Net) -> None:
        first = await net.start(1, (2, 3))
        with Stranger(net.addresses[1], peer_tls(folder, "node-2")) as stranger:
            await stranger.shake_hands()
            stranger.send(End(3).hello(5))
            assert b"says it is node 3" in await stranger.receive()
            await stranger.ended()
        assert first.said == []

    run(scenario, folder)


@pytest.mark.allow_logs("answers at the address of node 2")
def test_a_node_at_anothers_address_is_not_greeted(folder: Path) -> None:
    async def scenario(net: Net) -> None:
        net.addresses[3] = net.addresses[2]
        third = await net.start(3, ())
        first = await net.start(1, (2,))
        await net.until_rejected(1)
        assert (first.said, third.said) == ([], [])

    run(scenario, folder)


# ---------------------------------------------------------------- limits


@pytest.mark.allow_logs("closing the connection")
@pytest.mark.usefixtures("the_larger_dials")
def test_connections_that_say_nothing_are_bounded(
    either: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "PENDING_MAX", 8)

    async def scenario(net: Net) -> None:
        first = await net.start(1, ())
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(Stranger(net.addresses[1], None)) for _ in range(20)]
            for one in silent[:12]:
                await one.ended()  # the oldest
            assert len(net.networks[1]._pending) == 8
            # One that says who it is gets in all the same.
            await net.start(2, (1,))
            await first.until("connected", 2)
        assert net.networks[1].rejected >= 12

    run(scenario, either)


@pytest.mark.allow_logs("closing the connection")
def test_a_connection_that_never_says_hello_is_ended(
    either: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def scenario(net: Net) -> None:
        await net.start(1, ())
        with Stranger(net.addresses[1], None) as stranger:
            await stranger.ended()

    run(scenario, either)


@pytest.mark.allow_logs("closing the connection")
@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_cost_their_connection_only(folder: Path, seed: int) -> None:
    """Before TLS, in the middle of its handshake, and inside it."""
    rng = random.Random(seed)

    async def scenario(net: Net) -> None:
        first, second = await net.start(1, (2,)), await net.start(2, (1,))
        await first.until("connected", 2)
        for _ in range(6):
            with Stranger(net.addresses[1], peer_tls(folder, "node-3")) as stranger:
                assert stranger.stream is not None
                with contextlib.suppress(ConnectionError):
                    if rng.random() < 0.5:
                        opening = bytearray(stranger.stream.take())
                        for _ in range(rng.randrange(1, 5)):
                            opening[rng.randrange(len(opening))] = rng.randrange(256)
                        stranger.socket.sendall(opening)
                    else:
                        await stranger.shake_hands()
                    if rng.random() < 0.5 and stranger.stream.ready:
                        stranger.send(rng.randbytes(rng.randrange(1, 6000)))
                    else:
                        stranger.socket.sendall(rng.randbytes(rng.randrange(1, 100_000)))
                    stranger.socket.shutdown(socket.SHUT_WR)
                    await stranger.ended()
        net.networks[1].send(2, b"still here")
        await second.until("frame", 1, b"still here")
        assert first.said == [("connected", 2)]

    run(scenario, folder)


def test_with_tls_any_address_may_be_used(folder: Path) -> None:
    tls = peer_tls(folder, "node-1")
    TcpNetwork(1, "0.0.0.0:1", {2: "node2.example.org:7201"}, random.Random(0), tls)
    with pytest.raises(ConfigurationError, match="write host:port"):
        TcpNetwork(1, "0.0.0.0:1", {2: "node2.example.org"}, random.Random(0), tls)

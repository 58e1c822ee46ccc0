"""Any bytes on the three ports of a real node: they cost their connection and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import nokv
from nokv.errors import NokvError, TooLarge
from nokv.testing.cluster import LocalCluster, probe
from nokv.types.limits import BATCH_MAX, FRAME_BYTES_MAX
from nokv.wire.connection import RpcConnection
from nokv.wire.rpc import PROTOCOL, Hello, Propose, Request, Status

pytestmark = [pytest.mark.cluster, pytest.mark.allow_logs("closing the connection")]

ROUNDS = 120
HELLO = msgspec.msgpack.encode(Request(1, 0, 0, Hello(PROTOCOL, agent="noise")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(1) as running:
        yield running


def framed(body: bytes) -> bytes:
    """One frame with its big-endian length."""
    return struct.pack(">I", len(body)) + body


def any_value(rng: random.Random, depth: int = 0) -> object:
    """Something that MessagePack can say."""
    kinds = ["int", "bytes", "str", "none", "float"] + ["list"] * 2 * (depth < 4)
    kind = rng.choice(kinds)
    if kind == "int":
        return rng.choice((0, 1, -1, 2**31, 2**63, 2**64 - 1, -(2**63), rng.randrange(200)))
    if kind == "bytes":
        return rng.randbytes(rng.randrange(40))
    if kind == "str":
        return "x" * rng.randrange(20)
    if kind == "list":
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(8))]
    return None if kind == "none" else rng.random()


def hostile(rng: random.Random) -> bytes:
    """Bytes of one connection: noise, or frames of noise, of values, of hellos cut anywhere."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 5000))
    if kind == 1:
        return struct.pack(">I", rng.choice((0, FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1)))
    if kind == 2:
        return framed(b"\x91" * 100_000)  # deep nesting
    if kind == 3:
        return framed(HELLO) + framed(rng.randbytes(rng.randrange(500)))
    if kind == 4:
        return framed(HELLO)[: rng.randrange(len(HELLO))]
    value = [rng.randrange(1, 90), *(any_value(rng) for _ in range(rng.randrange(8)))]
    frames = framed(HELLO) * (kind == 5) + framed(msgspec.msgpack.encode(value))
    if kind == 6:
        request = [rng.randrange(2**32), rng.randrange(99_999), 0, value]
        frames = framed(HELLO) + framed(msgspec.msgpack.encode(request))
    return frames


def http(rng: random.Random) -> bytes:
    """Requests that are none, nearly one, endless, or of a method that is not spoken."""
    head = rng.choice((b"GET", b"POST", b"\xff\xfe", b"DELETE", b"G" * 9000, b"", b"PRI *"))
    path = rng.choice((b"/status", b"/../../etc/passwd", b"/%00", b"/" * 9000, b"", b"\0", b"*"))
    rest = rng.choice(
        (
            b" HTTP/1.1\r\n\r\n",
            b" HTTP/9.9\r\n\r\n",
            b"\r\n" * 5000,
            b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b" HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nx",
            b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
            b" HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n",
            rng.randbytes(300),
        )
    )
    return head + b" " + path + rest


def send(port: int, data: bytes) -> None:
    """Send it all, take what is answered, and go away."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        contextlib.suppress(ConnectionError),
    ):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


@pytest.mark.parametrize("port", ["rpc", "peer", "http"])
def test_any_bytes_cost_their_connection_only(
    cluster: LocalCluster, check_log: Callable[[Path], None], port: str
) -> None:
    check_log(cluster.folder.log_path(1))
    member = cluster.members[0]
    rng = random.Random(f"hostile {port}")
    with nokv.connect_sync(cluster.addresses) as fs:
        before = cluster.status(1)
        assert before is not None
        for _ in range(ROUNDS):
            send(getattr(member, port), http(rng) if port == "http" else hostile(rng))
            send(getattr(member, port), hostile(rng))
        after = cluster.status(1)
        assert after is not None
        assert (after["pid"], after["role"]) == (before["pid"], "leader")
        assert after["version"] == before["version"]
        fs.mkdir(f"/{port}")
        assert fs.exists(f"/{port}")
    assert probe(member.http_address, "/healthz")[0] == 200


def test_a_batch_and_a_frame_over_their_limits(cluster: LocalCluster) -> None:
    """The frame costs the connection, the batch only itself; the node says which limit it was."""

    async def main() -> None:
        connection = await RpcConnection.connect(cluster.addresses, Hello(PROTOCOL))
        with pytest.raises(TooLarge, match=f"limit is {BATCH_MAX}"):
            await connection.call(Propose((b"",) * (BATCH_MAX + 1)))
        with pytest.raises(NokvError):
            await connection.call(Propose((bytes(FRAME_BYTES_MAX),)))
        await connection.close()
        connection = await RpcConnection.connect(cluster.addresses, Hello(PROTOCOL))
        assert await connection.call(Status())
        await connection.close()

    asyncio.run(main())
    send(cluster.members[0].rpc, struct.pack(">I", FRAME_BYTES_MAX + 1) + bytes(1000))
    assert cluster.is_ready(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[disk]\nreserve_bytes = "much"\n', "disk.reserve_bytes"),
        ("[timing]\nheartbeat_ms = 1.5\n", "timing.heartbeat_ms"),
        ("[log]\nsegment_bytes = -1\n", "log.segment_bytes"),
        ("[worker]\nenabled = 1\n", "true or false"),
        ("[members]\n1 = 5\n", "members"),
    ],
)
def test_a_configuration_with_a_wrong_type_is_refused(
    cluster: LocalCluster, tmp_path: Path, text: str, said: str
) -> None:
    """The whole program, as systemd starts it: exit code 2, the key and what is expected there."""
    right = (cluster.folder.node_path(1) / "node.toml").read_text()
    (tmp_path / "node.toml").write_text(right + "\n" + text)
    for command in (["serve", "--config"], ["config", "check", "--config"]):
        done = subprocess.run(
            [sys.executable, "-m", "nokv.cli", *command, str(tmp_path / "node.toml")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.toml"]

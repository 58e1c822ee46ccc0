"""Three etcd nodes on loopback, for the row beside: durable puts through its own gRPC API."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from nokv.testing.ports import free_ports

START_TIMEOUT_S = 20.0


class Etcd:
    """A three-node etcd under `directory`; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._client_ports: list[int] = []
        self.client_port = 0

    @staticmethod
    def missing() -> str:
        """Return why it can't run here, or nothing."""
        return "" if shutil.which("etcd") else "etcd is not installed (Debian: etcd-server)"

    def __enter__(self) -> Self:
        """Start it and wait for the first put."""
        ports = free_ports(6)
        peers = [f"http://127.0.0.1:{port}" for port in ports[:3]]
        clients = [f"http://127.0.0.1:{port}" for port in ports[3:]]
        cluster = ",".join(f"n{i}={peer}" for i, peer in enumerate(peers))
        for i in range(3):
            command = [
                "etcd",
                f"--name=n{i}",
                f"--data-dir={self._directory / f'etcd-{i}'}",
                f"--listen-peer-urls={peers[i]}",
                f"--initial-advertise-peer-urls={peers[i]}",
                f"--listen-client-urls={clients[i]}",
                f"--advertise-client-urls={clients[i]}",
                f"--initial-cluster={cluster}",
                "--initial-cluster-state=new",
                "--log-level=error",
            ]
            self._nodes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        self._client_ports = ports[3:]
        self.client_port = ports[3]
        self._wait()
        return self

    def _wait(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        with grpc.insecure_channel(f"127.0.0.1:{self.client_port}") as channel:
            put = channel.unary_unary(PUT)
            while True:
                try:
                    put(encode_put(b"ready", b"1"), timeout=1.0)
                except grpc.RpcError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)
                else:
                    return

    def leader_port(self) -> int:
        """Return the client port of the node that leads, as its JSON gateway tells."""
        for port in self._client_ports:
            url = f"http://127.0.0.1:{port}/v3/maintenance/status"
            with urllib.request.urlopen(url, data=b"{}", timeout=5.0) as answer:
                status = json.load(answer)
            if status["leader"] == status["header"]["member_id"]:
                return port
        message = "no etcd node leads"
        raise RuntimeError(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        for node in self._nodes:
            node.terminate()
        for node in self._nodes:
            node.wait(10)


PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def encode_put(key: bytes, value: bytes) -> bytes:
    """Return a PutRequest: protobuf fields 1 (key) and 2 (value)."""
    return _field(1, key) + _field(2, value)


def encode_range(key: bytes) -> bytes:
    """Return a RangeRequest for one key; linearizable, which is the default."""
    return _field(1, key)

"""The wire as shipped: pickles of anybody, before any handshake; connections without identity."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.regressions.group import led

from nokv_replication import ProtocolError
from nokv_replication._pysyncobj import Core

# Everything happens in a process of its own, on loopback; the payload only makes a folder.
UNPICKLED = """
import os, pickle, socket, struct, sys, zlib
from pysyncobj import SyncObj, SyncObjConf
from nokv.testing.ports import free_ports

[port] = free_ports(1)
address = f"127.0.0.1:{port}"
node = SyncObj(address, ["127.0.0.1:1"], SyncObjConf(autoTick=False, bindAddress=address))

class Payload:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)

def frame(message):
    data = zlib.compress(pickle.dumps(message, 2))
    return struct.pack("i", len(data)) + data

with socket.create_connection(("127.0.0.1", port)) as stranger:
    stranger.sendall(frame(Payload()))
    for _ in range(20):
        node.doTick(0.02)
with socket.create_connection(("127.0.0.1", port)) as stranger:
    append = {"type": "append_entries", "term": 10**9, "commit_index": 2,
              "prevLogIdx": 1, "prevLogTerm": 0, "entries": [(b"\\x01", 2, 10**9)]}
    stranger.sendall(frame("readonly") + frame(append))
    for _ in range(20):
        node.doTick(0.02)
print(os.path.isdir(sys.argv[1]), node.raftCurrentTerm == 10**9, node.raftCommitIndex == 2)
os._exit(0)
"""


class TestStrangerRunsCodeAndWritesEntries:
    """Anybody who can connect has the node run code of his, and can append and commit entries."""

    def test_stock(self, tmp_path: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", UNPICKLED, str(tmp_path / "made")]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["True", "True", "True"]

    def test_group_reads_typed_frames_only(self, tmp_path: Path) -> None:
        script = led()

        class Payload:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.mkdir, (Path(tmp_path / "made"),)  # type: ignore[return-value]

        data = pickle.dumps(Payload(), 2)
        for frame in (data, struct.pack("i", len(data)) + data):
            with pytest.raises(ProtocolError):
                script.groups[1].receive(2, frame)
            with pytest.raises(ProtocolError):
                script.groups[1].greet(frame)
        script.step(1)
        assert not (tmp_path / "made").exists()

    def test_group_never_reaches_code_that_unpickles(self) -> None:
        """The library's methods that unpickle an entry are overridden, and only assert."""
        core = led(1).groups[1]._core
        for name in ("doApplyCommand", "parseChangeClusterRequest", "changeCluster"):
            assert f"_SyncObj__{name}" in Core.__dict__
            with pytest.raises(AssertionError, match="library was asked"):
                getattr(core, f"_SyncObj__{name}")(b"\x02")


REPLACED = """
import os, pickle, socket, struct, zlib
from pysyncobj import SyncObj, SyncObjConf
from nokv.testing.ports import free_ports

[port] = free_ports(1)
address, peer = f"127.0.0.1:{port}", "127.0.0.2:1"  # it waits for a larger address
node = SyncObj(address, [peer], SyncObjConf(autoTick=False, bindAddress=address))
transport = node._SyncObj__transport
events = []
transport.setOnNodeConnectedCallback(lambda node: events.append("connected"))
transport.setOnNodeDisconnectedCallback(lambda node: events.append("disconnected"))

def frame(message):
    data = zlib.compress(pickle.dumps(message, 2))
    return struct.pack("i", len(data)) + data

def connect():
    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(frame(peer))
    for _ in range(10):
        node.doTick(0.02)
    return stranger

first, second = connect(), connect()
first.sendall(frame({"type": "append_entries", "term": 77, "commit_index": 0, "serialized": None}))
for _ in range(10):
    node.doTick(0.02)
print(*events, node.raftCurrentTerm)
os._exit(0)
"""


class TestReplacedConnectionIsStillRead:
    """A second connection of a peer takes the first one's place without an event, and without
    closing it: what the first one still brings arrives behind what the second has brought.
    """

    def test_stock(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", REPLACED]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.split() == ["connected", "connected", "77"]

    def test_group(self) -> None:
        """A frame names its connection; one of another connection costs the connection."""
        script = led()
        script.propose(1, b"x")
        (old,) = script.links[1, 2]
        script.cut(1, 2)
        script.connect(1, 2)
        with pytest.raises(ProtocolError, match="epoch"):
            script.groups[2].receive(1, old)
        group = script.groups[2]
        with pytest.raises(AssertionError, match="reported as lost"):
            group.connected(1, script._epoch + 1)

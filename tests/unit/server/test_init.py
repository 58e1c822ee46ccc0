"""Minting a cluster, joining it, and the data directory's identity and lock."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import msgspec
import pytest

from nokv.errors import ConfigError, DataDirectoryError
from nokv.server import datadir
from nokv.server.config import MemberConfig, load
from nokv.server.datadir import (
    MemberAddress,
    NodeFile,
    lock,
    log_path,
    read_identity,
    replication_identity,
)
from nokv.server.init import StoreSpec, added_as, export_join_file, init_cluster, join
from nokv.server.membership import configured_members

MEMBERS = [MemberAddress(n, f"127.0.0.1:{7200 + n}", f"127.0.0.1:{7100 + n}") for n in (1, 2, 3)]


def write_config(tmp_path: Path, node: int) -> Path:
    path = tmp_path / f"node{node}.toml"
    path.write_text(
        f'data_dir = "data{node}"\n'
        f'[peer]\nlisten = "127.0.0.1:{7200 + node}"\n[rpc]\nlisten = "127.0.0.1:{7100 + node}"\n'
        "[log]\nsegment_bytes = 8388608\n"
    )
    return path


def init_first(tmp_path: Path, members: list[MemberAddress] = MEMBERS) -> NodeFile:
    return init_cluster(
        write_config(tmp_path, 1),
        node=1,
        members=members,
        store=StoreSpec(kind="local", bucket=str(tmp_path / "objects")),
        join_file=tmp_path / "join.json",
    )


def test_members_share_the_cluster_and_differ_in_themselves(tmp_path: Path) -> None:
    first = init_first(tmp_path)
    second = join(write_config(tmp_path, 2), tmp_path / "join.json", node=2)
    assert first.cluster == second.cluster
    assert (first.node, second.node) == (1, 2)
    assert first.incarnation != second.incarnation
    assert read_identity(tmp_path / "data1") == first
    assert read_identity(tmp_path / "data2") == second
    assert list(log_path(tmp_path / "data1").iterdir())
    for secret in (tmp_path / "join.json", tmp_path / "data1" / "node.json"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_nothing_is_initialised_twice(tmp_path: Path) -> None:
    init_first(tmp_path)
    with pytest.raises(DataDirectoryError, match="initialised already"):
        init_first(tmp_path)
    with pytest.raises(DataDirectoryError, match="initialised already"):
        join(
            write_config(tmp_path, 2),
            tmp_path / "join.json",
            node=2,
            overrides={"data_dir": "data1"},
        )


def test_an_init_that_was_cut_short_can_be_repeated(tmp_path: Path) -> None:
    init_first(tmp_path)
    (tmp_path / "data1" / "node.json").unlink()
    init_first(tmp_path)


def test_a_state_without_identity_is_kept(tmp_path: Path) -> None:
    datadir.make_directory(datadir.state_path(tmp_path / "data1"))
    with pytest.raises(DataDirectoryError, match="state but no identity"):
        init_first(tmp_path)


@pytest.mark.parametrize(
    ("members", "node", "said"),
    [
        ([], 1, "0 members"),
        (MEMBERS, 4, "not among the members"),
        ([MEMBERS[0], MEMBERS[0]], 1, "same number"),
        ([MEMBERS[0], MemberAddress(2, "127.0.0.1:7201", "127.0.0.1:9")], 1, "share an address"),
        ([MemberAddress(1, "10.0.0.1:1", "127.0.0.1:2")], 1, "not a loopback"),
        ([MemberAddress(n, f"127.0.0.1:{n}", f"127.0.0.1:{99 + n}") for n in range(1, 9)], 1, "8"),
    ],
)
def test_members_that_make_no_cluster(
    tmp_path: Path, members: list[MemberAddress], node: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        init_cluster(
            write_config(tmp_path, 1),
            node=node,
            members=members,
            store=StoreSpec(kind="local", bucket="/objects"),
            join_file=tmp_path / "join.json",
        )
    assert not (tmp_path / "data1").exists()


def test_addresses_that_contradict_the_member_list(tmp_path: Path) -> None:
    init_first(tmp_path)
    file = tmp_path / "join.json"
    second = write_config(tmp_path, 2)
    with pytest.raises(
        ConfigError, match=r"peer\.listen is 127\.0\.0\.1:7202, .* 127\.0\.0\.1:7203"
    ):
        join(second, file, node=3)
    with pytest.raises(ConfigError, match=r"rpc\.listen is 127\.0\.0\.1:7.*rpc\.advertise"):
        join(second, file, node=2, overrides={"rpc.listen": "127.0.0.1:7"})
    assert not (tmp_path / "data2").exists()
    elsewhere = {"rpc.listen": "127.0.0.1:7", "rpc.advertise": "127.0.0.1:7102"}
    assert join(second, file, node=2, overrides=elsewhere).node == 2


@pytest.mark.parametrize(
    "store",
    [
        StoreSpec(kind="tape", bucket="x"),
        StoreSpec(kind="local", bucket="relative"),
        StoreSpec(kind="s3"),
        StoreSpec(kind="s3", bucket="b", inline_max=1 << 20),
    ],
)
def test_stores_that_are_none(tmp_path: Path, store: StoreSpec) -> None:
    with pytest.raises(ConfigError):
        init_cluster(
            write_config(tmp_path, 1), node=1, members=MEMBERS[:1], store=store, join_file=None
        )


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"format": 9}'])
def test_a_join_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "join.json").write_bytes(data)
    with pytest.raises(ConfigError, match="no join file"):
        join(write_config(tmp_path, 2), tmp_path / "join.json", node=2)


def test_a_directory_without_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="nokv init"):
        read_identity(tmp_path)


def test_a_damaged_or_newer_identity_is_refused(tmp_path: Path) -> None:
    first = init_first(tmp_path)
    path = tmp_path / "data1" / "node.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataDirectoryError, match=r"damaged.*this one file may be put back"):
        read_identity(tmp_path / "data1")
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(first, format=2)))
    with pytest.raises(DataDirectoryError, match="format 2"):
        read_identity(tmp_path / "data1")


def test_one_process_holds_the_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    fd = lock(tmp_path)
    with context.Pool(1) as pool, pytest.raises(DataDirectoryError, match=str(os.getpid())):
        pool.apply(lock, (tmp_path,))
    os.close(fd)
    os.close(lock(tmp_path))


# ---------------------------------------------------------------- a member that comes later


def test_a_larger_number_is_a_new_member(tmp_path: Path) -> None:
    """It needs no entry in the join file, which any node can write anew."""
    first = init_first(tmp_path)
    again = tmp_path / "again.json"
    assert export_join_file(tmp_path / "node1.toml", again) == first
    assert again.read_bytes() == (tmp_path / "join.json").read_bytes()
    assert stat.S_IMODE(again.stat().st_mode) == 0o600
    config = write_config(tmp_path, 4)
    made = join(config, again, node=4)
    assert (made.node, made.cluster) == (4, first.cluster)
    assert added_as(config) == MemberAddress(4, "127.0.0.1:7204", "127.0.0.1:7104")
    assert replication_identity(made).joining
    assert not replication_identity(first).joining


@pytest.mark.parametrize(("node", "message"), [(0, "not among"), (65_536, "member number 65536")])
def test_a_number_that_no_new_member_has(tmp_path: Path, node: int, message: str) -> None:
    init_first(tmp_path)
    with pytest.raises(ConfigError, match=message):
        join(write_config(tmp_path, 4), tmp_path / "join.json", node=node)
    assert not (tmp_path / "data4").exists()


def test_a_new_member_has_ports_that_can_be_told(tmp_path: Path) -> None:
    init_first(tmp_path)
    config = write_config(tmp_path, 4)
    join(config, tmp_path / "join.json", node=4)
    with pytest.raises(ConfigError, match="any free port"):
        added_as(config, {"rpc.listen": "127.0.0.1:0"})
    told = added_as(config, {"rpc.listen": "127.0.0.1:0", "rpc.advertise": "127.0.0.1:9"})
    assert told.rpc == "127.0.0.1:9"


def test_where_members_are_reached(tmp_path: Path) -> None:
    """A node's own files come before the group's list only where `node.toml` says so."""
    first = init_first(tmp_path)
    config = load(write_config(tmp_path, 1))
    members, overriding = configured_members(first, config)
    assert (members, overriding) == ({m.node: m for m in MEMBERS}, frozenset())
    named = {"2": MemberConfig(peer="127.0.0.1:1", rpc="127.0.0.1:2")}
    changed = msgspec.structs.replace(config, members=named)
    members, overriding = configured_members(first, changed)
    assert members[2] == MemberAddress(2, "127.0.0.1:1", "127.0.0.1:2")
    assert overriding == {2}
    own = load(tmp_path / "node1.toml", {"peer.advertise": "127.0.0.1:3"})
    members, overriding = configured_members(first, own)
    assert members[1] == MemberAddress(1, "127.0.0.1:3", "127.0.0.1:7101")
    assert overriding == {1}

"""The command line on a real cluster: what it does, prints and returns."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cluster.conftest import Nokv

from nokv.testing.cluster import LocalCluster, probe
from nokv.testing.folder import ClusterFolder
from nokv.testing.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("quiet")]

PROGRAM = [sys.executable, "-m", "nokv.cli"]


@pytest.fixture
def base(nokv: Nokv, request: pytest.FixtureRequest) -> str:
    """A directory of the test's own in the shared cluster."""
    path = f"/cli/{request.node.name}"
    assert nokv("mkdir", "-p", path) == (0, "", "")
    return path


def tree(root: Path) -> Path:
    """A local tree with everything that a tree can hold."""
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "small").write_bytes(b"small\n")
    (root / "sub" / "large").write_bytes(os.urandom(5 * 1024 * 1024))
    (root / "sub" / "nothing").write_bytes(b"")
    (root / "link").symlink_to("sub/large")
    (root / "dangling").symlink_to("/no/where")
    (root / os.fsdecode(b"not-utf-8-\xff")).write_bytes(b"odd")
    (root / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "sub" / "run").chmod(0o750)
    os.utime(root / "small", ns=(1, 1_600_000_000_123_456_789))
    (root / "sub").chmod(0o705)
    return root


def describe(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("link", str(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            found[name] = ("directory", stat.S_IMODE(status.st_mode))
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = ("file", stat.S_IMODE(status.st_mode), digest)
    return found


def test_put_get_cat(nokv: Nokv, base: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    assert nokv("put", source / "small", f"{base}/a") == (0, "", "")
    assert nokv("cat", f"{base}/a").out == "small\n"
    assert nokv("cat", "--offset", "1", "--length", "3", f"{base}/a", f"{base}/a").out == "malmal"
    assert nokv("put", "-n", source / "small", f"{base}/a").code == 1
    assert nokv("put", source / "small", source / "sub" / "large", base).code == 0
    target = tmp_path / "large"
    assert nokv("get", f"{base}/large", target) == (0, "", "")
    assert target.read_bytes() == (source / "sub" / "large").read_bytes()
    assert nokv("get", f"{base}/small", f"{base}/a", tmp_path).code == 0
    assert (tmp_path / "a").read_bytes() == b"small\n"
    assert nokv("get", f"{base}/a", "-").out == "small\n"
    missing = nokv("get", f"{base}/missing", target)
    assert missing.code == 1
    assert target.stat().st_size == 5 * 1024 * 1024
    refused = nokv("put", source, base)
    assert refused.code == 1
    assert "-r" in refused.err


def test_trees_go_in_and_out(nokv: Nokv, base: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    assert nokv("put", "-r", source, f"{base}/put") == (0, "", "")
    assert nokv("publish", source, f"{base}/published").code == 0
    for name in ("put", "published"):
        target = tmp_path / name
        assert nokv("get", "-r", f"{base}/{name}", target) == (0, "", "")
        assert describe(target) == describe(source)
    assert (tmp_path / "published" / "small").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert nokv("get", f"{base}/put", tmp_path / "x").code == 1


def test_a_tree_again(nokv: Nokv, base: str, tmp_path: Path) -> None:
    """Links are replaced; what is in the way is one complaint with its whole path."""
    source = tree(tmp_path / "source")
    put = ("put", "-r", f"{source}/.", base)
    assert nokv(*put) == (0, "", "")
    (source / "link").unlink()
    (source / "link").symlink_to("elsewhere")
    assert nokv(*put) == (0, "", "")
    (found,) = nokv("stat", "--json", f"{base}/source/link").json()
    assert found["target"] == "elsewhere"
    assert nokv(*put, "-n").code == 1
    for name in ("link", "small"):
        assert nokv("rm", f"{base}/source/{name}").code == 0
        assert nokv("mkdir", f"{base}/source/{name}").code == 0
    (source / "later").write_bytes(b"later")
    done = nokv("put", "-r", tmp_path / "none", f"{source}/.", base)
    assert done.code == 1
    assert f"nokv: {tmp_path}/none: no such file or directory\n" in done.err
    assert f"{base}/source/link: " in done.err
    assert f"{base}/source/small: " in done.err
    assert len(done.err.splitlines()) == 3
    assert nokv("cat", f"{base}/source/later").out == "later"
    assert not [one for one in nokv("ls", f"{base}/source").out.split() if one.startswith(".")]
    done = nokv("put", "-r", source, f"{base}/no/where")
    missing = f"{base}/no: no such file or directory\n"
    assert (done.code, done.err) == (1, f"nokv: {base}/no/where: {missing}")


def test_get_goes_on_past_a_name_in_the_way(nokv: Nokv, base: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    assert nokv("publish", source, f"{base}/t").code == 0
    target = tmp_path / "target"
    (target / "link").mkdir(parents=True)
    (target / "sub").write_bytes(b"in the way")
    done = nokv("get", "-r", f"{base}/none", f"{base}/t", tmp_path / "here")
    assert done.code == 2
    target.rename(tmp_path / "t")
    done = nokv("get", "-r", f"{base}/none", f"{base}/t", tmp_path)
    assert done.code == 1
    assert len(done.err.splitlines()) == 3, done.err
    assert f"nokv: {base}/none: no such file or directory\n" in done.err
    assert f"nokv: {tmp_path}/t/sub: " in done.err
    assert (tmp_path / "t" / "small").read_bytes() == b"small\n"
    assert (tmp_path / "t").stat().st_mode == source.stat().st_mode


def test_publish(nokv: Nokv, base: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    path = f"{base}/deep/published"
    assert nokv("publish", source, path).code == 1
    done = nokv("publish", "-p", "--json", source, path)
    assert done.code == 0
    (found,) = done.json()
    assert found["path"] == path
    assert found["version"] > 0
    files = {one["name"]: one for one in found["files"]}
    assert files["small"]["sha256"] == hashlib.sha256(b"small\n").hexdigest()
    odd = files["not-utf-8-\udcff"]
    assert base64.b64decode(odd["name_b64"]) == b"not-utf-8-\xff"
    again = nokv("publish", source, path)
    assert again.code == 1
    assert "there already" in again.err
    (source / "small").unlink()
    assert nokv("publish", "--replace", source, path).code == 0
    assert nokv("stat", f"{path}/small").code == 1
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "more").write_bytes(b"more")
    assert nokv("publish", "--merge", extra, path).code == 0
    assert nokv("cat", f"{path}/more", f"{path}/sub/run").out == "more#!/bin/sh\n"
    missing = nokv("publish", tmp_path / "none", f"{base}/none")
    assert missing.code == 1
    os.mkfifo(source / "fifo")
    assert nokv("publish", source, f"{base}/special").code == 1
    assert nokv("publish", "--skip-special", source, f"{base}/special").code == 0


def test_listings(nokv: Nokv, base: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    assert nokv("publish", source, f"{base}/t").code == 0
    names = nokv("ls", f"{base}/t").out
    assert names.splitlines()[:2] == ["dangling", "link"]
    assert os.fsencode(names).find(b"not-utf-8-") > 0
    entries = nokv("ls", "--json", f"{base}/t").json()
    odd = next(one for one in entries if "name_b64" in one)
    assert base64.b64decode(odd["name_b64"]) == b"not-utf-8-\xff"
    assert base64.b64decode(odd["path_b64"]).endswith(b"/t/not-utf-8-\xff")
    by_name = {one["name"]: one for one in entries}
    assert by_name["small"]["size"] == 6
    assert by_name["small"]["mtime_ns"] == 1_600_000_000_123_456_789
    assert by_name["sub"]["mode"] == "0705"
    assert "-> sub/large" in nokv("ls", "-l", f"{base}/t").out
    assert nokv("ls", "-d", f"{base}/t").out == f"{base}/t\n"
    (found,) = nokv("stat", "--json", f"{base}/t/link").json()
    assert (found["type"], found["target"]) == ("symlink", "sub/large")
    (found,) = nokv("stat", "--json", "-L", f"{base}/t/link").json()
    assert (found["type"], found["size"]) == ("file", 5 * 1024 * 1024)
    assert "generation" in nokv("stat", f"{base}/t/small").out
    shown = nokv("tree", f"{base}/t").out
    assert "└── sub" in shown
    assert "    ├── empty" in shown
    assert "3 directories, 7 files" in shown or "2 directories, 7 files" in shown
    deep = nokv("tree", "--json", "-L", "1", f"{base}/t").json()
    assert {one["depth"] for one in deep} == {1}
    (usage,) = nokv("du", "--json", f"{base}/t").json()
    assert usage["entries"] == 9
    assert usage["bytes"] >= 5 * 1024 * 1024 + 6 + 3 + 10
    assert nokv("du", f"{base}/t").code == 0
    partly = nokv("ls", f"{base}/none", f"{base}/t/sub")
    assert partly.code == 1
    assert "large" in partly.out
    assert partly.err.startswith(f"nokv: {base}/none")


def test_names(nokv: Nokv, base: str) -> None:
    assert nokv("mkdir", f"{base}/a", f"{base}/b").code == 0
    assert nokv("mkdir", f"{base}/a").code == 1
    assert nokv("mkdir", "-p", f"{base}/a", f"{base}/x/y/z").code == 0
    assert nokv("ln", "-s", "target", f"{base}/link").code == 0
    assert nokv("mkdir", "-m", "0700", f"{base}/a/private").code == 0
    assert nokv("ls", "-l", f"{base}/a").out.startswith("drwx------")
    assert nokv("chmod", "755", f"{base}/a/private").code == 0
    assert nokv("ls", "-l", f"{base}/a").out.startswith("drwxr-xr-x")
    assert nokv("mv", f"{base}/a/private", f"{base}/link", f"{base}/b").code == 0
    assert nokv("ls", f"{base}/b").out == "link\nprivate\n"
    assert nokv("mv", f"{base}/b/link", f"{base}/b/private", f"{base}/none").code == 1
    assert nokv("mv", "-T", f"{base}/b", f"{base}/a").code == 0
    assert nokv("mv", "--exchange", f"{base}/a/link", f"{base}/a/private").code == 0
    assert nokv("ls", "-l", f"{base}/a").out.startswith("drwx")
    refused = nokv("rm", f"{base}/a")
    assert refused.code == 1
    assert "hint: remove a directory with -r" in refused.err
    assert nokv("rm", f"{base}/none").code == 1
    assert nokv("rm", "-f", f"{base}/none").code == 0
    assert nokv("rm", "-r", f"{base}/a", f"{base}/x").code == 0
    assert nokv("ls", base) == (0, "", "")
    assert nokv("rm", "-r", "/").code == 1
    missing = f"{base}/no: no such file or directory\n"
    assert nokv("tree", f"{base}/no").err == f"nokv: {missing}"
    assert nokv("mv", f"{base}/no", f"{base}/y").err == f"nokv: {base}/no to {base}/y: {missing}"
    assert nokv("ln", f"{base}/no", f"{base}/y").err == f"nokv: {base}/no to {base}/y: {missing}"
    assert nokv("ln", "-s", "none", f"{base}/x").code == 0
    assert nokv("ln", "-s", "none", f"{base}/x").err.startswith(f"nokv: {base}/x: file exists\n")


def test_paths_that_are_none(nokv: Nokv, base: str) -> None:
    for path in ("relative", f"{base}/../x", f"{base}//x", f"{base}/{'n' * 256}", "/a\0b"):
        done = nokv("stat", path)
        assert done.code == 1
        assert done.err.startswith("nokv: ")
        assert "hint: " in done.err


def test_standard_streams(nokv_cluster: LocalCluster, base: str) -> None:
    environment = os.environ | {"NOKV_CLUSTER": nokv_cluster.addresses}
    data = os.urandom(6 * 1024 * 1024)
    put = subprocess.run(
        [*PROGRAM, "put", "-", f"{base}/stream"],
        input=data,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (put.returncode, put.stderr) == (0, b"")
    got = subprocess.run(
        [*PROGRAM, "cat", f"{base}/stream"], env=environment, capture_output=True, check=False
    )
    assert (got.returncode, got.stderr) == (0, b"")
    assert got.stdout == data
    with subprocess.Popen(
        [*PROGRAM, "cat", f"{base}/stream"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(100) == data[:100]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_an_interrupted_put_leaves_nothing(
    nokv: Nokv, nokv_cluster: LocalCluster, base: str
) -> None:
    environment = os.environ | {"NOKV_CLUSTER": nokv_cluster.addresses}
    with subprocess.Popen(
        [*PROGRAM, "put", "-", f"{base}/half"],
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # More than a pipe holds: once it is written, the program is in the middle of its reading.
        process.stdin.write(bytes(5 * 1024 * 1024))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, "it must not wait for the end of its input"
        assert process.stderr.read() == b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    assert nokv("ls", base) == (0, "", "")


def test_status_and_doctor(nokv: Nokv, nokv_cluster: LocalCluster) -> None:
    rows = nokv("status").out.splitlines()
    assert len(rows) == 4
    assert sum(" leader " in row for row in rows) == 1
    found = nokv("status", "--json").json()
    assert [one["node"] for one in found] == [1, 2, 3]
    assert len({one["cluster"] for one in found}) == 1
    at = {(one["applied_index"], one["fingerprint"]) for one in found}
    assert len(at) == len({index for index, _ in at})
    assert nokv("status", "--cluster", nokv_cluster.members[0].rpc_address).out.count("\n") == 4
    config = nokv_cluster.folder.node_path(1) / "node.toml"
    done = nokv("doctor", "--json", "--config", config)
    subjects = {one["subject"]: one for one in done.json()}
    assert done.code == 0, done.out
    assert subjects["quorum"]["level"] == "ok"
    assert subjects["node"]["text"] == "it runs"
    assert subjects["clocks"]["level"] == "ok"
    assert any("put, get and delete" in one["text"] for one in subjects.values())
    assert "FAIL" not in nokv("doctor").out


def test_debug_shows_state_and_log(nokv: Nokv, nokv_cluster: LocalCluster, base: str) -> None:
    data_dir = nokv_cluster.folder.node_path(1) / "data"
    log = nokv("debug", "log", "--limit", "5", data_dir).json()
    assert log[0]["header"][0] == 1
    assert [one["type"] for one in log[1:3]] == ["members", "hard_state"]
    found = nokv("debug", "state", "--family", "inode", "--limit", "3", data_dir)
    assert found.code == 0
    assert all(one["family"] == "inode" for one in found.json())
    assert nokv("debug", "state", base).code == 1


def test_a_damaged_object_gives_no_bytes(
    nokv: Nokv, nokv_cluster: LocalCluster, base: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(5 << 20))
    blocks = Path(nokv_cluster.folder.store.bucket) / "blocks"
    before = set(blocks.rglob("*.*"))
    assert nokv("put", source, f"{base}/file").code == 0
    last = max(set(blocks.rglob("*.*")) - before)
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    shown = nokv("cat", "--offset", str((5 << 20) - 10), f"{base}/file")
    assert (shown.code, shown.out) == (1, "")
    assert f"{last.parent.name}/{last.name}" in shown.err
    target = tmp_path / "target"
    target.write_bytes(b"as it was")
    assert nokv("get", f"{base}/file", target).code == 1
    assert target.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    last.unlink()
    assert f"{last.parent.name}/{last.name}" in nokv("cat", f"{base}/file").err
    last.write_bytes(whole)
    assert nokv("get", f"{base}/file", target).code == 0


# ---------------------------------------------------------------- clusters of their own


def test_up_and_down(nokv: Nokv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "local"
    up = ("up", "--dir", folder, "--free-ports", "--nodes", "1")
    done = nokv(*up, "--json")
    assert done.code == 0, done.err
    (found,) = done.json()
    try:
        monkeypatch.setenv("NOKV_CLUSTER", found["cluster"])
        assert nokv("mkdir", "/kept").code == 0
        assert "1 node runs" in nokv(*up).out
        more = nokv("up", "--dir", folder, "--nodes", "5")
        assert (more.code, "has 1 node, not 5" in more.err) == (2, True)
        assert "stopped 1 node in" in nokv("down", "--dir", folder).out
        with pytest.raises(ChildProcessError):  # it was waited for: no zombie is left
            os.waitpid(found["nodes"][0]["pid"], os.WNOHANG)
        assert "no node was running in" in nokv("down", "--dir", folder).out
        assert nokv("ls", "--timeout", "0.3", "/").code == 1
        assert nokv(*up).code == 0
        assert nokv("ls", "/").out == "kept\n"
    finally:
        nokv("down", "--dir", folder, "--remove")
    assert not folder.exists()


def test_two_that_start_one_cluster(nokv: Nokv, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    line = [*PROGRAM, "up", "--json", "--dir", str(folder), "--free-ports", "--nodes", "1"]
    pipe = subprocess.PIPE
    try:
        with (
            subprocess.Popen(line, stdout=pipe, stderr=pipe) as one,
            subprocess.Popen(line, stdout=pipe, stderr=pipe) as other,
        ):
            done = [process.communicate() for process in (one, other)]
        assert [err for _, err in done] == [b"", b""]
        assert done[0][0] == done[1][0]
    finally:
        nokv("down", "--dir", folder, "--remove")
    assert not folder.exists()


def test_a_store_that_cannot_be_used_is_a_warning(nokv: Nokv, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    port = free_ports(1)[0]
    store = ("--store", "s3://bucket", "--endpoint", f"http://127.0.0.1:{port}")
    try:
        done = nokv("up", "--dir", folder, "--free-ports", "--nodes", "1", *store)
        assert done.code == 0
        assert "1 node runs" in done.out
        assert f"warning: s3 store http://127.0.0.1:{port}/bucket can't be used" in done.err
    finally:
        nokv("down", "--dir", folder, "--remove")


def test_a_node_that_is_not_ready_is_shown(nokv: Nokv) -> None:
    """No summary says that all is well while a node is gone."""
    with LocalCluster.start() as cluster:
        gone = cluster.followers()[0]
        cluster.kill(gone)
        address = cluster.folder.member(gone).rpc_address
        status = nokv("status", "--cluster", cluster.addresses)
        assert status.code == 0
        assert f"{address}  unreachable" in status.out
        assert status.out.count("  ready") == 2
        doctor = nokv("doctor", "--json", "--cluster", cluster.addresses)
        found = {one["subject"]: one for one in doctor.json()}
        assert doctor.code == 1
        assert found[f"node at {address}"]["level"] == "failure"
        assert found["lag"]["text"] == "2 of 3 nodes follow"
        assert found["metadata disks"]["text"].startswith("space on 2 of 3 nodes")


PARENT = """
import subprocess, sys, time
cluster = subprocess.Popen(
    [sys.executable, "-m", "nokv.cli", "up", "--ephemeral", "--nodes", "1", "--json"],
    stdout=subprocess.PIPE,
)
print(cluster.stdout.readline().decode(), end="", flush=True)
time.sleep(600)
"""


def test_an_ephemeral_cluster_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        found = json.loads(parent.stdout.readline())
        folder = ClusterFolder(Path(found["directory"]))
        (node,) = found["nodes"]
        assert probe(node["http"], "/readyz")[0] == 200
        assert folder.pid(1) == node["pid"]
        parent.kill()
    end = time.monotonic() + 30
    while Path(found["directory"]).exists():
        assert time.monotonic() < end, "the ephemeral cluster is still there"
        time.sleep(0.05)
    assert probe(node["http"], "/readyz")[0] == 0


def test_nodes_die_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from nokv.testing.cluster import LocalCluster\n"
        "cluster = LocalCluster.start(1, directory=sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    folder = tmp_path / "cluster"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
    ClusterFolder(folder).wait_gone(1)

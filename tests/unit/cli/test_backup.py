"""`nokv backup verify` and `restore`, without a cluster: exit codes, output and refusals."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.unit.backup.test_format import backup, head
from tests.unit.state.shard import VOLUME

from nokv.backup.format import MANIFEST, PART_BYTES, Manifest, encode_head, place, read_head
from nokv.backup.manage import marks_of
from nokv.cli.main import main
from nokv.objects.local import LocalStore
from nokv.objects.volume import claim_volume
from nokv.server.config import load
from nokv.server.datadir import read_identity

__all__ = ["backup"]
FILE = "backup.nokv"


def prepare(store: Path, content: bytes, volume: str = VOLUME.volume) -> None:
    """Make a bucket that holds the backup `b`."""

    async def work() -> None:
        bucket = LocalStore(store)
        await bucket.ensure_bucket()
        await claim_volume(bucket, volume)
        await put(bucket, content)
        await bucket.close()

    asyncio.run(work())


async def put(bucket: LocalStore, content: bytes) -> None:
    own = read_head(io.BytesIO(content))
    assert len(content) < PART_BYTES
    await bucket.put(f"{place(own)}part-00000000", content)
    manifest = Manifest(
        head=own, where="bucket", size_bytes=len(content), digest="", parts=(len(content),)
    )
    await bucket.put(place(own) + MANIFEST, msgspec.json.encode(manifest))


@pytest.fixture
def folder(tmp_path: Path, backup: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a backup as a file and in the bucket `store`, and a node.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOKV_CLUSTER", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
    volume = msgspec.structs.replace(VOLUME, kind="local", bucket=str(tmp_path / "store"))
    own = encode_head(msgspec.structs.replace(head(), volume=volume))
    content = own + backup[len(encode_head(head())) :]
    (tmp_path / FILE).write_bytes(content)
    prepare(tmp_path / "store", content)
    (tmp_path / "new.toml").write_text(
        'data_dir = "data"\n[peer]\nlisten = "127.0.0.1:7201"\n[rpc]\nlisten = "127.0.0.1:7101"\n'
    )
    return tmp_path


def verify(source: str, *more: str) -> int:
    return main(["backup", "verify", source, *more])


def restore(source: str, *more: str, store: str = "local:store") -> int:
    named = ["--store", store, "--config", "new.toml"]
    return main(["backup", "restore", source, *named, "--silence", "1s", *more])


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[-9:]
    elif how == "flipped":
        data[len(data) // 2] ^= 4
    else:
        data[:] = b"#!/bin/sh\n"
    path.write_bytes(data)


@pytest.mark.parametrize("source", [f"file:{FILE}", "b"])
def test_a_whole_one_is_verified(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    del folder
    assert verify(source, "--store", "local:store") == 0
    assert capsys.readouterr().out == "b is whole: version 5, 302 records\n"


@pytest.mark.parametrize("where", ["file", "bucket"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "another"])
def test_a_damaged_one_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], how: str, where: str
) -> None:
    part = folder / "store" / place(head()) / "part-00000000"
    if where == "bucket" and not part.exists():
        (part,) = (folder / "store").rglob("*part-00000000*")
    damage(folder / FILE if where == "file" else part, how)
    source = f"file:{FILE}" if where == "file" else "b"
    for code in (partial(verify, source, "--store", "local:store"), partial(restore, source)):
        assert code() == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        where_it_is = rf"{source}, before byte \d+: |backups/.*/part-00000000 has \d+ bytes"
        assert re.match(f"nokv: ({where_it_is})", printed.err)
        assert "Traceback" not in printed.err
    assert not (folder / "data").exists()


def test_one_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("file:absent", "absent"):
        assert verify(source, "--store", "local:store") == 1
        assert restore(source) == 1
        assert capsys.readouterr().err.count("absent") == 2
    assert verify("b") == 2
    assert "--store s3://bucket/prefix, or file:PATH" in capsys.readouterr().err
    assert main(["backup", "restore", "b", "--config", "new.toml"]) == 2
    assert "--store s3://bucket/prefix, or file:PATH" in capsys.readouterr().err
    assert verify("absent", "--store", "local:store") == 1
    assert "complete there: b\n" in capsys.readouterr().err
    assert main(["backup", "restore", f"file:{FILE}"]) == 2, "no --config"
    assert not (folder / "data").exists()


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("source", [f"file:{FILE}", "b"])
def test_a_restore(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str, *, as_json: bool
) -> None:
    more = ["--json"] if as_json else []
    assert restore(source, "--join-file", "join.json", *more) == 0
    out = capsys.readouterr().out
    identity = read_identity(Path(load(folder / "new.toml", {}, {}).data_dir))
    name = identity.cluster.cluster
    if as_json:
        told = json.loads(out)
        assert told == {"cluster": name, "version": 5, "files": 0, "missing": []}
    else:
        assert out.startswith(f"cluster {name} has version 5")
        assert "nokv volume adopt" in out
    assert json.loads((folder / "join.json").read_bytes())["cluster"] == name
    assert asyncio.run(marks_of(LocalStore(folder / "store"), place(head()))) == [name]
    assert restore(source) == 2
    assert "initialised already" in capsys.readouterr().err


def test_a_foreign_bucket_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "store")
    prepare(folder / "store", (folder / FILE).read_bytes(), "f" * 32)
    assert restore(f"file:{FILE}") == 1
    assert "belongs to volume ffff" in capsys.readouterr().err
    assert not (folder / "data" / "node.json").exists()


@pytest.mark.parametrize("source", [f"file:{FILE}", "b"])
def test_a_copy_of_the_bucket_gives_the_backup_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    """The new cluster uses the volume's own bucket, so that is compared with it and marked."""
    shutil.copytree(folder / "store", folder / "copy")
    assert restore(source, "--json", store="local:copy") == 0
    printed = capsys.readouterr()
    name = json.loads(printed.out)["cluster"]
    assert f"the new cluster uses the local store {folder / 'store'}\n" in printed.err
    assert asyncio.run(marks_of(LocalStore(folder / "store"), place(head()))) == [name]
    assert asyncio.run(marks_of(LocalStore(folder / "copy"), place(head()))) == []
    identity = read_identity(Path(load(folder / "new.toml", {}, {}).data_dir))
    assert identity.cluster.volume.bucket == str(folder / "store")


def test_the_volumes_own_bucket_must_hold_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "store", folder / "copy")
    for path in list((folder / "store").rglob("manifest.json*")):
        path.unlink()
    assert restore("b", store="local:copy") == 1
    assert "no complete backup is at" in capsys.readouterr().err
    assert not (folder / "data" / "node.json").exists()


def test_one_that_nobody_keeps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in list((folder / "store").rglob("manifest.json*")):
        path.unlink()
    assert restore(f"file:{FILE}") == 1
    assert "no complete backup" in capsys.readouterr().err
    assert restore("b") == 1
    assert restore(f"file:{FILE}", "--unheld") == 0


def test_one_that_cannot_be_read_is_in_nobodys_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is asked for is read."""
    bucket = LocalStore(folder / "store")
    where = f"backups/{VOLUME.volume}/other/c1-{7:016x}/"
    asyncio.run(bucket.put(where + MANIFEST, b"{}"))
    assert verify("b", "--store", "local:store") == 0
    assert verify("other", "--store", "local:store") == 1
    assert f"{where}{MANIFEST}" in capsys.readouterr().err
    assert verify("absent", "--store", "local:store") == 1
    assert "complete there: b, other\n" in capsys.readouterr().err
    assert restore("b") == 0


def test_a_name_that_two_clusters_gave(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / FILE).read_bytes()
    own = read_head(io.BytesIO(whole))
    later = msgspec.structs.replace(own, cluster="c2", created_ns=own.created_ns + 1)
    body = whole[len(encode_head(own)) :]
    asyncio.run(put(LocalStore(folder / "store"), encode_head(later) + body))
    for code in (partial(verify, "b", "--store", "local:store"), partial(restore, "b")):
        assert code() == 2
        assert "say which: b/c1, b/c2\n" in capsys.readouterr().err
    assert verify("b/c3", "--store", "local:store") == 1
    assert restore("b/c1") == 0
    marks = [
        asyncio.run(marks_of(LocalStore(folder / "store"), place(one))) for one in (own, later)
    ]
    assert [len(one) for one in marks] == [1, 0]


def test_a_right_is_needed_where_a_cluster_is_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del folder
    for command in (
        ["backup", "create"],
        ["backup", "delete", "b"],
        ["volume", "adopt"],
        ["volume", "reclaim"],
    ):
        assert main([*command, "--cluster", "127.0.0.1:1"]) == 2
        assert "token" in capsys.readouterr().err
        assert main([*command, "--cluster", "127.0.0.1:1", "--config", "new.toml"]) == 2
        assert "not an initialised data directory" in capsys.readouterr().err
    assert main(["backup", "create", "--retention", "1 month"]) == 2

"""The examples of the documents run as they are written, in their order."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.conftest import Nokv

import nokv
from nokv.testing.cluster import LocalCluster, probe

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("quiet")]

ROOT = Path(__file__).parents[2]

ADDRESSES = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"
"""Of the cluster that `nokv up` starts; here it has free ports."""

FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local files that the examples name, in the working directory."""
    (tmp_path / "run-7").mkdir()
    (tmp_path / "run-7" / "meta.json").write_bytes(b"{}")
    (tmp_path / "run-7" / "model-00001.safetensors").write_bytes(bytes(100_000))
    (tmp_path / "model.safetensors").write_bytes(bytes(100_000))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _removed(nokv_cluster: LocalCluster) -> Iterator[None]:
    """Other tests find nothing of the examples."""
    yield
    with nokv.connect_sync(nokv_cluster.addresses) as fs:
        for snapshot in fs.snapshots.list():
            if snapshot.path.startswith((b"/runs/", b"/sdk/")):
                fs.snapshots.delete(snapshot.name)
        for path in ("/models/run-7", "/models/run-8", "/runs", "/agents", "/sdk"):
            fs.remove_tree(path, missing_ok=True)


def shell(text: str) -> Iterator[str]:
    """Each command of a document's indented blocks."""
    plain = FENCED.sub("", text)
    for line in re.findall(r"^    (\S.*)$", plain, re.MULTILINE):
        yield from line.partition(" # ")[0].split(" && ")


def test_the_readme(nokv: Nokv, nokv_cluster: LocalCluster) -> None:
    """From `nokv up` to the trash, and then the same in Python."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Use it\n")[2].partition("\n## ")[0]
    first, second, *rest = [shlex.split(command) for command in shell(section)]
    assert first == ["nokv", "up"]
    assert second == ["export", f"NOKV_CLUSTER={ADDRESSES}"]
    for program, *arguments in rest:
        assert program == "nokv"
        done = nokv(*arguments)
        assert (done.code, done.err) == (0, ""), arguments
    assert len(rest) > 10
    asyncio.run(run_python(section, nokv_cluster))


def test_the_reference_of_the_sdk(nokv_cluster: LocalCluster) -> None:
    asyncio.run(run_python((ROOT / "docs" / "sdk.md").read_text(), nokv_cluster))


def test_the_metrics_that_operators_are_told_to_watch(nokv_cluster: LocalCluster) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"`(nokv_[a-z_]*[a-z]|_[a-z_]+)(?:\{\w+\})?`", text))
    told -= {"nokv_cluster", "nokv_tls_expires_seconds"}  # a fixture; shown with TLS alone
    shown: set[str] = set()
    for member in nokv_cluster.members:
        status, page = probe(member.http_address, "/metrics")
        assert status == 200
        shown |= set(re.findall(r"^# TYPE (\w+)", page.decode(), re.MULTILINE))
    missing = {
        name
        for name in told
        if name not in shown and not (name[0] == "_" and any(one.endswith(name) for one in shown))
    }
    assert len(told) > 30
    assert not missing


async def run_python(text: str, cluster: LocalCluster) -> None:
    blocks = FENCED.findall(text)
    assert blocks
    async with nokv.connect(cluster.addresses) as fs:
        for block in blocks:
            told = block.replace(ADDRESSES, cluster.addresses)
            code = compile(told, block, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            running = eval(code, {"fs": fs, "nokv": nokv})
            if running is not None:
                await running

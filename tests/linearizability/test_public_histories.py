"""The checker against public histories of real systems, whose verdicts are others'.

The files are not part of the project. `NOKV_HISTORIES` names a folder that holds them:
`etcd/*.log` and `etcd/VERDICTS`, `kv/*.txt` (both github.com/anishathalye/porcupine, test_data),
`knossos/good` and `knossos/bad` (github.com/jepsen-io/knossos, data/cas-register).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nokv_model.checkers import ABSENT, Verdict, by_key, check, register, text
from nokv_model.history import Line, Operation, operations

FOLDER = Path(os.environ.get("NOKV_HISTORIES", "/nonexistent"))
needs_histories = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="NOKV_HISTORIES names no folder with the public histories"
)

KINDS = {":invoke": "invoke", ":ok": "ok", ":fail": "fail", ":info": "unknown"}
MAP = re.compile(r"\{([^}]*)\}")
FIELD = re.compile(r":(process|type|f|key|value) (\[[^\]]*\]|\"[^\"]*\"|[^\s,}]+)")


def _value(token: str) -> Any:
    token = token.strip()
    if token == "nil":
        return None
    if token.startswith("["):
        return tuple(_value(part) for part in token[1:-1].split())
    return token.strip('"') if token.startswith('"') else int(token)


def _argument(function: str, value: Any) -> tuple[Any, ...]:
    if function == ":cas":
        return ("cas", *value)
    return ("read",) if function == ":read" else (function[1:], value)


def _etcd(path: Path) -> Iterator[Line]:
    """Lines of a jepsen log; a compare that missed is a result, a lost read is dropped."""
    functions: dict[int, str] = {}
    for at, line in enumerate(path.read_text().splitlines()):
        fields = line.partition(" - ")[2].split("\t")
        if len(fields) < 4:
            continue
        process, kind, function, token = int(fields[0]), fields[1], fields[2], fields[3]
        if kind == ":invoke":
            functions[process] = function
            yield Line(process, "invoke", at, _argument(function, _value(token)))
        elif function == ":cas" and kind in {":ok", ":fail"}:
            yield Line(process, "ok", at, kind == ":ok")
        elif function == ":read":
            found = _value(token) if kind == ":ok" else None
            kept = kind == ":ok"
            yield Line(process, "ok" if kept else "fail", at, ABSENT if found is None else found)
        else:
            yield Line(process, KINDS[kind], at, None)


def _edn(path: Path) -> Iterator[tuple[str, Line]]:
    """(key, line) of an EDN history."""
    for at, match in enumerate(MAP.finditer(path.read_text())):
        fields = dict(FIELD.findall(match[1]))
        if fields["process"] == ":nemesis":
            continue
        process, kind, function = int(fields["process"]), fields["type"], fields["f"]
        key, value = fields.get("key", ""), _value(fields["value"])
        if kind == ":invoke":
            argument = ("get",) if function == ":get" else _argument(function, value)
            yield key, Line(process, "invoke", at, argument)
        else:
            yield key, Line(process, KINDS[kind], at, True if function == ":cas" else value)


def _verdicts() -> dict[str, Verdict]:
    path = FOLDER / "etcd" / "VERDICTS"
    lines = path.read_text().splitlines() if path.exists() else []
    words = {"linearizable": Verdict.LINEARIZABLE, "not-linearizable": Verdict.NOT_LINEARIZABLE}
    return {name: words[word] for name, word in (line.split() for line in lines)}


@needs_histories
def test_etcd() -> None:
    wrong = {
        name: verdict
        for name, verdict in _verdicts().items()
        if check([list(operations(_etcd(FOLDER / "etcd" / name)))], ABSENT, register) != verdict
    }
    assert not wrong
    assert len(_verdicts()) > 50


@needs_histories
@pytest.mark.parametrize("folder", ["good", "bad"])
def test_knossos(folder: str) -> None:
    """Here a nil read is always legal: it observed nothing."""
    want = Verdict.LINEARIZABLE if folder == "good" else Verdict.NOT_LINEARIZABLE
    files = sorted((FOLDER / "knossos" / folder).glob("*.edn"))
    assert files
    for path in files:
        found = [o for o in operations(line for _, line in _edn(path)) if _observed(o)]
        assert check([found], 0, register) == want, path.name


def _observed(operation: Operation) -> bool:
    read = operation.argument == ("read",)
    return not read or (operation.known and operation.result is not None)


@needs_histories
@pytest.mark.parametrize("name", ["c01-ok", "c01-bad", "c10-ok", "c10-bad", "c50-ok", "c50-bad"])
def test_kv(name: str) -> None:
    """Ten strings: a part for each key, checked in turns."""
    path = FOLDER / "kv" / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"the folder has no {path.name}")
    lines = list(_edn(path))
    keys = sorted({key for key, _ in lines})
    parts = [list(operations(line for k, line in lines if k == key)) for key in keys]
    want = Verdict.LINEARIZABLE if name.endswith("ok") else Verdict.NOT_LINEARIZABLE
    assert check(parts, "", text) == want


def test_parts_are_split_by_key() -> None:
    history = [Operation(n, n, n + 1, ("get",), str(n % 2)) for n in range(4)]
    assert [len(part) for part in by_key(history, lambda o: o.result)] == [2, 2]

"""The deterministic parts depend on their arguments and on nothing else.

Ruff refuses the same imports in these folders (`pure.ruff.toml`); this test also holds when a
folder forgets to extend that file, and it knows the builtins that differ between two processes.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.frame import source

PURE_FOLDERS = [
    "nokv/nokv/types",
    "nokv/nokv/wire",
    "nokv/nokv/state",
    "model/nokv_model",
    "replication/nokv_replication",
]
# What joins a pure part to the world, each behind a port, is excused in its folder's `ruff.toml`.
ADAPTERS = {
    f"{folder}/{name}"
    for folder in PURE_FOLDERS
    for name in tomllib.loads((source.ROOT / folder / "ruff.toml").read_text())
    .get("lint", {})
    .get("extend-per-file-ignores", {})
}
BUILTINS = {
    "hash": "it is seeded anew in every process: use xxhash, or a key of the value",
    "id": "it is an address in memory",
    "open": "files belong to the ports",
    "input": "there is nobody to ask",
    "print": "return what there is to say",
    "eval": "decode with msgspec",
    "exec": "decode with msgspec",
    "globals": "state is an argument",
}
RULES = tomllib.loads((source.ROOT / "pure.ruff.toml").read_text())
BANNED = {
    name: rule["msg"] for name, rule in RULES["lint"]["flake8-tidy-imports"]["banned-api"].items()
}


def pure_files() -> list[Path]:
    return [
        name
        for name in source.python_files()
        if any(name.is_relative_to(folder) for folder in PURE_FOLDERS) and str(name) not in ADAPTERS
    ] + [Path("nokv/nokv/errors.py")]


def banned(dotted: str) -> str | None:
    """The banned name that `dotted` is, or lies in."""
    parts = dotted.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((prefix for prefix in prefixes if prefix in BANNED), None)


def impurities(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, why) of everything in a module whose result may differ between two processes."""
    for name, line in source.imports(tree, lazily=True):
        if (found := banned(name)) is not None:
            yield line, f"{found}: {BANNED[found]}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "random" and (found := banned(f"random.{node.attr}")) is not None:
                yield node.lineno, f"{found}: {BANNED[found]}"
        elif isinstance(node, ast.Global):
            yield node.lineno, "global: state is an argument"
        elif isinstance(node, ast.Call):
            yield from _impure_call(node)
        elif isinstance(node, ast.For | ast.comprehension) and _is_set(node.iter):
            yield node.iter.lineno, "a set has no order of its own: iterate over sorted(...)"


def _impure_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(call.func)
    if name in BUILTINS:
        yield call.lineno, f"{name}(): {BUILTINS[name]}"
    if name in ("Random", "random.Random") and not call.args:
        yield call.lineno, "Random() seeds itself: pass a seed, or take the Random as an argument"
    if name in ("list", "tuple", "enumerate", "iter") and any(map(_is_set, call.args)):
        yield call.lineno, "a set has no order of its own: use sorted(...)"


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp)


def test_the_pure_parts_are_pure() -> None:
    wrong = [
        f"{name}:{line}: {why}"
        for name in pure_files()
        for line, why in impurities(source.tree(name))
    ]
    assert not wrong, "\n".join(wrong)


def test_ruff_knows_it_too() -> None:
    for folder in PURE_FOLDERS:
        path = source.ROOT / folder / "ruff.toml"
        extended = tomllib.loads(path.read_text())["extend"]
        assert (path.parent / extended).resolve() == source.ROOT / "pure.ruff.toml"


def test_what_is_excused_exists_and_is_named() -> None:
    assert {str(name) for name in source.python_files()} >= ADAPTERS, "no patterns, no old names"


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from time import monotonic_ns",
        "import os.path",
        "from os import urandom",
        "from datetime import UTC",
        "import concurrent.futures",
        "def f():\n    import asyncio",
        "from random import shuffle",
        "import random\nx = random.random()",
        "from random import Random\nx = Random()",
        "x = hash('a')",
        "x = [y for y in {1, 2}]",
        "for y in set(z): pass",
        "x = list(frozenset(z))",
        "def f():\n    global x",
        "print(1)",
    ],
)
def test_it_finds(text: str) -> None:
    assert list(impurities(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "from random import Random\ndef f(r: Random) -> float: return r.random()",
        "from random import Random\nx = Random(7)",
        "import errno, stat, struct",
        "for y in sorted(set(z)): pass",
        "x = y.hash()",
        "import timeit_of_ours",
    ],
)
def test_it_leaves_alone(text: str) -> None:
    assert not list(impurities(ast.parse(text)))

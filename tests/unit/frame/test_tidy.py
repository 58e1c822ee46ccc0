"""The shape of the tree: sizes, documents, the lock, and words that do not belong in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.frame import source

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
EXEMPTION = "# long: "

COMPONENTS = [
    *(f"nokv/nokv/{name}" for name in ("wire", "state", "kv", "objects", "server", "client")),
    *(f"nokv/nokv/{name}" for name in ("types", "backup", "testing", "agent", "cli")),
    "replication/nokv_replication",
    "fuse/nokv_fuse",
    "model/nokv_model",
]


def long_functions(text: str) -> Iterator[tuple[int, str, int]]:
    """(line, name, lines) of functions over the limit; the docstring does not count."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            length -= docstring.end_lineno - docstring.lineno + 1
        header = lines[node.lineno - 1 : node.body[0].lineno - 1]
        if length > FUNCTION_LINES_MAX and not any(EXEMPTION in line for line in header):
            yield node.lineno, node.name, length


def read(name: Path) -> str:
    return (source.ROOT / name).read_text(encoding="utf-8")


def test_modules_are_short() -> None:
    counts = {name: len(read(name).splitlines()) for name in source.python_files()}
    long = {
        str(name): count
        for name, count in counts.items()
        if count > MODULE_LINES_MAX and EXEMPTION not in "\n".join(read(name).splitlines()[:20])
    }
    assert not long, f"split these, over {MODULE_LINES_MAX} lines: {long}"


def test_functions_are_short() -> None:
    long = [
        f"{name}:{line}: {function} has {count} lines"
        for name in source.python_files()
        for line, function, count in long_functions(read(name))
    ]
    assert not long, f"over {FUNCTION_LINES_MAX} lines:\n" + "\n".join(long)


def test_how_functions_are_counted() -> None:
    body = "    x = 1\n" * FUNCTION_LINES_MAX
    docstring = '    """One.\n\n    Two.\n    """\n'
    assert [n for _, n, _ in long_functions(f"def f():\n{body}")] == ["f"]
    assert not list(long_functions(f"def f():\n{docstring}{body[10:]}"))
    assert not list(long_functions(f"def f():  # long: one table\n{body}"))
    inner = "    x = 1\n" + body.replace("    ", "        ")
    assert [n for _, n, _ in long_functions(f"class C:\n    async def g():\n    {inner}")] == ["g"]


def test_no_work_is_left_for_later() -> None:
    # One letter of each is a class of its own, so that this file passes its own test.
    words = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")
    wrong = [str(name) for name in source.python_files() if words.search(read(name))]
    assert not wrong


def test_the_lock_pins_hashes_and_no_addresses() -> None:
    locks = [name for name in source.files() if name.suffix == ".lock"]
    assert locks
    for name in locks:
        text = read(name)
        assert "://" not in text
        assert "index-url" not in text
        assert "find-links" not in text
        # One requirement a block: it starts in the first column and ends with its hashes.
        blocks = re.split(r"\n(?=[a-z0-9])", text)
        pinned = [block for block in blocks if re.match(r"[a-z0-9._-]+==[^ ]+ ", block)]
        assert len(pinned) == len(blocks)
        assert all("--hash=sha256:" in block for block in pinned)


def test_the_license_is_whole() -> None:
    text = read(Path("LICENSE"))
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_readme_names_the_two_commands() -> None:
    text = read(Path("README.md"))
    assert "make demo" in text
    assert "make test" in text


def test_the_ci_decides_by_make_test_alone() -> None:
    lines = read(Path(".ci/run")).splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["export CI=true", "exec make test </dev/null"]
    assert (source.ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_its_design(component: str) -> None:
    modules = [
        name
        for name in source.python_files()
        if name.is_relative_to(component) and name.name != "__init__.py"
    ]
    if not modules:
        pytest.skip(f"{component} holds nothing yet")
    design = Path(component) / "DESIGN.md"
    assert (source.ROOT / design).is_file(), f"{design} is missing"
    assert read(design).startswith("# ")


def test_every_make_target_is_described_and_phony() -> None:
    text = read(Path("Makefile"))
    phony = set(re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE))
    described = set(re.findall(r"^## make (\S+) ", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert phony == targets
    assert targets == described | {"help"}


def test_no_path_of_somebodys_machine() -> None:
    words = re.compile(r"/wor[k]/|/roo[t]/")
    wrong = [
        str(name)
        for name in source.files()
        if words.search((source.ROOT / name).read_bytes().decode(errors="replace"))
    ]
    assert not wrong


def test_no_large_or_unknown_binary_file() -> None:
    for name in source.files():
        data = (source.ROOT / name).read_bytes()
        assert len(data) <= 512 * 1024, f"{name} has {len(data)} bytes"
        assert not data.startswith((b"\x7fELF", b"\x89PNG", b"PK\x03\x04")), f"{name} is binary"

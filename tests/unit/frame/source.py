"""The project's own source, parsed once, for the tests that judge it."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]

PACKAGES = {
    "nokv": ROOT / "nokv" / "nokv",
    "nokv_replication": ROOT / "replication" / "nokv_replication",
    "nokv_fuse": ROOT / "fuse" / "nokv_fuse",
    "nokv_model": ROOT / "model" / "nokv_model",
}


@cache
def files() -> tuple[Path, ...]:
    """Every file of the project that a commit would hold, relative to the root."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = {Path(name.decode()) for name in listed.split(b"\0") if name}
    else:  # an unpacked archive
        hidden = {".venv", "__pycache__"}
        names = {p.relative_to(ROOT) for p in ROOT.rglob("*") if not hidden & set(p.parts)}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def python_files() -> tuple[Path, ...]:
    return tuple(name for name in files() if name.suffix == ".py")


@cache
def tree(name: Path) -> ast.Module:
    return ast.parse((ROOT / name).read_bytes(), filename=str(name))


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module in the import packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for name in python_files():
            path = ROOT / name
            if path.is_relative_to(folder):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                found[".".join(parts).removesuffix(".__init__")] = name
    return found


def imports(node: ast.AST, *, lazily: bool) -> Iterator[tuple[str, int]]:
    """Every dotted name imported below `node`, with its line.

    `from a.b import c` yields `a.b.c`: whether c is a module is for the caller. Without `lazily`,
    imports inside functions and under `if TYPE_CHECKING` are left out.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import in line {child.lineno}"
            assert child.module is not None
            yield from ((f"{child.module}.{alias.name}", child.lineno) for alias in child.names)
        elif lazily or not _runs_later(child):
            yield from imports(child, lazily=lazily)


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")

"""Imports point one way, and a client never needs the server's packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.unit.frame import source

# component -> the components of this project that it may import, beside itself.
VOCABULARY = {"nokv.types", "nokv.errors"}
ARROWS: dict[str, set[str]] = {
    "nokv._guard": set(),
    "nokv.types": set(),
    "nokv.errors": {"nokv.types"},
    "nokv.wire": VOCABULARY,
    # The log holds encoded commands, so the state machine decodes; the encoding is pure too.
    "nokv.state": VOCABULARY | {"nokv.wire"},
    "nokv.kv": VOCABULARY | {"nokv.state"},
    "nokv.objects": VOCABULARY,
    "nokv.client": VOCABULARY | {"nokv.wire", "nokv.objects"},
    # The package itself: the names of the client, for `nokv.connect`.
    "nokv": VOCABULARY | {"nokv.client"},
    "nokv.agent": VOCABULARY | {"nokv", "nokv.client"},
    "nokv_fuse": VOCABULARY | {"nokv", "nokv.client"},
    # Made and managed from outside the nodes; the image format is the store's.
    "nokv.backup": VOCABULARY
    | {"nokv.wire", "nokv.state", "nokv.kv", "nokv.objects", "nokv.client"},
    "nokv_replication": set(),
    "nokv_model": VOCABULARY,
    # The worker process of a node talks RPC like any client, through the client's connection.
    "nokv.server": VOCABULARY
    | {"nokv._guard", "nokv.wire", "nokv.state", "nokv.kv", "nokv.objects", "nokv.client"}
    | {"nokv_replication", "nokv.backup"},
}
# These start programs and tie parts together. The command line does so inside functions only.
TIES = {"nokv.cli", "nokv.testing"}
EAGER_IN_CLI = {"nokv.cli", "nokv._guard", "nokv.errors", "nokv.types"}

SERVER_PACKAGES = {
    "lmdb": {"nokv.kv"},
    "pysyncobj": {"nokv_replication"},
    "crc32c": {"nokv_replication", "nokv.backup", "nokv.kv", "nokv.server"},
    "cryptography": {"nokv.server"},
    "uvloop": {"nokv.server", "nokv.testing"},
}
CLIENT_COMPONENTS = [
    name
    for name in ("nokv.types", "nokv.errors", "nokv.wire", "nokv.objects", "nokv.client")
    if name in ARROWS
] + ["nokv", "nokv.agent"]


def component(dotted: str) -> str | None:
    """`nokv.state.keys.INODE` -> `nokv.state`; None for what is not of this project."""
    head, *rest = dotted.split(".")
    if head not in source.PACKAGES:
        return None
    candidate = f"{head}.{rest[0]}" if rest else head
    return candidate if candidate in {*ARROWS, *TIES} else head


def project_imports(*, lazily: bool = True) -> Iterator[tuple[str, str, str]]:
    """(component, imported name, place) of every import in the import packages."""
    for module, name in source.modules().items():
        home = component(module)
        assert home is not None
        for imported, line in source.imports(source.tree(name), lazily=lazily):
            yield home, imported, f"{name}:{line}"


def test_the_table_names_every_component() -> None:
    for module in source.modules():
        home = component(module)
        assert home in {*ARROWS, *TIES}
        # A new folder of `nokv` has to be given its arrows, not fall under the package's own.
        assert home != "nokv" or module == "nokv", f"{module} has no row in the table"


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(ARROWS):
        ready = [n for n in ARROWS if n not in order and ARROWS[n] <= {n, *order}]
        assert ready, f"a cycle among {set(ARROWS) - set(order)}"
        order += ready


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for home, imported, place in project_imports():
        target = component(imported)
        if target is None or target == home or home in TIES:
            continue
        if target not in ARROWS[home]:
            wrong.append(f"{place}: {home} must not import {target} ({imported})")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_imports_lazily() -> None:
    wrong = []
    for home, imported, place in project_imports(lazily=False):
        target = component(imported)
        if home == "nokv.cli" and target is not None and target not in EAGER_IN_CLI:
            wrong.append(f"{place}: import {target} inside the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_server_packages_stay_in_the_server() -> None:
    wrong = []
    for home, imported, place in project_imports():
        allowed = SERVER_PACKAGES.get(imported.split(".")[0])
        if allowed is not None and home not in allowed:
            wrong.append(f"{place}: {home} must not import {imported}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "lazily", "expected"),
    [
        ("import a.b, c", True, ["a.b", "c"]),
        ("from a import b", True, ["a.b"]),
        ("def f():\n    import a", True, ["a"]),
        ("def f():\n    import a", False, []),
        ("class C:\n    import a", False, ["a"]),
        ("if TYPE_CHECKING:\n    import a", False, []),
        ("try:\n    import a\nexcept ImportError:\n    import b", False, ["a", "b"]),
    ],
)
def test_the_reader_of_imports(text: str, *, lazily: bool, expected: list[str]) -> None:
    assert [name for name, _ in source.imports(ast.parse(text), lazily=lazily)] == expected


def test_relative_imports_are_refused() -> None:
    with pytest.raises(AssertionError, match="relative"):
        list(source.imports(ast.parse("from . import a"), lazily=True))


BLOCKED_IMPORTS = """
import importlib, sys

blocked = {blocked!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{{name}} belongs to the server")

sys.meta_path.insert(0, Blocker())
for module in {modules!r}:
    importlib.import_module(module)
found = sorted(blocked & {{name.split(".")[0] for name in sys.modules}})
assert not found, found
print("imported")
"""


def test_a_client_imports_without_the_servers_packages() -> None:
    """Every module of the client's side, with the server's packages not installed, as it were."""
    client_side = sorted(m for m in source.modules() if component(m) in CLIENT_COMPONENTS)
    assert {"nokv", "nokv.client"} <= set(client_side)
    blocked = {*SERVER_PACKAGES, "pyfuse3", "nokv_replication"}
    program = BLOCKED_IMPORTS.format(blocked=blocked, modules=client_side)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "imported\n", done.stderr

"""The documents name what there is: methods, errors, settings, commands, modules."""

from __future__ import annotations

import argparse
import errno
import functools
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.frame import source

import nokv
from nokv import errors
from nokv.cli import main
from nokv.client import AsyncClient, ClientConfig, Entry, PinnedView, SnapshotView, Watch, diff
from nokv.client.files import AsyncReader, AsyncTextReader, AsyncTextWriter, AsyncWriter
from nokv.client.locks import AsyncLock
from nokv.client.publish import Published
from nokv.client.sync import Client
from nokv.client.trash import TrashCan
from nokv.client.upload import FileInfo
from nokv.client.views import Snapshots, Workspaces
from nokv.client.watch import Change
from nokv.server import config
from nokv.types import copies, reads, results, trash, values, views

SDK = "docs/sdk.md"

OBJECTS: dict[str, tuple[type[Any], ...]] = {
    "": (AsyncClient,),
    "snapshots": (Snapshots,),
    "workspaces": (Workspaces,),
    "trash": (TrashCan,),
    "reader": (AsyncReader,),
    "writer": (AsyncWriter,),
    "text": (AsyncTextReader, AsyncTextWriter),
    "changes": (Watch,),
    "lock": (AsyncLock,),
}
"""What a name before the dot stands for in the reference of the SDK."""

INSTANCE_ATTRIBUTES = {
    "reader": {"name", "body"},
    "writer": {"name", "info"},
    "text": {"buffer"},
    "changes": {"cursor", "behind", "oldest"},
}
"""Set by the constructors, so that the classes do not show them."""

INTERNAL = {("changes", "arrived")}
"""Called by the parts of a client."""

VALUES: list[type[Any]] = [
    *(values.Attr, Entry, FileInfo, Published, results.MadeMany, reads.DirPage, reads.UsageReply),
    *(reads.StatFsReply, views.SnapshotMade, views.SnapshotReply, views.ViewMade, views.ViewReply),
    *(diff.Difference, diff.Generation, Change, trash.Trashed, trash.TrashRow, copies.QuotaReply),
]


def read(name: str) -> str:
    return (source.ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A document without its blocks of code, its lines joined."""
    return re.sub(r"\s+", " ", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def public(cls: type[Any]) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


# ---------------------------------------------------------------- the SDK


def told_calls() -> Iterator[tuple[str, str, str]]:
    """(object, method, parameters) of each call that the reference names."""
    text = prose(read(SDK))
    for match in re.finditer(r"`(?:(\w+)\.)?(\w+)\(([^`]*)\)`", text):
        yield match[1] or "", match[2], match[3]


def signature(parameters: str) -> list[tuple[str, Any, Any]]:
    """(name, kind, default) of parameters as they are written."""
    scope: dict[str, Any] = {}
    exec(f"def told({parameters}): pass", scope)
    return shape(inspect.signature(scope["told"]))


def shape(found: inspect.Signature) -> list[tuple[str, Any, Any]]:
    return [
        (one.name, one.kind, one.default) for one in found.parameters.values() if one.name != "self"
    ]


def test_the_sdk_reference_has_every_method_and_no_other() -> None:
    text = prose(read(SDK))
    told = {(where, name) for where, name, _ in told_calls()}
    told |= {(m[1] or "", m[2]) for m in re.finditer(r"`(?:(\w+)\.)?(\w+)`", text)}
    missing = {
        (where, name)
        for where, classes in OBJECTS.items()
        for cls in classes
        for name in public(cls) | INSTANCE_ATTRIBUTES.get(where, set())
        if (where, name) not in told and (where or name not in OBJECTS)
    }
    missing -= INTERNAL
    assert not missing, f"{SDK} does not tell of {sorted(missing)}"
    assert public(SnapshotView) - public(AsyncClient) == {"info", "name"}
    assert public(PinnedView) - public(AsyncClient) == {"version"}
    # Asynchronous or not, a client has the same names.
    assert public(AsyncClient) - {"core"} == public(Client)


def test_the_sdk_reference_says_the_signatures() -> None:
    wrong = []
    for where, name, parameters in told_calls():
        if where == "nokv":
            wanted = [shape(inspect.signature(getattr(nokv, name)))]
        elif not where and name in ("info", "is_dir", "is_file", "is_symlink") and not parameters:
            continue  # of a snapshot's handle, of an entry
        elif not where and name == "open":
            wanted = [shape(inspect.signature(cls.open)) for cls in (AsyncClient, Client)]
        else:
            assert where in OBJECTS, f"{SDK}: what is {where}.{name}?"
            found = [getattr(cls, name) for cls in OBJECTS[where] if hasattr(cls, name)]
            assert found, f"{SDK}: there is no {where}.{name}"
            wanted = [shape(inspect.signature(one)) for one in found]
        if signature(parameters) not in wanted:
            wrong.append(f"{where}.{name}({parameters})")
    assert not wrong


def test_the_sdk_reference_has_the_fields_of_every_value() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (`.*) \|$", read(SDK), re.MULTILINE))
    assert set(rows) == {cls.__name__ for cls in VALUES}
    for cls in VALUES:
        told = set(re.findall(r"`(\w+)(?:\(\))?`", rows[cls.__name__]))
        inherited = public(tuple) if issubclass(cls, tuple) else set()
        assert told == public(cls) - inherited, cls.__name__
    config_fields = set(ClientConfig.__slots__)
    assert config_fields <= set(re.findall(r"`(\w+)`", prose(read(SDK))))


def test_the_sdk_reference_has_every_error() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (E\w+) \| ", read(SDK), re.MULTILINE)
    classes = [cls for code, cls in sorted(errors.BY_CODE.items()) if cls is not errors.NokvError]
    assert [name for name, _ in rows] == [cls.__name__ for cls in classes]
    assert [getattr(errno, code) for _, code in rows] == [cls.errno_value for cls in classes]
    words = set(
        re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", prose(read(SDK).split("## Errors")[0]))
    )
    values_told = {cls.__name__ for cls in VALUES}
    known = {cls.__name__ for cls in classes} | values_told | {"NokvError", "OSError", "ValueError"}
    named = set(nokv.__all__) | {"PurePosixPath", "Absent", "GenerationIs", "VersionIs"}
    assert words <= known | named


# ---------------------------------------------------------------- settings


def settings(table: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """The names of all settings, as `rpc.listen`."""
    for field in msgspec.structs.fields(table):
        kind = field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from settings(kind, f"{prefix}{field.encode_name}.")
        else:
            yield prefix + field.encode_name


SETTINGS = sorted(settings(config.NodeConfig))


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_documented(setting: str) -> None:
    assert re.search(rf"^\| `{re.escape(setting)}` \|", read("docs/operations.md"), re.MULTILINE)
    section, _, name = setting.rpartition(".")
    if setting == "members":
        section, name = "members.2", "peer"
    _, *tables = re.split(r"^(?:# )?\[([\w.]+)\]$", "[]\n" + example(), flags=re.MULTILINE)
    found = dict(zip(tables[::2], tables[1::2], strict=True)).get(section, example())
    assert re.search(rf"^(?:# )?{name} = ", found, re.MULTILINE), setting


def example() -> str:
    return read("deploy/node.toml")


def test_no_setting_is_documented_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", read("docs/operations.md"), re.MULTILINE)
    assert set(rows) <= set(SETTINGS)
    assert len(rows) == len(set(rows))


def test_the_example_with_every_setting_switched_on_is_accepted(tmp_path: Path) -> None:
    """What is commented out is a setting that exists, with its default."""
    text = re.sub(r"^# (\[[\w.]+\]|\w+ = .*)$", r"\1", example(), flags=re.MULTILINE)
    whole = tmp_path / "node.toml"
    whole.write_text(text)
    for name in ("ca.crt", "node.crt", "node.key"):
        (tmp_path / name).touch()
    plain = config.load(source.ROOT / "deploy" / "node.toml", environ={})
    loaded = config.load(whole, environ={})
    assert msgspec.structs.replace(loaded, tls=plain.tls, members={}) == plain


# ---------------------------------------------------------------- commands


def commands(name: str) -> Iterator[str]:
    """Each command of `nokv` that a document shows, in a block or in a line."""
    text = re.sub(r"^```.*?^```", "", read(name), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\\n *", "", text)
    for line in re.findall(r"^    ((?:.* && )?nokv .*)$", text, re.MULTILINE):
        yield from re.split(r" && |; ", re.split(r" # | {2,}", line)[0])
    spans = re.findall(r"`([^`]+)`", re.sub(r"\n *", " ", text))
    yield from (span for span in spans if re.match("nokv [a-z-]", span))


def actions(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    known = actions(main._parser(command))
    assert command in known, f"nokv has no {command!r}"
    return known[command]


def parsers_of(words: list[str]) -> list[argparse.ArgumentParser]:
    """The parsers of a command line: `member list | add` has two."""
    command, *rest = words
    parser = parser_of(command)
    below = actions(parser)
    if not below or not rest:
        return [parser]
    found = []
    while rest:
        assert rest[0] in below, f"nokv {command} has no {rest[0]!r}"
        found.append(below[rest[0]])
        rest = rest[rest.index("|") + 1 :] if "|" in rest else []
    return found


@pytest.mark.parametrize("document", ["README.md", "docs/operations.md", "docs/testing.md"])
def test_every_command_and_option_exists(document: str) -> None:
    seen = 0
    for shown in commands(document):
        words = shlex.split(shown)[1:]
        words = [word.strip("[]") for word in words]
        if not words:
            continue
        while words[0] in ("--cluster", "--timeout"):
            words = words[2:]
        if words[0].startswith("-"):
            continue
        known = {name for one in parsers_of(words) for name in one._option_string_actions}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known, f"{document}: {shown}"
        seen += 1
    assert seen or document == "docs/testing.md"


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for page in PAGES:
        shown = [*spans(read(page)), *re.findall(r"^    .*$", read(page), re.MULTILINE)]
        named = {one for text in shown for one in re.findall(r"\bmake ([a-z-]+)", text)}
        assert named <= targets, page


# ---------------------------------------------------------------- modules and pages

PAGES = [str(name) for name in source.files() if name.suffix == ".md"]
DESIGNS = [name for name in PAGES if name.endswith("/DESIGN.md")]


def spans(text: str) -> list[str]:
    """What a page shows as code, in its lines."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_exist(page: str) -> None:
    text = read(page)
    files = [f"/{name}" for name in source.files()]
    named = {name for span in spans(text) for name in re.findall(r"[\w./*-]+\.(?:py|md)\b", span)}
    plain = {name for name in named if "*" not in name}
    missing = {name for name in plain if not any(one.endswith(f"/{name}") for one in files)}
    assert not missing, f"{page} names {sorted(missing)}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (source.ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"
    modules = source.modules()
    for dotted in re.findall(r"`((?:nokv|nokv_replication|nokv_model)(?:\.\w+)+)`", text):
        assert exists(dotted, modules), f"{page} names {dotted}"


def exists(dotted: str, modules: dict[str, Path]) -> bool:
    """Whether a dotted name is a module, or something that one has."""
    if dotted in modules:
        return True
    head, _, name = dotted.rpartition(".")
    return bool(head) and exists(head, modules) and name in words_of(modules.get(head))


def words_of(module: Path | None) -> set[str]:
    return set(re.findall(r"\w+", read(str(module)))) if module is not None else set()


@pytest.mark.parametrize("design", DESIGNS)
def test_a_design_names_every_module_of_its_folder(design: str) -> None:
    text = read(design)
    folder = Path(design).parent
    modules = {
        name.name
        for name in source.python_files()
        if name.parent == folder and not name.name.startswith("__")
    }
    shown = [*spans(text), *re.findall(r"^    .*$", text, re.MULTILINE)]
    words = {word for one in shown for word in re.findall(r"\w+", one)}
    wild = {one for span in spans(text) for one in re.findall(r"\w+\*\.py", span)}
    patterns = [re.compile(one.replace("*", r"\w*")) for one in wild]
    missing = {
        name
        for name in modules
        if name.removesuffix(".py") not in words and not any(one.match(name) for one in patterns)
    }
    assert not missing, f"{design} does not say what {sorted(missing)} are for"

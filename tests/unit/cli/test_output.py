"""Names, sizes and tables; stores and modes as they are written on the command line."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv.cli import output
from nokv.cli.client import basename, join
from nokv.cli.debug import decode, plain, unfolded
from nokv.cli.local import _stopped, default_folder, parse_store
from nokv.cli.main import complain, one_line
from nokv.cli.names import octal
from nokv.cli.status import table
from nokv.errors import ConfigError, NokvError, NotFound, ResultTooLarge, UsageError
from nokv.state.naming import told as text_of
from nokv.testing.folder import Store
from nokv.types.values import Attr

NAMES = st.binary(min_size=1, max_size=64).filter(lambda name: b"/" not in name)


@given(NAMES)
def test_json_gives_every_name_back(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    line = json.dumps(output.named("name", text))
    assert line.isascii()
    found = json.loads(line)
    assert found["name"].encode("utf-8", "surrogateescape") == name
    if "name_b64" in found:
        assert base64.b64decode(found["name_b64"]) == name
    else:
        assert found["name"].encode() == name


def test_the_name_beside_is_there_only_where_it_is_needed() -> None:
    assert output.named("name", "größe") == {"name": "größe"}
    assert output.named("path", "/a\udcff")["path_b64"] == base64.b64encode(b"/a\xff").decode()


@given(st.binary(max_size=64))
def test_an_error_stays_on_its_line(data: bytes) -> None:
    shown = one_line(data.decode("utf-8", "surrogateescape"))
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    ("error", "about", "told"),
    [
        (NotFound("/a: no such file or directory"), "/a", "/a: no such file or directory"),
        (NotFound(text_of(b"/a\n\xff") + ": gone"), "/a\n\udcff", "/a\\n\\xff: gone"),
        (NotFound("no snapshot 's'"), "/a\n", "/a\\n: no snapshot 's'"),
        (ResultTooLarge("5 views below /a; the limit is 4"), "/a",
         "5 views below /a; the limit is 4"),
    ],
)  # fmt: skip
def test_complaints_name_what_they_are_about_once(
    error: NokvError, about: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    complain(error, about=about)
    assert capsys.readouterr().err.splitlines()[0] == f"nokv: {told}"


def test_a_name_is_one_line_by_itself_only_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    odd, told = "a\x1b[2J\n\udcff\u202e", "a\\x1b[2J\\n\\xff\\u202e"
    assert (output.shown(odd), output.bare(odd)) == (told, odd)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert (output.shown(odd), output.bare(odd)) == (told, told)
    assert output.shown("plain") == "plain"


def test_what_stopping_a_cluster_says() -> None:
    path = Path("/c")
    assert _stopped(3, 3, path) == "stopped 3 nodes in /c"
    assert _stopped(2, 3, path) == "stopped 2 nodes in /c; 1 was not running"
    assert _stopped(1, 3, path) == "stopped 1 node in /c; 2 were not running"
    assert _stopped(0, 3, path) == "no node was running in /c"


def test_attributes() -> None:
    attr = Attr(0, 7, 0o100640, 1, 2, 3, 4, 5, 6, 7, 8, 9, sha256=b"\xab" * 32)
    fields = output.attr_fields(attr)
    assert (fields["type"], fields["mode"], fields["sha256"]) == ("file", "0640", "ab" * 32)
    assert json.loads(json.dumps(fields)) == fields
    assert output.long_line(attr, "name").startswith("-rw-r-----   3")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 62, "4096.0 PiB"),
    ],
)
def test_sizes(n_bytes: int, text: str) -> None:
    assert output.size(n_bytes) == text


def test_plural() -> None:
    assert output.plural(1, "file") == "1 file"
    assert output.plural(0, "directory", "directories") == "0 directories"


def test_progress_is_quiet_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("put", 10) as done:
        done(10)
    assert capsys.readouterr() == ("", "")


def test_tables() -> None:
    assert table(("a", "bb", "c", "d"), [("1", "2", "3", "4")]) == "a  bb  c  d\n1  2   3  4"


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("", Store()),
        ("local:/a/b", Store("local", "/a/b")),
        ("s3://bucket", Store("s3", "bucket", "http://e", "", "r")),
        ("s3://bucket/a/b/", Store("s3", "bucket", "http://e", "a/b/", "r")),
    ],
)
def test_stores(text: str, store: Store) -> None:
    endpoint = ("http://e", "r") if text.startswith("s3") else ("", "")
    assert parse_store(text, *endpoint) == store


@pytest.mark.parametrize("text", ["x", "s3:", "s3:///a", "http://a/b", "/a"])
def test_wrong_stores(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_store(text)
    assert "s3://bucket/prefix" in caught.value.hint


def test_modes_and_paths() -> None:
    assert octal("0755") == 0o755
    for text in ("8", "-1", "10000", "rwx"):
        with pytest.raises(ValueError, match=r".*"):
            octal(text)
    assert join("/", "a") == "/a"
    assert join("/a/", "b") == "/a/b"
    assert [basename(path) for path in ("/", "/a", "/a/b/")] == ["", "a", "b"]


def test_the_local_cluster_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_folder() == Path("/data/nokv/local")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_folder() == Path.home() / ".local/share/nokv/local"


# ---------------------------------------------------------------- debug


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    try:
        value = decode(data)
    except UsageError:
        return
    json.dumps(plain(value))
    json.dumps(plain(unfolded(value)))


def test_values_are_shown() -> None:
    assert plain([b"name", b"\xff\x00", {1: (2, None)}]) == ["b'name'", "0xff00", {"1": [2, None]}]
    assert str(plain(os.urandom(200))).endswith(" ... 200 bytes")
    assert unfolded([1, 2, 3, [b"\x93\x01\x02\x03"], 0]) == [1, 2, 3, [[1, 2, 3]], 0]

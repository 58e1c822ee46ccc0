"""Paths as people write them, and the components that addresses carry.

A path is absolute and names are bytes. Text is encoded as the operating system's file names are:
UTF-8 with surrogateescape (PEP 383), so that every name has a text form and none is lost.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from nokv.errors import InvalidArgument, NameTooLong
from nokv.types.limits import NAME_BYTES_MAX, PATH_BYTES_MAX
from nokv.types.values import At

AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
"""What every call takes as a path in the namespace."""

Components: TypeAlias = tuple[bytes, ...]


def encode_name(name: str | bytes) -> bytes:
    """Return the bytes of a name or path.

    Raises:
        InvalidArgument: text that stands for no bytes (a lone surrogate), or no text at all.
    """
    if isinstance(name, bytes):
        return name
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        message = f"{name[:80]!r} stands for no file name"
        raise InvalidArgument(message, hint="pass the name as bytes") from None
    except AttributeError:
        message = f"a {type(name).__name__} is no name"
        raise InvalidArgument(message, hint="pass it as text or bytes") from None


def decode_name(name: bytes) -> str:
    """Return the text of a name; `encode_name` gives the bytes back."""
    return name.decode("utf-8", "surrogateescape")


def components(path: AnyPath) -> Components:
    """Return the names on the way from the root to `path`; the root has none.

    A slash at the end asks for a directory, as in path_resolution(7): it becomes a last `.`.

    Raises:
        InvalidArgument: a path that is relative, or has `..`, a NUL or an empty component.
        NameTooLong: a name over NAME_BYTES_MAX or a path over PATH_BYTES_MAX.
    """
    raw = encode_name(path if isinstance(path, str | bytes) else os.fspath(path))
    if raw == b"/":
        return ()
    plain = raw[:1] == b"/" and len(raw) <= NAME_BYTES_MAX and raw[-1:] != b"/"
    if plain and b"//" not in raw and b"/.." not in raw and b"\0" not in raw:
        return tuple(raw[1:].split(b"/"))
    return _components_checked(raw)


def _components_checked(raw: bytes) -> Components:
    """Return the components of a path that is not plainly right, or raise what is wrong."""
    if raw[:1] != b"/":
        message = f"{_shown(raw)} is not an absolute path"
        raise InvalidArgument(message, hint="paths start with '/'")
    if len(raw) - 1 > PATH_BYTES_MAX:
        message = f"a path of {len(raw) - 1} bytes; the limit is {PATH_BYTES_MAX}"
        raise NameTooLong(message, hint="shorten it, or move the tree up")
    parts = raw[1:].split(b"/")
    if not parts[-1]:
        parts[-1] = b"."
    for part in parts:
        if not part or len(part) > NAME_BYTES_MAX or part == b".." or b"\0" in part:
            raise _refused(raw, part)
    return tuple(parts)


def split(path: AnyPath) -> tuple[Components, bytes]:
    """Return the parent's components and the name that `path` ends with.

    Raises:
        InvalidArgument: also for a path that ends in no name: the root, or `.`.
        NameTooLong: as `components`.
    """
    parts = components(path)
    if len(parts) > 1 and parts[-1] == b".":
        parts = parts[:-1]
    if not parts or parts[-1] == b".":
        message = (
            f"{_shown(encode_name(os.fspath(path)))} has no name that could be made or removed"
        )
        raise InvalidArgument(message, hint="give a path below the root")
    return parts[:-1], parts[-1]


def relative(path: str | bytes) -> Components:
    """Return the components of a path below a directory: no leading slash, never empty.

    Raises:
        InvalidArgument, NameTooLong: as `split`.
    """
    raw = encode_name(path)
    if raw[:1] == b"/":
        message = f"{_shown(raw)} is not relative"
        raise InvalidArgument(message, hint="give names below the published directory")
    parent, name = split(b"/" + raw)
    if b"." in parent:
        message = f"{_shown(raw)} has a component '.'"
        raise InvalidArgument(message)
    return (*parent, name)


def at(path: AnyPath, *, follow: bool = True) -> At:
    """Return the address of `path` from the root of the live tree."""
    return At(0, 1, components(path), follow)


def join(parts: Components) -> bytes:
    """Return the absolute path of `parts`."""
    return b"/" + b"/".join(parts)


def _refused(raw: bytes, part: bytes) -> InvalidArgument | NameTooLong:
    shown = _shown(raw)
    if not part:
        return InvalidArgument(
            f"{shown} has an empty component", hint="write one '/' between names"
        )
    if part == b"..":
        return InvalidArgument(
            f"{shown} has a component '..'", hint="resolve it first: posixpath.normpath"
        )
    if b"\0" in part:
        return InvalidArgument(f"{shown} has a NUL byte", hint="no file name can hold one")
    return NameTooLong(
        f"a name of {len(part)} bytes; the limit is {NAME_BYTES_MAX}", hint="shorten the name"
    )


def _shown(raw: bytes) -> str:
    text = repr(decode_name(raw[:120]))
    return text if len(raw) <= 120 else f"{text}..."

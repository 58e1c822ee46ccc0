"""Entries that an operator has every node pass over: the way past one that no build can apply.

A poisoned entry stops each node before it is applied, so no node is past it. The operator names it
on every stopped node; the node keeps its index, term and checksum in a file beside the log, written
by rename. Applying it later means applying an entry without payloads, at the times of the one
before, so that a build that can't read it and one that can leave the same state. From then on the
list is part of the machine's position (`Applied.skips`), and so of its images.

Nodes with different lists would apply different entries: they refuse each other's handshakes. A
node that has not joined yet takes the list of the first peer that greets it.
"""

import struct

import crc32c
import msgspec

from nokv_replication.bootstrap import FORMAT
from nokv_replication.errors import Fatal, SkipRefused, StartRefused
from nokv_replication.frames import SKIPS_MAX, EntryKind, decode_entry
from nokv_replication.log import Log
from nokv_replication.ports import Disk
from nokv_replication.segments import disk_errors
from nokv_replication.types import Applied, Skip

FILE = "skips"
_NEW = "skips.new"
_CHECKSUM = struct.Struct("<I")


class SkipFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Content of the file, behind its CRC-32C (little-endian): `skips` in order of index."""

    format: int
    cluster: str
    skips: tuple[Skip, ...]


def load(disk: Disk, cluster: str) -> tuple[Skip, ...]:
    """Return the entries that the file beside the log names; none where there is no file.

    Raises:
        StartRefused: the file is damaged, of another cluster or of another format.
        DiskFailed: an operation of the disk failed.
    """
    with disk_errors():
        if FILE not in disk.listdir():
            return ()
        handle = disk.open(FILE)
        try:
            data = disk.pread(handle, disk.size_bytes(handle), 0)
        finally:
            disk.close(handle)
    body = data[_CHECKSUM.size :]
    try:
        if data[: _CHECKSUM.size] != _CHECKSUM.pack(crc32c.crc32c(body)):
            message = "its checksum is wrong"
            raise msgspec.DecodeError(message)
        found = msgspec.msgpack.decode(body, type=SkipFile)
        if (found.format, found.cluster) != (FORMAT, cluster):
            message = f"format {found.format} of cluster {found.cluster!r}"
            raise msgspec.DecodeError(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = (
            f"the file {FILE!r} beside the log can't be used ({error}): remove it, and name its"
            " entries again as the other nodes list them (nokv raft-log skips)"
        )
        raise StartRefused(message) from error
    return found.skips


def store(disk: Disk, cluster: str, skips: tuple[Skip, ...]) -> None:
    """Replace the file; the old or the new list is found after a crash at any point.

    Raises:
        DiskFailed: an operation of the disk failed.
    """
    assert len(skips) <= SKIPS_MAX
    assert [skip.index for skip in skips] == sorted({skip.index for skip in skips})
    body = msgspec.msgpack.encode(SkipFile(FORMAT, cluster, skips))
    with disk_errors():
        if _NEW in disk.listdir():
            disk.unlink(_NEW)
        handle = disk.create(_NEW)
        try:
            disk.pwrite(handle, _CHECKSUM.pack(crc32c.crc32c(body)) + body, 0)
            disk.fdatasync(handle)
        finally:
            disk.close(handle)
        disk.rename(_NEW, FILE)
        disk.fsync_dir()


def merged(*lists: tuple[Skip, ...]) -> tuple[Skip, ...]:
    """Return all entries of the lists, in order of index."""
    return tuple(sorted({skip for one in lists for skip in one}, key=lambda skip: skip.index))


def named(skips: tuple[Skip, ...]) -> str:
    """Return the entries as an operator names them."""
    return ", ".join(f"{s.index} (term {s.term}, crc {s.crc:08x})" for s in skips) or "none"


class Skips:
    """The entries that one replica skips: those it has applied, and those that wait."""

    def __init__(self, disk: Disk, cluster: str) -> None:
        """Read the file beside the log; see `load` for errors."""
        self._disk = disk
        self._cluster = cluster
        self.all = load(disk, cluster)
        """In order of index; at most `SKIPS_MAX`."""
        self._unkept = False

    def opened(self, applied: Applied) -> None:
        """Note where the machine stands, at start and after an image took the place of the state.

        Raises:
            StartRefused: the machine has applied an entry that is to be skipped.
        """
        for skip in self.all:
            if skip.index <= applied.index and skip not in applied.skips:
                message = (
                    f"entry {skip.index} is to be skipped, but this node's state holds it: its"
                    f" file {FILE!r} is of another node. Remove that file, or put the right state"
                    " beside it"
                )
                raise StartRefused(message)
        self.all = merged(applied.skips, self.all)

    def at(self, index: int) -> Skip | None:
        """Return the entry of the list at that index."""
        for skip in self.all:
            if skip.index == index:
                return skip
        return None

    def check(self, skip: Skip, term: int, command: bytes) -> None:
        """Make sure that the committed entry is the one that the operator meant.

        Raises:
            Fatal: it is another.
        """
        crc = crc32c.crc32c(command)
        if (skip.term, skip.crc) != (term, crc):
            message = (
                f"entry {skip.index} is to be skipped as one of term {skip.term}, crc"
                f" {skip.crc:08x}, but the one committed is of term {term}, crc {crc:08x}: run"
                f" `nokv raft-log skip {skip.index} --remove` on every node that has it"
            )
            raise Fatal(message)

    def adopt(self, theirs: tuple[Skip, ...]) -> None:
        """Take the group's list, as a node that has not joined it yet; `keep` makes it durable."""
        assert not self.all
        self.all = theirs
        self._unkept = True

    def keep(self) -> None:
        """Make an adopted list durable, before anything of the group is stored or applied.

        Raises:
            DiskFailed: it could not be stored.
        """
        if self._unkept:
            store(self._disk, self._cluster, self.all)
            self._unkept = False

    def refusal(self, peer: int, theirs: tuple[Skip, ...]) -> str:
        """Return why a peer with that list is refused, or "" if it is not."""
        if theirs == self.all:
            return ""
        return (
            f"this node skips entries {named(self.all)}; node {peer} skips {named(theirs)}: all"
            " must skip the same (nokv raft-log skip, docs/operations.md: A poisoned entry)"
        )


def choose(
    log: Log, applied: Applied, pending: tuple[Skip, ...], index: int, given: Skip | None
) -> Skip:
    """Return what is to be stored so that a stopped node skips the entry at `index`.

    `pending` is the node's file. `given` is what another node stored for that index: needed where
    this node's log ends before it, compared where it does not.

    Raises:
        SkipRefused: the node is past it, lacks it, has it as another, or skips too many.
        LogDamaged, DiskFailed: the entry can't be read.
    """
    known = next((s for s in merged(applied.skips, pending) if s.index == index), None)
    if known is not None:
        if given not in (None, known):
            message = f"this node skips entry {index} already, as another: {named((known,))}"
            raise SkipRefused(message)
        return known
    if applied.index >= index:
        message = (
            f"this node's state holds entry {index} already (it stands at {applied.index}): it"
            " can't be undone by skipping it"
        )
        raise SkipRefused(message)
    if len(merged(applied.skips, pending)) >= SKIPS_MAX:
        message = f"{SKIPS_MAX} entries are skipped already; a group can't skip more"
        raise SkipRefused(message)
    if not log.base_index < index <= log.last_index:
        if given is not None and index > log.last_index:
            return given
        held = f"{log.first_index} to {log.last_index}" if log.last_index else "none"
        message = (
            f"entry {index} is not in this node's log, which holds {held}; a node that lags behind"
            f" it takes what another node printed: --entry TERM:CRC"
        )
        raise SkipRefused(message)
    command = log.entry(index)
    found = Skip(index, log.term_at(index), crc32c.crc32c(command))
    if given not in (None, found):
        message = f"this node holds another entry there: {named((found,))}"
        raise SkipRefused(message)
    _check_kind(command, index)
    return found


def without(applied: Applied, pending: tuple[Skip, ...], index: int) -> tuple[Skip, ...]:
    """Return what is to be stored so that the entry at `index` is not skipped.

    Raises:
        SkipRefused: it is not on the list, or the node has passed over it already.
    """
    if applied.index >= index:
        message = f"this node stands at entry {applied.index} already"
        raise SkipRefused(message)
    if all(skip.index != index for skip in pending):
        message = f"this node does not skip entry {index}"
        raise SkipRefused(message)
    return tuple(skip for skip in pending if skip.index != index)


def _check_kind(command: bytes, index: int) -> None:
    try:
        kind = decode_entry(command, index).kind
    except Fatal:
        return  # nobody knows what it holds: that is why it is to be skipped
    if kind != EntryKind.COMMANDS:
        message = f"entry {index} is replication's own ({kind.name.lower()}): it holds no command"
        raise SkipRefused(message)

"""The one error tree: each class has its errno, a stable code on the wire and a hint.

An error crosses the wire as `[code, message, hint]` and comes back as the same class, so a caller
catches `nokv.errors.NotEmpty` whether it was raised in its own process or in a state machine three
machines away. Codes are part of the protocol: append only, never reused.

`refused` says that the error was given before the command reached the log, so it settles a command
only if every attempt of it was so refused.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class NokvError(OSError):
    """Base of everything that NoKV raises on purpose.

    It is an `OSError`, so that code written against files (`except FileNotFoundError`) works:
    the classes for ENOENT, EEXIST, EACCES ... also derive from the builtin that Python has for it.
    """

    code: ClassVar[int] = 1
    errno_value: ClassVar[int] = errno.EIO
    default_hint: ClassVar[str] = ""
    refused: ClassVar[bool] = False
    """Given before the log: the command certainly had no effect through this attempt."""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.message = message or type(self).__name__
        self.hint = hint or self.default_hint
        super().__init__(self.errno_value, self.message)

    def __str__(self) -> str:
        """Return the message, with what to do about it."""
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by class, message and hint (errors cross process pools in people's programs)."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[NokvError], message: str, hint: str) -> NokvError:
    return cls(message, hint=hint)


# ---------------------------------------------------------------- the namespace (POSIX)


class NotFound(NokvError, FileNotFoundError):
    """No such file or directory."""

    code, errno_value = 10, errno.ENOENT


class AlreadyExists(NokvError, FileExistsError):
    """The name is taken."""

    code, errno_value = 11, errno.EEXIST
    default_hint = "choose another name, or replace it explicitly"


class NotADirectory(NokvError, NotADirectoryError):
    """A component that must be a directory is none."""

    code, errno_value = 12, errno.ENOTDIR


class IsADirectory(NokvError, IsADirectoryError):
    """A directory where a file is needed."""

    code, errno_value = 13, errno.EISDIR


class NotEmpty(NokvError):
    """The directory has entries."""

    code, errno_value = 14, errno.ENOTEMPTY
    default_hint = "remove its entries first, or remove it recursively"


class PermissionDenied(NokvError, PermissionError):
    """The mode bits do not allow this to the caller (EACCES)."""

    code, errno_value = 15, errno.EACCES


class NotPermitted(NokvError, PermissionError):
    """Only the owner or root may do this (EPERM)."""

    code, errno_value = 16, errno.EPERM


class TooManyLinks(NokvError):
    """More symbolic links on the way than the limit (ELOOP)."""

    code, errno_value = 17, errno.ELOOP


class NameTooLong(NokvError):
    """A name of more than 255 bytes, or a path over its limit."""

    code, errno_value = 18, errno.ENAMETOOLONG


class InvalidArgument(NokvError):
    """An argument that no state of the namespace makes valid."""

    code, errno_value = 19, errno.EINVAL


class CrossesView(NokvError):
    """The two ends lie in different views (EXDEV)."""

    code, errno_value = 20, errno.EXDEV
    default_hint = "copy it and remove the original"


class CrossesShard(CrossesView):
    """The two ends lie in different shards (EXDEV)."""

    code = 21


class LinkLimit(NokvError):
    """The file has as many names as it may have (EMLINK)."""

    code, errno_value = 22, errno.EMLINK


class NoAttribute(NokvError):
    """No extended attribute of that name."""

    code, errno_value = 23, errno.ENODATA


class FileTooLarge(NokvError):
    """A size or offset beyond what a file may have (EFBIG)."""

    code, errno_value = 24, errno.EFBIG


class Stale(NokvError):
    """The inode is gone, or lies in a tree that was removed or is not the caller's (ESTALE)."""

    code, errno_value = 25, errno.ESTALE
    default_hint = "look the path up again"


class BodyGone(Stale):
    """The body that was being read was replaced and collected."""

    code = 26


class Immutable(NotPermitted):
    """An inode flag forbids the change (EPERM)."""

    code = 27
    default_hint = "clear the immutable or append-only flag first"


class NotSupported(NokvError):
    """An operation that this kind of inode does not have."""

    code, errno_value = 28, errno.EOPNOTSUPP


class QuotaExceeded(NokvError):
    """A directory's quota would be exceeded (EDQUOT)."""

    code, errno_value = 29, errno.EDQUOT


class ResultTooLarge(NokvError):
    """A buffer or a list would pass its limit (E2BIG)."""

    code, errno_value = 30, errno.E2BIG
    default_hint = "split the request"


class ReadOnly(NokvError):
    """A change through a handle that shows a snapshot or a pinned version (EROFS)."""

    code, errno_value = 33, errno.EROFS
    default_hint = "a snapshot never changes: clone it, and write to the clone"


class LockHeld(NokvError, BlockingIOError):
    """Somebody else's lock, or an earlier request for one, stands in the way (EAGAIN)."""

    code, errno_value = 37, errno.EAGAIN
    default_hint = "wait for it, or try again later"


class LockDeadlock(NokvError):
    """To wait for this lock would close a circle of owners that wait for each other (EDEADLK)."""

    code, errno_value = 38, errno.EDEADLK
    default_hint = "let go of the other locks first"


class LockLimit(NokvError):
    """Too many locks, or too many requests that wait, of an inode or of a session (ENOLCK)."""

    code, errno_value = 39, errno.ENOLCK


class CopyTooLarge(NokvError):
    """More than one copy takes (EFBIG)."""

    code, errno_value = 35, errno.EFBIG
    default_hint = "copy it in ranges"


# ---------------------------------------------------------------- commands, sessions, versions


class PredicateFailed(NokvError):
    """A predicate of the command does not hold; nothing was changed."""

    code, errno_value = 40, errno.EAGAIN
    default_hint = "read the present state and decide again"


class GenerationMismatch(PredicateFailed):
    """The file's generation is not the expected one."""

    code = 41


class SessionExpired(NokvError):
    """The session is over; a command that it had not had applied never will be."""

    code, errno_value = 42, errno.ESTALE
    default_hint = "open a new session"


class SequenceReused(NokvError):
    """A sequence number that the client had acknowledged already; nothing was executed."""

    code, errno_value = 43, errno.EINVAL


class WindowFull(NokvError):
    """More unacknowledged results than the session may keep."""

    code, errno_value = 44, errno.EAGAIN
    refused = True
    default_hint = "acknowledge results before sending more commands"


class OutcomeUnknown(NokvError):
    """The command may or may not have been applied, and nothing is left that could tell."""

    code, errno_value = 45, errno.EIO
    default_hint = "read the namespace to see"


class UploadRefused(NokvError):
    """A publish names an upload that is not leased, abandoned, or already published."""

    code, errno_value = 46, errno.EINVAL
    default_hint = "upload again under a new number"


class VersionNotPinned(NokvError):
    """A read at a version that no pin or lease holds."""

    code, errno_value = 47, errno.ESTALE
    default_hint = "pin first, or read the present"


class SnapshotGone(VersionNotPinned):
    """There is no such snapshot, or not any more: it was deleted, or its lease ended."""

    code = 34
    default_hint = "see what there is: nokv snapshot list"


class CursorTooOld(NokvError):
    """Events before this cursor were trimmed, or, for a watch, lie behind a rollback."""

    code, errno_value = 48, errno.ESTALE
    default_hint = "list again and go on from the version of the listing"

    oldest = 0
    """The oldest cursor that works; 0 where nobody said."""


class Internal(NokvError):
    """A defect: the command's changes were dropped."""

    code, errno_value = 49, errno.EIO
    default_hint = "report it with the node's log"


class UnknownSession(SessionExpired):
    """No session or tombstone of that number is known."""

    code = 50


# ---------------------------------------------------------------- cluster and wire


class NotLeader(NokvError):
    """The node does not lead; `leader` in the reply says who does, if known."""

    code, errno_value = 60, errno.EAGAIN
    refused = True


class Unavailable(NokvError):
    """No node could be reached, or no quorum answered, within the deadline."""

    code, errno_value = 61, errno.EHOSTUNREACH
    default_hint = "check that a majority of the nodes runs: nokv status"


class DeadlineExceeded(NokvError, TimeoutError):
    """The deadline passed; whether the command took effect may be unknown."""

    code, errno_value = 62, errno.ETIMEDOUT


class Overloaded(NokvError):
    """A bounded queue is full."""

    code, errno_value = 63, errno.EAGAIN
    refused = True
    default_hint = "send fewer requests at a time"


class BadRequest(NokvError):
    """Bytes that are no valid message, or a field that the format does not know."""

    code, errno_value = 64, errno.EPROTO
    refused = True


class TooLarge(NokvError):
    """A frame, command or batch over its limit."""

    code, errno_value = 65, errno.EMSGSIZE
    refused = True
    default_hint = "split the request"


class NoSpace(NokvError):
    """This node, or too many of its peers, have too little free disk for growing commands."""

    code, errno_value = 66, errno.ENOSPC
    refused = True
    default_hint = "free disk space on the metadata nodes"


class WrongCluster(NokvError):
    """The server belongs to another cluster or volume, or speaks another protocol version."""

    code, errno_value = 67, errno.ECONNREFUSED
    refused = True


class WrongShard(NokvError):
    """The request names a shard that this process does not serve."""

    code, errno_value = 68, errno.EREMOTE
    refused = True


class NotReady(NokvError):
    """The node is starting, or has not caught up enough to answer."""

    code, errno_value = 69, errno.EAGAIN
    refused = True
    default_hint = "try again, or ask another node"


class Forbidden(NokvError, PermissionError):
    """An internal command from a connection that is not a worker's."""

    code, errno_value = 70, errno.EPERM
    refused = True


class ChangeRefused(NokvError):
    """A change of members, or of the leader, that can't be made, or not now; none was."""

    code, errno_value = 71, errno.EBUSY
    refused = True
    default_hint = "look at the members: nokv member list"


# ---------------------------------------------------------------- objects and files


class ObjectStoreError(NokvError):
    """An object operation failed; the message names the object and the operation."""

    code, errno_value = 80, errno.EIO


class ObjectMissing(ObjectStoreError):
    """The store does not have an object that should exist."""

    code = 81


class ObjectCorrupt(ObjectStoreError):
    """An object's bytes do not match its checksums; none of them were returned."""

    code = 82
    default_hint = "restore the object from a copy of the bucket"


class ObjectStoreUnavailable(ObjectStoreError):
    """The store did not answer, or answered with a passing error until the deadline."""

    code, errno_value = 83, errno.EHOSTUNREACH
    default_hint = "check the endpoint and the network"


class ObjectStoreDenied(ObjectStoreError):
    """The store refused the credentials or the permission."""

    code, errno_value = 84, errno.EACCES
    default_hint = "check the AWS credentials of this process"


class ForeignVolume(ObjectStoreError):
    """The bucket belongs to another volume, or the volume to another cluster."""

    code, errno_value = 85, errno.EPERM
    refused = True
    default_hint = "use a bucket or prefix of its own for each volume"


class UploadFailed(ObjectStoreError):
    """A body could not be uploaded."""

    code = 86


class SourceChanged(NokvError):
    """A local file changed or vanished while it was uploaded."""

    code, errno_value = 87, errno.EBUSY
    default_hint = "publish files that nobody writes to"


class BackupGone(NokvError):
    """A backup is not there, not complete, or no node reads it any more."""

    code, errno_value = 88, errno.ENOENT
    default_hint = "see what there is: nokv backup list"


class BackupDamaged(NokvError):
    """Bytes of a backup were changed or are missing."""

    code, errno_value = 89, errno.EIO
    default_hint = "use another backup"


# ---------------------------------------------------------------- programs


class ConfigError(NokvError):
    """A configuration file, environment variable or flag is wrong."""

    code, errno_value = 100, errno.EINVAL


class DataDirectoryError(NokvError):
    """A data directory is not initialised, in use, of another node, or damaged."""

    code, errno_value = 101, errno.EINVAL


class UsageError(NokvError):
    """A command line that makes no sense."""

    code, errno_value = 102, errno.EINVAL


def _walk(cls: type[NokvError]) -> dict[int, type[NokvError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        below = _walk(sub)
        assert not set(found) & set(below), f"error code used twice below {cls.__name__}"
        found |= below
    return found


BY_CODE: dict[int, type[NokvError]] = _walk(NokvError)
"""Every class by its code on the wire."""


def from_wire(code: int, message: str, hint: str = "") -> NokvError:
    """Return the error that `code` stands for; an unknown code becomes a plain NokvError."""
    cls = BY_CODE.get(code)
    if cls is None:
        return NokvError(f"error {code}: {message}", hint=hint)
    return cls(message, hint=hint)

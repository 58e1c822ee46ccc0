"""Every limit that both sides of the wire must agree on, with its unit."""

from __future__ import annotations

NAME_BYTES_MAX = 255
"""Longest name of a directory entry or extended attribute (POSIX NAME_MAX)."""

PATH_BYTES_MAX = 4096
"""All components of one path with their separators (POSIX PATH_MAX)."""

SYMLINK_HOPS_MAX = 40
"""Symbolic links followed in one resolution before ELOOP (path_resolution(7))."""

SYMLINK_TARGET_BYTES_MAX = 4095
XATTR_VALUE_BYTES_MAX = 65_536
XATTR_LIST_BYTES_MAX = 65_536
"""All names of one inode's extended attributes, each with a NUL (listxattr(2))."""

LINK_MAX = 1024
"""Names of one file. A size change updates the usage of each of them in one command."""

DEPTH_MAX = 1024
"""Directories between an inode and its view's root; bounds every walk to the root."""

GROUPS_MAX = 64
"""Supplementary groups of a caller."""

PRINCIPAL_BYTES_MAX = 255

BULK_NAMES_MAX = 4096
"""Names of one bulk create."""

ATOMIC_MAX = 4096
"""Commands inside one `Atomic`."""

PREDICATES_MAX = 64
BATCH_MAX = 1024
"""Commands of one ordered RPC batch."""

COMMAND_BYTES_MAX = 4 * 1024 * 1024 - 64 * 1024
"""One encoded command; an entry of 4 MiB must hold it."""

FRAME_BYTES_MAX = 8 * 1024 * 1024
"""One frame on the wire, its length prefix apart."""

PAGE_MAX = 4096
"""Entries of one listing page."""

RANGES_PAGE_MAX = 8192
"""Ranges of published uploads in one page of sessions: 160 KB, whatever the sessions did."""

CHUNK_BYTES = 64 * 1024 * 1024
BLOCK_BYTES = 4 * 1024 * 1024
SUM_BYTES = 256 * 1024
"""Unit of verification: one xxh3-64 for so many bytes of an object."""

INLINE_BYTES_MAX = 4096
"""Default of the volume's `inline_max`: bodies up to this live in the metadata."""

INLINE_BYTES_CAP = 65_536
"""What `inline_max` may never exceed."""

CHUNKS_MAX = 2**31
FILE_BYTES_MAX = CHUNKS_MAX * CHUNK_BYTES - 1
"""Largest file size (128 PiB); beyond it EFBIG."""

EXTENTS_PER_CHUNK_MAX = 1024
"""Extents of one chunk record; a patch that would pass it is refused until the chunk is folded."""

MERGED_INLINE_BYTES_MAX = 4 * 1024 * 1024
"""Inline bytes of a chunk after patches and appends: its record must fit a reply's frame."""

TRUNCATE_CHUNKS_MAX = 4096
"""Chunk records that one truncate may cut."""

COPY_CHUNKS_MAX = 1024
"""Chunk records that one copy takes: files of 64 GiB, where none is a hole."""

COPY_HOLDS_MAX = 2048
"""Objects that one copy names, once per chunk."""

COPY_INLINE_BYTES_MAX = 16 * 1024 * 1024
"""Inline bytes of one copy."""

RESULT_WINDOW = 4096
"""Unacknowledged results that a session keeps: seq <= acked + this."""

UPLOAD_WINDOW = 65_536
"""Uploads between a session's watermark and the newest one leased to it."""

LEASES_MAX = 4096
"""Read leases of one session."""

PINS_MAX = 4096
"""Live pins of one view."""

PINS_PER_SESSION_MAX = 4096
"""Live pins of one session; they end in one command with it."""

SNAPSHOTS_MAX = 4096
"""Snapshots of a volume."""

SNAPSHOTS_PER_MAKER_MAX = 1024
"""Those of them that one uid made, root apart: nobody fills the volume's alone."""

SNAPSHOT_NAME_CHARACTERS_MAX = 100
SNAPSHOT_TTL_NS_MIN = 1_000_000_000
SNAPSHOT_TTL_NS_MAX = 100 * 365 * 86_400 * 1_000_000_000
SNAPSHOT_FOREIGN_TTL_NS_MAX = 30 * 86_400 * 1_000_000_000
"""A lease, of whoever does not own the directory; it may be renewed."""

NESTED_VIEWS_MAX = 1024
"""Views below a directory that one snapshot, clone or rollback takes along."""

VIEW_DEPTH_MAX = 64
"""Origins that one lookup may fall through."""

SESSION_TTL_NS_MIN = 1_000_000_000
SESSION_TTL_NS_MAX = 3_600_000_000_000
SESSION_TTL_NS_DEFAULT = 30_000_000_000
UINT63_MAX = 2**63 - 1

LOCK_RANGES_MAX = 512
"""Locked ranges of one inode and kind, of all owners together."""

LOCK_WAITS_MAX = 1024
"""Requests that wait in the queue of one inode and kind."""

LOCK_WORK_MAX = 65_536
"""Locked ranges of one inode and kind times the requests that wait: what an unlock may look at."""

LOCKS_PER_SESSION_MAX = 4096
"""Locked ranges and waits of one session; they end in one command with it."""

LOCK_OFFSET_END = 2**63
"""One beyond the last byte that a lock can cover (OFFSET_MAX of Linux)."""

ACL_ENTRIES_MAX = 256
"""Entries of one access control list."""

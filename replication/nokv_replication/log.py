"""The durable log: entries, term, vote and the list of members, in preallocated segments.

A segment is a file of zeros that records are written into, front to back, never again at the same
place. An entry that replaces others follows a TRUNCATE record. Compaction removes whole files. A
segment starts with a header that repeats term, vote and members, so nothing older is needed.

Memory holds (term, segment, offset, size) of each entry and the bytes of recent ones. `append`,
`truncate_from`, `set_hard_state` and `set_members` are volatile until `sync` returns. Any `OSError`
becomes `DiskFailed`: after it the log must not be used again (a failed fdatasync may have thrown
the dirty pages away, and says so only once: "Can Applications Recover from fsync Failures?",
USENIX ATC 2020).
"""

from array import array
from random import Random

import msgspec

from nokv_replication import records
from nokv_replication.bootstrap import FORMAT, Identity
from nokv_replication.errors import LogDamaged, StartRefused
from nokv_replication.ports import Disk
from nokv_replication.records import BATCH_START, HardState, RecordType, SegmentHeader
from nokv_replication.segments import (
    KEEP,
    SPARE,
    Segment,
    check_header,
    check_place,
    damaged,
    decode_hard_state,
    disk_errors,
    segment_name,
    segment_sequences,
)
from nokv_replication.types import GroupConfig

_PREPARE_BYTES = 1 << 20
_UINT64_BYTES = 9
"""The largest MessagePack integer."""


class Log:
    """See the module. Indices are 64-bit; (`first_index` - 1, `base_term`) is where it starts."""

    def __init__(self, disk: Disk, config: GroupConfig, identity: Identity, rng: Random) -> None:
        self._disk = disk
        self._config = config
        self._identity = identity
        self._rng = rng
        self._segments: list[Segment] = []
        self._spare: int | None = None
        self._spare_bytes = 0
        self._hard_state = HardState()
        self._members = b""
        self.announced: tuple[int, int] | None = None
        """Position of an image that was about to be installed; None once entries go past it."""
        # Index of the entry before the first one held; entries up to it are committed and applied.
        self.base_index = 0
        self.base_term = 0
        # Index and term of the last entry; of the base when there is none.
        self.last_index = 0
        self.last_term = 0
        # Parallel arrays, one element per held entry, in order of index.
        self._terms = array("Q")
        self._sequences = array("Q")
        self._offsets = array("Q")
        self._sizes = array("Q")
        # Bytes of entries cache_low..last_index; never evicted before they are synced.
        self._cache: dict[int, bytes] = {}
        self._cache_low = 1
        self._cache_bytes = 0
        self._pending = bytearray()
        self._batch_open = False
        self.synced_index = 0
        self.term_is_durable = True
        """Whether term and vote are synced as they were last set."""

    # ------------------------------------------------------------------ opening

    @classmethod
    def create(cls, disk: Disk, config: GroupConfig, identity: Identity, rng: Random) -> None:
        """Make the first, empty segment; does nothing where a log is already.

        Raises:
            DiskFailed: an operation of the disk failed.
        """
        log = cls(disk, config, identity, rng)
        with disk_errors():
            if log._segment_sequences():
                return
            log._discard_spare()
            log._start_segment(reset=False)
            for segment in log._segments:
                disk.close(segment.handle)

    @classmethod
    def open(cls, disk: Disk, config: GroupConfig, identity: Identity, rng: Random) -> "Log":
        """Read the log back; cut the torn tail of a batch that was never synced.

        Raises:
            StartRefused: there is no log, or it belongs to another node.
            LogDamaged: synced records are unreadable.
            DiskFailed: an operation of the disk failed.
        """
        log = cls(disk, config, identity, rng)
        with disk_errors():
            sequences = log._segment_sequences()
            if not sequences:
                message = (
                    f"node {identity.node} has no log in its data directory: it may have forgotten"
                    " votes and must not start. The others go on while they are a majority"
                    " (docs/operations.md: A lost node)"
                )
                raise StartRefused(message)
            log._discard_spare()
            for sequence in sequences:
                log._read_segment(sequence, newest=sequence == sequences[-1])
            # A process that died between a rename and the sync of the folder left a name that the
            # next power cut would take back, and with it all that this process writes there.
            disk.fsync_dir()
        log.synced_index = log.last_index
        return log

    def _discard_spare(self) -> None:
        if SPARE in self._disk.listdir():
            self._disk.unlink(SPARE)

    def _segment_sequences(self) -> list[int]:
        return segment_sequences(self._disk.listdir())

    def _read_segment(self, sequence: int, *, newest: bool) -> None:
        disk, name = self._disk, segment_name(sequence)
        handle = disk.open(name)
        capacity = disk.size_bytes(handle)
        data = memoryview(disk.pread(handle, capacity, 0))
        first = records.decode_at(data, 0, 0)
        if first is None or first.type != RecordType.HEADER:
            raise damaged(name, 0)
        header = check_header(name, first.payload, self._identity)
        check_place(sequence, header, capacity, self._segments[-1] if self._segments else None)
        segment = Segment(
            sequence=sequence,
            handle=handle,
            capacity_bytes=capacity,
            salt=header.salt,
            base_index=first.entry_index,
            base_term=first.term,
            used_bytes=first.end,
        )
        self._enter_segment(segment, header)
        for record in records.scan(data, first.end, header.salt):
            self._replay(segment, record)
            segment.used_bytes = record.end
        written_end = records.written_end(data)
        if written_end > segment.used_bytes:
            if not newest or records.synced_after(data, segment.used_bytes, segment.salt):
                raise damaged(name, segment.used_bytes)
            # A stale record of the torn batch must never line up behind a later, shorter one.
            zeros = bytes(written_end - segment.used_bytes)
            disk.pwrite(handle, zeros, segment.used_bytes)
        if newest:
            # After a kill the records may be in the page cache only; they count as held from here.
            disk.fdatasync(handle)

    def _enter_segment(self, segment: Segment, header: SegmentHeader) -> None:
        if header.reset or not self._segments:
            self._remove(self._segments)
            self._segments.clear()
            self._forget(segment.base_index, segment.base_term)
        elif (segment.base_index, segment.base_term) != (self.last_index, self.last_term):
            name = segment_name(segment.sequence)
            message = (
                f"log segment {name} continues after entry {segment.base_index} of term"
                f" {segment.base_term}, but the one before it ends at entry {self.last_index} of"
                f" term {self.last_term}: a file is missing, damaged or another's. {KEEP}"
            )
            raise LogDamaged(message, name)
        self._segments.append(segment)
        self._hard_state = header.hard_state
        self._members = header.members

    def _replay(self, segment: Segment, record: records.Record) -> None:
        if record.type == RecordType.ENTRY:
            if record.entry_index != self.last_index + 1:
                raise damaged(segment_name(segment.sequence), record.offset)
            self._remember(record.entry_index, record.term, segment, record.offset, record.payload)
        elif record.type == RecordType.TRUNCATE:
            self._cut(record.entry_index, record.term)
        elif record.type == RecordType.HARD_STATE:
            self._hard_state = decode_hard_state(segment, record)
        elif record.type == RecordType.MEMBERS:
            self._members = bytes(record.payload)
        elif record.type == RecordType.INSTALL:
            self.announced = record.entry_index, record.term
        else:
            raise damaged(segment_name(segment.sequence), record.offset)

    # ------------------------------------------------------------------ reading

    @property
    def first_index(self) -> int:
        """Index of the first entry held, or of the next one to come."""
        return self.base_index + 1

    @property
    def hard_state(self) -> HardState:
        """Term and vote as last set."""
        return self._hard_state

    @property
    def members(self) -> bytes:
        """Encoded list of members as last set, b"" before."""
        return self._members

    @property
    def size_bytes(self) -> int:
        """Bytes of the records in all segments."""
        return sum(segment.used_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        """Files in use."""
        return len(self._segments)

    def term_at(self, index: int) -> int:
        """Return the term of the entry at `base_index` <= index <= `last_index`."""
        if index == self.base_index:
            return self.base_term
        assert self.base_index < index <= self.last_index
        return self._terms[index - self.base_index - 1]

    def entry(self, index: int) -> bytes:
        """Return the bytes at `first_index` <= index <= `last_index`, from memory or disk.

        Raises:
            LogDamaged: the record on disk changed since it was written.
            DiskFailed: it could not be read.
        """
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        assert self.base_index < index <= self.synced_index
        position = index - self.base_index - 1
        sequence, offset = self._sequences[position], self._offsets[position]
        segment = self._segments[sequence - self._segments[0].sequence]
        with disk_errors():
            size = records.padded(self._sizes[position])
            data = self._disk.pread(segment.handle, size, offset)
        record = records.decode_at(memoryview(data), 0, segment.salt)
        expected = (index, self._terms[position])
        if record is None or (record.entry_index, record.term) != expected:
            raise damaged(segment_name(sequence), offset)
        return bytes(record.payload)

    # ------------------------------------------------------------------ writing

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add the next entry; volatile until `sync`."""
        assert index == self.last_index + 1, (index, self.last_index)
        assert term >= self.last_term, (term, self.last_term)
        offset, segment = self._write(RecordType.ENTRY, index, term, command)
        self._remember(index, term, segment, offset, command)

    def truncate_from(self, index: int) -> None:
        """Void the entries at `index` and above."""
        assert self.base_index < index
        if index > self.last_index:
            return
        term = self.term_at(index - 1)
        self._write(RecordType.TRUNCATE, index, term, b"")
        self._cut(index, term)

    def set_hard_state(self, term: int, vote: int) -> None:
        """Set term and vote; volatile until `sync`."""
        state = HardState(term, vote)
        if state != self._hard_state:
            assert term >= self._hard_state.term
            self._hard_state = state
            self._write(RecordType.HARD_STATE, 0, term, msgspec.msgpack.encode(state))
            self.term_is_durable = False

    def set_members(self, members: bytes) -> None:
        """Set the full list of members, once; volatile until `sync`."""
        assert not self._members
        self._members = members
        self._write(RecordType.MEMBERS, 0, 0, members)

    @property
    def dirty(self) -> bool:
        """Whether anything waits for `sync`."""
        return bool(self._pending)

    def sync(self) -> None:
        """Make everything durable: one pwrite, one fdatasync; nothing when nothing waits.

        Raises:
            DiskFailed: the process must exit.
        """
        if not self._pending:
            return
        with disk_errors():
            self._flush()

    def _flush(self) -> None:
        segment = self._segments[-1]
        start = segment.used_bytes - len(self._pending)
        self._disk.pwrite(segment.handle, self._pending, start)
        self._disk.fdatasync(segment.handle)
        self._pending = bytearray()
        self._batch_open = False
        self.synced_index = self.last_index
        self.term_is_durable = True
        self._evict()

    def _write(
        self, kind: RecordType, index: int, term: int, payload: bytes
    ) -> tuple[int, Segment]:
        segment = self._segments[-1]
        size = records.padded(len(payload))
        if segment.used_bytes + size > segment.capacity_bytes:
            with disk_errors():
                if self._pending:
                    self._flush()
                self._start_segment(reset=False, room_bytes=size)
            segment = self._segments[-1]
        flags = 0 if self._batch_open else BATCH_START
        self._batch_open = True
        offset = segment.used_bytes
        records.encode_into(self._pending, kind | flags, index, term, payload, segment.salt)
        segment.used_bytes += size
        return offset, segment

    def _start_segment(self, *, reset: bool, room_bytes: int = 0) -> None:
        """Put a new segment into service. A named segment always has a synced header."""
        assert not self._pending
        disk = self._disk
        sequence = self._segments[-1].sequence + 1 if self._segments else 1
        salt = self._rng.getrandbits(32)
        identity = self._identity
        header = SegmentHeader(
            format=FORMAT,
            cluster=identity.cluster,
            node=identity.node,
            incarnation=identity.incarnation,
            sequence=sequence,
            salt=salt,
            reset=reset,
            hard_state=self._hard_state,
            members=self._members,
            capacity_bytes=self._config.segment_bytes,
        )
        base = (self.last_index, self.last_term)
        # The header's own size depends on the number it holds, by a few bytes.
        room_bytes += records.padded(len(msgspec.msgpack.encode(header)) + _UINT64_BYTES)
        capacity = max(self._config.segment_bytes, room_bytes)
        header = msgspec.structs.replace(header, capacity_bytes=capacity)
        data = bytearray()
        payload = msgspec.msgpack.encode(header)
        records.encode_into(data, RecordType.HEADER, *base, payload, 0)
        while not self._prepare_spare(capacity):
            pass
        handle = self._spare
        assert handle is not None
        self._spare = None
        disk.pwrite(handle, data, 0)
        disk.fdatasync(handle)
        disk.rename(SPARE, segment_name(sequence))
        disk.fsync_dir()
        segment = Segment(sequence, handle, capacity, salt, *base, len(data))
        self._segments.append(segment)

    def prepare(self) -> bool:
        """Write a piece of the next segment's zeros once half of this one is used.

        Returns whether more is to be done soon; spreads a cost that would stall one step.
        """
        segment = self._segments[-1]
        if self._spare_bytes >= self._config.segment_bytes and self._spare is not None:
            return False
        if 2 * segment.used_bytes < segment.capacity_bytes:
            return False
        with disk_errors():
            return not self._prepare_spare(self._config.segment_bytes)

    def _prepare_spare(self, capacity_bytes: int) -> bool:
        disk = self._disk
        if self._spare is None:
            self._spare = disk.create(SPARE)
            self._spare_bytes = 0
        size = min(_PREPARE_BYTES, capacity_bytes - self._spare_bytes)
        if size > 0:
            disk.preallocate(self._spare, size, self._spare_bytes)
            disk.fdatasync(self._spare)
            self._spare_bytes += size
        return self._spare_bytes >= capacity_bytes

    # ------------------------------------------------------------------ dropping

    def drop_to(self, index: int, keep_bytes: int) -> int:
        """Remove whole segments of entries <= `index`, keeping the newest `keep_bytes`.

        `index` is at most the machine's durable commit. Returns the number of segments removed.
        """
        dropped = 0
        while len(self._segments) > 1:
            oldest, successor = self._segments[0], self._segments[1]
            rest = self.size_bytes - oldest.used_bytes
            if successor.base_index > index or rest < keep_bytes:
                break
            assert successor.base_index <= self.synced_index
            with disk_errors():
                self._remove([oldest])
            del self._segments[0]
            count = successor.base_index - self.base_index
            for column in (self._terms, self._sequences, self._offsets, self._sizes):
                del column[:count]
            self.base_index, self.base_term = successor.base_index, successor.base_term
            self._evict()
            dropped += 1
        return dropped

    def _remove(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._disk.close(segment.handle)
            self._disk.unlink(segment_name(segment.sequence))
            # Oldest first on disk too: a gap between files would count as damage.
            self._disk.fsync_dir()

    def droppable_bytes(self, index: int) -> int:
        """Return the bytes of the segments that `drop_to` may remove for `index`."""
        pairs = zip(self._segments, self._segments[1:], strict=False)
        return sum(old.used_bytes for old, new in pairs if new.base_index <= index)

    def announce_install(self, index: int, term: int) -> None:
        """Note durably that a state image is about to be installed; `reset` follows it.

        Without the note a state that is ahead of the log says that the log has lost entries.

        Raises:
            DiskFailed: the process must exit.
        """
        self._write(RecordType.INSTALL, index, term, b"")
        self.announced = index, term
        self.sync()

    def reset(self, index: int, term: int) -> None:
        """Start anew after (index, term), of which the machine holds everything; durable."""
        with disk_errors():
            if self._pending:
                self._flush()
            old = list(self._segments)
            self._forget(index, term)
            self._start_segment(reset=True)
            self._remove(old)
        self._segments = self._segments[len(old) :]
        self.synced_index = self.last_index

    def close(self) -> None:
        """Close the files; what was not synced is lost."""
        with disk_errors():
            for segment in self._segments:
                self._disk.close(segment.handle)
            if self._spare is not None:
                self._disk.close(self._spare)
        self._segments.clear()

    # ------------------------------------------------------------------ memory

    def _remember(
        self, index: int, term: int, segment: Segment, offset: int, command: bytes | memoryview
    ) -> None:
        self._terms.append(term)
        self._sequences.append(segment.sequence)
        self._offsets.append(offset)
        self._sizes.append(len(command))
        self.last_index, self.last_term = index, term
        if self.announced is not None and index >= self.announced[0]:
            self.announced = None  # it was installed, or never will be: the log went past it
        if isinstance(command, bytes):
            if not self._cache:
                self._cache_low = index
            self._cache[index] = command
            self._cache_bytes += len(command)
        if self._cache_bytes > self._config.cache_bytes:
            self._evict()

    def _evict(self) -> None:
        floor = self.base_index
        while self._cache and (
            self._cache_low <= floor
            or (
                self._cache_bytes > self._config.cache_bytes
                and self._cache_low <= self.synced_index
            )
        ):
            self._cache_bytes -= len(self._cache.pop(self._cache_low))
            self._cache_low += 1

    def _cut(self, index: int, term_before: int) -> None:
        """Forget the entries at `index` and above; the one before has `term_before`."""
        for segment in reversed(self._segments):
            if segment.base_index < index:
                break
            # What replaces the entries is written into the newest segment: this one begins with
            # entries that follow (index - 1, term_before), whatever its header said.
            segment.base_index, segment.base_term = index - 1, term_before
        if index <= self.base_index:
            # Only while reading a first segment whose predecessors were dropped.
            self._forget(index - 1, term_before)
        for gone in range(max(index, self._cache_low), self.last_index + 1):
            command = self._cache.pop(gone, None)
            self._cache_bytes -= len(command) if command is not None else 0
        count = index - self.base_index - 1
        assert count >= 0
        for column in (self._terms, self._sequences, self._offsets, self._sizes):
            del column[count:]
        self.last_index, self.last_term = index - 1, term_before
        self.synced_index = min(self.synced_index, index - 1)

    def _forget(self, index: int, term: int) -> None:
        for column in (self._terms, self._sequences, self._offsets, self._sizes):
            del column[:]
        self._cache.clear()
        self._cache_bytes = 0
        self.base_index, self.base_term = index, term
        self.last_index, self.last_term = index, term

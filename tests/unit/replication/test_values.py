"""Frames, hellos, entries, times, and the adapter to the library."""

import contextlib
import inspect
import re

import msgpack
import msgspec
import pysyncobj.syncobj as library
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nokv_replication import HandshakeRefused, LogDamaged, ProtocolError, Times, _pysyncobj, frames
from nokv_replication.bootstrap import FORMAT
from nokv_replication.frames import (
    Ack,
    Append,
    EntryKind,
    Frame,
    Hello,
    PreVote,
    Purpose,
    Vote,
    decode_entry,
    decode_frame,
    decode_hello,
    encode,
    encode_entry,
)
from nokv_replication.timekeeping import STEP_MAX_NS, WALL_CLAMP_NS, Timekeeper

SECOND_NS = 1_000_000_000

GOLDEN = [
    (Frame(1, 2, 3, Vote(4)), [1, 2, 3, [4, 4]]),
    (Frame(1, 2, 3, PreVote(4, 5, 6, 7)), [1, 2, 3, [5, 4, 5, 6, 7]]),
    (
        Frame(2, 9, 1, Append(3, 7, 2, 6, [(3, b"x")])),
        [2, 9, 1, [1, 3, 7, 2, 6, [[3, b"x"]]]],
    ),
    (
        Frame(3, 9, 8, Ack(3, 1, True, False, 9, 7, b"f", 10, 11, 12)),
        [3, 9, 8, [2, 3, 1, True, False, 9, 7, b"f", 10, 11, 12]],
    ),
    (Hello(1, "c", 2, 77, b"", 5, Purpose.IMAGE, 3), [1, "c", 2, 77, b"", 5, 1, 3, []]),
]


@pytest.mark.parametrize(("message", "fields"), GOLDEN, ids=lambda v: type(v).__name__)
def test_messages_are_what_an_independent_decoder_reads(
    message: Frame | Hello, fields: list[object]
) -> None:
    data = encode(message)
    assert msgpack.unpackb(data) == fields
    decode = decode_hello if isinstance(message, Hello) else decode_frame
    assert decode(data) == message


def test_an_entry_starts_like_no_command_of_the_library() -> None:
    command = encode_entry(Times(5, 6), [b"a", b"b"], EntryKind.COMMANDS)
    assert msgpack.unpackb(command) == [1, 5, 6, [b"a", b"b"], 0]
    assert command[0] == 0x95
    assert decode_entry(command, 1).payloads == [b"a", b"b"]


def test_every_frame_has_its_own_tag() -> None:
    tags = [body.__struct_config__.tag for body in frames.Body.__args__]
    assert len(set(tags)) == len(tags)


@given(st.binary(max_size=200))
def test_any_bytes_become_a_frame_or_a_typed_error(data: bytes) -> None:
    for decode in (decode_frame, decode_hello):
        with contextlib.suppress(ProtocolError):
            decode(data)


@pytest.mark.parametrize(
    "fields",
    [
        [1, 2, 3, [4]],
        [1, 2, 3, [99, 4]],
        [0, 2, 3, [4, 4]],
        [1, -2, 3, [4, 4]],
        [1, 2, 3, [4, 4, "more"]],
        [1, 2, 3, [4, 2**63]],
        [1, 2, 3, [1, 3, 7, 2, 6, [[9, b"x"]]]],
        [1, 2, 3, [1, 3, 7, 2, 6, [[3, b"x"], [2, b"y"]]]],
    ],
)
def test_what_no_peer_says_is_refused(fields: list[object]) -> None:
    with pytest.raises(ProtocolError):
        decode_frame(msgpack.packb(fields))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_frame(b"\x91" * 100_000 + b"\x90")


def test_a_refusal_arrives_as_its_sentence() -> None:
    with pytest.raises(HandshakeRefused, match="another cluster"):
        decode_hello(encode("another cluster"))


def test_a_hello_of_another_format_says_which_side_to_upgrade() -> None:
    """Also where nothing after the format can be read."""
    for number, side in ((FORMAT + 1, "this node"), (0, "the peer")):
        for rest in ([], ["c", 1, 1, b"", 1, 0, 0, [], "of the future"]):
            data = msgspec.msgpack.encode([number, *rest])
            with pytest.raises(HandshakeRefused, match=f"group format {number}.*upgrade {side}"):
                decode_hello(data)
    with pytest.raises(ProtocolError):
        decode_hello(msgspec.msgpack.encode([FORMAT]))
    with pytest.raises(ProtocolError):
        decode_hello(msgspec.msgpack.encode([]))


@pytest.mark.parametrize("entry", [b"", b"\x01", msgpack.packb([2, 0, 0, [], 0])])
def test_an_unreadable_entry_stops_the_node(entry: bytes) -> None:
    with pytest.raises(LogDamaged, match="entry 7"):
        decode_entry(entry, 7)


class TestTimekeeper:
    def leading(self) -> Timekeeper:
        keeper = Timekeeper()
        keeper.begin_term(Times(100, 50), 0)
        return keeper

    def test_nothing_is_stamped_before_a_quorum_was_heard(self) -> None:
        keeper = self.leading()
        assert keeper.stamp(1000, 0, 2) is None
        keeper.hear(2, 1000, 0)
        assert keeper.stamp(1000, 0, 2) == Times(1000, 50)

    def test_wall_time_never_falls(self) -> None:
        keeper = self.leading()
        keeper.hear(2, 10, 0)
        assert keeper.stamp(10, 0, 2) == Times(100, 50)

    @pytest.mark.parametrize("years", [-20, 20])
    def test_a_leader_with_a_wrong_clock_is_clamped_to_the_median(self, years: int) -> None:
        now = 60 * 365 * 86_400 * SECOND_NS
        keeper = self.leading()
        keeper.hear(2, now, 0)
        keeper.hear(3, now + 1, 0)
        wrong = now + years * 365 * 86_400 * SECOND_NS
        times = keeper.stamp(wrong, 0, 2)
        assert times is not None
        assert abs(times.wall_ns - now) <= WALL_CLAMP_NS + 1
        assert keeper.clamped_now
        assert keeper.clamped == 1

    def test_a_follower_with_a_wrong_clock_moves_nothing(self) -> None:
        now = 10**18
        keeper = self.leading()
        keeper.hear(2, now, 0)
        keeper.hear(3, 2 * now, 0)
        times = keeper.stamp(now + 5, 0, 2)
        assert times == Times(now + 5, 50)

    def test_heard_clocks_run_on(self) -> None:
        keeper = self.leading()
        keeper.hear(2, 10**18, 0)
        keeper.advance(30 * SECOND_NS)
        times = keeper.stamp(10**18, 30 * SECOND_NS, 2)
        # The lower of the two is this node's own, which has not moved.
        assert times is not None
        assert times.wall_ns == 10**18

    def test_cluster_time_moves_a_second_a_step_at_most(self) -> None:
        keeper = self.leading()
        keeper.advance(3)
        assert keeper.cluster_ns == 53
        keeper.advance(3600 * SECOND_NS)
        assert keeper.cluster_ns == 53 + STEP_MAX_NS

    def test_a_new_term_starts_from_the_log(self) -> None:
        keeper = self.leading()
        keeper.hear(2, 1000, 0)
        keeper.begin_term(Times(7, 8), 90)
        assert keeper.cluster_ns == 8
        assert keeper.stamp(1000, 90, 2) is None


class TestAdapter:
    def test_another_version_is_refused(self) -> None:
        source = inspect.getsource(_pysyncobj)
        changed = source.replace('SUPPORTED_VERSION = "0.3.17"', 'SUPPORTED_VERSION = "0.3.18"')
        assert changed != source
        with pytest.raises(ImportError, match=r"0\.3\.18"):
            exec(compile(changed, "adapter", "exec"), {"__name__": "adapter"})

    def test_every_private_name_exists_in_the_library(self) -> None:
        ours, theirs = inspect.getsource(_pysyncobj), inspect.getsource(library)
        names = set(re.findall(r"_SyncObj(__\w+)", ours))
        assert len(names) >= 15
        for name in names:
            assert f"self.{name}" in theirs or f"def {name}" in theirs, name
        for name in ("createJournal", "monotonicTime", "random"):
            assert re.search(rf"\b{name}\b", theirs)

    def test_no_other_module_names_the_library(self) -> None:
        from pathlib import Path

        import nokv_replication

        folder = Path(nokv_replication.__file__).parent
        for module in folder.glob("*.py"):
            if module.name != "_pysyncobj.py":
                text = module.read_text()
                assert "import pysyncobj" not in text
                assert "_SyncObj__" not in text

    def test_peers_are_their_numbers(self) -> None:
        one, same = _pysyncobj.Peer(5), _pysyncobj.Peer(5)
        assert hash(one) == 5
        assert one == same == one.id == 5
        assert one != _pysyncobj.Peer(6)


def test_values_are_forward_strict() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgpack.packb([1, 5, 6, [], 0, "new"]), type=frames.Entry)

"""Runs a golden script: commands in, the transcript of a whole group out.

A script is a text file. A line `> command` is executed; the lines below it, up to the next command
or comment, are what it must print. `#` begins a comment. Nothing happens between commands: nodes
step, frames move and time passes only where the script says so. Commands:

    nodes N [setting=value ...]   a new group; settings are those of `GroupConfig`; `apart` leaves
                                  the nodes unconnected, so that none knows the others yet
    lead N                        elect N by all and let the group settle, without a transcript
    campaign N                    the election timer of N fires
    wait MS                       time passes for all; nobody acts
    step [N ...]                  nodes look at what is due
    deliver [A->B] [COUNT]        hand over what is on its way (by default all of it, once)
    run                           deliver until nothing is on its way
    settle [N ...]                two seconds of ordinary life, without a transcript
    propose N TEXT [BYTES] | fill N COUNT [BYTES] | read N
    cut A B | connect A B | isolate N | heal | lose A->B
    crash N | power N | start N | fail N CALL | wipe N | skip N INDEX
    add L N | promote L N | remove L N | transfer L N | members [N ...]    asked of the leader L
    dial | image [COUNT] | cutimage A B           state images, as `A=>B`, on their own connection
    log [N ...] | status [N ...] | state [N ...]

A frame is printed once, by the node that sends it, as `A->B`. A node prints what changed in a step.
"""

import errno
from collections.abc import Callable, Iterable
from random import Random

import crc32c
import msgspec
from tests.golden.words import describe, position, text
from tests.simulation.disk import SimDisk
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import (
    Fatal,
    Group,
    GroupConfig,
    HandshakeRefused,
    Member,
    ReplicationError,
    Role,
    skips,
)
from nokv_replication.frames import decode_frame
from nokv_replication.image_frames import decode_image_frame
from nokv_replication.log import Log
from nokv_replication.types import Skip

PROMPT = "> "
RUN_MAX = 200
"""Rounds of `run` before a script is taken for one that never comes to rest."""


class Narrated(Script):
    """A `Script` that writes down what each step sends and changes."""

    def __init__(self, nodes: int, config: GroupConfig, *, found: bool) -> None:
        self.lines: list[str] = []
        self.quiet = True
        super().__init__(nodes, config=config, found=found)
        self.quiet = False

    def say(self, line: str) -> None:
        if not self.quiet:
            self.lines.append(line)

    def step(self, node: int) -> None:
        before = self._picture(node)
        sent = {peer: len(self.links.get((node, peer), ())) for peer in self.addresses}
        pieces = {pair: len(self._image_frames(pair, node)) for pair in self.images}
        try:
            super().step(node)
        except Fatal as failure:
            self.say(f"{node}  stops: {type(failure).__name__}: {failure}")
            self.crash(node)
            return
        after = self._picture(node)
        changed = [words for words, old in zip(after, before, strict=True) if words != old]
        if changed:
            self.say(f"{node}  {', '.join(changed)}")
        for peer in sorted(self.addresses):
            for frame in list(self.links.get((node, peer), ()))[sent.get(peer, 0) :]:
                self.say(f"{node}->{peer}  {describe(decode_frame(frame).body)}")
        for pair in sorted(self.images):
            peer = pair[1] if pair[0] == node else pair[0]
            for frame in self._image_frames(pair, node)[pieces.get(pair, 0) :]:
                self.say(f"{node}=>{peer}  {describe(decode_image_frame(frame).body)}")

    def _image_frames(self, pair: tuple[int, int], sender: int) -> list[bytes]:
        """What a node has on its way on an image connection that is, or is not, its own."""
        if sender not in pair or pair not in self.images:
            return []
        return list(self.images[pair][pair[1] if pair[0] == sender else pair[0]])

    def _picture(self, node: int) -> tuple[str, ...]:
        status = self.groups[node].status()
        if status.role == Role.LEADER:
            role = f"leader of term {status.term}"
        elif status.role == Role.CANDIDATE:
            role = f"candidate in term {status.term}"
        else:
            whom = f" of {status.leader}" if status.leader is not None else ""
            role = f"follower{whom} in term {status.term}"
        last = position(status.last_index, self.groups[node]._log.last_term)
        return (
            role,
            f"log ends at {last}",
            f"commit {status.commit_index}",
            f"applied {status.applied_index}",
            *([f"problem: {status.problem}"] if status.problem else [""]),
        )


class Interpreter:
    """The state of one script run."""

    def __init__(self) -> None:
        self._script: Narrated | None = None

    @property
    def script(self) -> Narrated:
        assert self._script is not None, "a script begins with `nodes N`"
        return self._script

    def execute(self, line: str) -> list[str]:
        """Run one command; return what it prints."""
        name, *words = line.split()
        command: Callable[..., None] | None = getattr(self, f"do_{name}", None)
        if command is None:
            message = f"unknown command {line!r}"
            raise ValueError(message)
        command(*words)
        lines, self.script.lines = self.script.lines, []
        return lines or ["ok"]

    def _named(self, words: Iterable[str]) -> list[int]:
        chosen = [int(word) for word in words] or sorted(self.script.groups)
        return [node for node in chosen if node in self.script.groups]

    # ------------------------------------------------------------------ group

    def do_nodes(self, count: str, *settings: str) -> None:
        pairs = (setting.split("=") for setting in settings if setting != "apart")
        config = msgspec.structs.replace(CONFIG, **{name: int(value) for name, value in pairs})
        self._script = Narrated(int(count), config, found="apart" not in settings)

    def do_lead(self, node: str) -> None:
        script = self.script
        script.quiet = True
        script.lead(int(node))
        script.settle(rounds=20)
        script.quiet = False
        self.do_status(node)

    def do_settle(self, *nodes: str) -> None:
        script = self.script
        script.quiet = True
        script.settle(*self._named(nodes), rounds=100)
        script.quiet = False

    # ------------------------------------------------------------------ time

    def do_campaign(self, node: str) -> None:
        self.script.groups[int(node)]._core.expire_election()
        self.script.step(int(node))

    def do_wait(self, duration_ms: str) -> None:
        self.script.wait(int(duration_ms) * MS_NS)

    def do_step(self, *nodes: str) -> None:
        for node in self._named(nodes):
            self.script.step(node)

    # ------------------------------------------------------------------ network

    def do_deliver(self, link: str = "", count: str = "") -> None:
        if link:
            sender, _, receiver = link.partition("->")
            self.script.deliver(int(sender), int(receiver), int(count) if count else None)
            return
        on_the_way = [
            (pair, len(frames)) for pair, frames in sorted(self.script.links.items()) if frames
        ]
        for (one, other), waiting in on_the_way:
            if other in self.script.groups:
                self.script.deliver(one, other, waiting)

    def do_run(self) -> None:
        for _ in range(RUN_MAX):
            if not any(self.script.links.values()):
                return
            self.do_deliver()
        message = "the group does not come to rest"
        raise AssertionError(message)

    def do_cut(self, one: str, other: str) -> None:
        self.script.cut(int(one), int(other))

    def do_connect(self, one: str, other: str) -> None:
        try:
            self.script.connect(int(one), int(other))
        except HandshakeRefused as refusal:
            self.script.say(f"{one}, {other}  do not connect: {refusal}")

    def do_isolate(self, node: str) -> None:
        self.script.isolate(int(node))

    def do_heal(self) -> None:
        nodes = sorted(self.script.groups)
        for one in nodes:
            for other in nodes:
                if one < other:
                    self.do_connect(str(one), str(other))

    def do_lose(self, link: str) -> None:
        sender, _, receiver = link.partition("->")
        self.script.lose(int(sender), int(receiver))

    def do_dial(self) -> None:
        """Make the image connections that were asked for."""
        self.script.connect_images()
        for node in sorted(self.script.groups):
            self.script.step(node)

    def do_image(self, count: str = "1") -> None:
        """Hand over what is on its way on all image connections, so many times."""
        for _ in range(int(count)):
            for dialer, other in sorted(self.script.images):
                self.script.deliver_image(dialer, other, other)
                self.script.deliver_image(dialer, other, dialer)

    def do_cutimage(self, dialer: str, other: str) -> None:
        self.script.cut_image(int(dialer), int(other))

    # ------------------------------------------------------------------ processes

    def do_crash(self, node: str) -> None:
        self.script.crash(int(node))

    def do_power(self, node: str) -> None:
        self.script.crash(int(node), power=True)

    def do_start(self, node: str) -> None:
        try:
            self._say_status(int(node), self.script.start(int(node)))
        except ReplicationError as refusal:
            self.script.say(f"{node}  refuses to start: {type(refusal).__name__}: {refusal}")

    def do_fail(self, node: str, call: str) -> None:
        self.script.disks[int(node)].fail_at(call, errno.EIO)

    def do_skip(self, node: str, index: str) -> None:
        """Have a stopped node pass over one entry of its log, as an operator does."""
        script, at = self.script, int(index)
        disk, identity = script.disks[int(node)], script.identity(int(node))
        log = Log.open(disk, script.config, identity, Random(0))
        skip = Skip(at, log.term_at(at), crc32c.crc32c(log.entry(at)))
        log.close()
        skips.store(disk, identity.cluster, (skip,))

    def do_wipe(self, node: str) -> None:
        """Give a stopped node an empty disk under the same name."""
        self.script.disks[int(node)] = SimDisk()
        self.script.storages[int(node)] = type(self.script.storages[int(node)])()

    # ------------------------------------------------------------------ clients

    def do_propose(self, node: str, name: str, size_bytes: str = "0") -> None:
        script = self.script
        payload = b"%s:%s" % (name.encode(), bytes(int(size_bytes)))

        def done(outcome: object) -> None:
            script.checker.answered(payload, outcome)
            script.say(f"client: {name} {text(outcome)}")

        script.groups[int(node)].propose(payload, done)
        script.step(int(node))

    def _told(self, what: str) -> Callable[[object], None]:
        return lambda outcome: self.script.say(f"operator: {what} {text(outcome)}")

    def do_add(self, leader: str, node: str) -> None:
        number = int(node)
        member = Member(number, 100 + number, f"node-{number}:1", voter=False)
        self.script.groups[int(leader)].add_member(member, self._told(f"adding {node}"))
        self.script.step(int(leader))

    def do_promote(self, leader: str, node: str) -> None:
        told = self._told(f"promoting {node}")
        self.script.groups[int(leader)].promote_member(int(node), told)
        self.script.step(int(leader))

    def do_remove(self, leader: str, node: str) -> None:
        told = self._told(f"removing {node}")
        self.script.groups[int(leader)].remove_member(int(node), told)
        self.script.step(int(leader))

    def do_transfer(self, leader: str, target: str) -> None:
        told = self._told(f"handing over to {target}")
        self.script.groups[int(leader)].transfer(int(target), told)
        self.script.step(int(leader))

    def do_members(self, *nodes: str) -> None:
        for node in self._named(nodes):
            listed = [
                f"{member.node}{'' if member.voter else ' (learner)'}"
                for member in self.script.groups[node].status().members
            ]
            self.script.say(f"{node}  {', '.join(listed)}")

    def do_fill(self, node: str, count: str, size_bytes: str = "100") -> None:
        """Commit entries in ordinary life, without a transcript."""
        script = self.script
        script.quiet = True
        for number in range(int(count)):
            script.propose(int(node), b"%d:" % number + bytes(int(size_bytes)))
            script.settle(rounds=1)
        script.settle(rounds=60)
        script.quiet = False

    def do_read(self, node: str) -> None:
        script = self.script

        def done(outcome: object) -> None:
            script.say(f"reader at {node}: {text(outcome)}")

        script.groups[int(node)].read_index(done)
        script.step(int(node))

    # ------------------------------------------------------------------ looking

    def do_log(self, *nodes: str) -> None:
        for node in self._named(nodes):
            entries = self.script.log(node)
            held = " ".join(position(*entry) for entry in entries) or "empty"
            self.script.say(f"{node}  {held}")

    def do_status(self, *nodes: str) -> None:
        for node in self._named(nodes):
            self._say_status(node, self.script.groups[node])

    def _say_status(self, node: int, group: Group) -> None:
        assert group is self.script.groups[node]
        self.script.say(f"{node}  " + ", ".join(w for w in self.script._picture(node) if w))

    def do_state(self, *nodes: str) -> None:
        for node in self._named(nodes):
            items = [item.partition(b":")[0].decode() for item in self.script.machines[node].items]
            self.script.say(f"{node}  [{' '.join(items)}]")


def run(source: str) -> str:
    """Return the script with the transcript that its commands print now."""
    interpreter = Interpreter()
    lines: list[str] = []
    for line in source.splitlines():
        if line.startswith(PROMPT):
            if lines and lines[-1].startswith("  "):
                lines.append("")
            lines.append(line)
            lines += [f"  {said}".rstrip() for said in interpreter.execute(line[len(PROMPT) :])]
        elif line.startswith("#"):
            if lines and not lines[-1].startswith("#"):
                lines.append("")
            lines.append(line)
        elif line and not line.startswith("  "):
            message = f"neither command, output nor comment: {line!r}"
            raise ValueError(message)
    return "\n".join(lines) + "\n"

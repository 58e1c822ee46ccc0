"""The rules that keep a backup whole, as a small model that random programs attack.

Clusters that were restored from backups share one bucket with their original. Each step below is
one atomic step of one party (a command, one request to the bucket, a death), so random programs
interleave a deletion with a restore, a late PUT with a release, an adoption with everything. After
each step every body that a living cluster or a kept backup names must be in the bucket. Each rule
can be taken away, and the same programs must then find a loss: the rules are all needed.

Not modelled: grace and sessions of readers (`nokv.state` has tests of its own), and objects that
are patched or shared by several records.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

RULES = (
    "pin",  # a backup pins what it shows
    "through",  # it pins the last version of its entry, which its image shows too
    "manifest first",  # a deletion begins with the manifest
    "markers",  # a restore leaves its mark, and then looks for the manifest
    "recheck",  # marks are looked for after the manifest is gone
    "late put",  # a hold outlasts every PUT of its manifest
    "sweep",  # nor sweeps uploads of the backup's sessions
    "epoch",  # sessions opened after a restore have other numbers
    "expire",  # a restored cluster ends the backup's sessions
    # Until it is adopted a restored cluster collects nothing of its backup, and deletes no backup
    # that it inherited: each is enough here, and both are kept.
    "guard, not mine",
    "others",  # an adoption states that all that share the bucket are gone
    "unknown",  # and ends every backup that it knows nothing of
    # Those that adopted are asked of too, and the end of a backup leaves one's own mark: each is
    # enough here, and both are kept.
    "adopters",
    "theirs",  # who ends a backup states who is gone, and ends the backups that those made
    "gone",  # what was stated to be gone does nothing any more, should it come back after all
    "unheld mark",  # a restore of a backup that nobody keeps leaves its mark too
    "unheld gone",  # and is refused where its maker was stated to be gone
)
CLUSTERS_MAX = 4
STEPS_MAX = 90
NAMES = ("a", "b")


class LossError(Exception):
    """Something that must be there is not."""


@dataclass
class Record:
    """A backup as a cluster's state knows it."""

    version: int
    kept: bool = False
    """Complete; before, its maker is still at work."""
    ending: bool = False
    checked: bool = False
    """No mark was found after the manifest was gone."""
    inherited: bool = False


@dataclass
class State:
    """One cluster's namespace, and what its image holds."""

    version: int = 0
    epoch: int = 0
    next_session: int = 1
    live: dict[str, tuple[str, int]] = field(default_factory=dict)
    drops: list[tuple[str, int, int]] = field(default_factory=list)
    sessions: dict[str, bool] = field(default_factory=dict)
    consumed: set[str] = field(default_factory=set)
    backups: dict[str, Record] = field(default_factory=dict)
    guard: int = -1
    """Until the adoption: the backup's version. No hold born up to it is safe."""
    uploads: dict[str, int] = field(default_factory=dict)
    """Uploads of each session so far."""
    lineage: tuple[tuple[str, str], ...] = ()
    """(cluster, its backup) that this one came from, until they are stated to be gone."""


@dataclass
class World:
    """The bucket and all clusters."""

    without: str = ""
    clusters: dict[str, State] = field(default_factory=lambda: {"c0": State()})
    dead: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    """Those of the dead that never come back."""
    stated: set[str] = field(default_factory=set)
    """Clusters that an operator stated to be gone for good. What only they name may go."""
    adopters: set[str] = field(default_factory=set)
    """Clusters that were told so by an adoption."""
    objects: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    images: dict[str, tuple[str, State]] = field(default_factory=dict)
    puts: set[str] = field(default_factory=set)
    """Manifests whose PUT was sent and has neither landed nor failed."""
    marks: set[tuple[str, str]] = field(default_factory=set)
    restoring: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Object -> (cluster, session) that put it."""
    minted: int = 1
    minted_objects: set[str] = field(default_factory=set)

    def has(self, rule: str) -> bool:
        return rule not in self.without.split(", ")

    def putting(self, clusters: set[str]) -> bool:
        """Whether a manifest of theirs may still land: nobody calls them gone so early."""
        return any(self.images[name][0] in clusters for name in self.puts)

    def alive(self) -> list[str]:
        return [name for name in self.clusters if name not in self.dead]


def publish(world: World, cluster: str, name: str, obj: str, session: str) -> None:
    state = world.clusters[cluster]
    state.version += 1
    if not state.sessions.get(session) or obj in state.consumed:
        return
    drop(state, name)
    state.consumed.add(obj)
    state.live[name] = (obj, state.version)


def drop(state: State, name: str) -> None:
    if name in state.live:
        obj, born = state.live.pop(name)
        state.drops.append((obj, born, state.version))


# ---------------------------------------------------------------- steps


def step_open(world: World, rng: random.Random) -> None:
    state = world.clusters[rng.choice(world.alive())]
    state.sessions[f"{state.epoch}-{state.next_session}"] = True
    state.next_session += 1


def step_put(world: World, rng: random.Random) -> None:
    """An upload: its object's name is its session and a count within it."""
    cluster = rng.choice(world.alive())
    state = world.clusters[cluster]
    live = sorted(session for session, alive in state.sessions.items() if alive)
    if live:
        session = rng.choice(live)
        state.uploads[session] = state.uploads.get(session, 0) + 1
        obj = f"{session}/{state.uploads[session]}"
        if obj in world.minted_objects:
            raise LossError(f"{cluster} writes {obj} a second time")
        world.minted_objects.add(obj)
        world.objects.add(obj)
        world.uploads[obj] = (cluster, session)


def step_publish(world: World, rng: random.Random) -> None:
    ready = sorted(
        (obj, *where)
        for obj, where in world.uploads.items()
        if where[0] not in world.dead and obj in world.objects
    )
    if ready:
        obj, cluster, session = rng.choice(ready)
        publish(world, cluster, rng.choice(NAMES), obj, session)


def step_write(world: World, rng: random.Random) -> None:
    step_put(world, rng)
    step_publish(world, rng)


def step_delete(world: World, rng: random.Random) -> None:
    state = world.clusters[rng.choice(world.alive())]
    state.version += 1
    drop(state, rng.choice(NAMES))


def step_expire(world: World, rng: random.Random) -> None:
    state = world.clusters[rng.choice(world.alive())]
    if state.sessions:
        state.version += 1
        state.sessions[rng.choice(sorted(state.sessions))] = False


def step_collect(world: World, rng: random.Random) -> None:
    state = world.clusters[rng.choice(world.alive())]
    kept = []
    for obj, born, death in state.drops:
        pinned = world.has("pin") and any(
            born <= record.version < death for record in state.backups.values()
        )
        if pinned or (world.has("guard") and born <= state.guard):
            kept.append((obj, born, death))
        else:
            world.objects.discard(obj)
    state.drops = kept


def step_sweep(world: World, rng: random.Random) -> None:
    state = world.clusters[rng.choice(world.alive())]
    if state.guard >= 0 and world.has("sweep"):
        return
    for obj in list(world.objects):
        session = obj.split("/")[0]
        if state.sessions.get(session) is False and obj not in state.consumed:
            world.objects.discard(obj)


def step_backup(world: World, rng: random.Random) -> None:
    """The command, and the image that is read after its entry's last command."""
    cluster = rng.choice(world.alive())
    state = world.clusters[cluster]
    state.version += 1
    name = f"b{world.minted}"
    world.minted += 1
    before = state.version
    state.backups[name] = Record(before)
    if rng.random() < 0.5:  # more commands in the same entry
        step_publish(world, rng)
    if world.has("through"):
        state.backups[name].version = state.version
    world.images[name] = cluster, copy.deepcopy(state)


def step_send_manifest(world: World, rng: random.Random) -> None:
    ready = [
        name
        for cluster in world.alive()
        for name, record in world.clusters[cluster].backups.items()
        if not (record.kept or record.ending or record.inherited)
    ]
    if ready:
        world.puts.add(rng.choice(ready))


def step_land_manifest(world: World, rng: random.Random) -> None:
    if world.puts:
        name = rng.choice(sorted(world.puts))
        world.puts.discard(name)
        if rng.random() < 0.8:
            world.manifests.add(name)


def step_finish(world: World, rng: random.Random) -> None:
    del rng
    for cluster in world.alive():
        for name, record in world.clusters[cluster].backups.items():
            if name in world.manifests and not record.ending:
                record.kept = True


def step_end(world: World, rng: random.Random) -> None:
    """A deletion, a retention that is over, or a maker that died."""
    cluster = rng.choice(world.alive())
    state = world.clusters[cluster]
    for name, record in sorted(state.backups.items()):
        foreign = record.inherited and state.guard >= 0
        if not (foreign and world.has("not mine")) and rng.random() < 0.5:
            record.ending = True
            if not world.has("recheck"):
                record.checked = not marked(world, cluster, name)


def step_clear(world: World, rng: random.Random) -> None:
    for cluster in world.alive():
        for name, record in world.clusters[cluster].backups.items():
            if record.ending and rng.random() < 0.7:
                world.manifests.discard(name)


def marked(world: World, cluster: str, name: str) -> bool:
    """Whether another cluster may need a hold; those that are down are stated to be gone."""
    others = {who for backup, who in world.marks if backup == name and who != cluster}
    if not world.has("markers"):
        return False
    if others - world.dead or world.putting(others):
        return True
    world.stated |= others
    if world.has("theirs"):
        world.manifests -= {one for one in world.images if world.images[one][0] in others}
    return False


def step_check(world: World, rng: random.Random) -> None:
    del rng
    for cluster in world.alive():
        for name, record in world.clusters[cluster].backups.items():
            gone = name not in world.manifests or not world.has("manifest first")
            settled = name not in world.puts or not world.has("late put")
            if record.ending and gone and settled and world.has("recheck"):
                record.checked = not marked(world, cluster, name)
                if record.checked:
                    mine = (name, cluster) if world.has("adopters") else ()
                    world.marks = {mark for mark in world.marks if mark[0] != name or mark == mine}


def step_release(world: World, rng: random.Random) -> None:
    del rng
    for cluster in world.alive():
        state = world.clusters[cluster]
        for name, record in list(state.backups.items()):
            gone = name not in world.manifests or not world.has("manifest first")
            if record.ending and record.checked and gone:
                state.version += 1
                del state.backups[name]
                if not world.has("manifest first"):
                    continue  # and the manifest goes some time later


def step_mark(world: World, rng: random.Random) -> None:
    known = sorted(world.manifests)
    if known and has_room(world):
        name = rng.choice(known)
        cluster = f"c{world.minted}"
        world.minted += 1
        leave_marks(world, cluster, name)
        world.restoring[cluster] = name


def step_restore(world: World, rng: random.Random) -> None:
    if not world.restoring:
        return
    cluster = rng.choice(sorted(world.restoring))
    name = world.restoring.pop(cluster)
    if name not in world.manifests:
        world.marks = {mark for mark in world.marks if mark[1] != cluster}
        return
    begin(world, cluster, name)


def step_unheld(world: World, rng: random.Random) -> None:
    """A restore though nobody keeps the backup: its maker has ended, and no body is missing."""
    known = sorted(
        name
        for name, (maker, image) in world.images.items()
        if name not in world.manifests | world.puts
        and maker in world.dead
        and not (maker in world.stated and world.has("unheld gone"))
        and all(obj in world.objects for obj, _ in image.live.values())
    )
    if known and has_room(world):
        name = rng.choice(known)
        cluster = f"c{world.minted}"
        world.minted += 1
        world.ended.add(world.images[name][0])
        if world.has("unheld mark"):
            leave_marks(world, cluster, name)
        begin(world, cluster, name)


def has_room(world: World) -> bool:
    return len(world.clusters) + len(world.restoring) < CLUSTERS_MAX


def leave_marks(world: World, cluster: str, name: str) -> None:
    links = world.images[name][1].lineage if world.has("lineage") else ()
    world.marks |= {(link, cluster) for _, link in links} | {(name, cluster)}


def begin(world: World, cluster: str, name: str) -> None:
    """Make a cluster of a backup's image."""
    source, image = world.images[name]
    state = copy.deepcopy(image)
    for record in state.backups.values():
        record.kept, record.inherited = True, True
        record.ending = record.checked = False
    state.guard = state.version
    state.lineage = (*state.lineage, (source, name))
    if world.has("expire"):
        state.sessions = dict.fromkeys(state.sessions, False)
    if world.has("epoch"):
        state.epoch, state.next_session = world.minted, 1
        world.minted += 1
    world.clusters[cluster] = state


def step_die(world: World, rng: random.Random) -> None:
    if len(world.alive()) > 1 and rng.random() < 0.4:
        world.dead.add(rng.choice(world.alive()))


def step_return(world: World, rng: random.Random) -> None:
    """A cluster that was down comes back, also one of which nobody thought so any more."""
    down = sorted(world.dead - world.ended)
    if down and rng.random() < 0.4:
        cluster = rng.choice(down)
        if cluster not in world.stated or not world.has("gone"):
            world.dead.discard(cluster)


def step_adopt(world: World, rng: random.Random) -> None:
    """The operator states that clusters are gone; for now at least they are down."""
    cluster = rng.choice(world.alive())
    state = world.clusters[cluster]
    if state.guard < 0:
        return
    asked = {source for source, _ in state.lineage}
    if world.has("others"):
        asked |= {who for _, who in world.marks if who != cluster}
        asked |= world.adopters - {cluster} if world.has("adopters") else set()
        asked |= set(world.restoring)
    if asked - world.dead or world.putting(asked):
        return
    world.stated |= asked
    world.adopters.add(cluster)
    if world.has("unknown"):
        world.manifests &= set(state.backups)
    state.guard, state.lineage = -1, ()


STEPS: tuple[tuple[Callable[[World, random.Random], None], int], ...] = (
    (step_open, 2),
    (step_put, 2),
    (step_publish, 2),
    (step_write, 6),
    (step_delete, 3),
    (step_expire, 1),
    (step_collect, 5),
    (step_sweep, 2),
    (step_backup, 3),
    (step_send_manifest, 3),
    (step_land_manifest, 3),
    (step_finish, 3),
    (step_end, 2),
    (step_clear, 2),
    (step_check, 2),
    (step_release, 2),
    (step_mark, 2),
    (step_restore, 2),
    (step_unheld, 1),
    (step_die, 1),
    (step_return, 1),
    (step_adopt, 2),
)

RESTORED = [
    *(step_backup, step_send_manifest, step_land_manifest, step_finish, step_mark, step_restore)
]


ENDED = [*[step_end] * 2, *[step_clear] * 2, step_check, step_release]
RETURNED = [
    *(*[step_die] * 2, *[step_adopt] * 3, *ENDED, *[step_return] * 3),
    *(*ENDED, *[step_delete] * 2, step_collect),
]

UNHELD = [
    *(*[step_end] * 2, *[step_clear] * 2, *[step_die] * 3, *[step_unheld] * 2),
    *(*[step_adopt] * 3, *[step_delete] * 2, step_collect),
]

BESIDE = [
    *(*RESTORED[:4], *[step_write] * 2, *RESTORED, *[step_die] * 3, *[step_adopt] * 2, *ENDED),
    *(step_mark, step_restore, *[step_adopt] * 2, *[step_sweep] * 2),
]


def check(world: World) -> None:
    """Every body that a living cluster or a kept backup names is there."""
    for cluster in {*world.alive()} - world.stated:
        for obj, _ in world.clusters[cluster].live.values():
            if obj not in world.objects:
                raise LossError(f"{cluster} lost {obj}")
    for name in world.manifests:
        for obj, _ in world.images[name][1].live.values():
            if obj not in world.objects:
                raise LossError(f"backup {name} lost {obj}")


def run(seed: int, without: str = "") -> list[str]:
    """Run one random program; return its steps. Raises LossError."""
    rng = random.Random(seed)
    world = World(without)
    trace: list[str] = []
    steps = [step for step, _ in STEPS]
    weights = [weight * rng.choice((0, 1, 1, 3)) for _, weight in STEPS]
    weights[:4] = [2, 2, 2, 6]
    start = [step_open, *[step_write] * 3]
    for number in range(STEPS_MAX):
        (step,) = rng.choices(steps, weights)
        if rng.random() < 0.15:
            start += RESTORED
            start += rng.choice((RETURNED, BESIDE, UNHELD, [], []))
        step = start[number] if number < len(start) and rng.random() < 0.9 else step
        step(world, rng)
        trace.append(step.__name__)
        try:
            check(world)
        except LossError as error:
            error.add_note(" ".join(trace))
            raise
    return trace


def test_the_rules_hold() -> None:
    for seed in range(3000):
        run(seed)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_needed(rule: str) -> None:
    for seed in range(100_000):
        try:
            run(seed, rule)
        except LossError:
            return
    pytest.fail("nothing is lost without it")

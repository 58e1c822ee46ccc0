"""What a run does to its cluster, drawn for each seed.

Each fault is off in about a third of all runs and has its own rate in the others, so that rare
combinations come up that a fixed mix would drown (swarm testing, ISSTA 2012).
"""

from random import Random

import msgspec
from tests.simulation.ports import MS_NS, SECOND_NS

from nokv_replication import GroupConfig

CONFIG = GroupConfig(
    segment_bytes=16 << 10,
    log_keep_bytes=1 << 30,
    cache_bytes=8 << 10,
    batch_bytes=2 << 10,
    inflight_bytes=8 << 10,
    entry_max_bytes=4 << 10,
    queue_max_proposals=200,
    apply_slice_ns=40_000,
    commit_interval_ns=200 * MS_NS,
    commit_bytes=32 << 10,
    tick_interval_ns=2 * SECOND_NS,
    image_window_bytes=4 << 10,
    image_log_bytes=64 << 10,
    image_timeout_ns=3 * SECOND_NS,
    image_hold_ns=10 * SECOND_NS,
)
KEEP_LITTLE_BYTES = 24 << 10


class Swarm(msgspec.Struct, kw_only=True, frozen=True):
    """Rates in events a second of simulated time, and what holds for the whole run."""

    nodes: int
    propose: float
    read: float
    kill: float
    power: float
    blackout: float
    """All nodes lose their power at once."""
    armed: float
    """A process dies at a named external call."""
    io_error: float
    no_space: float
    slow_sync: float
    flip: float
    """A synced bit of a log turns."""
    lose_disk: float
    cut: float
    one_way: float
    shape: float
    """A partition of the whole cluster: halves, a bridge, a ring of majorities."""
    clog: float
    flap: float
    repeat: float
    """A frame comes twice, or once more on a later connection."""
    garbage: float
    pause: float
    wall: float
    transfer: float
    member: float
    loss: float
    delay_ns: tuple[int, int]
    image_flips: float
    """Share of an image's pieces of which a bit turns on the way."""
    drift_ppm: int
    """A node's clock runs so much faster or slower than the world's, at most."""
    keep_little: bool
    waiting: bool
    heals_all: bool
    """After the safety phase all come back; otherwise a bare quorum does."""


def draw_swarm(rng: Random, nodes: int | None) -> Swarm:
    """Choose a run's faults."""

    def some(*levels: float) -> float:
        return rng.choice((0.0, *levels))

    return Swarm(
        nodes=nodes if nodes is not None else rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 6, 7)),
        propose=rng.choice((10.0, 40.0, 100.0)),
        read=some(5.0, 40.0),
        kill=some(0.05, 0.3),
        power=some(0.05, 0.3),
        blackout=some(0.0, 0.05),
        armed=some(0.1, 0.5),
        io_error=some(0.0, 0.1),
        no_space=some(0.0, 0.1),
        slow_sync=some(0.0, 0.1),
        flip=some(0.0, 0.0, 0.1),
        lose_disk=some(0.0, 0.0, 0.05),
        cut=some(0.1, 0.5),
        one_way=some(0.1, 0.5),
        shape=some(0.0, 0.2),
        clog=some(0.0, 0.5),
        flap=some(0.3, 2.0),
        repeat=some(0.0, 0.5),
        garbage=some(0.0, 0.1),
        pause=some(0.1, 0.4),
        wall=some(0.2),
        transfer=some(0.05, 0.5),
        member=some(0.0, 0.2, 1.0),
        loss=rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
        delay_ns=rng.choice(((20_000, 300_000), (100_000, 30 * MS_NS), (1_000, 200 * MS_NS))),
        image_flips=rng.choice((0.0, 0.0, 0.02)),
        drift_ppm=rng.choice((0, 0, 200, 50_000, 200_000)),
        keep_little=rng.random() < 0.5,
        waiting=rng.random() < 0.3,
        heals_all=rng.random() < 0.5,
    )

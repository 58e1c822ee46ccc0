"""Scripted nodes of which one needs a state image, and what moves the image on."""

from collections.abc import Callable

import msgspec
from tests.simulation.ports import MS_NS
from tests.simulation.script import CONFIG, Script

from nokv_replication import GroupConfig
from nokv_replication.image_frames import ImageFrame, decode_image_frame

SMALL = msgspec.structs.replace(
    CONFIG, segment_bytes=1024, log_keep_bytes=0, image_window_bytes=4000, commit_interval_ns=MS_NS
)


def fallen_behind(
    nodes: int = 3, config: GroupConfig = SMALL, entries: int = 150, *lost: int
) -> Script:
    """Node 1 leads; the last node (or `lost`) misses entries that the others have dropped."""
    script = Script(nodes, config=config)
    script.lead(1)
    script.settle()
    lost = lost or (nodes,)
    for node in lost:
        script.isolate(node)
    rest = [node for node in script.addresses if node not in lost]
    for i in range(entries):
        script.propose(1, b"%d" % i + bytes(100))
        script.settle(*rest, rounds=2)
    script.settle(*rest, rounds=20)
    assert script.groups[1]._log.base_index > script.groups[lost[0]]._log.last_index
    return script


def until(script: Script, what: Callable[[], object], rounds: int = 400) -> None:
    """Let all nodes talk until something is so."""
    for _ in range(rounds):
        if what():
            return
        script.settle(rounds=1)
    raise AssertionError("it did not come to be")


def caught_up(script: Script, node: int) -> bool:
    return (
        script.groups[node]._applier.applied.index == script.groups[1]._log.last_index
        and script.machines[node].items == script.machines[1].items
    )


def to_offer(script: Script, node: int = 3) -> None:
    """Go on until the leader's offer is on its way."""
    until_dialed(script, node)
    script.connect_images()
    script.step(1)
    assert script.images[1, node][node]


def until_dialed(script: Script, node: int = 3) -> None:
    for _ in range(200):
        if (1, node) in script.dialed_images:
            return
        script.wait(20 * MS_NS)
        names = list(script.groups)
        for one in names:
            script.step(one)
        for one in names:
            for other in names:
                script.deliver(one, other)
    raise AssertionError("no image was offered")


def pump(script: Script, rounds: int, node: int = 3) -> None:
    """Let an image, and nothing else, move on."""
    for _ in range(rounds):
        script.wait(MS_NS)
        script.step(1)
        script.deliver_image(1, node, node)
        script.deliver_image(1, node, 1)


def frames(script: Script, receiver: int, node: int = 3) -> list[ImageFrame]:
    return [decode_image_frame(data) for data in script.images[1, node][receiver]]

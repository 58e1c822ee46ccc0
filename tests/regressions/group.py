"""The second half of each regression test: the same schedule through `Group`, by hand."""

from tests.simulation.script import CONFIG, Script

from nokv_replication import Committed, GroupConfig
from nokv_replication.frames import Body, Frame, encode


def led(nodes: int = 3, config: GroupConfig = CONFIG) -> Script:
    """A group that node 1 leads, founded, with nothing on its way."""
    script = Script(nodes, config=config)
    script.lead(1)
    script.settle()
    return script


def bodies(script: Script, sender: int, receiver: int, kind: type) -> list[Body]:
    """What of one kind is on its way, in order."""
    return [f.body for f in script.on_the_way(sender, receiver) if isinstance(f.body, kind)]


def replay(script: Script, sender: int, receiver: int, *old: Body) -> None:
    """Hand frames of the past to a node, as first ones of a new connection; the rest is lost."""
    script.cut(sender, receiver)
    script.connect(sender, receiver)
    for sequence, body in enumerate(old, 1):
        frame = Frame(sender, script._epoch, sequence, body)
        script.groups[receiver].receive(sender, encode(frame))
    script.step(receiver)


def committed(script: Script, *payloads: bytes) -> bool:
    """Whether the clients of all these were told that they are committed."""
    return all(isinstance(script.outcomes.get(payload), Committed) for payload in payloads)


def survivors_hold(script: Script, node: int, *payloads: bytes) -> bool:
    """Whether a node has applied all these."""
    return set(payloads) <= set(script.machines[node].items)

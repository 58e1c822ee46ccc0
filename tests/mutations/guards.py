"""The guards of replication, each with the text that switches it off.

A guard is a piece of source in one module, what replaces it, and the tests likely to notice, the
likeliest first. Text that is no longer there exactly once is an error, not a guard that held.
"""

from tests.mutations.consensus import ACKS, APPENDS, DURABILITY, ELECTIONS, READS, STATE
from tests.mutations.guard import Guard
from tests.mutations.operations import CHANGES, IMAGE, NETWORK, WIRE

GUARDS: dict[str, Guard] = {
    **APPENDS,
    **ACKS,
    **ELECTIONS,
    **READS,
    **DURABILITY,
    **STATE,
    **IMAGE,
    **WIRE,
    **CHANGES,
    **NETWORK,
}

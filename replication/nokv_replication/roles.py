"""Why a node's role changed, in words for the operator's log."""

from nokv_replication.types import Role


def reason_of(was: Role, role: Role, *, newer_term: bool, leader: int | None) -> str:
    """Return why `was` became `role`; `leader` is who leads the term now, as far as is known."""
    assert was != role
    if role == Role.LEADER:
        return "a quorum voted for this node"
    if role == Role.CANDIDATE:
        return "no leader was heard in time, or the leader asked this node to take over"
    if leader is not None:
        return f"node {leader} leads"
    if newer_term:
        return "a newer term was seen"
    return "a quorum did not answer in time" if was == Role.LEADER else "the election was not won"

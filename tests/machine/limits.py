"""The limits made small in the model and in the state machine alike, so that they are met."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Not LINK_MAX: whether names in a removed tree count before the reaper comes by is open.
# Not PINS_MAX and VIEW_DEPTH_MAX: which origins the views depend on, and so pin, is open.
SMALL = {
    "ATOMIC_MAX": 2,
    "BULK_NAMES_MAX": 2,
    "CHUNKS_A_STEP": 1,
    "DEPTH_MAX": 3,
    "EXTENTS_PER_CHUNK_MAX": 4,
    "LEASES_MAX": 2,
    "MERGED_INLINE_BYTES_MAX": 5_000,
    "NESTED_VIEWS_MAX": 2,
    "PINS_PER_SESSION_MAX": 3,
    "PREDICATES_MAX": 1,
    "RESULT_WINDOW": 8,
    "SNAPSHOTS_MAX": 3,
    "SNAPSHOTS_PER_MAKER_MAX": 2,
    "STAGES_MAX": 2,
    "SYMLINK_HOPS_MAX": 2,
    "TRUNCATE_CHUNKS_MAX": 1,
    "UPLOAD_WINDOW": 12,
    "XATTR_LIST_BYTES_MAX": 17,
}


@contextmanager
def small_limits() -> Iterator[None]:
    """Set every limit wherever the two sides have imported it, and put it back."""
    changed = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("nokv.state.", "nokv_model.")):
            for limit in SMALL.keys() & vars(module).keys():
                changed.append((module, limit, getattr(module, limit)))
                setattr(module, limit, SMALL[limit])
    places = {limit for _, limit, _ in changed}
    assert places == set(SMALL), f"limits that nothing uses: {set(SMALL) - places}"
    try:
        yield
    finally:
        for module, limit, value in changed:
            setattr(module, limit, value)

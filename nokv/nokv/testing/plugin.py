"""The pytest plugin: fixtures for people's own tests, loaded by the entry point.

It imports nothing of NoKV until a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nokv.testing.cluster import LocalCluster


@pytest.fixture(scope="session")
def nokv_cluster() -> Iterator[LocalCluster]:
    """A running three-node cluster (`nokv.testing.cluster.LocalCluster`), one for the session.

    Tests share it: let each work below a directory of its own, and restart what it kills. For one
    that a test may wreck, use `LocalCluster.start()` itself.
    """
    from nokv.testing.cluster import LocalCluster

    with LocalCluster.start() as cluster:
        yield cluster

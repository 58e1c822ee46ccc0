"""Closes behind each test what its stock clusters opened."""

from collections.abc import Iterator

import pytest
from tests.regressions.stock import OPEN


@pytest.fixture(autouse=True)
def _stock_clusters_are_closed() -> Iterator[None]:
    yield
    while OPEN:
        cluster = OPEN.pop()
        for name in list(cluster.nodes):
            cluster.crash(name)

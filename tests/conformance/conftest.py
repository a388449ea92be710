"""Every test of the suite runs on the simulated cluster and on a real Kafka (marker `stack`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .clusters import Bench, Cluster, RealCluster, Simulated


@pytest.fixture(params=["simulated", pytest.param("kafka", marks=pytest.mark.stack)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "simulated":
        return Simulated()
    return RealCluster(request.getfixturevalue("stack").bootstrap)


@pytest.fixture
async def bench(cluster: Cluster) -> AsyncIterator[Bench]:
    found = Bench(cluster)
    yield found
    await found.close()

"""The cost model of a step: a ring that is really walked, and laws that hold for any workload."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nercrf.training.cost import (
    BUCKET_BYTES,
    Cluster,
    Link,
    Workload,
    exchange_seconds,
    ring_bytes,
    step_cost,
)

WORKLOADS = st.builds(
    Workload,
    parameters=st.integers(10**5, 10**9),
    matrix_parameters=st.integers(10**5, 10**9),
    pieces=st.integers(1, 10**5),
    accumulation=st.integers(1, 64),
    gradient_bytes=st.sampled_from([2, 4]),
    strategy=st.sampled_from(["ddp", "fsdp"]),
)
LINKS = st.builds(Link, bandwidth=st.floats(1e7, 1e12), latency=st.floats(0, 1e-3))
CLUSTERS = st.builds(
    Cluster,
    operations=st.floats(1e9, 1e15),
    devices_a_host=st.integers(1, 16),
    inside=LINKS,
    between=LINKS,
)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 7])
def test_a_ring_that_is_walked_sends_these_bytes_and_makes_the_sum(devices):
    rng = np.random.default_rng(devices)
    gradients = rng.normal(size=(devices, 12 * 7 * devices)).astype(np.float32)
    parts = np.stack(
        [np.split(row.copy(), devices) for row in gradients]
    )  # (device, part, numbers)
    sent = np.zeros(devices)
    for phase in ("add", "copy"):
        for step in range(devices - 1):
            moving = [
                (rank, (rank - step + (phase == "copy")) % devices) for rank in range(devices)
            ]
            messages = [(rank, part, parts[rank, part].copy()) for rank, part in moving]
            for rank, part, message in messages:
                sent[rank] += message.nbytes
                neighbour = (rank + 1) % devices
                parts[neighbour, part] = message + (parts[neighbour, part] if phase == "add" else 0)
    for rank in range(devices):
        np.testing.assert_allclose(parts[rank].ravel(), gradients.sum(0), rtol=1e-4, atol=1e-5)
        assert sent[rank] == ring_bytes(gradients[0].nbytes, devices)


@given(WORKLOADS, CLUSTERS, st.integers(1, 128))
@settings(max_examples=200, deadline=None)
def test_laws_of_a_step(workload, cluster, devices):
    hidden, bare = (step_cost(workload, cluster, devices, overlap) for overlap in (True, False))
    alone = step_cost(workload, cluster, 1)
    compute = workload.operations / cluster.operations
    assert alone.seconds == pytest.approx(compute)
    assert alone.efficiency == pytest.approx(1.0)
    # nothing is hidden that does not travel, and never more than the backward pass is long
    assert compute <= hidden.seconds * (1 + 1e-9)
    assert hidden.seconds <= bare.seconds * (1 + 1e-9)
    assert bare.seconds == pytest.approx(compute + bare.exchange)
    assert bare.seconds - hidden.seconds <= compute + 1e-9
    assert 0 < hidden.efficiency <= 1 + 1e-9
    # at least the last bucket is waited for
    buckets = max(1.0, workload.parameters * workload.gradient_bytes / BUCKET_BYTES)
    assert hidden.exposed >= hidden.exchange / buckets * (1 - 1e-9)
    # more work between two exchanges never makes a device less busy
    more = step_cost(replace(workload, accumulation=workload.accumulation * 2), cluster, devices)
    assert more.efficiency >= hidden.efficiency * (1 - 1e-9)


@given(st.floats(1, 1e12), st.integers(1, 500), LINKS)
@settings(max_examples=100, deadline=None)
def test_a_ring_never_sends_more_than_twice_the_gradient(size, devices, link):
    assert ring_bytes(size, devices) < 2 * size
    assert ring_bytes(size, devices, "fsdp") == pytest.approx(1.5 * ring_bytes(size, devices))
    assert exchange_seconds(size, devices + 1, link) > exchange_seconds(size, devices, link)

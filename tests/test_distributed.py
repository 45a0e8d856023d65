"""Processes and devices: messages, the main process first, gradients over shares."""

import time
import warnings
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from torch import nn
from workers import run_workers

from nercrf.distributed import devices, processes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ranks():
    return run_workers("together")[0]


def test_each_process_knows_itself(ranks):
    results = [result["collectives"] for result in ranks]
    assert [result["info"] for result in results] == [
        [0, 0, 2, 0, "gloo", True],
        [1, 1, 2, 0, "gloo", False],
    ]
    assert all(result["same"] and result["world"] == 2 for result in results)


def test_messages_arrive_in_order_of_rank(ranks):
    expected = [
        {"rank": rank, "text": "李" * (rank * 50), "pair": [1, 2], "none": None} for rank in (0, 1)
    ]
    for result in (result["collectives"] for result in ranks):
        assert result["gathered"] == expected
        assert result["empty"] == [[], ""]
        assert result["heard"] == {"from": 0}


def test_sums_keep_their_type_and_argument(ranks):
    for rank, result in enumerate(result["collectives"] for result in ranks):
        assert result["counts"] == [2, 1]
        assert result["untouched"] == [1, rank]
        assert result["total"] == [1 + 2**-39, "torch.float64", False]


def test_failure_of_the_main_process_reaches_all(ranks):
    outcomes = [result["collectives"]["outcome"] for result in ranks]
    assert outcomes[0] == "OSError: no space left"
    assert outcomes[1].startswith("RuntimeError: process 0 failed")
    assert "no space left" in outcomes[1]


def test_only_the_first_process_builds(ranks):
    """The reference's barrier never ran, so that every process built the cache."""
    assert [result["first_builds"] for result in ranks] == [["one", "two"], []]


def test_ddp_gradient_equals_one_process(ranks):
    for result in (result["data_parallel_gradients"] for result in ranks):
        assert result["type"] == "DistributedDataParallel"
        assert result["unwrapped"]
        assert result["difference"] < 1e-6


def test_a_failing_process_ends_all_soon():
    start = time.monotonic()
    results, finished = run_workers("failing_main", check=False)
    assert finished.returncode != 0
    assert results == [None, None]
    assert "ValueError: line 7: no tag" in finished.stderr
    assert time.monotonic() - start < 60


def test_errors_of_the_launch(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        processes.init_distributed(local_rank=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=None"):
        processes.init_distributed()
    monkeypatch.setenv("RANK", "-1")
    with pytest.raises(ValueError, match="expected a number"):
        processes.init_distributed()


def test_more_processes_than_gpus_is_refused():
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=1),
        pytest.raises(ValueError, match="needs GPU 1, but this host has 1"),
    ):
        processes._choose_device(False, local_rank=1, world_size=2)


def test_one_process_with_gpus_drives_them_all(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.device_count", return_value=4),
        patch("torch.cuda.set_device"),
    ):
        info = processes.init_distributed()
        assert (info.n_gpu, info.device, info.backend) == (4, torch.device("cuda", 0), "")
        assert processes.init_distributed(no_cuda=True).n_gpu == 0


class PaddedLoss(nn.Module):
    """A model with batch-dependent padding, a loss and a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.linear = nn.Linear(6, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids, mask):
        logits = self.linear(self.embedding(ids)) * self.scale
        return {"loss": (logits.logsumexp(-1) * mask).sum(), "logits": logits}


def make_share(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"ids": ids, "mask": ids > 0}


ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11], [12]]


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def expected_gradients(model):
    model.zero_grad()
    model(**make_share(ROWS))["loss"].backward()
    return gradients(model)


@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 1, 2, 5]])
def test_shares_give_the_gradient_of_the_whole(cuts):
    torch.manual_seed(0)
    model = PaddedLoss()
    expected = expected_gradients(model)
    model.zero_grad()
    parallel = devices.BatchDataParallel(model, [CPU] * 3)
    shares = [make_share(ROWS[start:end]) for start, end in pairwise(cuts)]
    outputs = parallel(shares)
    assert [len(output["logits"]) for output in outputs] == [len(share["ids"]) for share in shares]
    sum(output["loss"] for output in outputs).backward()
    torch.testing.assert_close(gradients(model), expected)


def test_real_replicas_give_the_gradient_of_the_whole():
    """torch's own replication, as on GPUs, with only the copy between devices replaced by one
    within the CPU.
    """
    torch.manual_seed(0)
    model = PaddedLoss()
    expected = expected_gradients(model)
    model.zero_grad()

    def copies(tensors, devices, detach=False):
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    class WithReplicas(devices.BatchDataParallel):
        def _run(self, shares, devices):
            replicas = self.replicate(self.module, devices)
            assert all(not list(replica.parameters()) for replica in replicas)
            return [replica(**share) for replica, share in zip(replicas, shares, strict=True)]

    with (
        patch("torch.nn.parallel.replicate._broadcast_coalesced_reshape", copies),
        patch("torch.nn.parallel.replicate._get_device_index", lambda device, optional: device),
    ):
        outputs = WithReplicas(model, [CPU] * 2)([make_share(ROWS[:2]), make_share(ROWS[2:])])
    sum(output["loss"] for output in outputs).backward()
    torch.testing.assert_close(gradients(model), expected)


def test_threads_keep_the_modes_of_the_caller():
    parallel = devices.BatchDataParallel(nn.Linear(2, 2), [CPU] * 2)
    share = {"input": torch.ones(1, 2)}
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = parallel([share, share])
    assert [output.dtype for output in outputs] == [torch.bfloat16] * 2
    assert not any(output.requires_grad for output in outputs)
    assert all(output.requires_grad for output in parallel([share, share]))


def test_errors_of_shares():
    parallel = devices.BatchDataParallel(nn.Linear(2, 2), [CPU] * 2)
    with pytest.raises(ValueError, match=r"expected 1 to 2 batches.*got 3"):
        parallel([{"input": torch.ones(1, 2)}] * 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        parallel([{"input": torch.ones(1, 2)}, {"input": torch.ones(1, 5)}])


class Compiled(nn.Module):
    """What `torch.compile` returns, without its start-up time."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def test_ddp_sends_no_buffers_at_each_step_and_is_not_warned_of(tmp_path):
    """A group of one process is enough to wrap a model."""
    info = processes.ProcessInfo(world_size=2)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = devices.wrap_model(nn.Linear(2, 2), info)
        assert wrapped.broadcast_buffers is False
    finally:
        torch.distributed.destroy_process_group()


def test_unwrap_takes_off_every_layer():
    model = nn.Linear(2, 2)
    wrapped = devices.BatchDataParallel(Compiled(model), [CPU])
    assert devices.unwrap_model(wrapped) is model
    assert list(devices.unwrap_model(wrapped).state_dict()) == ["weight", "bias"]

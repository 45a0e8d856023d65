"""Hosts that fail: a process that raises, a host that dies and comes back, a host that is cut off.

A host is an agent of torchrun with its processes. Where a network is needed hosts are network
namespaces of Linux, see `hosts`; these tests need root.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from hosts import Network
from safetensors.torch import load_file
from training import read_history, write_corpus

TESTS = Path(__file__).resolve().parent
SCRIPT = TESTS / "paced_training.py"
PATIENCE = 600  # seconds for what takes one or two minutes on a machine that has nothing else to do


def launch(arguments, prefix=(), **environment):
    """Start torchrun with the paced trainer; its output is collected in one pipe."""
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", *arguments]
    values = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)} | environment
    values["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = (
        "1"  # with one store a host that comes back waits for ever
    )
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=values,
    )


def training_flags(folder, data, epochs):
    """Seven updates an epoch, no dropout; a checkpoint every third update."""
    return [
        SCRIPT,
        "--do_train",
        "--data_dir",
        data,
        "--output_dir",
        folder,
        "--no_cuda",
        "--resume",
        "auto",
        "--num_train_epochs",
        epochs,
        "--train_batch_size",
        8,
        "--per_gpu_train_batch_size",
        8,
        "--eval_steps",
        0,
        "--save_steps",
        3,
        "--logging_steps",
        7,
        "--dropout",
        0,
        "--encoder_dropout",
        0,
        "--ddp_timeout",
        12,
    ]


def steps(folder):
    """The updates of which there are checkpoints."""
    return [int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-[0-9]*")]


def wait_until(reached, what, processes, seconds=PATIENCE):
    """Wait for a condition; an end of one of the processes is a failure that shows its output."""
    end = time.monotonic() + seconds
    while not reached():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, f"ended before {what}: {ended[0].stdout.read()[-3000:]}"
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def kill_host(process):
    """End an agent and all its processes at once, as a loss of power does."""
    everything = [
        *psutil.Process(process.pid).children(recursive=True),
        psutil.Process(process.pid),
    ]
    for each in everything:
        each.kill()
    process.communicate()


def is_over(process):
    """Has a process ended, whether its parent has noticed or not?"""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def undisturbed(folder, data, epochs):
    """The log and the weights of the same training in one process that nothing disturbs."""
    command = [sys.executable, *training_flags(folder, data, epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True)
    return read_history(folder), load_file(folder / "model" / "model.safetensors")


def assert_same_training(folder, expected):
    """The log has the same steps, each once, and the weights are equal up to the rounding of
    float32 sums.

    A change of the number of processes changes the order in which a gradient is added up; AdamW's
    step is at most the learning rate, 2e-3 here, whatever the gradient's size, so a difference in
    the last bit of a gradient near zero can show as a fraction of that, and it grows from update to
    update. 2e-4 is a tenth of one step, after 98 of them.
    """
    log, weights = expected
    assert [line["step"] for line in read_history(folder)] == [line["step"] for line in log]
    for line, other in zip(read_history(folder), log, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-4)
    for name, tensor in load_file(folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-4, msg=name)


def process_counts(output):
    """How many processes each start of the training had."""
    return [int(line.split()[-2]) for line in output.splitlines() if "training on" in line]


def rendezvous(address, is_host, own_address=None):
    """One or two hosts, one process each, three restarts; the first host keeps the list of hosts."""
    own_address = own_address or address.split(":")[0]
    conf = f"is_host={int(is_host)},join_timeout=60,last_call_timeout=2"
    return [
        "--nnodes=1:2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv_backend=c10d",
        "--rdzv_id=test",
        f"--rdzv_endpoint={address}",
        f"--rdzv_conf={conf}",
        f"--local_addr={own_address}",
    ]


def free_port():
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_process_that_fails_ends_all_with_its_traceback_first(tmp_path):
    data = write_corpus(tmp_path / "data")
    arguments = ["--standalone", "--nproc_per_node=2", *training_flags(tmp_path / "out", data, 2)]
    began = time.monotonic()
    process = launch(arguments, FAIL_AT="1:4")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert time.monotonic() - began < 180  # half a minute, where nothing else runs
    assert "RuntimeError: this test wants process 1 to fail" in output
    assert output.index("this test wants process 1 to fail") < output.find(
        "Connection", output.index("Traceback")
    )
    assert steps(tmp_path / "out") == [3]


@pytest.mark.slow
def test_a_host_that_dies_and_comes_back(tmp_path):
    """Killed in mid-epoch: the other goes on alone; when it comes back, both go on."""
    data, out, epochs = write_corpus(tmp_path / "data"), tmp_path / "out", 14
    expected = undisturbed(tmp_path / "expected", data, epochs)
    address = f"127.0.0.1:{free_port()}"
    flags = training_flags(out, data, epochs)
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(launch([*rendezvous(address, i == 0), *flags], PACE="0.8"))
            for i in range(2)
        ]
        stack.callback(lambda: [host.poll() is None and kill_host(host) for host in hosts])
        wait_until(lambda: max(steps(out), default=0) >= 12, "update 12", hosts)
        kill_host(hosts[1])
        reached = max(steps(out))
        wait_until(
            lambda: max(steps(out)) > reached + 3, "progress of the host that is left", hosts[:1]
        )
        hosts[1] = stack.enter_context(launch([*rendezvous(address, False), *flags], PACE="0.8"))
        outputs = [host.communicate(timeout=PATIENCE)[0] for host in hosts]
    first, second = map(
        process_counts, outputs
    )  # the process of rank 0 logs, and it can be on either host
    assert first[0] == 2
    assert 1 in first
    assert second == [2] or first[-1] == 2, outputs[0][-3000:] + outputs[1][-3000:]
    assert [host.returncode for host in hosts] == [0, 0]
    assert_same_training(out, expected)


# --- with networks
# ------------------------------------------------------------------------------------------------

EPOCHS = 14  # about a minute and a half on two hosts, without what befalls them


@pytest.fixture(scope="module")
def long_training(tmp_path_factory):
    """The data, and what a training on it gives that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_corpus(folder / "data")
    return data, undisturbed(folder / "expected", data, EPOCHS)


@pytest.fixture
def network(request):
    """Two hosts; torchrun numbers processes by address, and the lower one can be that of either host."""
    ends = {"kept": 1 + (request.param == 0), "lost": 1 + (request.param == 1)}
    with Network(**{name: f"10.77.0.{end}" for name, end in ends.items()}) as network:
        yield network


lost_has_rank = partial(
    pytest.mark.parametrize, "network", indirect=True, ids="the lost host has rank {}".format
)


def join(network, name, flags):
    """Start the training on a host; the one that is kept has the list of hosts."""
    address = f"{network.addresses['kept']}:29400"
    arguments = [*rendezvous(address, name == "kept", network.addresses[name]), *flags]
    return launch(arguments, network.run_on(name), PACE="0.8", GLOO_SOCKET_IFNAME="eth0")


def start_both(network, flags, out):
    """Both hosts, when they have made 12 updates and are in the midst of an epoch."""
    hosts = [join(network, name, flags) for name in ("kept", "lost")]
    wait_until(lambda: max(steps(out), default=0) >= 12, "update 12", hosts)
    return hosts


def wait_for_progress(host, out):
    """The host goes on without the other one; it has to notice first that the other is lost."""
    reached = max(steps(out))
    wait_until(lambda: max(steps(out)) > reached + 3, "progress of the host that is left", [host])


def assert_both_came_to_the_end(hosts, out, expected):
    """The first attempt had both processes, a later one had one, the last one had both again."""
    outputs = [host.communicate(timeout=PATIENCE)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert_same_training(out, expected)
    return "".join(outputs)


@pytest.mark.slow
@lost_has_rank([0, 1])
def test_a_host_that_is_cut_off_ends_and_is_started_again(network, long_training, tmp_path):
    """Its process gives up after --ddp_timeout, its agent when its kernel gives up; the other host
    goes on alone.
    """
    (data, expected), out = long_training, tmp_path / "out"
    network.set_kernel(
        "lost", "net.ipv4.tcp_retries2=6"
    )  # with the usual 15 it takes a quarter of an hour
    flags = training_flags(out, data, EPOCHS)
    kept, lost = start_both(network, flags, out)
    processes = psutil.Process(lost.pid).children(recursive=True)
    network.cut("lost")
    wait_until(
        lambda: all(map(is_over, processes)),
        "end of the process that is cut off",
        [kept],
        12 + 120,  # of torch's own timeout: half an hour
    )
    output, _ = lost.communicate(timeout=PATIENCE)
    assert lost.returncode == 1
    rank = sorted(network.addresses.values()).index(network.addresses["lost"])
    assert f"[rank{rank}]: RuntimeError" in output
    assert "Timed out waiting 12000ms" in output
    wait_for_progress(kept, out)
    network.plug_in("lost")
    again = join(network, "lost", flags)
    output += assert_both_came_to_the_end([kept, again], out, expected)
    counts = process_counts(output)
    assert sorted(counts) == [1, 2, 2], counts


@pytest.mark.slow
@lost_has_rank([0])
def test_a_host_whose_network_returns_joins_again_by_itself(network, long_training, tmp_path):
    """Its agent is still there and asks for the list of hosts; nobody has to start anything."""
    (data, expected), out = long_training, tmp_path / "out"
    hosts = start_both(network, training_flags(out, data, EPOCHS), out)
    network.cut("lost")
    wait_for_progress(hosts[0], out)
    network.plug_in("lost")
    counts = process_counts(assert_both_came_to_the_end(hosts, out, expected))
    assert sorted(counts) == [1, 2, 2], counts


@pytest.mark.slow
@lost_has_rank([1])
def test_a_host_that_is_killed_while_its_network_lives(network, long_training, tmp_path):
    """The other host is told by its kernel and need not wait for --ddp_timeout."""
    (data, expected), out = long_training, tmp_path / "out"
    flags = training_flags(out, data, EPOCHS)
    kept, lost = start_both(network, flags, out)
    kill_host(lost)
    wait_for_progress(kept, out)
    counts = process_counts(
        assert_both_came_to_the_end([kept, join(network, "lost", flags)], out, expected)
    )
    assert 1 in counts, counts


@pytest.mark.slow
@lost_has_rank([1])
def test_a_cut_shorter_than_the_timeout_is_only_a_pause(network, tmp_path):
    """What was sent meanwhile is sent again; no process ends."""
    data, out = write_corpus(tmp_path / "data"), tmp_path / "out"
    expected = undisturbed(tmp_path / "expected", data, 4)
    hosts = start_both(network, training_flags(out, data, 4), out)
    network.cut("lost")
    time.sleep(4)
    network.plug_in("lost")
    assert process_counts(assert_both_came_to_the_end(hosts, out, expected)) == [2]

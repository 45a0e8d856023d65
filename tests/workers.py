"""Worker functions for tests with several processes, and the launcher that runs them.

`run_workers("name", processes=2)` starts `torchrun` on this very file; every process calls the
function `name` and writes what it returned, as JSON, to a file of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nercrf.distributed import devices, processes

ROOT = Path(__file__).resolve().parent.parent


def run_workers(name, processes=2, arguments=(), check=True, timeout=120):
    """Call worker `name` in several processes; return their results by rank (and the finished process)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
        ]
        command += [__file__, name, folder, *map(str, arguments)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        finished = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout
        )
        if check:
            assert finished.returncode == 0, finished.stderr
        files = [Path(folder, f"{rank}.json") for rank in range(processes)]
        return [json.loads(file.read_text()) if file.exists() else None for file in files], finished


def collectives(folder):
    """Every message function once, with values that differ by rank and in length."""
    info = processes.init_distributed(no_cuda=True)
    rank = processes.get_rank()
    again = processes.init_distributed(no_cuda=True)
    values = {"rank": rank, "text": "李" * (rank * 50), "pair": (1, 2), "none": None}
    counts = torch.tensor([1, rank], dtype=torch.int64)
    loss = torch.tensor(2**-40 + rank, dtype=torch.float64, requires_grad=True)
    total = processes.all_reduce_sum(loss)
    try:
        with processes.main_process_first():
            if processes.is_main_process():
                raise OSError("no space left")
        outcome = "no error"
    except (OSError, RuntimeError) as error:
        outcome = f"{type(error).__name__}: {error}"
    processes.barrier()
    return {
        "info": [
            info.rank,
            info.local_rank,
            info.world_size,
            info.n_gpu,
            info.backend,
            info.is_main,
        ],
        "same": info == again,
        "world": processes.get_world_size(),
        "gathered": processes.gather_json(values),
        "empty": processes.gather_json("" if rank else []),
        "heard": processes.broadcast_json({"from": rank}),
        "counts": processes.all_reduce_sum(counts).tolist(),
        "untouched": counts.tolist(),
        "total": [total.item(), str(total.dtype), total.requires_grad],
        "outcome": outcome,
    }


def first_builds(folder):
    """Both want one file; whoever does not find it builds it, slowly."""
    import time

    processes.init_distributed(no_cuda=True)
    built = []
    for name in ("one", "two"):
        file = Path(folder, name)
        with processes.main_process_first():
            if not file.exists():
                time.sleep(0.5)
                file.write_text("whole")
                built.append(name)
            assert file.read_text() == "whole"
    return built


def data_parallel_gradients(folder):
    """Gradient through DDP, with uneven shares, against that of one process."""
    info = processes.init_distributed(no_cuda=True)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    rows = torch.randn(7, 4)
    model(rows).square().sum().div(len(rows)).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    wrapped = devices.wrap_model(model, info)
    bounds = [0, 2, 7] if info.world_size == 2 else [0, 7]
    share = rows[bounds[info.rank] : bounds[info.rank + 1]]
    (wrapped(share).square().sum() * info.world_size / len(rows)).backward()
    pairs = zip(model.parameters(), whole, strict=True)
    return {
        "difference": max(float((parameter.grad - grad).abs().max()) for parameter, grad in pairs),
        "type": type(wrapped).__name__,
        "unwrapped": devices.unwrap_model(wrapped) is model,
    }


def together(folder):
    """All of the above in one launch: starting processes is what costs."""
    workers = (collectives, first_builds, data_parallel_gradients)
    return {worker.__name__: worker(folder) for worker in workers}


def by_document(result):
    """Figures over documents of two sentences, as if of three predictions two were right."""
    from nercrf.evaluation.evaluator import result_record

    right = result.found.select(np.arange(len(result.found)) % 3 > 0)
    documents = np.arange(result.sentences) // 2
    return result_record(replace(result, gold=right).over_documents(documents))


def evaluation(folder, batch_size):
    """The tiny model over the tiny development set, in a group."""
    from training import DEV, make_model

    from nercrf.evaluation.evaluator import evaluate, result_record

    processes.init_distributed(no_cuda=True)
    result = evaluate(make_model().eval(), DEV, batch_size=int(batch_size))
    figures = {"figures": result_record(result), "by_document": by_document(result)}
    return figures | {"predicted": result.predicted}


def evaluation_of_nested(folder):
    """A tagger that knows its words by heart, over sentences whose gold entities overlap; both ways
    to count.
    """
    from training import NESTED, WordTagger

    from nercrf.evaluation.evaluator import UNLEARNABLE, evaluate

    processes.init_distributed(no_cuda=True)
    return {
        way: evaluate(WordTagger(), NESTED, batch_size=1, unlearnable=way).to_dict()
        for way in UNLEARNABLE
    }


def same_updates(folder, settings):
    """The trainings of `test_training_distributed`, each with its share of a global batch of twelve
    sentences.
    """
    from training import updates_in_float64

    info = processes.init_distributed(no_cuda=True)
    results = []
    for number, changes in enumerate(json.loads(settings)):
        size = 12 // info.world_size // changes.get("gradient_accumulation_steps", 1)
        results.append(
            updates_in_float64(Path(folder, str(number)), per_gpu_train_batch_size=size, **changes)
        )
    return results


def updates_by_pieces(folder, settings):
    """Trainings whose batches go by word pieces, each with its share of the budget: losses,
    weights, and of each batch of this process the epoch, the sentences and the padded pieces."""
    from training import updates_in_float64

    from nercrf.training.callbacks import TrainingCallback

    class Seen(TrainingCallback):
        def __init__(self):
            self.batches = []

        def on_batch(self, run, batch, sentences):
            epoch, _ = run.plan.epoch_of(run.progress.step)
            self.batches.append([epoch, sentences.tolist(), batch["input_ids"].numel()])

        def on_backward(self, run, loss):
            if (
                float(loss) == 0.0
            ):  # nothing to do in this pass: a stand-in kept the processes together
                self.batches.pop()

    info = processes.init_distributed(no_cuda=True)
    results = []
    for number, changes in enumerate(json.loads(settings)):
        budget, seen = changes.pop("max_pieces") // info.world_size, Seen()
        path = Path(folder, str(number))
        losses, weights = updates_in_float64(path, callbacks=[seen], max_pieces=budget, **changes)
        results.append({"losses": losses, "weights": weights, "batches": seen.batches})
    return results


def interrupted_training(folder, stops, changes="{}"):
    """Trainings of a group that stop after some update and go on, beside one that was left alone:
    what differs.
    """
    from training import differences, train_in

    from nercrf.training.callbacks import TrainingCallback
    from nercrf.training.trainer import TrainingInterrupted

    class Stop(TrainingCallback):
        def __init__(self, step):
            self.step = step

        def on_update_end(self, run, update):
            if run.progress.step == self.step and run.info.rank == 1:
                run.stop.set()  # what a signal to one process does

    flags = {
        "per_gpu_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_steps": 3,
        "patience": 9,
        "do_adv": True,
        "word_dropout": 0.2,
        "fp16": True,
        "save_steps": 5,
        **json.loads(changes),
    }
    info = processes.init_distributed(no_cuda=True)
    parent = processes.broadcast_json(str(folder))
    whole = Path(parent, "whole")
    train_in(whole, **flags)
    found = {}
    for stop in json.loads(stops):
        parts = Path(parent, f"stop-{stop}")
        try:
            train_in(parts, callbacks=[Stop(stop)], **flags)
        except TrainingInterrupted:
            train_in(parts, resume="auto", **flags)
            found[stop] = differences(whole, parts) if info.is_main else []
    return found


def failing_main(folder):
    """The main process dies while the others wait for it."""
    processes.init_distributed(no_cuda=True)
    with processes.main_process_first():
        if processes.is_main_process():
            raise ValueError("line 7: no tag")
    return "unreachable"


def sharding(folder):
    """A tiny BERT with its encoder shared out, against the same model in one process."""
    import numpy as np
    from test_model import SENTENCES, make_batch, make_model

    from nercrf.training.optim import build_optimizer, encoder_layers

    info = processes.init_distributed(no_cuda=True)
    whole, model = make_model("bert").train(), make_model("bert").train()
    for module in [*whole.modules(), *model.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def backward(each, sentences, factor):
        batch = make_batch(each, sentences)
        loss = each(**batch, labels=torch.zeros_like(batch["word_index"]), reduction="sum").loss
        (loss * factor).backward()

    def difference(name):
        """The largest one between the tensors of both models."""
        pairs = zip(whole.parameters(), model.parameters(), strict=True)
        found = [[getattr(x, name) if name else x.detach() for x in pair] for pair in pairs]
        return max(
            float(
                (one - (other.full_tensor() if hasattr(other, "full_tensor") else other))
                .abs()
                .max()
            )
            for one, other in found
        )

    def held():
        return sum(
            p.to_local().numel() if hasattr(p, "to_local") else p.numel()
            for p in model.parameters()
        )

    batches = [
        SENTENCES,
        SENTENCES[1:],
    ]  # two micro-batches: two sentences here, one there; one each
    shares = [[SENTENCES[:2], SENTENCES[1:2]], [SENTENCES[2:], SENTENCES[2:]]][info.rank]
    for sentences in batches:
        backward(whole, sentences, 1 / 5)
    shards = [*encoder_layers(model)[1], model.encoder]
    assert devices.wrap_model(model, info, strategy="fsdp", shards=shards) is model
    optimizers = [build_optimizer(each, 1e-2, 1e-2) for each in (whole, model)]
    for number, sentences in enumerate(shares):
        with devices.exchange_gradients(model, now=number == 1):
            backward(model, sentences, info.world_size / 5)
    result = {"gradient": difference("grad")}
    norms = [devices.clip_gradients(list(each.parameters()), 0.5) for each in (whole, model)]
    assert norms[0] > 0.5
    result["norm"] = abs(float(norms[0]) - float(norms[1]))
    result["clipped"] = difference("grad")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    result["weights"] = difference("")
    result["held"], result["whole"] = held(), sum(p.numel() for p in whole.parameters())
    result["kinds"] = [type(model.encoder).__name__.removeprefix("FSDP"), type(model.crf).__name__]
    passes, logits = 0, []
    with torch.no_grad(), devices.whole_parameters(model):
        for _ in range(2 - 2 * info.rank):
            batch = make_batch(model, SENTENCES)
            logits.append(model(**batch).logits)
            model.decode(logits[-1], batch["word_mask"])
            passes += 1
    result["passes"], result["held_after"] = passes, held()
    expected = whole(**make_batch(whole, SENTENCES)).logits
    result["logits"] = max([float((expected - each).abs().max()) for each in logits], default=0.0)
    weights = devices.whole_weights(model)
    state = devices.whole_tensors(optimizers[1].state_dict())
    moments = [value for entry in state["state"].values() for value in entry.values()]
    result["state_on"] = bool(weights) and all(isinstance(value, torch.Tensor) for value in moments)
    names = list(whole.state_dict())
    rows = {name: weights[name].numpy() for name in names} if info.is_main else {}
    if info.is_main:
        np.savez(Path(folder, "weights.npz"), **rows)
        torch.save(state, Path(folder, "state.pt"))
    processes.barrier()
    before = devices.whole_tensors([p.detach() for p in model.parameters()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with np.load(Path(folder, "weights.npz")) as file:
        devices.load_whole_weights(model, {name: torch.from_numpy(file[name]) for name in names})
    state = torch.load(Path(folder, "state.pt"), weights_only=True)
    optimizers[1].load_state_dict(devices.share_state(state, optimizers[1]))
    again = devices.whole_tensors([p.detach() for p in model.parameters()])
    result["same_after"] = all(
        x is None or torch.equal(x, y) for x, y in zip(before, again, strict=True)
    )
    optimizers[1].step()  # without gradients: nothing moves, but the state has to fit
    return result


if __name__ == "__main__":
    worker, folder, *rest = sys.argv[1:]
    result = globals()[worker](folder, *rest)
    Path(folder, f"{processes.get_rank()}.json").write_text(json.dumps(result))
    processes.close_distributed()

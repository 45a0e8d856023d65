"""nercrf on an accelerator, in one short run: the CRF, a training step, and whole trainings.

    python benchmarks/accelerator.py --json accelerator.json      on the GPU, in at most 6 minutes
    python benchmarks/accelerator.py --device cpu --quick         the same at small sizes, a smoke run
    python benchmarks/accelerator.py --only crf --repeats 20      one of the sections

Sections, each of which says how it measured; what the time did not suffice for is named:

crf    likelihood with gradient, marginals and decoding of every algorithm that runs on the device,
       of the kernels on the host with both copies, and of pytorch-crf, at the seven sizes of crf.py
       and with two large sets of labels; values agree with float64 first
step   an update of BERT-base with the CRF in float32, float16, bfloat16, in a process group of one
       device (DDP) and with a compiled encoder; the CRF's share of it
runs   the command line on the built-in sample: float32, --fp16, --bf16, under torchrun, --compile
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import torchcrf
from crf_peers import MANY_LABELS, SIZES, Case, Report, format_cell, make_case, show, write_json
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig
from transformers import logging as transformers_logging

from nercrf.crf.layer import CRF
from nercrf.crf.likelihood import choose_algorithm
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification

QUICK = [(4, 16, 5), (2, 24, 30)]
PEER = "pytorch-crf"
TOLERANCE = 1e-4  # of values a word and of gradients before time is taken
LABELS = ["O", *(f"{kind}-{name}" for name in ("PER", "LOC", "ORG", "MISC") for kind in "BI")]


class Clock:
    """The time that a run may take, and how long one piece of work takes on the device."""

    def __init__(self, device: torch.device, minutes: float, repeats: int):
        self.device, self.repeats = device, repeats
        self.end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.perf_counter()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def milliseconds(self, work: Callable[[], object]) -> float:
        """Median time of some work after two calls that do not count; fewer of them if they are long."""
        times = []
        for turn in range(2 + self.repeats):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(1000 * (time.perf_counter() - began))
            if turn > 1 and sum(times) > 1500:
                break
        return statistics.median(times[2:])


def peak_megabytes(device: torch.device, work: Callable[[], object]) -> float | None:
    """What some work needs of a GPU's memory beyond what is there; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


class Worker:
    """A CRF with the parameters of a case, on the device."""

    def __init__(self, name: str, case: Case, device: torch.device):
        labels = case.size[2]
        peer = name == PEER
        crf = torchcrf.CRF(labels, True) if peer else CRF(labels, True, algorithm=name)
        crf.load_state_dict(case.state)
        self.name, self.crf = name, crf.to(device)
        self.emissions = case.emissions.to(device, copy=True).requires_grad_()
        self.tags, self.mask = case.tags.to(device), case.mask.to(device)

    def likelihood(self) -> torch.Tensor:
        """The loss, forward and backward."""
        self.emissions.grad = None
        self.crf.zero_grad(set_to_none=True)
        loss = -self.crf(self.emissions, self.tags, self.mask)
        loss.backward()
        return loss

    def marginals(self) -> torch.Tensor:
        """Probability of every label at every word."""
        return self.crf.marginals(self.emissions.detach(), self.mask)

    def decode(self) -> object:
        """The best paths: tensors, lists where the CRF has nothing else."""
        with torch.no_grad():
            if self.name == PEER:
                return self.crf.decode(self.emissions, self.mask)
            return self.crf.decode_tensor(self.emissions, self.mask)

    def results(self) -> tuple[float, torch.Tensor, torch.Tensor | None]:
        """Loss, gradient of the emissions, scores of the best paths."""
        loss = self.likelihood().item()
        return loss, self.emissions.grad, None if self.name == PEER else self.decode()[1]

    def check(self, wanted: tuple[float, torch.Tensor, torch.Tensor]) -> None:
        """ValueError unless the results are the wanted ones."""
        words = self.mask.sum(1)
        loss, gradient, scores = self.results()
        errors = [
            abs(loss - wanted[0]) / words.sum().item(),
            (gradient - wanted[1]).abs().max().item(),
            ((scores - wanted[2]).abs() / words).max().item(),
        ]
        if not max(errors) <= TOLERANCE:
            raise ValueError(f"{self.name} at {tuple(self.emissions.shape)} is off by {errors}")


def rival_algorithms(device: torch.device) -> list[str]:
    """What can be compared on a device: its own algorithms, and the host's with the copies."""
    on_host = ["kernels"] if importlib.util.find_spec("numba") is not None else []
    return ["scan", "loop", "scaled", *on_host]


def measure_crf(options: argparse.Namespace, clock: Clock) -> Report:
    """The CRF alone."""
    device = clock.device
    method = (
        "Milliseconds, medians with the device waited for; random lengths, one sentence full, float32 emissions. "
        "The likelihood has its gradient. `scan` and `loop` stay on the device, `scaled` and `kernels` compute on the "
        "host and copy both ways. `auto` is what the device gets unless told otherwise; for decoding that is the scan. "
        "MB: peak memory of a likelihood with its gradient by `auto`, beyond what there was. Values, gradients and "
        f"scores of paths agree with the log domain in float64 to {TOLERANCE}; {PEER} up to 1024 words."
    )
    rows, notes = [], []
    for size in QUICK if options.quick else SIZES + MANY_LABELS:
        if clock.left < 0:
            notes.append(f"{size}: no time left")
            continue
        case = make_case(*size)
        names = rival_algorithms(device)
        wanted = Worker("log", case, device).results()  # in float64 whatever it is given
        workers = {name: Worker(name, case, device) for name in names}
        if size[1] <= 1024:
            workers[PEER] = Worker(PEER, case, device)
        for name in names:
            try:
                workers[name].check(wanted)
            except torch.OutOfMemoryError:
                notes.append(f"{size}: {name} does not fit into the memory")
                del workers[name]
        auto = choose_algorithm("auto", device, size)
        memory = peak_megabytes(device, Worker(auto, case, device).likelihood)
        for work in ("likelihood", "marginals", "decode"):
            row = {"size": str(size), "work": work, "auto": auto}
            if work == "decode":
                row["auto"] = choose_algorithm("auto", device)
            for name in (*names, PEER):
                able = name in workers and (name != PEER or work != "marginals")
                row[name] = clock.milliseconds(getattr(workers[name], work)) if able else None
            rows.append(row | {"MB": memory if work == "likelihood" else None})
    return Report(method, [rows], notes)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(str(Path(folder, "store")), 1)
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


class Update:
    """An update of BERT-base with the CRF on a batch of random words."""

    def __init__(self, device: torch.device, quick: bool, dtype: torch.dtype | None = None):
        torch.manual_seed(0)
        small = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
        config = BertConfig(num_hidden_layers=2, **small) if quick else BertConfig()
        model = NerCrfForTokenClassification.from_encoder(load_encoder(config), LABELS, "BIO")
        batch, pieces = (4, 24) if quick else (32, 128)
        self.model = model.train().to(device)
        self.forward, self.dtype, self.device = self.model, dtype, device
        self.ids = torch.randint(1000, config.vocab_size, (batch, pieces), device=device)
        self.labels = torch.zeros_like(self.ids)
        self.labels[:, 3::7] = 1
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def __call__(self) -> torch.Tensor:
        """The loss of one update."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            mask = torch.ones_like(self.ids)
            loss = self.forward(input_ids=self.ids, attention_mask=mask, labels=self.labels).loss
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def crf(self, emissions: torch.Tensor) -> None:
        """The CRF's part of it: loss and gradient of given emissions."""
        emissions.grad = None
        self.model.crf.zero_grad()
        mask = torch.ones_like(self.ids, dtype=torch.bool)
        (-self.model.crf(emissions, self.labels, mask, "mean")).backward()


def measure_step(options: argparse.Namespace, clock: Clock) -> Report:
    """An update of BERT-base."""
    device, rows, notes = clock.device, [], []
    shape = "4 sentences of 24 pieces, 2 layers of 64" if options.quick else "32 of 128, BERT-base"
    method = (
        f"An update ({shape}, {len(LABELS)} labels, random weights): forward, backward and fused AdamW; the CRF's "
        "likelihood and gradient alone on emissions of the same size. Milliseconds, medians with the device waited for. "
        "The loss is that of the first and of the last update: it falls."
    )
    kinds = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
    kinds |= {"bfloat16, DDP": torch.bfloat16, "bfloat16, compiled": torch.bfloat16}
    for name, dtype in kinds.items():
        if clock.left < 45 and not options.quick:
            notes.append(f"{name}: no time left")
            continue
        try:
            rows.append(
                {"precision": name} | step_row(name, Update(device, options.quick, dtype), clock)
            )
        except Exception as error:  # the others are still worth measuring
            notes.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return Report(method, [rows], notes)


def step_row(name: str, update: Update, clock: Clock) -> dict:
    """Times of an update, and of the CRF in it."""
    with process_group(clock.device) if "DDP" in name else contextlib.nullcontext():
        if "DDP" in name:
            update.forward = DistributedDataParallel(update.model)
        if "compiled" in name:
            update.model.encoder.compile()
        first = update().item()
        step = clock.milliseconds(update)
        emissions = torch.randn(*update.ids.shape, len(LABELS), device=clock.device)
        alone = clock.milliseconds(functools.partial(update.crf, emissions.requires_grad_()))
        last = update().item()
    if not math.isfinite(last):
        raise ValueError(f"the loss is {last} after {first}")
    share = 100 * alone / step
    return {"step ms": step, "CRF ms": alone, "share %": share, "first": first, "last": last}


def measure_runs(options: argparse.Namespace, clock: Clock) -> Report:
    """Whole trainings by the command line."""
    steps = 8 if options.quick else 120
    method = (
        f"{steps} updates on the built-in sample with the small encoder, then the test file: seconds with the start of "
        "Python, the loss logged last, F1 on dev."
    )
    common = ["-m", "nercrf.run_ner_crf", "--do_train", "--do_eval", "--save_steps", "0"]
    common += ["--max_steps", str(steps), "--logging_steps", str(steps // 4)]
    common += ["--no_cuda"] if clock.device.type == "cpu" else []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    kinds = {"float32": [], "float16": ["--fp16"], "bfloat16": ["--bf16"]}
    kinds |= {"under torchrun": torchrun, "compiled": ["--compile"]}
    rows, notes = [], []
    for name, flags in kinds.items():
        if clock.left < 15:
            notes.append(f"{name}: no time left")
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [*common, "--output_dir", folder]
            command = [*flags, *command] if flags == torchrun else [*command, *flags]
            began = time.perf_counter()
            row = run_row([sys.executable, *command], folder, clock.left)
            if "error" in row:
                notes.append(f"{name}: {row['error']}")
            else:
                rows.append({"run": name, "seconds": time.perf_counter() - began} | row)
    return Report(method, [rows], notes)


def run_row(command: list[str], folder: str, seconds: float) -> dict:
    """What a training logged last; `error` if it failed or took too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "no time left to finish it"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["nothing said"]
        return {"error": f"exit status {done.returncode}: {lines[-1]}"}
    text = Path(folder, "history.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    scores = [record["dev_f1"] for record in records if "dev_f1" in record]
    return {"loss": losses[-1], "dev F1": scores[-1] if scores else None}


SECTIONS = {"crf": measure_crf, "step": measure_step, "runs": measure_runs}


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(found))
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--repeats", type=int, default=9, help="calls that count (default: 9)")
    parser.add_argument("--minutes", type=float, default=5.5, help="begin nothing after (5.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to it as well")
    return parser.parse_args()


def main() -> None:
    """Run the sections and print what they found."""
    options = read_options()
    transformers_logging.set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = options.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    settings = {"device": name, "torch": version("torch"), "nercrf": version("nercrf")}
    print(", ".join(f"{key} {value}" for key, value in settings.items()), end="\n\n", flush=True)
    clock, reports = Clock(device, options.minutes, options.repeats), {}
    for section in options.only:
        began = time.perf_counter()
        reports[section] = SECTIONS[section](options, clock)
        show(f"{section} ({format_cell(time.perf_counter() - began)} s)", reports[section])
        if options.json is not None:
            write_json(options.json, settings, reports)


if __name__ == "__main__":
    main()

"""nercrf's CRF beside pytorch-crf: speed, memory, accuracy, dispatched operations, compile time,
share of a step.

    python benchmarks/crf.py                                        every section, at 1 and 2 threads
    python benchmarks/crf.py --only speed accuracy --json crf.json  two of them, figures to a file as well
    python benchmarks/crf.py --only speed --sizes 32,128,9 --repeats 3 --threads 1

Sections, each of which says how it measured:

speed     likelihood with its gradient, and decoding, for every size (sentences, words, labels)
constraints  constrained likelihood and decoding of many labels, by legal steps and by the table
memory    what one likelihood with its gradient needs in addition accuracy  gradients against
float64 launches  operations that torch dispatches for one likelihood with its gradient compile
first use of the kernels, without and with a cache on disk peers     other CRFs; needs
--peers_python, see crf_peers.py for its environment share     the CRF's share of a training step on
the résumé set (--data_dir), with a BERT of 4 layers of 312

The algorithms are those of `CRF(algorithm=...)`; "scaled" is what "auto" takes on a CPU without
numba, and "kernels" needs numba.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # the profiler of the section memory would write to stderr

import torch
from crf_peers import (
    MANY_LABELS,
    SIZES,
    SPREAD,
    Case,
    Report,
    System,
    check_agreement,
    float64_reference,
    format_cell,
    interleaved,
    make_case,
    pytorch_crf,
    show,
    write_json,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig
from transformers import logging as transformers_logging

from nercrf.crf import packing
from nercrf.crf.layer import CRF
from nercrf.crf.likelihood import load_kernels
from nercrf.data.corpus import read_corpus
from nercrf.features.batches import FeatureDataset, plan_batches
from nercrf.features.conversion import convert_examples_to_features
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.vocabulary import build_tokenizer

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("scaled", "kernels")  # algorithms that know legal steps
LARGE = (32, 512, 23)  # of memory and launches
WARM_UP = (2, 8, LARGE[2])
PEER = "pytorch-crf"
WORKS = {"gradient": "likelihood + gradient", "decode": "decoding"}  # by the method of `System`
TURNS = {"row": 0.02, "single": 0.0}  # seconds of calls that a CRF makes when it is its turn
TOLERANCE = 1e-4  # of a gradient's entry before time is taken; the section accuracy measures the error itself
PEER_TOLERANCE = 1e-4  # the same a word: pytorch-crf in float32 is off by 0.12 at 4096 words
VOCABULARY = 21128  # of bert-base-chinese
BATCH_SIZE = 24
MAX_PIECES = 256  # every sentence of the résumé set is a single window


def make_crf(labels: int, algorithm: str) -> CRF:
    """A new CRF of nercrf that uses the given algorithm."""
    return CRF(labels, batch_first=True, algorithm=algorithm)


def build_system(name: str, case: Case) -> System:
    """pytorch-crf or one of our algorithms, with the parameters of the case."""
    return pytorch_crf(case) if name == PEER else System(name, make_crf(case.size[2], name), case)


def usable_algorithms(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The algorithms that can run here, and a line for each one that cannot."""
    if importlib.util.find_spec("numba") is not None or "kernels" not in wanted:
        return list(wanted), []
    return [name for name in wanted if name != "kernels"], [
        "kernels: skipped, numba is not installed"
    ]


def set_threads(count: int) -> None:
    """Threads of torch; the kernels take as many."""
    torch.set_num_threads(count)


def measure_speed(options: argparse.Namespace) -> Report:
    """Time of every algorithm beside pytorch-crf."""
    names, notes = usable_algorithms(options.algorithms)
    method = (
        f"In turn in one process; medians of {options.repeats} rounds after one that does not count and after values, "
        "gradients and paths agreed with pytorch-crf in float64. float32, random lengths, one sentence full. Gradients "
        "of emissions and parameters; decoding to lists. x: pytorch-crf's time divided by ours (above 1: faster). "
        "Turn: a row of calls that lasts 20 ms, the mean of which counts; or a single call, which finds the caches of "
        "the processor as the CRF before it left them, and pays for that the more the shorter it is. "
        + SPREAD
    )
    rows = []
    for threads in options.threads:
        set_threads(threads)
        for size in options.sizes:
            case = make_case(*size)
            systems = [build_system(name, case) for name in (PEER, *names)]
            reference = float64_reference(case)
            check_agreement(systems[:1], reference, PEER_TOLERANCE * size[1])
            check_agreement(systems[1:], reference, TOLERANCE)
            for (work, title), (turn, block) in itertools.product(WORKS.items(), TURNS.items()):
                works = [getattr(system, work) for system in systems]
                times, spread = interleaved(works, options.repeats, block)
                row = {
                    "work": title,
                    "turn": turn,
                    "threads": threads,
                    "size": str(size),
                    f"{PEER} ms": times[0],
                }
                for name, milliseconds in zip(names, times[1:], strict=True):
                    row |= {f"{name} ms": milliseconds, f"{name} x": times[0] / milliseconds}
                rows.append(row | {"spread": spread})
    rows.sort(key=lambda row: (list(WORKS.values()).index(row["work"]), row["turn"]))
    return Report(method, [rows, summarise_speed(rows, names)], notes)


def summarise_speed(rows: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """Geometric mean over the sizes, and the worst one."""
    summary = []
    for key in dict.fromkeys((row["work"], row["turn"], row["threads"]) for row in rows):
        line = dict(zip(("work", "turn", "threads"), key, strict=True))
        for name in names:
            chosen = [row for row in rows if (row["work"], row["turn"], row["threads"]) == key]
            worst = min(chosen, key=lambda row, name=name: row[f"{name} x"])
            mean = math.exp(sum(math.log(row[f"{name} x"]) for row in chosen) / len(chosen))
            line |= {
                f"{name} mean x": mean,
                f"{name} worst x": worst[f"{name} x"],
                f"{name} worst at": worst["size"],
            }
        summary.append(line)
    return summary


def allocated_by_torch(work: Callable[[], object]) -> int:
    """Highest sum of torch's CPU allocations during `work`: its events in order, each with its
    signed size.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        event
        for event in events
        if event["name"] == "[memory]" and event["args"]["Device Type"] == 0
    ]
    changes.sort(key=lambda event: event["ts"])
    held = highest = 0
    for event in changes:
        held += event["args"]["Bytes"]
        highest = max(highest, held)
    return highest


def allocated_by_python(work: Callable[[], object]) -> int:
    """Highest sum of Python's allocations during `work`; numpy's arrays are among them."""
    tracemalloc.start()
    work()
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


def resident_bytes(name: str) -> int:
    """A field of this process's status: VmRSS, or VmHWM, the highest VmRSS so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def child_resident(name: str) -> dict:
    """Growth of this process's resident memory at its peak, over what it was before the work; Linux alone."""
    name, lengths = name.split(",")
    set_threads(1)
    for _ in range(2):
        build_system(name, make_case(*WARM_UP)).gradient()
    system = build_system(name, make_case(*LARGE, full=lengths == "full"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM := VmRSS
    before = resident_bytes("VmRSS")
    system.gradient()
    return {"bytes": resident_bytes("VmHWM") - before}


def child_first_use(name: str) -> dict:
    """Seconds of the first likelihood with gradient, of the first decoding, and of both together
    once more.
    """
    set_threads(1)
    system, seconds = build_system(name, make_case(*WARM_UP)), []
    for work in (system.gradient, system.decode, lambda: (system.gradient(), system.decode())):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return dict(zip(("gradient", "decode", "again"), seconds, strict=True))


CHILDREN = {"resident": child_resident, "first_use": child_first_use}


def run_child(kind: str, name: str, **environment: str) -> dict:
    """What one of `CHILDREN` returns in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, name]
    done = subprocess.run(
        command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(options: argparse.Namespace) -> Report:
    """Peak of the memory that a likelihood with its gradient needs in addition."""
    names, notes = usable_algorithms(options.algorithms)
    method = (
        f"{LARGE}, float32, 1 thread, after a warm-up, with all words and with random lengths of which one is full; "
        "megabytes (10^6) at the peak over what there was before. Allocated: torch's allocations and releases in "
        "order, from the profiler's trace, plus the peak of tracemalloc in a second run, which sees numpy's arrays "
        "(the sum bounds the common peak from above). Resident: growth of VmRSS at its peak in a process of its own, "
        "which sees everything, such as arrays made inside of compiled code, but counts whole pages. Share: of "
        "pytorch-crf's; the target is 0.20."
    )
    set_threads(1)
    rows = []
    for lengths in ("random", "full"):
        case, first = make_case(*LARGE, full=lengths == "full"), len(rows)
        for name in (PEER, *names):
            rows.append({"lengths": lengths, "CRF": name} | memory_row(name, case, lengths))
        for row in rows[first:]:
            for title in ("allocated", "resident"):
                value, base = row[f"{title} MB"], rows[first][f"{title} MB"]
                row[f"{title} share"] = value / base if value is not None else None
    return Report(method, [rows], notes)


def memory_row(name: str, case: Case, lengths: str) -> dict:
    """Megabytes that one CRF needs for one case."""
    build_system(name, make_case(*WARM_UP)).gradient()
    # A new system each time: the gradients of an earlier run would be released inside of the
    # measurement.
    torch_megabytes = allocated_by_torch(build_system(name, case).gradient) / 1e6
    python_megabytes = allocated_by_python(build_system(name, case).gradient) / 1e6
    resident = None
    if sys.platform == "linux":
        resident = run_child("resident", f"{name},{lengths}")["bytes"] / 1e6
    return {
        "torch MB": torch_megabytes,
        "Python MB": python_megabytes,
        "allocated MB": torch_megabytes + python_megabytes,
        "resident MB": resident,
    }


def largest_error(found: System, expected: System) -> tuple[float, float]:
    """Largest absolute differences of the gradients: of emissions, and of parameters."""
    emissions, parameters = found.gradients()
    wanted, wanted_parameters = expected.gradients()
    errors = [
        (a.double() - b).abs().max() for a, b in zip(parameters, wanted_parameters, strict=True)
    ]
    return float((emissions.double() - wanted).abs().max()), float(max(errors))


def rounding_error(reference: System) -> tuple[float, float]:
    """The error that float64 gradients have once they are rounded to float32."""
    emissions, parameters = reference.gradients()
    emissions, *parameters = (
        (value.float().double() - value).abs().max() for value in (emissions, *parameters)
    )
    return float(emissions), float(max(parameters))


def measure_accuracy(options: argparse.Namespace) -> Report:
    """Errors of the gradients."""
    names, notes = usable_algorithms(options.algorithms)
    method = (
        "Largest absolute error of an entry of the gradient of the summed log likelihood, float32 emissions and "
        "parameters, random lengths with one full; the reference is pytorch-crf in float64 on copies of the same "
        "numbers. Rounding: the error of the reference's own gradient once it is float32, which nobody can undercut. "
        "Target: 1e-6, from 4096 words on 1e-5."
    )
    set_threads(options.threads[0])
    tables = {"emissions": [], "parameters": []}
    for size in options.sizes:
        case = make_case(*size)
        reference = float64_reference(case)
        reference.gradient()
        columns = {"rounding": rounding_error(reference)}
        for name in (*names, PEER):
            system = build_system(name, case)
            system.gradient()
            columns[name] = largest_error(system, reference)
        target = 1e-6 if size[1] < 4096 else 1e-5
        for index, (title, rows) in enumerate(tables.items()):
            row = {f"gradient of {title}": str(size), "target": target}
            rows.append(row | {name: errors[index] for name, errors in columns.items()})
    return Report(method, list(tables.values()), notes)


class OperationCounter(TorchDispatchMode):
    """Count the operations that torch dispatches, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure_launches(options: argparse.Namespace) -> Report:
    """Dispatched operations of one likelihood with its gradient."""
    names, notes = usable_algorithms(options.algorithms)
    method = (
        f"Calls of __torch_dispatch__ during one likelihood with its gradient at {LARGE}, all words: every operation "
        "that reaches a backend, views and reads of single numbers too, after a first run that is not counted."
    )
    rows = []
    for name in (PEER, *names):
        system = build_system(name, make_case(*LARGE, full=True))
        system.gradient()
        with OperationCounter() as counter:
            system.gradient()
        base = rows[0]["operations"] if rows else counter.count
        rows.append(
            {"CRF": name, "operations": counter.count, "pytorch-crf / ours": base / counter.count}
        )
    return Report(method, [rows], notes)


def measure_compile(options: argparse.Namespace) -> Report:
    """First use of the kernels."""
    method = (
        "Seconds in a process of its own that has imported numba: the first likelihood with its gradient, the first "
        f"decoding, both at {WARM_UP}, and both once more. Cold: NUMBA_CACHE_DIR is an empty folder; warm: the folder "
        "that the cold process left. The last column is what the first use costs more than a later one. Import: "
        "`import numba` alone. Medians of 3 processes."
    )
    names, notes = usable_algorithms(["kernels"])
    if not names:
        return Report(method, notes=notes)
    runs = {"cold": [], "warm": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            for found in runs.values():
                found.append(run_child("first_use", "kernels", NUMBA_CACHE_DIR=folder))
    rows = []
    for title, found in runs.items():
        first, decode, again = (
            sorted(run[key] for run in found)[1] for key in ("gradient", "decode", "again")
        )
        row = {
            "cache": title,
            "likelihood + gradient s": first,
            "decoding s": decode,
            "both again s": again,
        }
        rows.append(row | {"first use s": first + decode - again})
    code = (
        "import time; began = time.perf_counter(); import numba; print(time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", code]
    imports = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return Report(method, [rows], [f"import: {sorted(imports)[1]:.2f} s"])


def measure_peers(options: argparse.Namespace) -> Report:
    """Other CRFs, with the interpreter of their environment."""
    if options.peers_python is None:
        return Report(
            "Other CRFs beside pytorch-crf.", notes=["skipped: --peers_python was not given"]
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "peers.json")
        command = [options.peers_python, Path(__file__).with_name("crf_peers.py"), "--json", target]
        command += ["--repeats", str(options.repeats), "--threads", *map(str, options.threads)]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return Report(**json.loads(target.read_text(encoding="utf-8"))["sections"]["peers"])


def read_batches(options: argparse.Namespace) -> tuple[list[dict], Sequence[str], str]:
    """Batches by length of the training set, labels and scheme; unlabelled places get label 0, as
    pytorch-crf needs.
    """
    corpus = read_corpus(options.data_dir, on_bad="warn")
    tokenizer = build_tokenizer(corpus.train)
    features = convert_examples_to_features(
        corpus.train, corpus.labels, MAX_PIECES, tokenizer, scheme=corpus.scheme
    )
    dataset = FeatureDataset(features, corpus.labels, corpus.scheme)
    plan = plan_batches(dataset.lengths, BATCH_SIZE)
    full = [indices for indices in plan if len(indices) == BATCH_SIZE]
    batches = [dataset.collate(indices) for indices in full[: options.share_batches]]
    for batch in batches:
        batch["labels"].clamp_(min=0)
    return batches, corpus.labels, corpus.scheme


def build_model(labels: Sequence[str], scheme: str) -> NerCrfForTokenClassification:
    """An untrained model of the size of the small Chinese BERT-4-312, in training mode."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=312,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1200,
    )
    return NerCrfForTokenClassification.from_encoder(
        load_encoder(config), labels, scheme, constrain=False
    ).train()


def training_step(
    model: NerCrfForTokenClassification,
    crf: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
) -> None:
    """One step of training with the given CRF in the model's place of its own."""
    model.crf = crf
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()


def crf_alone(crf: torch.nn.Module, emissions: torch.Tensor, batch: dict) -> None:
    """What the CRF does of that step."""
    emissions.grad = None
    crf.zero_grad()
    (-crf(emissions, batch["labels"], batch["word_mask"], "mean")).backward()


def share_rows(
    names: Sequence[str], batches: Sequence[dict], model: NerCrfForTokenClassification, repeats: int
) -> list[dict]:
    """Mean time of a step, and of the CRF alone on the emissions of the same batch, for every CRF."""
    labels = model.classifier.out_features
    crfs = [pytorch_crf(make_case(1, 2, labels)).crf, *(make_crf(labels, name) for name in names)]
    state = crfs[0].state_dict()
    for crf in crfs:
        crf.load_state_dict(state)
    body = [*model.encoder.parameters(), *model.classifier.parameters()]
    parameters = [*body, *(parameter for crf in crfs for parameter in crf.parameters())]
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-5, fused=True
    )  # it passes over those without a gradient
    totals = [0.0] * (2 * len(crfs))
    for batch in batches:
        with torch.no_grad():
            model.crf = crfs[0]
            emissions = model(**batch).logits.requires_grad_()
        works = [functools.partial(training_step, model, crf, optimizer, batch) for crf in crfs]
        works += [functools.partial(crf_alone, crf, emissions, batch) for crf in crfs]
        times, _ = interleaved(works, repeats)
        totals = [
            total + milliseconds / len(batches)
            for total, milliseconds in zip(totals, times, strict=True)
        ]
    rows = []
    for name, step, alone in zip(
        (PEER, *names), totals[: len(crfs)], totals[len(crfs) :], strict=True
    ):
        rows.append({"CRF": name, "step ms": step, "CRF ms": alone, "share %": 100 * alone / step})
    return rows


def measure_share(options: argparse.Namespace) -> Report:
    """The CRF's share of a training step."""
    names, notes = usable_algorithms(
        [name for name in options.algorithms if name not in ("scan", "loop")]
    )
    batches, labels, scheme = read_batches(options)
    words = [batch["word_mask"].shape[1] for batch in batches]
    method = (
        f"{len(batches)} batches by length of {BATCH_SIZE} sentences of the résumé training set ({min(words)} to "
        f"{max(words)} words, {len(labels)} labels), BERT of 4 layers of 312 (12 heads, inner width 1200), dropout on. "
        "Step: forward, backward and fused AdamW; CRF: its likelihood and gradient alone on detached emissions of the "
        f"same batch. In turn in one process; means over the batches of medians of {options.repeats} rounds after one "
        "that does not count. Target: from about 7 % to below 1.5 %."
    )
    rows = []
    for threads in options.threads:
        set_threads(threads)
        model = build_model(labels, scheme)
        rows += [
            {"threads": threads} | row for row in share_rows(names, batches, model, options.repeats)
        ]
    return Report(method, [rows], notes)


def measure_constraints(options: argparse.Namespace) -> Report:
    """Time of constrained likelihood and decoding by the legal steps alone, and by the whole table."""
    names, notes = usable_algorithms([name for name in options.algorithms if name in HOSTS])
    modules = [packing, *([load_kernels()] if "kernels" in names else [])]

    def by_table(work: Callable[[], object]) -> Callable[[], object]:
        def run():
            with contextlib.ExitStack() as patches:
                for module in modules:
                    whole = mock.patch.object(module, "legal_steps", return_value=None)
                    patches.enter_context(whole)
                work()

        return run

    rows = []
    for threads, size, name in itertools.product(options.threads, MANY_LABELS, names):
        set_threads(threads)
        types = [f"{kind}-{number}" for number in range(size[2] // 4) for kind in "BIES"]
        crf = CRF.from_labels(["O", *types], "BIOES", True, constrain_likelihood=True)
        crf.algorithm = name
        emissions = torch.randn(size, requires_grad=True)
        tags, _ = crf.decode_tensor(emissions)
        works = {
            "likelihood + gradient": lambda crf=crf, emissions=emissions, tags=tags: crf(
                emissions, tags
            ).backward(),
            "decoding": lambda crf=crf, emissions=emissions: crf.decode_tensor(emissions),
        }
        for title, work in works.items():
            (table, steps), spread = interleaved([by_table(work), work], options.repeats, 0.02)
            row = {"threads": threads, "size": str(size), "CRF": name, "work": title}
            rows.append(
                row | {"table ms": table, "steps ms": steps, "x": table / steps, "spread": spread}
            )
    method = (
        f"BIOES constraints, all words, float32; in turn in one process, medians of {options.repeats} rounds. "
        "Table: all pairs of labels; steps: the legal ones. x: how many times faster. " + SPREAD
    )
    return Report(method, [rows], notes)


SECTIONS = {
    "speed": measure_speed,
    "constraints": measure_constraints,
    "memory": measure_memory,
    "accuracy": measure_accuracy,
    "launches": measure_launches,
    "compile": measure_compile,
    "peers": measure_peers,
    "share": measure_share,
}


def read_size(text: str) -> tuple[int, int, int]:
    """Sentences, words and labels out of a text such as "32,128,9"."""
    numbers = tuple(map(int, text.split(",")))
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"expected sentences,words,labels such as 32,128,9; got {text}")
    return numbers


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="threads of torch (default: 1 2)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=read_size,
        default=SIZES,
        metavar="B,T,K",
        help="of speed, accuracy",
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        choices=["auto", "log", "scaled", "scan", "loop", "kernels"],
        default=["scaled", "kernels", "scan"],
        metavar="NAME",
        help="of nercrf's CRF (default: scaled kernels scan)",
    )
    data_dir = ROOT.parent / "shared" / "data" / "resume"
    parser.add_argument("--data_dir", type=Path, default=data_dir, help="the résumé set, only read")
    parser.add_argument(
        "--share_batches", type=int, default=20, help="batches of the section share (default: 20)"
    )
    parser.add_argument(
        "--peers_python", "--peers-python", metavar="FILE", help="interpreter that has the peers"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to a file as well"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the chosen sections and print what they found."""
    options = read_options()
    transformers_logging.set_verbosity_error()
    if options.child is not None:
        kind, name = options.child
        print(json.dumps(CHILDREN[kind](name)))
        return
    has_numba = importlib.util.find_spec("numba") is not None
    packages = ["torch", "pytorch-crf", "nercrf", *(["numba"] if has_numba else [])]
    settings = {"versions": {name: version(name) for name in packages}, "repeats": options.repeats}
    print(
        ", ".join(f"{name} {number}" for name, number in settings["versions"].items()), end="\n\n"
    )
    reports = {}
    for name in options.only:
        load, began = os.getloadavg()[0], time.perf_counter()
        reports[name] = SECTIONS[name](options)
        reports[name].notes.append(f"load average of the machine before this section: {load:.1f}")
        show(f"{name} ({format_cell(time.perf_counter() - began)} s)", reports[name])
        if options.json is not None:
            write_json(options.json, settings, reports)


if __name__ == "__main__":
    main()

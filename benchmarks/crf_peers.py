"""Other CRFs beside pytorch-crf, and the tools that crf.py measures with as well.

python -m venv PEERS PEERS/bin/pip install torch==2.13.0 PEERS/bin/pip install pytorch-crf==0.7.2
flair==0.15.1 torch-struct==0.5 TorchCRF==1.1.0 PEERS/bin/pip install --no-deps allennlp==2.10.1
PEERS/bin/python benchmarks/crf_peers.py [--threads 1 2] [--repeats 9] [--only NAME ...] [--json
FILE]

It does not import nercrf, so that the peers can live in an environment of their own: allennlp
2.10.1 asks for a torch below 1.13, flair 0.15.1 for a transformers below 5. `python
benchmarks/crf.py --only peers --peers_python PEERS/bin/python` runs it from there. A peer that
cannot be imported is named with its error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torchcrf
from torch import Tensor

# sentences, words, labels
SIZES = [
    (8, 64, 9),
    (32, 128, 9),
    (32, 128, 23),
    (32, 512, 23),
    (8, 512, 41),
    (1, 128, 23),
    (1, 4096, 9),
]
MANY_LABELS = [(32, 512, 73), (32, 128, 217)]
PEER_SIZES = SIZES[1:3]
VALUE_TOLERANCE = 1e-5  # of the log likelihood, relative
GRADIENT_TOLERANCE = 1e-3  # of an entry, absolute and relative
SPREAD = (
    "Spread: the 90th percentile of a CRF's times divided by the median, the worst of the row; above 1.3 or so "
    "something else was running, and with more threads than free cores the figures mean nothing."
)
BLOCKED = -10000.0  # flair's score of a transition that is impossible


@dataclass
class Case:
    """A batch, and the parameters that every CRF gets."""

    emissions: Tensor  # (batch, words, labels) float32
    tags: Tensor  # (batch, words) int64
    mask: Tensor  # (batch, words) bool, True at words
    state: dict[str, Tensor]  # of pytorch-crf

    @property
    def size(self) -> tuple[int, int, int]:
        """Sentences, words, labels."""
        return tuple(self.emissions.shape)

    @property
    def lengths(self) -> Tensor:
        """Words of each sentence."""
        return self.mask.sum(1)


def make_case(batch: int, words: int, labels: int, shortest: int = 1, full: bool = False) -> Case:
    """Random emissions, tags and lengths, the first sentence full (or every one); parameters of a
    new pytorch-crf.
    """
    torch.manual_seed(0)
    state = torchcrf.CRF(labels, batch_first=True).state_dict()
    lengths = torch.full((batch,), words) if full else torch.randint(shortest, words + 1, (batch,))
    lengths[0] = words
    mask = torch.arange(words) < lengths[:, None]
    return Case(
        torch.randn(batch, words, labels), torch.randint(labels, (batch, words)), mask, state
    )


def sort_case(case: Case) -> Case:
    """The same case with the longest sentences first, as flair needs it."""
    order = case.lengths.argsort(descending=True, stable=True)
    return Case(case.emissions[order], case.tags[order], case.mask[order], case.state)


class System:
    """A CRF with the interface of `torchcrf.CRF`, and the batch of a case in the form that it takes."""

    def __init__(self, name: str, crf: torch.nn.Module, case: Case):
        self.name, self.crf, self.case = name, crf, case
        self.load_parameters()
        self.emissions = case.emissions.to(next(crf.parameters()).dtype, copy=True).requires_grad_()

    def load_parameters(self) -> None:
        """Give the CRF the parameters of the case."""
        self.crf.load_state_dict(self.case.state)

    def likelihood(self) -> Tensor:
        """Log likelihood of the tags, summed over the batch."""
        return self.crf(self.emissions, self.case.tags, self.case.mask)

    def best_tags(self) -> list[list[int]]:
        """The best tags of each sentence."""
        return self.crf.decode(self.emissions, self.case.mask)

    def gradient(self) -> Tensor:
        """The training loss, which is the negative likelihood, forward and backward."""
        self.emissions.grad = None
        self.crf.zero_grad(set_to_none=True)
        loss = -self.likelihood()
        loss.backward()
        return loss

    def decode(self) -> list[list[int]]:
        """Viterbi to lists, without a graph."""
        with torch.no_grad():
            return self.best_tags()

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """Gradients of the last `gradient`: of the emissions, and of start, transitions and end."""
        crf = self.crf
        return self.emissions.grad, [
            parameter.grad
            for parameter in (crf.start_transitions, crf.transitions, crf.end_transitions)
        ]


def pytorch_crf(case: Case) -> System:
    """pytorch-crf as it is published."""
    return System("pytorch-crf", torchcrf.CRF(case.size[2], batch_first=True), case)


def float64_reference(case: Case) -> System:
    """pytorch-crf in float64, on copies of the same float32 numbers."""
    return System("float64", torchcrf.CRF(case.size[2], batch_first=True).double(), case)


class Flair(System):
    """CRF, ViterbiLoss and ViterbiDecoder of flair; START and STOP are two more labels, sentences
    longest first.
    """

    def __init__(self, case: Case):
        data = importlib.import_module("flair.data")
        parts = importlib.import_module("flair.models.sequence_tagger_utils.crf")
        viterbi = importlib.import_module("flair.models.sequence_tagger_utils.viterbi")
        self.labels = case.size[2]
        self.names = data.Dictionary(add_unk=False)
        for name in [*map(str, range(self.labels)), parts.START_TAG, parts.STOP_TAG]:
            self.names.add_item(name)
        self.loss, self.decoder = (
            viterbi.ViterbiLoss(self.names),
            viterbi.ViterbiDecoder(self.names),
        )
        self.lengths, self.targets = case.lengths, case.tags[case.mask]
        super().__init__("flair", parts.CRF(self.names, len(self.names), False), case)
        padding = (0, len(self.names) - self.labels)
        self.emissions = torch.nn.functional.pad(case.emissions, padding).requires_grad_()

    @torch.no_grad()
    def load_parameters(self) -> None:
        """Fill flair's table, whose rows are the labels that are gone to."""
        start, stop, state = self.labels, self.labels + 1, self.case.state
        table = self.crf.transitions.fill_(BLOCKED)
        table[:start, :start] = state["transitions"].T
        table[:start, start] = state["start_transitions"]
        table[stop, :start] = state["end_transitions"]

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """What flair's loss and decoder take."""
        return self.crf(self.emissions), self.lengths, self.crf.transitions

    def likelihood(self) -> Tensor:
        """Flair's loss has the other sign."""
        return -self.loss(self.scores(), self.targets)

    def best_tags(self) -> list[list[int]]:
        """Flair returns pairs of name and confidence."""
        sentences, _ = self.decoder.decode(self.scores(), False, [])
        return [[int(name) for name, _ in sentence] for sentence in sentences]

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """Those of the true labels."""
        labels, table = self.labels, self.crf.transitions.grad
        parameters = [table[:labels, labels], table[:labels, :labels].T, table[labels + 1, :labels]]
        return self.emissions.grad[..., :labels], parameters


class TorchStruct(System):
    """LinearChainCRF of torch-struct on a pytorch-crf's parameters; sentences of two words or more."""

    def __init__(self, case: Case):
        self.package = importlib.import_module("torch_struct")
        torch.distributions.Distribution.set_default_validate_args(
            False
        )  # it has no arg_constraints, and would warn
        super().__init__("torch-struct", torchcrf.CRF(case.size[2], batch_first=True), case)
        chain = self.package.LinearChainCRF.struct
        self.parts = chain.to_parts(
            case.tags, case.size[2], case.lengths
        )  # one-hot; the loader's work, not timed

    def distribution(self):
        """The chain whose potentials are (batch, pair, label after, label before)."""
        crf, emissions, lengths = self.crf, self.emissions, self.case.lengths
        words = self.case.size[1]
        potentials = crf.transitions.T + emissions[:, 1:].unsqueeze(3)
        first = (crf.start_transitions + emissions[:, 0])[:, None, None]
        first = torch.nn.functional.pad(first, (0, 0, 0, 0, 0, words - 2))
        is_last = torch.arange(words - 1) == lengths[:, None] - 2
        potentials = potentials + first + (is_last[..., None] * crf.end_transitions).unsqueeze(3)
        return self.package.LinearChainCRF(potentials.contiguous(), lengths=lengths)

    def likelihood(self) -> Tensor:
        """Log probability of the gold one-hot parts."""
        return self.distribution().log_prob(self.parts).sum()

    def best_tags(self) -> list[list[int]]:
        """The argmax is a gradient there, so that it needs the graph."""
        with torch.enable_grad():
            best = self.distribution().argmax
        tags, _ = self.package.LinearChainCRF.struct.from_parts(best)
        return [
            row[:length]
            for row, length in zip(tags.tolist(), self.case.lengths.tolist(), strict=True)
        ]


class TorchCrf(System):
    """CRF of the package TorchCRF, another one than pytorch-crf's module torchcrf."""

    def __init__(self, case: Case):
        package = importlib.import_module("TorchCRF")
        super().__init__("TorchCRF", package.CRF(case.size[2], use_gpu=False), case)

    @torch.no_grad()
    def load_parameters(self) -> None:
        """The names differ."""
        self.crf.trans_matrix.copy_(self.case.state["transitions"])
        self.crf.start_trans.copy_(self.case.state["start_transitions"])
        self.crf.end_trans.copy_(self.case.state["end_transitions"])

    def likelihood(self) -> Tensor:
        """It returns one value a sentence."""
        return super().likelihood().sum()

    def best_tags(self) -> list[list[int]]:
        """The method has another name."""
        return self.crf.viterbi_decode(self.emissions, self.case.mask)

    def gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The names differ."""
        crf = self.crf
        return self.emissions.grad, [
            crf.start_trans.grad,
            crf.trans_matrix.grad,
            crf.end_trans.grad,
        ]


def load_allennlp() -> types.ModuleType:
    """allennlp's own CRF and `nn.util` without the rest of the package, which needs spacy,
    fairscale and an old torch.

    The packages above both files are replaced by empty ones, and `common.util` by one with the
    three names that `nn.util` imports and the CRF never calls.
    """
    if "allennlp" not in sys.modules:
        folder = Path(importlib.util.find_spec("allennlp").origin).parent
        for name in ("allennlp", "allennlp.common", "allennlp.nn", "allennlp.modules"):
            module = sys.modules[name] = types.ModuleType(name)
            module.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        unused = types.ModuleType("allennlp.common.util")
        unused.int_to_device = unused.is_distributed = unused.is_global_primary = None
        sys.modules[unused.__name__] = unused
    return importlib.import_module("allennlp.modules.conditional_random_field")


class Allennlp(System):
    """ConditionalRandomField of allennlp, which decodes one sentence at a time."""

    def __init__(self, case: Case):
        super().__init__("allennlp", load_allennlp().ConditionalRandomField(case.size[2]), case)

    def load_parameters(self) -> None:
        """The table of constraints stays as it is: all allowed."""
        self.crf.load_state_dict(self.case.state, strict=False)

    def best_tags(self) -> list[list[int]]:
        """It returns pairs of tags and score."""
        return [tags for tags, _ in self.crf.viterbi_tags(self.emissions, self.case.mask)]


PEERS = {"flair": Flair, "torch-struct": TorchStruct, "TorchCRF": TorchCrf, "allennlp": Allennlp}


def path_scores(reference: System, paths: Sequence[Sequence[int]]) -> Tensor:
    """Log likelihoods of paths in float64; their differences are those of the paths' scores."""
    rows = [torch.tensor(path) for path in paths]
    lengths = [len(row) for row in rows]
    if lengths != reference.case.lengths.tolist():
        raise AssertionError(
            f"decoded lengths differ: expected {reference.case.lengths.tolist()}, got {lengths}"
        )
    tags = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        return reference.crf(reference.emissions, tags, reference.case.mask, reduction="none")


def check_agreement(
    systems: Sequence[System], reference: System, gradient_tolerance: float
) -> None:
    """Values, gradients and paths of all systems against float64; AssertionError where one
    differs.

    An entry of a gradient may differ by the tolerance, absolute and relative. A path that differs
    must score as much as the best one, up to the rounding of float32.
    """
    expected = reference.gradient().detach()
    emissions, parameters = reference.gradients()
    best = path_scores(reference, reference.decode())
    tolerance = {"rtol": gradient_tolerance, "atol": gradient_tolerance, "check_dtype": False}
    for system in systems:
        where = f"{system.name} at {system.case.size}: "
        close = {"msg": lambda text, where=where: where + text}
        value = system.gradient().detach()
        torch.testing.assert_close(
            value, expected, rtol=VALUE_TOLERANCE, atol=0.0, check_dtype=False, **close
        )
        found = system.gradients()
        torch.testing.assert_close(found[0], emissions, **tolerance, **close)
        for gradient, wanted in zip(found[1], parameters, strict=True):
            torch.testing.assert_close(gradient, wanted, **tolerance, **close)
        gap = float((best - path_scores(reference, system.decode())).max())
        if gap > 1e-5 + 1e-6 * system.case.size[1]:
            raise AssertionError(f"{where}a decoded path scores {gap} less than the best one")


def interleaved(
    works: Sequence[Callable[[], object]], repeats: int, block: float = 0.0
) -> tuple[list[float], float]:
    """Median milliseconds of a call of each work, and the spread; all in turn in every round,
    after one not counted.

    With a `block` a work's turn is as many calls as fill so many seconds, else a single call.
    """
    times = [[] for _ in works]
    order, calls = list(range(len(works))), [1] * len(works)
    for round_number in range(repeats + 1):
        for index in order:
            began = time.perf_counter()
            for _ in range(calls[index]):
                works[index]()
            elapsed = (time.perf_counter() - began) / calls[index]
            if round_number:
                times[index].append(1e3 * elapsed)
            else:
                calls[index] = max(1, math.ceil(block / elapsed))
        order.append(order.pop(0))  # nobody always follows the same one
    medians = [statistics.median(kept) for kept in times]
    late = [sorted(kept)[round(0.9 * (len(kept) - 1))] for kept in times]
    return medians, max(high / middle for high, middle in zip(late, medians, strict=True))


@dataclass
class Report:
    """What a section found."""

    method: str  # how it was measured
    tables: list[list[dict]] = field(default_factory=list)  # rows of each table, values by title
    notes: list[str] = field(default_factory=list)  # what was left out, and why


def format_cell(value: object) -> str:
    """A number with three digits that count, anything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-2:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def show(title: str, report: Report) -> None:
    """Print a section with its tables in Markdown."""
    print(f"## {title}\n\n{report.method}\n")
    for rows in filter(None, report.tables):
        cells = [list(rows[0]), *([format_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        ]
        lines.insert(1, " | ".join("-" * (width - 1) + ":" for width in widths))
        print(*(f"| {line} |" for line in lines), sep="\n", end="\n\n")
    if report.notes:
        print(*report.notes, sep="\n", end="\n\n")
    sys.stdout.flush()


def write_json(path: Path, settings: dict, reports: dict[str, Report]) -> None:
    """Write the figures, not rounded, to a file."""
    content = {
        "settings": settings,
        "sections": {name: asdict(report) for name, report in reports.items()},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def build_peers(case: Case, names: Sequence[str], notes: list[str]) -> list[System]:
    """The peers that can be built; the errors of the others go into the notes."""
    peers = []
    for name in names:
        try:
            peers.append(PEERS[name](case))
        except (ImportError, AttributeError) as error:
            note = f"{name}: left out, {type(error).__name__}: {error}"
            notes += [note] if note not in notes else []
    return peers


def measure_peers(names: Sequence[str], threads: Sequence[int], repeats: int) -> Report:
    """Likelihood with its gradient, and decoding, of all peers."""
    report = Report(
        "Each peer and pytorch-crf in turn in one process, on the same float32 batch of random lengths (two words or "
        f"more, one sentence full, longest first); medians of {repeats} rounds after one that does not count and after "
        "values, gradients and paths agreed with pytorch-crf in float64. Ratios: pytorch-crf's time divided by the "
        f"peer's (above 1: faster). {SPREAD}",
        [[]],
    )
    for count in threads:
        torch.set_num_threads(count)
        for size in PEER_SIZES:
            case = sort_case(make_case(*size, shortest=2))
            systems = [pytorch_crf(case), *build_peers(case, names, report.notes)]
            check_agreement(systems, float64_reference(case), GRADIENT_TOLERANCE)
            gradients, gradient_spread = interleaved(
                [system.gradient for system in systems], repeats
            )
            decodes, decode_spread = interleaved([system.decode for system in systems], repeats)
            for system, gradient, decode in zip(systems, gradients, decodes, strict=True):
                row = {
                    "threads": count,
                    "size": str(size),
                    "CRF": f"{system.name} {version(system.name)}",
                }
                row |= {"likelihood + gradient ms": gradient, "decoding ms": decode}
                row |= {
                    "likelihood ratio": gradients[0] / gradient,
                    "decoding ratio": decodes[0] / decode,
                }
                report.tables[0].append(row | {"spread": max(gradient_spread, decode_spread)})
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--only", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    report = measure_peers(options.only, options.threads, options.repeats)
    show("peers", report)
    if options.json is not None:
        write_json(
            options.json,
            {"torch": torch.__version__, "repeats": options.repeats},
            {"peers": report},
        )


if __name__ == "__main__":
    main()

"""What is checked of every family of encoders, each against an oracle that is not of the library.

A check returns what the table says ("equal", "on", "off"); it raises AssertionError for a wrong
result, and `Refused` where the library says in one sentence that it does not take the encoder.
`encoder_table.json` holds what all families gave; `benchmarks/encoders.py` writes it.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path

import torch
from encoders import POSITIONS, SENTENCES, make_family
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from transformers import logging as transformers_logging

from nercrf import cli
from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.evaluation.evaluator import evaluation_batches
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span, label_list
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.tagging.tagger import Tagger
from nercrf.training.lean import trial_batches, use_lean_last_layer, whole_last_layer

ROOT = Path(__file__).resolve().parent.parent
LABELS = label_list(["LOC", "PER"], "BIO")
BLANKS = {"▁", "Ġ", " ", ""}  # pieces that carry no text
WINDOW = 64  # word pieces; less than POSITIONS
TOLERANCE = 1e-4  # of hidden states of order 1, in float32
EXAMPLES = [
    Example(str(number), words, [Span("PER", 0, 1)]) for number, words in enumerate(SENTENCES)
]


BATCHED = {  # where padding may stand in a batch of this encoder
    "numbered": "anywhere",
    "anywhere": "anywhere",
    "right": "on the right",
    "never": "equal lengths",
}


class Refused(Exception):
    """The library does not take this encoder, and says so."""


@contextmanager
def refusing():
    """Errors that the library raises for the user are refusals; those of others are faults."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError) as error:
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        if f"{os.sep}nercrf{os.sep}" in frames[-1]:
            raise Refused(str(error)) from error
        raise


class Case:
    """A family in a folder, and what the checks ask of it."""

    def __init__(self, name: str, folder: str | Path):
        transformers_logging.disable_progress_bar()
        self.name, self.folder = name, make_family(name, Path(folder, "encoder"))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def reference(self) -> torch.nn.Module:
        """The encoder as transformers loads it."""
        return AutoModel.from_pretrained(self.folder).eval()

    @cached_property
    def model(self) -> NerCrfForTokenClassification:
        """The encoder in the model of the library."""
        torch.manual_seed(0)
        with refusing(), warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder = load_encoder(self.folder)
            model = NerCrfForTokenClassification.from_encoder(encoder, LABELS).eval()
        torch.nn.init.normal_(model.classifier.weight)
        return model

    def dataset(self, examples=EXAMPLES, **options) -> FeatureDataset:
        """Features of sentences as the command line makes them."""
        if "joined_by" in inspect.signature(convert_examples_to_features).parameters:
            options = {"joined_by": " ", **options}
        with refusing():
            features = convert_examples_to_features(
                examples, LABELS, WINDOW, self.tokenizer, **options
            )
        return FeatureDataset(features, LABELS)

    @torch.no_grad()
    def logits(self, dataset: FeatureDataset, indices: list[int]) -> list[torch.Tensor]:
        """The emissions of sentences that are batched together, each (words, labels)."""
        batch = dataset.collate(indices)
        with refusing():
            logits = self.model(**batch).logits
        return [row[mask] for row, mask in zip(logits, batch["word_mask"], strict=True)]

    @torch.no_grad()
    def own_hidden(self, text: str) -> torch.Tensor:  # (pieces, hidden)
        """The encoder's own call on a text."""
        batch = self.tokenizer(text, return_tensors="pt")
        encoder = self.reference
        if encoder.config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        output = encoder(**batch)
        return output.last_hidden_state[0]

    def reading_pieces(self, words: list[str]) -> list[int]:
        """The first piece with text of each word in running text, special tokens counted."""
        text = " ".join(words)
        starts = [len(" ".join([*words[:place], ""])) for place in range(len(words))]
        if self.tokenizer.is_fast:
            batch = self.tokenizer(text, return_offsets_mapping=True)
            offsets, special = batch["offset_mapping"], batch.encodings[0].special_tokens_mask
            pieces = batch.tokens()
            return [
                next(
                    place
                    for place, (begin, end) in enumerate(offsets)
                    if begin < start + len(word)
                    and end > start
                    and pieces[place] not in BLANKS
                    and not special[place]
                )
                for word, start in zip(words, starts, strict=True)
            ]
        bare = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(text)["input_ids"]
        before = next(
            place for place in range(len(whole)) if whole[place : place + len(bare)] == bare
        )
        found = []
        for place, start in enumerate(starts):
            first = len(self.tokenizer(text[:start], add_special_tokens=False)["input_ids"])
            pieces = self.tokenizer.convert_ids_to_tokens(bare[first:])
            skipped = next(number for number, piece in enumerate(pieces) if piece not in BLANKS)
            found.append(before + first + skipped if place else before)
        return found


def check_pieces(case: Case) -> str:
    """The pieces of words equal running text, first word and later ones."""
    dataset = case.dataset()
    features = dataset.features
    for number, words in enumerate(SENTENCES):
        first, behind = features.window_offsets[features.sentence_windows[number : number + 2]]
        if features.window_counts[number] != 1:
            continue
        own = features.input_ids[first:behind].tolist()
        wanted = case.tokenizer(" ".join(words))["input_ids"]
        tokens = case.tokenizer.convert_ids_to_tokens
        assert own == list(wanted), f"{' '.join(words)!r}: {tokens(own)} for {tokens(wanted)}"
        places = features.word_pieces[slice(*features.word_offsets[number : number + 2])].tolist()
        assert places == case.reading_pieces(words), (
            f"{words}: reads pieces {places} of {tokens(own)}, "
            f"text is at {case.reading_pieces(words)}"
        )
    return "equal"


def _compare(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)} for {tuple(wanted.shape)}"
    error = float((found - wanted).abs().max()) / max(1.0, float(wanted.std()))
    assert error <= TOLERANCE, f"{what}: off by {error:.2g}"


def check_hidden(case: Case) -> str:
    """Emissions equal the classifier on the encoder's own call, at the pieces of running text."""
    case.model  # noqa: B018 - a refusal comes first
    dataset = case.dataset()
    for number, words in enumerate(SENTENCES):
        if dataset.features.window_counts[number] != 1:
            continue
        hidden = case.own_hidden(" ".join(words))[case.reading_pieces(words)]
        with torch.no_grad():
            wanted = case.model.classifier(hidden)
        (found,) = case.logits(dataset, [number])
        _compare(found, wanted, " ".join(words))
    return "equal"


def check_padding(case: Case) -> str:
    """A short sentence alone and beside longer ones, padded on the right and on the left."""
    case.model  # noqa: B018
    order = sorted(range(len(SENTENCES)), key=lambda number: len(" ".join(SENTENCES[number])))
    for on_left in (False, True):
        dataset = case.dataset(pad_on_left=on_left)
        # batches as the library makes them: some encoders are batched by equal lengths
        together = {}
        for batch in evaluation_batches(dataset, len(order)):
            together.update(zip(batch, case.logits(dataset, list(batch)), strict=True))
        alone = {number: case.logits(dataset, [number])[0] for number in order}
        for number in order:
            side = "left" if on_left else "right"
            _compare(together[number], alone[number], f"padded on the {side}, sentence {number}")
    return BATCHED[case.model.traits.padding]


def check_lean(case: Case) -> str:
    """The lean last layer gives the same loss and gradients on other batches, or is not used."""
    model, dataset = case.model, case.dataset()
    batches, batch = trial_batches(dataset, model.device), dataset.collate([0, 1, 2])
    with torch.no_grad():
        before = model(**batch).logits
        lean = use_lean_last_layer(model, batches)
        if lean is None:
            assert torch.equal(model(**batch).logits, before), "a refused trial changed the model"
            return "off"
    try:
        for indices in ([1], [3, 4, 5], [0, 1, 6, 7]):
            other = dataset.collate(indices)
            values = []
            for _ in range(2):
                model.zero_grad()
                loss = model(**other, reduction="sum").loss
                loss.backward()
                grads = {
                    n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
                }
                values.append((float(loss.detach()), grads))
                whole_last_layer(model)
            (one, grads), (two, others) = values
            assert abs(one - two) <= 1e-4 * abs(two), f"sentences {indices}: loss {one} for {two}"
            for name, grad in others.items():
                _compare(grads[name], grad, f"sentences {indices}: gradient of {name}")
            lean = use_lean_last_layer(model, batches)
    finally:
        whole_last_layer(model)
        model.zero_grad()
    return "on"


def write_data(folder: Path) -> Path:
    """Labelled files of a handful of sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        write_columns(folder / f"{split}.bio", EXAMPLES, "BIO")
    return folder


def run_command(*words: str | Path) -> str:
    """A command in this process: what it printed; `Refused` for exit code 2."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    if code == 2:
        raise Refused(output.getvalue().strip().splitlines()[-1])
    assert code in (0, None), f"{words[0]}: exit code {code}: {output.getvalue()[-300:]}"
    return output.getvalue()


def run_for(case: Case, *words: str | Path) -> str:
    """A command about a family; it refuses what the library's functions refuse, and no other."""
    try:
        return run_command(*words)
    except Refused as error:
        said = str(error)
    case.model  # noqa: B018 - raises Refused
    case.dataset()
    raise AssertionError(f"nercrf {words[0]} ends with {said!r}")


def train_flags(case: Case, out: Path) -> list[str]:
    """The command of a training of ten updates."""
    data = out.parent / "data"
    if not data.is_dir():
        write_data(data)
    flags = "--no_cuda --max_steps 10 --per_gpu_train_batch_size 8 --save_steps 5 --eval_steps 10"
    lengths = f"--train_max_seq_length {WINDOW} --eval_max_seq_length {WINDOW}"
    rates = "--learning_rate 3e-3 --crf_learning_rate 1e-1 --no_learning_curve --save_total_limit 9 --logging_steps 1"
    named = ["--model_name_or_path", case.folder, "--data_dir", data, "--output_dir", out]
    return [str(word) for word in [*flags.split(), *lengths.split(), *rates.split(), *named]]


def check_commands(case: Case) -> str:
    """Train, evaluate and predict by the command line; predictions are those of the tagger."""
    out = case.folder.parent / "run"
    if not out.is_dir():
        run_for(case, "train", *train_flags(case, out))
    data = out.parent / "data"
    run_for(case, "evaluate", out, data, "--no_cuda")
    predicted = out.parent / "predicted.jsonl"
    words = [out, data / "test.bio", "--input_format", "columns", "--output", predicted]
    run_for(case, "predict", *words, "--no_cuda")
    lines = [json.loads(line) for line in predicted.read_text(encoding="utf-8").splitlines()]
    found = [[(e["label"], e["text"]) for e in line["entities"]] for line in lines]
    tagger = Tagger.from_pretrained(out, device="cpu")
    wanted = [[(e.label, e.text) for e in one] for one in tagger(SENTENCES)]
    assert found == wanted, f"the command finds {found}, the tagger {wanted}"
    history = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, history) if "loss" in entry]
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    return "done"


def check_resume(case: Case) -> str:
    """Save and load give the same emissions; a resumed training ends in the same bits."""
    out = case.folder.parent / "run"
    if not out.is_dir():
        run_for(case, "train", *train_flags(case, out))
    steps = sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    assert len(steps) >= 2, f"checkpoints {steps}"
    again = case.folder.parent / "again"
    shutil.copytree(out / f"checkpoint-{steps[0]}", again / f"checkpoint-{steps[0]}")
    run_for(case, "train", *train_flags(case, again), "--resume", again / f"checkpoint-{steps[0]}")
    for file in sorted((out / f"checkpoint-{steps[-1]}").glob("*.safetensors")):
        one = load_file(file)
        two = load_file(again / f"checkpoint-{steps[-1]}" / file.name)
        assert one.keys() == two.keys(), file.name
        for name, tensor in one.items():
            assert torch.equal(tensor.nan_to_num(), two[name].nan_to_num()), f"{file.name}: {name}"
    # what a stranger loads cuts and reads as the training did
    tagger = Tagger.from_pretrained(out, device="cpu")
    for words in SENTENCES:
        text = " ".join(words)
        assert tagger.tokenizer(text)["input_ids"] == case.tokenizer(text)["input_ids"], (
            f"the saved tokenizer cuts {text!r} otherwise"
        )
    folder = case.folder.parent / "saved"
    case.model.save_pretrained(folder)
    loaded = NerCrfForTokenClassification.from_pretrained(folder).eval()
    dataset = case.dataset()
    batch = dataset.collate([0, 1])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, case.model(**batch).logits), "loaded: other bits"
    return "same bits"


def check_lora(case: Case) -> str:
    """An adapter is trained, resumed to the bit, loaded by the tagger and folded in."""
    out, again = case.folder.parent / "run", case.folder.parent / "again"
    flags = ["--lora", "2"]
    run_for(case, "train", *train_flags(case, out), *flags)
    shutil.copytree(out / "checkpoint-5", again / "checkpoint-5")
    resume = ["--resume", again / "checkpoint-5"]
    run_for(case, "train", *train_flags(case, again), *flags, *resume)
    written = sorted(
        file.relative_to(out) for file in (out / "checkpoint-10").rglob("*.safetensors")
    )
    assert written, "no weights in the last checkpoint"
    for path in written:
        one, two = load_file(out / path), load_file(again / path)
        assert one.keys() == two.keys(), path
        for name, tensor in one.items():
            assert torch.equal(tensor.nan_to_num(), two[name].nan_to_num()), f"{path}: {name}"
    merged = case.folder.parent / "merged"
    run_for(case, "merge", out, merged)
    batch = case.dataset().collate([0, 1, 2])
    batch.pop("labels")  # numbered otherwise than those of the files
    adapted, folded = (
        Tagger.from_pretrained(folder, device="cpu").model for folder in (out, merged)
    )
    with torch.no_grad():
        wanted, found = adapted(**batch).logits, folded(**batch).logits
    mask = batch["word_mask"]
    _compare(found[mask], wanted[mask], "folded in")
    moved = load_file(merged / "model.safetensors")
    kept = load_file(case.folder / "model.safetensors")
    changed = [
        name
        for name, tensor in kept.items()
        for written in {name, f"encoder.{name}"} & moved.keys()
        if not torch.equal(moved[written], tensor)
    ]
    assert changed, "the adapter has changed nothing of the encoder"
    return "same bits"


CHECKS: dict[str, Callable[[Case], str]] = {
    "pieces": check_pieces,
    "hidden states": check_hidden,
    "padding": check_padding,
    "resume": check_resume,
    "commands": check_commands,
    "lean layer": check_lean,
}


TABLE = Path(__file__).parent / "encoder_table.json"


def check_family(name: str, folder: str | Path) -> dict[str, str]:
    """The row of a family: what each check gave, or the sentence that refuses it."""
    case, row, faults = Case(name, folder), {}, []
    try:
        case.model  # noqa: B018 - raises Refused
        case.dataset()
    except Refused as error:
        sentence = str(error).partition("\n")[0]
        out = case.folder.parent / "run"
        said = "nothing"
        try:
            run_command("train", *train_flags(case, out))
        except Refused as refusal:
            said = str(refusal)
        assert sentence in said, f"{name}: the library says {sentence!r}, the command {said!r}"
        assert not list(out.glob("**/*.safetensors")), "a refused training left weights"
        return {"refused": sentence}
    for what, check in CHECKS.items():
        try:
            row[what] = check(case)
        except Exception as error:
            faults.append(f"{what}: {type(error).__name__}: {error}")
    assert not faults, f"{name}: " + " ¦ ".join(faults)
    return row


def run_in_process(*words: str | Path) -> subprocess.CompletedProcess:
    """The command as a process of its own."""
    command = [sys.executable, "-c", "import sys; from nercrf.cli import main; sys.exit(main())"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, env=environment, timeout=180
    )


assert WINDOW < POSITIONS

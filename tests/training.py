"""A tiny training that the tests of trainer, script and processes share."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from nercrf import cli
from nercrf.data.conll import write_columns
from nercrf.data.examples import Example
from nercrf.data.sample import sample_corpus
from nercrf.distributed.devices import BatchDataParallel
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.labels import Span, label_list
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.model.small_encoder import SmallEncoderConfig
from nercrf.model.vocabulary import build_tokenizer
from nercrf.training.checkpoint import set_seed
from nercrf.training.run import start_training
from nercrf.training.trainer import resolve_config, train
from nercrf.training.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
CORPUS = sample_corpus(sizes=(50, 20, 5))
TOKENIZER = build_tokenizer(CORPUS.train)
UNREAD = 20  # rows of an embedding that no piece belongs to


def make_dataset(examples, max_seq_length=64):
    """Features of some examples of the sample."""
    labels, scheme = CORPUS.labels, CORPUS.scheme
    features = convert_examples_to_features(
        examples, labels, max_seq_length, TOKENIZER, scheme=scheme
    )
    return FeatureDataset(features, labels, scheme)


def join_examples(examples, name):
    """One long sentence made of several."""
    tokens, spans = [], []
    for example in examples:
        spans += [
            Span(span.label, span.start + len(tokens), span.end + len(tokens))
            for span in example.spans
        ]
        tokens += example.tokens
    return Example(name, tokens, spans)


TRAIN, DEV = make_dataset(CORPUS.train), make_dataset(CORPUS.dev)
# sentences of 1 to 200 words and more, in one window and in several
UNEVEN = make_dataset(
    [
        join_examples(CORPUS.train[:9], "long"),
        Example("short", ["Quilby"], [Span("PER", 0, 1)]),
        *CORPUS.train[9:45],
    ]
)


# Sentences whose gold entities overlap: two tags in one, two that cross, and one that is annotated
# twice. The tag that `WordTagger` gives a word is written behind it.
_NESTED = [
    ("Bank/O of/O England/B-LOC said/O", [("ORG", 0, 3), ("LOC", 2, 3)]),
    (
        "Ada/B-PER Lovelace/I-PER left/O York/B-ORG Minster/I-ORG",
        [("PER", 0, 2), ("ORG", 3, 5), ("LOC", 3, 4)],
    ),
    ("Quilby/B-PER", []),
    ("North/B-ORG Sea/I-ORG Ltd/I-ORG", [("LOC", 0, 2), ("ORG", 1, 3)]),
    ("Oslo/B-LOC", [("LOC", 0, 1), ("LOC", 0, 1)]),
]
_TAGGED = [[word.split("/") for word in text.split()] for text, _ in _NESTED]
_NESTED_LABELS = label_list(["LOC", "ORG", "PER"], "BIO")
_NESTED_EXAMPLES = [
    Example(str(number), [word for word, _ in words], [Span(*span) for span in spans])
    for number, (words, (_, spans)) in enumerate(zip(_TAGGED, _NESTED, strict=True))
]
_NESTED_TOKENIZER = build_tokenizer(_NESTED_EXAMPLES, min_count=1)
NESTED = FeatureDataset(
    convert_examples_to_features(
        _NESTED_EXAMPLES, _NESTED_LABELS, 16, _NESTED_TOKENIZER, scheme="BIO"
    ),
    _NESTED_LABELS,
    "BIO",
)


class WordTagger(torch.nn.Module):
    """A model that gives each word of `NESTED` the tag that is written there: what it predicts is
    known beforehand.
    """

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(labels=_NESTED_LABELS, scheme="BIO")
        tags = torch.zeros(len(_NESTED_TOKENIZER), len(_NESTED_LABELS))
        for word, tag in itertools.chain.from_iterable(_TAGGED):
            (piece,) = _NESTED_TOKENIZER(word, add_special_tokens=False)["input_ids"]
            tags[piece, _NESTED_LABELS.index(tag)] = 1.0
        assert tags.sum(1).max() == 1  # no word has two tags
        self.tags = torch.nn.Parameter(tags)

    def forward(self, input_ids, word_index, reduction, **batch):
        logits = self.tags[input_ids.flatten()[word_index]]  # (sentences, words, labels)
        return SimpleNamespace(logits=logits, loss=torch.zeros(len(logits)))

    def decode(self, logits, mask):
        return [row[known].argmax(-1).tolist() for row, known in zip(logits, mask, strict=True)]


def make_model(dropout=0.1, labels=CORPUS.labels):
    """A tiny model with the same weights each time."""
    set_seed(0)
    encoder = SmallEncoderConfig(
        vocab_size=len(TOKENIZER) + UNREAD,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        bigram_buckets=256,
        bigram_size=8,
        embedding_size=32,
        embedding_dropout_prob=dropout,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        word_dropout_prob=dropout,
        bigram_dropout_prob=dropout,
    )
    names = dict(enumerate(labels))
    return NerCrfForTokenClassification(
        NerCrfConfig(encoder, scheme=CORPUS.scheme, id2label=names, classifier_dropout=dropout)
    )


def make_args(folder, **changes):
    """Flags of a small training."""
    base = {
        "learning_rate": 1e-3,
        "per_gpu_train_batch_size": 8,
        "num_train_epochs": 2.0,
        "no_cuda": True,
        "logging_steps": 2,
        "average_decay": 0.9,
        "learning_curve": False,
    }
    return resolve_config(
        TrainingConfig(output_dir=str(folder), **(base | changes)), pretrained=False
    )


def train_in(folder, dropout=0.1, dev=True, callbacks=(), **changes):
    """Train the tiny model; what `train` returns."""
    args = make_args(folder, **changes)
    return train(
        args, TRAIN, make_model(dropout), TOKENIZER, DEV if dev else None, callbacks=callbacks
    )


def updates_in_float64(folder, devices=None, callbacks=(), **changes):
    """Two epochs over uneven sentences in float64, without dropout: the loss of each update, and
    the final weights.
    """
    args = make_args(folder, **changes)
    run = start_training(args, UNEVEN, make_model(0.0).double(), TOKENIZER, callbacks=callbacks)
    if devices is not None:
        run.model = BatchDataParallel(run.model, devices)
    losses = []
    for epoch in (0, 1):
        for update in run.plan.epoch(epoch):
            run.update(update)
            losses.append(run.log()["loss"])
    weights = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    return losses, weights.tolist()


def read_history(folder):
    """The log of a run."""
    return [json.loads(line) for line in Path(folder, "history.jsonl").read_text().splitlines()]


def last_step(folder):
    """The step of the newest checkpoint."""
    return max(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))


def all_tensors(folder):
    """Every tensor of a checkpoint: weights, optimiser, averages."""
    files = sorted(Path(folder).glob("*.safetensors"))
    assert len(files) == 2, files
    return {
        f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


def assert_same_tensors(one, other):
    """Two checkpoints hold the same bits."""
    left, right = all_tensors(one), all_tensors(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert np.array_equal(
            tensor.float().numpy(), right[name].float().numpy(), equal_nan=True
        ), name


def differences(one, other):
    """What two finished runs do not have in common: last checkpoint tensor by tensor, state, log,
    best model.
    """
    last = f"checkpoint-{last_step(one)}"
    assert_same_tensors(Path(one, last), Path(other, last))
    names = [f"{last}/state.json", "history.jsonl", "model/model.safetensors", "model/best.json"]
    return [
        name for name in names if Path(one, name).read_bytes() != Path(other, name).read_bytes()
    ]


def write_corpus(folder):
    """The tiny corpus as column files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in CORPUS.splits.items():
        write_columns(folder / f"{split}.bio", examples, CORPUS.scheme)
    return folder


def write_encoder(folder, dropout=0.0):
    """A BERT with random weights and its tokenizer, as a pretrained encoder is saved."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TOKENIZER) + UNREAD,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return Path(folder)


def run_script(*flags, processes=1, check=True, before_wait=None):
    """Run the exported script, under torchrun for several processes; the finished process."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        if processes > 1
        else []
    )
    command = [sys.executable, *launcher, "-m", "nercrf.run_ner_crf", *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment) as process:
        if before_wait is not None:
            before_wait(process)
        stdout, stderr = process.communicate(timeout=180)
    if check:
        assert process.returncode == 0, stderr
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run(*words):
    """The command in this process, whichever way it ends: its exit code."""
    try:
        return cli.main(list(map(str, words)))
    except SystemExit as end:
        return end.code

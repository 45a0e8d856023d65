"""The cache: its key, its file, and many processes that ask for it at once."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import nercrf.cache
from nercrf.cache import (
    CacheError,
    cache_key,
    describe_request,
    describe_tokenizer,
    load_and_cache_examples,
    load_features,
    save_features,
)
from nercrf.data import DataError, Example, write_columns
from nercrf.features import convert_examples_to_features
from nercrf.labels import Span

torch.set_num_threads(1)
DATA = Path(os.environ.get("NERCRF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
SENTENCES = [
    Example("1", ["Ada", "met", "Bobby"], [Span("PER", 0, 1), Span("PER", 2, 3)]),
    Example("2", ["Ada", "in", "Paris"], [Span("PER", 0, 1), Span("LOC", 2, 3)]),
    Example("3", ["met"], []),
]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ada", "met", "bob", "##by", "Ada", "in", "paris"]


def make_tokenizer(pieces=PIECES, lowercase=True, **options):
    return BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=lowercase, **options)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def args(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_columns(folder / "train.txt", SENTENCES, "BIO")
    write_columns(folder / "dev.txt", SENTENCES[:2], "BIO")
    return SimpleNamespace(data_dir=str(folder), feature_cache_dir=str(tmp_path / "cache"), train_max_seq_length=16)


@pytest.fixture
def builds(monkeypatch):
    "How often the data were read."
    calls = []
    original = nercrf.cache.read_corpus

    def counting(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(nercrf.cache, "read_corpus", counting)
    return calls


def same(left, right):
    assert (left.labels, left.scheme) == (right.labels, right.scheme)
    assert left.features.options == right.features.options
    for name, array in left.features.arrays.items():
        np.testing.assert_array_equal(array, getattr(right.features, name))


def cached_file(args):
    (path,) = Path(args.feature_cache_dir).glob("*.safetensors")
    return path


def test_second_call_reads_what_the_first_wrote(args, tokenizer, builds):
    first = load_and_cache_examples(args, "ner", tokenizer)
    second = load_and_cache_examples(args, "ner", tokenizer)
    assert len(builds) == 1
    same(first, second)
    assert cached_file(args).name.startswith("train-")
    direct = convert_examples_to_features(SENTENCES, first.labels, 16, tokenizer)
    np.testing.assert_array_equal(direct.input_ids, second.features.input_ids)
    assert second.gold_spans(1) == SENTENCES[1].spans


# Each ingredient of the key, changed alone.


def change_train(args):
    write_columns(Path(args.data_dir) / "train.txt", SENTENCES[:1], "BIO")


def change_other_split(args):
    write_columns(Path(args.data_dir) / "dev.txt", SENTENCES[:1], "BIO")


def add_split(args):
    write_columns(Path(args.data_dir) / "test.txt", SENTENCES, "BIO")


def setting(**values):
    def change(args):
        vars(args).update(values)

    change.__name__ = "-".join(values)
    return change


LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
CHANGES = [
    change_train,
    change_other_split,
    add_split,
    setting(labels=LABELS),
    setting(scheme="BIOES"),
    setting(scheme="IOB1"),
    setting(train_max_seq_length=17),
    setting(token_column=1, tag_column=0),
    setting(on_bad="warn"),
    setting(format="columns"),
    setting(pad_on_left=True),
    setting(cls_token_at_end=True),
    setting(mask_padding_with_zero=False),
    setting(sequence_a_segment_id=1),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_data_or_settings_misses(change, args, tokenizer):
    before = cache_key(describe_request(args, "ner", tokenizer, "train"))
    change(args)
    assert cache_key(describe_request(args, "ner", tokenizer, "train")) != before


TOKENIZERS = {
    "casing": make_tokenizer(lowercase=False),
    "one piece more": make_tokenizer([*PIECES, "new"]),
    "order of the vocabulary": make_tokenizer([*PIECES[:5], *PIECES[:4:-1]]),
    "accents": make_tokenizer(strip_accents=True),
    "padding side": make_tokenizer(padding_side="left"),
    "special token": make_tokenizer(cls_token="[MASK]"),
    "class": PreTrainedTokenizerFast(tokenizer_object=make_tokenizer().backend_tokenizer, pad_token="[PAD]"),
    "python": ByT5Tokenizer(),
    "python, other": ByT5Tokenizer(extra_ids=7),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_change_of_the_tokenizer_misses(name, args, tokenizer):
    names = [name, *(other for other in TOKENIZERS if other != name)]
    keys = [
        cache_key(describe_request(args, "ner", item, "train"))
        for item in [tokenizer, *(TOKENIZERS[other] for other in names)]
    ]
    assert keys[1] not in keys[:1] + keys[2:]


@pytest.mark.parametrize(
    ("target", "value"),
    [("CACHE_FORMAT", 99), ("version", lambda name: "0"), ("nercrf", SimpleNamespace(__version__="99"))],
)
def test_a_change_of_code_misses(target, value, args, tokenizer, monkeypatch):
    before = cache_key(describe_request(args, "ner", tokenizer, "train"))
    monkeypatch.setattr(nercrf.cache, target, value)
    assert cache_key(describe_request(args, "ner", tokenizer, "train")) != before


def test_split_and_task_are_in_the_key(args, tokenizer):
    keys = {
        cache_key(describe_request(args, task, tokenizer, split))
        for task in ("ner", "cner")
        for split in ("train", "dev")
    }
    assert len(keys) == 4


def test_use_of_a_tokenizer_does_not_change_the_key(tokenizer):
    before = describe_tokenizer(tokenizer)
    tokenizer(["ada", "met bob"], padding=True, truncation=True, max_length=3)
    assert describe_tokenizer(tokenizer) == before == describe_tokenizer(make_tokenizer())


def test_saved_and_loaded_tokenizer_has_the_same_content(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = BertTokenizer.from_pretrained(tmp_path)
    assert describe_tokenizer(loaded) == describe_tokenizer(tokenizer)


def test_same_content_under_another_name_hits(args, tokenizer, tmp_path, builds):
    first = load_and_cache_examples(args, "ner", tokenizer)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for old, new in [("train.txt", "train.bio"), ("dev.txt", "valid.conll")]:
        (other / new).write_bytes((Path(args.data_dir) / old).read_bytes())
    args.data_dir = str(other)
    same(first, load_and_cache_examples(args, "ner", make_tokenizer()))
    assert len(builds) == 1


def test_fault_of_the_reference_file_name_as_key(args, tokenizer):
    "Other data under the same file names are other features."
    first = load_and_cache_examples(args, "ner", tokenizer)
    changed = [Example("1", ["Ada", "met", "Bobby"], [Span("ORG", 0, 3)])]
    write_columns(Path(args.data_dir) / "train.txt", changed, "BIO")
    second = load_and_cache_examples(args, "ner", tokenizer)
    assert len(first) == 3
    assert len(second) == 1
    assert second.types == ["LOC", "ORG", "PER"]
    cased = load_and_cache_examples(args, "ner", make_tokenizer(lowercase=False))
    assert cased.features.input_ids.tolist() != second.features.input_ids.tolist()


# The file.


def test_every_flipped_byte_is_found(args, tokenizer):
    load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match="build it again"):
            load_features(path)


def test_every_truncation_is_found(args, tokenizer):
    load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CacheError):
            load_features(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: b"",
        lambda whole: whole[:-40] + bytes([whole[-40] ^ 4]) + whole[-39:],
        lambda whole: b"not a cache file",
    ],
    ids=["cut", "empty", "flipped", "other"],
)
def test_damaged_file_is_named_and_built_again(damage, args, tokenizer, builds, caplog):
    first = load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        second = load_and_cache_examples(args, "ner", tokenizer)
    same(first, second)
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert len(builds) == 2
    assert path.read_bytes() == whole


def test_file_of_another_request_under_this_name_is_passed_over(args, tokenizer, caplog):
    first = load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    save_features(path, first.features, {"key": "other"})
    with caplog.at_level(logging.WARNING):
        same(first, load_and_cache_examples(args, "ner", tokenizer))
    assert "found other" in caplog.text


def test_overwrite_cache_builds_again(args, tokenizer, builds):
    load_and_cache_examples(args, "ner", tokenizer)
    args.overwrite_cache = True
    load_and_cache_examples(args, "ner", tokenizer)
    assert len(builds) == 2
    assert len(list(Path(args.feature_cache_dir).glob("*.safetensors"))) == 1


def test_failed_write_leaves_the_old_file_and_no_other(args, tokenizer, monkeypatch, caplog):
    load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    whole = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    args.overwrite_cache = True
    with caplog.at_level(logging.WARNING):
        dataset = load_and_cache_examples(args, "ner", tokenizer)
    assert len(dataset) == 3
    assert "No space left on device" in caplog.text
    assert path.read_bytes() == whole
    assert cached_file(args) == path


def test_without_a_place_in_the_data_folder_the_users_cache_is_used(args, tokenizer, tmp_path, monkeypatch, builds):
    args.feature_cache_dir = None
    (Path(args.data_dir) / ".nercrf_cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load_and_cache_examples(args, "ner", tokenizer)
    load_and_cache_examples(args, "ner", tokenizer)
    assert len(builds) == 1
    assert len(list((tmp_path / "home" / "nercrf").glob("*.safetensors"))) == 1


def test_default_place_is_beside_the_data(args, tokenizer, builds):
    del args.feature_cache_dir
    load_and_cache_examples(args, "ner", tokenizer)
    load_and_cache_examples(args, "ner", tokenizer)
    assert len(builds) == 1
    assert len(list((Path(args.data_dir) / ".nercrf_cache").glob("*.safetensors"))) == 1


# Requests.


def test_labels_and_scheme_of_the_caller(args, tokenizer):
    args.scheme = "BIOES"
    dataset = load_and_cache_examples(args, "ner", tokenizer)
    assert dataset.scheme == "BIOES"
    assert "S-PER" in dataset.labels
    ids = dataset[1]["labels"].tolist()
    assert [dataset.labels[at] for at in ids] == ["S-PER", "O", "S-LOC"]
    args.labels, args.scheme = ["O", "B-PER", "I-PER"], None
    with pytest.raises(DataError, match="make the label list"):
        load_and_cache_examples(args, "ner", tokenizer)


def test_lengths_of_training_and_evaluation(args, tokenizer):
    args.train_max_seq_length, args.eval_max_seq_length = 4, 20
    train = load_and_cache_examples(args, "ner", tokenizer, "train")
    dev = load_and_cache_examples(args, "ner", tokenizer, "dev")
    assert train.lengths.max() == 4
    assert dev.lengths.max() > 4
    assert train.gold_spans(0) == dev.gold_spans(0)


@pytest.mark.parametrize(
    ("task", "data_type", "error"),
    [
        ("conll", "train", "'ner' reads any folder"),
        ("ner", "validation", "expected one of train, dev, test"),
        ("ner", "test", "expected a file for test, found dev, train"),
    ],
)
def test_wrong_requests(task, data_type, error, args, tokenizer):
    with pytest.raises(ValueError, match=error):
        load_and_cache_examples(args, task, tokenizer, data_type)


def test_oddities_of_the_data_are_named_on_a_hit_too(args, tokenizer, caplog):
    path = Path(args.data_dir) / "train.txt"
    path.write_text("Ada\tB-PER\nmet\tI-LOC\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.txt:2"):
        load_and_cache_examples(args, "ner", tokenizer)
    args.on_bad = "warn"
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_and_cache_examples(args, "ner", tokenizer)
        assert "oddities" in caplog.text
        assert "train.txt:2" in caplog.text


# Several processes.

WORKER = """
import json, sys
from types import SimpleNamespace
import torch
torch.set_num_threads(1)
from transformers import BertTokenizer
import nercrf.cache
from nercrf.cache import load_and_cache_examples
from nercrf.distributed import close_distributed, get_rank, init_distributed

settings, pieces, broken = json.loads(sys.argv[1])
built = []
original = nercrf.cache.read_corpus
def counting(*args, **options):
    built.append(1)
    return original(*args, **options)
nercrf.cache.read_corpus = counting
tokenizer = BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})
init_distributed(no_cuda=True)
args = SimpleNamespace(**settings)
found = [get_rank()]
for args.overwrite_cache in (False, True, False):
    dataset = load_and_cache_examples(args, "ner", tokenizer)
    found.append([len(built), len(dataset), dataset.features.input_ids.tolist()])
args.data_dir = broken
try:
    load_and_cache_examples(args, "ner", tokenizer)
except Exception as error:
    found.append(str(error))
print(json.dumps(found))
close_distributed()
"""


def run_processes(payload, count=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(nercrf.cache.__file__).parents[1]),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(payload)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        return [(item, *item.communicate(timeout=120)) for item in running]
    finally:
        for item in running:
            item.kill()


def test_two_processes_build_once_and_fail_together(args, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.txt").write_text("Ada B-PER\nmet I-LOC\n")
    results = run_processes([vars(args), PIECES, str(broken)])
    assert [item.returncode for item, _, _ in results] == [0, 0], results
    first, second = sorted(json.loads(out.splitlines()[-1]) for _, out, _ in results)
    assert [row[0] for row in first[1:4]] == [1, 2, 2]  # the first process builds
    assert [row[0] for row in second[1:4]] == [0, 0, 0]  # the other never does
    assert [row[1:] for row in first[1:4]] == [row[1:] for row in second[1:4]]
    assert "train.txt:2" in first[4]
    assert "train.txt:2" in second[4]
    assert cached_file(args).name.startswith("train-")


# Real data.


def test_resume_once_built_is_read(tmp_path, builds):
    if not (DATA / "resume").is_dir():
        pytest.skip(f"no {DATA / 'resume'}; set NERCRF_DATA")
    tokenizer = BertTokenizer(vocab=str(DATA / "vocab-bert-base-chinese.txt"))
    args = SimpleNamespace(data_dir=str(DATA / "resume"), feature_cache_dir=str(tmp_path))
    first = load_and_cache_examples(args, "cner", tokenizer, "test")
    second = load_and_cache_examples(args, "cner", tokenizer, "test")
    same(first, second)
    assert len(builds) == 1
    assert sum(len(second.gold_spans(at)) for at in range(len(second))) == 1630

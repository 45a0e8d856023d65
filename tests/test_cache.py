"""The cache: its key, its file, and many processes that ask for it at once."""

import gzip
import inspect
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from tokenizers import AddedToken, normalizers
from transformers import BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import nercrf.features.cache
import nercrf.features.cache_files
import nercrf.features.large_corpus
import nercrf.features.parts
import nercrf.features.store
import nercrf.files
from nercrf.data.conll import write_columns
from nercrf.data.corpus import CorpusFiles, read_corpus
from nercrf.data.examples import DataError, Example, file_digest
from nercrf.data.formats import write_examples
from nercrf.data.read_config import ReadConfig
from nercrf.data_commands import cache_main
from nercrf.features.cache_files import clean_cache, list_cache, remember_digest
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.pieces import cache_key, describe_tokenizer
from nercrf.features.store import CacheError, load_features, read_header, save_features
from nercrf.labels import Span
from nercrf.opening import CONVERSION_OPTIONS, conversion_of, open_data
from nercrf.run_ner_crf import load_and_cache_examples

torch.set_num_threads(1)
DATA = Path(
    os.environ.get("NERCRF_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
SENTENCES = [
    Example("1", ["Ada", "met", "Bobby"], [Span("PER", 0, 1), Span("PER", 2, 3)]),
    Example("2", ["Ada", "in", "Paris"], [Span("PER", 0, 1), Span("LOC", 2, 3)]),
    Example("3", ["met"], []),
]
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "ada",
    "met",
    "bob",
    "##by",
    "Ada",
    "in",
    "paris",
]


def make_tokenizer(pieces=PIECES, lowercase=True, **options):
    return BertTokenizer(
        vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=lowercase, **options
    )


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def args(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_columns(folder / "train.txt", SENTENCES, "BIO")
    write_columns(folder / "dev.txt", SENTENCES[:2], "BIO")
    return SimpleNamespace(
        data_dir=str(folder), feature_cache_dir=str(tmp_path / "cache"), train_max_seq_length=16
    )


def describe_request(args, task, tokenizer, split):
    """What a request for features depends on."""
    labels, scheme = getattr(args, "labels", None), getattr(args, "scheme", None)
    corpus = open_data(args, task)
    return corpus.describe(split, tokenizer, conversion_of(args, split), labels, scheme)


@pytest.fixture
def builds(monkeypatch):
    "How often the data were read."
    calls = []
    original = CorpusFiles.read

    def counting(files, split):
        calls.append(split)
        return original(files, split)

    monkeypatch.setattr(CorpusFiles, "read", counting)
    return calls


def same(left, right):
    assert (left.labels, left.scheme) == (right.labels, right.scheme)
    assert left.features.options == right.features.options
    for name, array in left.features.arrays.items():
        np.testing.assert_array_equal(array, getattr(right.features, name))


def cached_file(args):
    (path,) = Path(args.feature_cache_dir).glob("*.safetensors")
    return path


@pytest.mark.parametrize(
    ("format", "name", "encoding"),
    [
        ("columns", "{}.conll.gz", None),
        ("columns", "{}.txt", "utf-16"),
        ("jsonl", "{}.jsonl", None),
        ("doccano", "{}.jsonl.gz", None),
        ("label_studio", "{}.json", None),
        ("inline", "{}.txt", None),
        ("brat", "{}.txt", None),
    ],
)
def test_every_format_trains_alike(args, tokenizer, tmp_path, format, name, encoding):
    """The same sentences in any format and encoding have the same features; other annotations have others."""
    expected = load_and_cache_examples(args, "ner", tokenizer)
    folder = tmp_path / "other"
    for split, examples in {"train": SENTENCES, "dev": SENTENCES[:2]}.items():
        path = folder / name.format(split)
        write_examples(examples, path, format)
        if encoding:
            path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    other = SimpleNamespace(**{**vars(args), "data_dir": str(folder), "encoding": encoding})
    same(load_and_cache_examples(other, "ner", tokenizer), expected)
    changed = [Example("1", SENTENCES[0].tokens, [Span("PER", 0, 1)]), *SENTENCES[1:]]
    path = folder / name.format("train")
    write_examples(changed, path, format)
    if encoding:
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    anew = load_and_cache_examples(other, "ner", tokenizer)
    assert not np.array_equal(anew.features.labels, expected.features.labels)


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["in parts", "whole"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_without_labels_is_read_like_the_training_file(
    args, tokenizer, tmp_path, monkeypatch, large, packed
):
    """An unlabelled line of CLUENER looks like one of character spans; it has to be read by
    characters all the same.
    """
    monkeypatch.setattr(nercrf.features.cache, "LARGE", large)
    folder, ending = tmp_path / "cluener", ".jsonl.gz" if packed else ".jsonl"
    lines = {
        "train": '{"text": "ab", "label": {"X": {"a": [[0, 0]]}}}\n',
        "test": '{"text": "abc"}\n',
    }
    folder.mkdir()
    for split, line in lines.items():
        data = line.encode()
        (folder / f"{split}{ending}").write_bytes(gzip.compress(data) if packed else data)
    args.data_dir = str(folder)
    assert load_and_cache_examples(
        args, "ner", tokenizer, "test"
    ).features.word_lengths.tolist() == [3]


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


OPTIONS = {
    "cls_token_at_end": True,
    "cls_token": "[MASK]",
    "cls_token_segment_id": 1,
    "sep_token": "[MASK]",
    "pad_on_left": True,
    "pad_token": "[MASK]",
    "pad_token_segment_id": 1,
    "sequence_a_segment_id": 1,
    "mask_padding_with_zero": False,
    "stride": 3,
    "context": 2,
    "nested": "innermost",
    "joined_by": "",
    "subtoken_pooling": "mean",
    "other_types": ["GPE"],
}


def test_no_option_of_reader_or_conversion_is_missing(args):
    """Every parameter of the two functions that make the features, but for the data themselves, is
    in the key.
    """
    parameters = set(inspect.signature(convert_examples_to_features).parameters)
    data = {"examples", "label_list", "max_seq_length", "tokenizer", "scheme", "neighbours"}
    assert set(CONVERSION_OPTIONS) == parameters - data
    assert set(OPTIONS) >= set(CONVERSION_OPTIONS)
    named = set(inspect.signature(read_corpus).parameters) - {"folder", "scheme", "options"}
    read = set(CorpusFiles(args.data_dir, ReadConfig()).options)
    assert read == named | {
        *("token_column", "tag_column", "by", "end", "units"),
        *("tag_names", "type_map", "keep_types", "drop_types", "split_seed"),
    }


@pytest.mark.parametrize("name", CONVERSION_OPTIONS)
def test_each_option_of_the_conversion_alone_misses(name, args, tokenizer):
    keys = set()
    for value in (None, OPTIONS[name]):
        vars(args)[name] = value
        keys.add(cache_key(describe_request(args, "ner", tokenizer, "train")))
    assert len(keys) == 2


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_data_or_settings_misses(change, args, tokenizer):
    before = cache_key(describe_request(args, "ner", tokenizer, "train"))
    change(args)
    assert cache_key(describe_request(args, "ner", tokenizer, "train")) != before


def with_added(*tokens):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def with_normalizer(*parts):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(list(parts))
    return tokenizer


def python_with(*tokens):
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


TOKENIZERS = {
    "added token": with_added("new"),
    "added token, another": with_added("other"),
    "added token, stripped": with_added(AddedToken("new", lstrip=True)),
    "added token, whole words": with_added(AddedToken("new", single_word=True)),
    "added token, special": with_added(AddedToken("new", special=True)),
    "normalizer": with_normalizer(normalizers.NFC(), normalizers.Lowercase()),
    "normalizer, another": with_normalizer(normalizers.NFKC(), normalizers.Lowercase()),
    "special tokens in text": make_tokenizer(split_special_tokens=True),
    "unknown token": make_tokenizer(unk_token="[MASK]"),
    "python, added token": python_with("new"),
    "python, added token, stripped": python_with(AddedToken("new", lstrip=True)),
    "casing": make_tokenizer(lowercase=False),
    "one piece more": make_tokenizer([*PIECES, "new"]),
    "order of the vocabulary": make_tokenizer([*PIECES[:5], *PIECES[:4:-1]]),
    "accents": make_tokenizer(strip_accents=True),
    "padding side": make_tokenizer(padding_side="left"),
    "special token": make_tokenizer(cls_token="[MASK]"),
    "inputs": make_tokenizer(model_input_names=["input_ids"]),
    "class": PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer, pad_token="[PAD]"
    ),
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
    [
        ("CACHE_FORMAT", 99),
        ("version", lambda name: "0"),
        ("nercrf", SimpleNamespace(__version__="99")),
    ],
)
def test_a_change_of_code_misses(target, value, args, tokenizer, monkeypatch):
    before = cache_key(describe_request(args, "ner", tokenizer, "train"))
    monkeypatch.setattr(nercrf.features.cache, target, value)
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


def test_renamed_folder_hits(args, tokenizer, builds):
    """The cache beside the data moves with them."""
    args.feature_cache_dir = None
    first = load_and_cache_examples(args, "ner", tokenizer)
    new = Path(args.data_dir).with_name("renamed")
    os.rename(args.data_dir, new)
    args.data_dir = str(new)
    same(first, load_and_cache_examples(args, "ner", tokenizer))
    assert len(builds) == 1


def test_copy_in_another_folder_hits_where_the_cache_is_shared(
    args, tokenizer, builds, tmp_path, monkeypatch
):
    """Two folders that can't be written, one user."""
    args.feature_cache_dir = None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (Path(args.data_dir) / ".nercrf_cache").write_text("in the way")
    first = load_and_cache_examples(args, "ner", tokenizer)
    args.data_dir = shutil.copytree(args.data_dir, tmp_path / "copy")
    same(first, load_and_cache_examples(args, "ner", tokenizer))
    assert len(builds) == 1


def test_a_name_that_decides_the_format_is_in_the_key(args, tokenizer):
    before = cache_key(describe_request(args, "ner", tokenizer, "train"))
    train = Path(args.data_dir) / "train.txt"
    train.rename(train.with_suffix(".json"))
    assert cache_key(describe_request(args, "ner", tokenizer, "train")) != before


# Digests of large files.


@pytest.fixture
def old_file(tmp_path, monkeypatch):
    """A file that was last changed a while ago as far as the clock says; and how often it was
    read.
    """
    path = tmp_path / "train.txt"
    path.write_bytes(b"old content")
    ahead = time.time
    monkeypatch.setattr(time, "time", lambda: ahead() + 60)
    read = []

    original = nercrf.files.sha256_of

    def counting(path):
        read.append(path)
        return original(path)

    monkeypatch.setattr(nercrf.files, "sha256_of", counting)
    return path, read


def test_a_digest_is_remembered_until_the_file_changes(old_file, tmp_path):
    path, read = old_file
    folders = [tmp_path / "cache"]
    for _ in range(3):
        assert remember_digest(path, folders) == file_digest(path)
    assert len(read) == 1
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"new")  # the same length ...
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # ... and the same time
    assert remember_digest(path, folders) == file_digest(path)
    assert len(read) == 2


def test_a_file_changed_just_now_is_not_remembered(old_file, tmp_path, monkeypatch):
    path, read = old_file
    now = os.stat(path).st_ctime
    monkeypatch.setattr(time, "time", lambda: now + 1)
    for _ in range(2):
        assert remember_digest(path, [tmp_path]) == file_digest(path)
    assert len(read) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"a": 1}'])
def test_a_memory_of_somebody_else_is_no_obstacle_and_stays(content, old_file, tmp_path):
    """What is no memory of ours is a file of others that has the same name."""
    path, _ = old_file
    (tmp_path / "digests.json").write_bytes(content)
    for _ in range(2):
        assert remember_digest(path, [tmp_path]) == file_digest(path)
    assert (tmp_path / "digests.json").read_bytes() == content
    clean_cache([tmp_path], everything=True)
    assert (tmp_path / "digests.json").read_bytes() == content
    _, read = old_file
    read.clear()
    for _ in range(2):  # the next folder remembers
        assert remember_digest(path, [tmp_path, tmp_path / "next"]) == file_digest(path)
    assert len(read) == 1


def test_a_forged_digest_is_not_taken(old_file, tmp_path):
    path, _ = old_file
    remember_digest(path, [tmp_path])
    memory = tmp_path / "digests.json"
    memory.write_text(memory.read_text().replace(file_digest(path), "../" * 9))
    assert remember_digest(path, [tmp_path]) == file_digest(path)


def test_a_folder_that_cannot_be_written_is_passed_over(old_file, tmp_path):
    path, read = old_file
    (tmp_path / "file").touch()
    folders = [tmp_path / "file", tmp_path / "good"]
    for _ in range(2):
        remember_digest(path, folders)
    assert len(read) == 1


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


def test_without_a_place_in_the_data_folder_the_users_cache_is_used(
    args, tokenizer, tmp_path, monkeypatch, builds, caplog
):
    args.feature_cache_dir = None
    (Path(args.data_dir) / ".nercrf_cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with caplog.at_level(logging.WARNING):
        load_and_cache_examples(args, "ner", tokenizer)
        load_and_cache_examples(args, "ner", tokenizer)
    (message,) = caplog.messages
    assert (
        f"cached in {tmp_path / 'home' / 'nercrf'}, since nothing could be written to {args.data_dir}"
        in message
    )
    assert len(builds) == 1
    assert len(list((tmp_path / "home" / "nercrf").glob("*.safetensors"))) == 1


@pytest.fixture(params=["full", "read-only"])
def bad_disk(args, request, mount_disk):
    """The data on a file system that is full or read-only."""
    folder = mount_disk("1m")
    shutil.copytree(args.data_dir, folder, dirs_exist_ok=True)
    if request.param == "full":
        with pytest.raises(OSError, match="No space left"):
            (folder / "filler").write_bytes(b"x" * (1 << 21))
    else:
        subprocess.run(["mount", "-o", "remount,size=1m,ro", folder], check=True)
    return folder


@pytest.mark.parametrize("large", [0, 1 << 30], ids=["in parts", "whole"])
@pytest.mark.parametrize("home", ["home", "data/train.txt"], ids=["user's cache", "nowhere"])
def test_a_disk_that_is_really_full_or_read_only(
    bad_disk, home, large, args, tokenizer, tmp_path, monkeypatch, caplog
):
    expected = load_and_cache_examples(args, "ner", tokenizer)
    args.data_dir, args.feature_cache_dir = str(bad_disk), None
    monkeypatch.setattr(nercrf.features.cache, "LARGE", large)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            same(expected, load_and_cache_examples(args, "ner", tokenizer))
    if home == "home":
        (message,) = caplog.messages
        assert f"cached in {tmp_path / 'home' / 'nercrf'}" in message
        assert ("No space left" in message) or ("Read-only" in message)
        assert len(list((tmp_path / "home" / "nercrf").glob("*.safetensors"))) == 1
    else:
        assert all(
            "no folder could be written" in message
            for message in caplog.messages
            if "cached" in message
        )
        assert len(caplog.messages) >= 2
    assert not [
        path for path in bad_disk.rglob("*") if path.suffix in (".tmp", ".parts", ".safetensors")
    ]


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
        ("ner", "test", "expected a file for test, got train, dev"),
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
from nercrf.data.corpus import CorpusFiles
from nercrf.run_ner_crf import load_and_cache_examples
from nercrf.distributed.processes import close_distributed, get_rank, init_distributed

settings, pieces, broken = json.loads(sys.argv[1])
built = []
original = CorpusFiles.read
def counting(*args):
    built.append(1)
    return original(*args)
CorpusFiles.read = counting
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
        "PYTHONPATH": str(Path(nercrf.features.cache.__file__).parents[1]),
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


@pytest.mark.parametrize("count", [2, 4])
def test_processes_of_a_group_build_once_and_fail_together(count, args, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.txt").write_text("Ada B-PER\nmet I-LOC\n")
    results = run_processes([vars(args), PIECES, str(broken)], count)
    assert [item.returncode for item, _, _ in results] == [0] * count, results
    first, *others = sorted(json.loads(out.splitlines()[-1]) for _, out, _ in results)
    assert [row[0] for row in first[1:4]] == [1, 2, 2]  # the first process builds
    for other in others:
        assert [row[0] for row in other[1:4]] == [0, 0, 0]  # the others never do
        assert [row[1:] for row in first[1:4]] == [row[1:] for row in other[1:4]]
        assert "train.txt:2" in other[4]
    assert "train.txt:2" in first[4]
    assert cached_file(args).name.startswith("train-")


def in_child(function, *arguments):
    """Start a forked process; it has everything imported."""
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, daemon=True
    )
    process.start()
    return process


def build_at(moment, args, in_parts, report):
    """Load at a given moment, slowly, and say whether this process built."""
    logging.disable()
    nercrf.features.cache.LARGE = 0 if in_parts else 1 << 40
    built = []
    name = "_convert_parts" if in_parts else "_convert_whole"
    original = getattr(nercrf.features.cache, name)

    def slow(*arguments, **options):
        built.append(1)
        time.sleep(0.4)
        return original(*arguments, **options)

    setattr(nercrf.features.cache, name, slow)
    args.conversion_processes = 1
    time.sleep(max(0, moment - time.time()))
    dataset = load_and_cache_examples(args, "ner", make_tokenizer())
    report.put([len(built), dataset.features.input_ids.tolist()])


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_independent_processes_build_once(count, in_parts, args):
    """Without a process group only the lock is between them."""
    report, moment = multiprocessing.get_context("fork").SimpleQueue(), time.time() + 0.3
    processes = [in_child(build_at, moment, args, in_parts, report) for _ in range(count)]
    results = [report.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(built for built, _ in results) == [0] * (count - 1) + [1]
    expected = load_and_cache_examples(args, "ner", make_tokenizer()).features.input_ids.tolist()
    assert all(pieces == expected for _, pieces in results)


# Killed builders.


def build_for_ever(args, large):
    logging.disable()
    nercrf.features.cache.LARGE, nercrf.features.large_corpus.PART, args.conversion_processes = (
        large,
        1,
        1,
    )
    while True:
        args.overwrite_cache = True
        load_and_cache_examples(args, "ner", make_tokenizer())


def assert_only(folder, count=1):
    """Nothing in a cache folder but whole files and the digests of the data; the system may keep an
    unlocked lock file.
    """
    names = [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]
    names = [name for name in names if name != "digests.json"]
    assert len(names) == count, names
    for name in names:
        load_features(folder / name)


def kill_at_random_moments(args, large, trials, seed):
    moments, tokenizer = random.Random(seed), make_tokenizer()
    expected = load_and_cache_examples(args, "ner", tokenizer)
    folder = Path(args.feature_cache_dir)
    (path,) = folder.glob("*.safetensors")
    left = trial = 0
    while trial < trials or (
        not left and trial < 40 * trials
    ):  # on a slow machine few are killed while they write
        trial += 1
        if trial % 2:
            path.unlink()
        process = in_child(build_for_ever, args, large)
        time.sleep(moments.uniform(0.005, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for item in folder.glob("*.safetensors"):
            load_features(item)  # whole, or not there
        left += len(nercrf.features.cache_files._leftovers(path))
        args.overwrite_cache = True  # so that this process needs the lock
        same(expected, load_and_cache_examples(args, "ner", tokenizer))
        assert_only(folder)
    return left


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["in parts", "whole"])
def test_builder_killed_at_random_moments(large, args):
    assert kill_at_random_moments(args, large, trials=15, seed=0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("large", [0, 1 << 40], ids=["in parts", "whole"])
def test_builder_killed_at_200_random_moments(large, args):
    kill_at_random_moments(args, large, trials=200, seed=1)


FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def build_and_die(args, large, fatal):
    """Build; die right before the `fatal`-th file operation within the cache folder."""
    logging.disable()
    nercrf.features.cache.LARGE, nercrf.features.large_corpus.PART, args.conversion_processes = (
        large,
        1,
        1,
    )
    seen = 0

    def count(event, arguments):
        nonlocal seen
        if event in FILE_EVENTS and str(arguments[0]).startswith(args.feature_cache_dir):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    load_and_cache_examples(args, "ner", make_tokenizer())
    os._exit(0)


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["in parts", "whole"])
def test_builder_killed_before_each_file_operation(large, args, tokenizer):
    folder, fatal, expected = Path(args.feature_cache_dir), 0, None
    while True:
        fatal += 1
        process = in_child(build_and_die, args, large, fatal)
        process.join()
        for path in folder.glob("*.safetensors") if folder.exists() else []:
            load_features(path)
        found = load_and_cache_examples(args, "ner", tokenizer)
        expected = expected or found
        same(expected, found)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        clean_cache([folder], broken=True)
        assert_only(folder)
        shutil.rmtree(folder)
    assert fatal > (15 if large == 0 else 6)


def hold_lock(path, ready):
    lock = FileLock(path)
    lock.acquire()
    ready.put(1)
    time.sleep(600)


def test_a_lock_is_waited_for_and_ends_with_its_holder(args, tokenizer, caplog):
    load_and_cache_examples(args, "ner", tokenizer)
    path = cached_file(args)
    path.unlink()
    ready = multiprocessing.get_context("fork").SimpleQueue()
    holder = in_child(hold_lock, path.with_name(f".{path.name}.lock"), ready)
    ready.get()
    killer = in_child(kill_later, holder.pid)
    with caplog.at_level(logging.INFO):
        assert len(load_and_cache_examples(args, "ner", tokenizer)) == 3
    assert f"waiting for the process that builds {path}" in caplog.messages
    for process in (holder, killer):
        process.join()


def kill_later(pid):
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)


def test_without_locks_the_file_is_built_all_the_same(args, tokenizer, monkeypatch):
    def refuse(path):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(nercrf.features.cache_files, "_take_lock", refuse)
    first = load_and_cache_examples(args, "ner", tokenizer)
    same(first, load_and_cache_examples(args, "ner", tokenizer))
    assert_only(Path(args.feature_cache_dir))


# A file that is broken where nobody has looked yet.


def test_a_broken_block_is_found_in_use_and_the_next_start_builds(
    args, tokenizer, builds, monkeypatch
):
    monkeypatch.setattr(nercrf.features.store, "RESIDENT", 0)
    monkeypatch.setattr(nercrf.features.cache, "RESIDENT", 0)
    first = load_and_cache_examples(args, "ner", tokenizer)
    expected = first.collate([1])["input_ids"]
    path = cached_file(args)
    whole = path.read_bytes()
    header = read_header(path)
    damaged = bytearray(whole)
    damaged[header.start + header.table["input_ids"]["data_offsets"][0]] ^= 1
    path.write_bytes(damaged)
    opened = load_and_cache_examples(args, "ner", tokenizer)
    with pytest.raises(
        CacheError, match=r"block 0 of input_ids.*moved to .*broken, so start again"
    ):
        opened.collate([0])
    assert [path.suffix for path in Path(args.feature_cache_dir).glob("train-*")] == [".broken"]
    again = load_and_cache_examples(args, "ner", tokenizer)
    assert len(builds) == 2
    assert path.read_bytes() == whole
    assert_only(Path(args.feature_cache_dir))
    assert torch.equal(again.collate([1])["input_ids"], expected)


@pytest.mark.parametrize(
    "module",
    [
        nercrf.features.cache,
        nercrf.features.cache_files,
        nercrf.features.store,
        nercrf.features.large_corpus,
        nercrf.features.parts,
    ],
)
def test_no_module_of_the_cache_knows_pickle(module):
    source = inspect.getsource(module)
    for name in ("import pickle", "pickle.load", "torch.load", "import dill", "allow_pickle"):
        assert name not in source


def test_a_planted_pickle_is_passed_over(args, tokenizer, tmp_path, caplog):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    first = load_and_cache_examples(args, "ner", tokenizer)
    cached_file(args).write_bytes(pickle.dumps(Planted()))
    same(first, load_and_cache_examples(args, "ner", tokenizer))
    assert not (tmp_path / "ran").exists()


# The command.


@pytest.fixture
def cached(args, tokenizer, tmp_path, monkeypatch):
    """A data folder with a cache beside it: two good files, and one of each other kind; and what
    isn't ours.
    """
    args.feature_cache_dir = None
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "user")
    )  # the second place that is looked at
    for data_type in ("train", "dev"):
        load_and_cache_examples(args, "ner", tokenizer, data_type)
    folder = Path(args.data_dir) / ".nercrf_cache"
    (train,) = folder.glob("train-*.safetensors")
    (folder / "test-0123456789abcdef.safetensors").write_bytes(train.read_bytes()[:-1])
    shutil.copy(train, folder / "train-0123456789abcdef.safetensors.broken")
    (folder / ".train-0123456789abcdef.safetensors.77.tmp").write_bytes(b"half")
    parts = folder / ".dev-0123456789abcdef.safetensors.77.parts"
    parts.mkdir()
    (parts / "manifest.json").write_text(json.dumps({"format": nercrf.files._UNFINISHED}))
    (parts / "000000.safetensors").write_bytes(b"x" * 100)
    for name in (
        "train.safetensors",
        "train-0123456789abcdef.safetensors.bak",
        "model-0123456789abcdef.safetensors",
    ):
        (folder / name).write_text("not ours")
    (folder / ".train-x.77.tmp").write_text("not ours")
    return folder


OURS = {
    "test-0123456789abcdef.safetensors": "broken",
    "train-0123456789abcdef.safetensors.broken": "moved aside",
    ".train-0123456789abcdef.safetensors.77.tmp": "unfinished",
    ".dev-0123456789abcdef.safetensors.77.parts": "unfinished",
}


def not_ours(folder):
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.read_bytes() == b"not ours"
    )


def test_ls_names_our_files_and_their_states(cached, args, capsys):
    states = {entry.path.name: entry.state for entry in list_cache([args.data_dir])}
    good = {path.name for path in cached.glob("*.safetensors")} & set(states) - set(OURS)
    assert states == OURS | dict.fromkeys(good, "good")
    assert len(good) == 2
    assert cache_main(["ls", args.data_dir]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["size", "MB", "days", "split", "sentences", "state", "source", "file"]
    assert len(lines) == 6
    (train,) = [line for line in lines if "train" in line and "good" in line]
    assert train.split()[1:6] == ["0.0", "train", "3", "good", args.data_dir]
    assert cache_main(["ls", str(cached)]) == 0  # the cache folder itself
    assert capsys.readouterr().out.splitlines() == [header, *lines]


def test_info_shows_the_header_and_proves_the_file(cached, capsys):
    path = next(path for path in cached.glob("train-*.safetensors"))
    assert cache_main(["info", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sentences"] == 3
    assert shown["labels"][0] == "O"
    assert shown["columns"]["labels"] == "I32 7"
    assert shown["description"]["data_type"] == "train"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert cache_main(["info", str(path)]) == 1
    assert "block 0 of" in capsys.readouterr().out
    assert path.exists()
    assert cache_main(["info", str(cached / "none")]) == 1
    assert "FileNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--broken"], 2),
        (["--all"], 0),
        (["--older_than", "1"], 6),
        (["--older_than", "0"], 0),
        (["--all", "--dry_run"], 6),
    ],
)
def test_clean_removes_what_was_asked_for_and_nothing_else(flags, left, cached, args, capsys):
    other = not_ours(cached)
    assert cache_main(["clean", args.data_dir, *flags]) == 0
    assert len(list_cache([args.data_dir])) == left
    assert not_ours(cached) == other
    assert len(other) == 4
    assert (Path(args.data_dir) / "train.txt").exists()
    verb = "would be removed" if "--dry_run" in flags else "removed"
    assert capsys.readouterr().out.splitlines()[-1].endswith(verb)
    if "--broken" in flags:
        assert {entry.state for entry in list_cache([args.data_dir])} == {"good"}


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a folder", "pipe"])
def test_names_of_a_cache_that_others_have_taken_stay(kind, cached, args, tokenizer, tmp_path):
    """Whatever clean is asked for, and when a file is built that needs the name."""
    thesis = tmp_path / "theirs" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    (good,) = set(cached.glob("dev-*.safetensors"))
    good.unlink()
    names = ["train-00000000deadbeef.safetensors", ".train-00000000deadbeef.safetensors.7.parts"]
    planted = [cached / name for name in names] + [good] * (kind != "file")
    for place in planted:
        if kind == "file":
            place.write_text("mine")
        elif kind == "pipe":
            os.mkfifo(place)
        elif kind == "folder":
            place.mkdir()
            (place / "thesis.tex").write_text("mine")
        else:
            place.symlink_to(thesis if kind == "link to a file" else thesis.parent)
    before = [os.lstat(place) for place in planted]
    for flags in ({"broken": True}, {"everything": True}, {"older_than": -1.0}):
        clean_cache([args.data_dir, cached], **flags)
    load_and_cache_examples(args, "ner", tokenizer, "dev")
    after = [os.lstat(place) for place in planted]
    assert [(x.st_ino, x.st_mode) for x in after] == [(x.st_ino, x.st_mode) for x in before]
    assert thesis.read_text() == "mine"
    if kind in ("file", "folder"):
        for place in planted:
            found = place if kind == "file" else place / "thesis.tex"
            assert found.read_text() == "mine"


def test_clean_by_age(cached, args):
    path = next(cached.glob("dev-*.safetensors"))
    old = time.time() - 10 * 86400
    os.utime(path, (old, old))
    assert [entry.path for entry in clean_cache([args.data_dir], older_than=9)] == [path]
    assert not path.exists()


def test_what_is_being_built_is_left_alone(cached, args):
    lock = FileLock(cached / ".dev-0123456789abcdef.safetensors.lock")
    with lock:
        states = {entry.path.name: entry.state for entry in list_cache([cached])}
        assert states[".dev-0123456789abcdef.safetensors.77.parts"] == "being built"
        clean_cache([cached], everything=True)
        assert [entry.state for entry in list_cache([cached])] == ["being built"]
    clean_cache([cached], everything=True)
    assert list_cache([cached]) == []


def test_wrong_commands(cached, args, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cache_main(["clean", args.data_dir])
    assert caught.value.code == 2
    assert "say what: --broken, --older_than DAYS or --all" in capsys.readouterr().err
    assert cache_main(["ls", str(tmp_path / "none")]) == 1
    assert "expected a folder" in capsys.readouterr().out


def test_the_users_cache_is_the_default(args, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_main(["ls"]) == 0
    args.feature_cache_dir = str(tmp_path / "home" / "nercrf")
    load_and_cache_examples(args, "ner", tokenizer)
    assert cache_main(["clean", "--all"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 files, ")


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


# How often the data are read.

READER = """
import contextlib, io, json, sys
from pathlib import Path
from collections import Counter
import nercrf.files
from nercrf.script import run
from nercrf.flags import parse_args

nercrf.files.AT_REST = -1  # the files were written just now
folder, opened = Path(sys.argv[1]).resolve(), Counter()
def count(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0])
        if path.resolve().parent == folder:
            opened[path.name] += 1
sys.addaudithook(count)
with contextlib.redirect_stdout(io.StringIO()):
    run(parse_args(sys.argv[2:]))
print(json.dumps([opened, nercrf.script.__name__]))
"""


def test_a_cold_run_opens_each_data_file_once_and_a_warm_run_none(args, tmp_path):
    write_columns(Path(args.data_dir) / "test.txt", SENTENCES[1:], "BIO")
    flags = "--do_train --do_eval --no_cuda --max_steps 1 --save_steps 0 --overwrite_output_dir"
    words = ["--data_dir", args.data_dir, "--output_dir", str(tmp_path / "out"), *flags.split()]
    figures = []
    for wanted in ({"train.txt": 1, "dev.txt": 1, "test.txt": 1}, {}):
        command = [sys.executable, "-c", READER, args.data_dir, *words]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert json.loads(output.splitlines()[-1])[0] == wanted
        figures.append((tmp_path / "out" / "eval_results.json").read_bytes())
    assert figures[0] == figures[1]

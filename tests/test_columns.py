"""Files of columns: every wrong byte is found, nothing of a broken block is used, mapped columns
equal arrays.
"""

import os
import pickle
import shutil
from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.data import DataLoader

from nercrf.features.batches import FeatureDataset, collate_sentences, plan_batches
from nercrf.features.conversion import Features
from nercrf.features.store import (
    BLOCK,
    CacheError,
    Column,
    ColumnFile,
    ColumnSource,
    is_row_column,
    load_features,
    read_header,
    save_features,
    verify_file,
    write_column_file,
)

LABELS = ["O", "B-LOC", "I-LOC"]


def make_features(sentences=7, words=3, seed=0):
    """Sentences of `words` words, each of one piece, between two special ones; one span in every
    second sentence.
    """
    dice = np.random.default_rng(seed)
    count = sentences * words
    pieces = np.full((sentences, words + 2), 2)
    pieces[:, 1:-1] = dice.integers(3, 9000, (sentences, words))
    spans = sentences // 2
    others = {
        item.name: np.ones(spans, bool)
        for item in fields(Features)
        if item.name.startswith("span_")
    }
    columns = {
        "input_ids": pieces.reshape(-1).astype(np.int32),
        "token_type_ids": np.zeros(pieces.size, np.int16),
        "window_offsets": np.arange(sentences + 1) * (words + 2),
        "sentence_windows": np.arange(sentences + 1),
        "word_offsets": np.arange(sentences + 1) * words,
        "word_pieces": np.tile(np.arange(1, words + 1, dtype=np.int32), sentences),
        "word_sizes": np.zeros(0, np.int32),
        "labels": dice.integers(0, 3, count).astype(np.int32),
        "span_offsets": (np.arange(sentences + 1)) // 2,
        "span_labels": np.zeros(spans, np.int32),
        "span_starts": np.zeros(spans, np.int32),
        "span_ends": np.full(spans, words, np.int32),
    }
    options = {
        "pad_token_id": 0,
        "pad_token_type_id": 0,
        "pad_on_left": False,
        "mask_padding_with_zero": True,
    }
    return Features(**others | columns, options=options)


def assert_same(found, expected):
    assert found.options == expected.options
    assert list(found.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        other = np.asarray(found.arrays[name])
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array)


@cache
def small_file():
    """Bytes of a small file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save_features(
            os.path.join(folder, "f"), make_features(), {"key": "x", "note": "真"}
        ).read_bytes()


LARGE = make_features(40_000, 5)  # a column of pieces has several blocks


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "train.safetensors"
    return save_features(path, LARGE, {"key": "x"})


@pytest.fixture
def large(large_file, tmp_path):
    return shutil.copy(large_file, tmp_path / "train.safetensors")


# The file as a whole.


@pytest.mark.parametrize("resident", [0, None])
@pytest.mark.parametrize("sentences", [0, 1, 7])
def test_round_trip(tmp_path, sentences, resident):
    features = make_features(sentences)
    path = save_features(tmp_path / "deeper" / "f", features, {"note": [1, {"真": None}]})
    found, metadata = load_features(path, resident)
    assert_same(found, features)
    assert metadata == {"note": [1, {"真": None}]}
    assert os.listdir(path.parent) == ["f"]
    first = path.read_bytes()
    save_features(path, found, metadata)
    assert path.read_bytes() == first


def test_other_programs_read_it(large):
    with safe_open(large, framework="numpy") as file:
        assert set(file.keys()) == set(LARGE.arrays)
        for name, array in LARGE.arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    header = read_header(large)
    widths = {"I64": 8, "I32": 4, "I16": 2, "BOOL": 1}
    for entry in header.table.values():
        assert (header.start + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0


def test_length_that_was_announced_has_to_come(tmp_path):
    column = ColumnSource(np.dtype("<i4"), 3, lambda: [np.zeros(2, np.int32)])
    with pytest.raises(ValueError, match="expected 3 entries of a"):
        write_column_file(tmp_path / "f", {"a": column}, {})
    assert not os.listdir(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 255), st.sampled_from([0, None]))
def test_a_changed_byte_is_found_wherever_it_is(data, change, resident):
    """In the length, the names, the digest, the checksums, the padding, each column; opened or mapped."""
    whole = small_file()
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= change
    with scratch() as path:
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match="build it again"):
            read_all(path, resident)


def read_all(path, resident):
    features, _ = load_features(path, resident)
    for column in features.arrays.values():
        np.asarray(column)


def scratch():
    """A path in a folder that goes away, for tests that hypothesis repeats."""
    import tempfile
    from contextlib import contextmanager
    from pathlib import Path

    @contextmanager
    def folder():
        with tempfile.TemporaryDirectory() as name:
            yield Path(name, "f")

    return folder()


def test_each_byte_of_a_header_and_each_kind_of_change(tmp_path):
    whole = small_file()
    length = int.from_bytes(whole[:8], "little") + 8
    path = tmp_path / "f"
    for position in range(length):
        damaged = bytearray(whole)
        damaged[position] = {0x20: 0x0A, 0x22: 0x27}.get(damaged[position], damaged[position] ^ 1)
        path.write_bytes(damaged)
        with pytest.raises(CacheError):
            read_header(path)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(small_file()) - 1), st.binary(max_size=20))
def test_a_cut_or_lengthened_file_is_found_at_opening(length, more):
    for content in (small_file()[:length], small_file() + more + b"\0"):
        with scratch() as path:
            path.write_bytes(content)
            for resident in (0, None):
                with pytest.raises(CacheError):
                    load_features(path, resident)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04.", b"not a cache file", b"\xff" * 100, (2).to_bytes(8, "little") + b"{}"],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CacheError, match="found a broken one"):
        load_features(tmp_path / "f")


def test_a_planted_pickle_is_not_run(tmp_path):
    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "f").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(CacheError):
        load_features(tmp_path / "f")
    assert not (tmp_path / "ran").exists()


def test_missing_or_surplus_columns_are_refused(tmp_path):
    column = ColumnSource(np.dtype("<i4"), 1, lambda: [np.zeros(1, np.int32)])
    path = write_column_file(tmp_path / "f", {"input_ids": column}, {"options": {}})
    for resident in (0, None):
        with pytest.raises(CacheError, match="missing"):
            load_features(path, resident)


# Blocks.


def flip(path, name, block):
    header = read_header(path)
    with open(path, "r+b") as file:
        file.seek(header.start + header.table[name]["data_offsets"][0] + block * BLOCK + 17)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 64]))


def test_only_touched_blocks_are_read(large):
    flip(large, "input_ids", 3)
    features, _ = load_features(large, 0)
    assert features.input_ids[:1000].tolist() == LARGE.input_ids[:1000].tolist()
    assert features.input_ids._proved.tolist() == [
        True,
        *[False] * (len(features.input_ids._proved) - 1),
    ]
    broken = 3 * BLOCK // 4
    for key in (
        broken,
        slice(broken - 1, broken + 1),
        [0, broken],
        np.array([broken + 5]),
        slice(None),
        [-1, broken],
    ):
        with pytest.raises(CacheError, match="block 3 of input_ids"):
            features.input_ids[key]
    with pytest.raises(CacheError, match="block 3 of input_ids"):
        np.asarray(features.input_ids)


def test_a_broken_block_moves_the_file_aside(large, tmp_path):
    flip(large, "labels", 1)
    features, _ = load_features(large, 0)
    dataset = FeatureDataset(features, LABELS)
    good = dataset.collate([0, 1])
    with pytest.raises(
        CacheError, match=r"train\.safetensors.*moved to train\.safetensors\.broken.*start again"
    ):
        dataset.collate(np.arange(len(dataset)))
    assert os.listdir(tmp_path) == ["train.safetensors.broken"]
    assert torch.equal(
        dataset.collate([0, 1])["labels"], good["labels"]
    )  # the mapping is still there


def test_a_file_built_meanwhile_is_not_moved(large, large_file, tmp_path):
    flip(large, "labels", 1)
    features, _ = load_features(large, 0)
    shutil.copy(large_file, tmp_path / "new")
    os.replace(tmp_path / "new", large)
    with pytest.raises(CacheError, match="replaced meanwhile"):
        np.asarray(features.labels)
    assert os.listdir(tmp_path) == ["train.safetensors"]
    verify_file(large)


@pytest.mark.parametrize(
    "name", ["word_offsets", "window_offsets", "sentence_windows", "span_offsets"]
)
def test_offsets_are_proved_at_opening(large, name):
    flip(large, name, 0)
    with pytest.raises(CacheError, match=f"block 0 of {name}"):
        load_features(large, 0)


def test_verify_reads_all_and_moves_nothing(large):
    assert verify_file(large).metadata["key"] == "x"
    flip(large, "span_ends", 0)
    with pytest.raises(CacheError, match="block 0 of span_ends"):
        verify_file(large)
    assert os.path.exists(large)


# Columns as arrays.

KEYS = st.one_of(
    st.integers(-70_000, 69_999),
    st.slices(70_000),
    st.lists(st.integers(-70_000, 69_999), min_size=1, max_size=9).map(np.array),
    st.lists(st.integers(0, 69_999), min_size=1, max_size=9).map(
        lambda rows: np.array(rows, np.int32)
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=5))
def test_indexing_equals_that_of_the_array(keys):
    column = Column(numbers_file(), "a")
    for key in keys:
        expected = NUMBERS[key]
        np.testing.assert_array_equal(column[key], expected)
    assert len(column) == 70_000
    assert column.tolist() == NUMBERS.tolist()


NUMBERS = np.random.default_rng(3).integers(0, 1 << 30, 70_000).astype(np.int32)


@cache
def numbers_file():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "f")
        write_column_file(path, {"a": ColumnSource(NUMBERS.dtype, 70_000, lambda: [NUMBERS])}, {})
        return ColumnFile(path, 0)  # stays open without its name


@pytest.mark.parametrize("key", [70_000, -70_001, [0, 70_000]])
def test_indices_outside_are_errors(key):
    with pytest.raises(IndexError):
        Column(numbers_file(), "a")[key]


def test_mask_and_two_dimensional_indices():
    mask = np.arange(70_000) % 7 == 0
    np.testing.assert_array_equal(Column(numbers_file(), "a")[mask], NUMBERS[mask])
    rows = np.array([[3, 69_000], [-2, 5]])
    np.testing.assert_array_equal(Column(numbers_file(), "a")[rows], NUMBERS[rows])
    assert Column(numbers_file(), "a")[np.zeros(0, np.int64)].shape == (0,)


def test_row_columns_are_those_with_an_entry_more_than_rows():
    features = make_features(7)
    for name, array in features.arrays.items():
        assert is_row_column(name) == (array.dtype == np.int64 and len(array) == 8), name


# What is done with features.


def batches_of(dataset):
    return [dataset.collate(indices) for indices in plan_batches(dataset.lengths, 4096, seed=1)]


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), name


def test_mapped_features_serve_training_and_evaluation(large):
    mapped = FeatureDataset(load_features(large, 0)[0], LABELS)
    plain = FeatureDataset(LARGE, LABELS)
    assert_same_batches(batches_of(mapped), batches_of(plain))
    assert [mapped.gold_spans(index) for index in range(99)] == [
        plain.gold_spans(index) for index in range(99)
    ]
    for name, value in plain[77].items():
        assert torch.equal(torch.as_tensor(mapped[77][name]), torch.as_tensor(value)), name
    for left, right in zip(
        mapped.as_tensor_dataset().tensors, plain.as_tensor_dataset().tensors, strict=True
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_read_mapped_features(large, context):
    dataset = FeatureDataset(load_features(large, 0)[0], LABELS)
    dataset.collate([0])
    picked = torch.utils.data.Subset(dataset, range(0, 40_000, 4_000))
    loader = DataLoader(
        picked,
        batch_size=4,
        num_workers=2,
        multiprocessing_context=context,
        collate_fn=dataset.collate_fn,
    )
    expected = [
        collate_sentences(LARGE, range(start, min(start + 16_000, 40_000), 4_000))
        for start in (0, 16_000, 32_000)
    ]
    assert_same_batches(list(loader), expected)


def test_pickled_features_are_a_path(large):
    features, _ = load_features(large, 0)
    message = pickle.dumps(features)
    assert len(message) < 1000
    assert_same(pickle.loads(message), LARGE)
    save_features(large, make_features(5), {})
    with pytest.raises(CacheError, match="isn't the file that was open before"):
        pickle.loads(message)
    assert_same(features, LARGE)


def test_small_features_pickle_as_arrays(tmp_path):
    path = save_features(tmp_path / "f", make_features(), {})
    features, _ = load_features(path)
    message = pickle.dumps(features)
    path.unlink()
    assert_same(pickle.loads(message), make_features())

"""Every family of encoders that users bring is read as it was made, or refused in one sentence."""

import json

import pytest
import torch
from encoder_checks import (
    SENTENCES,
    TABLE,
    Case,
    check_family,
    check_lora,
    run_in_process,
    train_flags,
)
from encoders import FAMILIES, SAMPLE, make_family
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
ROWS = json.loads(TABLE.read_text(encoding="utf-8"))["families"]


def sampled(names):
    """Those of the sample in every run, the others in the slow one."""
    slow = pytest.mark.slow
    return [name if name in SAMPLE else pytest.param(name, marks=slow) for name in names]


@pytest.mark.parametrize("name", sampled(FAMILIES))
def test_a_family_is_a_folder_with_an_encoder_and_its_tokenizer(name, tmp_path):
    folder = make_family(name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder)
    assert encoder.config.model_type == (FAMILIES[name].model_type or name)
    text = " ".join(SENTENCES[0])
    assert tokenizer(text)["input_ids"] == FAMILIES[name].tokenizer()(text)["input_ids"]
    assert sum(p.numel() for p in encoder.parameters()) < 500_000


@pytest.mark.parametrize("name", sampled(ROWS))
def test_a_family_does_what_the_table_says(name, tmp_path):
    assert check_family(name, tmp_path) == ROWS[name]


LORA = ["bert", "roberta", "deberta-v2", "gpt2", "qwen3", "t5", "modernbert"]


@pytest.mark.parametrize(
    "name", [LORA[0], *(pytest.param(n, marks=pytest.mark.slow) for n in LORA[1:])]
)
def test_an_adapter_is_trained_resumed_loaded_and_folded_in(name, tmp_path):
    pytest.importorskip("peft")
    assert check_lora(Case(name, tmp_path)) == "same bits"


def test_the_command_in_a_process_of_its_own(tmp_path):
    case = Case("roberta", tmp_path)
    out = tmp_path / "run"
    for words in (
        ["train", *train_flags(case, out)],
        ["evaluate", out, tmp_path / "data", "--no_cuda"],
        ["predict", out, tmp_path / "data" / "test.bio", "--input_format", "columns"],
    ):
        finished = run_in_process(*words)
        assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == len(SENTENCES)

"""What people bring from elsewhere is taken: old encoder folders, the folder of a run as a model,
flags of the reference's scripts, encoders that leave out layers at random."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from training import TOKENIZER, UNREAD, run_script, write_corpus
from transformers import BartConfig, BartModel, BertConfig, BertModel

from nercrf import run_ner_crf
from nercrf.cli import main
from nercrf.labels import label_list
from nercrf.model.encoder_config import EncoderConfig
from nercrf.model.loading import WindowSizes, build_model
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.tagging.tagger import Tagger

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + x for x in LETTERS)]
SIZES = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "type_vocab_size": 2,
    "vocab_size": len(PIECES),
}  # config.json of 2018, word for word


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data"))


def train_words(corpus, out, *flags):
    """A training of three updates."""
    words = ["--data_dir", corpus, "--output_dir", out, "--max_steps", 3, "--save_steps", 1]
    return list(map(str, ["train", *words, "--no_cuda", "--no_learning_curve", *flags]))


def write_old_bert(folder, pieces=PIECES):
    """An encoder as it was published in 2018: three files, tensors called gamma and beta."""
    folder.mkdir()
    sizes = SIZES | {"vocab_size": len(pieces)}
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "config.json").write_text(json.dumps(sizes))
    torch.manual_seed(0)
    weights = BertModel(BertConfig(**sizes)).state_dict()
    torch.save(
        {
            f"bert.{name}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
            for name, x in weights.items()
        },
        folder / "pytorch_model.bin",
    )
    return weights


def test_an_encoder_folder_of_2018_loads_with_its_type(corpus, tmp_path, capsys):
    weights = write_old_bert(tmp_path / "old")
    flags = EncoderConfig(str(tmp_path / "old"), model_type="bert", dropout=0.1)
    labels = label_list(["LOC"], "BIO")
    loaded = build_model(flags, labels, "BIO", WindowSizes(32), [])
    assert type(loaded.model.encoder).__name__ == "BertModel"
    for name, tensor in loaded.model.encoder.state_dict().items():
        assert tensor.equal(weights[name]), name
    assert loaded.tokenizer.tokenize("abc") == ["a", "##b", "##c"]
    words = train_words(corpus, tmp_path / "run", "--model_name_or_path", tmp_path / "old")
    assert main(words) == 2
    assert "expected an architecture (model_type) in config.json" in capsys.readouterr().err
    assert main([*words, "--model_type", "bert"]) == 0
    assert Tagger.from_pretrained(tmp_path / "run")("abc def") is not None


def test_the_folder_of_a_run_is_a_model(corpus, tmp_path):
    assert main(train_words(corpus, tmp_path / "one")) == 0
    name = ["--model_name_or_path", tmp_path / "one", "--learning_rate", "1e-30"]
    assert main(train_words(corpus, tmp_path / "two", *name, "--crf_learning_rate", "1e-30")) == 0
    before, after = (
        load_file(tmp_path / x / "model" / "model.safetensors") for x in ("one", "two")
    )
    for name, tensor in before.items():
        assert torch.allclose(tensor, after[name]), name


def test_a_training_never_removes_the_run_that_it_begins_with(corpus, tmp_path, capsys):
    assert main(train_words(corpus, tmp_path / "one")) == 0
    name = ["--model_name_or_path", tmp_path / "one", "--overwrite_output_dir"]
    assert main(train_words(corpus, tmp_path / "one", *name)) == 2
    assert "which --model_name_or_path needs" in capsys.readouterr().err
    assert (tmp_path / "one" / "model" / "model.safetensors").is_file()


def test_a_window_is_as_long_as_the_encoder_takes():
    encoder = BertModel(BertConfig(**SIZES))
    labels = label_list(["LOC"], "BIO")
    model = NerCrfForTokenClassification.from_encoder(encoder, labels)
    assert model.config.max_seq_length == 64
    asked = NerCrfForTokenClassification.from_encoder(encoder, labels, max_seq_length=32)
    assert asked.config.max_seq_length == 32


def test_flags_of_the_reference_pass(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    words = ["--report_to", "none", "--server_ip=", "--server_port=", "--loss_type", "ce"]
    words += ["--metric_for_best_model", "eval_f1"]
    assert run_ner_crf.main(["--do_train", *train_words(corpus, tmp_path / "run", *words)[1:]]) == 0
    assert "--loss_type ce is the CRF's likelihood" in caplog.text
    best = json.loads((tmp_path / "run" / "model" / "best.json").read_text())
    assert best.keys() == {"step", "dev_f1"}


def test_folders_that_look_like_checkpoints_are_left_alone(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_words(corpus, run)) == 0
    (run / "checkpoint-8-backup").mkdir()
    (run / "checkpoint-8.zip").write_text("")
    (run / "checkpoint-9").write_text("")  # a name that a training could need
    capsys.readouterr()
    assert main(["evaluate", str(run), str(corpus), "--eval_all_checkpoints", "--no_cuda"]) == 0
    said = capsys.readouterr().out
    assert "the 2 checkpoints that were kept (checkpoint-2, checkpoint-3)" in said
    assert main(train_words(corpus, run, "--resume", "auto")) == 2
    assert "checkpoint-9 was not written by this program" in capsys.readouterr().err
    (run / "checkpoint-9").unlink()
    assert main(train_words(corpus, run, "--resume", "auto")) == 0
    assert (run / "checkpoint-8-backup").is_dir()
    assert (run / "checkpoint-8.zip").is_file()


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    """An encoder that leaves out every second layer, on average."""
    folder = tmp_path_factory.mktemp("bart")
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(TOKENIZER) + UNREAD,
        d_model=16,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=128,
        encoder_layerdrop=0.5,
    )
    BartModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_several_processes_leave_out_no_layer(corpus, bart, tmp_path):
    words = train_words(corpus, tmp_path / "run", "--model_name_or_path", bart)[1:]
    more = ["--do_train", "--max_steps", 6, "--ddp_timeout", 60]
    finished = run_script(*words, *more, processes=2)
    assert "leaves out layers at random (layerdrop 0.5)" in finished.stderr
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["encoder"]["encoder_layerdrop"] == 0.5
    for name in ("broadcast_buffers", "forward_sync_buffers"):
        assert name not in finished.stderr

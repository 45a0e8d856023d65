"""Model folders and checkpoints that are damaged, half copied, or of somebody else: the verbs say in
one line which file it is and what to do, end with exit code 2, and write nothing.
"""

import json
import pickle
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import train_in, write_corpus, write_encoder

from nercrf import cli
from nercrf.files import MANIFEST
from nercrf.model.encoder_config import find_model


class Malicious:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def change_json(name, **changes):
    """Change entries of a file of JSON; None removes one."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            content[key] = value
            if value is None:
                del content[key]
        (folder / name).write_text(json.dumps(content))

    return change


def change_encoder(**changes):
    """Change the part of a tagger's configuration that describes the encoder."""

    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content["encoder"] |= changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


def change_tensors(change, name="model.safetensors"):
    """Write the tensors of a file anew, changed."""

    def write(folder):
        tensors = load_file(folder / name)
        found = change(tensors)
        save_file(tensors if found is None else found, folder / name, {"format": "pt"})

    return write


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(name, content):
    """Write bytes in the place of a file."""
    return lambda folder: (folder / name).write_bytes(content)


def make_folder(name):
    """A folder stands where a file should."""

    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def cut(name, share):
    """A file that was not copied to its end."""

    def shorten(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return shorten


def header(length):
    """A header of safetensors that says it is longer than the file."""

    def write(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + data[8:])

    return write


def pickled(name):
    """A pickle that writes the file `planted` beside the model."""

    def write(folder):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / name).write_bytes(pickle.dumps({"weight": Malicious(folder / "planted")}))

    return write


def drop(*parts):
    """Leave out the tensors whose names hold one of these."""
    return change_tensors(lambda x: {k: v for k, v in x.items() if not any(p in k for p in parts)})


def rename(old, new):
    return change_tensors(lambda x: {k.replace(old, new): v for k, v in x.items()})


def reshape(part):
    """One more column in the tensors whose names hold this."""
    return change_tensors(
        lambda x: {
            k: torch.cat([v, v[..., :1]], -1).contiguous() if part in k else v for k, v in x.items()
        }
    )


def cast(part, dtype):
    """Another kind of number in the tensors whose names hold this."""
    return change_tensors(lambda x: {k: v.to(dtype) if part in k else v for k, v in x.items()})


def flip_bit(name, share=0.5):
    """Flip a bit in the middle of a file."""

    def flip(folder):
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * share)] ^= 4
        (folder / name).write_bytes(bytes(data))

    return flip


NOT_JSON = {"empty": b"", "garbage": b"\x00\xff\xfe", "list": b"[1, 2]", "null": b"null"}
TEXTS = {**NOT_JSON, "open": b'{"model_type": "nercrf"', "deep": b"[" * 100_000}
# what is done to the folder of a tagger without a manifest
TAGGERS = {
    **{f"config {name}": put("config.json", data) for name, data in TEXTS.items()},
    "config missing": remove("config.json"),
    "config a folder": make_folder("config.json"),
    "config of nobody": change_json("config.json", model_type="nobody"),
    "config without type": change_json("config.json", model_type=None),
    "config of BERT": change_json("config.json", model_type="bert"),
    "labels a list": change_json("config.json", id2label=["O", "B-PER"]),
    "labels null": change_json("config.json", id2label={"0": None}),
    "labels with a gap": change_json("config.json", id2label={"0": "O", "7": "B-PER"}),
    "labels fewer": change_json("config.json", id2label={"0": "O"}, label2id={"O": 0}),
    "labels disagree": change_json("config.json", label2id={"O": 3}),
    "scheme unknown": change_json("config.json", scheme="XYZ"),
    "splitter unknown": change_json("config.json", split_by="nothing"),
    "splitter a number": change_json("config.json", split_by=7),
    "splitter of tomorrow": change_json("config.json", split_version=99),
    "window a word": change_json("config.json", max_seq_length="long"),
    "window 0": change_json("config.json", max_seq_length=0),
    "window negative": change_json("config.json", max_seq_length=-5),
    "stride too long": change_json("config.json", stride=100_000),
    "context negative": change_json("config.json", context=-3),
    "pooling unknown": change_json("config.json", subtoken_pooling="best"),
    "dropout a word": change_json("config.json", classifier_dropout="some"),
    "dropout 3": change_json("config.json", classifier_dropout=3.0),
    "padding unknown": change_json("config.json", padding="sometimes"),
    "encoder missing": change_json("config.json", encoder=None),
    "encoder a list": change_json("config.json", encoder=[1]),
    "encoder of nobody": change_encoder(model_type="nobody"),
    "encoder of GPT-2": change_encoder(model_type="gpt2"),
    "encoder without layers": change_encoder(num_hidden_layers="many"),
    "encoder with odd heads": change_encoder(num_attention_heads=7),
    "encoder of no width": change_encoder(hidden_size=0),
    "encoder of a negative width": change_encoder(hidden_size=-4),
    "attention unknown": change_json("config.json", attn_implementation="nobody"),
    "dtype unknown": change_json("config.json", dtype="float99"),
    "quantized by bitsandbytes": change_json(
        "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    ),
    "weights missing": remove("model.safetensors"),
    "weights a folder": make_folder("model.safetensors"),
    **{f"weights {name}": put("model.safetensors", data) for name, data in NOT_JSON.items()},
    "weights cut": cut("model.safetensors", 0.5),
    "weights cut in the header": cut("model.safetensors", 0.01),
    "weights with a long header": header(1 << 60),
    "weights with a short header": header(9),
    "weights pickled": pickled("pytorch_model.bin"),
    "weights pickled under another name": pickled("model.safetensors"),
    "weights without CRF": drop("crf."),
    "weights without start": drop("crf.start"),
    "weights without classifier": drop("classifier."),
    "weights without encoder": drop("encoder."),
    "weights without a layer": drop("layers.0."),
    "weights of other names": rename("encoder.", "model."),
    "weights with more": change_tensors(lambda x: {**x, "more.weight": torch.ones(2)}),
    "weights none": change_tensors(lambda x: {}),
    "classifier of another width": reshape("classifier.weight"),
    "CRF of another width": reshape("crf.transitions"),
    "encoder of another width": reshape("layers.0."),
    "index of missing parts": lambda folder: (
        remove("model.safetensors")(folder),
        put(
            "model.safetensors.index.json",
            b'{"metadata": {}, "weight_map": {"crf.transitions": "model-1.safetensors"}}',
        )(folder),
    ),
    "index of garbage": lambda folder: (
        remove("model.safetensors")(folder),
        put("model.safetensors.index.json", b"{")(folder),
    ),
    **{f"tokenizer {name}": put("tokenizer.json", data) for name, data in TEXTS.items()},
    "tokenizer missing": remove("tokenizer.json"),
    "tokenizer a folder": make_folder("tokenizer.json"),
    "tokenizer settings garbage": put("tokenizer_config.json", b"{"),
    "tokenizer settings a list": put("tokenizer_config.json", b"[]"),
    "tokenizer without a model": change_json("tokenizer.json", model=None),
    "tokenizer without pieces": change_json(
        "tokenizer.json", model={"type": "WordPiece", "vocab": {}, "unk_token": "[UNK]"}
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A trained run, an encoder, data, and a text."""
    folder = tmp_path_factory.mktemp("places")
    train_in(folder / "run", max_steps=4, save_steps=2, save_total_limit=5, eval_steps=2)
    write_encoder(folder / "encoder")
    write_corpus(folder / "data")
    (folder / "text.txt").write_text("Ada Lovelace left York .\n")
    return folder


def complain(capfd, words, name):
    """Run a verb that must end with one or two lines; what it says."""
    capfd.readouterr()
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line]
    errors = [line for line in lines if line.startswith("error:")]
    assert code == 2, (code, out, err)
    assert [len(line) < 1000 for line in errors] == [True], err
    assert "Traceback" not in err + out
    assert str(name) in errors[0], err
    assert any(each in errors[0] for each in (";", ":", "--")), err
    return errors[0]


@pytest.mark.parametrize("case", TAGGERS)
def test_odd_taggers(places, tmp_path, capfd, case):
    """Tag a text, and train on, with a folder to which something was done."""
    model = tmp_path / "model"
    shutil.copytree(find_model(places / "run"), model)
    (model / MANIFEST).unlink()
    TAGGERS[case](model)
    out = tmp_path / "out.jsonl"
    complain(capfd, ["predict", model, places / "text.txt", "--output", out], model)
    assert not [each for each in (out, model / "planted") if each.exists()]


def more_pieces(folder):
    """A tokenizer of another model, with more pieces than the encoder has rows."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"other{number}": 5000 + number for number in range(5000)}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def fewer_rows(folder):
    """An encoder whose table is that of a smaller vocabulary."""
    table = "embeddings.word_embeddings.weight"
    change_tensors(lambda x: {**x, table: x[table][:10].contiguous()})(folder)
    change_json("config.json", vocab_size=10)(folder)


SHARED = ("config empty", "config garbage", "config list", "config open", "config deep")
SHARED += ("config missing", "config a folder", "config of nobody", "config without type")
SHARED += tuple(name for name in TAGGERS if name.startswith(("index", "tokenizer")))
SHARED += ("weights missing", "weights a folder", "weights cut", "weights cut in the header")
SHARED += ("weights with a long header", "weights pickled", "weights of other names")
SHARED += ("weights pickled under another name", "weights none")
TAGGERS["a matrix in 8 bits"] = cast("classifier.weight", torch.int8)
TAGGERS["moves in whole numbers"] = cast("transitions", torch.int64)
# what is done to the folder of an encoder
ENCODERS = {
    **{name: TAGGERS[name] for name in SHARED},
    "embeddings missing": drop("word_embeddings"),
    "a matrix missing": drop("layer.0.attention.self.query"),
    "a matrix of another width": reshape("layer.0.attention.self.query"),
    "more layers in the configuration": change_json("config.json", num_hidden_layers=3),
    "fewer layers in the configuration": change_json("config.json", num_hidden_layers=0),
    "another width in the configuration": change_json("config.json", hidden_size=16),
    "odd heads": change_json("config.json", num_attention_heads=7),
    "fewer pieces in the configuration": change_json("config.json", vocab_size=20),
    "a width in words": change_json("config.json", hidden_size="wide"),
    "an activation of nobody": change_json("config.json", hidden_act="nobody"),
    "NaN": change_tensors(lambda x: {k: v * float("nan") for k, v in x.items()}),
    "a matrix in 8 bits": cast("layer.0.attention.self.query", torch.int8),
    "a vector of whole numbers": cast("layer.0.output.dense.bias", torch.int64),
    "a table of truths": cast("word_embeddings", torch.bool),
    "a matrix in half of half": cast("layer.0.output.dense.weight", torch.float8_e4m3fn),
    "a bit of the header": flip_bit("model.safetensors", 0.001),
    "more pieces": more_pieces,
    "fewer rows": fewer_rows,
}
UNNAMED = {"NaN": "damaged weights", "more pieces": "pieces", "fewer rows": "pieces"}


@pytest.mark.parametrize("case", ENCODERS)
def test_odd_encoders(places, tmp_path, capfd, case):
    """Train from a folder to which something was done: nothing is written, no code is run."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(places / "encoder", model)
    ENCODERS[case](model)
    words = ["train", "--data_dir", places / "data", "--model_name_or_path", model, "--no_cuda"]
    words += ["--max_steps", 1, "--eval_max_seq_length", 128, "--output_dir", out]
    complain(capfd, words, UNNAMED.get(case, model))
    assert not out.exists()
    assert not (model / "planted").exists()


def test_layers_that_are_left_out_on_purpose(places, tmp_path):
    """A configuration of its own says so; the weights of heads are passed over as ever."""
    from nercrf.model.loading import load_encoder

    model, smaller = tmp_path / "model", tmp_path / "smaller"
    shutil.copytree(places / "encoder", model)
    smaller.mkdir()
    shutil.copy(model / "config.json", smaller)
    change_json("config.json", num_hidden_layers=0)(smaller)
    change_tensors(lambda x: {**x, "cls.layers.7.weight": torch.ones(2)})(model)
    assert len(load_encoder(model).encoder.layer) == 1
    assert len(load_encoder(model, config_name=smaller).encoder.layer) == 0
    change_json("config.json", num_hidden_layers=0)(model)
    with pytest.raises(ValueError, match=r"expected 0 layers \(encoder.layer\), .* weights of 1;"):
        load_encoder(model)

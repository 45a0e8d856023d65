"""LoRA from the command line and from code: what is saved loads and is equal, resume is exact, and
the number of processes changes nothing.
"""

import json
import shutil
from pathlib import Path

import pytest
import test_odd_folders as odd
import torch
from safetensors.torch import load_file
from training import (
    CORPUS,
    DEV,
    TOKENIZER,
    TRAIN,
    make_args,
    read_history,
    run_script,
    write_corpus,
    write_encoder,
)

from nercrf import cli
from nercrf.fields import check_fields
from nercrf.files import MANIFEST, verify_folder
from nercrf.model.adapters import has_adapter, take_apart
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.run_ner_crf import main
from nercrf.tagging.tagger import Tagger
from nercrf.training.checkpoint import average_checkpoints
from nercrf.training.resume import load_checkpoint
from nercrf.training.run import start_training
from nercrf.training.trainer import train

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data and an encoder with dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_corpus(folder / "data"), write_encoder(folder / "encoder", dropout=0.1)


def flags(inputs, output, *more):
    """A short training with LoRA."""
    data, encoder = inputs
    names = ["--data_dir", data, "--model_name_or_path", encoder, "--output_dir", output]
    rates = ["--learning_rate", 1e-2, "--crf_learning_rate", 1e-2, "--eval_max_seq_length", 128]
    given = [*names, "--no_cuda", "--do_train", "--lora", 4, *rates, "--logging_steps", 1, *more]
    return list(map(str, given))


@pytest.fixture(scope="module")
def run_folder(inputs, tmp_path_factory):
    """A run of 12 updates with checkpoints at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("run") / "out"
    more = ["--max_steps", 12, "--save_steps", 4, "--save_total_limit", 5, "--do_eval"]
    assert main(flags(inputs, folder, *more, "--average_decay", 0.9)) == 0
    return folder


def make_tagger(inputs):
    """A new linear layer and a new CRF on the encoder."""
    encoder = load_encoder(inputs[1])
    return NerCrfForTokenClassification.from_encoder(encoder, CORPUS.labels, CORPUS.scheme)


def scores(model, count=8):
    """The label ids and the loss of some sentences."""
    batch = DEV.collate(range(count))
    with torch.inference_mode():
        return model.eval()(**batch)


def test_the_folder_is_small_and_loads_by_itself(inputs, run_folder):
    """Adapter, linear layer and CRF; the tagger equals the encoder with the adapter by peft alone."""
    model = run_folder / "model"
    assert verify_folder(model) == []
    head = load_file(model / "model.safetensors")
    assert {name.partition(".")[0] for name in head} == {"classifier", "crf"}
    written = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    assert written < (inputs[1] / "model.safetensors").stat().st_size / 3
    tagger = Tagger.from_pretrained(run_folder)
    assert has_adapter(tagger.model)
    alone = peft.PeftModel.from_pretrained(load_encoder(inputs[1]), model / "adapter").eval()
    batch = DEV.collate(range(8))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with torch.inference_mode():
        hidden = alone(**{name: batch[name] for name in names}).last_hidden_state
        words = hidden.flatten(0, 1)[batch["word_index"]]
        expected = words @ head["classifier.weight"].T + head["classifier.bias"]
    found = scores(tagger.model).logits
    mask = batch["word_mask"]
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-6, rtol=1e-6)


def test_the_encoder_is_not_trained_and_the_rest_is(inputs, run_folder):
    """Of the loaded tagger the encoder's own weights are those of its folder, to the bit."""
    apart = take_apart(Tagger.from_pretrained(run_folder).model)
    own = load_encoder(inputs[1]).state_dict()
    for name, tensor in apart.plain.items():
        if name.startswith("encoder."):
            assert tensor.equal(own[name.removeprefix("encoder.")]), name
    assert all(tensor.any() for tensor in apart.adapter.values())  # B began as zeros


def test_a_merge_on_a_full_disk_leaves_nothing(run_folder, mount_disk, capsys):
    out = mount_disk("64k") / "merged"
    assert cli.main(["merge", str(run_folder), str(out)]) == 2
    said = capsys.readouterr().err
    assert [each in said for each in ("the disk is full", str(out), "Traceback")] == [True] * 2 + [
        False
    ]
    assert list(out.parent.iterdir()) == []


def test_commands_read_it(inputs, run_folder, tmp_path, capsys):
    """evaluate with all checkpoints, predict, merge, and train on from it."""
    run, data = str(run_folder), str(inputs[0])
    out = ["--output_dir", str(tmp_path / "evaluated"), "--no_cuda"]
    assert cli.main(["evaluate", run, data, *out]) == 0
    (written,) = (tmp_path / "evaluated/evaluations").iterdir()
    figures = json.loads(written.read_text())["results"]
    assert (
        main(
            flags(inputs, run_folder, "--eval_all_checkpoints", "--do_eval", "--do_train", "false")
        )
        == 0
    )
    (written,) = (run_folder / "evaluations").iterdir()
    every = json.loads(written.read_text())["results"]
    assert {"checkpoint-4", "checkpoint-8", "checkpoint-12"} < set(every)
    assert every["model"] == figures["model"]
    text = tmp_path / "text.txt"
    text.write_text("Ada Lovelace left York .\n")
    capsys.readouterr()
    assert cli.main(["predict", run, str(text), "--no_cuda"]) == 0
    tagged = capsys.readouterr().out
    assert cli.main(["merge", run, str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    assert cli.main(["predict", str(tmp_path / "merged"), str(text), "--no_cuda"]) == 0
    assert capsys.readouterr().out == tagged
    one, other = Tagger.from_pretrained(run), Tagger.from_pretrained(tmp_path / "merged")
    assert not has_adapter(other.model)
    torch.testing.assert_close(
        scores(one.model).logits, scores(other.model).logits, atol=2e-6, rtol=0
    )
    again = ["--data_dir", data, "--model_name_or_path", f"{run}/model", "--max_steps", "3"]
    again += ["--no_cuda", "--output_dir", str(tmp_path / "on"), "--eval_max_seq_length", "128"]
    assert cli.main(["train", *again]) == 0
    on = Tagger.from_pretrained(tmp_path / "on").model
    before = take_apart(one.model).adapter
    assert any(not x.equal(before[name]) for name, x in take_apart(on).adapter.items())
    assert on.config.base_encoder == one.model.config.base_encoder
    capsys.readouterr()
    assert cli.main(["train", *again, "--overwrite_output_dir", "--lora", "4"]) == 2
    assert "leave --lora out to train that one on" in capsys.readouterr().err


def test_an_encoder_that_moved(inputs, run_folder, tmp_path, capsys):
    """Gone: an error that names the flag; with the flag all is as before; another one is refused."""
    config = json.loads((run_folder / "model/config.json").read_text())
    assert Path(config["base_encoder"]["name_or_path"]) == inputs[1].resolve()
    text = tmp_path / "text.txt"
    text.write_text("Ada Lovelace left York .\n")
    command = ["predict", str(run_folder), str(text), "--no_cuda"]
    capsys.readouterr()
    assert cli.main(command) == 0
    tagged = capsys.readouterr().out
    moved = inputs[1].rename(tmp_path / "moved")
    try:
        assert cli.main(command) == 2
        assert "give the encoder that it was trained on: --base_model" in capsys.readouterr().err
        assert cli.main([*command, "--base_model", str(moved)]) == 0
        assert capsys.readouterr().out == tagged
        data = [str(run_folder), str(inputs[0]), "--no_cuda", "--output_dir", str(tmp_path / "e")]
        assert cli.main(["evaluate", *data, "--base_model", str(moved)]) == 0
        capsys.readouterr()
        other = write_encoder(tmp_path / "other")
        encoder = load_encoder(other)
        with torch.no_grad():
            encoder.embeddings.word_embeddings.weight[5, 5] += 1e-3
        encoder.save_pretrained(other)
        assert cli.main([*command, "--base_model", str(other)]) == 2
        assert "holds an adapter for another encoder than" in capsys.readouterr().err
    finally:
        moved.rename(inputs[1])


def all_tensors(folder):
    """Weights, adapter, optimiser and averages of a checkpoint."""
    paths = sorted(folder.rglob("*.safetensors"))
    assert len(paths) == 3
    return {f"{path.name}:{k}": v for path in paths for k, v in load_file(path).items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_is_exact(inputs, tmp_path, accumulation):
    """Stopped in the middle and resumed: every number of the last checkpoint is the same."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ["--max_steps", 10, "--save_steps", 5, "--average_decay", 0.9, "--lora_dropout", 0.1]
    more += ["--gradient_accumulation_steps", accumulation, "--per_gpu_train_batch_size", 4]
    assert main(flags(inputs, whole, *more)) == 0
    assert main(flags(inputs, parts, *more)) == 0
    kept, gone = parts / "checkpoint-5", parts / "checkpoint-10"
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    gone.rmdir()
    assert main(flags(inputs, parts, *more, "--resume", kept)) == 0
    expected, found = all_tensors(whole / "checkpoint-10"), all_tensors(gone)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name
    state = "checkpoint-10/state.json"
    assert (whole / state).read_bytes() == (parts / state).read_bytes()
    assert (whole / "history.jsonl").read_bytes() == (parts / "history.jsonl").read_bytes()
    other = make_args(parts, lora=2, model_name_or_path=str(inputs[1]))
    run = start_training(other, TRAIN, make_tagger(inputs), TOKENIZER)
    run.identity = {"lora": run.identity["lora"]}
    with pytest.raises(ValueError, match="made with lora = 4, this run has 2"):
        load_checkpoint(run, kept)


def test_two_processes_make_the_training_of_one(inputs, tmp_path):
    """Equal losses and, up to rounding, weights; two processes stop and resume in the same bits."""
    one, two = tmp_path / "one", tmp_path / "two"
    quiet = ["--dropout", 0, "--encoder_dropout", 0, "--max_steps", 6, "--save_steps", 3]
    run_script(*flags(inputs, one, *quiet, "--per_gpu_train_batch_size", 8))
    run_script(*flags(inputs, two, *quiet, "--per_gpu_train_batch_size", 4), processes=2)
    losses = [[row["loss"] for row in read_history(x) if "loss" in row] for x in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    expected = [all_tensors(two / "checkpoint-6"), all_tensors(two / "checkpoint-3")]
    last = two / "checkpoint-6"
    last.rename(tmp_path / "aside")
    again = [*quiet, "--per_gpu_train_batch_size", 4, "--resume", "auto"]
    run_script(*flags(inputs, two, *again), processes=2)
    found = all_tensors(last)
    assert all(tensor.equal(found[name]) for name, tensor in expected[0].items())


def test_checkpoints_are_averaged_with_their_adapters(run_folder, tmp_path):
    """The mean of every number, those of the adapter included."""
    folders = [run_folder / f"checkpoint-{step}" for step in (8, 12)]
    mean = average_checkpoints(folders, tmp_path / "mean")
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two, found = (load_file(x / name) for x in (*folders, mean))
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, (one[key] + two[key]) / 2, atol=1e-7, rtol=1e-6)
    assert has_adapter(Tagger.from_pretrained(mean).model)


RECIPES = [
    {"layer_decay": 0.8},
    {"freeze_layers": 1, "freeze_embeddings": True},
    {"do_adv": True, "adv_name": "lora_A"},
    {"awp_gamma": 0.01, "adv_name": "lora_A"},
    {"rdrop_alpha": 1.0},
    {"word_dropout": 0.1},
    {"bf16": True},
    {"gradient_checkpointing": True},
    {"lean_last_layer": False, "seen_embedding": False},
    {"lora_targets": ["attention.self.key", "intermediate.dense"], "lora_alpha": 3.0},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "+".join(recipe))
def test_recipes_go_with_it(inputs, tmp_path, recipe):
    """What is saved at the end is what was trained."""
    args = make_args(
        tmp_path / "out", lora=2, model_name_or_path=str(inputs[1]), max_steps=4, **recipe
    )
    check_fields(args)
    model = make_tagger(inputs)
    train(args, TRAIN, model, TOKENIZER)
    again = Tagger.from_pretrained(tmp_path / "out").model
    assert scores(again).logits.equal(scores(model).logits)
    assert not (tmp_path / "out/model/model.safetensors").stat().st_size > 20_000


@pytest.mark.parametrize(
    "flag",
    ["--reinit_layers 1", "--do_adv", "--awp_gamma 0.1", "--strategy fsdp"],
)
def test_recipes_that_do_not_are_refused(inputs, tmp_path, flag, capsys):
    """With a sentence, before anything is read."""
    with pytest.raises(SystemExit):
        main(flags(inputs, tmp_path, *flag.split()))
    assert "--lora" in capsys.readouterr().err


def test_without_an_encoder_or_peft(inputs, tmp_path, capsys, monkeypatch):
    """A line that says what to give or to install."""
    train = ["--do_train", "--lora", "4", "--output_dir", str(tmp_path)]
    assert main(train) == 2
    assert "--lora 4 adapts an encoder that was trained before" in capsys.readouterr().err
    monkeypatch.setattr("nercrf.flags.find_spec", lambda name: None)
    assert main(flags(inputs, tmp_path)) == 2
    assert "pip install 'nercrf[lora]'" in capsys.readouterr().err


def users_ways():
    """The ways by which people add LoRA to a model of ours in code."""
    config = {"r": 2, "target_modules": ["query", "value"]}

    def whole(model):
        return peft.get_peft_model(
            model, peft.LoraConfig(task_type="TOKEN_CLS", modules_to_save=["crf"], **config)
        )

    def in_place(model):
        peft.get_peft_model(model.encoder, peft.LoraConfig(**config))
        return model

    def assigned(model):
        model.encoder = peft.get_peft_model(model.encoder, peft.LoraConfig(**config))
        return model

    def add_adapter(model):
        model.encoder.add_adapter(peft.LoraConfig(**config))
        return model

    def add_adapter_to_all(model):
        model.add_adapter(peft.LoraConfig(**config))
        return model

    def inject(model):
        peft.inject_adapter_in_model(peft.LoraConfig(**config), model.encoder)
        return model

    def inject_in_all(model):
        peft.inject_adapter_in_model(peft.LoraConfig(**config), model)
        return model

    return [whole, in_place, assigned, add_adapter, add_adapter_to_all, inject, inject_in_all]


@pytest.mark.parametrize("way", users_ways(), ids=lambda way: way.__name__)
def test_what_users_add_in_code_is_saved(inputs, tmp_path, way):
    """Train it with ours, load it, and it is equal; merged it is nearly equal."""
    model = make_tagger(inputs)
    adapted = way(model)
    before = [x.detach().clone() for x in take_apart(model).adapter.values()]
    args = make_args(tmp_path / "out", max_steps=4, learning_rate=1e-2)
    train(args, TRAIN, adapted, TOKENIZER)
    after = take_apart(model).adapter.values()
    assert not any(one.equal(two) for one, two in zip(before, after, strict=True))
    again = Tagger.from_pretrained(tmp_path / "out").model
    assert scores(again).logits.equal(scores(model).logits)
    assert scores(again).loss.equal(scores(model).loss)
    assert cli.main(["merge", str(tmp_path / "out"), str(tmp_path / "merged")]) == 0
    merged = Tagger.from_pretrained(tmp_path / "merged").model
    torch.testing.assert_close(scores(merged).logits, scores(model).logits, atol=2e-6, rtol=0)


@pytest.mark.parametrize("way", users_ways(), ids=lambda way: way.__name__)
def test_what_users_add_in_code_is_resumed(inputs, tmp_path, way):
    """Trained in two parts it ends in the same bits."""
    for name, resume in (("whole", None), ("parts", None), ("parts", "checkpoint-3")):
        resume = resume and str(tmp_path / name / resume)
        folder = tmp_path / name
        args = make_args(folder, max_steps=6, save_steps=3, learning_rate=1e-2, resume=resume)
        torch.manual_seed(0)
        train(args, TRAIN, way(make_tagger(inputs)), TOKENIZER)
    expected, found = (all_tensors(tmp_path / x / "checkpoint-6") for x in ("whole", "parts"))
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())


def test_what_peft_wrapped_and_saved_alone(inputs, tmp_path):
    """A folder without labels and CRF is no tagger: the error says what to save."""
    model = make_tagger(inputs)
    users_ways()[0](model).save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"get_base_model\(\).save_pretrained"):
        Tagger.from_pretrained(tmp_path / "alone")


WEIGHTS, SETTINGS = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"


def other_base(change):
    """Another encoder, or a damaged one, in the place of that of the adapter."""

    def put_base(model):
        base = model.parent / "base"
        content = json.loads((model / "config.json").read_text())
        shutil.copytree(content["base_encoder"]["name_or_path"], base)
        change(base)
        content["base_encoder"]["name_or_path"] = str(base)
        (model / "config.json").write_text(json.dumps(content))

    return put_base


def named_base(value):
    return odd.change_json("config.json", base_encoder=value)


DAMAGES = {
    "base gone": other_base(shutil.rmtree),
    "base of other numbers": other_base(
        odd.change_tensors(lambda x: {k: -v for k, v in x.items()})
    ),
    "base of another width": other_base(odd.reshape("layer.0.attention.self.query")),
    "base cut": other_base(odd.cut("model.safetensors", 0.5)),
    "base without a matrix": other_base(odd.drop("layer.0.attention.self.query")),
    "base of a broken configuration": other_base(odd.put("config.json", b"{")),
    "base without weights": other_base(odd.remove("model.safetensors")),
    "base a word": named_base("x"),
    "base a list": named_base([1]),
    "base without a name": named_base({"sha256": "x"}),
    "base without a digest": named_base({"name_or_path": "x"}),
    "base of a number": named_base({"name_or_path": 7, "sha256": "x"}),
    "weights cut": odd.cut(WEIGHTS, 0.5),
    "weights cut in the header": odd.cut(WEIGHTS, 0.01),
    "weights empty": odd.put(WEIGHTS, b""),
    "weights missing": odd.remove(WEIGHTS),
    "weights a folder": odd.make_folder(WEIGHTS),
    "weights none": odd.change_tensors(lambda x: {}, WEIGHTS),
    "weights fewer": odd.change_tensors(lambda x: dict(list(x.items())[1:]), WEIGHTS),
    "weights more": odd.change_tensors(
        lambda x: {**x, "more.lora_A.weight": torch.ones(2)}, WEIGHTS
    ),
    "weights wider": odd.change_tensors(
        lambda x: {k: torch.cat([v, v], -1).contiguous() for k, v in x.items()}, WEIGHTS
    ),
    "weights NaN": odd.change_tensors(
        lambda x: {k: v * float("nan") for k, v in x.items()}, WEIGHTS
    ),
    "settings missing": odd.remove(SETTINGS),
    "settings a folder": odd.make_folder(SETTINGS),
    "settings a list": odd.put(SETTINGS, b"[]"),
    "settings open": odd.put(SETTINGS, b"{"),
    "settings of nobody": odd.change_json(SETTINGS, peft_type="NOBODY"),
    "settings of another rank": odd.change_json(SETTINGS, r=7),
    "settings of a word": odd.change_json(SETTINGS, r="x"),
    "settings of other layers": odd.change_json(SETTINGS, target_modules=["nothing"]),
    "folder gone": lambda model: shutil.rmtree(model / "adapter"),
    "head missing": odd.remove("model.safetensors"),
    "head cut": odd.cut("model.safetensors", 0.5),
    "head without CRF": odd.drop("crf."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(inputs, run_folder, tmp_path, capfd, damage):
    """predict and train end with a sentence before they write anything."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(run_folder / "model", model)
    (model / MANIFEST).unlink()
    DAMAGES[damage](model)
    text = tmp_path / "text.txt"
    text.write_text("Ada left York .\n")
    train = ["train", "--data_dir", inputs[0], "--model_name_or_path", model, "--no_cuda"]
    train += ["--max_steps", 1, "--eval_max_seq_length", 128, "--output_dir", out]
    for words in (train, ["predict", model, text, "--output", out, "--no_cuda"]):
        odd.complain(capfd, words, tmp_path)
        assert not out.exists()

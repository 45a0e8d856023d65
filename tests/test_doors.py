"""Ways in: code planted in model folders, in the current folder and among compiled kernels is never
run; nothing asks the network; nothing answers a question from the data.
"""

import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
from training import run as run_verb
from training import train_in, write_corpus, write_encoder

from nercrf.features.large_corpus import PartReader, open_workers
from nercrf.files import MANIFEST
from nercrf.model.encoder_config import find_model
from nercrf.training.reporting import git_state

ROOT = Path(__file__).resolve().parent.parent
PLANTED = "from pathlib import Path\nPath({!r}).write_text('ran')\nclass Planted: pass\n"
AUTO = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoModelForTokenClassification")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tagger, an encoder, data and a text."""
    folder = tmp_path_factory.mktemp("places")
    train_in(folder / "run", max_steps=2, eval_steps=0, save_steps=0)
    shutil.copytree(find_model(folder / "run"), folder / "tagger")
    (folder / "tagger" / MANIFEST).unlink()
    write_encoder(folder / "encoder")
    write_corpus(folder / "data")
    (folder / "text.txt").write_text("y\ny\ny\n")
    return folder


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def plant(folder, marker):
    """Python files that leave a mark, and every entry that could name them."""
    for name in ("planted", "sitecustomize", "usercustomize", "tokenizers", "torch", "setup"):
        (folder / f"{name}.py").write_text(PLANTED.format(str(marker)))
    names = dict.fromkeys(AUTO, "planted.Planted") | {
        "AutoTokenizer": ["planted.Planted", "planted.Planted"]
    }
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = names
    if "encoder" in config:
        config["encoder"]["auto_map"] = names
    (folder / "config.json").write_text(json.dumps(config))
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    change(folder / "tokenizer_config.json", auto_map=names, chat_template=template)


def run(words, monkeypatch, answers="y\n" * 99):
    """The exit code of a verb whose standard input says yes to everything."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(answers.encode())))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return run_verb(*words)


@pytest.mark.parametrize("kind", ["known", "unknown"])
@pytest.mark.parametrize("door", ["predict", "evaluate", "train tagger", "train", "check", "merge"])
def test_code_in_a_model_folder_never_runs(places, tmp_path, monkeypatch, capfd, door, kind):
    """Of an architecture that transformers knows its own class is used; any other is refused."""
    marker, out, data = tmp_path / "marker", tmp_path / "out", places / "data"
    source = "encoder" if door in ("train", "check") else "tagger"
    model = tmp_path / "model"
    shutil.copytree(places / source, model)
    if kind == "unknown":
        config = json.loads((model / "config.json").read_text())
        config.get("encoder", config)["model_type"] = "planted"
        (model / "config.json").write_text(json.dumps(config))
        change(model / "tokenizer_config.json", tokenizer_class="Planted")
        if door == "check":
            (model / "tokenizer.json").unlink()
    plant(model, marker)
    train = ["--data_dir", data, "--output_dir", out, "--no_cuda", "--max_steps", 1]
    words = {
        "predict": ["predict", model, "-", "--output", out / "found.jsonl"],
        "evaluate": ["evaluate", model, data, "--no_cuda"],
        "train tagger": ["train", "--model_name_or_path", model, *train],
        "train": ["train", "--model_name_or_path", model, *train],
        "check": ["check", data, "--tokenizer", model],
        "merge": ["merge", model, out],
    }[door]
    monkeypatch.chdir(model)
    code = run(words, monkeypatch)
    said = capfd.readouterr().err
    assert not marker.exists()
    assert "Traceback" not in said, said
    if kind == "unknown" and door != "check":
        assert code == 2, said
        assert [x for x in said.splitlines() if x.startswith("error:")], said


def test_code_is_told_apart_from_damage(places, tmp_path, monkeypatch, capfd):
    """The flag is named, and says whose code it is."""
    model = tmp_path / "model"
    shutil.copytree(places / "encoder", model)
    change(model / "config.json", model_type="planted")
    plant(model, tmp_path / "marker")
    words = ["train", "--model_name_or_path", model, "--data_dir", places / "data"]
    assert run([*words, "--output_dir", tmp_path / "out"], monkeypatch) == 2
    said = capfd.readouterr().err
    assert f"{model}: expected" in said
    assert "--trust_remote_code" in said
    assert not (tmp_path / "marker").exists()


def test_the_flag_runs_it(places, tmp_path, monkeypatch):
    """The only way."""
    model, marker = tmp_path / "model", tmp_path / "marker"
    shutil.copytree(places / "encoder", model)
    change(model / "config.json", model_type="planted")
    plant(model, marker)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    words = ["train", "--model_name_or_path", model, "--data_dir", places / "data", "--no_cuda"]
    run([*words, "--output_dir", tmp_path / "out", "--trust_remote_code"], monkeypatch)
    assert marker.exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin"])
def test_pickles_are_not_opened(places, tmp_path, monkeypatch, name):
    for source in ("tagger", "encoder"):
        model = tmp_path / source
        shutil.copytree(places / source, model)
        (model / "model.safetensors").unlink()
        (model / name).write_bytes(pickle.dumps({"a": Malicious(tmp_path / "marker")}))
        predict = ["predict", model, places / "text.txt"]
        train = ["train", "--model_name_or_path", model, "--data_dir", places / "data"]
        words = predict if source == "tagger" else [*train, "--output_dir", tmp_path / "out"]
        assert run(words, monkeypatch) == 2
    assert not (tmp_path / "marker").exists()


def test_an_adapter_names_no_module(places, tmp_path, monkeypatch, capfd):
    pytest.importorskip("peft")
    model = tmp_path / "model"
    shutil.copytree(places / "tagger", model)
    (model / "adapter").mkdir()
    content = {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "planted"}
    (model / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    (model / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    plant(model, tmp_path / "marker")
    monkeypatch.syspath_prepend(str(model))
    assert run(["predict", model, places / "text.txt"], monkeypatch) == 2
    assert "adapter_config.json" in capfd.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_nothing_else_opens_models():
    """One module loads what others have saved."""
    way_in = re.compile(
        r"\bAuto(?!Config\.(for_model|register)|Model\w*\.register)\w+\.(from_pretrained|from_config)"
        r"|PeftConfig\.|torch\.load\(|pickle\.loads?\(|trust_remote_code=True|\bload_file\("
    )
    allowed = {"pretrained.py": 9, "checkpoint.py": 1, "card.py": 1}  # the card shows a call
    allowed["benchmark.py"] = 1  # a new model of a stock class, from a configuration in memory
    for path in (ROOT / "nercrf").rglob("*.py"):
        found = way_in.findall(path.read_text(encoding="utf-8"))
        assert len(found) <= allowed.get(path.name, 0), (path, found)


def test_no_program_of_git_is_run(tmp_path):
    """`core.fsmonitor`, hooks, filters and aliases of the current folder are not asked."""
    marker = tmp_path / "marker"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    script = tmp_path / "planted.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\n")
    script.chmod(0o755)
    with open(tmp_path / ".git" / "config", "a") as file:
        file.write(f'[core]\n\tfsmonitor = {script}\n[filter "x"]\n\tclean = {script}\n')
    (tmp_path / ".gitattributes").write_text("* filter=x\n")
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    marker.unlink(missing_ok=True)
    assert git_state(tmp_path)["commit"] == head.stdout.strip()
    assert not marker.exists()


def test_workers_see_the_paths_of_the_program(tmp_path, monkeypatch):
    """`python -c` looks into the current folder first; a worker must not."""
    for name in ("numpy", "torch", "json", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(PLANTED.format(str(tmp_path / "marker")))
    (tmp_path / "part.txt").write_text("Ada B-PER\nleft O\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    refused = pytest.raises(RuntimeError, match="'_nothing'")
    with open_workers(1, PartReader()) as workers, refused:
        workers.ask_each({"do": "nothing"})
    assert not (tmp_path / "marker").exists()


def test_no_verb_asks_the_network(places, tmp_path, monkeypatch, capfd):
    """Names that are nowhere, and everything local, without --download."""
    asked = []

    def refuse(*words, **_):
        asked.append(words)
        raise OSError("no network in this test")

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data, tagger, text = places / "data", places / "tagger", places / "text.txt"
    out = ["--output_dir", tmp_path / "out", "--no_cuda", "--max_steps", 1]
    commands = {
        ("predict", tagger, text, "--output", tmp_path / "found.jsonl"): 0,
        ("evaluate", tagger, data, "--no_cuda", "--output_dir", tmp_path / "figures"): 0,
        ("check", data): 0,
        ("check", data, "--tokenizer", places / "encoder"): 0,
        ("convert", data / "train.bio", tmp_path / "train.jsonl"): 0,
        ("train", "--data_dir", data, "--model_name_or_path", places / "encoder", *out): 0,
        ("predict", "nobody/nothing", text): 2,
        ("evaluate", "nobody/nothing", data): 2,
        ("check", data, "--tokenizer", "nobody/nothing"): 2,
        ("merge", "nobody/nothing", tmp_path / "merged"): 2,
        ("train", "--data_dir", data, "--model_name_or_path", "nobody/nothing", *out): 2,
        ("train", "--data_dir", data, "--model_name_or_path", "bert-base-nowhere", *out): 2,
    }
    for words, code in commands.items():
        found = run(words, monkeypatch)
        said = capfd.readouterr().err
        assert not asked, (words, asked)
        assert found == code or (words[0] == "check" and found == 1), (words, said)


def test_a_planted_kernel_is_not_executed(tmp_path):
    """Files beside the modules, and in a folder that others can write to, are not read."""
    pytest.importorskip("numba")
    from nercrf.crf.kernel_cache import keep_on_disk, private_folder

    def thrice(number):
        return 3 * number

    from numba import njit

    folder = private_folder(tmp_path / "kernels")
    assert keep_on_disk(njit(thrice), folder)(2) == 6
    for file in folder.glob("*.nb*"):
        file.write_bytes(pickle.dumps(Malicious(tmp_path / "marker")))
    again = keep_on_disk(njit(thrice), folder)
    assert again(2) == 6
    assert sum(again.stats.cache_misses.values()) == 1
    assert not (tmp_path / "marker").exists()


def test_a_full_disk_costs_time_alone(tmp_path, monkeypatch, caplog):
    pytest.importorskip("numba")
    import errno

    from numba import njit

    from nercrf.crf import kernel_cache

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kernel_cache, "write_bytes", full)
    kernel_cache._say_once.cache_clear()

    def fourfold(number):
        return 4 * number

    for _ in range(2):
        assert kernel_cache.keep_on_disk(njit(fourfold), tmp_path)(2) == 8
    assert [x.message for x in caplog.records if "not kept on the disk" in x.message] == [
        f"compiled kernels are not kept on the disk: {tmp_path}: No space left on device; each "
        "process compiles"
    ]

"""Checkpoints that are damaged, half copied, renamed or of another training: passed over with a line
where the newest whole one is asked for, refused in a sentence where they are named, never believed,
and never the reason to lose a whole one.
"""

import json
import logging
import shutil
from pathlib import Path

import pytest
from test_odd_folders import complain, cut, flip_bit, put, remove
from training import differences, train_in

from nercrf.files import MANIFEST, verify_folder

HOW = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "save_total_limit": 5, "seed": 3}
HOW |= {"metric_for_best_model": "loss"}
DAMAGE = {"missing": remove, "empty": lambda name: put(name, b""), "flipped": flip_bit}
DAMAGE |= {"cut": lambda name: cut(name, 0.5)}
NAMES = ["config.json", "model.safetensors", "state.json", "state.safetensors", "tokenizer.json"]
NAMES += ["tokenizer_config.json", "training_config.json", "evaluation.json"]
FREE = ("README.md", "training_config.json")  # what no tagger needs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A training, one with another seed, and a text."""
    folder = tmp_path_factory.mktemp("runs")
    train_in(folder / "run", **HOW)
    train_in(folder / "other", **HOW | {"seed": 4})
    (folder / "text.txt").write_text("Ada Lovelace left York .\n")
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the training, to be damaged."""
    return Path(shutil.copytree(runs / "run", tmp_path / "run"))


def take_file(name, runs):
    """The file of the other training stands there."""
    return lambda folder: shutil.copyfile(runs / "other" / folder.name / name, folder / name)


def go_on(folder, caplog, resume="auto", **changes):
    """Go on from a checkpoint; what the log says."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train_in(folder, **HOW | changes, resume=resume)
    return caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_each_file_of_a_checkpoint_in_each_state(name, runs, tmp_path, caplog, capfd):
    """Named, it is refused; with auto the one before it is taken, and the training ends as it had
    ended; a verb that tags refuses it, unless the file tells nothing that it needs.
    """
    states = {state: make(name) for state, make in DAMAGE.items()} | {
        "foreign": take_file(name, runs)
    }
    for state, change in states.items():
        if (
            state == "foreign"
            and (runs / "run/checkpoint-4" / name).read_bytes()
            == (runs / "other/checkpoint-4" / name).read_bytes()
        ):
            continue
        copy = shutil.copytree(runs / "run", tmp_path / state)
        broken = copy / "checkpoint-4"
        change(broken)
        with pytest.raises(ValueError, match=rf"checkpoint-4: not a whole checkpoint: {name}: "):
            train_in(copy, **HOW, resume=str(broken))
        words = ["predict", broken, runs / "text.txt", "--output", tmp_path / "out.jsonl"]
        if name not in FREE:
            assert name in complain(capfd, words, broken) or name == "config.json"
            assert not (tmp_path / "out.jsonl").exists()
        if state == "flipped":
            said = go_on(copy, caplog)
            assert f"{broken} is broken and passed over: {name}: content has changed" in said
            assert "checkpoint-2 at update 2" in said
            assert differences(runs / "run", copy) == []


@pytest.mark.parametrize("state", ["missing", "garbage", "foreign", "unfinished"])
def test_each_state_of_the_manifest(state, runs, copy, caplog):
    broken = copy / "checkpoint-4"
    if state == "missing":
        (broken / MANIFEST).unlink()
    elif state == "garbage":
        (broken / MANIFEST).write_text("{")
    elif state == "foreign":
        take_file(MANIFEST, runs)(broken)
    else:
        broken.rename(copy / ".checkpoint-4.0123abcd.tmp")
    if state in ("missing", "garbage"):  # nobody can say whose it is
        for resume in ("auto", str(broken)):
            with pytest.raises(ValueError, match=r"checkpoint-4"):
                train_in(copy, **HOW, resume=resume)
        assert (broken / "model.safetensors").is_file()
        return
    assert "checkpoint-2 at update 2" in go_on(copy, caplog)
    assert differences(runs / "run", copy) == []


def test_a_checkpoint_of_another_training_is_refused(runs, copy):
    shutil.rmtree(copy / "checkpoint-4")
    shutil.copytree(runs / "other" / "checkpoint-4", copy / "checkpoint-4")
    for resume in ("auto", str(copy / "checkpoint-4")):
        with pytest.raises(ValueError, match=r"checkpoint-4: made with seed = 4"):
            train_in(copy, **HOW, resume=resume)
    assert verify_folder(copy / "checkpoint-4") == []


def test_a_renamed_checkpoint_is_refused_and_stays(copy):
    """It would be believed under a wrong name, and removed as one that is given up."""
    (copy / "checkpoint-4").rename(copy / "checkpoint-9")
    for resume in ("auto", str(copy / "checkpoint-9")):
        with pytest.raises(
            ValueError, match=r"checkpoint-9 holds update 4; rename it to checkpoint-4"
        ):
            train_in(copy, **HOW, resume=resume)
    assert verify_folder(copy / "checkpoint-9") == []


def test_a_backup_beside_a_run_is_left_alone(copy):
    """Whole copies of ours carry our manifest; their names are those of a person."""
    names = ["checkpoint-4-backup", "checkpoint-best", "checkpoint-04"]
    for name in names:
        shutil.copytree(copy / "checkpoint-4", copy / name)
    train_in(copy, **HOW, resume="auto")
    train_in(copy, **HOW, overwrite_output_dir=True)
    assert [verify_folder(copy / name) for name in names] == [[], [], []]


def test_what_is_resumed_is_not_removed_under_another_name(copy, tmp_path, monkeypatch):
    """The folder of the run, by another path to it, is that folder."""
    link = tmp_path / "link"
    link.symlink_to(copy)
    monkeypatch.chdir(tmp_path)
    for name in (copy, "run", "../" + tmp_path.name + "/run", link):
        resume = Path(name) / "checkpoint-2"
        train_in(copy, **HOW, resume=str(resume), overwrite_output_dir=True)
        train_in("run", **HOW, resume=str(resume))
    assert verify_folder(copy / "checkpoint-2") == []


OF_THE_BEST = {
    f"{name} {state}": make(name)
    for name in ("best.json", "model.safetensors", "config.json")
    for state, make in DAMAGE.items()
}
OF_THE_BEST |= {
    "best a list": put("best.json", b"[]"),
    "best without step": put("best.json", b"{}"),
}


@pytest.mark.parametrize("case", OF_THE_BEST)
def test_a_broken_best_model_is_told_at_once_and_chosen_anew(case, copy, caplog):
    """Not when the training is over."""
    OF_THE_BEST[case](copy / "model")
    shutil.rmtree(copy / "checkpoint-4")
    said = go_on(copy, caplog)
    assert f"{copy / 'model'} is broken" in said
    assert "is chosen anew from update 2 on" in said
    assert verify_folder(copy / "model") == []
    best = json.loads((copy / "model" / "best.json").read_text())
    assert best["step"] == 4


def test_the_best_model_of_another_training_is_told(runs, copy, caplog):
    shutil.rmtree(copy / "model")
    shutil.copytree(runs / "other" / "model", copy / "model")
    best = json.loads((copy / "model" / "best.json").read_text())
    mine = json.loads((runs / "run" / "model" / "best.json").read_text())
    assert best != mine
    assert "is chosen anew from update 4 on" in go_on(copy, caplog)
    assert json.loads((copy / "model" / "best.json").read_text()) == mine

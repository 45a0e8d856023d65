"""A signal that arrives before the training: one line, an exit code, and nothing half done."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from training import ROOT

from nercrf import opening, script
from nercrf.cli import main
from nercrf.features import cache
from nercrf.features.cache_files import list_cache
from nercrf.files import verify_folder
from nercrf.training import trainer

MOMENTS = {
    "the sample is written": (opening, "write_sample"),
    "the data are opened": (opening, "open_data"),
    "features are converted": (cache, "convert_examples_to_features"),
    "features are saved": (cache, "save_features"),
    "the vocabulary is built": (opening, "build_model"),
    "the model is loaded": (script, "load_model"),
    "the training is set up": (trainer, "start_training"),
    "the output is prepared": (trainer, "find_resume"),
}
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def left(folder):
    """What is there beside whole folders and the cache."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == "sample":
            assert verify_folder(path) == []
            caches = path / ".nercrf_cache"
            assert {entry.state for entry in list_cache([caches])} <= {"good"}
        else:
            found.append(path.name)
    return found


@pytest.fixture
def usual_signals():
    """Signals with their usual effect, which tests under nohup do not have."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_while_loading_is_one_line_and_leaves_nothing_half(tmp_path, monkeypatch, capsys):
    """At each moment once, before and behind it; the same command then goes through."""
    out = tmp_path / "out"
    flags = ["train", "--no_cuda", "--output_dir", str(out), "--resume", "auto", "--max_steps", "1"]
    for number, (where, name) in enumerate(MOMENTS.values()):
        wanted, original = SIGNALS[number % 3], getattr(where, name)

        def interrupt(*arguments, late=number % 2, wanted=wanted, original=original, **options):
            if late:
                original(*arguments, **options)
            os.kill(os.getpid(), wanted)
            raise AssertionError("the signal was not taken")

        with monkeypatch.context() as patch:
            patch.setattr(where, name, interrupt)
            assert main(flags) == 128 + wanted
        assert signal.getsignal(wanted) == signal.SIG_DFL
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"stopped by {wanted.name}: start again with the same command"
        assert "Traceback" not in "".join(said)
        assert left(out) == []
    assert main(flags) == 0
    assert verify_folder(out / "model") == []


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    code = (
        "import os, signal\n"
        "from nercrf.run_ner_crf import guarded\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "print(guarded(lambda: os.kill(os.getpid(), signal.SIGHUP)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert found.stdout == b"0\n"


@pytest.mark.slow
def test_a_storm_of_signals_at_40_moments(tmp_path):
    """Whenever it comes, from the start of the program to the first updates."""
    dice, out = random.Random(0), tmp_path / "out"
    command = [sys.executable, "-m", "nercrf.run_ner_crf", "--do_train", "--no_cuda"]
    command += ["--output_dir", str(out), "--resume", "auto", "--max_steps", "40"]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    options |= {"stderr": subprocess.PIPE, "text": True}
    began = time.monotonic()
    subprocess.run([*command, "--dry_run"], **options, check=True)
    whole = time.monotonic() - began
    for number in range(40):
        wanted = SIGNALS[number % 3]
        with subprocess.Popen(command, **options) as process:
            time.sleep(dice.random() * whole)
            process.send_signal(wanted)
            _, text = process.communicate(timeout=120)
        assert process.returncode in (0, 75, 128 + wanted, -wanted), text
        assert "Traceback" not in text
        for path in out.glob("[!.]*"):
            if path.is_dir():
                assert verify_folder(path) == []
    assert subprocess.run(command, **options).returncode == 0

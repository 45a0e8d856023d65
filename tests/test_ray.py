"""A Ray data set, tagged by two workers of which one is killed."""

import json
import os
import signal
import sys

import numpy as np
import psutil
import pytest
from training import CORPUS

from nercrf.tagging.ray import tag
from nercrf.tagging.tagger import Tagger

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two processors, on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def workers():
    """The processes that hold a tagger."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "MapWorker" in " ".join(each.cmdline())]


def plain(entities):
    """Entities as they come out of a file, without their probabilities."""
    return [(each["label"], each["start"], each["end"], each["text"]) for each in entities]


def test_a_worker_is_killed_and_nothing_is_lost_or_doubled(cluster, model, tmp_path):
    """JSON lines in, parquet out; the answers are the tagger's."""
    count = 4000
    texts = [CORPUS.train[number % len(CORPUS.train)].text for number in range(count)]
    lines = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
    for part in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        chosen = lines[part * 1000 : part * 1000 + 1000]
        (tmp_path / "in" / f"{part}.jsonl").write_text("\n".join(chosen), encoding="utf-8")
    dataset = ray.data.read_json(str(tmp_path / "in"), lines=True)
    found = tag(dataset, model, workers=2, batch_size=50, device="cpu")
    rows, killed = [], 0
    for batch in found.iter_batches(batch_size=50, prefetch_batches=0):
        rows += zip(batch["id"].tolist(), batch["entities"], strict=True)
        if not killed and (holders := workers()):
            os.kill(holders[0].pid, signal.SIGKILL)
            killed += 1
    assert killed == 1
    assert sorted(number for number, _ in rows) == list(range(count))
    expected = Tagger.from_pretrained(model, device="cpu")(texts[: len(CORPUS.train)])
    for number, entities in rows:
        right = expected[number % len(CORPUS.train)]
        assert plain(entities) == [(e.label, e.start, e.end, e.text) for e in right]


def test_parquet_goes_in_and_out(cluster, model, tmp_path):
    """What is no text says why."""
    source = ray.data.from_items([{"text": CORPUS.train[0].text}, {"text": None}])
    source.write_parquet(str(tmp_path / "in"))
    dataset = ray.data.read_parquet(str(tmp_path / "in"))
    tag(dataset, model, device="cpu").write_parquet(str(tmp_path / "out"))
    rows = ray.data.read_parquet(str(tmp_path / "out")).take_all()
    rows.sort(key=lambda row: row["text"] is None)
    right = Tagger.from_pretrained(model, device="cpu")(CORPUS.train[0].text)
    assert plain(rows[0]["entities"]) == [(e.label, e.start, e.end, e.text) for e in right]
    assert rows[1]["entities"] is None
    assert rows[1]["error"] == "expected a text, got NoneType"
    chances = [each["probability"] for each in rows[0]["entities"]]
    assert np.all(np.array(chances) > 0)

"""The model card: what a colleague reads, what a hub reads, and what its snippets do."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from test_pipeline import random_model

from nercrf.cli import main
from nercrf.data.sample import sample_corpus
from nercrf.labels import spans_to_tags
from nercrf.model.card import CardFacts, model_card, push_folder, read_card, write_card
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.model.vocabulary import build_tokenizer
from nercrf.tables import visible
from nercrf.tagging.tagger import Tagger

EVIL = "a|b\x1b[2J\n# forged\n---\n```\n<script>*x*</script>: 'q' \"r\" \u202e [l](http://y)"


@pytest.fixture
def saved(tmp_path):
    """A model with a tokenizer in a folder."""
    folder = tmp_path / "model"
    tokenizer = build_tokenizer([SimpleNamespace(tokens=["Ada", "Moor", "sings"])] * 2)
    model = random_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def snippets(card):
    return re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)


def run_snippets(folder, monkeypatch):
    """Run the snippets of a card one after the other in its folder; what they leave."""
    monkeypatch.chdir(folder)
    card, names = (folder / "README.md").read_text(encoding="utf-8"), {}
    found = snippets(card)
    assert len(found) == 3
    for number, code in enumerate(found):
        exec(compile(code, f"snippet {number}", "exec"), names)
    return names


def test_a_training_leaves_a_card(tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    corpus = sample_corpus(sizes=(80, 12, 20))
    for split in ("train", "dev", "test"):
        lines = []
        for example in getattr(corpus, split):
            tags = spans_to_tags(example.spans, len(example.tokens))
            lines += [f"{word} {tag}" for word, tag in zip(example.tokens, tags, strict=True)]
            lines.append("")
        (data / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--data_dir", data, "--output_dir", out, "--max_steps", "3", "--no_cuda"]
    assert main(["train", *map(str, words)]) in (0, None)
    card = ModelCard.load(out / "model" / "README.md")
    assert card.data.library_name == "nercrf"
    assert card.data.pipeline_tag == "token-classification"
    assert card.data.license == "unknown"
    text = str(card)
    figures = json.loads((out / "eval_results.json").read_text())["model"]
    for result in card.data.eval_results:
        row = figures[result.dataset_split]
        assert result.metric_value == round(row[result.metric_type], 4)
    for split in ("dev", "test"):
        for name, row in figures[split]["types"].items():
            shown = " | ".join(f"{row[x]:.4f}" for x in ("precision", "recall", "f1"))
            assert re.search(rf"\| {name} \| {shown} \| {row['gold']}( \(fewer.*\))? \|", text)
    assert "| train | 80 |" in text
    assert "| test | 20 |" in text
    assert "- updates: 3" in text
    # its weights are whole beside it, and the card stays with them
    names = run_snippets(out / "model", monkeypatch)
    assert names["tagger"].model.config.labels == names["model"].config.labels
    names["model"].save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text("utf-8") == text
    with torch.no_grad():
        names["model"].crf.transitions += 1
    names["model"].save_pretrained(tmp_path / "again")
    assert "None are recorded" in (tmp_path / "again" / "README.md").read_text("utf-8")
    capsys.readouterr()


def test_a_model_saved_by_hand_says_what_it_knows(saved, monkeypatch):
    folder, model, _ = saved
    names = run_snippets(folder, monkeypatch)
    assert names["model"].config.labels == model.config.labels
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "None are recorded" in text
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
    assert "no scores of labels" in text


def test_what_data_say_is_nothing_but_text(saved):
    folder, model, _ = saved
    facts = CardFacts(
        name=EVIL,
        examples={"PER": [EVIL], EVIL: [EVIL]},
        texts=[EVIL, "\ud800"],
        sentences={EVIL: 3},
        figures={EVIL: {"f1": 1.0, "precision": 1.0, "recall": 1.0, "gold": 1}},
        recipe={EVIL: EVIL},
        versions={EVIL: EVIL},
        limits=[EVIL],
    )
    write_card(folder, model.config, facts)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert visible(text) == text
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    read = yaml.safe_load(front)
    assert read["license"] == "unknown"
    assert len(read["widget"]) == 2
    assert ModelCard(text).data.eval_results[0].metric_value == 1.0
    assert "\n# forged" not in body
    prose = re.sub(r"^```python\n.*?^```", "", body, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in prose.replace("\\<", "")
    assert body.count("\n```") == 6
    assert re.findall(r"^# ", body, re.MULTILINE) == ["# "]
    for code in snippets(text):
        compile(code, "snippet", "exec")


def test_intervals_are_shown_where_they_are_known(saved):
    _, model, _ = saved
    row = {"f1": 0.8, "precision": 0.7, "recall": 0.9, "gold": 50}
    row["intervals"] = {"f1": [0.75, 0.84]}
    card = model_card(model.config, CardFacts(figures={"test": row}))
    assert "| all | 0.7000 | 0.9000 | 0.8000 (0.7500 to 0.8400) | 50 |" in card


class Hub(BaseHTTPRequestHandler):
    """What `create_repo` and `upload_folder` ask of a hub, in memory."""

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        path, files = self.path, self.server.files
        if path == "/api/repos/create":
            name = "/".join(
                filter(None, (json.loads(raw).get("organization"), json.loads(raw)["name"]))
            )
            answer = {"url": f"{self.server.address}/{name}", "name": name, "id": name}
        elif path.endswith("validate-yaml"):
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            wanted = [each["path"] for each in json.loads(raw)["files"]]
            answer = {
                "files": [
                    {"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in wanted
                ]
            }
        else:
            for line in map(json.loads, raw.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = f"{self.server.address}/ada/moor/commit/1"
            answer = {"commitUrl": commit, "commitOid": "1" * 40}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        "Say nothing."


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.address = {}, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_goes_to_a_hub_with_its_card(saved, hub, tmp_path):
    folder, model, tokenizer = saved
    row = {"f1": 0.8, "precision": 0.7, "recall": 0.9, "gold": 50}
    write_card(folder, model.config, CardFacts(figures={"test": row}))
    (folder / ".hidden").write_text("not for others")
    address = push_folder(folder, "ada/moor", token="hf_x")
    assert address == f"{hub.address}/ada/moor/commit/1"
    here = {x.name: x.read_bytes() for x in folder.iterdir() if x.name != ".hidden"}
    assert hub.files == here
    assert "0.8000" in hub.files["README.md"].decode()

    # a model that was loaded takes its card along, and what arrives is whole
    hub.files.clear()
    loaded = NerCrfForTokenClassification.from_pretrained(folder)
    loaded.push_to_hub("ada/moor", tokenizer=tokenizer, token="hf_x")
    assert hub.files["README.md"].decode() == read_card(folder)
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.files.items():
        (arrived / name).write_bytes(content)
    text = ["Ada Moor sings"]
    assert Tagger.from_pretrained(arrived)(text) == Tagger(model, tokenizer)(text)

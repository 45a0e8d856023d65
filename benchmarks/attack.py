"""Broken files by the ten thousand: `python benchmarks/attack.py [--mutations N] [--seed S]`.

A small corpus of nasty sentences is written in every format that is a file of text, and each file is
damaged at random places in random ways: bits, bytes, lines, quotes, brackets, line ends, control
characters. Whatever then comes, five things must hold.

1. Reading ends, in the examples of the file or in a `DataError` that names it.
2. `check` finds a problem where reading refuses, and none where reading does not.
3. Entities are conserved: an independent reader counts as many in what was read without complaint
   (columns of two cells, JSON lines, CLUENER).
4. What was read is written as JSON lines and read again as the same, or the conversion says what was
   lost.
5. `predict` reads it as it comes: to its end, with an error in place of what is no sentence, or to a
   `DataError` that names it.

It prints how many files were tried, read and refused, and every file that breaks a rule with the seed
that makes it again; the exit code is 1 if there is one. The other attacks are tests: `pytest -m slow`
kills and signals trainings and cache builders, `pytest tests/test_doors.py tests/test_odd_folders.py tests/test_run_folder.py`
plants code, damages model folders and puts foreign files in the way.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from pathlib import Path

from nercrf.data.check import check_paths
from nercrf.data.convert import convert
from nercrf.data.examples import DataError, Example
from nercrf.data.formats import read_examples, write_examples
from nercrf.data.sample import sample_corpus
from nercrf.data.splitting import find_splitter
from nercrf.labels import Span
from nercrf.tagging.inputs import Source, read_batches

FILES = {
    "columns": "train.txt",
    "bioes": "train.bmes",
    "cluener": "train.json",
    "jsonl": "train.jsonl",
    "doccano": "doccano.jsonl",
    "label_studio": "tasks.json",
    "brat": "notes.ann",
    "inline": "inline.txt",
    "csv": "table.csv",
    "tokens": "tokens.jsonl",
}

NASTY = (
    b"\x00", b"\r", b"\r\n", b"\n\n", b"\t", b" ", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8", b"\xc2\xa0", b"\xe2\x80\x8b", b"\x1b[2J", b'"', b"'", b"{", b"}", b"[", b"]",
    b",", b";", b"\\", b"\\u0000", b"\\ud800", b"-", b"B-", b"O", b"1e999", b"NaN", b"null", b"true",
    b"-DOCSTART- O\n", b"# ", b"99999999999999999999", "é".encode("latin1"), "王".encode(),
    "👩‍🔬".encode(), b"//", b"<", b"&amp;",
)  # fmt: skip


def corpus():
    """Sentences in two languages, and some that are odd."""
    odd = [
        Example("odd-1", ["e\u0301", "\u200bx", "א\u05b0"], [Span("PER", 0, 1)]),
        Example("odd-2", ["👩\u200d🔬", "C++", "3,000"], [Span("ORG", 1, 2)]),
        Example("odd-3", ["nothing"], []),
    ]
    return [*sample_corpus().train[:6], *odd]


def write_corpora(folder):
    """The bytes of each file that is damaged, by its kind."""
    examples, found = corpus(), {}
    for kind, name in FILES.items():
        path = folder / name
        if kind == "csv":
            rows = ["Sentence #,Word,Tag"]
            for number, example in enumerate(examples, 1):
                tags = ["O"] * len(example.tokens)
                for label, start, end in example.spans:
                    tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
                for place, (token, tag) in enumerate(zip(example.tokens, tags, strict=True)):
                    first = f"Sentence: {number}" if not place else ""
                    quoted = '"' + token.replace('"', '""') + '"'
                    rows.append(f"{first},{quoted},{tag}")
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        elif kind == "tokens":
            rows = []
            for example in examples:
                tags = ["O"] * len(example.tokens)
                for label, start, end in example.spans:
                    tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
                rows.append(json.dumps({"tokens": list(example.tokens), "ner_tags": tags}))
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        elif kind == "bioes":
            write_examples(examples, path, "columns", "BIOES")
        else:
            write_examples(examples, path, kind)
        found[kind] = path.read_bytes()
    return found


def damage(data, dice):
    """The same bytes, changed in one to three places."""
    for _ in range(dice.randint(1, 3)):
        place, size = dice.randrange(len(data) + 1), dice.choice((1, 1, 1, 2, 5, 40))
        way = dice.randrange(8)
        lines = data.splitlines(keepends=True)
        if way == 0 and place < len(data):
            flipped = data[place] ^ (1 << dice.randrange(8))
            data = data[:place] + bytes([flipped]) + data[place + 1 :]
        elif way == 1:
            data = data[:place] + data[place + size :]
        elif way in (2, 3):
            data = data[:place] + dice.choice(NASTY) + data[place:]
        elif way == 4:
            data = data[:place] + data[place : place + size] * 2 + data[place + size :]
        elif way == 5:
            data = data[:place] if dice.random() < 0.3 else data[: place + 1] + data[place:]
        elif way == 6 and len(lines) > 2:
            one, two = dice.sample(range(len(lines)), 2)
            lines[one], lines[two] = lines[two], lines[one]
            data = b"".join(lines)
        elif lines:
            del lines[dice.randrange(len(lines))]
            data = b"".join(lines)
    return data


def independent_count(kind, data):
    """Entities by another reader; None where it does not know."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if kind in ("jsonl", "cluener"):
        total = 0
        for line in text.split("\n"):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                return None
            if not isinstance(row, dict):
                return None
            if kind == "jsonl":
                total += len(row.get("entities") or row.get("spans") or ())
            else:
                label = row.get("label") or {}
                total += sum(len(places) for spans in label.values() for places in spans.values())
        return total
    if kind == "columns":
        total = 0
        for line in text.split("\n"):
            cells = line.split(" ") if " " in line else line.split("\t")
            if line.strip() and (len(cells) != 2 or line.startswith(("#", "-DOCSTART-"))):
                return None
            total += len(cells) == 2 and cells[1].startswith("B-")
        return total
    return None


def stream_fault(path):
    """What is wrong with how a file is read as it comes, or None."""
    try:
        deque(read_batches(Source(str(path), find_splitter("words"))), maxlen=0)
    except DataError as error:
        if path.stem not in str(error):
            return f"the error of predict does not name the file: {error}"
    return None


def attack(kind, folder, data):
    """What is wrong with how a damaged file is dealt with, or None; and whether it was read."""
    path = folder / FILES[kind]
    path.write_bytes(data)
    if fault := stream_fault(path):
        return fault, False
    try:
        examples = read_examples(path)
    except DataError as error:
        if path.stem not in str(error):
            return f"the error does not name the file: {error}", False
        examples = None
    report = check_paths([path])
    refuses = any(each.severity in ("error", "problem") for each in report.findings)
    if examples is None:
        return (None if refuses else "check finds nothing where reading refuses"), False
    count, entities = independent_count(kind, data), sum(len(x.spans or ()) for x in examples)
    if count is not None and count != entities and not report.findings:
        return f"{entities} entities were read, an independent reader finds {count}", True
    done = convert(path, folder / "again.out", to_format="jsonl")
    again = read_examples(folder / "again.out", "jsonl")
    same = [x.spans for x in again] == [x.spans for x in examples]
    if not same and not done.losses:
        return "other spans after a conversion that says nothing was lost", True
    return None, True


def main():
    """Damage files and say how that was taken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mutations", type=int, default=57_600, help="files that are damaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=FILES, nargs="*", default=list(FILES))
    args = parser.parse_args()
    faults, tally, begin, slowest = [], Counter(), time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {kind: data for kind, data in write_corpora(folder).items() if kind in args.kind}
        for number in range(args.mutations):
            kind = list(files)[number % len(files)]
            data = damage(files[kind], random.Random(f"{args.seed} {number}"))
            started = time.monotonic()
            try:
                fault, was_read = attack(kind, folder, data)
            except Exception:  # whatever comes out is the finding
                fault, was_read = traceback.format_exc(limit=-3), False
            slowest = max(slowest, time.monotonic() - started)
            tally[kind, "read" if was_read else "refused"] += 1
            if fault:
                faults.append(fault)
                print(f"--seed {args.seed}, file {number} ({kind}): {fault}\n", flush=True)
    for kind in files:
        print(f"{kind:14} read {tally[kind, 'read']:6} refused {tally[kind, 'refused']:6}")
    seconds = time.monotonic() - begin
    print(f"{args.mutations} files, {len(faults)} faults, {seconds:.0f} s, slowest {slowest:.2f} s")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

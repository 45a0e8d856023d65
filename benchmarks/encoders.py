"""What is right of every family of encoders: tiny random models, tokenizers of their own classes.

    pip install '.[dev]'
    python benchmarks/encoders.py                 all families, some minutes
    python benchmarks/encoders.py roberta qwen3   some of them
    python benchmarks/encoders.py --write         all, into tests/encoder_table.json

The families are those of tests/encoders.py, the six checks those of tests/encoder_checks.py. A
fault is shown and leaves its family out of the table; a family that the library refuses is in it
with the sentence that refuses it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import tokenizers
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from encoder_checks import TABLE, check_family
from encoders import FAMILIES


def write_table(rows: dict[str, dict[str, str]]) -> None:
    "One family a line, with the versions that they were checked with."
    versions = {
        each.__name__: each.__version__.partition("+")[0]
        for each in (torch, transformers, tokenizers)
    }
    lines = [
        f"  {json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in rows.items()
    ]
    body = ",\n".join(lines)
    text = f'{{"versions": {json.dumps(versions)},\n "families": {{\n{body}\n}}}}\n'
    TABLE.write_text(text, encoding="utf-8")


def main() -> int:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--write", action="store_true", help="write tests/encoder_table.json")
    options = parser.parse_args()
    if unknown := sorted(set(options.families) - set(FAMILIES)):
        parser.error(f"no family is named {unknown[0]}; there are {', '.join(FAMILIES)}")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows, faults, began = {}, 0, time.monotonic()
    for name in options.families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = check_family(name, folder)
                print(f"{name}: {', '.join(rows[name].values())}", flush=True)
            except AssertionError as error:
                faults += 1
                print(f"FAULT {error}", flush=True)
    print(f"{len(rows)} families, {faults} with a fault, {time.monotonic() - began:.0f} s")
    if options.write:
        write_table(rows)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Memory of `nercrf predict` over files of growing size, in every format that it reads.

    python benchmarks/predict_memory.py --sentences 1 5000 60000

A small model with random scores is made. Each file is tagged by a process of its own, whose peak of
resident memory (ru_maxrss, in MiB) is printed, with sentences a second. The first size, one
sentence, shows what the process itself needs: imports, model, buffers of one piece. With --reading
nothing is tagged, which takes a tenth of the time: what grows with the file would show as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from inputs import save_random_model

from nercrf.data.sample import sample_corpus

Sentences = Sequence[Sequence[str]]
CHILD = """
import resource, sys
from nercrf.cli import main
from nercrf.tagging import stream
if sys.argv.pop(1) == "True":
    stream.tag_work = lambda tagger, work: work.sentences
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def write_parquet(sentences: Sentences, path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": [" ".join(each) for each in sentences]}), path)


def as_text(write: Callable[[Sentences], str]) -> Callable[[Sentences, Path], None]:
    return lambda sentences, path: path.write_text(write(sentences), encoding="utf-8")


FORMATS = {
    "in.txt": as_text(lambda found: "".join(" ".join(each) + "\n" for each in found)),
    "in.jsonl": as_text(
        lambda found: "".join(json.dumps({"text": " ".join(each)}) + "\n" for each in found)
    ),
    "in.json": as_text(lambda found: json.dumps([{"text": " ".join(each)} for each in found])),
    "in.conll": as_text(
        lambda found: "".join("".join(f"{word}\tO\n" for word in each) + "\n" for each in found)
    ),
    "texts.csv": as_text(
        lambda found: "id,text\n" + "".join(f'{n},"{" ".join(x)}"\n' for n, x in enumerate(found))
    ),
    "words.csv": as_text(
        lambda found: (
            "sentence,token,tag\n"
            + "".join(f'{n},"{word}",O\n' for n, each in enumerate(found) for word in each)
        )
    ),
    "in.parquet": write_parquet,
}


def build(folder: Path) -> list[list[str]]:
    "A model in a folder, and sentences of its language."
    corpus = sample_corpus()
    save_random_model(corpus, folder, width=32)
    return [[word for word in each.tokens if '"' not in word][:6] for each in corpus.train]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, nargs="+", default=[1, 5_000, 60_000])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--reading", action="store_true", help="read and write, but tag nothing")
    args = parser.parse_args()
    print(f"{'format':12s} {'sentences':>9s} {'peak MiB':>9s} {'a second':>9s}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        sentences = build(folder / "model")
        for each in args.formats:
            for count in args.sentences:
                source, output = folder / each, folder / "out.jsonl"
                FORMATS[each]([sentences[n % len(sentences)] for n in range(count)], source)
                words = ["predict", folder / "model", source, "--output", output, "--no_cuda"]
                began = monotonic()
                done = subprocess.run(
                    [sys.executable, "-c", CHILD, *map(str, [args.reading, *words])],
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                )
                peak, rate = int(done.stdout.split()[-1]) / 1024, count / (monotonic() - began)
                with open(output, "rb") as file:
                    assert sum(1 for _ in file) == count
                output.unlink()
                print(f"{each:12s} {count:9,d} {peak:9.0f} {rate:9.0f}", flush=True)


if __name__ == "__main__":
    main()

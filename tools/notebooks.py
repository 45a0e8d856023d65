"""Run the notebooks in a real Jupyter kernel and write their outputs, or check that nothing unclean
is in them.

python tools/notebooks.py run [NAME ...]     run from an empty state, write outputs, say how long each took
python tools/notebooks.py check              refuse unclean metadata, machine paths, long cells, large files,
                                             pictures without alt text
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
WIDGET = "application/vnd.jupyter.widget-view+json"  # a bar that moves
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
HIDDEN = {".ipynb_checkpoints", "_docs", "api"}
LONGEST_CELL = 100
FEWEST = 35  # notebooks that a check must have seen
LONGEST_LINE = 100  # what a page shows without scrolling
LARGEST_FILE = 150_000
MACHINE_PATH = re.compile(r"(?:/(?:root|home|Users|tmp|work|var/folders)/|[A-Z]:\\\\Users)[\w.-]*")


def directives(source: str) -> set[str]:
    "The nbdev directives at the top of a code cell."
    lines = [line.strip() for line in source.splitlines() if line.strip().startswith("#|")]
    return {line[2:].strip() for line in lines}


def notebook_paths(names: list[str]) -> list[Path]:
    """The notebooks with these names ("01_chain", "3_crf/01_chain", or a part of the house such as
    "3_crf"), or all of them in order."""
    paths = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if not HIDDEN & set(path.parts))
    paths.sort(key=lambda path: path.stem == "index")
    if not names:
        return paths
    wanted = {name: Path(name).with_suffix("").parts for name in names}
    found = {
        name: [path for path in paths if is_named(path.relative_to(NOTEBOOKS), parts)]
        for name, parts in wanted.items()
    }
    if missing := [name for name in names if not found[name]]:
        raise SystemExit(f"no notebook is named {', '.join(missing)}")
    return [path for path in paths if any(path in group for group in found.values())]


def is_named(path: Path, parts: tuple[str, ...]) -> bool:
    "Do these parts of a name fit a notebook, from its end or from its folder?"
    whole = path.with_suffix("").parts
    return whole[-len(parts) :] == parts or whole[: len(parts)] == parts


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what differs from run to run: execution counts, cell metadata, the kernel's details,
    outputs on stderr, progress bars.
    """
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [
            out
            for out in cell.outputs
            if out.get("name") != "stderr" and WIDGET not in out.get("data", {})
        ]
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = None
            if "metadata" in output:
                output["metadata"] = nbformat.from_dict({})


def run(path: Path) -> float:
    "Run one notebook from an empty state and write its outputs; the seconds it took."
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            cell.outputs = []
            if not {"eval: false", "slow"} & directives(cell.source):
                client.execute_cell(cell, index)
    clean(notebook)
    nbformat.write(notebook, path)
    return time.monotonic() - began


def code_lines(cell: nbformat.NotebookNode) -> list[str]:
    "The lines that the page shows as code: of a code cell, or of the fenced blocks of a text."
    if cell.cell_type == "code":
        return [line for line in cell.source.splitlines() if not line.startswith("#|")]
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", cell.source, re.DOTALL | re.MULTILINE)
    return [line for block in fenced for line in block.splitlines()]


def faults(path: Path) -> list[str]:
    "What a reviewer would refuse in one notebook, a line each."
    notebook = nbformat.read(path, as_version=4)
    found = []
    size = path.stat().st_size
    if size > LARGEST_FILE:
        found.append(
            f"{path.relative_to(NOTEBOOKS)}: {size:,} bytes, more than {LARGEST_FILE:,}: make its outputs smaller"
        )
    if dict(notebook.metadata) != KERNEL:
        found.append(
            f"{path.relative_to(NOTEBOOKS)}: metadata other than the kernel's name: run tools/notebooks.py run {path.stem}"
        )
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) != len(ids):
        found.append(f"{path.relative_to(NOTEBOOKS)}: two cells share an id")
    for number, cell in enumerate(notebook.cells):
        place = f"{path.relative_to(NOTEBOOKS)}, cell {number} ({cell.get('id')})"
        if cell.metadata:
            found.append(f"{place}: cell metadata {dict(cell.metadata)}")
        wide = [len(line) for line in code_lines(cell) if len(line) > LONGEST_LINE]
        if wide:
            found.append(f"{place}: a line of {wide[0]} characters, more than {LONGEST_LINE}")
        if cell.cell_type != "code":
            continue
        lines = cell.source.count("\n") + 1
        if lines > LONGEST_CELL:
            found.append(f"{place}: {lines} lines, more than {LONGEST_CELL}: split it")
        if cell.execution_count is not None:
            found.append(f"{place}: an execution count")
        pictures = any("image/png" in out.get("data", {}) for out in cell.outputs)
        described = any(each.startswith("fig-alt:") for each in directives(cell.source))
        if described and not pictures:
            found.append(f"{place}: fig-alt without its picture: run the notebook again")
        if pictures and not described:
            found.append(f'{place}: a picture without words for it: begin with #| fig-alt: "..."')
        if any(out.get("name") == "stderr" for out in cell.outputs):
            found.append(f"{place}: output on stderr")
        if any(WIDGET in out.get("data", {}) for out in cell.outputs):
            found.append(f"{place}: a progress bar: run tools/notebooks.py run {path.stem}")
        for text in (cell.source, *map(str, cell.outputs)):
            match = MACHINE_PATH.search(text)
            if match:
                found.append(f"{place}: a path of one machine: {match.group()}")
                break
    return found


def main(argv: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "check"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(argv)
    paths = notebook_paths(options.names)
    if options.action == "check":
        found = [fault for path in paths for fault in faults(path)]
        if not options.names and len(paths) < FEWEST:
            found.append(f"{len(paths)} notebooks seen, expected at least {FEWEST}")
        print("\n".join(found) or f"{len(paths)} notebooks are clean")
        return 1 if found else 0
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.pop("MPLBACKEND", None)  # a backend without a screen shows no pictures in the page
    for path in paths:
        print(f"{path.relative_to(NOTEBOOKS)}: {run(path):.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the notebooks in a real Jupyter kernel and write their outputs, or check that nothing unclean
is in them.

python tools/notebooks.py run [NAME ...]     run from an empty state, write outputs, say how long each took
python tools/notebooks.py check              refuse unclean metadata, machine paths, long cells, large files
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
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
LONGEST_CELL = 100
LARGEST_FILE = 150_000
MACHINE_PATH = re.compile(r"(?:/(?:root|home|Users|tmp|work|var/folders)/|[A-Z]:\\\\Users)[\w.-]*")


def directives(source: str) -> set[str]:
    "The nbdev directives at the top of a code cell."
    lines = [line.strip() for line in source.splitlines() if line.strip().startswith("#|")]
    return {line[2:].strip() for line in lines}


def notebook_paths(names: list[str]) -> list[Path]:
    "The notebooks with these names (with or without suffix), or all of them in order."
    if names:
        return [NOTEBOOKS / (Path(name).stem + ".ipynb") for name in names]
    return sorted(NOTEBOOKS.glob("*.ipynb"), key=lambda path: (path.stem == "index", path.stem))


def clean(notebook: nbformat.NotebookNode) -> None:
    """Remove what differs from run to run: execution counts, cell metadata, the kernel's details,
    outputs on stderr.
    """
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
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
        resources={"metadata": {"path": str(NOTEBOOKS)}},
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


def faults(path: Path) -> list[str]:
    "What a reviewer would refuse in one notebook, a line each."
    notebook = nbformat.read(path, as_version=4)
    found = []
    size = path.stat().st_size
    if size > LARGEST_FILE:
        found.append(
            f"{path.name}: {size:,} bytes, more than {LARGEST_FILE:,}: make its outputs smaller"
        )
    if dict(notebook.metadata) != KERNEL:
        found.append(
            f"{path.name}: metadata other than the kernel's name: run tools/notebooks.py run {path.stem}"
        )
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) != len(ids):
        found.append(f"{path.name}: two cells share an id")
    for number, cell in enumerate(notebook.cells):
        place = f"{path.name}, cell {number} ({cell.get('id')})"
        if cell.metadata:
            found.append(f"{place}: cell metadata {dict(cell.metadata)}")
        if cell.cell_type != "code":
            continue
        lines = cell.source.count("\n") + 1
        if lines > LONGEST_CELL:
            found.append(f"{place}: {lines} lines, more than {LONGEST_CELL}: split it")
        if cell.execution_count is not None:
            found.append(f"{place}: an execution count")
        if any(out.get("name") == "stderr" for out in cell.outputs):
            found.append(f"{place}: output on stderr")
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
        print("\n".join(found) or f"{len(paths)} notebooks are clean")
        return 1 if found else 0
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    for path in paths:
        print(f"{path.name}: {run(path):.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

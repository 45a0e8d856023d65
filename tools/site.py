"""Build the site from the notebooks: cells that only import are folded, nbdev's directives go.

python tools/site.py            into _docs/, a warning is an error
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
FOLDED = ["#| code-fold: true", "#| code-summary: imports"]


def only_imports(code: str) -> bool:
    "Does a cell do nothing but import?"
    try:
        statements = ast.parse(code).body
    except SyntaxError:
        return False
    return bool(statements) and all(isinstance(x, ast.Import | ast.ImportFrom) for x in statements)


def for_the_page(source: str) -> str:
    "A code cell as the page shows it: with Quarto's options (`#| key: value`) and no others."
    lines = source.splitlines()
    options = [line for line in lines if line.startswith("#|") and ":" in line]
    code = [line for line in lines if not line.startswith("#|")]
    folded = FOLDED if only_imports("\n".join(code)) else []
    return "\n".join([*options, *folded, *code])


def prepare(source: Path, target: Path) -> None:
    "Copy the notebooks' folder, each notebook as its page shows it."
    unwanted = shutil.ignore_patterns("_docs", "api", ".ipynb_checkpoints", "_quarto.yml")
    shutil.copytree(source, target, ignore=unwanted)
    shutil.copy(ROOT / "_quarto.yml", target)
    for path in target.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = for_the_page(cell.source)
        nbformat.write(notebook, path)


def main() -> int:
    "Build; the exit code."
    built = ROOT / "_docs"
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "nbs"
        prepare(ROOT / "nbs", pages)
        smalldocs = shutil.which("smalldocs", path=str(BIN)) or "smalldocs"
        subprocess.run([smalldocs, "api", "build", "--dir", pages], cwd=ROOT, check=True)
        subprocess.run([smalldocs, "render", "--strict", "--quiet", pages], cwd=ROOT, check=True)
        shutil.rmtree(built, ignore_errors=True)
        shutil.move(pages / "_docs", built)
    return 0


if __name__ == "__main__":
    sys.exit(main())

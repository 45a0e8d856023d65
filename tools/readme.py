"""Write README.md from nbs/index.ipynb, or (with --check) say whether it is what the notebook
gives.

The table of chapters in the index is written from the titles of the notebooks, in the order of the
site's sidebar; that of encoders from tests/encoder_table.json.

Markdown cells are taken as they are; code cells become fenced code with their text output below. A
cell that starts with `#| include: false` is left out.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
INDEX = NOTEBOOKS / "index.ipynb"
FAMILIES = ROOT / "tests" / "encoder_table.json"
FEWEST_CHAPTERS = 35


def chapters() -> str:
    "The table of chapters: a linked title and what the chapter is about, from its first cell."
    rows = ["| chapter | what it is about |", "| --- | --- |"]
    for section in yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"][
        "sidebar"
    ]["contents"]:
        if isinstance(section, str):
            continue
        rows.append(f"| **{section['section']}** | |")
        for path in sorted(NOTEBOOKS.glob(section["contents"])):
            title, about = heading(path)
            rows.append(f"| [{title}]({path.relative_to(NOTEBOOKS)}) | {about} |")
    return "\n".join(rows)


def heading(path: Path) -> tuple[str, str]:
    "The title of a notebook and the line below it."
    first = nbformat.read(path, as_version=4).cells[0].source.splitlines()
    about = [line for line in first if line.startswith("> ")]
    if not first[0].startswith("# ") or len(about) != 1:
        raise SystemExit(f"{path}: expected a title, `# ...`, and one line about it, `> ...`")
    return first[0].removeprefix("# "), about[0].removeprefix("> ")


def families() -> str:
    "The families of encoders by how their windows are batched, and those that are refused."
    table = json.loads(FAMILIES.read_text(encoding="utf-8"))
    places = {
        "anywhere": "padding anywhere",
        "on the right": "padding on the right",
        "equal lengths": "in equal lengths",
        None: "refused, in one sentence",
    }
    groups = {place: [] for place in places}
    for name, row in table["families"].items():
        groups[row.get("padding")].append(name)
    rows = [f"| families, transformers {table['versions']['transformers']} | |", "| --- | --- |"]
    for place, names in groups.items():
        rows.append(f"| {places[place]}: {len(names)} | {', '.join(sorted(names))} |")
    return "\n".join(rows)


def with_tables(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The index with the tables of chapters and of encoders as they are now."
    for start, write in {"| chapter |": chapters, "| families": families}.items():
        tables = [cell for cell in notebook.cells if cell.source.startswith(start)]
        if len(tables) != 1:
            raise SystemExit(f"{INDEX}: expected one cell with a table that begins with {start}")
        tables[0].source = write()
    return notebook


def output_text(output: nbformat.NotebookNode) -> str:
    "The plain text of one output; pictures are for the site only."
    if output.output_type == "stream":
        return "".join(output.text)
    return "".join(output.get("data", {}).get("text/plain", ""))


def render(notebook: nbformat.NotebookNode) -> str:
    "The Markdown of one notebook, its links from the root of the repository."
    parts = ["<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"]
    for cell in notebook.cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\]\(([\w/]+\.ipynb)", r"](nbs/\1", source))
        elif cell.cell_type == "code" and not source.startswith("#| include: false"):
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            parts.append(f"```python\n{code}\n```")
            text = "".join(map(output_text, cell.outputs)).rstrip()
            if text:
                parts.append("\n".join("    " + line if line else "" for line in text.splitlines()))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    "The command line."
    before = INDEX.read_text(encoding="utf-8")
    notebook = with_tables(nbformat.reads(before, as_version=4))
    after, readme = nbformat.writes(notebook) + "\n", ROOT / "README.md"
    wanted = render(notebook)
    if "--check" in sys.argv[1:]:
        if before != after or readme.read_text(encoding="utf-8") != wanted:
            print("README.md is not what the notebooks give: run python tools/readme.py")
            return 1
        rows = sum(".ipynb" in line for line in wanted.splitlines())
        print(f"README.md equals the index notebook and names {rows} chapters")
        return 0 if rows >= FEWEST_CHAPTERS else 1
    INDEX.write_text(after, encoding="utf-8")
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write README.md from nbs/index.ipynb, or (with --check) say whether it is what the notebook gives.

Markdown cells are taken as they are; code cells become fenced code with their text output below. A
cell that starts with `#| include: false` is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def output_text(output: nbformat.NotebookNode) -> str:
    "The plain text of one output; pictures are for the site only."
    if output.output_type == "stream":
        return "".join(output.text)
    return "".join(output.get("data", {}).get("text/plain", ""))


def render(path: Path) -> str:
    "The Markdown of one notebook."
    parts = ["<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"]
    for cell in nbformat.read(path, as_version=4).cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            parts.append(source)
        elif cell.cell_type == "code" and not source.startswith("#| include: false"):
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            parts.append(f"```python\n{code}\n```")
            text = "".join(map(output_text, cell.outputs)).rstrip()
            if text:
                parts.append("\n".join("    " + line if line else "" for line in text.splitlines()))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    "The command line."
    wanted, readme = render(ROOT / "nbs" / "index.ipynb"), ROOT / "README.md"
    if "--check" in sys.argv[1:]:
        if not readme.exists() or readme.read_text(encoding="utf-8") != wanted:
            print("README.md is not what nbs/index.ipynb gives: run python tools/readme.py")
            return 1
        print("README.md equals the index notebook")
        return 0
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

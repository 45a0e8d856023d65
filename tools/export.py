"""Write the modules of the package from the notebooks: nbdev's export with warnings as errors, then
absolute imports (nbdev makes those relative that stand on one line).

python tools/export.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ABSOLUTE = 'lint.flake8-tidy-imports.ban-relative-imports="all"'


def program(name: str) -> str:
    "A program of this environment, or of the PATH."
    return shutil.which(name, path=str(BIN)) or name


def main() -> int:
    "Export, then rewrite the imports; the exit code."
    export = [sys.executable, "-W", "error::UserWarning", program("nbdev_export")]
    rewrite = [program("ruff"), "check", "--isolated", "--select", "TID252", "--config", ABSOLUTE]
    subprocess.run(export, cwd=ROOT, check=True)
    subprocess.run([*rewrite, "--fix", "--unsafe-fixes", "--quiet", "nercrf"], cwd=ROOT, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

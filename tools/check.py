"""Everything that CI checks, in its order; stops at the first step that fails.

python tools/check.py             all steps
python tools/check.py ruff docs   only these
python tools/check.py slow_tests  the long tests, which are no part of the others
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def call(*command: str | Path, cwd: Path = ROOT) -> None:
    "Run one command of this environment; a failure ends the check."
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def notebooks_clean() -> None:
    """The notebooks hold nothing that differs from run to run, and nbdev's own cleaner has nothing to do."""
    call(sys.executable, "tools/notebooks.py", "check")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns("_docs", "api"))
        shutil.copy(ROOT / "settings.ini", copy)
        call("nbdev_clean", "--fname", "nbs", cwd=copy)
        unclean = [
            path.name
            for path in (ROOT / "nbs").glob("*.ipynb")
            if path.read_bytes() != (copy / "nbs" / path.name).read_bytes()
        ]
    if unclean:
        raise SystemExit(f"nbdev_clean changes {', '.join(unclean)}: run nbdev_clean and commit")


def modules_exported() -> None:
    "A fresh export, with warnings as errors, gives exactly the modules of the package."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns("_docs", "api"))
        (copy / "nercrf").mkdir()
        for kept in ("settings.ini", "nercrf/py.typed", "nercrf/__init__.py"):
            shutil.copy(ROOT / kept, copy / kept)
        call(sys.executable, "-W", "error::UserWarning", BIN / "nbdev_export", cwd=copy)
        fresh = {path.name for path in (copy / "nercrf").iterdir() if path.is_file()}
        here = {path.name for path in (ROOT / "nercrf").iterdir() if path.is_file()}
        _, changed, missing = filecmp.cmpfiles(
            ROOT / "nercrf", copy / "nercrf", fresh & here, shallow=False
        )
    wrong = sorted((fresh ^ here) | set(changed) | set(missing))
    if wrong:
        raise SystemExit(
            f"not what the notebooks export: {', '.join(wrong)}: run nbdev_export, remove stale modules"
        )
    print(f"{len(here)} files of nercrf/ equal a fresh export")


def readme() -> None:
    "README.md is what the index notebook gives."
    call(sys.executable, "tools/readme.py", "--check")


def ruff() -> None:
    "The linter over the package, the tests and the tools."
    call("ruff", "check", "nercrf", "tests", "tools", "benchmarks")
    call("ruff", "format", "--check", "nbs", "tests", "tools", "benchmarks")


def notebooks_run() -> None:
    "Every notebook runs."
    call("nbdev_test", "--n_workers", "0")


def docs() -> None:
    "The site builds without a warning, its API reference included."
    call("smalldocs", "api", "build", "--dir", "nbs")
    call("smalldocs", "render", "--strict", "--quiet", "nbs")


def docments() -> None:
    "Every public name has a docstring, and every public parameter its docment."
    call(sys.executable, "tools/docments.py")


def tests() -> None:
    "The test suite, with the coverage of the package."
    call("pytest", "-n", "2", "--cov=nercrf", "--cov-report=term")


def slow_tests() -> None:
    "The tests that are marked slow."
    call("pytest", "-n", "2", "-m", "slow", "--durations=0")


ORDINARY = (notebooks_clean, modules_exported, readme, ruff, notebooks_run, docs, docments, tests)
STEPS = {step.__name__: step for step in (*ORDINARY, slow_tests)}


def main(names: list[str]) -> int:
    "Run the named steps, or all that CI runs."
    unknown = set(names) - set(STEPS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; the steps are {', '.join(STEPS)}")
    for name in names or [step.__name__ for step in ORDINARY]:
        began = time.monotonic()
        print(f"== {name}: {STEPS[name].__doc__}", flush=True)
        try:
            STEPS[name]()
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"== {name} failed with exit code {error.returncode}") from None
        print(f"== {name}: passed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Everything that CI checks, in its order; stops at the first step that fails.

python tools/check.py             all steps
python tools/check.py ruff docs   only these
python tools/check.py slow_tests  the long tests, which are no part of the others
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
IGNORED = shutil.ignore_patterns("_docs", "_site", "api", ".ipynb_checkpoints")

# fewer than these: a step has looked in the wrong place
FEWEST_NOTEBOOKS = 35
FEWEST_FILES = 40
FEWEST_FORMATTED = 85
FEWEST_TESTS = 1700


def at_least(count: int, fewest: int, what: str) -> None:
    "Say how many a step has seen, and fail where they are too few to be all."
    print(f"{count} {what}", flush=True)
    if count < fewest:
        raise SystemExit(f"expected at least {fewest} {what}: has the step seen them all?")


def call(*command: str | Path, cwd: Path = ROOT) -> None:
    "Run one command of this environment; a failure ends the check."
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment(), check=True)


def read(*command: str | Path, cwd: Path = ROOT) -> str:
    "Run one command of this environment; what it wrote, which is shown too."
    words = [str(part) for part in command]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    finished = subprocess.run(words, cwd=cwd, env=environment(), text=True, check=False, **both)
    print(finished.stdout, end="", flush=True)
    finished.check_returncode()
    return finished.stdout


def environment() -> dict[str, str]:
    "What every step sees: the programs of this environment, no network, no screen."
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }


def notebooks_clean() -> None:
    """The notebooks hold nothing that differs from run to run, and nbdev's own cleaner has nothing to do."""
    call(sys.executable, "tools/notebooks.py", "check")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=IGNORED)
        shutil.copy(ROOT / "settings.ini", copy)
        call("nbdev_clean", "--fname", "nbs", cwd=copy)
        notebooks = sorted(path.relative_to(copy) for path in (copy / "nbs").rglob("*.ipynb"))
        unclean = [
            str(path)
            for path in notebooks
            if (ROOT / path).read_bytes() != (copy / path).read_bytes()
        ]
    if unclean:
        raise SystemExit(f"nbdev_clean changes {', '.join(unclean)}: run nbdev_clean and commit")
    at_least(len(notebooks), FEWEST_NOTEBOOKS, "notebooks left as they are by nbdev_clean")


# of the page of a report, which no notebook writes
REPORT_FILES = ("report_page.html", "report_page.css", "report_page.js", "report_schema.json")


def package_files(root: Path) -> set[Path]:
    "The files of the package under a root, without what Python writes beside them."
    files = (path for path in (root / "nercrf").rglob("*") if path.is_file())
    return {path.relative_to(root) for path in files if "__pycache__" not in path.parts}


def modules_exported() -> None:
    "A fresh export, with warnings as errors, gives exactly the modules of the package."
    here = package_files(ROOT)
    by_hand = ("__init__.py", "py.typed", *REPORT_FILES)
    written_by_hand = [path for path in here if path.name in by_hand]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=IGNORED)
        for kept in (Path("settings.ini"), Path("tools/export.py"), *written_by_hand):
            (copy / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / kept, copy / kept)
        call(sys.executable, copy / "tools" / "export.py", cwd=copy)
        fresh = package_files(copy)
        _, changed, missing = filecmp.cmpfiles(ROOT, copy, fresh & here, shallow=False)
    wrong = sorted(map(str, {*(fresh ^ here), *changed, *missing}))
    if wrong:
        raise SystemExit(
            f"not what the notebooks export: {', '.join(wrong)}: run python tools/export.py, "
            "remove stale modules"
        )
    at_least(len(here), FEWEST_FILES, "files of nercrf/ equal a fresh export")


def readme() -> None:
    "README.md is what the index notebook gives."
    call(sys.executable, "tools/readme.py", "--check")


def ruff() -> None:
    "The linter over the package, the tests and the tools; the formatter over notebooks, too."
    call("ruff", "check", "nercrf", "tests", "tools", "benchmarks")
    formatted = read("ruff", "format", "--check", "nbs", "tests", "tools", "benchmarks")
    count = re.search(r"(\d+) files already formatted", formatted)
    at_least(int(count.group(1)) if count else 0, FEWEST_FORMATTED, "files are formatted")


def notebooks_run() -> None:
    "Every notebook runs, two at a time."
    shown = read("nbdev_test", "--n_workers", "2", "--do_print")
    at_least(shown.count("- Completed "), FEWEST_NOTEBOOKS, "notebooks ran")


def docs() -> None:
    "The site builds without a warning, its API reference included."
    call(sys.executable, "tools/site.py")
    pages = [path for path in (ROOT / "_docs").rglob("*.html") if "api" not in path.parts]
    at_least(len(pages), FEWEST_NOTEBOOKS, "pages of the site, the reference not counted")


def docments() -> None:
    "Every public name has a docstring, and every public parameter its docment."
    call(sys.executable, "tools/docments.py")


def tests() -> None:
    "The test suite, with the coverage of the package; properties are tried on the same inputs each time."
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["pytest", "-n", "2", "--hypothesis-profile=ci"]
        call(*command, "--cov=nercrf", "--cov-report=term", f"--junitxml={report}")
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {name: sum(int(suite.get(name)) for suite in suites) for name in ("tests", "skipped")}
    at_least(count["tests"] - count["skipped"], FEWEST_TESTS, "tests passed")


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

"""The package as users install it: built from the checkout and from the sdist, without the
development packages.
"""

import configparser
import gc
import os
import subprocess
import sys
import tarfile
import weakref
import zipfile
from pathlib import Path

import pytest

from nercrf import importing, lazy_names

ROOT = Path(__file__).resolve().parent.parent
DEVELOPMENT = (
    "nbdev",
    "execnb",
    "IPython",
    "ipykernel",
    "nbformat",
    "nbclient",
    "seqeval",
    "smalldocs",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "checkout"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if files.returncode:
        pytest.skip("the package is built from what git tracks, and this is no git checkout")
    for name in filter(None, files.stdout.split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_wheel_holds_the_package_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        text = archive.read(metadata).decode()
    files = [path for path in (ROOT / "nercrf").rglob("*") if path.is_file()]
    here = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert names == here
    assert len(here) > 40
    assert "nercrf/py.typed" in names
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    assert f"Version: {settings['DEFAULT']['version']}" in text
    required = [
        line.split()[1].split(">")[0]
        for line in text.splitlines()
        if line.startswith("Requires-Dist")
    ]
    plain = [
        line
        for line in text.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert "torch" in required
    assert len(plain) == len(settings["DEFAULT"]["requirements"].split())
    assert not [line for line in plain if any(name.lower() in line.lower() for name in DEVELOPMENT)]


def test_sdist_holds_what_its_build_needs(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {
        "settings.ini",
        "setup.py",
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "nercrf/py.typed",
    } <= names


def test_every_module_imports_without_the_development_packages(built, tmp_path):
    """The wheel alone, in a process that refuses to import nbdev and its like, far from the checkout."""
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    modules = sorted(
        ".".join(path.relative_to(tmp_path / "site").with_suffix("").parts)
        for path in (tmp_path / "site" / "nercrf").rglob("*.py")
        if path.stem not in ("__init__", "_modidx")
    )
    assert len(modules) > 30
    code = f"""
import importlib, sys
sys.path.insert(0, {str(tmp_path / "site")!r})
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {DEVELOPMENT!r}:
            raise ModuleNotFoundError("development package: " + name, name=name)
sys.meta_path.insert(0, Refuse())
import nercrf
assert "torch" not in sys.modules, "import nercrf imports torch"
assert nercrf.__file__.startswith({str(tmp_path)!r}), nercrf.__file__
for name in {modules!r}:
    importlib.import_module(name)
from nercrf.cli import main
try:
    main(["--version"])
except SystemExit as end:
    assert end.code == 0
"""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("nercrf ")


def test_labels_and_data_need_no_torch():
    code = "import sys, nercrf.labels, nercrf.data.examples, nercrf.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode
        == 0
    )


def test_a_name_that_is_fetched_leaves_the_collector_as_it_was():
    """Importing pauses it; nothing is taken out of its sight, which would be the program's to say."""
    fetch, _ = lazy_names("nercrf", {"Span": "labels", "Nothing": "no_such_module"})
    frozen = gc.get_freeze_count()
    try:
        for set_collector, is_on in ((gc.disable, False), (gc.enable, True)):
            set_collector()
            assert fetch("Span").__name__ == "Span"
            with pytest.raises(ModuleNotFoundError):
                fetch("Nothing")
            assert gc.isenabled() == is_on
    finally:
        gc.enable()
    assert gc.get_freeze_count() == frozen


def test_what_was_imported_is_old_and_still_searched():
    """Objects of an import are not looked at again as young ones, and garbage among them goes."""

    class Knot:
        pass

    frozen = gc.get_freeze_count()
    with importing():
        knot = Knot()
        knot.itself, place = knot, weakref.ref(knot)
    assert any(each is knot for each in gc.get_objects(generation=2))
    del knot
    assert place() is not None
    gc.collect()
    assert place() is None
    assert gc.get_freeze_count() == frozen


def test_what_a_program_has_frozen_stays_so():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with importing():
            kept = [[]]
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()
    assert kept == [[]]


UNUSED = ("matplotlib", "pandas", "peft", "datasets", "sklearn", "IPython", "ray", "pyarrow")


def test_a_command_imports_what_it_needs_and_keeps_it(model, tmp_path):
    """`nercrf predict` in a process of its own: no plots, and nobody looks for garbage in modules."""
    code = f"""
import gc, sys
sys.argv[1:] = ["predict", {str(model)!r}, "-", "--no_cuda"]
from nercrf.cli import main
code = main()
print(code, [x for x in {UNUSED!r} if x in sys.modules], gc.isenabled(), file=sys.stderr)
print(gc.get_freeze_count() > 100_000, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        input="Ada Moor lives in Oslo.\n",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.splitlines()[-2:] == ["0 [] True", "True"], done.stderr
    assert "Oslo" in done.stdout

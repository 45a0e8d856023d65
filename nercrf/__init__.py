__version__ = "0.1.0"

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec


@contextmanager
def importing() -> Iterator[None]:
    """Inside, nobody looks for garbage: torch and transformers make a million objects that stay.

    Behind it they are old, so that they are searched when all is, and not three times before.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def lazy_names(
    package: str,  # `__name__` of the package
    places: dict[str, str],  # module of each name, below the package
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:  # `__getattr__` and `__dir__`
    """The face of a package (PEP 562): names are fetched from its modules when they are used, so
    that importing a package costs nothing and a module without torch stays without it."""

    def fetch(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with importing():
            module = import_module(f"{package}.{places[name]}")
        return getattr(module, name)

    return fetch, lambda: sorted(places)


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CRF": "crf.layer",
        "OperatingPoint": "crf.operating_points",
        "Tagger": "tagging.tagger",
        "evaluate": "evaluation.evaluator",
        "explain": "tagging.answers",
        "read_corpus": "data.corpus",
        "train": "training.trainer",
    },
)


_PIPELINES, _OURS = "transformers.pipelines", "nercrf.tagging.pipeline"


class _BesidePipelines:
    """Imports our pipeline right after those of transformers, so that `transformers.pipeline` knows
    our models after `import nercrf`, which itself imports neither transformers nor torch."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _PIPELINES:
            return None
        sys.meta_path.remove(cls)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_both(module: object) -> None:
            execute(module)
            import_module(_OURS)

        spec.loader.exec_module = execute_both
        return spec


if _PIPELINES in sys.modules:
    import_module(_OURS)
else:
    sys.meta_path.insert(0, _BesidePipelines)

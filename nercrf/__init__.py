__version__ = "0.1.0"

from collections.abc import Callable
from importlib import import_module


def lazy_names(
    package: str,  # `__name__` of the package
    places: dict[str, str],  # module of each name, below the package
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:  # `__getattr__` and `__dir__`
    """The face of a package (PEP 562): names are fetched from its modules when they are used, so
    that importing a package costs nothing and a module without torch stays without it."""

    def fetch(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return fetch, lambda: sorted(places)


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CRF": "crf.layer",
        "Tagger": "tagging.tagger",
        "evaluate": "evaluation.evaluator",
        "read_corpus": "data.corpus",
        "train": "training.trainer",
    },
)

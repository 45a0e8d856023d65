"""Labelled sentences: formats, corpora, checks, conversion."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Example": "examples",
        "open_corpus": "corpus",
        "read_corpus": "corpus",
        "read_examples": "formats",
        "write_examples": "formats",
    },
)

"""The tagger that people take home."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Entity": "tagger",
        "Tagged": "tagger",
        "Tagger": "tagger",
        "explain": "answers",
        "quantized_tagger": "tagger",
        "tag_file": "output",
        "tag_stream": "tagger",
    },
)

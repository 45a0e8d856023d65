"""From labelled sentences to batches of word pieces, and the cache between."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FeatureDataset": "batches",
        "Features": "conversion",
        "convert_examples_to_features": "conversion",
    },
)

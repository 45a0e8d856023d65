"""The linear-chain CRF: sums, maxima and probabilities over tag sequences."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CRF": "layer",
        "TagChain": "distribution",
        "BestPaths": "decoding",
        "OperatingPoint": "operating_points",
        "Scores": "chain",
    },
)

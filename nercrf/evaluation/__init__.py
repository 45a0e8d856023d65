"""Entity scores, and a model over a data set."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Evaluation": "evaluator",
        "evaluate": "evaluator",
        "predict_batches": "evaluator",
        "report": "metrics",
        "score_spans": "metrics",
    },
)

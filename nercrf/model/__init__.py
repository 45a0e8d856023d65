"""An encoder with a CRF over words."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NerCrfConfig": "modeling",
        "NerCrfForTokenClassification": "modeling",
        "SmallEncoderConfig": "small_encoder",
        "build_tokenizer": "vocabulary",
        "load_encoder": "loading",
    },
)

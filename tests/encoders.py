"""Encoder families as tiny random models, each with a tokenizer of the family's own class that is
trained here: what users bring, without a download.

`make_family(name, folder)` writes a folder as `save_pretrained` does; `FAMILIES` says what there is.
Left out are names that transformers 5.23 no longer has (ernie_m, nezha, retribert, qdqbert), and
RWKV, which it can't train without a kernel of its own, and RoCBert, whose tokenizer gives shapes and
sounds of characters beside their ids.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# What the tokenizers are trained on: sentences with names, Chinese, and what breaks tokenizers.
TEXT = """\
Anna Petrova went to the station in Lisbon and met Jonas of the North Sea Company there .
On Monday the bank of Zurich said that it would not open its house in New York before May 2031 .
The mayor of Oslo , Ms Quilby , visited Berlin , Paris , Rome and Madrid with the Red Cross .
She wrote to her house at 12 Baker Street : " no trains , no ferries , no flights ! "
José García-Márquez drank a café crème in Besançon ; naïve Zoë ate Brötchen near Düsseldorf .
Dr. O'Neill's e-mail ( anna@example.org ) cost $ 3.50 , or 2,75 € , i.e. 10 % of the price .
The United Nations and the European Union sent their people to Geneva and to Nairobi .
He does n't know whether they 've seen the internationalisation of Microchips GmbH .
王小明在北京大学学习 , 他的老师李华住在上海市浦东新区 。
国籍汉族 , 一九七一年出生 , 高级工程师 , 现任中国石油公司董事长兼总经理 。
东京 の 会社 は 大きい です 。 Анна живёт в Москве . Η Άννα μένει στην Αθήνα .
مرحبا بالعالم من القاهرة . नमस्ते दुनिया . สวัสดี ชาวโลก . ❤️ 🙂 👩‍👩‍👧 🇨🇭 ﬁne ＡＢＣ １２３ .
"""
# Words as they come out of files, sentence by sentence: the running text is " ".join(words).
SENTENCES = [
    ["Anna", "went", "to", "the", "house", "in", "Lisbon", "."],
    ["house"],
    ["The", "bank", "of", "Zurich", "does", "n't", "open", ",", "said", "O'Neill", "!"],
    ["José", "García-Márquez", "met", "Zoë", "in", "Besançon", ";", "naïve", "café", "$", "3.50"],
    ["王小明", "在", "北京大学", "学习", "。"],
    ["国", "籍", "汉", "族", "，", "高", "级", "工", "程", "师", "。"],
    ["Quilby", "zyzzyva", "internationalisation", "anna@example.org", "(", "12", ")"],
    ["🙂", "👩‍👩‍👧", "ﬁne", "ＡＢＣ", "Анна", "مرحبا", "नमस्ते", "สวัสดี", "é", "№"],
]
VOCABULARY = 420  # pieces at most, before what a class adds
POSITIONS = 96  # pieces that the encoders with a table of positions take


class Family(NamedTuple):
    """How a family of encoders is made."""

    tokenizer: Callable[[], PreTrainedTokenizerBase]  # trained on `TEXT`
    sizes: Mapping[str, Any] = MappingProxyType(
        {}
    )  # of its configuration, beside or in place of `SIZES`
    model_type: str | None = None  # as transformers calls it; None: as the family
    model: str | None = None  # class of the model, where the type has several


# ---------------------------------------------------------------------------- tokenizers


def trained(name: str, **options: Any) -> Callable[[], PreTrainedTokenizerBase]:
    """A tokenizer of a class of transformers, with the pipeline of the class and pieces of `TEXT`."""

    @cache
    def build() -> PreTrainedTokenizerBase:
        empty = getattr(transformers, name)(**copy.deepcopy(options))
        tokenizer = empty.train_new_from_iterator(
            TEXT.splitlines(), VOCABULARY, show_progress=False
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    return build


class _Pipeline(NamedTuple):
    """A tokenizer.json that no class of transformers makes: it is the file alone that counts."""

    model: Any  # of the tokenizers library, empty
    pre_tokenizer: Any
    normalizer: Any = None
    template: str | None = None  # "[CLS] $A [SEP]"
    special: Mapping[str, str] = MappingProxyType({})  # bos_token, ... -> text
    names: tuple[str, ...] = ("input_ids", "attention_mask")

    def build(self) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(self.model())
        tokenizer.pre_tokenizer = self.pre_tokenizer
        if self.normalizer is not None:
            tokenizer.normalizer = self.normalizer
        empty = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_input_names=list(self.names), **self.special
        )
        fast = empty.train_new_from_iterator(TEXT.splitlines(), VOCABULARY, show_progress=False)
        if self.template is not None:
            known = [item for item in self.template.split() if not item.startswith("$")]
            fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=self.template,
                special_tokens=[(item, fast.convert_tokens_to_ids(item)) for item in set(known)],
            )
        return fast


def byte_level(cut: str | None = None, template: str | None = None, **special: str):
    """Byte-level BPE as tokenizer.json of newer models has it; `cut` splits before the bytes."""

    @cache
    def build() -> PreTrainedTokenizerFast:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)]
        if cut is not None:
            steps.insert(0, pre_tokenizers.Split(Regex(cut), "isolated"))
        return _Pipeline(
            models.BPE,
            pre_tokenizers.Sequence(steps),
            normalizers.NFC() if template and "[CLS]" in template else None,
            template,
            special,
        ).build()

    return build


def whole_words(template: str | None = None, lower: bool = False, **special: str):
    """BPE of words with an end mark, as fairseq and XLM write it, without their Python packages."""

    @cache
    def build() -> PreTrainedTokenizerFast:
        return _Pipeline(
            lambda: models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.Lowercase() if lower else None,
            template,
            {"unk_token": "<unk>", **special},
        ).build()

    return build


def sentencepiece_bpe(name: str | None = None, template: str | None = None, **special: str):
    """BPE of sentencepiece: blanks are a part of the text, pieces begin with one at most."""

    @cache
    def build() -> PreTrainedTokenizerBase:
        cut = pre_tokenizers.Split("▁", "merged_with_next")
        if name is None:
            tokenizer = _Pipeline(
                lambda: models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
                cut,
                normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                template,
                special,
            ).build()
            tokenizer.backend_tokenizer.pre_tokenizer = None
        else:  # the class cuts nothing: learn from words, or pieces span them
            empty = getattr(transformers, name)(**special)
            backend = empty.backend_tokenizer
            own = backend.pre_tokenizer
            backend.pre_tokenizer = cut if backend.normalizer else pre_tokenizers.Metaspace()
            tokenizer = empty.train_new_from_iterator(
                TEXT.splitlines(), VOCABULARY, show_progress=False
            )
            tokenizer.backend_tokenizer.pre_tokenizer = own
        return _with_bytes(tokenizer)

    return build


def _with_bytes(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Pieces for the bytes of unknown characters, as every such vocabulary has them."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    numbers = content["model"]["vocab"]
    for byte in range(256):
        numbers[f"<0x{byte:02X}>"] = len(numbers)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer


@cache
def pegasus() -> PreTrainedTokenizerBase:
    """The class looks for its unknown token behind the first piece, where training puts it."""
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask_1>", 0.0), ("<mask_2>", 0.0)]
    learned = json.loads(
        trained("AlbertTokenizer", do_lower_case=False)().backend_tokenizer.to_str()
    )
    known = {piece for piece, _ in first} | {"[CLS]", "[SEP]", "[MASK]"}
    others = [(p, score) for p, score in learned["model"]["vocab"] if p not in known]
    return transformers.PegasusTokenizer(vocab=first + others, offset=5)


def slow(name: str, write: Callable[[Path], dict[str, str]], **options: Any):
    """A tokenizer in Python, from the files of vocabulary that `write` makes."""

    @cache
    def build() -> PreTrainedTokenizerBase:
        # saving copies the files of some classes: they stay until Python ends
        folder = tempfile.TemporaryDirectory()
        tokenizer = getattr(transformers, name)(**write(Path(folder.name)), **options)
        tokenizer.kept = folder
        return tokenizer

    return build


def _fairseq_pieces() -> tuple[list[str], list[str]]:
    """Pieces as fairseq writes them ("wo@@", "rd") and the merges."""
    model = json.loads(whole_words()().backend_tokenizer.to_str())["model"]
    pieces = [piece for piece in model["vocab"] if piece != "<unk>"]
    written = [p.removesuffix("</w>") if p.endswith("</w>") else f"{p}@@" for p in pieces]
    return list(dict.fromkeys(written)), [" ".join(pair) for pair in model["merges"]]


def _fairseq_files(folder: Path) -> dict[str, str]:
    pieces, merges = _fairseq_pieces()
    vocabulary, rules = folder / "vocab.txt", folder / "bpe.codes"
    vocabulary.write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    rules.write_text("".join(f"{pair} 1\n" for pair in merges), encoding="utf-8")
    return {"vocab_file": str(vocabulary), "merges_file": str(rules)}


def _ctrl_files(folder: Path) -> dict[str, str]:
    pieces, merges = _fairseq_pieces()
    vocabulary, rules = folder / "vocab.json", folder / "merges.txt"
    numbered = {piece: number for number, piece in enumerate(["<unk>", *pieces])}
    vocabulary.write_text(json.dumps(numbered), encoding="utf-8")
    rules.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return {"vocab_file": str(vocabulary), "merges_file": str(rules)}


def _esm_files(folder: Path) -> dict[str, str]:
    path = folder / "vocab.txt"
    pieces = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>"]
    path.write_text("\n".join(pieces), encoding="utf-8")
    return {"vocab_file": str(path)}


# ---------------------------------------------------------------------------- families

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
_LLAMA = {"num_key_value_heads": 2, "head_dim": 8}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": POSITIONS}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4}
_GEMMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "vocab_size": VOCABULARY + 256,
}
_BOXES = {"coordinate_size": 4, "shape_size": 8, "input_size": 32, "patch_size": 16}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_NO_LAYERS = {"num_hidden_layers": None}  # None: the configuration refuses the name
_NO_TABLE = {"max_position_embeddings": None}
_ROBERTA = {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_BERT, _BPE, _XLMR = trained("BertTokenizer"), trained("RobertaTokenizer"), "XLMRobertaTokenizer"
_CASED = trained("BertTokenizer", do_lower_case=False)
_GPT = trained("GPT2Tokenizer")
_LINES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ENDS = {"bos_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "</s>"}
_MPNET = {"<s>": 0, "<pad>": 1, "</s>": 2, "[UNK]": 3, "<mask>": 4}  # its padding is always 1
_MODERN = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
_END_OF_TEXT = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}

FAMILIES: dict[str, Family] = {
    "bert": Family(_CASED),
    "bert (uncased)": Family(_BERT, model_type="bert"),
    "roberta": Family(_BPE, _ROBERTA),
    "roberta-prelayernorm": Family(_BPE, _ROBERTA),
    "xlm-roberta": Family(trained(_XLMR), _ROBERTA),
    "xlm-roberta-xl": Family(trained(_XLMR), _ROBERTA),
    "camembert": Family(trained("CamembertTokenizer"), _ROBERTA),
    "distilbert": Family(_BERT, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "albert": Family(trained("AlbertTokenizer"), {"embedding_size": 16}),
    "electra": Family(_BERT, {"embedding_size": 16}),
    "deberta": Family(
        trained("DebertaTokenizer"),
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "deberta-v2": Family(
        trained("DebertaV2Tokenizer"),
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    ),
    "mpnet": Family(
        trained("MPNetTokenizer", vocab=_MPNET), {"max_position_embeddings": POSITIONS + 2}
    ),
    "mobilebert": Family(
        trained("MobileBertTokenizer"),
        {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "squeezebert": Family(_BERT, {"embedding_size": 32}),
    "convbert": Family(_BERT, {"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3}),
    "funnel": Family(
        trained("FunnelTokenizer"),
        {
            **_NO_LAYERS,
            "block_sizes": [1, 1],
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
        },
        model="FunnelModel",
    ),
    "funnel (base)": Family(
        trained("FunnelTokenizer"),
        {
            **_NO_LAYERS,
            "block_sizes": [1, 1],
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
        },
        "funnel",
        "FunnelBaseModel",
    ),
    "fnet": Family(trained("FNetTokenizer"), {"type_vocab_size": 4}),
    "nystromformer": Family(
        trained("AlbertTokenizer"), {"num_landmarks": 8, "segment_means_seq_len": 8}
    ),
    "yoso": Family(trained("AlbertTokenizer"), {"use_expectation": True}),
    "mra": Family(_BPE, {"block_per_row": 4}),
    "big_bird": Family(trained("BigBirdTokenizer"), {"block_size": 16, "num_random_blocks": 1}),
    "longformer": Family(trained("LongformerTokenizer"), {**_ROBERTA, "attention_window": [8, 8]}),
    "led": Family(
        trained("LEDTokenizer"),
        {
            **_BART,
            "attention_window": [8, 8],
            "max_encoder_position_embeddings": POSITIONS,
            "max_decoder_position_embeddings": POSITIONS,
        },
    ),
    "reformer": Family(
        trained("ReformerTokenizer"),
        {
            "attention_head_size": 8,
            "attn_layers": ["local", "lsh"],
            "axial_pos_embds_dim": [16, 16],
            "axial_pos_shape": [8, 12],
            "feed_forward_size": 48,
            "is_decoder": False,
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
        },
    ),
    "roformer": Family(_BERT),
    "rembert": Family(
        trained("RemBertTokenizer"), {"input_embedding_size": 16, "output_embedding_size": 24}
    ),
    "ernie": Family(_BERT, {"use_task_id": False}),
    "megatron-bert": Family(_BERT),
    "layoutlm": Family(_BERT),
    "lilt": Family(_BPE, {**_ROBERTA, "channel_shrink_ratio": 4, "hidden_size": 48}),
    "bros": Family(_BERT, {"bbox_scale": 1.0}),
    "luke": Family(
        trained("LukeTokenizer"),
        {**_ROBERTA, "entity_vocab_size": 8, "entity_emb_size": 16},
    ),
    "canine": Family(
        lambda: transformers.CanineTokenizer(model_max_length=POSITIONS),
        {"local_transformer_stride": 8, "num_hash_buckets": 64, "downsampling_rate": 4},
    ),
    "xlnet": Family(
        trained("XLNetTokenizer"),
        {**_NO_TABLE, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    ),
    "xlm": Family(whole_words("<s> $A </s>", lower=True, **_ENDS), _XLM),
    "flaubert": Family(whole_words("<s> $A </s>", **_ENDS), _XLM),
    "ibert": Family(_BPE, _ROBERTA),
    "xmod": Family(
        trained(_XLMR), {**_ROBERTA, "languages": ["en_XX"], "default_language": "en_XX"}
    ),
    "data2vec-text": Family(_BPE, _ROBERTA),
    "bert-generation": Family(sentencepiece_bpe(**_LINES, pad_token="<pad>")),
    "openai-gpt": Family(trained("OpenAIGPTTokenizer"), _GPT2),
    "gpt2": Family(_GPT, _GPT2),
    "gpt_neo": Family(
        _GPT, {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    ),
    "gpt_neox": Family(trained("GPTNeoXTokenizer")),
    "gptj": Family(_GPT, {**_GPT2, "rotary_dim": 4}),
    "gpt_bigcode": Family(_GPT, _GPT2),
    "codegen": Family(trained("CodeGenTokenizer"), {**_GPT2, "rotary_dim": 4}),
    "ctrl": Family(slow("CTRLTokenizer", _ctrl_files), {**_GPT2, "dff": 48}),
    "opt": Family(
        trained("GPT2Tokenizer", pad_token="<pad>", bos_token="</s>", eos_token="</s>"),
        {"ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "bloom": Family(byte_level(_BLOOM, **_LINES, pad_token="<pad>"), {"n_layer": 2, "n_head": 4}),
    "biogpt": Family(whole_words("</s> $A", eos_token="</s>", pad_token="<pad>", bos_token="<s>")),
    "xglm": Family(
        trained("XGLMTokenizer"),
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    ),
    "mpt": Family(
        trained("GPTNeoXTokenizer"),
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS},
    ),
    "falcon": Family(
        byte_level(_CL100K, **_END_OF_TEXT), {"new_decoder_architecture": False, "alibi": False}
    ),
    "llama": Family(sentencepiece_bpe("LlamaTokenizer"), _LLAMA),
    "mistral": Family(sentencepiece_bpe(template="<s> $A", **_LINES), _LLAMA),
    "gemma": Family(sentencepiece_bpe("GemmaTokenizer"), _LLAMA),
    "gemma2": Family(
        sentencepiece_bpe("GemmaTokenizer"),
        {**_LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "gemma3_text": Family(
        sentencepiece_bpe("GemmaTokenizer"),
        {**_LLAMA, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "qwen2": Family(trained("Qwen2Tokenizer"), _LLAMA),
    "qwen3": Family(trained("Qwen2Tokenizer"), _LLAMA),
    "qwen2_moe": Family(
        trained("Qwen2Tokenizer"),
        {**_LLAMA, **_MOE, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
    "mixtral": Family(
        sentencepiece_bpe(template="<s> $A", **_LINES), {**_LLAMA, "num_local_experts": 4}
    ),
    "phi": Family(trained("CodeGenTokenizer"), {"partial_rotary_factor": 0.5}),
    "phi3": Family(sentencepiece_bpe(template="<s> $A", **_LINES), {**_LLAMA, "pad_token_id": 0}),
    "stablelm": Family(byte_level(_CL100K, **_END_OF_TEXT), _LLAMA),
    "starcoder2": Family(_GPT, _LLAMA),
    "smollm3": Family(byte_level(_CL100K, **_END_OF_TEXT), {**_LLAMA, "pad_token_id": 0}),
    "cohere": Family(trained("CohereTokenizer"), _LLAMA),
    "olmo2": Family(byte_level(_CL100K, **_END_OF_TEXT), _LLAMA),
    "granite": Family(byte_level(_CL100K, **_END_OF_TEXT), _LLAMA),
    "glm": Family(byte_level(_CL100K, **_END_OF_TEXT), {**_LLAMA, "partial_rotary_factor": 0.5}),
    "nemotron": Family(sentencepiece_bpe(template="<s> $A", **_LINES), _LLAMA),
    "persimmon": Family(sentencepiece_bpe("LlamaTokenizer"), {"partial_rotary_factor": 0.5}),
    "ernie4_5": Family(sentencepiece_bpe("LlamaTokenizer"), _LLAMA),
    "gpt_oss": Family(
        byte_level(_CL100K, **_END_OF_TEXT),
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "qwen3_moe": Family(trained("Qwen2Tokenizer"), {**_LLAMA, **_MOE, "decoder_sparse_step": 1}),
    "recurrent_gemma": Family(
        sentencepiece_bpe("GemmaTokenizer"),
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 16,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
    ),
    "mamba": Family(trained("GPTNeoXTokenizer"), {"state_size": 4, "num_hidden_layers": 2}),
    "marian": Family(trained("T5Tokenizer"), {**_BART, "decoder_start_token_id": 0}),
    "mvp": Family(trained("MvpTokenizer"), _BART),
    "plbart": Family(sentencepiece_bpe(template="$A </s>", **_LINES, pad_token="<pad>"), _BART),
    "bigbird_pegasus": Family(
        pegasus, {**_BART, "attention_type": "original_full", "block_size": 4}
    ),
    "pegasus_x": Family(pegasus, {**_BART, "block_size": 8, "num_global_tokens": 4}),
    "t5gemma": Family(sentencepiece_bpe("GemmaTokenizer"), {"encoder": _GEMMA, "decoder": _GEMMA}),
    "layoutlmv3": Family(trained("RobertaTokenizer"), {**_ROBERTA, **_BOXES}),
    "markuplm": Family(
        trained("RobertaTokenizer"), {**_ROBERTA, "max_depth": 4, "xpath_unit_hidden_size": 8}
    ),
    "lxmert": Family(trained("LxmertTokenizer"), {"l_layers": 1, "x_layers": 1, "r_layers": 1}),
    "visual_bert": Family(_BERT, {"visual_embedding_dim": 16}),
    "t5": Family(trained("T5Tokenizer"), _T5),
    "mt5": Family(trained("T5Tokenizer"), _T5),
    "umt5": Family(trained("T5Tokenizer"), _T5),
    "longt5": Family(trained("T5Tokenizer"), {**_T5, "local_radius": 4}),
    "switch_transformers": Family(
        trained("T5Tokenizer"), {**_T5, "num_experts": 2, "num_sparse_encoder_layers": 1}
    ),
    "bart": Family(trained("BartTokenizer"), _BART),
    "mbart": Family(trained("MBartTokenizer"), _BART),
    "m2m_100 (nllb)": Family(trained("NllbTokenizer"), _BART, model_type="m2m_100"),
    "pegasus": Family(pegasus, _BART),
    "blenderbot": Family(trained("BlenderbotTokenizer"), _BART),
    "clip_text_model": Family(trained("CLIPTokenizer"), {"projection_dim": 32}),
    "modernbert": Family(
        byte_level(None, "[CLS] $A [SEP]", **_MODERN),
        {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
    ),
    "modernbert-decoder": Family(
        byte_level(None, "[CLS] $A [SEP]", **_MODERN),
        {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
    ),
    "eurobert": Family(
        byte_level(
            _CL100K,
            "<|begin_of_text|> $A <|end_of_text|>",
            bos_token="<|begin_of_text|>",
            eos_token="<|end_of_text|>",
            pad_token="<|pad|>",
            mask_token="<|mask|>",
        ),
        _LLAMA,
    ),
    "nomic_bert": Family(_BERT, _LLAMA),
    "jina_embeddings_v3": Family(trained(_XLMR), {"pad_token_id": 1}),
    "gte": Family(trained(_XLMR), {"pad_token_id": 1}),
    "openai_privacy_filter": Family(
        byte_level(_CL100K, **_END_OF_TEXT),
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "ultrabert": Family(trained(_XLMR), {**_LLAMA, "sliding_window": 8}),
    "embedding_gemma2_text": Family(
        sentencepiece_bpe("GemmaTokenizer"), {**_LLAMA, "sliding_window": 8}
    ),
    "dpr": Family(trained("DPRQuestionEncoderTokenizer")),
    "tapas": Family(trained("BertTokenizer", model_input_names=["input_ids", "attention_mask"])),
    "splinter": Family(trained("SplinterTokenizer")),
    "esm": Family(
        slow("EsmTokenizer", _esm_files),
        {"pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    ),
    "roberta (phobert)": Family(
        slow("PhobertTokenizer", _fairseq_files), _ROBERTA, model_type="roberta"
    ),
    "roberta (bertweet)": Family(
        slow("BertweetTokenizer", _fairseq_files), _ROBERTA, model_type="roberta"
    ),
}

# Families of every kind: WordPiece, sentencepiece, byte-level BPE, in Python, encoder-decoder,
# decoder alone, no table of positions, positions behind a padding row. The others are slow tests.
SAMPLE = [
    "bert",
    "roberta",
    "xlm-roberta",
    "deberta-v2",
    "albert",
    "xlnet",
    "gpt2",
    "qwen3",
    "llama",
    "t5",
    "bart",
    "modernbert",
    "ctrl",
]


# ---------------------------------------------------------------------------- making a folder


@torch.no_grad()
def make_visible(encoder: nn.Module, seed: int = 0) -> None:
    """Weights at a scale at which attention, positions and segments show in the hidden states."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in encoder.modules() if isinstance(m, nn.Embedding)}
    for parameter in encoder.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in tables:
            parameter.copy_(0.7 * noise)
        elif parameter.dim() >= 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(0.05 * noise)


def make_family(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write configuration, weights and tokenizer of a family into a folder."""
    family, folder = FAMILIES[name], Path(folder)
    tokenizer = family.tokenizer()
    sizes = {key: value for key, value in {**SIZES, **family.sizes}.items() if value is not None}
    rows = len(tokenizer) if len(tokenizer) < 10_000 else None  # canine hashes its characters
    if rows is not None:
        sizes["vocab_size"] = rows
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(tokenizer, key, None) is not None:
            sizes[key] = getattr(tokenizer, key)
    config = AutoConfig.for_model(family.model_type or name, **sizes)
    if family.model is not None:
        config.architectures = [family.model]
    encoder = AutoModel.from_config(config).eval()
    make_visible(encoder, seed)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if hasattr(tokenizer, "kept"):  # as a hub has them: what is saved again may lack something
        shutil.copytree(tokenizer.kept.name, folder, dirs_exist_ok=True)
    return folder

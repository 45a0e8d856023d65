"""A batch gives each window what its encoder gives that window alone, for every family."""

import json
from functools import cache

import pytest
import torch
import transformers
from encoders import FAMILIES, SIZES, make_family, make_visible
from training import write_corpus
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    RoCBertTokenizer,
)

from nercrf.labels import label_list
from nercrf.model.encoder_config import EncoderConfig
from nercrf.model.encoders import (
    encoder_traits,
    prove_call,
    reads_both_ways,
    run_encoder,
    take_encoder,
)
from nercrf.model.loading import check_inputs, load_encoder, load_tokenizer
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.run_ner_crf import main
from nercrf.tagging.tagger import Tagger

torch.set_num_threads(1)
LABELS = label_list(["LOC", "PER"], "BIO")
ROWS, POSITIONS = 420, SIZES["max_position_embeddings"]
# gives shorter vectors than pieces, none at all, needs boxes, is trained on one length only
REFUSED = {
    "funnel (base)": "got vectors of shape",
    "dpr": "last_hidden_state",
    "bros": "You have to specify bbox",
    "lxmert": "`visual_feats` cannot be `None`",
    "t5gemma": "You must specify exactly one of input_ids",
    "reformer": "If training, make sure that config.axial_pos_shape factors",
}
READ = [name for name in FAMILIES if name not in REFUSED]


def make_encoder(name: str, pad_token_id: int = 0) -> PreTrainedModel:
    """As its family has it, at a scale at which everything shows."""
    family = FAMILIES[name]
    sizes = {**SIZES, "vocab_size": ROWS, "pad_token_id": pad_token_id, **family.sizes}
    config = AutoConfig.for_model(
        family.model_type or name, **{k: v for k, v in sizes.items() if v is not None}
    )
    if family.model is not None:
        config.architectures = [family.model]
    encoder = AutoModel.from_config(config).eval()
    make_visible(encoder)
    return encoder


@cache
def make_model(name: str) -> NerCrfForTokenClassification:
    return NerCrfForTokenClassification.from_encoder(make_encoder(name), LABELS).eval()


def windows(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(10, ROWS - 20, (1, n), generator=generator) for n in lengths]


def padded(rows: list[torch.Tensor], side: str, fill: int, extra: int = 3):
    """A batch of windows, whose segment ids are zeros as a tokenizer gives them."""
    width = max(row.shape[1] for row in rows) + extra
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width).long()
    for place, row in enumerate(rows):
        n = row.shape[1]
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[place, where], mask[place, where] = row[0], 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def vectors_alone(model: NerCrfForTokenClassification, row: torch.Tensor) -> torch.Tensor:
    """The encoder's own call: nothing but ids, and a mask where it is not made from them."""
    return model.encoder(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_gives_what_the_encoder_gives_alone(name, side):
    model, rows = make_model(name), windows(21, 7, 13, 7)
    batch = padded(rows, side, model.traits.fill)
    with torch.no_grad():
        found = run_encoder(model.encoder, model.traits, **batch).last_hidden_state
    real = batch["attention_mask"].bool()
    for place, row in enumerate(rows):
        expected = vectors_alone(model, row)
        torch.testing.assert_close(found[place][real[place]], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_what_stands_in_padding_may_be_any_id(name):
    """A padding token that was added behind the vocabulary has no row in the encoder's table."""
    model, rows = make_model(name), windows(9, 4)
    word_index = torch.tensor([[1, 8], [13, 15]])
    scores = []
    for fill in (0, 7, ROWS + 5):
        with torch.no_grad():
            batch = padded(rows, "right", fill)
            scores.append(model(**batch, word_index=word_index).logits)
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("name", READ)
def test_segments_go_to_encoders_that_have_a_table_for_them(name):
    model = make_model(name)
    row = windows(8)[0]
    alone = vectors_alone(model, row)
    with torch.no_grad():
        batch = padded([row], "right", 0, extra=0)
        given = run_encoder(model.encoder, model.traits, **batch).last_hidden_state[0]
    torch.testing.assert_close(given, alone, atol=1e-5, rtol=1e-5)
    if model.traits.has_segments and "type_vocab_size" in vars(model.config.encoder):
        assert model.config.encoder.type_vocab_size > 0


@pytest.mark.parametrize("name", READ)
def test_the_longest_window_is_known_and_taken(name):
    """Behind a table of positions there is nothing; before its end there is no error."""
    model = make_model(name)
    longest = model.traits.max_pieces
    length = longest or (model.traits.declared_pieces if name == "mpt" else 200)
    row = windows(length)[0]
    with torch.no_grad():
        assert run_encoder(model.encoder, model.traits, row).last_hidden_state.shape[1] == length
    if longest is not None:
        assert longest == (64 if name == "canine" else POSITIONS)  # its hash buckets, here
        with pytest.raises(ValueError, match=f"at most {longest} pieces a window, got"):
            model(windows(longest + 1)[0])


@pytest.mark.parametrize("name", READ)
def test_a_tagger_is_trained_saved_and_loaded(name, tmp_path):
    model = NerCrfForTokenClassification.from_encoder(make_encoder(name), LABELS)
    batch = padded(windows(9, 6), "left", model.traits.fill)
    batch["word_index"] = torch.tensor([[4, 6, 11], [19, 21, 23]])
    model.train()
    model(**batch, labels=torch.tensor([[3, 4, 0], [1, 2, 0]])).loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0
    rows = batch["input_ids"][batch["attention_mask"] == 1].unique()
    if model.traits.vocabulary is not None and name != "mra":  # attends to nothing without CUDA
        table = model.encoder.get_input_embeddings().weight.grad
        assert (table[rows].abs().sum(1) > 0).all()
    model.eval()
    model.save_pretrained(tmp_path)
    again = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    assert again.traits == model.traits
    with torch.no_grad():
        # CANINE's convolutions round by where its weights lie in memory
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_no_text_alone_is_refused_in_a_sentence(name):
    with pytest.raises(ValueError, match="can't be the encoder of a tagger") as error:
        NerCrfForTokenClassification.from_encoder(make_encoder(name), LABELS)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart", "yoso", "canine"])
def test_the_proof_leaves_everything_as_it_was(name):
    encoder = take_encoder(make_encoder(name))
    traits = encoder_traits(encoder)
    encoder.train()
    next(encoder.children()).eval()
    modes = [module.training for module in encoder.modules()]
    weights = {key: value.clone() for key, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    first = prove_call(encoder, traits)
    assert first == prove_call(encoder, traits)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in encoder.modules()]
    assert all(torch.equal(weights[key], value) for key, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_proof_finds_what_each_encoder_does_with_padding():
    found = {name: make_model(name).traits.padding for name in READ}
    mixes = {"mobilebert", "convbert", "funnel", "fnet", "nystromformer", "yoso", "canine"}
    assert {name for name, padding in found.items() if padding == "never"} == mixes
    assert found["bert"] == found["roberta"] == found["gpt2"] == found["mra"] == "numbered"
    assert found["bart"] == found["roformer"] == "right"
    assert found["t5"] == found["xlnet"] == "anywhere"


@pytest.mark.parametrize("name", ["gpt2", "mra", "roberta"])
def test_a_model_of_before_is_called_as_before(name, tmp_path):
    """Its configuration says nothing of padding: it was trained with zeros for segments."""
    model = make_model(name)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    assert '"padding": "numbered"' in text
    path.write_text(text.replace('"padding": "numbered",', ""))
    before = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    row = windows(9)[0]
    segments, mask = torch.zeros_like(row), torch.ones_like(row)
    own = {"gpt2": {}, "mra": {"position_ids": torch.arange(9)[None]}, "roberta": {}}[name]
    with torch.no_grad():
        expected = model.encoder(
            input_ids=row, attention_mask=mask, token_type_ids=segments, **own
        ).last_hidden_state
        found = run_encoder(before.encoder, before.traits, row, mask, segments)
    assert torch.equal(found.last_hidden_state, expected)


# ---------------------------------------------------------------------------- by the command line


def train(folder, output, *flags: str) -> int:
    """Two updates, evaluation and prediction on written sentences."""
    data = write_corpus(folder.parent / "data")
    command = ["--data_dir", data, "--model_name_or_path", folder, "--output_dir", output]
    command += ["--no_cuda", "--do_train", "--do_eval", "--do_predict", "--max_steps", 2, *flags]
    return main([str(each) for each in command])


WITHOUT_FILES = ["bert", "electra", "xlm-roberta", "deberta-v2", "roberta", "gpt2", "t5", "llama"]


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_an_encoder_without_tokenizer_files_is_an_error(name, tmp_path, capsys):
    """transformers invents a tokenizer of special tokens: every word would be unknown."""
    folder = make_family(name, tmp_path / "encoder")
    kept = AutoTokenizer.from_pretrained(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"expected a tokenizer, got .* with --tokenizer_name"):
        load_tokenizer(EncoderConfig(str(folder)))
    model = NerCrfForTokenClassification.from_encoder(load_encoder(folder), LABELS)
    model.save_pretrained(tmp_path / "tagger")
    with pytest.raises(ValueError, match="expected a tokenizer, got"):
        Tagger.from_pretrained(tmp_path / "tagger")
    assert train(folder, tmp_path / "out") != 0
    assert "expected a tokenizer, got" in capsys.readouterr().err
    kept.save_pretrained(tmp_path / "other")  # the remedy that is named
    found = load_tokenizer(EncoderConfig(str(folder), tokenizer_name=str(tmp_path / "other")))
    assert len(found) == len(kept)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart", "t5", "convbert", "canine"])
def test_windows_that_nobody_asked_for_give_way_to_the_encoder(name, tmp_path, caplog, capsys):
    folder = make_family(name, tmp_path / "encoder")
    assert train(folder, tmp_path / "out") == 0
    taken = 64 if name == "canine" else POSITIONS
    line = f"windows of {taken} word pieces in training and {taken} in evaluation, not 128 and 512"
    assert [line in record.getMessage() for record in caplog.records].count(True) == 1
    mixes = [r for r in caplog.records if "mixes padding" in r.getMessage()]
    assert len(mixes) == (name in ("convbert", "canine"))
    saved = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert saved["max_seq_length"] == taken
    tagger = Tagger.from_pretrained(tmp_path / "out")
    tagger("Anna went to Lisbon . " * 60)  # in several windows
    if name == "t5":  # distances: a longer window than declared can be asked for
        assert train(folder, tmp_path / "long", "--train_max_seq_length", "200") == 0
    else:
        capsys.readouterr()
        flag = "--train_max_seq_length"
        assert train(folder, tmp_path / "long", flag, "200") != 0
        assert f"{flag} 200, but the encoder takes {taken} word pieces" in capsys.readouterr().err


def test_windows_give_way_to_the_tokenizer(tmp_path, caplog):
    folder = make_family("bert", tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=40)
    tokenizer.save_pretrained(folder)
    assert train(folder, tmp_path / "out") == 0
    assert "windows of 40 word pieces in training and 40 in evaluation" in caplog.text
    assert train(folder, tmp_path / "own", "--train_max_seq_length", "64") == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padding_token_behind_the_vocabulary_does_no_harm(name, side, tmp_path):
    folder = make_family(name, tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.padding_side = side
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == load_encoder(folder).get_input_embeddings().num_embeddings
    assert train(folder, tmp_path / "out") == 0
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert train(folder, tmp_path / "none", "--overwrite_cache") == 0


def test_pieces_that_were_added_to_the_tokenizer_alone_are_named(tmp_path, capsys):
    folder = make_family("llama", tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Anna", "in", "the", "."])
    tokenizer.save_pretrained(folder)
    assert train(folder, tmp_path / "out") != 0
    error = capsys.readouterr().err
    rows = load_encoder(folder).get_input_embeddings().num_embeddings
    assert f"expected piece ids below {rows}, the rows of the encoder's table, got " in error


# ---------------------------------------------------------------------------- both ways


BUILT_IN = {"openai-gpt", "gpt_neo"}  # their masks are tables
DECODERS = ["gpt2", "gpt_neox", "gptj", "bloom", "llama", "mistral", "gemma3_text", "qwen3", "opt"]


@pytest.mark.parametrize(
    "name", [*DECODERS, "stablelm", "modernbert-decoder", *sorted(BUILT_IN), "bert"]
)
def test_a_decoder_can_be_let_to_see_later_pieces(name, tmp_path):
    def changes_what_is_before(model):
        rows = torch.cat([windows(9)[0]] * 2)
        rows[1, -1] = 5
        with torch.no_grad():
            one, two = model.encoder(
                input_ids=rows, attention_mask=torch.ones_like(rows)
            ).last_hidden_state
        return not torch.allclose(one[:-1], two[:-1], atol=1e-4)

    assert changes_what_is_before(make_model(name)) == (name == "bert")
    make = NerCrfForTokenClassification.from_encoder
    if name in {*BUILT_IN, "bert"}:
        with pytest.raises(ValueError, match=r"those behind it( as it is)?: leave out"):
            make(make_encoder(name), LABELS, bidirectional=True)
        return
    model = make(make_encoder(name), LABELS, bidirectional=True).eval()
    assert changes_what_is_before(model)
    model.save_pretrained(tmp_path)
    again = NerCrfForTokenClassification.from_pretrained(tmp_path).eval()
    assert changes_what_is_before(again)
    rows = windows(21, 7, 13)
    for side in ("right", "left"):
        batch = padded(rows, side, again.traits.fill)
        with torch.no_grad():
            found = run_encoder(again.encoder, again.traits, **batch).last_hidden_state
            alone = [again.encoder(input_ids=row).last_hidden_state[0] for row in rows]
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(found[real], torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_the_flag_bidirectional_is_kept_with_the_model(tmp_path, capsys):
    folder = make_family("qwen3", tmp_path / "encoder")
    assert train(folder, tmp_path / "out", "--bidirectional") == 0
    tagger = Tagger.from_pretrained(tmp_path / "out")
    assert tagger.model.config.encoder.is_causal is False
    assert reads_both_ways(tagger.model.encoder)
    folder = make_family("gpt_neo", tmp_path / "neo")
    assert train(folder, tmp_path / "no", "--bidirectional") != 0
    assert "leave out --bidirectional" in capsys.readouterr().err


def write_rocbert(folder):
    """RoCBert and the tokenizer of its own class, which gives a shape and a sound a character."""
    make_family("bert (uncased)", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for path in folder.iterdir():
        path.unlink()
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    for name in ("word_shape", "word_pronunciation"):
        numbers = {word: number % 19 for number, word in enumerate(words)}
        (folder / f"{name}.json").write_text(json.dumps(numbers))
    RoCBertTokenizer(
        *[str(folder / f"{name}") for name in ("vocab.txt", "word_shape.json")],
        str(folder / "word_pronunciation.json"),
    ).save_pretrained(folder)
    embedded = {"shape_embed_dim": 8, "pronunciation_embed_dim": 8}
    tables = {"shape_vocab_size": 20, "pronunciation_vocab_size": 20, "vocab_size": len(words)}
    config = AutoConfig.for_model("roc_bert", **{**SIZES, **embedded, **tables})
    encoder = AutoModel.from_config(config).eval()
    make_visible(encoder)
    encoder.save_pretrained(folder)
    return encoder


def test_an_encoder_that_reads_more_of_its_tokenizer_is_refused(tmp_path, capsys):
    """RoCBert's shapes and sounds change its vectors, so a tagger without them would read wrongly."""
    folder = tmp_path / "encoder"
    encoder, data = write_rocbert(folder), write_corpus(tmp_path / "data")
    given = AutoTokenizer.from_pretrained(folder)("Anna went to Oslo", return_tensors="pt")
    with torch.no_grad():
        right = encoder(**given).last_hidden_state
        wrong = encoder(given["input_ids"]).last_hidden_state
    assert (right - wrong).abs().max() > 0.1
    words = f"--data_dir {data} --model_name_or_path {folder} --no_cuda --do_train"
    assert main([*words.split(), "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "RoCBertTokenizer, one that gives input_pronunciation_ids, input_shape_ids" in said
    assert not list(tmp_path.rglob("train-*.safetensors"))


BOXES = ("LayoutLMv3", "MarkupLM")


@pytest.mark.parametrize("family", BOXES)
def test_a_tokenizer_that_wants_boxes_is_refused(family, tmp_path):
    make_family(family.lower(), tmp_path)
    encoder = load_encoder(tmp_path)
    pieces = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5}
    kind = getattr(transformers, f"{family}Tokenizer")
    options = {"tags_dict": {"html": 0}} if family == "MarkupLM" else {}
    tokenizer = kind(vocab=pieces, merges=[], **options)
    with pytest.raises(ValueError, match=f"pieces of plain text, got {family}Tokenizer"):
        check_inputs(encoder, tokenizer)


def test_a_family_that_reads_its_pieces_alone_is_not_refused(tmp_path):
    for name in ("bert", "layoutlm", "luke", "xlnet", "fnet", "canine", "gpt2"):
        make_family(name, tmp_path / name)
        encoder = load_encoder(tmp_path / name)
        check_inputs(encoder, AutoTokenizer.from_pretrained(tmp_path / name))


@pytest.mark.parametrize("name", ["canine", "funnel"])
def test_a_window_of_one_piece_gets_the_same_in_every_batch(name):
    """Shorter than what the encoder reads by itself, and not alone with a longer one."""
    model = make_model(name)
    long, short, shorter = (window[0] for window in windows(9, 3, 1))
    results = []
    for several in ([shorter], [short, shorter], [long, short, shorter]):
        ids = torch.nn.utils.rnn.pad_sequence(several, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in several], True)
        with torch.no_grad():
            hidden = run_encoder(model.encoder, model.traits, ids, mask).last_hidden_state
        assert hidden.shape[:2] == ids.shape
        results.append(hidden[-1, :1])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)


def test_sentences_of_one_letter_train_and_are_tagged_with_canine(tmp_path):
    folder, data = tmp_path / "canine", tmp_path / "data"
    make_family("canine", folder)
    data.mkdir()
    for split in ("train", "dev"):
        (data / f"{split}.txt").write_text("A B-PER\n\nAnna B-PER\nwent O\n\nB O\n\n" * 4)
    words = f"--data_dir {data} --model_name_or_path {folder} --no_cuda --do_train --do_eval"
    words += f" --max_steps 3 --per_gpu_train_batch_size 2 --output_dir {tmp_path / 'run'}"
    main(words.split())
    tagger = Tagger.from_pretrained(tmp_path / "run")
    assert tagger.model.traits.min_pieces == 4
    assert tagger(["A", "A B", "Anna went home"])[0] == tagger("A")


def test_an_adapters_encoder_beside_a_plain_encoder_is_an_error(tmp_path, capsys):
    folder, data = make_family("bert", tmp_path / "bert"), write_corpus(tmp_path / "data")
    words = f"--data_dir {data} --model_name_or_path {folder} --base_model {folder} --no_cuda"
    assert main([*words.split(), "--do_train", "--output_dir", str(tmp_path / "run")]) == 2
    assert f"--base_model {folder} is for a tagger with an adapter" in capsys.readouterr().err


def test_a_configuration_that_asks_for_tuples_trains_evaluates_and_tags(tmp_path):
    """`return_dict=False` is for the caller's own calls; of the encoder and of the tagger."""
    folder, data = make_family("bert", tmp_path / "bert"), write_corpus(tmp_path / "data")
    say_tuples(folder)
    words = f"--data_dir {data} --model_name_or_path {{}} --no_cuda --max_steps 2 --do_train"
    words += " --do_eval --output_dir"
    main([*words.format(folder).split(), str(tmp_path / "run")])
    say_tuples(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "manifest.json").unlink()  # it speaks of the file of before
    tagger = Tagger.from_pretrained(tmp_path / "run")
    assert isinstance(tagger.model(torch.tensor([[5, 6]])), tuple)
    assert len(tagger(["Anna went to Oslo"])) == 1
    main([*words.format(tmp_path / "run" / "model").split(), str(tmp_path / "again")])


def say_tuples(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "return_dict": False}))

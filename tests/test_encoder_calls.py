"""A batch gives each window what its encoder gives that window alone, for every family."""

from functools import cache

import pytest
import torch
from encoders import FAMILIES, SIZES, make_visible
from transformers import AutoConfig, AutoModel, PreTrainedModel

from nercrf.labels import label_list
from nercrf.model.encoders import encoder_traits, prove_call, run_encoder, take_encoder
from nercrf.model.modeling import NerCrfForTokenClassification

torch.set_num_threads(1)
LABELS = label_list(["LOC", "PER"], "BIO")
ROWS, POSITIONS = 420, SIZES["max_position_embeddings"]
# gives shorter vectors than pieces, none at all, needs boxes, is trained on one length only
REFUSED = {
    "funnel (base)": "got vectors of shape",
    "dpr": "last_hidden_state",
    "bros": "You have to specify bbox",
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

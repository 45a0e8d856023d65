"""Others call the model as they call models of transformers: `Trainer`, peft's wrapper, and people
who want hidden states, tuples or half precision. Right is what the encoder's own call gives, or the
same number by another way.
"""

import numpy as np
import pytest
import torch
from training import CORPUS, DEV, TOKENIZER, TRAIN, make_dataset, write_encoder
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from nercrf.model.encoders import run_encoder
from nercrf.model.loading import load_encoder
from nercrf.model.modeling import NerCrfForTokenClassification
from nercrf.tagging.tagger import Tagger

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """An encoder without dropout."""
    return write_encoder(tmp_path_factory.mktemp("inputs") / "encoder")


def make_tagger(folder, attention=None):
    """A tagger on the encoder; the same numbers each time."""
    torch.manual_seed(0)
    encoder = load_encoder(folder)
    if attention:
        encoder.set_attn_implementation(attention)
    options = {"classifier_dropout": 0.0}
    return NerCrfForTokenClassification.from_encoder(
        encoder, CORPUS.labels, CORPUS.scheme, **options
    )


@pytest.fixture(scope="module")
def model(encoder_folder):
    """One that is not trained, with attention that can be shown."""
    return make_tagger(encoder_folder, "eager").eval()


def pieces_of(batch):
    """What the encoder itself takes of a batch."""
    return {x: batch[x] for x in ("input_ids", "attention_mask", "token_type_ids") if x in batch}


BATCH = DEV.collate(range(6))


@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_encoder(model):
    """All layers, to the bit."""
    found = model(**BATCH, output_hidden_states=True, output_attentions=True)
    own = model.encoder(**pieces_of(BATCH), output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == 2
    assert len(found.attentions) == 1
    real = BATCH["attention_mask"].bool()
    for name in ("hidden_states", "attentions"):
        for one, other in zip(found[name], own[name], strict=True):
            if name == "attentions":
                one, other = one.transpose(1, 2), other.transpose(1, 2)  # pieces first
            assert one[real].equal(other[real])
    plain = model(**BATCH, output_hidden_states=False, output_attentions=None, inputs_embeds=None)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert plain.logits.equal(found.logits)


@torch.no_grad()
def test_a_tuple_where_no_dictionary_is_wanted(model, encoder_folder):
    """(loss, logits, ...), without what is None; the configuration may ask for it, too."""
    whole = model(**BATCH)
    loss, logits = model(**BATCH, return_dict=False)
    assert loss.equal(whole.loss)
    assert logits.equal(whole.logits)
    loss, logits, states = model(**BATCH, return_dict=False, output_hidden_states=True)
    assert len(states) == 2
    unlabelled = {name: x for name, x in BATCH.items() if name != "labels"}
    (logits,) = model(**unlabelled, return_dict=False)
    assert logits.equal(whole.logits)
    other = make_tagger(encoder_folder).eval()
    other.config.return_dict = False
    assert isinstance(other(**BATCH), tuple)


@torch.no_grad()
def test_vectors_in_place_of_pieces(model):
    """`inputs_embeds`: the rows of the table give what the ids give."""
    rest = {name: x for name, x in BATCH.items() if name != "input_ids"}
    vectors = model.get_input_embeddings()(BATCH["input_ids"])
    assert model(**rest, inputs_embeds=vectors).logits.equal(model(**BATCH).logits)
    with pytest.raises(TypeError, match="expected input_ids or inputs_embeds, got neither"):
        model(**rest)


@torch.no_grad()
def test_the_table_of_pieces(encoder_folder, tmp_path):
    """Asked for, replaced, made longer; a longer one is saved and loaded."""
    model = make_tagger(encoder_folder).eval()
    expected, rows = model(**BATCH).logits, len(model.get_input_embeddings().weight)
    assert model.get_input_embeddings() is model.encoder.get_input_embeddings()
    model.resize_token_embeddings(rows + 3, mean_resizing=False)
    assert model.config.encoder.vocab_size == model.traits.vocabulary == rows + 3
    assert model(**BATCH).logits.equal(expected)
    model.save_pretrained(tmp_path)
    again = NerCrfForTokenClassification.from_pretrained(tmp_path)
    assert len(again.get_input_embeddings().weight) == rows + 3
    assert again(**BATCH).logits.equal(expected)
    table = torch.nn.Embedding.from_pretrained(torch.zeros(rows, 32))
    model.set_input_embeddings(table)
    assert model.encoder.embeddings.word_embeddings is table


def gradients(model):
    """Of one batch."""
    model.zero_grad()
    model(**BATCH).loss.backward()
    return [x.grad.clone() for x in model.parameters() if x.grad is not None]


def test_gradient_checkpointing(encoder_folder):
    """The same gradients; the layers are asked for what they forgot."""
    model = make_tagger(encoder_folder).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_crf(encoder_folder, tmp_path, dtype):
    """By `to`, by the method of that name, and by from_pretrained: CRF and linear layer in float32,
    their numbers to the bit."""
    model = make_tagger(encoder_folder)
    heads = {n: x.clone() for n, x in model.state_dict().items() if not n.startswith("encoder.")}
    model.save_pretrained(tmp_path)
    method = "half" if dtype == torch.float16 else "bfloat16"
    kind = NerCrfForTokenClassification
    halves = [
        make_tagger(encoder_folder).to(dtype),
        getattr(make_tagger(encoder_folder), method)(),
        make_tagger(encoder_folder).to("cpu", dtype),
        kind.from_pretrained(tmp_path, dtype=dtype),
        kind.from_pretrained(tmp_path, dtype=str(dtype).removeprefix("torch.")),
        AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=dtype),
    ]
    for half in halves:
        assert {x.dtype for x in half.encoder.parameters()} == {dtype}
        for name, value in heads.items():
            assert half.state_dict()[name].equal(value), name
        output = half.eval()(**BATCH)
        assert output.logits.dtype == output.loss.dtype == torch.float32
        assert torch.isfinite(output.loss)
    assert make_tagger(encoder_folder).double().crf.transitions.dtype == torch.float64


def test_the_loss_is_shared_out(model):
    """With `num_items_in_batch` it is the sum over the sentences divided by it."""
    total = model(**BATCH, reduction="sum").loss
    for items in (7, torch.tensor(7)):
        torch.testing.assert_close(model(**BATCH, num_items_in_batch=items).loss, total / 7)
    halves = [DEV.collate(range(3)), DEV.collate(range(3, 6))]
    items = sum(int((half["labels"] != -100).sum()) for half in halves)
    shares = [model(**half, num_items_in_batch=items).loss for half in halves]
    torch.testing.assert_close(sum(shares), total / items)


@torch.no_grad()
def test_padding_does_not_show_in_what_an_encoder_returns():
    """An encoder of which padding must stand on the right: hidden states and attentions of windows
    that are padded on the left are those of the windows alone."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    model = NerCrfForTokenClassification.from_encoder(GPT2Model(config), CORPUS.labels).eval()
    model.encoder.set_attn_implementation("eager")
    traits = model.traits._replace(padding="right")
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    wanted = {"output_hidden_states": True, "output_attentions": True}
    found = run_encoder(model.encoder, traits, ids, mask, **wanted)
    alone = model.encoder(ids[1:, 2:], **wanted)
    for one, other in zip(found.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(one[1:, 2:], other)
    for one, other in zip(found.attentions, alone.attentions, strict=True):
        torch.testing.assert_close(one[1:, :, 2:, 2:], other)
    never = traits._replace(padding="never")
    with pytest.raises(ValueError, match="output_attentions: windows of equal lengths"):
        run_encoder(model.encoder, never, ids, mask, **wanted)


def arguments(folder, **more):
    """A short training by `Trainer`."""
    base = {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return TrainingArguments(**(base | more))


def share_of_right_tags(prediction):
    """Accuracy over labelled words."""
    known = prediction.label_ids != -100
    right = prediction.predictions.argmax(-1)[known] == prediction.label_ids[known]
    return {"right": float(right.mean())}


def test_trainer_with_our_features(encoder_folder, tmp_path):
    """It trains, evaluates, predicts and saves what a tagger loads; each number by another way."""
    model = make_tagger(encoder_folder)
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=TRAIN,
        eval_dataset=DEV,
        data_collator=TRAIN.collate_fn,
        processing_class=TOKENIZER,
        compute_metrics=share_of_right_tags,
    )
    assert trainer.label_names == ["labels"]
    before = model(**BATCH).loss.item()
    trainer.train()
    assert model(**BATCH).loss.item() < before
    figures = trainer.evaluate()
    model.eval()
    batches = [DEV.collate(range(i, min(i + 8, len(DEV)))) for i in range(0, len(DEV), 8)]
    with torch.no_grad():
        outputs = [model(**batch, reduction="sum") for batch in batches]
    items = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert [len(batch["input_ids"]) for batch in batches] == [9, 9, 5]  # of 8, 8 and 4 sentences
    means = [float(x.loss) / n for x, n in zip(outputs, items, strict=True)]
    assert figures["eval_loss"] == pytest.approx(np.average(means, weights=[8, 8, 4]), rel=1e-5)
    right = sum(
        int((x.logits.argmax(-1) == batch["labels"])[batch["labels"] != -100].sum())
        for x, batch in zip(outputs, batches, strict=True)
    )
    assert figures["eval_right"] == pytest.approx(right / sum(items))
    prediction = trainer.predict(DEV)
    assert prediction.predictions.shape[:2] == prediction.label_ids.shape
    longest = prediction.predictions[: len(BATCH["labels"]), : BATCH["labels"].shape[1]]
    with torch.no_grad():
        first = model(**batches[0]).logits[: len(BATCH["labels"])]
    known = BATCH["word_mask"]
    found = torch.from_numpy(longest)[known]
    torch.testing.assert_close(found, first[:, : known.shape[1]][known], atol=1e-5, rtol=1e-5)
    assert (prediction.predictions[..., 0] == -100).any()  # padding between batches
    trainer.save_model(str(tmp_path / "saved"))
    tagger = Tagger.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert tagger.model(**BATCH).logits.equal(model(**BATCH).logits)
    assert tagger.tokenizer.get_vocab() == TOKENIZER.get_vocab()


def test_accumulation_by_trainer_is_one_batch(encoder_folder, tmp_path):
    """Two batches of 4 make the step of one of 8."""
    weights = []
    for size, passes in ((8, 1), (4, 2)):
        model = make_tagger(encoder_folder)
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": passes}
        args = arguments(tmp_path, max_steps=2, optim="sgd", **more)
        Trainer(model, args, data_collator=TRAIN.collate_fn, train_dataset=TRAIN).train()
        weights.append(model.state_dict())
    fresh = make_tagger(encoder_folder).state_dict()
    assert not weights[0]["crf.transitions"].equal(fresh["crf.transitions"])
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-6, rtol=1e-5)


def piece_items(examples):
    """Sentences as the course of transformers prepares them: the label stands at a word's first
    piece, -100 at the others."""
    items = []
    for example in examples:
        encoded = TOKENIZER(example.tokens, is_split_into_words=True)
        tags = ["O"] * len(example.tokens)
        for span in example.spans:
            tags[span.start : span.end] = [f"I-{span.label}"] * (span.end - span.start)
            tags[span.start] = f"B-{span.label}"
        words, labels = encoded.word_ids(), []
        for place, word in enumerate(words):
            begins = word is not None and (place == 0 or words[place - 1] != word)
            labels.append(CORPUS.labels.index(tags[word]) if begins else -100)
        items.append({**encoded, "labels": labels})
    return items


def test_trainer_with_labels_of_pieces(encoder_folder, tmp_path):
    """`DataCollatorForTokenClassification`: the loss is that of the words alone, and the tags come
    from the CRF over the labelled pieces."""
    assert CORPUS.scheme == "BIO"  # as the labels of pieces are written
    model = make_tagger(encoder_folder)
    items, collator = piece_items(CORPUS.dev), DataCollatorForTokenClassification(TOKENIZER)
    whole = make_dataset(CORPUS.dev, max_seq_length=128)  # no sentence has two windows
    batch, words = collator(items[:6]), whole.collate(range(6))
    by_pieces, by_words = model(**batch), model(**words)
    assert by_pieces.logits.shape[:2] == batch["input_ids"].shape
    torch.testing.assert_close(by_pieces.loss, by_words.loss, atol=1e-5, rtol=1e-5)
    paths = model.decode(by_pieces.logits, batch["labels"] != -100)
    assert paths == model.decode(by_words.logits, words["word_mask"])

    def decode(logits, labels):
        return model.crf.decode_tensor(logits, labels != -100)[0]

    def right(prediction):
        known = prediction.label_ids != -100
        return {"right": float((prediction.predictions == prediction.label_ids)[known].mean())}

    trainer = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=piece_items(CORPUS.train),
        eval_dataset=items,
        data_collator=collator,
        processing_class=TOKENIZER,
        compute_metrics=right,
        preprocess_logits_for_metrics=decode,
    )
    trainer.train()
    figures = trainer.evaluate()
    model.eval()
    with torch.no_grad():
        batch = whole.collate(range(len(whole)))
        paths = model.decode(model(**batch).logits, batch["word_mask"])
    gold = [whole[number]["labels"].tolist() for number in range(len(whole))]
    pairs = [(a, b) for x, y in zip(paths, gold, strict=True) for a, b in zip(x, y, strict=True)]
    assert figures["eval_right"] == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_items_of_several_data_sets_do_not_mix():
    """A collator of the training set that gets items of the dev set gives those of the dev set."""
    found = TRAIN.collate_fn([DEV[0], DEV[3]])
    expected = DEV.collate([0, 3])
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="expected items of one data set"):
        TRAIN.collate_fn([TRAIN[0], DEV[0]])


def test_the_wrapper_of_peft(encoder_folder, tmp_path):
    """PeftModelForTokenClassification calls the model with all that it knows; `Trainer` trains it,
    and what it wraps is saved whole."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="TOKEN_CLS", r=2, target_modules=["query", "value"], modules_to_save=["crf"]
    )
    model = make_tagger(encoder_folder)
    with torch.no_grad():
        expected = model.eval()(**BATCH)
    wrapper = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        output = wrapper(**BATCH, output_hidden_states=True)
    assert output.logits.equal(expected.logits)
    assert output.loss.equal(expected.loss)
    assert len(output.hidden_states) == 2
    args = arguments(tmp_path, label_names=["labels"])
    trainer = Trainer(
        wrapper, args, data_collator=TRAIN.collate_fn, train_dataset=TRAIN, eval_dataset=DEV
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert not model.crf.transitions.equal(model.crf.original_module.transitions)
    wrapper.get_base_model().save_pretrained(tmp_path / "saved")
    again = NerCrfForTokenClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert again(**BATCH).logits.equal(model.eval()(**BATCH).logits)


def test_the_auto_class_knows_it(encoder_folder, tmp_path):
    """As any model of transformers."""
    model = make_tagger(encoder_folder).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert isinstance(again, NerCrfForTokenClassification)
    assert isinstance(again, PreTrainedModel)
    assert again(**BATCH).logits.equal(model(**BATCH).logits)

"""Recipes in the trainer: formulas by hand, accumulation, replicas, half precision, overflow,
layers that stay.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoders import FAMILIES, SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from training import DEV, TOKENIZER, TRAIN, UNEVEN, make_args, make_model, train_in

from nercrf.crf.layer import CRF
from nercrf.data.examples import Example
from nercrf.distributed.devices import BatchDataParallel
from nercrf.distributed.processes import init_distributed
from nercrf.evaluation.evaluator import evaluate
from nercrf.features.batches import FeatureDataset
from nercrf.features.conversion import convert_examples_to_features
from nercrf.features.pieces import read_layout
from nercrf.features.running_text import are_marks, sentence_pieces
from nercrf.fields import check_fields
from nercrf.model.dropout import use_cheap_dropout
from nercrf.model.modeling import NerCrfConfig, NerCrfForTokenClassification
from nercrf.training import trainer
from nercrf.training.lean import fit_rows
from nercrf.training.optim import build_optimizer, encoder_layers, layer_depths
from nercrf.training.recipes import (
    FGM,
    RDrop,
    WordDropout,
    attacked_parameters,
    crf_divergence,
    hide_words,
    recipe_flags,
    repeat_batch,
)
from nercrf.training.run import plan_training, start_training, training_identity
from nercrf.training.training_config import RecipeConfig, TrainingConfig
from nercrf.training.update import Learner

UPDATE = np.arange(12)


def start(folder, dropout=0.0, dataset=TRAIN, **changes):
    """A training of the tiny model in float64, ready for its first update."""
    return start_training(
        make_args(folder, average_decay=0.0, **changes),
        dataset,
        make_model(dropout).double(),
        TOKENIZER,
    )


def update_gradients(monkeypatch, run, update=UPDATE):
    """The gradients of an update by parameter, with all that the recipes add, before clipping."""
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", lambda run: None)
        run.update(update)
    found = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    for name, parameter in run.model.named_parameters():
        if run.embedding is not None and parameter is run.embedding.weight:
            found[name] = fit_rows(
                found[name], run.embedding.seen, None, run.embedding.num_embeddings
            )
    run.model.zero_grad()
    return found


def loss_gradients(model, batch=None):
    """The gradients of the mean loss of the update, by hand."""
    model.zero_grad()
    model(**(batch or TRAIN.collate(UPDATE)), reduction="mean").loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


EMBEDDING = "encoder.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(("recipe", "size"), [("do_adv", 0.7), ("awp_gamma", 0.01)])
@pytest.mark.parametrize("parts", [(12, 1), (4, 3), (5, 2)])
def test_adversarial_gradients_are_those_of_the_formula(tmp_path, monkeypatch, recipe, size, parts):
    """FGM: g(W) + g(W + e g / |g|). AWP: g(W + c |W| g / |g|). The same however an update is cut."""
    model = make_model(0.0).double()
    weight = model.get_parameter(EMBEDDING)
    clean = loss_gradients(model)
    direction = clean[EMBEDDING] / clean[EMBEDDING].norm()
    with torch.no_grad():
        weight += direction * (size if recipe == "do_adv" else size * weight.norm())
    expected = loss_gradients(model)
    flags = {"awp_gamma": size}
    if recipe == "do_adv":
        expected = {name: clean[name] + gradient for name, gradient in expected.items()}
        flags = {"do_adv": True, "adv_epsilon": size}
    run = start(
        tmp_path, per_gpu_train_batch_size=parts[0], gradient_accumulation_steps=parts[1], **flags
    )
    before = run.model.get_parameter(EMBEDDING).detach().clone()
    found = update_gradients(monkeypatch, run)
    assert torch.equal(run.model.get_parameter(EMBEDDING), before)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11)


ALL = {"do_adv": True, "adv_epsilon": 0.3, "word_dropout": 0.3, "rdrop_alpha": 2.0}


def test_replicas_and_accumulation_give_the_gradient_of_one_batch(tmp_path, monkeypatch):
    """All together, over sentences of one and of several windows; an update smaller than the number
    of replicas.
    """
    for update in (UPDATE, np.array([0])):
        run = start(tmp_path, per_gpu_train_batch_size=12, dataset=UNEVEN, **ALL)
        expected = update_gradients(monkeypatch, run, update)
        run = start(
            tmp_path,
            per_gpu_train_batch_size=5,
            gradient_accumulation_steps=3,
            dataset=UNEVEN,
            **ALL,
        )
        parts = update_gradients(monkeypatch, run, update)
        run = start(tmp_path, per_gpu_train_batch_size=12, dataset=UNEVEN, **ALL)
        run.model = BatchDataParallel(run.model, ["cpu"] * 3)
        replicas = update_gradients(monkeypatch, run, update)
        for name, gradient in expected.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(replicas[f"module.{name}"], gradient, rtol=1e-9, atol=1e-11)


def test_half_precision_and_its_scale_do_not_change_the_attack(tmp_path, monkeypatch):
    """Gradients of FGM in float16, scaled by 2^8, beside those in full precision: the same
    direction and size.
    """
    flags = {
        "per_gpu_train_batch_size": 12,
        "average_decay": 0.0,
        "do_adv": True,
        "adv_epsilon": 0.3,
    }
    gradients = []
    for fp16 in (False, True):
        run = start_training(
            make_args(tmp_path, fp16=fp16, **flags), TRAIN, make_model(0.0), TOKENIZER
        )
        scale = 2.0**8 if fp16 else 1.0
        if fp16:
            run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        found = update_gradients(monkeypatch, run)
        gradients.append(torch.cat([(gradient / scale).flatten() for gradient in found.values()]))
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.parametrize("flags", [{"do_adv": True}, {"awp_gamma": 0.01}])
def test_an_overflow_in_the_attack_changes_nothing(tmp_path, flags):
    run = start_training(make_args(tmp_path, fp16=True, **flags), TRAIN, make_model(), TOKENIZER)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10_000)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.update(run.plan.epoch(0)[0])
    assert run.progress.skipped == 1
    for old, new in zip(before, run.model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_an_unknown_or_frozen_parameter_cannot_be_attacked(tmp_path):
    with pytest.raises(ValueError, match=r"--adv_name emb_table: .*word_embeddings\.weight"):
        train_in(tmp_path, do_adv=True, adv_name="emb_table")
    with pytest.raises(ValueError, match="those that are frozen"):
        train_in(tmp_path / "frozen", do_adv=True, freeze_embeddings=True)
    assert len(attacked_parameters(make_model(), "embeddings")) > 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_the_divergence_is_that_of_two_distributions_over_sequences(seed, words, constrained):
    """KL(p, q) + KL(q, p) by enumeration, with padding, and with sequences that are impossible."""
    labels = ["O", "B-PER", "I-PER"]
    torch.manual_seed(seed)
    crf = CRF.from_labels(labels, "BIO", True, constrained).double()
    torch.nn.init.normal_(crf.transitions)
    first, second = torch.randn(2, 1, words + 2, 3, dtype=torch.float64) * 3
    mask = torch.arange(words + 2).lt(words).unsqueeze(0)
    paths = torch.tensor(list(itertools.product(range(3), repeat=words)))
    scores = []
    for emissions in (first, second):
        repeated = emissions[:, :words].expand(len(paths), words, 3)
        scores.append(crf.chain(repeated, constrained=False).score(paths))
    possible = torch.ones(len(paths), dtype=torch.bool)
    if constrained:  # I-PER neither first nor behind O
        possible = torch.tensor(
            [path[0] != 2 and (0, 2) not in itertools.pairwise(path) for path in paths.tolist()]
        )
    p, q = (torch.log_softmax(score[possible], 0) for score in scores)
    expected = (p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()
    torch.testing.assert_close(
        crf_divergence(crf, first, second, mask), expected, rtol=1e-8, atol=1e-10
    )


def test_r_drop_without_dropout_is_plain_training(tmp_path, monkeypatch):
    plain = update_gradients(monkeypatch, start(tmp_path))
    twice = update_gradients(monkeypatch, start(tmp_path, rdrop_alpha=5.0))
    for name, gradient in plain.items():
        torch.testing.assert_close(twice[name], gradient, rtol=1e-9, atol=1e-11)


def test_r_drop_adds_what_pulls_two_passes_together(tmp_path, monkeypatch):
    """With dropout: the gradient of the mean loss of both halves plus the weighted divergence, by hand."""
    run = start(tmp_path, 0.3, per_gpu_train_batch_size=12, rdrop_alpha=2.0)
    torch.manual_seed(9)
    found = update_gradients(monkeypatch, run)
    model = make_model(0.3).double().train()
    use_cheap_dropout(model)  # as in the training: the same masks
    torch.manual_seed(9)
    (indices,) = run.plan.micro_batches(UPDATE)
    batch = repeat_batch(TRAIN.collate(indices))
    output = model(**batch, reduction="sum")
    first, second = output.logits.chunk(2)
    apart = crf_divergence(model.crf, first, second, batch["word_mask"][:12])
    assert apart > 0.01
    ((output.loss / 2 + 2.0 * apart / 4) / 12).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(len(UNEVEN))), st.integers(1, 9), st.integers(0, 1000))
def test_the_hidden_words_depend_on_sentence_and_update_alone(order, size, step):
    """Whatever the batches are, each sentence is read in the same way."""

    class Run:
        tokenizer = TOKENIZER
        model = SimpleNamespace(config=NerCrfConfig(joined_by=" "))
        progress = type("Progress", (), {"step": step})

    part = WordDropout(0.4, seed=1)

    def pieces(indices):
        batch = part.on_batch(Run, UNEVEN.collate(indices), indices)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        windows = np.diff(UNEVEN.features.sentence_windows)[indices]
        rows = iter([row[keep].tolist() for row, keep in zip(ids, mask, strict=True)])
        return [[next(rows) for _ in range(count)] for count in windows]

    alone = pieces(np.array(order))
    parts = [np.array(order[first : first + size]) for first in range(0, len(order), size)]
    assert list(itertools.chain.from_iterable(map(pieces, parts))) == alone


def test_words_are_hidden_whole_and_special_pieces_never():
    class Run:
        tokenizer = TOKENIZER
        model = SimpleNamespace(config=NerCrfConfig(joined_by=" "))
        progress = type("Progress", (), {"step": 0})

    indices = np.arange(len(UNEVEN))
    before = UNEVEN.collate(indices)
    after = WordDropout(0.9999999, seed=1).on_batch(Run, before, indices)["input_ids"]
    special = torch.tensor([TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.pad_token_id])
    is_special = torch.isin(before["input_ids"], special)
    assert torch.equal(after[is_special], before["input_ids"][is_special])
    # where windows overlap, a word is hidden in the window that it is read from
    read = before["word_index"][before["word_mask"]]
    assert (after.flatten()[read] == TOKENIZER.unk_token_id).all()
    single = np.flatnonzero(np.diff(UNEVEN.features.sentence_windows) == 1)
    batch = UNEVEN.collate(single)
    after = WordDropout(0.9999999, seed=1).on_batch(Run, batch, single)["input_ids"]
    assert (after[~torch.isin(batch["input_ids"], special)] == TOKENIZER.unk_token_id).all()


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "t5", "clip_text_model"])
def test_all_pieces_of_a_hidden_word_are_hidden_whichever_is_read(name, pooling):
    tokenizer = FAMILIES[name].tokenizer()
    texts = SENTENCES[:4]
    features = convert_examples_to_features(
        [Example(str(at), words) for at, words in enumerate(texts)],
        ["O"],
        256,
        tokenizer,
        subtoken_pooling=pooling,
    )
    batch = FeatureDataset(features, ["O"]).collate(range(len(texts)))
    layout = read_layout(tokenizer)
    special = torch.tensor([tokenizer.pad_token_id or 0, *layout.prefix, *layout.suffix])
    vocabulary = np.arange(len(tokenizer))
    marks = torch.from_numpy(vocabulary[are_marks(vocabulary, tokenizer)])
    before = len(layout.prefix)
    for row, words in enumerate(texts):
        counts = sentence_pieces([words], tokenizer, " ").counts
        ends = before + np.cumsum(counts)
        for place, (end, count) in enumerate(zip(ends, counts, strict=True)):
            hidden = torch.zeros_like(batch["word_mask"])
            hidden[row, place] = True
            found = hide_words(batch, hidden, -1, special, pooling, marks)
            expected = batch["input_ids"].clone()
            expected[row, end - count : end] = -1
            assert found.tolist() == expected.tolist(), (words, place)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_word_dropout_goes_by_the_piece_that_the_model_reads(pooling):
    tokenizer = FAMILIES["xlm-roberta"].tokenizer()
    examples = [Example(str(at), words) for at, words in enumerate(SENTENCES[:4])]
    rows = []
    for each in ("mean", pooling):
        features = convert_examples_to_features(
            examples, ["O"], 256, tokenizer, subtoken_pooling=each
        )
        config = SimpleNamespace(joined_by=" ", subtoken_pooling=each)
        run = SimpleNamespace(
            tokenizer=tokenizer,
            model=SimpleNamespace(config=config),
            progress=SimpleNamespace(step=3),
        )
        batch = FeatureDataset(features, ["O"]).collate(range(4))
        rows.append(WordDropout(0.5, seed=1).on_batch(run, batch, np.arange(4))["input_ids"])
    assert (rows[0] == tokenizer.unk_token_id).any()
    assert rows[0].tolist() == rows[1].tolist()


def test_evaluation_sees_every_word(tmp_path):
    """Word dropout, like every recipe, belongs to training alone: dev of an untrained step is that
    of the model.
    """
    rates = {
        "learning_rate": 1e-12,
        "crf_learning_rate": 1e-12,
        "max_steps": 1,
        "average_decay": 0.0,
    }
    train_in(tmp_path, 0.0, word_dropout=0.9, **rates)
    model = NerCrfForTokenClassification.from_pretrained(tmp_path / "model")
    expected = evaluate(make_model(0.0), DEV)
    assert evaluate(model, DEV).loss == pytest.approx(expected.loss, rel=1e-6)


def test_frozen_layers_stay_and_others_learn(tmp_path):
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = make_args(
        tmp_path, freeze_embeddings=True, freeze_layers=2, max_steps=3, average_decay=0.0
    )
    trainer.train(args, TRAIN, model, TOKENIZER)
    depths = layer_depths(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {depths[name] for name in changed if name in depths} == {3, 4}
    assert {"classifier.weight", "crf.transitions"} <= changed
    with pytest.raises(ValueError, match="the encoder has 3 layers"):
        train_in(tmp_path / "deep", freeze_layers=4)


def test_new_layers_are_drawn_from_the_seed_alone(tmp_path):
    """The same on every process, whatever it has drawn before; the layers below and the head stay."""
    models = []
    for number in (1, 2):
        model = make_model()
        torch.manual_seed(number)
        start_training(make_args(tmp_path, reinit_layers=1), TRAIN, model, TOKENIZER)
        models.append(model.state_dict())
    old, top = make_model().state_dict(), f"{encoder_layers(make_model())[0]}.2."
    for name, parameter in models[0].items():
        assert torch.equal(parameter, models[1][name])
        is_matrix = parameter.ndim > 1 and "distance_worth" not in name
        if is_matrix:
            assert torch.equal(parameter, old[name]) != name.startswith(top), name


def test_rates_fall_from_layer_to_layer(tmp_path):
    run = start(tmp_path, layer_decay=0.5, warmup_proportion=0.0)
    names = {id(p): name for name, p in run.model.named_parameters()}
    rates = {
        names[id(p)]: group["initial_lr"]
        for group in run.optimizer.param_groups
        for p in group["params"]
    }
    assert rates[EMBEDDING] == 1e-3 / 8
    assert [rates[f"encoder.layers.{layer}.mix.bias"] for layer in (0, 1)] == [1e-3 / 4, 1e-3 / 2]
    assert rates["encoder.layers.2.narrow.weight"] == rates["encoder.norm.weight"] == 1e-3
    assert rates["classifier.weight"] == rates["crf.transitions"] == 1e-2
    plain = build_optimizer(make_model(), 1e-3, 1e-2, layer_decay=1.0)
    assert len(plain.param_groups) == 5


def test_every_recipe_makes_another_training():
    """A checkpoint of a run with a recipe is not that of a run without."""
    plan = plan_training(make_args("x"), TRAIN, init_distributed(no_cuda=True))
    plain = training_identity(TrainingConfig(), TRAIN, plan)
    for name in recipe_flags():
        old = getattr(RecipeConfig(), name)
        new = {"word_dropout_piece": "mask", "adv_name": "x"}.get(name, 0.5 if old in (0, 1) else 2)
        changed = training_identity(TrainingConfig(**{name: new}), TRAIN, plan)
        assert [key for key in plain if plain[key] != changed[key]] == [name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"layer_decay": 1.1}, "--layer_decay must be above 0 and at most 1"),
        ({"word_dropout": 1.0}, "--word_dropout must be at least 0 and below 1"),
        ({"word_dropout_piece": "pad"}, "must be unk or mask, got 'pad'"),
        ({"rdrop_alpha": -1.0}, "--rdrop_alpha must not be negative"),
        ({"do_adv": True, "adv_epsilon": 0.0}, "--adv_epsilon must be greater than 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        check_fields(RecipeConfig(**flags))


def test_parts_can_be_given_as_callbacks_too(tmp_path):
    """What a flag does, the part does: the same bits."""
    flags = {"max_steps": 4, "average_decay": 0.0}
    train_in(tmp_path / "flag", do_adv=True, rdrop_alpha=1.0, **flags)
    train_in(tmp_path / "part", callbacks=[RDrop(1.0), FGM(1.0)], **flags)
    weights = [
        (tmp_path / name / "checkpoint-4" / "model.safetensors").read_bytes()
        for name in ("flag", "part")
    ]
    assert weights[0] == weights[1]

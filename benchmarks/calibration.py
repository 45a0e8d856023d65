"""How true a model's probabilities are, and whether what was promised on dev is kept on test.

    python benchmarks/calibration.py wnut17 outputs/wnut17
    python benchmarks/calibration.py cluener outputs/cluener

The model is one of `nercrf train --data_dir DATA --output_dir FOLDER`. Everything is fitted on dev
and measured on test; CLUENER's test has no labels, so its dev is cut in two. Prints the calibration
of three probabilities of the entities that Viterbi finds (exact, mean softmax of the words, product
of the words' marginals), then each promise with what came of it.
"""

from __future__ import annotations

import copy
import math
import os
import random
import sys
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from inputs import data_folder

from nercrf.data.corpus import read_corpus
from nercrf.evaluation.conformal import conformal_floor, labelings_above
from nercrf.evaluation.reliability import (
    Outcomes,
    calibration_figures,
    calibration_intervals,
    pick_threshold,
)
from nercrf.evaluation.temperature import fit_temperature, fit_vector_scaling, mean_loss
from nercrf.model.calibration import keep_calibration
from nercrf.tagging.decoder import Decoder
from nercrf.tagging.fitting import held_out, pick_operating_point, predicted_outcomes
from nercrf.tagging.prediction_sets import MOST, fit_floors
from nercrf.tagging.tagger import Tagger

torch.set_grad_enabled(False)


def read_splits(name):
    """Sentences to fit on, and to measure on."""
    splits = read_corpus(data_folder(name), on_bad="warn").splits
    dev = list(splits["dev"])
    if name != "cluener":
        return dev, list(splits["test"])
    random.Random(0).shuffle(dev)
    return dev[: len(dev) // 2], dev[len(dev) // 2 :]


def other_probabilities(sentences, decoder):
    """Mean softmax and product of marginals of each entity, in the order of `predicted_outcomes`."""
    softmax, products = [], []
    for batch in sentences.batches:
        chain = batch.chain
        marginals, shares = chain.marginals(), torch.softmax(chain.emissions.double(), 2)
        tags = chain.best()[0]
        for row, found in enumerate(decoder(chain)):
            for _, start, end in found.spans:
                words, chosen = range(start, end), tags[row, start:end]
                softmax.append(shares[row, list(words), chosen].mean().item())
                products.append(marginals[row, list(words), chosen].double().prod().item())
    return {"mean softmax": softmax, "product of marginals": products}


def line(name, outcomes):
    """A row of the table."""
    found, ends = calibration_figures(outcomes), calibration_intervals(outcomes)
    low, high = ends["error"]
    return (
        f"| {name} | {found.error:.3f} ({low:.3f} to {high:.3f}) | {found.error_by_width:.3f} | "
        f"{found.brier:.3f} | {found.sharpness:.3f} |"
    )


def show_calibration(dev, test, config, temperature):
    """The table of the three probabilities."""
    plain = copy.copy(config)
    plain.probability_temperature = 1.0
    raw = predicted_outcomes(test, Decoder(plain)).outcomes
    rows = {"exact": raw}
    rows["exact, temperature"] = predicted_outcomes(test, Decoder(config)).outcomes
    for name, values in other_probabilities(test, Decoder(plain)).items():
        chances = np.clip(np.array(values), 0, 1)
        rows[name] = Outcomes(chances, raw.right, raw.sentences)
    print(f"temperature {temperature:.3f}; {len(raw.right)} entities, {raw.right.mean():.3f} right")
    print("| probability | error, equal mass | equal width | Brier | sharpness |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(line(name, each) for name, each in rows.items()))


def show_vector(dev, test, config, temperature):
    """What a factor and a shift for each label gain over one temperature."""
    with torch.enable_grad():
        scaling = fit_vector_scaling(dev.batches)
    losses = {"temperature 1": lambda x: x, "temperature": lambda x: x.tempered(temperature)}
    for name, change in (losses | {"vector": scaling}).items():
        print(f"nats a sentence, {name}: {mean_loss(test.batches, change).item():.4f}")
    config = copy.copy(config)
    keep_calibration(config, temperature, scaling=scaling.to_dict(config.labels))
    print(line("exact, vector", predicted_outcomes(test, Decoder(config)).outcomes))


def show_points(dev, test, config):
    """Operating points for wanted precisions and recalls, and what they give."""
    for kind, wanted in (("precision", 0.8), ("precision", 0.95), ("recall", 0.7), ("recall", 0.8)):
        try:
            found = pick_operating_point(dev, config, **{kind: wanted})
        except ValueError as error:
            print(f"operating point, {kind} {wanted}: {error}")
            continue
        outcomes = predicted_outcomes(test, Decoder(config, operating_point=found.point))
        right = int(outcomes.outcomes.right.sum())
        precision, recall = right / len(outcomes.types), right / sum(outcomes.gold.values())
        told = (
            f"dev {getattr(found, kind):.3f}, test precision {precision:.3f}, recall {recall:.3f}"
        )
        print(f"operating point, {kind} {wanted}: {told}")


def show_thresholds(dev, test, config):
    """Wanted precisions and recalls, and what the thresholds give."""
    decoder = Decoder(config, "threshold", 0.0)
    fitted, other = (predicted_outcomes(each, decoder) for each in (dev, test))
    wanted_gold = sum(other.gold.values())
    for kind, wanted in (("precision", 0.9), ("precision", 0.95), ("recall", 0.7)):
        try:
            cut = pick_threshold(fitted.outcomes, sum(fitted.gold.values()), **{kind: wanted})
        except ValueError as error:
            print(f"{kind} {wanted}: {error}")
            continue
        kept = other.outcomes.probabilities >= cut.value
        right = int(other.outcomes.right[kept].sum())
        precision, recall = right / max(int(kept.sum()), 1), right / wanted_gold
        came = precision if kind == "precision" else recall
        told = f"dev {getattr(cut, kind):.3f}, test {came:.3f}"
        error = math.sqrt(precision * (1 - precision) / max(int(kept.sum()), 1))
        print(
            f"{kind} {wanted}: {told} (precision {precision:.3f} +- {1.96 * error:.3f}, "
            f"recall {recall:.3f})"
        )


def warmed(temperature, chain):
    """A chain at a temperature."""
    return chain.tempered(temperature)


def show_coverage(dev, test, temperature):
    """Promised coverages and what is covered, by the sets that a tagger gives."""
    floors = fit_floors(dev.batches, dev.gold, partial(warmed, temperature), (0.9, 0.95))
    for coverage, floor in floors.items():
        needed, least = floor["labelings"], math.exp(floor["entities"])
        inside, spans_inside, sizes, spans_sizes, cut = [], [], [], [], 0
        for batch, gold in zip(test.batches, test.gold, strict=True):
            chain = batch.chain.tempered(temperature)
            if needed is not None:
                sets = labelings_above(chain, needed, MOST)
                for tags, real, each in zip(batch.tags, chain.mask, sets, strict=True):
                    inside.append((each.tags[:, real] == tags[real]).all(1).any().item())
                sizes += [len(each.tags) for each in sets]
                cut += sum(not each.is_whole for each in sets)
            known = chain.entity_probabilities(gold)
            spans_inside += [all(x >= least for x in each) for each in known]
            spans_sizes += list(map(len, chain.spans_above(least)))
        told = f"no floor, more than {MOST} would be needed"
        if needed is not None:
            size = f"median size {np.median(sizes):.0f}, mean {np.mean(sizes):.1f}"
            told = f"{np.mean(inside):.3f}, {size} ({cut} of {len(sizes)} cut at {MOST})"
        print(
            f"coverage {coverage}: labelings {told}; entities {np.mean(spans_inside):.3f}, median "
            f"size {np.median(spans_sizes):.0f}, mean {np.mean(spans_sizes):.1f}"
        )


def log_probabilities(sentences, temperature):
    """Of the gold labeling of each sentence, and of its least probable gold entity."""
    labelings, entities = [], []
    for batch, gold in zip(sentences.batches, sentences.gold, strict=True):
        chain = batch.chain.tempered(temperature)
        labelings += chain.log_prob(batch.tags).tolist()
        least = (min(each, default=1.0) for each in chain.entity_probabilities(gold))
        entities += [math.log(max(each, 1e-300)) for each in least]
    return {"labelings": np.array(labelings), "entities": np.array(entities)}


def show_draws(dev, test, temperature, coverage=0.95, draws=200):
    """Coverage over random draws of all sentences: a wrong method, or luck, or another kind?"""
    generator = np.random.default_rng(0)
    sides = [log_probabilities(each, temperature) for each in (dev, test)]
    for kind in sides[0]:
        own, other = (side[kind] for side in sides)
        both, count = np.concatenate([own, other]), len(own)
        rank = math.floor((count + 1) * (1 - coverage) + 1e-9)
        mean = (count + 1 - rank) / (count + 1)
        spread = mean * (1 - mean) / (count + 2)  # of the beta distribution
        expected = math.sqrt(spread + (mean * (1 - mean) - spread) / len(other))
        kept = []
        for _ in range(draws):
            drawn = generator.permutation(both)
            kept.append((drawn[count:] >= conformal_floor(drawn[:count], coverage)).mean())
        near = np.mean(np.abs(np.array(kept) - coverage) <= 0.015)
        print(
            f"{kind}: dev, test {(other >= conformal_floor(own, coverage)).mean():.3f}; {draws} draws "
            f"{np.mean(kept):.3f} +- {np.std(kept, ddof=1):.3f}, expected {mean:.3f} +- "
            f"{expected:.3f}; within 1.5 points {near:.2f}"
        )


def main():
    """One data set."""
    name, folder = sys.argv[1:]
    tagger = Tagger.from_pretrained(folder)
    dev, test = (held_out(tagger, examples) for examples in read_splits(name))
    with torch.enable_grad():
        temperature = fit_temperature(dev.batches).value
    config = copy.copy(tagger.model.config)
    config.probability_temperature = temperature
    print(
        f"## {name}: {sum(map(len, dev.gold))} sentences to fit, {sum(map(len, test.gold))} others"
    )
    show_calibration(dev, test, config, temperature)
    show_thresholds(dev, test, config)
    show_coverage(dev, test, temperature)
    show_draws(dev, test, temperature)
    show_vector(dev, test, config, temperature)
    show_points(dev, test, config)


if __name__ == "__main__":
    main()

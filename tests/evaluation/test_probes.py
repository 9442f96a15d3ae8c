"""Probes as pure functions: scikit-learn's results from a file, a second implementation, and what must hold of draws.

tests/evaluation/probe-reference.json was made once with scikit-learn 1.9.1 on `problem()`: LogisticRegression(C=1/lambda,
solver="newton-cholesky", tol=1e-10, max_iter=1000) in double precision at each lambda, coefficients and intercepts (centred over the
classes, which scikit-learn's are already except for the intercept's mean), and KNeighborsClassifier(20, metric="cosine", weights=lambda d:
np.exp(-d / 0.07)).predict on the test pictures. `unit` holds the predictions of the same solver on `unit_problem()`, where scikit-learn's
default, L-BFGS, is not at a minimum after its 1,000 iterations: at lambda 1e-4 and 1e-6 it is 2.6 and 7.5 points lower.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.evaluation.real import REAL, real_features
from trainer.evaluation import probes
from trainer.evaluation.probes import LogisticRegression, choose_strength, draw_shots, nearest_neighbours, predict, split_validation
from trainer.evaluation.read_sets import EvaluationSet, Item
from trainer.evaluation.represent import probe_outcome

torch.set_num_threads(1)
REFERENCE = json.loads(Path(__file__).with_name("probe-reference.json").read_text())


def problem():
    """Four overlapping classes in 12 features of unlike scale, off the origin: 160 pictures to learn from, 80 to test on."""
    generator = np.random.default_rng(7)
    labels = np.arange(240) % 4
    x = (generator.normal(size=(4, 12))[labels] + 1.5 * generator.normal(size=(240, 12))) * np.geomspace(0.05, 3, 12) + 2
    return x[:160].astype(np.float32), labels[:160], x[160:].astype(np.float32), labels[160:]


def unit_problem():
    """Five classes in 24 features of length 1 that share a large mean and fall off over four decades, as image features do."""
    generator = np.random.default_rng(3)
    labels = np.arange(1800) % 5
    x = 0.5 * generator.normal(size=(5, 24))[labels] + generator.normal(size=(1800, 24))
    x = x * np.geomspace(1, 1e-4, 24) + 3 * generator.normal(size=24)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:800], labels[:800], x[800:], labels[800:]


def accuracy(prediction, labels):
    return float((prediction == labels).mean())


@pytest.mark.parametrize("strength", ["0.0001", "0.01", "1.0", "100.0"])
def test_logistic_regression_is_scikit_learns(strength):
    """The same coefficients and intercepts up to a constant over the classes, and the same predictions, also along a path of lambdas."""
    x, y, test, _ = problem()
    expected = REFERENCE["logistic"][strength]
    model = LogisticRegression(torch.from_numpy(x), torch.from_numpy(y), 4)
    for tried in (1e6, float(strength)):
        weights, bias = model.fit(tried)

    assert np.allclose(
        weights.numpy() - weights.numpy().mean(axis=1, keepdims=True), np.array(expected["coefficients"]).T, rtol=0.01, atol=2e-3
    )
    found = bias.numpy() - bias.numpy().mean()
    assert np.allclose(found, np.array(expected["intercepts"]) - np.mean(expected["intercepts"]), rtol=0.01, atol=5e-3)
    assert predict(torch.from_numpy(test), weights, bias).tolist() == expected["predictions"]


def test_badly_conditioned_features_are_fitted_to_convergence():
    """Along the sweep, predictions are those of scikit-learn's Newton solver except for one in a thousand, so within .1 point."""
    x, y, test, labels = unit_problem()
    model = LogisticRegression(torch.from_numpy(x), torch.from_numpy(y), 5)
    for strength in ("1.0", "0.01", "0.0001", "1e-06"):
        expected = np.array([int(digit) for digit in REFERENCE["unit"][strength]])
        found = predict(torch.from_numpy(test), *model.fit(float(strength)))
        assert (found != expected).sum() <= 1, strength
        assert accuracy(found, labels) == pytest.approx(accuracy(expected, labels), abs=0.001)


def test_logistic_regression_is_at_a_minimum_of_its_objective():
    """The gradient of the objective as it is documented, written out by hand in double precision, is nearly 0."""
    x, y, _, _ = problem()
    weights, bias = (part.double().numpy() for part in LogisticRegression(torch.from_numpy(x), torch.from_numpy(y), 4).fit(0.5))
    logits = x.astype(float) @ weights + bias
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = share / share.sum(axis=1, keepdims=True) - np.eye(4)[y]
    assert np.abs(x.T @ error + 0.5 * weights).max() < 0.02  # of sums of 160 terms of size 1 to 10
    assert np.abs(error.sum(axis=0)).max() < 0.01


def test_a_fit_that_rounding_keeps_from_converging_ends(monkeypatch: pytest.MonkeyPatch):
    """Separable features: from some lambda on, the line search found no better point and tried all 1,250; the minimum is the same."""
    generator, evaluations = torch.Generator().manual_seed(4), []
    centres, labels = torch.randn(10, 64, generator=generator), torch.randint(0, 10, (8000,), generator=generator)
    x = torch.nn.functional.normalize(centres[labels] * 0.8 + torch.randn(8000, 64, generator=generator), dim=1)

    def cross_entropy(*arguments: torch.Tensor, **options: str) -> torch.Tensor:
        evaluations.append(1)
        return torch.nn.functional.cross_entropy(*arguments, **options)

    monkeypatch.setattr(probes, "F", SimpleNamespace(cross_entropy=cross_entropy))
    model = LogisticRegression(x, labels, 10)
    for exponent in np.arange(6, 0.9, -0.5):
        evaluations.clear()
        weights, bias = model.fit(10**exponent)
        assert len(evaluations) < 200, exponent
    direct, constant = (part.double() for part in (weights, bias))
    error = (x.double() @ direct + constant).softmax(dim=1) - torch.nn.functional.one_hot(labels, 10)
    assert (x.double().T @ error + 10**exponent * direct).abs().max() < 0.05  # of sums of 8,000 terms


@pytest.mark.parametrize("scale", [1, 1e4])
def test_features_that_depend_on_each_other_are_fitted(scale: float):
    """Those of a LayerNorm add up to 0, one may be another's copy, and few pictures span less than all: at the smallest lambda too."""
    x, y, test, _ = problem()
    x, test = (np.concatenate([part, part[:, :3], np.zeros((len(part), 2), np.float32)], axis=1) for part in (x, test))
    x, test = (scale * (part - part.mean(axis=1, keepdims=True)) for part in (x, test))
    for rows in (slice(None), slice(0, 12)):
        model = LogisticRegression(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), 4)
        for strength in (1e6, 1e-6):
            weights, bias = model.fit(strength)
            assert torch.isfinite(weights).all()
        assert accuracy(predict(torch.from_numpy(x[rows]), weights, bias), y[rows]) > 0.6
        assert len(set(predict(torch.from_numpy(test), weights, bias).tolist())) > 1


def test_one_picture_a_class_leaves_nothing_to_choose_lambda_on():
    """Then a linear probe is the few-shot probe of one."""
    x, y, test, labels = problem()
    train = [Item(key=f"k{number}", image=b"", label=int(y[number])) for number in range(4)], torch.from_numpy(x[:4])
    tested = [Item(key=f"t{number}", image=b"", label=int(label)) for number, label in enumerate(labels)], torch.from_numpy(test)
    described = EvaluationSet(
        name="own", task="zeroshot_classification", uri="", identity="", classnames=("a", "b", "c", "d"), templates=(), multilabel=False,
        main_metric="acc1", attribution="", manifest=None, digests=(),
    )  # fmt: skip
    found, few = (probe_outcome(described, task, train, tested, 0) for task in ("linear_probe", "few_shot_1"))
    assert found.about == {"lambda": probes.FEW_SHOT_STRENGTH, "training_pictures": 4}
    assert found.metrics == few.metrics


def test_nearest_neighbours_are_scikit_learns():
    """Weighted by similarity, and the same by a loop over pictures."""
    x, y, test, _ = problem()
    found = nearest_neighbours(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test), 4)
    assert found.tolist() == REFERENCE["neighbours"]

    unit, units = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x.astype(float), test.astype(float)))
    for picture, predicted in zip(units, found.tolist(), strict=True):
        similarity = unit @ picture
        votes = np.zeros(4)
        for place in np.argsort(-similarity)[:20]:
            votes[y[place]] += np.exp(similarity[place] / 0.07)
        assert votes.argmax() == predicted


def test_on_real_features_probes_are_scikit_learns():
    """Nine classes of a trained model's image features: logistic regression by Newton's method, and weighted nearest neighbours."""
    _, x, labels = real_features()
    train, y, test = torch.from_numpy(x[:100]), torch.from_numpy(labels[:100]), torch.from_numpy(x[100:])
    model = LogisticRegression(train, y, 9)
    for strength in ("10.0", "0.1", "0.001"):
        assert predict(test, *model.fit(float(strength))).tolist() == REAL["logistic"][strength], strength
    assert nearest_neighbours(train, y, test, 9).tolist() == REAL["neighbours"]


def test_fewer_pictures_than_neighbours_all_vote():
    """A set of five pictures has five neighbours."""
    x, y, test, _ = problem()
    found = nearest_neighbours(torch.from_numpy(x[:5]), torch.from_numpy(y[:5]), torch.from_numpy(test), 4)
    assert set(found.tolist()) <= set(y[:5].tolist())


def test_the_sweep_ends_at_eight_steps_a_decade_and_takes_the_best():
    """Seven lambdas, then four times as fine around the best one; ties go to the larger lambda."""
    x, y, test, labels = problem()
    train, validation = (torch.from_numpy(x), torch.from_numpy(y)), (torch.from_numpy(test), torch.from_numpy(labels))
    best, tried = choose_strength(train, validation, 4, accuracy)

    assert 7 + 4 <= len(tried) <= 7 + 8
    assert {1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6} <= tried.keys()
    assert best == max(strength for strength, figure in tried.items() if figure == max(tried.values()))
    near = sorted(abs(np.log10(strength) - np.log10(best)) for strength in tried)[1]
    assert near == pytest.approx(0.125)


def test_the_validation_part_is_a_fifth_of_each_class():
    """Drawn by key and seed: the order in which pictures come does not matter, and a class of one is left to learn from."""
    keys, labels = [f"k{n}" for n in range(41)], np.array([0] * 30 + [1] * 10 + [2])
    held = split_validation(keys, labels, 0)
    assert [int(held[labels == label].sum()) for label in (0, 1, 2)] == [6, 2, 0]

    order = np.random.default_rng(0).permutation(41)
    again = split_validation([keys[n] for n in order], labels[order], 0)
    assert again.tolist() == held[order].tolist()
    assert split_validation(keys, labels, 1).tolist() != held.tolist()


def test_shots_are_nested_and_drawn_by_the_seed():
    """One picture of a class is among its five, and those among its sixteen; a class with fewer gives all."""
    keys, labels = [f"k{n}" for n in range(60)], np.array([0] * 40 + [1] * 17 + [2] * 3)
    drawn = {shots: set(draw_shots(keys, labels, shots, 0).tolist()) for shots in (1, 5, 16)}
    assert drawn[1] < drawn[5] < drawn[16]
    assert [np.bincount(labels[sorted(drawn[shots])]).tolist() for shots in (1, 5, 16)] == [[1, 1, 1], [5, 5, 3], [16, 16, 3]]
    assert set(draw_shots(keys, labels, 5, 1).tolist()) != drawn[5]
    assert probes.FEW_SHOT_STRENGTH == pytest.approx(3.1646, abs=1e-3)

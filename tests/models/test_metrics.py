"""Metrics against scikit-learn and against loops, in batches that do not matter."""

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diastole.models import scoring
from diastole.models.allowed import give
from diastole.models.errors import ModelError
from diastole.models.losses import IGNORED
from diastole.models.metrics import ahead, better, metric, shown
from diastole.models.scoring import evaluate
from diastole.models.training import Examples, TrainConfig

SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=15)


class Table(nn.Module):
    """Gives a row of a table for each number."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0].long()]


def scored(outputs: Tensor, y: Tensor, loss: str, *names: str) -> dict[str, float]:
    examples = Examples(torch.arange(float(len(y)))[:, None], y)
    return dict(evaluate(Table(outputs), examples, TrainConfig(loss=loss).criterion, names).metrics)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numbers(seed: int, many: int, *shape: int) -> Tensor:
    return torch.randint(many, shape, generator=torch.Generator().manual_seed(seed))


@FEW
@given(SEEDS, st.integers(1, 150))
def test_metrics_of_classes_are_those_of_scikit_learn(seed: int, count: int) -> None:
    import sklearn.metrics

    outputs, y = drawn(seed, count, 5), numbers(seed, 5, count)
    found, said = scored(outputs, y, "cross-entropy", "accuracy", "top-2", "f1", "iou", "perplexity"), outputs.argmax(1)
    there = sorted({*y.tolist(), *said.tolist()})
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, said))
    assert found["top-2"] == pytest.approx(sklearn.metrics.top_k_accuracy_score(y, outputs, k=2, labels=range(5)))
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(y, said, labels=there, average="macro"))
    assert found["iou"] == pytest.approx(sklearn.metrics.jaccard_score(y, said, labels=there, average="macro"))
    surprise = sklearn.metrics.log_loss(y, outputs.double().softmax(1), labels=range(5))
    assert found["perplexity"] == pytest.approx(exp(surprise), rel=1e-4)


@FEW
@given(SEEDS, st.integers(1, 100))
def test_metrics_of_labels_and_values_are_those_of_scikit_learn(seed: int, count: int) -> None:
    import sklearn.metrics

    outputs, y = drawn(seed, count, 3), numbers(seed, 2, count, 3)
    found, said = scored(outputs, y, "multi-label", "accuracy", "f1"), outputs > 0
    there = [k for k in range(3) if (y[:, k].bool() | said[:, k]).any()]
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y.flatten(), said.flatten()))
    if there:
        expected = sklearn.metrics.f1_score(y, said, labels=there, average="macro", zero_division=0)
        assert found["f1"] == pytest.approx(expected)
    values = drawn(seed + 1, count)
    found = scored(outputs[:, :1], values, "huber", "mae", "rmse", "r2")
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(values, outputs[:, 0]), rel=1e-5)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(values, outputs[:, 0]), rel=1e-5)
    if count > 1:
        assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(values.double(), outputs[:, 0].double()), abs=1e-4)
        columns = 3 * drawn(seed + 2, count, 3) + torch.tensor([0.0, 5.0, -9.0])
        expected = sklearn.metrics.r2_score(columns.double(), outputs.double())
        assert scored(outputs, columns, "mse", "r2")["r2"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@FEW
@given(SEEDS)
def test_places_that_are_ignored_count_for_nothing(seed: int) -> None:
    import sklearn.metrics

    outputs, y = drawn(seed, 9, 6, 4), numbers(seed, 4, 9, 6)
    y[numbers(seed + 1, 9, 5), numbers(seed + 2, 6, 5)] = IGNORED
    found = scored(outputs, y, "next-token", "perplexity", "accuracy")
    losses, hits = [], []
    for row, label in zip(outputs.reshape(-1, 4).tolist(), y.flatten().tolist(), strict=True):
        if label != IGNORED:
            losses.append(log(sum(map(exp, row))) - row[label])
            hits.append(row[label] == max(row))
    assert found["perplexity"] == pytest.approx(exp(sum(losses) / len(losses)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(sum(hits) / len(hits))
    dense = scored(outputs.movedim(-1, 1), y, "cross-entropy", "perplexity", "iou")
    assert dense["perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
    kept = y.flatten() != IGNORED
    flat, said = y.flatten()[kept], outputs.reshape(-1, 4).argmax(1)[kept]
    there = sorted({*flat.tolist(), *said.tolist()})
    assert dense["iou"] == pytest.approx(sklearn.metrics.jaccard_score(flat, said, labels=there, average="macro"))


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, y = drawn(1, 70, 4), numbers(2, 4, 70)
    names = ("accuracy", "f1", "iou", "top-3")
    whole = scored(outputs, y, "cross-entropy", *names)
    monkeypatch.setattr(scoring, "EVALUATED", 7)
    assert scored(outputs, y, "cross-entropy", *names) == whole


def test_a_function_of_one_s_own_is_a_metric() -> None:
    def near(outputs: Tensor, y: Tensor) -> Tensor:
        return ((outputs - y).abs() < 0.5).float()

    def far(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).abs()

    far.better = "lower"  # type: ignore[attr-defined]
    outputs, y = drawn(1, 20, 1), drawn(2, 20)
    found = scored(outputs, y, "mse", give(near), give(far), "mae")
    assert found[give(near)] == pytest.approx(float((far(outputs[:, 0], y) < 0.5).float().mean()))
    assert found[give(far)] == pytest.approx(found["mae"], rel=1e-6)
    assert (better(give(near)), better(give(far))) == ("higher", "lower")
    with pytest.raises(ModelError, match="gives 1 numbers for 20 targets"):
        scored(outputs, y, "mse", give(lambda outputs, y: far(outputs, y).mean()))


def test_which_way_is_better_and_how_it_is_shown() -> None:
    assert [better(name) for name in ("accuracy", "top-5", "r2", "loss", "rmse", "perplexity")] == [
        "higher",
        "higher",
        "higher",
        "lower",
        "lower",
        "lower",
    ]
    assert ahead("accuracy", 0.5, 0.4)
    assert ahead("mae", 0.4, 0.5)
    assert (shown("accuracy", 0.5), shown("mae", 12.34567), shown("loss", 0.5)) == ("50.0%", "12.35", "0.5")
    with pytest.raises(ModelError, match="unknown metric 'top-0'"):
        metric("top-0")

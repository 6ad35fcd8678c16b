"""Measures against values worked out by hand."""

import math

import numpy as np
import pytest

from refq.errors import InputError
from refq.models import metrics

INF, NAN = math.inf, math.nan
LOG = [[math.log(2), math.log(6), 0.0], [0.0, 0.0, math.log(2)]]  # probabilities 2/9 6/9 1/9, and 1/4 1/4 2/4


def test_accuracy():
    assert metrics.accuracy(LOG, [1, 2]) == 1
    assert metrics.accuracy(LOG, [1, 0]) == 0.5
    assert metrics.accuracy([[1, 1], [1, 1]], [0, 1]) == 0.5  # of equal logits the first counts
    assert metrics.accuracy([[NAN, 1], [1, NAN], [0, INF]], [0, 0, 1]) == 1 / 3


def test_nll():
    assert metrics.nll(LOG, [1, 2]) == pytest.approx((math.log(9 / 6) + math.log(2)) / 2, rel=1e-15)
    assert metrics.nll(LOG, [2, 0]) == pytest.approx((math.log(9) + math.log(4)) / 2, rel=1e-15)
    assert metrics.nll([[0.0] * 10], [7]) == pytest.approx(math.log(10), rel=1e-15)


def test_nll_of_large_logits():
    """exp(1000) overflows float64, the likelihoods do not."""
    assert metrics.nll([[1000, 1001]], [1]) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)
    assert metrics.nll([[-1e30, 0]], [0]) == 1e30
    assert metrics.nll([[-INF, 0]], [0]) == INF
    assert metrics.nll([[-INF, 0]], [1]) == 0
    assert math.isnan(metrics.nll([[NAN, 0]], [1]))
    assert math.isnan(metrics.nll([[-INF, -INF]], [1]))
    assert math.isnan(metrics.nll([[0, INF]], [0]))


def test_float32_logits_are_widened_first():
    logits = np.float32([[16777216, 16777215]])
    assert metrics.nll(logits, [0]) == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)
    assert metrics.accuracy(logits, np.uint8([0])) == 1


def test_text_has_more_axes():
    logits = np.array([LOG, LOG])
    labels = np.array([[1, 2], [1, 0]])
    assert metrics.accuracy(logits, labels) == 0.75
    expected = (2 * math.log(1.5) + math.log(2) + math.log(4)) / 4
    assert metrics.nll(logits, labels) == pytest.approx(expected, rel=1e-15)


def test_kl():
    p, q = [[math.log(3), 0.0]], [[0.0, 0.0]]
    assert metrics.kl(p, q) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-15)
    assert metrics.kl(q, p) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), rel=1e-15)
    assert metrics.kl(LOG, np.array(LOG) + [[5], [-7]]) == pytest.approx(0, abs=1e-15)  # only a shift
    assert metrics.kl(LOG, LOG) == 0


def test_kl_of_impossible_classes():
    assert metrics.kl([[0, -INF]], [[0, 0]]) == pytest.approx(math.log(2), rel=1e-15)
    assert metrics.kl([[0, -INF]], [[0, -INF]]) == 0
    assert metrics.kl([[0, 0]], [[0, -INF]]) == INF
    assert math.isnan(metrics.kl([[0, 0]], [[0, NAN]]))
    assert math.isnan(metrics.kl([[NAN, 0]], [[0, 0]]))


def test_sqnr():
    assert metrics.sqnr_db([10, 0], [9, 0]) == pytest.approx(20, rel=1e-15)
    assert metrics.sqnr_db([3, 4], [3, 5]) == pytest.approx(10 * math.log10(25), rel=1e-15)
    assert metrics.sqnr_db([1, 1], [1, 1]) == INF
    assert metrics.sqnr_db([0, 0], [0, 0]) == INF
    assert metrics.sqnr_db([0, 0], [0, 1]) == -INF
    assert metrics.sqnr_db([1, 1], [1, INF]) == -INF
    assert math.isnan(metrics.sqnr_db([1, 1], [1, NAN]))
    assert metrics.sqnr_db([1e-200, 0], [0.9e-200, 0]) == pytest.approx(20, rel=1e-12)
    assert metrics.sqnr_db([1e200, 0], [0.9e200, 0]) == pytest.approx(20, rel=1e-12)


def test_cosine():
    assert metrics.cosine([3, 4], [4, 3]) == pytest.approx(0.96, rel=1e-15)
    assert metrics.cosine([[1, 0]], [[0, 5]]) == 0
    assert metrics.cosine([1, 2], [-2, -4]) == pytest.approx(-1, rel=1e-15)
    assert metrics.cosine([0, 0], [0, 0]) == 1
    assert metrics.cosine([0, 0], [0, 1]) == 0
    assert metrics.cosine([1e-200, 0], [1e-200, 0]) == 1
    assert metrics.cosine([1e-200, 0], [0, 1e200]) == 0
    assert math.isnan(metrics.cosine([1, NAN], [1, 2]))
    assert math.isnan(metrics.cosine([0, 0], [1, INF]))
    values = np.linspace(-1, 1, 999)
    assert -1 <= metrics.cosine(values, -3 * values) <= metrics.cosine(values, 7 * values) <= 1


def test_rmse():
    assert metrics.rmse([1, 2, 3, 4], [1, 2, 3, 8]) == 2
    assert metrics.rmse([[0.5]], [[0.25]]) == 0.25
    assert math.isnan(metrics.rmse([INF], [INF]))


@pytest.mark.parametrize("signal, noise, db", [
    (100, 1, 20), (25, 10, 10 * math.log10(2.5)), (5e-324, 1, 10 * math.log10(5e-324)), (1, 0, INF),
    (0, 0, INF), (1, -1e-30, INF), (0, 1, -INF), (1, INF, -INF), (INF, 1, INF), (INF, INF, NAN),
    (NAN, 1, NAN), (1, NAN, NAN)])
def test_ratio_db(signal, noise, db):
    assert metrics.ratio_db(signal, noise) == pytest.approx(db, rel=1e-14, nan_ok=True)


@pytest.mark.parametrize("measure", (metrics.kl, metrics.sqnr_db, metrics.cosine, metrics.rmse))
def test_pairs_must_have_one_shape(measure):
    with pytest.raises(InputError, match=r"shapes \(1, 2\) and \(2, 1\) differ"):
        measure([[1, 2]], [[1], [2]])
    with pytest.raises(InputError, match="at least one element"):
        measure([], [])
    with pytest.raises(InputError, match="at least one element"):
        measure(1.0, 1.0)


@pytest.mark.parametrize("measure", (metrics.accuracy, metrics.nll))
@pytest.mark.parametrize("labels, message", [
    ([1.0, 2.0], "labels are float64; they must be integers"),
    ([1], r"labels have shape \(1,\); logits of shape \(2, 3\) need \(2,\)"),
    ([1, 3], r"labels lie in 1..3; 3 classes allow 0..2"),
    ([-1, 2], r"labels lie in -1..2; 3 classes allow 0..2"),
])
def test_labels_are_checked(measure, labels, message):
    with pytest.raises(InputError, match=message):
        measure(LOG, labels)

"""How far one model's outputs lie from the labels, or from another model's outputs.

Everything is computed in float64. `logits` are unnormalised log-probabilities with the classes along the last
axis; the axes before it may be any (images: [N, C]; text: [batch, time, vocabulary]). Every function returns
a float.
"""

import math

import numpy as np

from refq.errors import InputError


def log_softmax(logits):
    """log of softmax along the last axis, float64, shape of `logits`; the largest entry is subtracted first,
    so that no finite logit overflows. An entry of -Inf stays -Inf; a row with +Inf or without a finite entry
    is NaN.
    """
    logits = _doubles("logits", logits)
    with np.errstate(invalid="ignore"):  # Inf - Inf where the largest is not finite: the row is NaN
        shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def accuracy(logits, labels):
    """Share of rows whose largest logit is at the label (of equal ones the first counts).

    logits [..., C]; labels [...], integers 0..C-1. A row with a NaN is wrong. Raises InputError for shapes or
    labels that do not fit.
    """
    logits = _doubles("logits", logits)
    labels = _labels(logits, labels)
    right = (logits.argmax(axis=-1) == labels) & ~np.isnan(logits).any(axis=-1)
    return float(right.mean())


def nll(logits, labels):
    """Mean negative log-likelihood of the labels, in nats; its exponential is the perplexity.

    logits [..., C]; labels [...], integers 0..C-1. Raises InputError for shapes or labels that do not fit.
    """
    logits = _doubles("logits", logits)
    labels = _labels(logits, labels)
    chosen = np.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)
    return float(-chosen.mean())


def kl(reference_logits, other_logits):
    """Mean over rows of the divergence KL(reference || other), in nats; 0 for equal probabilities.

    Both [..., C]. A class of reference probability 0 contributes 0. Raises InputError for unequal shapes.
    """
    reference, other = _pair(reference_logits, other_logits)
    log_p, log_q = log_softmax(reference), log_softmax(other)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # -Inf - -Inf where p is 0; a NaN makes p NaN and stays
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    return float(terms.sum(axis=-1).mean())


def sqnr_db(reference, other):
    """Signal to quantisation noise, 10 log10(sum reference^2 / sum (reference - other)^2), in dB.

    +Inf when the two are equal and finite, -Inf when only the reference is all zero. Raises InputError for
    unequal shapes.
    """
    reference, other = _pair(reference, other)
    signal, noise = _length(reference), _length(_difference(reference, other))
    if noise == 0:
        return math.inf
    return 20 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def ratio_db(signal, noise):
    """10 log10(signal / noise) of two sums of squares, in dB.

    +Inf without noise (rounding may leave a sum just below 0: that is none), -Inf when only the signal is 0
    or the noise is infinite, NaN where one is NaN or both are infinite.
    """
    if math.isnan(signal) or math.isnan(noise) or math.inf == signal == noise:
        return math.nan
    if noise <= 0:
        return math.inf
    if signal <= 0 or noise == math.inf:
        return -math.inf
    return math.inf if signal == math.inf else 10 * (math.log10(signal) - math.log10(noise))


def cosine(reference, other):
    """Cosine of the angle between the two arrays taken as vectors, -1..1.

    1 when both are all zero, 0 when one is, NaN when one has a NaN or Inf. Raises InputError for unequal
    shapes.
    """
    reference, other = _pair(reference, other)
    lengths = _length(reference), _length(other)
    if not all(map(math.isfinite, lengths)):
        return math.nan
    if 0 in lengths:
        return float(lengths[0] == lengths[1])
    return max(-1.0, min(1.0, float(np.vdot(reference / lengths[0], other / lengths[1]))))


def rmse(reference, other):
    """Root of the mean squared difference. Raises InputError for unequal shapes."""
    reference, other = _pair(reference, other)
    return _length(_difference(reference, other)) / math.sqrt(reference.size)


def _doubles(name, values):
    """`values` as a float64 array that has at least one element."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise InputError(f"{name} has shape {values.shape}; it must be an array of at least one element")
    return values


def _pair(reference, other):
    reference, other = _doubles("reference", reference), _doubles("other", other)
    if reference.shape != other.shape:
        raise InputError(f"shapes {reference.shape} and {other.shape} differ; they must be equal")
    return reference, other


def _labels(logits, labels):
    """`labels` as int64, checked against the shape and the number of classes of `logits`."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels are {labels.dtype}; they must be integers")
    if labels.shape != logits.shape[:-1]:
        raise InputError(f"labels have shape {labels.shape}; "
                         f"logits of shape {logits.shape} need {logits.shape[:-1]}")
    low, high, classes = labels.min(), labels.max(), logits.shape[-1]
    if low < 0 or high >= classes:
        raise InputError(f"labels lie in {low}..{high}; {classes} classes allow 0..{classes - 1}")
    return labels.astype(np.int64)


def _difference(reference, other):
    with np.errstate(invalid="ignore"):  # Inf - Inf: NaN, and so is the measure
        return reference - other


def _length(values):
    """Root of the sum of squares, none of which overflows or vanishes."""
    largest = float(np.abs(values).max())
    if largest in (0, math.inf) or math.isnan(largest):
        return largest
    scaled = values / largest
    return largest * math.sqrt(float(np.vdot(scaled, scaled)))

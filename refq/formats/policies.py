"""The two tables of policies: how a value is rounded, and what happens to what does not fit."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refq.errors import InputError


@dataclass(frozen=True)
class Remainder:
    """What rounding cuts off, element by element: arrays of one shape.

    half compares the cut-off part with half a quantum (-1, 0, +1); fraction(n) is its floor in units of
    2^-n quanta, fraction_even(n) its nearest-even in those units (uint64).
    """

    negative: np.ndarray
    odd: np.ndarray             # the code just below, in magnitude, is odd
    tie_up: np.ndarray          # a tie of rne goes to the larger magnitude
    inexact: np.ndarray
    half: np.ndarray
    fraction: Callable[[int], np.ndarray]
    fraction_even: Callable[[int], np.ndarray]
    bits: np.ndarray | None     # the random operand R, uint64
    width: int                  # its number of bits N


@dataclass(frozen=True)
class Rounding:
    """One rounding rule: `away(remainder)` says which magnitudes go to the next one up."""

    name: str
    words: str
    clause: str
    away: Callable[[Remainder], np.ndarray]
    stochastic: bool = False


# P3109's stochastic roundings count the part cut off in units of 2^-N quanta, each in its own way, and add R;
# what reaches 2^N units, a whole quantum, goes away from zero.

def _stochastic_a(r: Remainder):
    """Down to the unit below."""
    return _carries(r.fraction(r.width) + r.bits, r.width)


def _stochastic_b(r: Remainder):
    """To the nearest unit, halves up."""
    doubled = r.fraction(r.width + 1) + np.uint64(1)
    return _carries((doubled >> np.uint64(1)) + r.bits, r.width)


def _stochastic_c(r: Remainder):
    """To the nearest unit, halves to even."""
    return _carries(r.fraction_even(r.width) + r.bits, r.width)


def _carries(units, width: int):
    return units >> np.uint64(width) != 0


ROUNDINGS: dict[str, Rounding] = {rule.name: rule for rule in [
    Rounding("rne", "to nearest, ties to even", "ROUND-2", lambda r: (r.half > 0) | (r.half == 0) & r.tie_up),
    Rounding("rna", "to nearest, ties away from zero", "ROUND-2", lambda r: r.half >= 0),
    Rounding("rnz", "to nearest, ties toward zero", "ROUND-2", lambda r: r.half > 0),
    Rounding("rtz", "toward zero", "ROUND-3", lambda r: np.zeros_like(r.inexact)),
    Rounding("rup", "toward positive infinity", "ROUND-3", lambda r: r.inexact & ~r.negative),
    Rounding("rdn", "toward negative infinity", "ROUND-3", lambda r: r.inexact & r.negative),
    Rounding("rto", "to odd", "ROUND-4", lambda r: r.inexact & ~r.odd),
    Rounding("sra", "stochastic A", "ROUND-5", _stochastic_a, stochastic=True),
    Rounding("srb", "stochastic B", "ROUND-5", _stochastic_b, stochastic=True),
    Rounding("src", "stochastic C", "ROUND-5", _stochastic_c, stochastic=True),
]}


@dataclass(frozen=True)
class Overflow:
    """One overflow rule. A field names outcomes; of a tuple the first that the target can express is taken.

    above       finite and beyond the largest or least value: "inf", "nan", "max" (the extreme of that side)
    infinite    an infinite source: the same words
    nan         a NaN source, floating target: "nan", "+max", "signed-max", "zero", "opposite-zero" (NAN-2)
    nan_int     a NaN source, integer target: "zero", "max", "min" (NAN-3)
    nan_code    which NaN: "quiet", "ones", "signed-quiet", "signed-ones", "payload" (NAN-1)
    stop        which roundings stop a finite overflow at the extreme, a key of STOPS (OVER-4, OVER-5)
    negative    below zero into an unsigned target: "magnitude", or "max" (the least value), "nan" (OVER-8)
    zero        a source zero into a format without zero: "min" or "nan" (ZERO-2)
    lowest      "full" or "symmetric" range of two's-complement targets (OVER-7)
    exceptions  (special, rule name) pairs: targets of that special use the other rule (OVER-6)
    """

    name: str
    above: tuple[str, ...] = ("max",)
    infinite: tuple[str, ...] = ("max",)
    nan: tuple[str, ...] = ("nan", "+max")
    nan_int: str = "zero"
    nan_code: str = "quiet"
    stop: str = "never"
    negative: tuple[str, ...] = ("max",)
    zero: str = "min"
    lowest: str = "full"
    exceptions: tuple[tuple[str, str], ...] = ()
    ref: str = ""


# For each stop word: the roundings under which a finite value above stops at the largest, below at the least,
# and above stops only in an unsigned format with infinity.
STOPS: dict[str, tuple[frozenset, frozenset, frozenset]] = {
    "never": (frozenset(), frozenset(), frozenset()),
    "ieee": (frozenset({"rtz", "rto", "rdn"}), frozenset({"rtz", "rto", "rup"}), frozenset()),
    "p3109": (frozenset({"rtz", "rdn"}), frozenset({"rtz", "rup"}), frozenset({"rto"})),
    "p3109-main": (frozenset({"rtz", "rdn"}), frozenset({"rtz", "rup"}), frozenset()),
}

_LEAVE = ("inf", "nan", "max")      # out of range becomes infinity, else NaN, else the extreme
_UNSIGN = ("magnitude",)            # into an unsigned format the sign is dropped

OVERFLOWS: dict[str, Overflow] = {rule.name: rule for rule in [
    Overflow("sat", ref="OFP8 5.2.1 SAT"),
    Overflow("nonsat", above=_LEAVE, infinite=_LEAVE, negative=("nan", "max"), ref="OFP8 5.2.1 NONSAT"),
    Overflow("ieee", above=_LEAVE, infinite=_LEAVE, nan_code="payload", stop="ieee", negative=("nan", "max"),
             ref="IEEE 754 7.4, 6.2.3; numpy"),
    Overflow("satfinite", ref="P3109 v4.0 4.7.5 SatFinite"),
    Overflow("satpropagate", infinite=("inf", "max"), ref="P3109 v4.0 4.7.5 SatPropagate"),
    Overflow("satnone", above=("inf", "max"), infinite=("inf", "max"), stop="p3109", negative=("nan",),
             ref="P3109 v4.0 4.7.5 SatNone"),
    Overflow("satnone-main", above=_LEAVE, infinite=_LEAVE, stop="p3109-main", negative=("nan",),
             ref="P3109 formal model, July 2026; gfloat"),
    Overflow("satsym", lowest="symmetric", ref="microxcaling, TensorCast"),
    Overflow("cuda-satfinite", nan_code="ones", negative=_UNSIGN, ref="CUDA 13.5 __NV_SATFINITE"),
    Overflow("cuda-nosat", above=_LEAVE, infinite=_LEAVE, nan_code="ones", negative=_UNSIGN,
             ref="CUDA 13.5 __NV_NOSAT"),
    Overflow("cutlass", nan=("nan", "signed-max"), nan_code="ones", negative=_UNSIGN,
             ref="CUTLASS host path"),
    Overflow("ml_dtypes", above=_LEAVE, infinite=_LEAVE, nan=("nan", "opposite-zero"),
             nan_code="signed-quiet", negative=("nan", "max"), zero="nan", ref="ml_dtypes 0.6.0"),
    Overflow("torch-2.8", above=_LEAVE, infinite=_LEAVE, nan_code="signed-ones", negative=_UNSIGN,
             ref="PyTorch 2.8 CPU"),
    Overflow("torch-2.15", above=_LEAVE, infinite=_LEAVE, nan_code="signed-ones", negative=_UNSIGN,
             exceptions=(("fn", "torch-2.15-fn"),), ref="PyTorch 2.15 CPU"),
    Overflow("torch-2.15-fn", nan_code="signed-ones", negative=_UNSIGN,
             ref="PyTorch 2.15 CPU, float8_e4m3fn"),
    Overflow("onnx-sat", negative=_UNSIGN, ref="ONNX Cast-24 saturate=1"),
    Overflow("onnx-sat-19", negative=_UNSIGN, exceptions=(("fnuz", "onnx-sat-19-fnuz"),),
             ref="ONNX Cast-19 saturate=1"),
    Overflow("onnx-sat-19-fnuz", infinite=("nan",), negative=_UNSIGN, ref="ONNX Cast-19 saturate=1, FNUZ"),
    Overflow("onnx-nosat", above=_LEAVE, infinite=_LEAVE, negative=_UNSIGN, ref="ONNX Cast saturate=0"),
]}


def rounding_rule(name: str) -> Rounding:
    """The rounding rule of that name. Raises InputError for an unknown one."""
    return _look_up(ROUNDINGS, name, "rounding")


def overflow_rule(name: str, special: str = "") -> Overflow:
    """The overflow rule of that name, for targets of one special rule.

    Raises InputError for an unknown name.
    """
    rule = _look_up(OVERFLOWS, name, "overflow rule")
    return OVERFLOWS[dict(rule.exceptions).get(special, rule.name)]


def _look_up(table, name, what):
    if name not in table:
        raise InputError(f"{what} {name!r} is not known; allowed are {', '.join(table)}")
    return table[name]

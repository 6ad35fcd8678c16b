"""THE table of scale rules: how the values of a tile become its scale.

Every exponent rule is one threshold: the largest magnitude m * 2^e (1 <= m < 2) of a tile gives the shared
exponent e - emax, and one more when m lies past the threshold of the element format. A new rule is a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from refq.errors import InputError


@dataclass(frozen=True)
class Elements:
    """What a scale rule wants to know of an element format (of several tables: of all of them).

    max: largest value. emax: floor(log2 max), or what a codebook's compute format has. threshold: where values
    round past max. precision: significant bits. odd: whether max has an odd significand, so that the tie at
    the threshold rounds up.
    """

    max: Fraction
    emax: int
    threshold: Fraction
    precision: int
    odd: bool


@dataclass(frozen=True)
class Rule:
    """One scale rule.

    kind: "exponent" (for scales that are powers of two), "float" (for any other) or "none".
    past: of an exponent rule: Elements -> (threshold T, whether m = T itself is past it), or None for never.
    """

    name: str
    words: str
    kind: str
    clause: str
    past: Callable[[Elements], tuple[Fraction, bool] | None] | None = None
    ref: str = ""
    aka: tuple[str, ...] = ()


def _binade(element: Elements) -> Fraction:
    return Fraction(2) ** element.emax


RULES: dict[str, Rule] = {rule.name: rule for rule in [
    Rule("none", "no scale: every value is cast as it is", "none", "BLOCK-2"),
    Rule("floor", "shared exponent floor(log2 amax) - emax of the element", "exponent", "RULE-1",
         lambda element: None, "OCP MX 6.3", ("max", "dynamic_mx")),
    Rule("ceil", "one more as soon as amax is not a power of two", "exponent", "RULE-2",
         lambda element: (Fraction(1), False), "torchao CEIL"),
    Rule("rceil", "one more where amax would exceed the element's largest value", "exponent", "RULE-3",
         lambda element: (element.max / _binade(element), False), "cuBLAS, TransformerEngine, torchao RCEIL",
         ("topbinade",)),
    Rule("even", "one more where amax, rounded to the element's precision, reaches the next power of two",
         "exponent", "RULE-4", lambda element: (2 - Fraction(1, 1 << element.precision), True),
         "torchao EVEN, Meta option 3", ("option3",)),
    Rule("even_e2m1", "rule even with the precision of e2m1 for every element", "exponent", "RULE-4",
         lambda element: (Fraction(7, 4), True), "compressed-tensors, Quark"),
    Rule("midmax", "one more where amax would exceed max + ulp/2 of the element", "exponent", "RULE-5",
         lambda element: (element.threshold / _binade(element), False), "TensorCast midmax", ("auto",)),
    Rule("midmax_ge", "one more where amax would reach max + ulp/2 of the element", "exponent", "RULE-5",
         lambda element: (element.threshold / _binade(element), True), "TensorCast Triton kernel"),
    Rule("tosa", "one more where amax would round past the element's largest value", "exponent", "RULE-6",
         lambda element: (element.threshold / _binade(element), element.odd), "TOSA 1.1 calc_block_scale"),
    Rule("amax", "scale = amax / largest element value, rounded to nearest even in the scale format", "float",
         "BLOCK-9"),
    Rule("absmean", "scale = mean magnitude, rounded to nearest even in the scale format", "float", "RULE-7",
         ref="BitNet b1.58"),
    Rule("minmax", "scale = (max - min) / largest element value, with a zero point; the range includes zero",
         "float", "RULE-8", ref="ONNX DynamicQuantizeLinear-11, TensorCast uint"),
    Rule("hif4", "scale = amax / 7, with the one-bit exponents of its subtiles", "float", "RULE-9",
         ref="HiFloat4"),
]}


def scale_rule(name: str) -> Rule:
    """The rule of that name or alias. Raises InputError for an unknown one."""
    spellings = {spelling: rule for rule in RULES.values() for spelling in (rule.name, *rule.aka)}
    if name not in spellings:
        raise InputError(f"scale rule {name!r} is not known; allowed are {', '.join(RULES)}")
    return spellings[name]

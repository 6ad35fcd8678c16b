"""THE table of data types: a number format for the elements, and what shares a scale in which format.

A data type outside the table is named by rule: `<element>_<scale format>_<t<N>|channel|tensor>`, as in
`int4_bfloat16_t32` or `e4m3fn_float32_channel`; a bare number format is the unscaled cast. Spec: BLOCK-2.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from refq.errors import InputError
from refq.formats.codec import code_dtype, exact_in
from refq.formats.names import nearest, number_format
from refq.formats.rows import Row, registered_in

RULES = {
    "none": "no scale: every value is cast as it is",
    "floor": "shared exponent floor(log2 amax) - emax of the element (OCP MX 6.3)",
    "amax": "scale = amax / largest element value, rounded to nearest even in the scale format",
}


@dataclass(frozen=True)
class Block:
    """One data type.

    element, scale: number format names (scale None: unscaled). outer: format of a second, per-tensor scale.
    tile: values along the axis that share a scale: a number, "channel" (the whole axis) or "tensor".
    rule: how a tile's values become its scale, a key of RULES. recipe: the default recipe (Spec: BLOCK-2).
    """

    name: str
    element: str
    scale: str | None = None
    tile: int | str | None = None
    rule: str = "none"
    outer: str | None = None
    recipe: str = "exact"
    ref: str = ""
    aka: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rule not in RULES:
            allowed = ", ".join(RULES)
            raise InputError(f"{self.name}: scale rule {self.rule!r} is not known; allowed are {allowed}")
        if not (self.scale is None) == (self.tile is None) == (self.rule == "none"):
            raise InputError(f"{self.name}: a scale needs a rule and a tile, and the other way round")
        whole = isinstance(self.tile, int) and self.tile >= 1
        if self.scale and self.tile not in ("channel", "tensor") and not whole:
            raise InputError(f"{self.name}: tile {self.tile!r} is not allowed; "
                             "a number from 1, 'channel' or 'tensor' is")
        if self.outer not in (None, "float32") or (self.outer and self.rule != "amax"):
            raise InputError(f"{self.name}: the outer scale is float32 or none, and goes with rule amax, "
                             f"not {self.outer!r}")
        if self.scale:
            self._check_scaled(self.element_row, self.scale_row)

    def _check_scaled(self, element: Row, scale: Row):
        """What the arithmetic of quantize.py needs to be exact."""
        for row in (element, scale):
            if row.is_listed:
                raise InputError(f"{self.name}: {row.name} is a listed format (LIST-1), "
                                 "which no scale rule here takes")
        floor, amax = self.rule == "floor", self.rule == "amax"
        width = element.precision + scale.precision + (24 if self.outer else 0)
        for wrong, words in (
            (not scale.has_nan or not element.has_zero or element.max <= 0,
             "the scale format must have a NaN and the element a zero and a positive value"),
            (floor and (scale.special != "scale" or scale.layout.qmin < -127),
             f"rule floor needs an exponent scale format from 2^-127 up, such as e8m0, not {self.scale}"),
            (amax and (not scale.has_zero or not scale.is_float),
             f"rule amax needs a floating scale format with a zero, not {self.scale}"),
            (not exact_in(element, "float32") or not exact_in(scale, "float32"),
             f"float32 must hold every value of {self.element} and {self.scale}"),
            (amax and (width > 44 or self.outer and scale.precision > 8),
             f"{self.element} and {self.scale} have too many significant bits together to divide exactly"),
        ):
            if wrong:
                raise InputError(f"{self.name}: {words}")

    @property
    def element_row(self) -> Row:
        return number_format(self.element)

    @property
    def scale_row(self) -> Row:
        return number_format(self.scale)

    @property
    def bits_per_value(self) -> Fraction:
        """Element bits plus the scale's share in a full tile, none per channel or tensor (BLOCK-12)."""
        if not isinstance(self.tile, int):
            return Fraction(self.element_row.width)
        return self.element_row.width + Fraction(8 * code_dtype(self.scale_row).itemsize, self.tile)


def _mx(name, element, ref, *aka):
    return Block(name, element, "e8m0", 32, "floor", recipe="ocp", ref=ref, aka=aka)


DATA_TYPES: dict[str, Block] = {row.name: row for row in [
    _mx("mxfp8_e4m3", "e4m3fn", "OCP MX 5.3.1", "mxfp8", "mxfp8_e4m3fn", "mx_e4m3"),
    _mx("mxfp8_e5m2", "e5m2", "OCP MX 5.3.1", "mx_e5m2"),
    _mx("mxfp6_e2m3", "e2m3", "OCP MX 5.3.2", "mxfp6", "mx_e2m3"),
    _mx("mxfp6_e3m2", "e3m2", "OCP MX 5.3.2", "mx_e3m2"),
    _mx("mxfp4", "e2m1", "OCP MX 5.3.3", "mxfp4_e2m1", "mx_e2m1"),
    _mx("mxint8", "mxint8", "OCP MX 5.3.4"),
    Block("nvfp4", "e2m1", "ue4m3", 16, "amax", outer="float32", ref="NVFP4"),
    Block("int8", "int8", "binary32", "channel", "amax", ref="ONNX DequantizeLinear-21",
          aka=("int8_float32_channel",)),
    Block("int4", "int4", "binary16", 32, "amax", ref="ONNX DequantizeLinear-21", aka=("int4_float16_t32",)),
]}

AMBIGUOUS = {
    "fp8": ("e4m3fn_float32_channel", "e5m2_float32_channel", "mxfp8_e4m3"),
    "fp4": ("mxfp4", "nvfp4"),
    "fp6": ("mxfp6_e2m3", "mxfp6_e3m2"),
    "mxfp": ("mxfp8_e4m3", "mxfp6_e2m3", "mxfp4"),
}

_BY_RULE = re.compile(r"(.+)_([^_]+)_(t[1-9]\d*|channel|tensor)")


def data_type(name) -> Block:
    """The row of a data type from any of its spellings; a row is returned as it is.

    Raises InputError for unknown and for ambiguous spellings, naming the candidates. Spec: BLOCK-2.
    """
    if isinstance(name, Block):
        return name
    if isinstance(name, Row):
        return _unscaled(name)
    if not isinstance(name, str):
        raise InputError(f"a data type is named by a string or given as a row, not {name!r}")
    key = name.strip().lower()
    spellings = {spelling: row for row in DATA_TYPES.values() for spelling in (row.name, *row.aka)}
    if key in spellings:
        return spellings[key]
    if key in AMBIGUOUS:
        raise InputError(f"data type {name!r} is ambiguous; say which: {', '.join(AMBIGUOUS[key])}")
    if shape := _BY_RULE.fullmatch(key):
        return _by_rule(number_format(shape[1]).name, number_format(shape[2]).name, shape[3])
    try:
        return _unscaled(number_format(key))
    except InputError as error:
        raise InputError(f"data type {name!r} is not known{nearest(key, spellings)}; and {error}") from None


def _unscaled(row: Row) -> Block:
    return Block(row.name, row.name, ref=row.ref)


@lru_cache(maxsize=1024)
def _by_rule(element: str, scale: str, tile: str) -> Block:
    rule, recipe = ("floor", "ocp") if number_format(scale).special == "scale" else ("amax", "exact")
    name, size = f"{element}_{scale}_{tile}", tile if tile in ("channel", "tensor") else int(tile[1:])
    return Block(name, element, scale, size, rule, recipe=recipe, ref="by rule (BLOCK-2)")


def registered(*rows: Block):
    """Put data types into the table for the length of a `with` block. Raises InputError if one is taken."""
    return registered_in(DATA_TYPES, rows)

"""THE table of number formats. A row states layout and rules; everything else is derived from it.

Adding a format is adding one row here (and its hand-typed anchors in tests/anchors.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from refq.errors import InputError
from refq.formats import listed, values
from refq.formats.values import Layout


class _Derived:
    """Facts that follow from a row's layout (Spec: VAL-5): exact Fractions; None where there is none."""

    is_listed = False

    @property
    def width(self) -> int:
        """Bits of the stored word, padding included."""
        return self.layout.bits + self.layout.pad

    @property
    def max(self) -> Fraction:
        return self._value(self.layout.max_index)

    @property
    def lowest(self) -> Fraction:
        """The least finite value."""
        layout = self.layout
        return -self._value(layout.min_index) if layout.min_index else self._value(layout.first)

    @property
    def min_positive(self) -> Fraction:
        return self._value(self.layout.first or 1)

    @property
    def min_normal(self) -> Fraction | None:
        first = 1 << self.layout.man
        return self._value(first) if first <= self.layout.max_index and self.is_float else None

    @property
    def min_subnormal(self) -> Fraction | None:
        return self._value(1) if self.is_float and self.layout.man and not self.layout.first else None

    @property
    def ulp(self) -> Fraction:
        """Distance from 1 to the next value above it in the unbounded format; for integers the step."""
        return Fraction(2) ** (-self.layout.man if self.is_float else self.layout.qmin)

    @property
    def precision(self) -> int:
        """Significant bits of a normal value; for integers the bits of the largest magnitude."""
        return self.layout.man + 1 if self.is_float else self.layout.max_index.bit_length()

    @property
    def emax(self) -> int:
        """floor(log2(max)), the exponent of its largest power of two; 0 for int1 (values 0 and -1)."""
        return values.floor_log2(self.max or -self.lowest)

    @property
    def emin(self) -> int | None:
        return None if self.min_normal is None else values.floor_log2(self.min_normal)

    @property
    def overflow_threshold(self) -> Fraction:
        """max + ulp(max)/2: magnitudes beyond it overflow under every nearest rounding (Spec: OVER-1)."""
        return self.max + Fraction(2) ** (self.layout.magnitude(self.layout.max_index)[1] - 1)

    @property
    def code_of_one(self) -> int | None:
        layout = self.layout
        if layout.qmin > 0:
            return None
        binade = 1 - layout.man - layout.qmin       # 1 starts this binade, or is a subnormal or an integer
        index = binade << layout.man if binade > 0 else 1 << -layout.qmin
        return layout.code(False, index) << layout.pad if index <= layout.max_index else None

    @property
    def nan_codes(self) -> list[int]:
        return [code << self.layout.pad for code in values.nan_codes(self.layout)]

    @property
    def inf_codes(self) -> list[int]:
        layout = self.layout
        return [code << layout.pad for code in (layout.inf, layout.neg_inf) if code is not None]

    @property
    def has_zero(self) -> bool:
        return self.layout.first == 0

    @property
    def has_neg_zero(self) -> bool:
        return self.layout.neg_zero

    @property
    def has_nan(self) -> bool:
        return self.layout.nan is not None

    @property
    def has_inf(self) -> bool:
        return self.layout.inf is not None

    @property
    def count_finite(self) -> int:
        """Number of distinct finite values."""
        return self.layout.max_index - self.layout.first + 1 + self.layout.min_index

    def _value(self, index: int) -> Fraction:
        significand, exponent = self.layout.magnitude(index)
        return significand * Fraction(2) ** exponent


@dataclass(frozen=True)
class Float(_Derived):
    """A binary floating-point format: sign bit (if signed), `exp` exponent, `man` trailing significand bits.

    special: which codes are not plain values, a key of values.SPECIALS (Spec: VAL-3).
    tie: what a tie does at precision 1: "even" takes the even code, "up" the larger value (Spec: ROUND-6).
    pad: low bits of the stored word that carry nothing (TF32 sits in the top 19 bits of 32).
    """

    name: str
    exp: int
    man: int
    bias: int
    special: str
    signed: bool = True
    tie: str = "even"
    pad: int = 0
    ref: str = ""
    aka: tuple[str, ...] = ()

    is_float = True

    def __post_init__(self):
        if self.special not in values.SPECIALS:
            allowed = ", ".join(values.SPECIALS)
            raise InputError(f"{self.name}: special {self.special!r} is not a rule; allowed are {allowed}")
        if self.tie not in ("even", "up"):
            raise InputError(f"{self.name}: tie {self.tie!r} is not a rule; allowed are even and up")
        if self.exp < 1 or self.man < 0 or self.bits + self.pad > 64:
            raise InputError(f"{self.name}: needs exp >= 1, man >= 0 and at most 64 bits, "
                             f"got exp={self.exp} man={self.man}")
        if self.layout.max_index < max(1, self.layout.first):
            raise InputError(f"{self.name}: its special codes leave no positive value")

    @property
    def bits(self) -> int:
        return self.exp + self.man + self.signed

    @cached_property
    def layout(self) -> Layout:
        return values.float_layout(self)


@dataclass(frozen=True)
class Int(_Derived):
    """An integer format: value = integer * 2^-frac, in two's complement or sign-magnitude (Spec: VAL-4)."""

    name: str
    bits: int
    frac: int = 0
    signed: bool = True
    encoding: str = "twos"
    ref: str = ""
    aka: tuple[str, ...] = ()

    is_float = False
    special = "integer"
    tie = "even"

    def __post_init__(self):
        if self.encoding not in ("twos", "sign-magnitude"):
            raise InputError(f"{self.name}: encoding {self.encoding!r} is not known; "
                             "allowed are twos and sign-magnitude")
        if not (1 if self.encoding == "twos" else 2) <= self.bits <= 64:
            raise InputError(f"{self.name}: {self.bits} bits are not allowed; "
                             "1 to 64 (sign-magnitude 2 to 64) are")

    @cached_property
    def layout(self) -> Layout:
        return values.int_layout(self)


Row = Float | Int | listed.Listed


def p3109(k: int, p: int, signed: bool = True, domain: str = "extended") -> Float:
    """The IEEE P3109 v4.0 format of bitwidth k and precision p (Spec: VAL-6).

    domain: "extended" (with infinities) or "finite".
    Raises InputError unless 3 <= k <= 16 and 1 <= p < k (signed) or 1 <= p <= k (unsigned).
    """
    if not 3 <= k <= 16 or not 1 <= p <= k - signed or domain not in ("extended", "finite"):
        raise InputError(f"P3109 has no format K={k} P={p} signed={signed} domain={domain!r}: "
                         "allowed are K 3 to 16, P 1 to K-1 (unsigned: to K), domain extended or finite")
    shape = f"{k}p{p}{'s' if signed else 'u'}{domain[0]}"
    return Float(f"binary{shape}", exp=k - p + (not signed), man=p - 1, bias=2 ** (k - p - signed),
                 special=f"p3109-{domain}", signed=signed, ref="P3109 v4.0 4.2", aka=(f"p3109_k{shape}",))


_ROWS: list[Row] = [
    # IEEE 754 and its neighbours
    Float("binary64", 11, 52, 1023, "ieee", ref="IEEE 754 3.6", aka=("float64", "f64", "fp64", "double")),
    Float("binary32", 8, 23, 127, "ieee", ref="IEEE 754 3.6", aka=("float32", "f32", "fp32", "float")),
    Float("binary16", 5, 10, 15, "ieee", ref="IEEE 754 3.6", aka=("float16", "f16", "fp16", "half")),
    Float("bfloat16", 8, 7, 127, "ieee", ref="OFP8 4.1", aka=("bf16", "e8m7", "e8m7ieee")),
    Float("tf32", 8, 10, 127, "ieee", pad=13, ref="CUTLASS tfloat32.h", aka=("tensorfloat32", "tfloat32")),
    # 8 bits
    Float("e5m2", 5, 2, 15, "ieee", ref="OFP8 5.1",
          aka=("float8_e5m2", "f8E5M2", "FLOAT8E5M2", "bf8", "fp8_e5m2", "e5m2ieee")),
    Float("e4m3fn", 4, 3, 7, "fn", ref="OFP8 5.1",
          aka=("float8_e4m3fn", "f8E4M3FN", "FLOAT8E4M3FN", "hf8", "fp8_e4m3", "ofp8_e4m3")),
    Float("e4m3ieee", 4, 3, 7, "ieee", ref="ml_dtypes float8_e4m3", aka=("float8_e4m3", "f8E4M3")),
    Float("e3m4", 3, 4, 3, "ieee", ref="ml_dtypes float8_e3m4", aka=("float8_e3m4", "f8E3M4", "e3m4ieee")),
    Float("e4m3fnuz", 4, 3, 8, "fnuz", ref="ONNX float8",
          aka=("float8_e4m3fnuz", "f8E4M3FNUZ", "FLOAT8E4M3FNUZ")),
    Float("e5m2fnuz", 5, 2, 16, "fnuz", ref="ONNX float8",
          aka=("float8_e5m2fnuz", "f8E5M2FNUZ", "FLOAT8E5M2FNUZ")),
    Float("e4m3b11fnuz", 4, 3, 11, "fnuz", ref="ml_dtypes float8_e4m3b11fnuz",
          aka=("float8_e4m3b11fnuz", "f8E4M3B11FNUZ", "float8_e4m3b11")),
    # 6 and 4 bits
    Float("e3m2", 3, 2, 3, "finite", ref="OCP MX 5.3.2",
          aka=("float6_e3m2fn", "float6_e3m2", "f6E3M2FN", "FLOAT6E3M2", "fp6_e3m2", "e3m2finite", "e3m2fn")),
    Float("e2m3", 2, 3, 1, "finite", ref="OCP MX 5.3.2",
          aka=("float6_e2m3fn", "float6_e2m3", "f6E2M3FN", "FLOAT6E2M3", "fp6_e2m3", "e2m3finite", "e2m3fn")),
    Float("e2m1", 2, 1, 1, "finite", ref="OCP MX 5.3.3",
          aka=("float4_e2m1fn", "float4_e2m1", "f4E2M1FN", "FLOAT4E2M1", "fp4_e2m1", "e2m1finite", "e2m1fn",
               "float4_e2m1fn_x2")),
    # scales
    Float("e8m0", 8, 0, 127, "scale", signed=False, tie="up", ref="OCP MX 5.4.1",
          aka=("float8_e8m0fnu", "f8E8M0FNU", "FLOAT8E8M0", "ue8m0", "e8m0fnu", "e8m0scale")),
    Float("ue4m3", 4, 3, 7, "fn", signed=False, ref="CUTLASS float_ue4m3_t",
          aka=("float_ue4m3_t", "ue4m3fn")),
    Float("ue5m3", 5, 3, 15, "fn", signed=False, ref="CUDA 13.5 ue5m3",
          aka=("float8_e5m3", "ue5m3fn", "f8E5M3FNU")),
    # IEEE P3109, the formats every implementation must have
    p3109(8, 4), p3109(8, 3), p3109(4, 2, domain="finite"), p3109(8, 1, signed=False, domain="finite"),
    # integers
    Int("mxint8", 8, frac=6, ref="OCP MX 5.3.4"),
    *(Int(f"int{n}", n, aka=(f"i{n}", f"s{n}", f"si{n}"), ref="two's complement") for n in range(1, 17)),
    *(Int(f"uint{n}", n, signed=False, aka=(f"u{n}", f"ui{n}"), ref="unsigned binary") for n in range(1, 17)),
    *(Int(f"smint{n}", n, encoding="sign-magnitude", ref="sign and magnitude") for n in range(2, 17)),
]

FORMATS: dict[str, Row] = {row.name: row for row in _ROWS}
LISTED: dict[str, listed.Listed] = {row.name: row for row in listed.ROWS}       # by value, not by fields


@contextmanager
def registered_in(table: dict, rows) -> Iterator[None]:
    """Put rows into a table for the length of a `with` block. Raises InputError when a name is taken."""
    for row in rows:
        if row.name in table:
            raise InputError(f"the name {row.name!r} is taken")
    table.update((row.name, row) for row in rows)
    try:
        yield
    finally:
        for row in rows:
            del table[row.name]


@contextmanager
def registered(*rows: Row) -> Iterator[None]:
    """Put number formats into the table for the length of a `with` block; every part of refq then knows them.

    Raises InputError when a name is taken.
    """
    with registered_in(FORMATS, [row for row in rows if not row.is_listed]), \
            registered_in(LISTED, [row for row in rows if row.is_listed]):
        yield

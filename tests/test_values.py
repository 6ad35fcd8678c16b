"""Rows and exact values: facts against the list of all values, published tables, rows that cannot be."""

from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

import refq
from refq.errors import InputError
from refq.formats import values
from refq.formats.rows import FORMATS, Float, Int, p3109, registered

BY_RULE = ["e1m0finite", "e1m1finite", "e1m2ieee", "e2m0fn", "ue2m1fn", "ue4m3ieee", "ue3m0finite",
           "e3m0b1fnuz", "e4m3b20fn", "e5m0scale", "e8m0b0scale", "e6m4fn", "e5m2b0ieee", "binary3p1se",
           "binary3p2sf", "binary3p1ue", "binary3p3uf", "binary6p6uf", "binary10p3se", "binary12p1ue",
           "binary13p9uf"]
# Every float of up to 16 bits; of the integers the widths to 10, which differ in nothing else
NARROW = [name for name, row in FORMATS.items() if row.width <= (16 if row.is_float else 10)] + BY_RULE


@cache
def table_of(row):
    return {code: values.exact(row, code) for code in range(1 << row.width)}


@pytest.fixture(params=NARROW)
def listed(request):
    """A row, and {code: exact value} of all its codes."""
    row = refq.number_format(request.param)
    return row, table_of(row)


# --- facts against the list of all values ---------------------------------------------------------

def test_extremes_counts_and_specials(listed):
    row, table = listed
    finite = {code: value for code, value in table.items() if not isinstance(value, str)}
    assert row.max == max(finite.values()) and row.lowest == min(finite.values())
    assert row.count_finite == len(set(finite.values()))
    assert row.has_zero == (0 in finite.values())
    assert row.has_neg_zero == (list(finite.values()).count(0) == 2)
    assert row.nan_codes == [code for code, value in table.items() if value == "nan"]
    assert row.has_nan == bool(row.nan_codes)
    assert row.inf_codes == [code for code, value in table.items() if value in ("inf", "-inf")]
    assert row.has_inf == bool(row.inf_codes)
    assert [table[code] for code in row.inf_codes] == ["inf", "-inf"][:len(row.inf_codes)]
    ones = [code for code, value in table.items() if value == 1]
    assert row.code_of_one == (ones[0] if ones else None) and len(ones) <= 1
    assert len(table) == row.count_finite + row.has_neg_zero + len(row.nan_codes) + len(row.inf_codes)


def test_small_values_and_steps(listed):
    row, table = listed
    positive = sorted({value for value in table.values() if not isinstance(value, str) and value > 0})
    if not positive:
        assert row.name == "int1" and row.max == row.emax == 0        # -1 is its largest power of two
        return
    assert row.min_positive == positive[0]
    two = Fraction(2)
    assert two ** row.emax <= row.max < two ** (row.emax + 1)
    if not row.is_float:
        steps = {b - a for a, b in zip([Fraction(0), *positive], positive)}
        assert steps == {row.ulp} == {two ** -row.frac} and row.overflow_threshold == row.max + row.ulp / 2
        assert row.min_normal is row.min_subnormal is row.emin is None
        return
    if row.min_normal is not None:
        binade = [value for value in positive if row.min_normal <= value < 2 * row.min_normal]
        assert two ** row.emin == row.min_normal == binade[0] and len(binade) <= 2 ** row.layout.man
        below = [value for value in positive if value < row.min_normal]
        assert (below[0] if below else None) == row.min_subnormal
        assert len(below) in (0, 2 ** row.layout.man - 1)
        one = [value for value in positive if 1 <= value < 2 and value >= row.min_normal]
        assert len(one) < 2 or row.ulp == one[1] - 1
        last = two ** (max(row.emax, row.emin) - row.layout.man)            # step at the largest value
        assert row.overflow_threshold == row.max + last / 2


def test_indices_count_magnitudes(listed):
    """Codes and (sign, index) are each other's inverse, and magnitudes grow with the index."""
    row, table = listed
    layout = row.layout
    for code, value in table.items():
        if isinstance(value, str):
            continue
        negative, index = values.split(layout, code >> layout.pad)
        assert layout.code(negative, index) << layout.pad == code
        significand, exponent = layout.magnitude(index)
        assert significand * Fraction(2) ** exponent == abs(value)
        assert negative == (value < 0 or value == 0 and code > 0)
    indices = range(layout.first, layout.top_index + 1)
    magnitudes = [s * Fraction(2) ** e for s, e in map(layout.magnitude, indices)]
    assert all(a < b for a, b in zip(magnitudes, magnitudes[1:])) and len(magnitudes) > 1


# --- published numbers ----------------------------------------------------------------------------

# format: (max, min normal, min subnormal, NaN codes, infinities, -0, distinct values); OFP8, OCP MX, P3109
PUBLISHED = {
    "e5m2": ("57344", "1/16384", "1/65536", [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF], [0x7C, 0xFC], True, 247),
    "e4m3fn": ("448", "1/64", "1/512", [0x7F, 0xFF], [], True, 253),
    "e4m3ieee": ("240", "1/64", "1/512", [*range(0x79, 0x80), *range(0xF9, 0x100)], [0x78, 0xF8], True, 239),
    "e3m4": ("15.5", "1/4", "1/64", [*range(0x71, 0x80), *range(0xF1, 0x100)], [0x70, 0xF0], True, 223),
    "e4m3fnuz": ("240", "1/128", "1/1024", [0x80], [], False, 255),
    "e5m2fnuz": ("57344", "1/32768", "1/131072", [0x80], [], False, 255),
    "e4m3b11fnuz": ("30", "1/1024", "1/8192", [0x80], [], False, 255),
    "e3m2": ("28", "1/4", "1/16", [], [], True, 63),
    "e2m3": ("7.5", "1", "1/8", [], [], True, 63),
    "e2m1": ("6", "1", "1/2", [], [], True, 15),
    "ue4m3": ("448", "1/64", "1/512", [0x7F], [], False, 127),
    "ue5m3": ("114688", "1/16384", "1/131072", [0xFF], [], False, 255),
    "binary8p4se": ("224", "1/128", "1/1024", [0x80], [0x7F, 0xFF], False, 253),
    "binary8p3se": ("49152", "1/32768", "1/131072", [0x80], [0x7F, 0xFF], False, 253),
    "binary4p2sf": ("3", "1/2", "1/4", [8], [], False, 15),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_facts(name):
    row, (largest, normal, subnormal, nans, infs, minus_zero, count) = FORMATS[name], PUBLISHED[name]
    assert [row.max, row.min_normal, row.min_subnormal] == [*map(Fraction, (largest, normal, subnormal))]
    assert (row.nan_codes, row.inf_codes) == (nans, infs)
    assert (row.has_neg_zero, row.count_finite) == (minus_zero, count)


def test_e8m0_and_binary8p1uf():
    e8m0, p1 = FORMATS["e8m0"], FORMATS["binary8p1uf"]
    tiny = Fraction(1, 2 ** 127)
    assert (e8m0.max, e8m0.lowest, e8m0.min_positive, e8m0.min_subnormal) == (2 ** 127, tiny, tiny, None)
    assert (e8m0.has_zero, e8m0.nan_codes, e8m0.code_of_one) == (False, [255], 127)
    codes = (0, 127, 134, 254, 255)
    assert [values.exact(e8m0, code) for code in codes] == [tiny, 1, 128, 2 ** 127, "nan"]
    codes = (0, 1, 128, 254, 255)
    assert [values.exact(p1, code) for code in codes] == [0, tiny, 1, 2 ** 126, "nan"]


def test_listed_values_of_the_smallest_formats():
    def line(name):
        row = refq.number_format(name)
        return [values.exact(row, code) for code in range(1 << row.width)]
    half, nan, inf = Fraction(1, 2), "nan", "inf"
    assert line("e2m1") == [0, half, 1, 3 * half, 2, 3, 4, 6, 0, -half, -1, -3 * half, -2, -3, -4, -6]
    assert line("binary4p2sf")[:9] == [0, half / 2, half, 3 * half / 2, 1, 3 * half, 2, 3, nan]
    assert line("int3") == [0, 1, 2, 3, -4, -3, -2, -1] and line("smint3") == [0, 1, 2, 3, 0, -1, -2, -3]
    assert line("uint2") == [0, 1, 2, 3] and line("int1") == [0, -1] and line("uint1") == [0, 1]
    assert line("binary3p1se") == [0, half, 1, inf, nan, -half, -1, "-inf"]
    assert line("e1m2ieee")[:8] == [0, half, 1, 3 * half, inf, nan, nan, nan]
    assert line("e2m0fn") == [0, 1, 2, nan, 0, -1, -2, nan]
    assert [values.exact(FORMATS["mxint8"], code) for code in (1, 0x7F, 0x80, 0xFF)] == [
        Fraction(1, 64), Fraction(127, 64), -2, Fraction(-1, 64)]


@pytest.mark.parametrize("name, dtype", [("binary16", np.float16), ("binary32", np.float32),
                                         ("binary64", np.float64)])
def test_ieee_rows_are_numpy_types(name, dtype):
    row, info = FORMATS[name], np.finfo(dtype)
    assert row.max == Fraction(float(info.max)) and row.lowest == Fraction(float(info.min))
    assert row.min_normal == Fraction(float(info.smallest_normal))
    assert row.min_subnormal == Fraction(float(info.smallest_subnormal))
    assert (row.ulp, row.precision, row.width) == (Fraction(float(info.eps)), info.nmant + 1, info.bits)
    assert (row.emax, row.emin) == (info.maxexp - 1, info.minexp)
    word = np.array([1], dtype).view(f"u{row.width // 8}")[0]
    assert row.code_of_one == word
    assert row.inf_codes[0] == np.array([np.inf], dtype).view(word.dtype)[0]
    rng = np.random.default_rng(0)
    for code in rng.integers(0, 1 << row.width, 300, np.uint64).tolist():
        number = float(np.array([code], word.dtype).view(dtype)[0])
        want = Fraction(number) if np.isfinite(number) else str(number)
        assert values.exact(row, code) == want


def test_tf32_sits_in_the_top_bits_of_binary32():
    tf32 = FORMATS["tf32"]
    assert (tf32.bits, tf32.width, tf32.code_of_one) == (19, 32, 0x3F800000)
    assert tf32.inf_codes == [0x7F800000, 0xFF800000]
    for code in (0x3F800000, 0x3F802000, 0x3F803FFF, 0x7F800000, 0x00002000, 0x80000000, 0xC2F6E9FF):
        assert values.exact(tf32, code) == values.exact(FORMATS["binary32"], code & ~0x1FFF)
    assert values.exact(tf32, 0x7F801FFF) == "inf" and values.exact(tf32, 0x7F802000) == "nan"


# P3109 v4.0 4.3: emax by signedness, domain and precision
def p3109_emax(k, p, signed, domain):
    extended = domain == "extended"
    if p == 1 and not signed:
        return 2 ** (k - 1) - (3 if extended else 2)
    if extended and p == (1 if signed else 2):
        return 2 ** (k - 2) - 2
    return 2 ** (k - p - 1) - 1 if signed else 2 ** (k - p) - 1


@pytest.mark.parametrize("k", range(3, 17))
def test_p3109_family(k):
    """Bias, 1.0, NaN, infinities and emax of every format of the standard, from its own formulas."""
    made = 0
    for signed in (True, False):
        for p in range(1, k + (not signed)):
            for domain in ("extended", "finite"):
                row, extended = p3109(k, p, signed, domain), domain == "extended"
                half = 1 << (k - 1)
                assert row.bits == row.width == k and row.precision == p and not row.has_neg_zero
                assert row.bias == 2 ** (k - p - signed)
                assert row.code_of_one == (half // 2 if signed else half)
                assert row.layout.nan == (half if signed else 2 * half - 1)
                infinities = [half - 1, 2 * half - 1] if signed else [2 * half - 2]
                assert row.inf_codes == (infinities if extended else [])
                assert row.min_positive == Fraction(2) ** (2 - row.bias - p if p > 1 else 1 - row.bias)
                assert row.emax == p3109_emax(k, p, signed, domain), row.name
                assert refq.number_format(row.name) == row
                made += 1
    assert made == 2 * (k - 1 + k)


@pytest.mark.parametrize("name, largest", [
    ("binary8p1se", 2 ** 62), ("binary8p2se", 2 ** 31), ("binary8p3sf", 57344), ("binary8p4sf", 240),
    ("binary8p5se", 15), ("binary8p5sf", "15.5"), ("binary8p6se", "3.875"), ("binary8p7se", "1.96875"),
    ("binary8p4ue", 53248), ("binary8p4uf", 57344)])
def test_p3109_maxima(name, largest):
    assert refq.number_format(name).max == Fraction(largest)


# --- rows that cannot be --------------------------------------------------------------------------

GOOD = dict(name="mine", exp=4, man=3, bias=7, special="fn")
BAD_FLOATS = [
    (dict(special="ocp"), "special 'ocp' is not a rule; allowed are ieee, fn, fnuz, finite, scale"),
    (dict(tie="away"), "tie 'away' is not a rule; allowed are even and up"),
    (dict(exp=0), "needs exp >= 1, man >= 0 and at most 64 bits, got exp=0 man=3"),
    (dict(man=-1), "got exp=4 man=-1"),
    (dict(exp=11, man=60), "at most 64 bits"),
    (dict(man=50, pad=20), "at most 64 bits"),
    (dict(special="ieee", man=0), "the ieee rule needs a trailing significand"),
    (dict(special="fnuz", signed=False), "the format must be signed"),
    (dict(special="scale"), "the scale rule is for unsigned formats"),
    (dict(special="scale", man=0), "the scale rule is for unsigned formats"),
    (dict(exp=1, man=0), "its special codes leave no positive value"),
    (dict(exp=1, man=0, signed=False), "its special codes leave no positive value"),
]


@pytest.mark.parametrize("fields, words", BAD_FLOATS)
def test_bad_floats(fields, words):
    Float(**GOOD)
    with pytest.raises(InputError, match="mine.*" + words):
        Float(**GOOD | fields)


BAD_INTS = [(dict(bits=0), "0 bits are not allowed; 1 to 64"), (dict(bits=65), "65 bits"),
            (dict(bits=1, encoding="sign-magnitude"), "1 bits are not allowed"),
            (dict(bits=8, encoding="ones"), "encoding 'ones' is not known; allowed are twos and sign")]


@pytest.mark.parametrize("fields, words", BAD_INTS)
def test_bad_integers(fields, words):
    with pytest.raises(InputError, match=words):
        Int("mine", **fields)


@pytest.mark.parametrize("arguments", [(2, 1), (17, 3), (8, 0), (8, 8), (8, 9, False), (8, 4, True, "open"),
                                       (8, 4, True, None)])
def test_bad_p3109(arguments):
    with pytest.raises(InputError, match="allowed are K 3 to 16, P 1 to K-1"):
        p3109(*arguments)


@pytest.mark.parametrize("name, code", [("e2m1", 16), ("e2m1", -1), ("tf32", 1 << 32), ("int3", 8)])
def test_codes_out_of_range(name, code):
    with pytest.raises(InputError, match=f"is not a {name} code; allowed are 0 to"):
        values.exact(FORMATS[name], code)


def test_rows_are_frozen_plain_data():
    for row in FORMATS.values():
        assert type(row)(**asdict(row)) == row and hash(replace(row)) == hash(row)
    with pytest.raises(FrozenInstanceError):
        FORMATS["e4m3fn"].bias = 8


def test_the_table_has_the_required_rows():
    required = {"binary16", "binary32", "binary64", "bfloat16", "tf32", "e5m2", "e4m3fn", "e4m3ieee", "e3m4",
                "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2", "e2m3", "e2m1", "e8m0", "ue4m3", "ue5m3",
                "mxint8", "binary8p4se", "binary8p3se", "binary4p2sf", "binary8p1uf"}
    integers = {f"{kind}{n}" for kind in ("int", "uint", "smint") for n in range(1, 17)} - {"smint1"}
    assert required | integers <= set(FORMATS)
    assert all(FORMATS[name].name == name for name in FORMATS)


def test_a_registered_row_is_known_and_gone_after():
    row = Float("mine", 3, 1, 3, "fn", aka=("my_own",))
    with registered(row):
        assert refq.number_format("MY_OWN") is FORMATS["mine"] is row
        assert refq.decode(refq.encode([0.7, 100.0], "mine"), "mine").tolist() == [0.75, float(row.max)]
        with pytest.raises(InputError, match="the .*name 'mine' is taken"), registered(replace(row, bias=4)):
            pass
        assert FORMATS["mine"] is row
    with pytest.raises(InputError, match="'mine' is not known"):
        refq.number_format("mine")
    with pytest.raises(InputError, match="'e4m3fn' is taken"), registered(FORMATS["e4m3fn"]):
        pass
    assert "e4m3fn" in FORMATS

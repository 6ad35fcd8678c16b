"""Around the rules: layouts, sizes, temporaries, `out`, dtypes, the table path against the definition."""

import bisect
import itertools
import threading
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.errors import InputError
from refq.formats import codec, definition, values
from refq.formats.fast import STEP
from refq.formats.policies import OVERFLOWS, ROUNDINGS, overflow_rule, rounding_rule
from refq.formats.rows import FORMATS
from refq.vectors import coverage

F64, F32, F16, BF16 = (FORMATS[name] for name in ("binary64", "binary32", "binary16", "bfloat16"))
DETERMINISTIC = [name for name, rule in ROUNDINGS.items() if not rule.stochastic]
STOCHASTIC = [name for name, rule in ROUNDINGS.items() if rule.stochastic]
# Every format that is not a plain integer, and the integers at and around the sizes that matter
NAMES = [name for name, row in FORMATS.items() if row.is_float or row.frac] + [
    "int1", "int2", "int4", "int8", "int16", "uint1", "uint4", "uint8", "uint16", "smint2", "smint8",
    "smint16"]
TARGETS = [name for name in NAMES if FORMATS[name].width <= 16]
EIGHT = [name for name, row in FORMATS.items() if row.width <= 8]
DTYPES = {F64: np.float64, F32: np.float32, F16: np.float16, BF16: ml_dtypes.bfloat16}


def words(x):
    return np.ascontiguousarray(x).reshape(-1).view(f"u{x.itemsize}")


def defined(x, target, rounding="rne", overflow="sat", source=None):
    """The definition itself, whatever the size of the array, in x's shape."""
    x, target = np.asarray(x), refq.number_format(target)
    source = source or codec.source_row(x.dtype)
    rules = rounding_rule(rounding), overflow_rule(overflow, target.special)
    return definition.convert_words(words(x), source, target, *rules).reshape(x.shape)


def numbers(shape, dtype=np.float32, seed=0):
    """Random bit patterns, most of them brought to magnitudes that small formats can tell apart."""
    rng, size = np.random.default_rng(seed), np.dtype(dtype).itemsize
    x = np.frombuffer(rng.bytes(int(np.prod(shape)) * size), dtype).copy()
    tame = rng.random(x.size) < 0.9
    scale = np.exp2(rng.integers(-20, 12, tame.sum()))
    with np.errstate(all="ignore"):
        x[tame] = (rng.standard_normal(tame.sum()) * scale).astype(dtype)
    return x.reshape(shape)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- arrays of any layout -------------------------------------------------------------------------

def unaligned(x):
    room = np.empty(x.nbytes + 1, np.uint8)[1:]
    room[...] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return room.view(x.dtype).reshape(x.shape)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": np.asfortranarray,
    "transposed": lambda x: x.transpose(2, 0, 1),
    "reversed rows": lambda x: x[::-1],
    "reversed everywhere": lambda x: x[::-1, ::-1, ::-1],
    "strided": lambda x: x[:, ::2, 1::3],
    "one column": lambda x: x[:, :, 3],
    "broadcast row": lambda x: np.broadcast_to(x[:1, :1], x.shape),
    "broadcast scalar": lambda x: np.broadcast_to(x[1, 2, 3], (70, 90)),
    "new axes": lambda x: x[None, :, None],
    "unaligned": unaligned,
    "read only": read_only,
    "0-d": lambda x: x[1, 2, 3, ...],
    "size 0": lambda x: x[:, :0],
    "size 0, strided": lambda x: x[::-1, 5:5, ::2],
    "shape (0,)": lambda x: x[0, 0, :0],
}
SHAPES = [(3, 7, 5), (3, 130, 100)]         # below TABLE_FROM, above CHUNK


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["e4m3fn", "int16", "tf32"])
def test_encode_any_layout(layout, shape, target):
    x = LAYOUTS[layout](numbers(shape))
    before = x.tobytes()
    codes = refq.encode(x, target)
    assert same_bits(codes, defined(np.ascontiguousarray(x).reshape(x.shape), target))
    assert type(codes) is np.ndarray and codes.flags.c_contiguous and codes.flags.writeable
    assert not np.may_share_memory(codes, x) and x.tobytes() == before


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", ["e5m2", "binary16", "tf32", "e2m1"])
def test_decode_and_convert_any_layout(layout, shape, source):
    row = FORMATS[source]
    random = numbers(shape).view(np.uint32).astype(codec.code_dtype(row))
    codes = LAYOUTS[layout](random & random.dtype.type((1 << row.width) - 1))
    before, flat = codes.tobytes(), np.ascontiguousarray(codes).reshape(-1)
    x, other = refq.decode(codes, source), refq.convert(codes, source, "e4m3fnuz")
    one_by_one = [_value(row, code) for code in flat.tolist()[:300]]
    assert np.array_equal(x.reshape(-1)[:300], np.float32(one_by_one), equal_nan=True)
    assert same_bits(x, refq.decode(flat.copy(), source).reshape(codes.shape))
    assert same_bits(other, defined(flat.reshape(codes.shape), "e4m3fnuz", source=row))
    for result in (x, other):
        assert result.flags.c_contiguous and result.flags.writeable and not np.may_share_memory(result, codes)
    assert codes.tobytes() == before


def _value(row, code):
    return float(values.exact(row, code))


def test_subclasses_and_lists_come_back_as_plain_arrays(tmp_path):
    x = numbers((8, 9))
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[...] = x
    for operand in (mapped, x.tolist(), x.view(np.recarray)):
        codes = refq.encode(operand, "e4m3fn")
        assert type(codes) is np.ndarray and np.array_equal(codes, refq.encode(x, "e4m3fn"))
    assert refq.encode(1.5, "e4m3fn").shape == () and refq.encode(1.5, "e4m3fn") == 0x3C
    assert refq.encode([1, 2, 3], "int4").tolist() == [1, 2, 3]


# --- temporaries: numpy may compute an expression in the memory of one of 256 KiB or more ---------

def test_large_temporaries():
    x = numbers((1 << 17,))
    assert x.nbytes > 1 << 18
    with np.errstate(all="ignore"):
        doubled = x * np.float32(2)
        want = defined(doubled, "e4m3fn")
        assert same_bits(refq.encode(x * np.float32(2), "e4m3fn"), want)
        assert same_bits(refq.encode(np.negative(-(x + x)), "e4m3fn"), want)
        assert same_bits(refq.encode(doubled, "e4m3fn") ^ np.uint8(0), want)
        plain = refq.decode(want, "e4m3fn")
        assert same_bits(refq.decode(want | np.uint8(0), "e4m3fn"), plain)
        assert np.array_equal(-refq.decode(want, "e4m3fn") * np.float32(-1), plain, equal_nan=True)
        assert same_bits(refq.encode(refq.decode(refq.encode(x + x, "e4m3fn"), "e4m3fn"), "e4m3fn"), want)
        assert same_bits(doubled, numbers((1 << 17,)) * np.float32(2))


# --- sizes around the places where the way of working changes -------------------------------------

EDGES = sorted({edge + d for edge in (1, codec.TABLE_FROM, codec.PAIRS_FROM, definition.CHUNK, STEP, 2 * STEP)
                for d in (-1, 0, 1)})


@pytest.mark.parametrize("size", EDGES)
def test_sizes(size):
    x = numbers((size,))
    for target in ("e4m3fn", "e8m0", "binary16"):
        codes = refq.encode(x, target)
        assert same_bits(codes, defined(x, target))
        assert same_bits(refq.convert(codes, target, "e3m2"), defined(codes, "e3m2", source=FORMATS[target]))
        row = FORMATS[target]
        table = definition.values_of(row, np.arange(1 << row.width), np.dtype(np.float32))
        assert same_bits(refq.decode(codes, target), table[codes])


def test_the_sizes_reach_every_way_of_working():
    assert EDGES[0] == 0 and codec.TABLE_FROM < codec.PAIRS_FROM < STEP < EDGES[-1]
    assert codec.plan(F32, FORMATS["e4m3fn"], "rne", "sat").low is None
    assert codec.plan(F32, FORMATS["binary16"], "rne", "sat").low is not None


# --- the table path against the definition --------------------------------------------------------

def operands(source, target):
    """Boundary cases, random patterns of all magnitudes and of the target's: more than TABLE_FROM."""
    row, kind = FORMATS[target], codec.code_dtype(source).type
    rng = np.random.default_rng(5)
    edge = coverage.boundary(source, row) if row.width <= 8 else coverage.special(source, row)
    anything = rng.integers(0, 1 << source.width, 3000, dtype=kind)
    low = coverage.floor_index(source, row.layout.magnitude(row.layout.first))[0]
    high = coverage.floor_index(source, row.layout.magnitude(row.layout.max_index))[0]
    binade = 1 << source.layout.man
    near = rng.integers(max(low - 4 * binade, 0), min(high + 2 * binade, source.layout.inf), 3000, kind)
    return np.concatenate([edge, anything, near, near | kind(1 << (source.width - 1))])


RULES = itertools.cycle(name for name in OVERFLOWS if name not in ("sat", "ieee"))
PAIRS = {(target, rounding): ("sat", next(RULES))
         for target in TARGETS for rounding in DETERMINISTIC}


@pytest.mark.parametrize("target", TARGETS)
def test_table_path_is_the_definition(target):
    for source in (F32, F64):
        codes = operands(source, target)
        assert codes.size > codec.TABLE_FROM
        for rounding in DETERMINISTIC:
            for overflow in PAIRS[target, rounding]:
                got = refq.convert(codes, source, target, rounding, overflow)
                want = defined(codes, target, rounding, overflow, source)
                bad = np.flatnonzero(got != want)
                where = f"{source.name} -> {target} {rounding}-{overflow}"
                assert not bad.size, (where, *(hex(array[bad[0]]) for array in (codes, got, want)), bad.size)


def test_table_path_tests_every_overflow_rule():
    assert {rule for rules in PAIRS.values() for rule in rules} == set(OVERFLOWS) - {"ieee"}


@pytest.mark.parametrize("target", ["e4m3fn", "e5m2", "e8m0", "e2m1", "int8", "binary16", "bfloat16"])
@pytest.mark.parametrize("overflow", ["sat", "ieee"])
def test_narrow_sources_use_a_table_of_all_their_codes(target, overflow):
    for source in (F16, BF16):
        codes = np.arange(1 << 16, dtype=np.uint16)
        if source is not FORMATS[target]:
            assert codec.plan(source, FORMATS[target], "rup", overflow).shift == 0
        got = refq.convert(codes, source, target, "rup", overflow)
        assert np.array_equal(got, defined(codes, target, "rup", overflow, source))


def test_every_format_of_precision_up_to_6_has_a_table_from_float32():
    """DESIGN 8 promises the table's speed for all of them."""
    narrow = [row for row in FORMATS.values() if row.precision <= 6]
    assert len(narrow) > 30
    assert [row.name for row in narrow if codec.plan(F32, row, "rne", "sat") is None] == []


@pytest.mark.parametrize("target", ["e4m3fn", "e2m1", "int4", "e8m0", "binary16"])
def test_stochastic_roundings_ignore_the_size_of_the_array(target):
    x = numbers((STEP + 77,))
    for rounding, width in itertools.product(STOCHASTIC, (1, 7, 32)):
        bits = np.random.default_rng(width).integers(0, 1 << width, x.size, dtype=np.uint64)
        whole = refq.encode(x, target, rounding, random_bits=bits, random_width=width)
        pieces = (slice(i, i + 5000) for i in range(0, x.size, 5000))
        parts = [refq.encode(x[i], target, rounding, random_bits=bits[i], random_width=width) for i in pieces]
        assert np.array_equal(whole, np.concatenate(parts))
        down, up = refq.encode(x, target, "rtz"), refq.encode(x, target, "rup")
        floor = refq.encode(x, target, "rdn")
        assert np.all((whole == down) | (whole == up) | (whole == floor)) and np.any(whole != down)


# --- what holds without knowing the rules ---------------------------------------------------------

@pytest.mark.parametrize("name", TARGETS)
def test_values_of_a_format_are_fixed_points(name):
    """Every finite code comes back from its own value, under every rounding, from every dtype."""
    row = FORMATS[name]
    codes = np.arange(1 << row.width).astype(codec.code_dtype(row))
    finite = codes[~np.isin(codes, row.nan_codes + row.inf_codes)]
    assert finite.size == row.count_finite + row.has_neg_zero
    for dtype in (np.float64, np.float32, np.float16):
        try:
            x = refq.decode(finite, row, dtype)
        except InputError:
            assert dtype == np.float16 or row.width > 16 or row.precision == 1
            continue
        for rounding in DETERMINISTIC:
            assert np.array_equal(refq.encode(x, row, rounding), finite)
        for rounding in STOCHASTIC:
            for random in (0, 15):
                codes = refq.encode(x, row, rounding, random_bits=random, random_width=4)
                assert np.array_equal(codes, finite)


@pytest.mark.parametrize("name", [name for name in TARGETS if FORMATS[name].layout.sign == "bit"])
def test_symmetry(name):
    """-x gives the code of x with the other sign; rup and rdn change places."""
    row, x = FORMATS[name], numbers((9000,))
    x = x[np.isfinite(x)]
    mirror = {"rup": "rdn", "rdn": "rup"}
    for rounding in DETERMINISTIC:
        codes, opposite = refq.encode(x, row, rounding), refq.encode(-x, row, mirror.get(rounding, rounding))
        flipped = codes ^ codes.dtype.type(1 << (row.width - 1))
        zero = codes == (0 if not row.has_neg_zero else -1)
        assert np.array_equal(opposite, np.where(zero, codes, flipped))


@pytest.mark.parametrize("name", TARGETS)
def test_monotone_and_next_to_the_value(name):
    """A rounding never swaps two numbers, and gives the value below or above."""
    row = FORMATS[name]
    x = np.sort(numbers((9000,), np.float64))
    x = x[np.isfinite(x)]
    down, up = (refq.decode(refq.encode(x, row, rounding), row, np.float64) for rounding in ("rdn", "rup"))
    inside = (x >= float(row.lowest)) & (x <= float(row.max))
    assert np.all(down[inside] <= x[inside]) and np.all(up[inside] >= x[inside]) and inside.sum() > 100
    for rounding in DETERMINISTIC:
        y = refq.decode(refq.encode(x, row, rounding), row, np.float64)
        assert np.all(np.diff(y) >= 0) and np.all((y == down) | (y == up))


def test_threads_share_tables():
    x = numbers((60_000,))
    want, got = defined(x, "e3m4", "rna", "nonsat"), {}

    def work(number):
        got[number] = refq.encode(x, "e3m4", "rna", "nonsat"), refq.decode(want, "e3m4")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    for codes, decoded in got.values():
        assert np.array_equal(codes, want) and same_bits(decoded, got[0][1])


# --- out= -----------------------------------------------------------------------------------------

SIZES = [50, 20_001]        # definition, table and pairs


@pytest.mark.parametrize("size", SIZES)
def test_out_receives_and_is_returned(size):
    x = numbers((size,))
    codes = refq.encode(x, "e4m3fn")
    y = refq.decode(codes, "e4m3fn")
    for call, want in ((lambda out: refq.encode(x, "e4m3fn", out=out), codes),
                       (lambda out: refq.decode(codes, "e4m3fn", out=out), y),
                       (lambda out: refq.convert(codes, "e4m3fn", "e4m3fn", out=out), codes)):
        for room in (np.empty(size, want.dtype), np.empty(2 * size, want.dtype)[::2],
                     np.empty(size, want.dtype)[::-1], unaligned(np.zeros(size, want.dtype))):
            room.view(f"u{want.itemsize}")[...] = 0x55
            assert call(room) is room and same_bits(np.ascontiguousarray(room), want)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (4, 5), (150, 40)], ids=str)
def test_out_of_any_shape_and_order(shape):
    x = numbers(shape)
    for order in "CF":
        room = np.full(shape, 0x55, np.uint8, order=order)
        assert refq.encode(x, "e2m3", out=room) is room and np.array_equal(room, defined(x, "e2m3"))
        values_room = np.full(shape, 7, np.float64, order=order)
        assert refq.decode(room, "e2m3", np.float64, out=values_room) is values_room
        assert np.array_equal(values_room, refq.decode(defined(x, "e2m3"), "e2m3"))


@pytest.mark.parametrize("size", SIZES)
def test_out_may_overlap_the_operand(size):
    """Codes written over the memory of the numbers they come from, and the other way round."""
    x = numbers((size,))
    want = refq.encode(x, "e4m3fn")
    for start in (0, 1, 3 * size):
        memory = x.copy()
        out = memory.view(np.uint8)[start: start + size]
        assert refq.encode(memory, "e4m3fn", out=out) is out and np.array_equal(out, want)
    for step in (1, -1):
        memory = want.copy()
        out = memory[::step]
        assert refq.convert(memory, "e4m3fn", "e5m2", out=out) is out
        assert np.array_equal(memory[::step], refq.convert(want, "e4m3fn", "e5m2"))
    memory = np.zeros(4 * size, np.uint8)
    memory[-size:] = want
    out = memory.view(np.float32)
    assert refq.decode(memory[-size:], "e4m3fn", out=out) is out
    assert same_bits(out, refq.decode(want, "e4m3fn"))


@pytest.mark.parametrize("out", [
    np.zeros(3, np.int8), np.zeros(3, np.uint16), np.zeros(4, np.uint8), np.zeros((3, 1), np.uint8),
    np.zeros((), np.uint8), [0, 0, 0], read_only(np.zeros(3, np.uint8)), np.zeros(3, np.float32)],
    ids=lambda out: f"{getattr(out, 'dtype', 'list')}{np.shape(out)}")
def test_out_is_refused(out):
    for call in (lambda: refq.encode(np.float32([1, 2, 3]), "e4m3fn", out=out),
                 lambda: refq.convert(np.uint8([1, 2, 3]), "e5m2", "e4m3fn", out=out)):
        with pytest.raises(InputError, match=r"out must be .*array of shape \(3,\) and dtype uint8"):
            call()
    assert not np.any(out)


@pytest.mark.parametrize("dtype", [">f4", np.float64, np.uint32, np.float16])
def test_out_of_decode_is_refused(dtype):
    with pytest.raises(InputError, match="out must be .*array of shape .3,. and dtype float32"):
        refq.decode(np.uint8([1, 2, 3]), "e4m3fn", out=np.zeros(3, dtype))


# --- sources --------------------------------------------------------------------------------------

FLOAT_TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_float_sources_are_rounded_from_their_own_value(dtype):
    x = numbers((6000,), dtype, seed=3)
    with np.errstate(invalid="ignore"):         # signalling NaNs
        exact = x.astype(np.float64)
    keep = np.isfinite(exact)
    for target in ("e4m3fn", "e2m1", "int8", "e8m0"):
        assert np.array_equal(refq.encode(x, target)[keep], refq.encode(exact, target)[keep])


INT_TYPES = [np.dtype(code) for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "longlong",
                                         "ulonglong")]


@pytest.mark.share(3)
@pytest.mark.parametrize("dtype", INT_TYPES, ids=str)
@pytest.mark.parametrize("target", ["int8", "uint4", "smint3", "mxint8", "e5m2", "bfloat16", "binary32",
                                    "e8m0"])
def test_integer_sources(dtype, target):
    """Against exact fractions, also where float64 cannot hold the integer; in few and in many elements."""
    info, row, rng = np.iinfo(dtype), FORMATS[target], np.random.default_rng(1)
    near = {sign * (2 ** k + d) for k in range(64) for sign in (1, -1)
            for d in (-2, -1, 0, 1, 2, 2 ** max(k - 3, 0), 2 ** max(k - 9, 0))}
    chosen = sorted({n for n in near if info.min <= n <= info.max} | {int(info.min), int(info.max), 0})
    chosen += rng.integers(info.min, info.max, 50, dtype, endpoint=True).tolist()
    x = np.array(chosen, dtype)
    want = [binary32(n) if target == "binary32" else nearest_even(row, Fraction(n)) for n in chosen]
    assert refq.encode(x, target).tolist() == want
    copies = codec.TABLE_FROM // x.size + 1
    assert np.array_equal(refq.encode(np.tile(x, copies), target), np.tile(want, copies))


@pytest.mark.parametrize("x", [
    *(np.zeros(3, kind) for kind in ("?", "c8", "c16", ">f4", ">f8", ">f2", ">i4", ">u2", "m8[s]", "M8[s]")),
    np.zeros(3, [("a", "f4")]), np.zeros(3, ml_dtypes.float8_e4m3fn), np.zeros(3, ml_dtypes.int4),
    np.array(["1", "2"]), np.array([b"1"]), np.array([1.0, None]), None, "1.5", 2 ** 70, {}],
    ids=lambda x: str(getattr(x, "dtype", repr(x))))
def test_refused_sources(x):
    with pytest.raises(InputError, match="allowed are float64, float32, float16, bfloat16 and integers"):
        refq.encode(x, "e4m3fn")


def test_longdouble_is_refused_unless_it_is_float64():
    x = np.zeros(3, np.longdouble)
    if x.dtype.itemsize == 8:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(InputError, match="allowed are"):
        refq.encode(x, "e4m3fn")


def nearest_even(row, value):
    """Nearest value of a format, ties to the even code, saturating: from the list of its values."""
    codes, points = _points(row)
    if not row.has_zero and value <= points[0]:
        return codes[0]
    place = bisect.bisect_left(points, value)
    if place == len(points):
        return codes[-1]
    if points[place] == value or place == 0:
        return codes[place]
    below, above = value - points[place - 1], points[place] - value
    even = codes[place] if codes[place] % 2 == 0 else codes[place - 1]
    even = codes[place] if row.tie == "up" else even
    return codes[place - 1] if below < above else codes[place] if above < below else even


_POINTS = {}


def _points(row):
    """Codes and values, ascending, +0 for both zeros."""
    if row.name not in _POINTS:
        listed = [(values.exact(row, code), code) for code in range(1 << row.width)]
        table = sorted((value, code) for value, code in listed if not isinstance(value, str))
        table = [pair for pair, before in zip(table, [(None, None), *table]) if pair[0] != before[0]]
        _POINTS[row.name] = [code for _, code in table], [value for value, _ in table]
    return _POINTS[row.name]


def binary32(n):
    """The binary32 code of an integer: 24 bits are kept, nearest even."""
    lost = max(abs(n).bit_length() - 24, 0)
    kept, rest = divmod(abs(n), 1 << lost)
    kept += 2 * rest > 1 << lost or (2 * rest == 1 << lost and kept % 2 == 1 and lost > 0)
    return int(np.float32((kept << lost) * (-1 if n < 0 else 1)).view(np.uint32))


# --- random bits ----------------------------------------------------------------------------------

def test_random_bits_broadcast():
    x = numbers((40, 50))
    row = np.random.default_rng(0).integers(0, 16, 50)
    def sra(bits, width=4):
        return refq.encode(x, "e4m3fn", "sra", random_bits=bits, random_width=width)
    full = sra(np.tile(row, (40, 1)))
    assert np.array_equal(sra(row), full)
    assert np.array_equal(sra(row.astype(np.uint8), np.int8(4)), full)
    assert np.array_equal(sra(7), sra(np.full(x.shape, 7))) and not np.array_equal(sra(7), full)


# StochasticA, B, C at 1 + f/8 between 1 and 1.125 of e4m3fn, with 2 random bits: how many of R = 0..3 go up
GOES_UP = [
    ("sra", 0.0, 0), ("sra", 0.24, 0), ("sra", 0.25, 1), ("sra", 0.5, 2), ("sra", 0.99, 3),
    ("srb", 0.0, 0), ("srb", 0.12, 0), ("srb", 0.125, 1), ("srb", 0.25, 1), ("srb", 0.375, 2),
    ("srb", 0.99, 4),
    ("src", 0.0, 0), ("src", 0.125, 0), ("src", 0.13, 1), ("src", 0.25, 1), ("src", 0.375, 2),
    ("src", 0.99, 4)]


@pytest.mark.parametrize("rounding, fraction, ups", GOES_UP)
def test_stochastic_by_hand(rounding, fraction, ups):
    x = np.full(4, 1 + fraction / 8)
    bits = dict(random_bits=np.arange(4), random_width=2)
    codes = refq.encode(x, "e4m3fn", rounding, **bits)
    assert codes.tolist() == [0x38] * (4 - ups) + [0x39] * ups
    assert refq.encode(-x, "e4m3fn", rounding, **bits).tolist() == (codes | 0x80).tolist()


BAD_RANDOM = [
    (dict(rounding="sra"), "needs random_bits and a random_width of 1 to 32"),
    (dict(rounding="sra", random_bits=[0, 1, 2]), "random_width=None"),
    (dict(rounding="srb", random_width=4), "needs random_bits"),
    (dict(rounding="src", random_bits=[0, 1, 2], random_width=0), "1 to 32"),
    (dict(rounding="src", random_bits=[0, 1, 2], random_width=33), "1 to 32"),
    (dict(rounding="src", random_bits=[0, 1, 2], random_width=8.0), "1 to 32"),
    (dict(rounding="src", random_bits=[0, 1, 2], random_width="8"), "1 to 32"),
    (dict(rounding="src", random_bits=[0, 1, 2], random_width=True), "1 to 32"),
    (dict(rounding="src", random_bits=[0, 1, 4], random_width=2), r"integers from 0 to 2\^2 - 1"),
    (dict(rounding="src", random_bits=[0, -1, 3], random_width=2), r"integers from 0 to 2\^2 - 1"),
    (dict(rounding="src", random_bits=[0.0, 1.0, 2.0], random_width=2), r"integers from 0 to 2\^2 - 1"),
    (dict(rounding="src", random_bits=[False, True, True], random_width=2), r"integers from 0 to 2\^2 - 1"),
    (dict(rounding="src", random_bits=[0, 1], random_width=2), r"shape \(2,\) do not broadcast to \(3,\)"),
    (dict(rounding="src", random_bits=[[0], [1]], random_width=2), r"shape \(2, 1\) do not broadcast"),
    (dict(rounding="rne", random_bits=[0, 1, 2]), "'rne' takes no random_bits"),
    (dict(rounding="rtz", random_width=4), "'rtz' takes no random_bits"),
]


@pytest.mark.parametrize("arguments, words_", BAD_RANDOM)
def test_random_bits_are_checked(arguments, words_):
    for call in (lambda: refq.encode(np.ones(3), "e4m3fn", **arguments),
                 lambda: refq.convert(np.uint8([1, 2, 3]), "e5m2", "e2m1", **arguments)):
        with pytest.raises(InputError, match=words_):
            call()


# --- decode ---------------------------------------------------------------------------------------

# (format, smallest dtype that holds every value), by hand
INEXACT = [
    ("e4m3fn", "float16"), ("e5m2", "float16"), ("e5m2fnuz", "float16"), ("e8m0", "float32"),
    ("bfloat16", "float32"), ("tf32", "float32"), ("binary16", "float16"), ("binary32", "float32"),
    ("binary64", "float64"),
    ("binary8p1uf", "float32"), ("int16", "float32"), ("uint16", "float32"), ("int12", "float16"),
    ("uint11", "float16"), ("uint12", "float32"), ("e11m4ieee", "float64"), ("e11m4fn", "none"),
    ("e4m11fn", "float32"), ("e3m23fn", "float32"), ("e3m24fn", "float64"), ("binary16p1se", "none")]


@pytest.mark.parametrize("name, smallest", INEXACT)
def test_decode_refuses_inexact_dtypes(name, smallest):
    dtypes = ["float16", "float32", "float64", "none"]
    for dtype in dtypes[:3]:
        if dtypes.index(dtype) < dtypes.index(smallest):
            with pytest.raises(InputError, match=f"not every value of {name} is exact in {dtype}"):
                refq.decode([1], name, dtype)
        else:
            assert refq.decode([1], name, dtype).dtype == dtype
            assert float(refq.decode([1], name, dtype)[0]) == float(values.exact(refq.number_format(name), 1))


@pytest.mark.parametrize("dtype", ["float8", ml_dtypes.bfloat16, np.int32, np.longdouble, ">f4", bool, object,
                                   "S4", 7])
def test_decode_refuses_other_dtypes(dtype):
    if dtype is np.longdouble and np.dtype(dtype).itemsize == 8:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(InputError, match="float64, float32"):
        refq.decode(np.uint8([1]), "e4m3fn", dtype)


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].has_nan])
def test_nans_decode_to_the_canonical_one(name):
    row = FORMATS[name]
    layout = row.layout
    few = [layout.nan, (layout.inf or 0) + 1, layout.nan_ones | 1 << (layout.bits - 1)]
    codes = np.array([code << layout.pad for code in few] if row.width > 16 else row.nan_codes, np.uint64)
    for dtype, quiet in ((np.float64, 0x7FF8 << 48), (np.float32, 0x7FC00000)):
        if name != "binary64" or dtype == np.float64:
            decoded = refq.decode(codes.astype(codec.code_dtype(row)), row, dtype)
            assert decoded.view(f"u{decoded.itemsize}").tolist() == [quiet] * len(codes)


BAD_CODES = [
    ([1, 16], "e2m1", "0x10 is not a e2m1 code; allowed are 0 to 0xf"),
    ([-1], "e4m3fn", "-0x1 is not a e4m3fn code"),
    (np.uint16([256]), "e5m2", "0x100 is not"),
    (np.int64([1 << 32]), "binary32", "0x100000000"),
    (np.uint8([64]), "e3m2", "0x40"),
    ([1.0], "e4m3fn", "must be unsigned integers, got dtype float64"),
    (np.array([True]), "e2m1", "got dtype bool"),
    (["1"], "e4m3fn", "must be unsigned integers"),
    (None, "e4m3fn", "must be unsigned integers"),
]


@pytest.mark.parametrize("codes, name, words_", BAD_CODES)
def test_codes_out_of_range(codes, name, words_):
    for call in (lambda: refq.decode(codes, name), lambda: refq.convert(codes, name, "int8")):
        with pytest.raises(InputError, match=words_):
            call()


def test_codes_of_any_integer_dtype():
    for dtype in INT_TYPES:
        assert refq.decode(np.array([0, 1, 7], dtype), "e2m1").tolist() == [0, 0.5, 6]
        assert refq.convert(np.array([0, 1, 7], dtype), "e2m1", "int4").tolist() == [0, 0, 6]


def test_padding_is_ignored_when_read_and_zero_when_written():
    x = np.float32([1.5, -2, np.inf, 3e38])
    codes = refq.encode(x, "tf32", overflow="ieee")
    assert not np.any(codes & 0x1FFF)
    assert same_bits(refq.decode(codes | np.uint32(0x1FFF), "tf32"), refq.decode(codes, "tf32"))
    dirty, clean = (refq.convert(words, "tf32", "e5m2") for words in (codes | np.uint32(0x1234), codes))
    assert np.array_equal(dirty, clean)


# --- convert --------------------------------------------------------------------------------------

@pytest.mark.parametrize("source", EIGHT)
def test_convert_goes_through_exact_values(source):
    """All pairs of formats of up to 8 bits: as from float64, which holds every value of them."""
    row = FORMATS[source]
    codes = np.arange(1 << row.width, dtype=np.uint8)
    x = refq.decode(codes, row, np.float64)
    for target in EIGHT:
        for rounding in ("rne", "rup"):
            got = refq.convert(codes, row, target, rounding)
            assert np.array_equal(got, refq.encode(x, target, rounding)), (target, rounding)


FEW = ["e5m2", "e4m3fn", "e4m3fnuz", "e3m2", "e2m1", "e8m0", "ue4m3", "binary8p3se", "binary8p1uf", "mxint8",
       "int4", "uint8", "smint5"]


@pytest.mark.parametrize("source", FEW)
def test_convert_to_the_nearest_of_the_listed_values(source):
    row = FORMATS[source]
    codes = np.arange(1 << row.width, dtype=np.uint8)
    for target in FEW:
        goal, got = FORMATS[target], refq.convert(codes, source, target).tolist()
        for code in codes.tolist():
            value = values.exact(row, code)
            if isinstance(value, str) or (value == 0 and goal.has_neg_zero):
                continue
            want = nearest_even(goal, value)
            want = {0}.union({1 << (goal.width - 1)} if goal.has_neg_zero else ()) if want == 0 else {want}
            assert got[code] in want, (target, code, got[code], want)


@pytest.mark.parametrize("call, words_", [
    (lambda: refq.encode([1.0], "e4m3"), "ambiguous; say which: e4m3fn"),
    (lambda: refq.encode([1.0], None), "named by a string"),
    (lambda: refq.encode([1.0], "e4m3fn", "up"), "rounding 'up' is not known; allowed are rne"),
    (lambda: refq.encode([1.0], "e4m3fn", "rne", "saturate"), "rule 'saturate' is not known; allowed"),
    (lambda: refq.convert([1], "e4m3fn", "fp8"), "ambiguous"),
    (lambda: refq.decode([1], "e4m3fm"), "nearest names: e4m3fn"),
])
def test_unknown_names_are_told(call, words_):
    with pytest.raises(InputError, match=words_):
        call()

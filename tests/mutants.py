"""Defects that real projects shipped, as devices: each a small wrong function with its public thread.

The committed vectors must kill every one (test_mutants.py); tools/kill_matrix.py prints which set kills
which. Where a thread tells of a weaker check that missed the defect, `misses` names such an operand set and
the mutant must survive it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from refq.formats import codec
from refq.formats.rows import Float, Int
from refq.vectors import coverage, sets, tiles
from refq.vectors.vec import code_dtype, format_of


@dataclass(frozen=True)
class Mutant:
    """name; thread: owner/repository#number, or the measured disagreement; what goes wrong; which sets it
    speaks to."""

    name: str
    thread: str
    what: str
    applies: Callable
    answer: Callable
    misses: str = ""


@dataclass(frozen=True)
class Cast:
    """What a wrong cast works with: codes, rows, rules, and the right answer under other circumstances."""

    name: sets.SetName
    codes: np.ndarray
    random: np.ndarray | None = None
    source: object = field(init=False)
    target: object = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "source", format_of(self.name.src))
        object.__setattr__(self, "target", format_of(self.name.dst))

    @property
    def values(self) -> np.ndarray:
        """The operands as float64."""
        return codec.decode(self.codes, self.source, np.float64)

    @property
    def magnitudes(self) -> np.ndarray:
        """Finite magnitudes; zero for NaN and infinity."""
        return np.where(np.isfinite(self.values), np.abs(self.values), 0)

    @property
    def negative(self) -> np.ndarray:
        return self.codes >> (self.source.width - 1) != 0

    def right(self, codes=None, rounding=None, overflow=None, source=None, target=None) -> np.ndarray:
        """The correct cast, with some circumstance changed."""
        own, width = self.name.rounding
        stochastic = rounding is None and width
        return codec.convert(self.codes if codes is None else codes, source or self.source,
                             target or self.target,
                             rounding or own, overflow or self.name.policy,
                             random_bits=self.random if stochastic else None,
                             random_width=width if stochastic else None)

    def signed(self, code: int) -> np.ndarray:
        """A positive code with each operand's sign."""
        return np.where(self.negative, code | 1 << (self.target.width - 1), code)

    def where(self, condition, code) -> np.ndarray:
        """The right answer, but `code` where the condition holds."""
        return np.where(condition, code, self.right()).astype(code_dtype(self.target.width))


MUTANTS: list[Mutant] = []


def kills(mutant: Mutant, name: sets.SetName, operands, results) -> int:
    """How many cases the mutant answers differently from the golden results."""
    answers = mutant.answer(name, operands)
    wrong = np.zeros(len(operands[0]), bool)
    for answer, golden in zip(answers, results, strict=True):
        assert answer.shape == golden.shape, mutant.name
        wrong |= (answer != golden).reshape(len(wrong), -1).any(1)
    return int(wrong.sum())


def _matches(wanted, value) -> bool:
    return wanted is None or (wanted(value) if callable(wanted)
                              else value in ((wanted,) if isinstance(wanted, str) else wanted))


def on(op, src=None, dst=None, rounding=None, policy=None) -> Callable:
    """A predicate on set names: each part a string, a tuple of strings, a predicate, or None for any.

    Block mutants speak of the exact recipes unless a policy is named.
    """
    if op == "quantize" and policy is None:
        policy = ("ocp", "exact")
    return lambda name: (_matches(op, name.op) and _matches(src, name.src) and _matches(dst, name.dst)
                         and _matches(rounding, name.rounding[0] if name.op != "decode" else "exact")
                         and _matches(policy, name.policy))


def _register(kind):
    def mutant(thread: str, what: str, applies: Callable, misses: str = ""):
        def register(function):
            MUTANTS.append(Mutant(function.__name__.strip("_"), thread, what, applies, kind(function),
                                  misses))
            return function
        return register
    return mutant


encode_mutant = _register(lambda function: lambda name, operands: (function(Cast(name, *operands)),))
decode_mutant = _register(lambda function: lambda name, operands: (function(name, operands[0]),))
block_mutant = _register(lambda function: function)

MINIFLOATS = ("e5m2", "e4m3fn", "e4m3ieee", "e3m4", "e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz", "e3m2", "e2m3",
              "e2m1")
FNUZ = ("e4m3fnuz", "e5m2fnuz", "e4m3b11fnuz")
SATURATING = ("sat", "satfinite")


# --- rounding twice -----------------------------------------------------------------------------------------

def _through(cast: Cast, middle: str) -> np.ndarray:
    return cast.right(cast.right(target=format_of(middle), rounding="rne", overflow="ieee"),
                      source=format_of(middle))


@encode_mutant("triton-lang/triton#11753", "float32 goes through float16, rounding twice",
               on("encode", "f32", MINIFLOATS, "rne", "sat"), misses="roundtrip")
def double_rounding_through_f16(cast):
    return _through(cast, "f16")


@encode_mutant("MurrellGroup/Microfloats.jl#25", "float32 goes through bfloat16, rounding twice",
               on("encode", "f32", MINIFLOATS, "rne", "sat"), misses="roundtrip")
def double_rounding_through_bf16(cast):
    return _through(cast, "bf16")


@encode_mutant("jax-ml/ml_dtypes#401", "float64 goes through float32, rounding twice",
               on("encode", "f64", MINIFLOATS, "rne"), misses="randn")
def double_rounding_through_f32(cast):
    return _through(cast, "f32")


# --- ties and sticky bits -----------------------------------------------------------------------------------

@encode_mutant("ROCm/aiter#3992", "ties away from zero instead of to even",
               on("encode", None, MINIFLOATS, "rne", "sat"),
               misses="randn")
def ties_away(cast):
    return cast.right(rounding="rna")


@encode_mutant("Model-Optimizer MXFP4 (measured: 0.75 gives 0.5, 3.5 gives 3)", "ties toward zero",
               on("encode", None, MINIFLOATS, "rne", "sat"), misses="randn")
def ties_toward_zero(cast):
    return cast.right(rounding="rnz")


@encode_mutant("onnx/onnx#5456", "the tie test sees the guard bit and one more; the sticky bits are lost",
               on("encode", "f32", MINIFLOATS, "rne", "sat"))
def sticky_lost(cast):
    cut = 23 - cast.target.man - 2
    kept = np.where(np.isfinite(cast.values), cast.codes >> cut << cut, cast.codes)
    return cast.right(kept.astype(np.uint32))


@encode_mutant("triton FP4 kernel (measured: 0x3e800001 to 0x3e800003 give 0)",
               "sticky bits shifted out just above 0.25",
               on("encode", "f32", "e2m1", "rne"), misses="randn")
def sticky_shifted_out(cast):
    magnitude = cast.codes & 0x7fffffff
    return cast.where((magnitude > 0x3e800000) & (magnitude <= 0x3e800003), cast.signed(0))


@encode_mutant("microsoft/microxcaling (measured: floor(|x| + 0.5) in float32)",
               "the float just below half of the smallest value rounds up",
               on("encode", "f32", MINIFLOATS, "rne", "sat"),
               misses="randn")
def half_added_in_float(cast):
    half = codec.encode(np.float32(cast.target.min_positive / 2), format_of("f32"))
    return cast.where((cast.codes & 0x7fffffff) == half - 1, cast.signed(1))


@encode_mutant("hw-native-sys/pto-isa#319", "the rounding mode is ignored: truncation",
               on("encode", None, MINIFLOATS, "rne"), misses="roundtrip")
def truncated(cast):
    return cast.right(rounding="rtz")


@encode_mutant("hw-native-sys/pto-isa#319", "the rounding mode is ignored: every mode rounds to nearest even",
               on("encode", None, MINIFLOATS, ("rtz", "rup", "rdn", "rto", "rna", "rnz"), "sat"),
               misses="roundtrip")
def mode_ignored(cast):
    return cast.right(rounding="rne")


@encode_mutant("graphcore-research/gfloat#49",
               "rounding toward zero skips a value just below a power of two (log2)",
               on("encode", "f32", MINIFLOATS, "rtz", "sat"), misses="randn")
def log2_skips_a_value(cast):
    near = (cast.codes & 0x7fffff) > 0x7ffff8
    normal = (cast.magnitudes > float(cast.target.min_normal)) & (cast.magnitudes < float(cast.target.max))
    return cast.where(near & normal, cast.right() & ~np.uint8(1))


# --- carry, subnormals, tiny operands -----------------------------------------------------------------------

def _carry_lost(cast: Cast) -> np.ndarray:
    right, below = (cast.right(rounding=rounding).astype(np.int64) for rounding in (None, "rtz"))
    field_mask = (1 << cast.target.man) - 1
    carried = (right != below) & (right & field_mask == 0) & (cast.magnitudes > float(cast.target.min_normal))
    lost = np.where(carried & (cast.magnitudes < float(cast.target.max)), below & ~field_mask, right)
    return lost.astype(code_dtype(cast.target.width))


@encode_mutant("triton-lang/triton#11897", "the carry out of the significand is lost: 126.24 gives 64",
               on("encode", None, ("e4m3fn", "e5m2", "e2m1", "e4m3ieee"), "rne", "sat"), misses="roundtrip")
def carry_lost(cast):
    return _carry_lost(cast)


@encode_mutant("tenstorrent/tt-metal#51971", "subnormal results come out one binade too small",
               on("encode", None, MINIFLOATS, "rne", "sat"))
def subnormals_one_binade_off(cast):
    halved = codec.encode(cast.values / 2, cast.target)
    return cast.where((cast.magnitudes > 0) & (cast.magnitudes < float(cast.target.min_normal)), halved)


@encode_mutant("triton-lang/triton#3634", "subnormal results are flushed to zero",
               on("encode", None, MINIFLOATS, "rne", "sat"),
               misses="normal")
def subnormals_flushed(cast):
    index = cast.right() & ~np.uint8(cast.signed(0) if cast.target.has_neg_zero else 0)
    positive = index & ((1 << (cast.target.width - 1)) - 1)
    return cast.where((positive > 0) & (positive < 1 << cast.target.man) & np.isfinite(cast.values),
                      cast.signed(0) if cast.target.has_neg_zero else 0)


@encode_mutant("PTO-ISA/SuperNPUBench#49, ahrefs/ocannl#985",
               "everything below the smallest subnormal becomes zero",
               on("encode", None, MINIFLOATS, "rne", "sat"), misses="roundtrip")
def interval_above_the_tie_flushed(cast):
    zero = cast.signed(0) if cast.target.has_neg_zero else 0
    return cast.where((cast.magnitudes > 0) & (cast.magnitudes < float(cast.target.min_positive)), zero)


@encode_mutant("ROCm/rocm-systems#10591",
               "a shift by 64 or more: four exponents near 2^-80 give something large",
               on("encode", "f32", ("e5m2", "e4m3fn", "e4m3fnuz", "e2m1"), "rne", "sat"), misses="randn")
def shift_past_the_width(cast):
    exponent = cast.codes >> 23 & 0xff
    return cast.where((exponent >= 46) & (exponent <= 49), cast.signed(1))


# --- overflow -----------------------------------------------------------------------------------------------

@encode_mutant("tile-ai/tilelang-metax#140, sgl-project/sglang#40581",
               "saturation starts one binade early: 256 gives 448",
               on("encode", None, MINIFLOATS, "rne", SATURATING), misses="randn/16")
def saturates_one_binade_early(cast):
    return cast.where(cast.magnitudes >= 2.0 ** cast.target.emax, cast.signed(cast.target.layout.max_index))


@encode_mutant("ucb-bar/saturn-vectors#101", "finite values from 512 to 57344 become NaN although saturating",
               on("encode", None, "e4m3fn", "rne", SATURATING), misses="in-range")
def finite_becomes_nan(cast):
    return cast.where((cast.magnitudes >= 512) & (cast.magnitudes <= 57344), cast.signed(0x7f))


@encode_mutant("ucb-bar/saturn-vectors#101",
               "the rounding mode is ignored at overflow: toward zero overflows like to nearest",
               on("encode", None, None, ("rtz", "rto", "rdn", "rup"), ("ieee", "satnone")), misses="in-range")
def mode_ignored_at_overflow(cast):
    beyond = (cast.magnitudes > float(cast.target.max)) & np.isfinite(cast.values)
    return cast.where(beyond, cast.right(rounding="rne"))


@encode_mutant("google/XNNPACK#10460", "the top binade of E4M3 is taken for infinity and NaN",
               on("encode", None, "e4m3fn", "rne"), misses="randn")
def top_binade_lost(cast):
    return cast.where((cast.right() & 0x78) == 0x78, cast.signed(0x7f))


@encode_mutant("jax-ml/ml_dtypes#400, #260", "overflow gives NaN or infinity where saturation was asked for",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3fnuz", "e4m3ieee"), "rne", "sat"),
               misses="in-range")
def does_not_saturate(cast):
    return cast.right(overflow="nonsat")


@encode_mutant("triton-lang/triton#7337", "overflow saturates where it must not",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3fnuz", "e4m3ieee"), "rne", "nonsat"),
               misses="in-range")
def saturates(cast):
    return cast.right(overflow="sat")


@encode_mutant("stillwater-sc/universal#1351",
               "the range is checked before rounding: 58000 into E5M2 gives infinity",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3ieee"), "rne", "nonsat"), misses="in-range")
def range_before_rounding(cast):
    layout = cast.target.layout
    outside = cast.signed(layout.nan if layout.inf is None else layout.inf)
    return cast.where(cast.magnitudes > float(cast.target.max),
                      outside if layout.inf is not None else layout.nan)


@encode_mutant("stillwater-sc/universal#1302", "infinity becomes the largest value although not saturating",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3ieee"), "rne", "nonsat"), misses="randn")
def infinity_saturates(cast):
    return cast.where(np.isinf(cast.values), cast.signed(cast.target.layout.max_index))


@encode_mutant("stillwater-sc/universal#1302", "infinity becomes zero",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3ieee"), "rne", ("nonsat", "sat")), misses="randn")
def infinity_to_zero(cast):
    return cast.where(np.isinf(cast.values), cast.signed(0))


@encode_mutant("onnx/onnx#6220", "infinity into FNUZ becomes NaN although saturating",
               on("encode", None, FNUZ, "rne", "sat"),
               misses="randn")
def fnuz_infinity_to_nan(cast):
    return cast.where(np.isinf(cast.values), cast.target.layout.nan)


# --- NaN and zero -------------------------------------------------------------------------------------------

@encode_mutant("ahrefs/ocannl#657", "the sign of a NaN is kept where the canonical NaN is asked for",
               on("encode", None, ("e4m3fn", "e5m2", "e4m3ieee", "e3m4"), "rne", ("sat", "nonsat")),
               misses="randn")
def nan_sign_kept(cast):
    return cast.where(np.isnan(cast.values), cast.signed(cast.target.layout.nan))


@encode_mutant("riscv-software-src/riscv-isa-sim#2268",
               "NaN into E5M2 is 7f, all trailing bits one, instead of 7e",
               on("encode", None, "e5m2", "rne", ("sat", "nonsat")), misses="randn")
def nan_all_ones(cast):
    return cast.where(np.isnan(cast.values), 0x7f)


@encode_mutant("ROCm/composable_kernel#2571", "NaN into FNUZ is lost: zero", on("encode", None, FNUZ, "rne"),
               misses="randn")
def fnuz_nan_lost(cast):
    return cast.where(np.isnan(cast.values), 0)


@encode_mutant("ml_dtypes 0.6.0 (measured)", "NaN into a format without NaN becomes minus zero",
               on("encode", None, ("e2m1", "e2m3", "e3m2"), "rne", "sat"), misses="randn")
def nan_to_minus_zero(cast):
    return cast.where(np.isnan(cast.values), 1 << (cast.target.width - 1))


@encode_mutant("onnx/onnx#5764", "a tiny negative into FNUZ becomes NaN (the code of minus zero)",
               on("encode", None, FNUZ, "rne"), misses="randn")
def fnuz_tiny_negative_to_nan(cast):
    return cast.where((cast.right() == 0) & cast.negative, 0x80)


@encode_mutant("intel/llm-scaler#569", "the sign of minus zero is lost",
               on("encode", None, tuple(set(MINIFLOATS) - set(FNUZ)), "rne", "sat"), misses="randn")
def minus_zero_lost(cast):
    return cast.where(cast.values == 0, 0)


@encode_mutant("Model-Optimizer MXFP4 (measured)", "plus zero gets the code of minus zero",
               on("encode", None, "e2m1", "rne", "sat"),
               misses="randn")
def plus_zero_is_minus_zero(cast):
    return cast.where((cast.values == 0) & ~cast.negative, 8)


@encode_mutant("PTO-ISA/SuperNPUBench#122", "the codebook of E1M2 instead of E2M1",
               on("encode", None, "e2m1", "rne", "sat"))
def wrong_codebook(cast):
    return cast.right(target=Float("e1m2", 1, 2, 1, "finite"))


# --- E8M0 ---------------------------------------------------------------------------------------------------

@encode_mutant("onnx/onnx#7784", "rounding up tests the mask 4fffff instead of 7fffff: 1.25 gives 1",
               on("encode", "f32", "e8m0", "rup"))
def e8m0_up_mask(cast):
    down = cast.codes >> 23 & 0xff
    missed = (cast.codes & 0x4fffff == 0) & (cast.codes & 0x300000 != 0) & ~cast.negative
    return cast.where(missed & (down > 0) & np.isfinite(cast.values), down)


@encode_mutant("ROCm/rocm-systems#2461", "below 2^-127 wraps to NaN",
               on("encode", None, "e8m0", ("rne", "rup")), misses="randn")
def e8m0_underflow_wraps(cast):
    return cast.where((cast.magnitudes > 0) & (cast.magnitudes < 2.0 ** -127) & ~cast.negative, 0xff)


@encode_mutant("gfloat (measured: 3.0 gives 2)", "a tie goes to the even code instead of up",
               on("encode", None, "e8m0", "rne"),
               misses="randn")
def e8m0_tie_to_even(cast):
    return cast.right(target=Float("e8m0even", 8, 0, 127, "scale", signed=False))


@encode_mutant("ml_dtypes 0.6.0 and PyTorch (measured)",
               "everything above 2^-127 in the lowest binade rounds up to 2^-126",
               on("encode", None, "e8m0", "rne"), misses="randn")
def e8m0_lowest_binade_up(cast):
    return cast.where((cast.magnitudes > 2.0 ** -127) & (cast.magnitudes < 2.0 ** -126) & ~cast.negative, 1)


@encode_mutant("jax-ml/ml_dtypes#163, llvm/llvm-project#214919", "zero becomes NaN",
               on("encode", None, "e8m0", ("rne", "rup")),
               misses="randn")
def e8m0_zero_to_nan(cast):
    return cast.where(cast.values == 0, 0xff)


# --- integers -----------------------------------------------------------------------------------------------

INTEGERS = ("int2", "int4", "int8", "uint2", "uint4", "uint8", "mxint8")


@encode_mutant("uxlfoundation/oneDNN#5879, google/XNNPACK#10460",
               "out of range wraps around instead of saturating",
               on("encode", None, INTEGERS, "rne", "sat"), misses="roundtrip")
def integer_wraps(cast):
    steps = np.rint(cast.magnitudes * 2.0 ** -cast.target.layout.qmin) % 2.0 ** cast.target.width
    wrapped = np.where(cast.negative, -steps, steps).astype(np.int64) % (1 << cast.target.width)
    return cast.where(np.isfinite(cast.values) & ((cast.target.signed | ~cast.negative)), wrapped)


@encode_mutant("openvinotoolkit/openvino#38158, tenstorrent/tt-metal#56525",
               "halves go away from zero instead of to even",
               on("encode", None, INTEGERS, "rne", "sat"), misses="randn")
def integer_half_away(cast):
    return cast.right(rounding="rna")


@encode_mutant("tenstorrent/tt-metal#56525", "halves go up instead of to even",
               on("encode", None, INTEGERS, "rne", "sat"),
               misses="randn")
def integer_half_up(cast):
    return np.where(cast.negative, cast.right(rounding="rnz"), cast.right(rounding="rna"))


@encode_mutant("microsoft/onnxruntime#32452", "the fraction is cut off instead of rounded",
               on("encode", None, INTEGERS, "rne", "sat"),
               misses="roundtrip")
def integer_truncated(cast):
    return cast.right(rounding="rtz")


@encode_mutant("tenstorrent/tt-metal#56526", "the least integer is never produced",
               on("encode", None, ("int2", "int4", "int8", "mxint8"), "rne", "sat"))
def integer_symmetric(cast):
    return cast.right(overflow="satsym")


@encode_mutant("x86 conversion instructions, pytorch/ao#4201", "NaN becomes the least integer",
               on("encode", None, ("int2", "int4", "int8", "mxint8"), "rne", "sat"), misses="randn")
def integer_nan_to_least(cast):
    return cast.where(np.isnan(cast.values), 1 << (cast.target.width - 1))


# --- stochastic rounding ------------------------------------------------------------------------------------

STOCHASTIC = ("sra", "srb", "src")


@encode_mutant("ROCm/llvm-project#3275", "the carry out of the significand is masked away",
               on("encode", None, ("e4m3fn", "e5m2", "e2m1"), STOCHASTIC), misses="random zero")
def stochastic_carry_lost(cast):
    return _carry_lost(cast)


@encode_mutant("oneDNN#2903", "the random bits are aligned wrongly and practically always round down",
               on("encode", None, None, STOCHASTIC), misses="random zero")
def stochastic_rounds_down(cast):
    return cast.right(rounding="rtz")


@encode_mutant("milankl/StochasticRounding.jl#74",
               "an exact value with the largest random word moves to the next one",
               on("encode", None, None, STOCHASTIC), misses="random zero")
def stochastic_moves_exact_values(cast):
    below = cast.right(rounding="rtz")
    exact = np.abs(codec.decode(below, cast.target, np.float64)) == cast.magnitudes
    inside = exact & (cast.magnitudes > 0) & (cast.magnitudes < float(cast.target.max))
    return cast.where(inside & (cast.random == (1 << cast.name.rounding[1]) - 1), below + 1)


@encode_mutant("apytypes/apytypes#94", "another of the three rules: the sticky bits do or do not count",
               on("encode", None, None, STOCHASTIC))
def stochastic_other_rule(cast):
    name, width = cast.name.rounding
    other = {"sra": "src", "srb": "sra", "src": "sra"}[name]
    return codec.convert(cast.codes, cast.source, cast.target, other, cast.name.policy, cast.random, width)


# --- decoding -----------------------------------------------------------------------------------------------

def _decoded(name, codes, row=None) -> np.ndarray:
    return codec.decode(codes, row or format_of(name.src), np.float32).view(np.uint32).copy()


def _change(name, codes, changes: dict) -> np.ndarray:
    """The right words, with the value of some codes replaced."""
    words = _decoded(name, codes)
    for code, value in changes.items():
        words[codes == code] = np.float32(value).view(np.uint32)
    return words


@decode_mutant("NVIDIA/TransformerEngine#3262, uxlfoundation/oneDNN#4218", "E8M0 code 00 decodes to zero",
               on("decode", "e8m0"))
def e8m0_zero_code(name, codes):
    return _change(name, codes, {0: 0.0})


@decode_mutant("NVIDIA/TransformerEngine#3262, triton-lang/triton#11624", "E8M0 code ff decodes to infinity",
               on("decode", "e8m0"))
def e8m0_ff_is_infinity(name, codes):
    return _change(name, codes, {255: np.inf})


@decode_mutant("sgl-project/sglang#25519",
               "the decoded float is compared with 128: code 86 is NaN, ff infinity",
               on("decode", "e8m0"))
def e8m0_compares_the_float(name, codes):
    return _change(name, codes, {134: np.nan, 255: np.inf})


@decode_mutant("triton-lang/triton#10745", "the FNUZ NaN decodes to minus zero", on("decode", FNUZ))
def fnuz_nan_is_minus_zero(name, codes):
    return _change(name, codes, {0x80: -0.0})


@decode_mutant("tile-ai/tilelang#2704", "E2M1 codes with exponent 0 decode as normal numbers",
               on("decode", "e2m1"))
def e2m1_subnormals_as_normals(name, codes):
    return _change(name, codes, {0: 0.5, 1: 0.75, 8: -0.5, 9: -0.75})


@decode_mutant("local-inference-lab/b12x#388", "subnormal codes decode by the formula of normal ones",
               on("decode", (*MINIFLOATS, "ue4m3", "ue5m3", "binary8p4se", "binary8p3se")))
def subnormals_as_normals(name, codes):
    row = format_of(name.src)
    quantum, hidden = float(row.min_positive) / 2, 1 << row.man
    return _change(name, codes, {code: (hidden + code) * quantum for code in range(1, hidden)})


@decode_mutant("apache/tvm#20315", "zero and subnormals decode to zero or worse",
               on("decode", ("e5m2", "e4m3fn", "e3m4")))
def subnormals_decode_to_zero(name, codes):
    return _change(name, codes, {code: 0.0 for code in range(1, 1 << format_of(name.src).man)})


@decode_mutant("gHashTag/trinity#672", "the top binade of E3M2 is clipped to 14", on("decode", "e3m2"))
def e3m2_clipped(name, codes):
    return _change(name, codes, {code: 14.0 for code in range(0x1c, 0x20)})


@decode_mutant("gHashTag/trinity#672, microsoft/hlsl-specs#490",
               "E4M3FN read as the IEEE-style E4M3: 78 is infinity",
               on("decode", "e4m3fn"))
def e4m3fn_as_ieee(name, codes):
    return _decoded(name, codes, format_of("e4m3ieee"))


@decode_mutant("TensorCast (measured)",
               "FNUZ with the bias of the format it is named after: E4M3FNUZ up to 480",
               on("decode", ("e4m3fnuz", "e5m2fnuz")))
def fnuz_bias(name, codes):
    row = format_of(name.src)
    return _decoded(name, codes, Float("other", row.exp, row.man, row.bias - 1, "fnuz"))


@decode_mutant("JuliaMath/Float8s.jl#23, GGUF UE4M3 (measured)", "the NaN code decodes to zero",
               on("decode", ("ue4m3", "e4m3fn")))
def nan_decodes_to_zero(name, codes):
    return _change(name, codes, {code: 0.0 for code in format_of(name.src).nan_codes})


@decode_mutant("intel/llm-scaler#569", "minus zero decodes to plus zero",
               on("decode", ("e4m3fn", "e5m2", "e2m1")))
def minus_zero_decodes_to_zero(name, codes):
    return _change(name, codes, {1 << (format_of(name.src).width - 1): 0.0})


@decode_mutant("microsoft/microxcaling#3, NVIDIA/Model-Optimizer#250", "MXINT8 without its factor 2^-6",
               on("decode", "mxint8"))
def mxint8_as_int8(name, codes):
    return _decoded(name, codes, format_of("int8"))


@decode_mutant("microsoft/microxcaling#35", "MXINT8 read as sign and magnitude", on("decode", "mxint8"))
def mxint8_sign_magnitude(name, codes):
    return _decoded(name, codes, Int("sm", 8, frac=6, encoding="sign-magnitude"))


# --- blocks -------------------------------------------------------------------------------------------------

MX = lambda name: name.startswith("mx")  # noqa: E731
MXFLOAT = lambda name: name.startswith("mxfp")  # noqa: E731


def _with(name, operands, values) -> tuple[np.ndarray, ...]:
    """The right answer for other float32 tiles."""
    return tiles.answer(name, (*operands[:-1], np.ascontiguousarray(values, np.float32).view(np.uint32)))


def _floats(operands) -> np.ndarray:
    return operands[-1].view(np.float32)


def _wide(operands) -> np.ndarray:
    """The tiles as float64, every NaN quiet."""
    return codec.decode(operands[-1], format_of("f32"), np.float64)


def _rescaled(name, operands, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    """MX tiles cast with given scale codes instead of their own; NaN tiles as they are."""
    right_scales, right_codes = tiles.answer(name, operands)
    element = format_of(tiles.data_type(name.dst).element)
    quotients = _wide(operands) * 2.0 ** (127.0 - scales[:, None].astype(np.float64))
    codes = codec.encode(quotients, element, name.round)
    nan = right_scales == 0xff
    return np.where(nan, right_scales, scales).astype(np.uint8), np.where(nan[:, None], right_codes, codes)


@block_mutant("pytorch/ao#4725, higham/chop#5",
              "floor(log2) in float32: the scale is one too large just below 2^k",
              on("quantize", "f32", MX), misses="randn")
def log2_scale(name, operands):
    scales, _ = tiles.answer(name, operands)
    amax = np.abs(_floats(operands)).max(1)
    with np.errstate(all="ignore"):
        floor = np.floor(np.log2(amax))
        exact = np.frexp(amax)[1] - 1
    off = np.where(np.isfinite(amax) & (amax > 0) & (floor > exact) & (scales < 254), 1, 0)
    return _rescaled(name, operands, scales + off.astype(scales.dtype))


@block_mutant("pytorch/ao#4725", "the largest magnitude is rounded to bfloat16 before its exponent is taken",
              on("quantize", "f32", MX))
def amax_in_bf16(name, operands):
    values = _floats(operands)
    amax = np.abs(values).max(1)
    words = amax.view(np.uint32)
    carried = np.isfinite(amax) & ((words & 0x7fffff) >= 0x7f8000) & (words >= 0x800000)
    scales, _ = tiles.answer(name, operands)
    return _rescaled(name, operands,
                     np.where(carried & (scales < 254) & (scales > 0), scales + 1, scales).astype(np.uint8))


@block_mutant("pytorch/ao#4725", "the maximum ignores NaN, so a NaN does not reach the scale",
              on("quantize", "f32"), misses="randn")
def nan_ignored(name, operands):
    values = _floats(operands)
    return _with(name, operands, np.where(np.isnan(values), np.float32(0), values))


@block_mutant("timtoole02/Camelid#561", "a signalling NaN in the first place breaks the maximum",
              on("quantize", "f32"),
              misses="randn")
def signalling_nan_first(name, operands):
    words = operands[-1].copy()
    signalling = (words[:, 0] & 0x7fffffff) - 0x7f800001 < 0x3fffff
    words[signalling, 0] = 0
    return tiles.answer(name, (*operands[:-1], words))


@block_mutant("pytorch/ao#4725, NVIDIA/TransformerEngine#2408",
              "a tile with an infinity gets the scale fe instead of NaN",
              on("quantize", "f32", MX), misses="randn")
def infinity_scale_fe(name, operands):
    scales, codes = tiles.answer(name, operands)
    infinite = np.isinf(_floats(operands)).any(1) & ~np.isnan(_floats(operands)).any(1)
    return np.where(infinite, 0xfe, scales).astype(np.uint8), codes


@block_mutant("arch-hdl-lang/arch-com#848, HomericIntelligence/Odyssey#2418",
              "an all-zero tile gets the scale 1.0",
              on("quantize", "f32", MX), misses="randn")
def zero_tile_scale_one(name, operands):
    scales, codes = tiles.answer(name, operands)
    return np.where((_floats(operands) == 0).all(1), 127, scales).astype(np.uint8), codes


@block_mutant("microsoft/microxcaling#4 (measured)", "elements round ties away from zero",
              on("quantize", "f32"), misses="randn")
def block_ties_away(name, operands):
    from dataclasses import replace
    return tiles.answer(replace(name, round="rna"), operands)


@block_mutant("vllm-project/vllm#43557",
              "the exponent of amax / 6 by truncation instead of floor(log2 amax) - 2",
              on("quantize", "f32", "mxfp4"))
def exponent_of_quotient(name, operands):
    scales, _ = tiles.answer(name, operands)
    amax = np.abs(_floats(operands)).max(1)
    with np.errstate(all="ignore"):
        wrong = np.clip(np.frexp(amax / np.float32(6))[1] - 1 + 127, 0, 254)
    return _rescaled(name, operands,
                     np.where(amax > 0, np.where(scales == 0xff, 0xff, wrong), 0).astype(np.uint8))


@block_mutant("pytorch/ao#2939", "neighbouring elements are swapped", on("quantize", "f32"))
def lanes_swapped(name, operands):
    *scales, codes = tiles.answer(name, operands)
    return (*scales, codes.reshape(-1, 2)[:, ::-1].reshape(codes.shape))


@block_mutant("microsoft/microxcaling (measured), tenstorrent/tt-metal#56526", "MXINT8 never gives -2",
              on("quantize", "f32", "mxint8"))
def mxint8_symmetric(name, operands):
    scales, codes = tiles.answer(name, operands)
    return scales, np.where(codes == 0x80, 0x81, codes).astype(np.uint8)


@block_mutant("arch-hdl-lang/arch-com#905", "multiplies by a float32 reciprocal instead of dividing",
              on("quantize", "f32", ("nvfp4", "int4")))
def reciprocal(name, operands):
    *scales, codes = tiles.answer(name, operands)
    dtype = tiles.data_type(name.dst)
    block = codec.decode(scales[-1].reshape(len(codes), -1), dtype.scale_row, np.float32)
    outer = scales[0] if len(scales) == 2 else operands[0] if len(operands) == 2 else None
    step = block if outer is None else block * outer.view(np.float32)[:, None]
    with np.errstate(all="ignore"):
        inverse = np.repeat(np.float32(1) / step, codes.shape[1] // step.shape[1], axis=1)
        products = _floats(operands) * inverse
    usual = np.isfinite(products) & (inverse > 0) & np.isfinite(inverse) & (_floats(operands) != 0)
    return (*scales, np.where(usual, codec.encode(np.where(usual, products, 0), dtype.element_row), codes))


@block_mutant("pytorch/FBGEMM#4884", "divides by the scale before its own rounding",
              on("quantize", "f32", ("nvfp4", "int4")))
def unrounded_scale(name, operands):
    *scales, codes = tiles.answer(name, operands)
    dtype = tiles.data_type(name.dst)
    length = codes.shape[1] // (2 if name.model == "tensor" else 1)
    values = _wide(operands).reshape(-1, length)
    amax = np.abs(values).max(1, keepdims=True)
    with np.errstate(all="ignore"):
        quotients = values / (amax / float(dtype.element_row.max))
    usual = np.isfinite(amax) & (amax > 0)
    wrong = codec.encode(np.where(usual, quotients, 0), dtype.element_row)
    return (*scales, np.where(usual, wrong, codes.reshape(-1, length)).reshape(codes.shape))


@block_mutant("NVIDIA/Model-Optimizer#1633", "the block scale is not clamped and becomes NaN beyond 448",
              on("quantize", "f32", "nvfp4"), misses="randn")
def scale_not_clamped(name, operands):
    *scales, codes = tiles.answer(name, operands)
    if name.model == "tensor":
        return (*scales, codes)
    amax = np.abs(_wide(operands)).max(1)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = amax / (6 * operands[0].view(np.float32).astype(np.float64))
        beyond = codec.encode(ratio, format_of("ue4m3"), "rne", "nonsat")
    return beyond, codes


# --- weaker operand sets ------------------------------------------------------------------------------------

def weak_operands(kind: str, name: sets.SetName) -> tuple[np.ndarray, ...]:
    """Operand columns of a check that real projects relied on: `randn` and its kin, or a round trip."""
    random, source = np.random.default_rng(0), format_of(name.src)
    if name.op == "quantize":
        length = 32 if tiles.data_type(name.dst).outer is None else 16
        length *= 2 if name.model == "tensor" else 1
        values = random.standard_normal((2000, length)).astype(np.float32)
        scale = np.abs(values).max() / np.float32(2688)
        two_level = len(tiles.fields(name, [values])[0]) == 2
        outer = [np.full(2000, scale, np.float32).view(np.uint32)] * two_level
        return *outer, values.view(np.uint32)
    if kind == "roundtrip":
        return (coverage.values(source, format_of(name.dst)),)
    values = random.standard_normal(100_000)
    largest, smallest = float(format_of(name.dst).max), float(format_of(name.dst).min_normal or 0)
    values = {"in-range": np.clip(values * largest / 4, -largest, largest), "randn/16": values / 16,
              "normal": np.copysign(np.clip(np.abs(values), smallest, largest), values)}.get(kind, values)
    if name.src == "f64":
        return (values.view(np.uint64),)
    codes = codec.encode(values.astype(np.float32), source)
    return (codes, np.zeros(len(codes), np.uint8)) if kind == "random zero" else (codes,)

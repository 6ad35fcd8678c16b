"""refq against other libraries, bit by bit: `python tools/cross.py [LIBRARY ...] [--json]`.

Every comparison is complete for a monotone converter: all codes when decoding, the boundary set of the
target when encoding. A library is allowed to differ from refq only where one of its quirks says so, and only
in the way it says; anything else is unexplained and makes the exit code 1. A quirk that no longer shows is
reported as gone.
"""

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

import refq
from refq.formats.rows import FORMATS, Row, p3109
from refq.vectors import coverage

F64, F32, F16, BF16 = (FORMATS[name] for name in ("binary64", "binary32", "binary16", "bfloat16"))


@dataclass(frozen=True)
class Quirk:
    """One known way in which a library differs.

    where: mask of the cases that it governs; gives: the library's codes there, or None where they are not
    determined (they depend on the processor, or are no codes), so that any answer is accepted.
    """

    words: str
    where: Callable
    gives: Callable | None = None


@dataclass(frozen=True)
class Case:
    """One comparison: operands (source codes), refq's and the library's answers (target codes)."""

    library: str
    what: str
    source: Row
    target: Row
    operands: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray
    quirks: tuple[Quirk, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a comparison. causes: differences by quirk; unexplained, gone: indices of cases."""

    case: Case
    causes: dict[str, int] = field(default_factory=dict)
    unexplained: np.ndarray = ()
    gone: np.ndarray = ()

    @property
    def differences(self) -> int:
        return sum(self.causes.values()) + len(self.unexplained)

    def lines(self, limit=3) -> list[str]:
        """The first unexplained cases and the first that no longer differ, in words."""
        case = self.case
        told = [(i, "not explained") for i in self.unexplained[:limit]]
        told += [(i, "a quirk is gone") for i in self.gone[:limit]]
        return [f"{case.library} {case.what}: {_number(case.source, case.operands[i])}: theirs "
                f"{_number(case.target, case.theirs[i])}, ours {_number(case.target, case.ours[i])}: {why}"
                for i, why in told]


def judge(case: Case) -> Outcome:
    """Compare, and account for every difference by the quirks; of several, the last one decides a case."""
    if not case.operands.size == case.ours.size == case.theirs.size > 0:
        raise AssertionError(f"{case.library} {case.what}: nothing to compare, or answers of other lengths")
    expected, free = case.ours.copy(), np.zeros(case.ours.size, bool)
    owner = np.full(case.ours.size, -1)
    for place, quirk in enumerate(case.quirks):
        mask = quirk.where(case)
        free = (free & ~mask) | (mask if quirk.gives is None else False)
        if quirk.gives is not None:
            expected = np.where(mask, quirk.gives(case), expected)
        owner[mask] = place
    differs, surprising = case.theirs != case.ours, (case.theirs != expected) & ~free
    causes = {quirk.words: int((differs & ~surprising & (owner == place)).sum())
              for place, quirk in enumerate(case.quirks)}
    return Outcome(case, {words: count for words, count in causes.items() if count},
                   np.flatnonzero(surprising & differs), np.flatnonzero(surprising & ~differs))


def _number(row: Row, code) -> str:
    from refq.formats.show import described
    return described(row, int(code)) if int(code) >> row.width == 0 else f"{int(code):#x}"


# -- operands and shared quirks ----------------------------------------------------------------------------

@lru_cache(maxsize=64)
def boundary(source: Row, target: Row) -> np.ndarray:
    """The complete operands for a monotone device (Spec: VEC-9), read only."""
    words = coverage.boundary(source, target)
    words.flags.writeable = False
    return words


def values(case: Case) -> np.ndarray:
    """The operands as float64."""
    return refq.decode(case.operands, case.source, np.float64)


def _nans(row: Row, codes) -> np.ndarray:
    return np.isnan(refq.decode(codes, row, np.float64)) if row.has_nan else np.zeros(codes.shape, bool)


def _both_nan(case: Case) -> np.ndarray:
    return _nans(case.target, case.ours) & _nans(case.target, case.theirs)


def _through(middle: Row, policy: str) -> Callable:
    """The answers when the source is rounded to a middle format first."""
    def gives(case: Case) -> np.ndarray:
        words = refq.convert(case.operands, case.source, middle, overflow="ieee")
        return refq.convert(words, middle, case.target, overflow=policy)
    return gives


def _double_rounding(policy: str) -> Quirk:
    gives = _through(F32, policy)
    return Quirk("float64 is rounded to float32 first, so twice",
                 lambda case: gives(case) != case.ours, gives)


def _lowest_binade(negative: bool) -> Quirk:
    """E8M0 in (2^-127, 1.5 * 2^-127), or what float32 makes of it."""
    def where(case: Case):
        with np.errstate(over="ignore"):
            x = values(case).astype(np.float32).astype(np.float64)
        x = np.abs(x) if negative else x
        return (x > 2.0 ** -127) & (x < 1.5 * 2.0 ** -127)
    return Quirk("E8M0: the lowest binade goes up, code 0 is taken for a subnormal", where,
                 lambda case: np.ones_like(case.ours))


NAN_BITS = Quirk("NaN: another sign or payload", _both_nan)


# -- the libraries: each a function that yields comparisons ------------------------------------------------

def numpy_cases() -> Iterator[Case]:
    """numpy's own float16, float32 and float64."""
    quirk = Quirk("NaN: signalling NaNs are not made quiet where the processor does not do it", _both_nan)
    with np.errstate(all="ignore"):
        codes = coverage.codes(F16)
        for target, dtype in ((F32, np.float32), (F64, np.float64)):
            yield Case("numpy", f"widen binary16 to {target.name}", F16, target, codes,
                       refq.convert(codes, F16, target, overflow="ieee"),
                       _bits(codes.view(np.float16).astype(dtype)), (quirk,))
        for source, target, dtype in ((F32, F16, np.float16), (F64, F16, np.float16), (F64, F32, np.float32)):
            words = boundary(source, target) if target is F16 else _around_float32()
            x = words.view(np.float32 if source is F32 else np.float64)
            yield Case("numpy", f"encode {target.name} from {source.name}", source, target, words,
                       refq.convert(words, source, target, overflow="ieee"), _bits(x.astype(dtype)), (quirk,))


def _bits(x) -> np.ndarray:
    return x.view(f"u{x.itemsize}")


def _around_float32() -> np.ndarray:
    """float64 codes at, half way between and next to float32 values of every exponent, both signs."""
    heads = np.arange(0, 0x7F9, dtype=np.uint64) << np.uint64(20) | np.uint64([[0], [1], [0xFFFFF]])
    tails = np.uint64([0, 1, 0x0FFFFFFF, 0x10000000, 0x10000001, 0x1FFFFFFF, 0x20000000, 0x2FFFFFFF,
                       0x30000000, 0xFFFFFFFF])
    words = (heads.reshape(-1, 1) << np.uint64(32) | tails).reshape(-1)
    return np.concatenate([words, words | np.uint64(1 << 63)])


def ml_dtypes_cases() -> Iterator[Case]:
    """Every type of ml_dtypes: all codes, and encoding from each of its float sources."""
    ml_dtypes = importlib.import_module("ml_dtypes")
    names = [name for name in ml_dtypes.__all__ if name.startswith(("bfloat", "float", "int", "uint"))]
    for name in names:
        row, kind = refq.number_format(name), np.dtype(getattr(ml_dtypes, name))
        word = np.dtype(f"u{kind.itemsize}")
        codes = np.arange(1 << row.bits, dtype=word)
        yield Case("ml_dtypes", f"decode {row.name}", row, F32, codes, _bits(refq.decode(codes, row)),
                   _bits(codes.view(kind).astype(np.float32)), (NAN_BITS,))
        sources = {F32: np.float32, F64: np.float64, F16: np.float16, BF16: ml_dtypes.bfloat16}
        for source, dtype in list(sources.items())[: 4 if row.is_float else 1]:
            if source is row or source is F64 and row.width > 8:
                continue
            words = boundary(source, row)
            with np.errstate(all="ignore"):
                theirs = words.view(dtype).astype(kind).view(word) & word.type((1 << row.bits) - 1)
            yield Case("ml_dtypes", f"encode {row.name} from {source.name}", source, row, words,
                       refq.convert(words, source, row, overflow="ml_dtypes"), theirs,
                       tuple(_ml_dtypes_quirks(row, source)))


def _ml_dtypes_quirks(row: Row, source: Row) -> Iterator[Quirk]:
    if not row.is_float:
        yield Quirk("integers: cut toward zero and wrapped by a C cast",
                    lambda case: np.abs(values(case)) < 2.0 ** 31, _c_cast)
        yield Quirk("integers: outside int32 the C cast is undefined",
                    lambda case: ~(np.abs(values(case)) < 2.0 ** 31))
    if source is F64:
        yield _double_rounding("ml_dtypes")
    if row.name == "e8m0":
        yield _lowest_binade(negative=False)


def _c_cast(case: Case) -> np.ndarray:
    x = values(case)
    whole = np.trunc(np.where(np.abs(x) < 2.0 ** 31, x, 0)).astype(np.int64)
    return (whole & ((1 << case.target.bits) - 1)).astype(case.ours.dtype)


GFLOAT_ROUNDINGS = {"rne": "TiesToEven", "rna": "TiesToAway", "rtz": "TowardZero", "rup": "TowardPositive",
                    "rdn": "TowardNegative"}
GFLOAT_STOCHASTIC = {"sra": "StochasticFastest", "srb": "StochasticFast", "src": "Stochastic"}
GFLOAT_NAMES = {"e5m2": "ocp_e5m2", "e4m3fn": "ocp_e4m3", "e3m2": "ocp_e3m2", "e2m3": "ocp_e2m3",
                "e2m1": "ocp_e2m1", "e8m0": "ocp_e8m0", "mxint8": "ocp_int8", "binary16": "binary16",
                "bfloat16": "bfloat16"}


def gfloat_cases() -> Iterator[Case]:
    """gfloat: its named formats and much of the P3109 family; eight roundings, saturating or not."""
    gfloat = importlib.import_module("gfloat")
    for row, info in _gfloat_formats(gfloat):
        if row.width <= 8:
            codes = coverage.codes(row)
            yield Case("gfloat", f"decode {row.name}", row, F64, codes,
                       _bits(refq.decode(codes, row, np.float64)), _bits(gfloat.decode_ndarray(info, codes)),
                       (NAN_BITS,))
        for name, mode in (GFLOAT_ROUNDINGS | GFLOAT_STOCHASTIC).items():
            for policy in _gfloat_policies(row):
                yield _gfloat_case(gfloat, row, info, name, gfloat.RoundMode[mode], policy)


def _gfloat_policies(row: Row) -> tuple[str, ...]:
    """Its saturating mode; the other one, which refuses to overflow without a NaN; and P3109's SatNone."""
    count = 3 if row.special.startswith("p3109") else 2 if row.has_nan else 1
    return ("satfinite", "satnone-main", "satnone")[:count]


def _gfloat_formats(gfloat) -> Iterator[tuple[Row, object]]:
    formats = importlib.import_module("gfloat.formats")
    for name, theirs in GFLOAT_NAMES.items():
        yield FORMATS[name], getattr(formats, f"format_info_{theirs}")
    shapes = [(k, p) for k in (3, 4, 5) for p in range(1, k + 1)] + [(6, 3), (6, 6)] + \
        [(8, p) for p in (1, 3, 4, 7, 8)]
    for k, p in shapes:
        for signed in (True, False)[p == k:]:
            for domain in ("extended", "finite"):
                yield p3109(k, p, signed, domain), formats.format_info_p3109(
                    k, p, gfloat.Signedness.Signed if signed else gfloat.Signedness.Unsigned,
                    gfloat.Domain.Extended if domain == "extended" else gfloat.Domain.Finite)


def _gfloat_case(gfloat, row, info, rounding, mode, policy) -> Case:
    bits, more = {}, {}
    if rounding in GFLOAT_STOCHASTIC:
        words, random = coverage.stochastic(F32, row, 4)
        bits = dict(random_bits=random, random_width=4)
        more = dict(srbits=random.astype(np.int64), srnumbits=4)
    else:
        words = boundary(F32, row)
        words = words if row.width <= 8 else np.concatenate([words[::31], coverage.special(F32, row)])
    x = words.view(np.float32)
    if not row.has_nan:
        keep = ~np.isnan(x)
        words, x, bits, more = words[keep], x[keep], _kept(bits, keep), _kept(more, keep)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rounded = gfloat.round_ndarray(info, x.astype(np.float64), mode, policy == "satfinite", **more)
        theirs = gfloat.encode_ndarray(info, rounded).astype(np.uint64)
    ours = refq.convert(words, F32, row, rounding, policy, **bits).astype(np.uint64)
    return Case("gfloat", f"encode {row.name} {rounding}-{policy}", F32, row, words, ours, theirs,
                tuple(_gfloat_quirks(row, info, rounding, policy, bits)))


def _kept(arguments: dict, keep) -> dict:
    return {name: value[keep] if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()}


def _gfloat_quirks(row: Row, info, rounding: str, policy: str, bits: dict) -> Iterator[Quirk]:
    if policy == "satnone" and row.special == "p3109-finite":
        def later(case: Case):
            return refq.convert(case.operands, F32, row, rounding, "satnone-main", **bits).astype(np.uint64)
        yield Quirk("SatNone of a finite domain: NaN beyond the range, as after v4.0",
                    lambda case: later(case) != case.ours, later)
    if row.special in ("ieee", "fn"):
        yield Quirk("NaN: always the code of all ones", lambda case: _nans(row, case.ours),
                    lambda case: np.full_like(case.ours, info.code_of_nan))
    if row.name == "e8m0":
        yield Quirk("E8M0: zero and what lies below 2^-127 have no code",
                    lambda case: np.abs(values(case)) < 2.0 ** -127)
        if rounding == "rne":
            yield Quirk("E8M0: a tie goes to the even code, not up", _e8m0_ties, _e8m0_even)
    if not row.signed:
        yield Quirk("unsigned formats: a negative operand stays negative",
                    lambda case: np.signbit(values(case)) & ~np.isnan(values(case)))


def _e8m0_ties(case: Case) -> np.ndarray:
    x = values(case)
    return (np.frexp(x)[0] == 0.75) & (x >= 2.0 ** -127)


def _e8m0_even(case: Case) -> np.ndarray:
    code = np.frexp(values(case))[1] - 1 + 127
    return (code + (code & 1)).astype(np.int64).astype(case.ours.dtype)


TORCH_NAMES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
               "bfloat16", "float16")


def torch_cases() -> Iterator[Case]:
    """PyTorch on the CPU. Which of its two overflow rules a version has is found by trying."""
    torch = importlib.import_module("torch")
    sources = {F32: torch.float32, F64: torch.float64, F16: torch.float16, BF16: torch.bfloat16}
    saturates = torch.tensor([1e6]).to(torch.float8_e4m3fn).view(torch.uint8).item() == 0x7E
    policy = "torch-2.15" if saturates else "torch-2.8"
    for name in TORCH_NAMES:
        row, kind = refq.number_format(name), getattr(torch, name, None)
        if kind is None:
            continue
        codes, word = coverage.codes(row), f"u{row.width // 8}"
        yield Case("torch", f"decode {row.name}", row, F32, codes, _bits(refq.decode(codes, row)),
                   _torch_cast(torch, codes, kind, torch.float32).view(np.uint32), (NAN_BITS,))
        for source, theirs in sources.items():
            if row.width > 8 and source is not F32:
                continue
            words = boundary(source, row)
            quirks = [NAN_BITS] * (row.width > 8) + [_double_rounding(policy)] * (source is F64) + \
                [_lowest_binade(negative=True)] * (row.name == "e8m0")
            yield Case("torch", f"encode {row.name} from {source.name}", source, row, words,
                       refq.convert(words, source, row, overflow=policy),
                       _torch_cast(torch, words, theirs, kind).view(word), tuple(quirks))


def _torch_cast(torch, words, source, target) -> np.ndarray:
    """Bit patterns to bit patterns; torch has signed integers of every size."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    result = torch.from_numpy(words.view(f"i{words.itemsize}").copy()).view(source).to(target)
    return result.view(sizes[result.element_size()]).numpy()


ONNX_NAMES = ("float8e4m3fn", "float8e5m2", "float8e4m3fnuz", "float8e5m2fnuz", "float4e2m1", "float8e8m0")


def onnx_cases() -> Iterator[Case]:
    """The reference implementation of ONNX Cast-25, with saturate on and off."""
    onnx = importlib.import_module("onnx")
    from onnx.reference import ReferenceEvaluator
    for name in ONNX_NAMES:
        row, words = refq.number_format(name), boundary(F32, refq.number_format(name))
        for saturate, policy in ((1, "onnx-sat"), (0, "onnx-nosat")):
            model = _cast_model(onnx, name.upper(), saturate)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                theirs, = ReferenceEvaluator(model).run(None, {"x": words.view(np.float32)})
            yield Case("onnx", f"encode {row.name} saturate={saturate}", F32, row, words,
                       refq.convert(words, F32, row, overflow=policy), theirs.view(np.uint8),
                       tuple(_onnx_quirks(row, saturate)))


def _cast_model(onnx, name: str, saturate: int):
    helper, kind = onnx.helper, getattr(onnx.TensorProto, name)
    more = {"round_mode": "nearest"} if name == "FLOAT8E8M0" else {}
    node = helper.make_node("Cast", ["x"], ["y"], to=kind, saturate=saturate, **more)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    graph = helper.make_graph([node], "cast", [x], [helper.make_tensor_value_info("y", kind, [None])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])


def _onnx_quirks(row: Row, saturate: int) -> Iterator[Quirk]:
    if row.name in ("e4m3fn", "e5m2", "e2m1"):
        yield Quirk("NaN: as ml_dtypes does, with the sign kept, or -0 and +0 where there is none",
                    lambda case: np.isnan(values(case)) | _nans(row, case.ours),
                    lambda case: refq.convert(case.operands, F32, row, overflow="ml_dtypes"))
    if row.name == "e8m0":
        yield _lowest_binade(negative=True)
        if saturate:
            yield Quirk("E8M0: infinity becomes NaN, not the largest value",
                        lambda case: np.isinf(values(case)), lambda case: np.full_like(case.ours, 0xFF))


LIBRARIES = {"numpy": numpy_cases, "ml_dtypes": ml_dtypes_cases, "gfloat": gfloat_cases, "torch": torch_cases,
             "onnx": onnx_cases}


def version(library: str) -> str | None:
    """The version of a library, or None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version(library)
    except PackageNotFoundError:
        return None


# -- the tool ----------------------------------------------------------------------------------------------

def summary(library: str, outcomes: list[Outcome]) -> dict:
    """One library: comparisons, cases, differences by cause, and the lines about what is not explained."""
    causes: dict[str, int] = {}
    for outcome in outcomes:
        for words, count in outcome.causes.items():
            causes[words] = causes.get(words, 0) + count
    return {"library": library, "version": version(library), "comparisons": len(outcomes),
            "cases": sum(outcome.case.operands.size for outcome in outcomes), "differences": causes,
            "unexplained": sum(len(outcome.unexplained) for outcome in outcomes),
            "gone": sum(len(outcome.gone) for outcome in outcomes),
            "lines": [line for outcome in outcomes for line in outcome.lines()]}


def text(found: dict) -> str:
    """A summary for a terminal."""
    if found["version"] is None:
        return f"{found['library']}: not installed"
    name, known = found["library"], sum(found["differences"].values())
    lines = [f"{name} {found['version']}: {found['comparisons']} comparisons, {found['cases']:,} cases, "
             f"{known:,} known differences, {found['unexplained']:,} unexplained"]
    lines += [f"  {count:8,}  {words}" for words, count in found["differences"].items()]
    if found["gone"]:
        lines.append(f"  {found['gone']:8,}  known to differ, but agree here: {name} changed")
    return "\n".join(lines + [f"  {line}" for line in found["lines"][:20]])


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", nargs="*", choices=[[], *LIBRARIES], metavar="LIBRARY",
                        help=f"any of {', '.join(LIBRARIES)} (default all)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(argv)
    found = []
    for library in options.library or LIBRARIES:
        outcomes = [judge(case) for case in LIBRARIES[library]()] if version(library) else []
        found.append(summary(library, outcomes))
        if not options.json:
            print(text(found[-1]), flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    return 1 if any(entry["unexplained"] for entry in found) else 0


if __name__ == "__main__":
    sys.exit(main())

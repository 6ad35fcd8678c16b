"""Set names as paths, and generating a set from its name alone.

    encode/f32-e4m3fn/rne-sat/boundary      op / source-target / rounding-overflow / coverage model
    encode/f32-e4m3fn/src8-sat/stochastic   a stochastic rounding carries the number of its random bits
    decode/e4m3fn-f32/exact/codes
    quantize/f32-mxfp4/rne-ocp/block        for blocks the recipe stands where the overflow rule stands

Spec: VEC-1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refq.errors import InputError
from refq.formats import codec
from refq.formats.policies import ROUNDINGS, overflow_rule, rounding_rule
from refq.formats.rows import FORMATS, LISTED
from refq.formats.show import overflow_clause
from refq.vectors import coverage, tiles
from refq.vectors.vec import LABEL, SHORT, Field, Header, VectorSet, format_of, short_name

DTYPES = {"f64": np.float64, "f32": np.float32, "f16": np.float16}
VENDORS = {"cuda": "nvidia", "cutlass": "nvidia", "ml_dtypes": "ml_dtypes",
           "torch": "pytorch", "onnx": "onnx"}
# What each document settles for conversions into its formats: overflow rules, sources, roundings (None: all).
DOCUMENTS = {"OFP8": (("sat", "nonsat"), ("f32", "f16", "bf16"), ("rne",)),
             "OCP MX": (("sat",), ("f32", "f16", "bf16"), ("rne",)),
             "P3109": (("satfinite", "satpropagate", "satnone"), ("f32", "f16", "bf16"), None),
             "IEEE 754": (("ieee",), ("f64", "f32", "f16"), None)}

NAME = re.compile(r"([a-z]+)/([a-z0-9_]+)-([a-z0-9_]+)/([a-z0-9]+)(?:-([a-z0-9_.-]+))?/([a-z0-9_.-]+)")


@dataclass(frozen=True)
class SetName:
    """A parsed set name; `str()` gives the path back."""

    op: str
    src: str
    dst: str
    round: str          # rounding name, with the number of random bits where it takes any
    policy: str         # overflow rule; recipe for blocks; empty for decode
    model: str

    def __str__(self) -> str:
        rules = "-".join(filter(None, (self.round, self.policy)))
        return f"{self.op}/{self.src}-{self.dst}/{rules}/{self.model}"

    @property
    def rounding(self) -> tuple[str, int | None]:
        """(rounding name, number of random bits or None). Raises InputError for what is neither."""
        matched = re.fullmatch(r"([a-z]+)([1-9]\d*)?", self.round)
        name, width = (matched[1], int(matched[2] or 0)) if matched else (self.round, 0)
        rule = rounding_rule(name)
        if rule.stochastic and not 1 <= width <= 32:
            raise InputError(f"rounding {self.round!r} needs its number of random bits, 1 to 32: {name}8")
        if not rule.stochastic and width:
            raise InputError(f"rounding {self.round!r}: {name} takes no random bits")
        return name, width or None


def parse(name: str) -> SetName:
    """Read a set name. Raises InputError for what is not a well-formed name of known parts (Spec: VEC-1)."""
    matched = NAME.fullmatch(name)
    if not matched:
        raise InputError(f"{name!r} is not a set name; it must look like encode/f32-e4m3fn/rne-sat/boundary")
    parsed = SetName(*(part or "" for part in matched.groups()))
    if parsed.op not in OPS:
        raise InputError(f"{name}: operation {parsed.op!r} is not known; allowed are {', '.join(OPS)}")
    OPS[parsed.op].check(parsed)
    return parsed


def generate(name: str) -> VectorSet:
    """Generate a set from its name: operands by its coverage model, results by refq. Deterministic.

    Raises InputError for a name that cannot be generated (an unknown part, or operands that came from data).
    """
    parsed = parse(name)
    models = OPS[parsed.op].models
    if parsed.model not in models:
        raise InputError(f"{name}: coverage model {parsed.model!r} cannot be generated for {parsed.op}; "
                         f"allowed are {', '.join(models)}")
    return _build(parsed, models[parsed.model](parsed))


def from_weights(label: str, array, dtype, axis: int = -1, rounding: str = "rne",
                 recipe: str | None = None, limit: int | None = 4096) -> VectorSet:
    """A set from real data: the tiles of an array along an axis; for a number format its distinct values.

    label: lower-case letters, digits, `_`, `.`, `-`; the coverage model is named `weights-<label>`.
    array: float64, float32, float16 or ml_dtypes.bfloat16. dtype: a data type or number format name.
    A ragged last tile is filled up with +0, which changes neither its scale nor its codes. Equal tiles are
    kept once; at most `limit` cases, evenly spread over the sorted tiles (None: all).
    Returns a VectorSet. Raises InputError for a bad label, dtype or array. Spec: VEC-12.
    """
    if not LABEL.fullmatch(label):
        raise InputError(f"label {label!r} must be lower-case letters, digits, '_', '.' and '-'")
    source = short_name(codec.source_row(np.asarray(array).dtype))
    op, dst, policy, operands = tiles.of_weights(array, dtype, axis, recipe, limit)
    parsed = parse(f"{op}/{source}-{dst}/{rounding}-{policy}/weights-{label}")
    return _build(parsed, operands)


def answer(header: Header, operands: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """refq's own result columns for operand columns, by the header's operation and rules."""
    name = parse(header.name)
    return OPS[name.op].answer(name, operands)


def _build(name: SetName, operands: tuple[np.ndarray, ...]) -> VectorSet:
    inputs, outputs = OPS[name.op].fields(name, operands)
    policy = {"recipe" if name.op == "quantize" else "overflow": name.policy}
    header = Header(name.op, name.src, name.dst, name.round, name.model, clause(name), len(operands[0]),
                    inputs=inputs, outputs=outputs, **policy)
    return VectorSet(header, operands, answer(header, operands), OPS[name.op].notes(name, operands))


# ------------------------------------------------------------------------------------------------------------
# the operations

@dataclass(frozen=True)
class Operation:
    """What one operation needs, each a function of a SetName and, mostly, of operand columns."""

    check: Callable
    fields: Callable            # (input fields, output fields); empty where src and dst say it all
    answer: Callable
    models: dict[str, Callable]
    notes: Callable


def _check_cast(name: SetName) -> None:
    name.rounding
    overflow_rule(name.policy)
    wide, row = format_of(name.src), format_of(name.dst)
    if (name.op == "encode") != (name.src in SHORT.values()):
        raise InputError(f"{name}: encode takes {', '.join(SHORT.values())}; other sources are op convert")
    if wide == row:
        raise InputError(f"{name}: source and target are the same format")


def _cast_fields(name: SetName, operands):
    _, width = name.rounding
    return ((Field(name.src), Field(f"bits{width}")), (Field(name.dst),)) if width else ((), ())


def _cast(name: SetName, operands):
    rounding, width = name.rounding
    return (codec.convert(operands[0], format_of(name.src), format_of(name.dst), rounding, name.policy,
                          random_bits=operands[1] if width else None, random_width=width),)


def _model(function):
    """A coverage model of (source, target) as one of a set name; not for stochastic roundings."""
    def operands(name: SetName):
        if name.rounding[1]:
            raise InputError(f"{name}: stochastic roundings use the model stochastic")
        return (function(format_of(name.src), format_of(name.dst)),)
    return operands


def _stochastic(name: SetName):
    if not name.rounding[1]:
        raise InputError(f"{name}: the model stochastic is for the stochastic roundings, as in src8")
    return coverage.stochastic(format_of(name.src), format_of(name.dst), name.rounding[1])


def _cast_notes(name: SetName, operands) -> dict[int, str]:
    if format_of(name.src).special != "ieee":
        return {}
    marks = coverage.landmarks(format_of(name.src), format_of(name.dst))
    return {index: marks[code] for index, code in enumerate(operands[0].tolist()) if code in marks}


def _check_decode(name: SetName) -> None:
    format_of(name.src)
    if name.round != "exact" or name.policy:
        raise InputError(f"{name}: decoding is exact; write decode/{name.src}-{name.dst}/exact/{name.model}")
    if name.dst not in SHORT.values():
        raise InputError(f"{name}: decode ends in {', '.join(SHORT.values())}, not {name.dst}")


def _decode(name: SetName, operands):
    source, wide = format_of(name.src), format_of(name.dst)
    if not coverage.holds(wide, source):
        raise InputError(f"{name}: not every value of {name.src} is exact in {name.dst}")
    if name.dst == "bf16":      # no numpy dtype; converting is exact here, a NaN becomes the canonical one
        return (codec.convert(operands[0], source, wide, "rne", "nonsat"),)
    values = codec.decode(operands[0], source, DTYPES[name.dst])
    return (values.view(f"u{values.itemsize}"),)


def _decode_notes(name: SetName, operands) -> dict[int, str]:
    return coverage.code_landmarks(format_of(name.src))


_CAST_MODELS = {"codes": _model(coverage.values), "boundary": _model(coverage.boundary),
                "special": _model(coverage.special), "stochastic": _stochastic,
                "all": _model(lambda source, target: coverage.codes(source))}

OPS: dict[str, Operation] = {
    "encode": Operation(_check_cast, _cast_fields, _cast, _CAST_MODELS, _cast_notes),
    "convert": Operation(_check_cast, _cast_fields, _cast,
                         _CAST_MODELS | {"codes": _model(lambda source, target: coverage.codes(source))},
                         _cast_notes),
    "decode": Operation(_check_decode, lambda name, operands: ((), ()), _decode,
                        {"codes": lambda name: (coverage.codes(format_of(name.src)),)}, _decode_notes),
    "quantize": Operation(tiles.check, tiles.fields, tiles.answer, tiles.MODELS, tiles.notes),
}


# ------------------------------------------------------------------------------------------------------------
# what a set rests on, and which sets are committed

def clause(name: SetName) -> str:
    """The clauses that decide a set's results, joined by commas."""
    if name.op == "decode":
        return format_of(name.src).clause if format_of(name.src).is_listed else "VAL-7"
    if name.op == "quantize":
        return tiles.clause(name)
    rounding, _ = name.rounding
    if format_of(name.dst).is_listed:
        return format_of(name.dst).clause
    if (rounding, name.policy) == ("rne", "sat"):
        return "CAST-3"
    return f"{ROUNDINGS[rounding].clause},{overflow_clause(name.policy)}"


def status(name: SetName) -> str:
    """Who says so: normative (a published standard), vendor:<who>, or refq-choice (Spec: VEC-7)."""
    vendor = next((who for word, who in VENDORS.items() if name.policy.startswith(word)), None)
    if vendor:
        return f"vendor:{vendor}"
    if name.op == "quantize":
        return "refq-choice"
    row = format_of(name.src if name.op == "decode" else name.dst)
    document = next((word for word in DOCUMENTS if row.ref.startswith(word)), None)
    if name.op == "decode" or document is None:
        return "normative" if document else "refq-choice"
    policies, sources, roundings = DOCUMENTS[document]
    covered = name.policy in policies and name.src in sources and name.round in (roundings or ROUNDINGS)
    return "normative" if covered and row.special != "scale" else "refq-choice"


FOCUS = ("e4m3fn", "e5m2", "e2m1")              # the formats shown under every source and every rounding
STACKS = {"cuda-satfinite": ("e4m3fn", "e5m2", "e2m1", "e8m0"), "cuda-nosat": ("e4m3fn", "e5m2"),
          "cutlass": ("e4m3fn", "e5m2", "e2m1"), "ml_dtypes": ("e4m3fn", "e5m2", "e2m1", "e4m3fnuz"),
          "torch-2.8": ("e4m3fn", "e5m2", "e4m3fnuz"), "torch-2.15": ("e4m3fn", "e5m2", "e4m3fnuz"),
          "onnx-sat": ("e4m3fn", "e5m2", "e2m1", "e4m3fnuz"), "onnx-sat-19": ("e4m3fnuz",),
          "onnx-nosat": ("e4m3fn", "e5m2", "e4m3fnuz")}
STOPPING = (("e5m2", "ieee"), ("e4m3fn", "ieee"), ("e4m3fn", "nonsat"), ("binary8p4se", "satnone"))
INTEGER_BITS = (2, 4, 8)                        # integer rows with an encode set of their own


def committed() -> list[str]:
    """Names of the sets under vectors/, sorted: rules over the table, so a new row brings its own sets."""
    return sorted({*_decodes(), *_encodes(), *_policies(), *_quantizes()})


def _small():
    return [row for row in (*FORMATS.values(), *LISTED.values()) if row.width <= 8]


def _decodes():
    for row in (row for row in _small() if not row.is_listed or row.exact):
        exact = next(short for short in ("f32", "f64") if coverage.holds(format_of(short), row))
        yield f"decode/{row.name}-{exact}/exact/codes"


def _encodes():
    for row in _small():
        if row.is_float or row.is_listed or row.bits in INTEGER_BITS and row.encoding == "twos":
            yield f"encode/f32-{row.name}/rne-sat/boundary"
        if row.special.startswith("p3109"):
            yield f"encode/f32-{row.name}/rne-satnone/boundary"
            yield f"encode/f32-{row.name}/rne-satpropagate/special"
        elif row.has_nan and not (row.is_listed and row.own_specials):
            yield f"encode/f32-{row.name}/rne-nonsat/boundary"


def _policies():
    fixed = [rule.name for rule in ROUNDINGS.values() if not rule.stochastic]
    drawn = [rule.name for rule in ROUNDINGS.values() if rule.stochastic]
    for name in FOCUS:
        yield from (f"encode/f32-{name}/{rounding}-sat/boundary" for rounding in fixed)
        yield from (f"encode/{source}-{name}/rne-sat/boundary" for source in SHORT.values())
        yield from (f"convert/{source}-{name}/rne-sat/codes" for source in FOCUS if source != name)
        yield f"encode/f32-{name}/src8-sat/stochastic"
    yield "encode/f32-e8m0/rup-sat/boundary"
    yield from (f"encode/f32-e4m3fn/{rounding}8-sat/stochastic" for rounding in drawn)
    yield from (f"encode/f32-{name}/rne-ieee/special" for name in ("f16", "bf16"))
    for rounding in ("rtz", "rup", "rdn", "rto"):       # rules that let the rounding decide about overflow
        yield from (f"encode/f32-{name}/{rounding}-{policy}/special" for name, policy in STOPPING)
    for overflow, names in STACKS.items():
        yield from (f"encode/f32-{name}/rne-{overflow}/special" for name in names)


def _quantizes():
    yield from tiles.committed()

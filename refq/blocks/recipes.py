"""THE table of recipes: every remaining choice of one stack under one name (Spec: REC-1).

A recipe is data: the scale rule, what zero, NaN, infinite and tiny tiles become, how a value is divided by
its scale, how elements round and overflow. Where a stack prescribes float32 operations, a row names a small
function of stacks.py that performs them one by one.
"""

from dataclasses import dataclass, fields, replace

from refq.blocks.rows import Block
from refq.blocks.rules import RULES, scale_rule
from refq.blocks.scales import (BOTTOMS, INF_TILES, INF_TILES_OF_STACKS, NAN_TILES, NAN_TILES_OF_STACKS,
                                TINY_TILES, ZERO_TILES, ZERO_TILES_OF_STACKS, Choices, Scales)
from refq.blocks.stacks import BY_CHOICE, BY_RULE, FINISHES, QUOTIENTS, SCALES, SOURCES, WORDS
from refq.errors import InputError
from refq.formats.policies import OVERFLOWS, ROUNDINGS

@dataclass(frozen=True)
class Takes:
    """The data types a stack has.

    elements, scales: number formats. outer: whether there is a tensor scale: "none", "required", "optional",
    or "one" where the stack knows no other than 1. zero: whether there may be an integer zero point.
    """

    elements: tuple[str, ...]
    scales: tuple[str, ...] = ("e8m0",)
    outer: str = "none"
    zero: bool = False

    def refusal(self, block: Block) -> str:
        """Why a data type is not taken, or nothing."""
        if block.element not in self.elements:
            return f"elements {_listed(self.elements)}, not {block.element}"
        if block.scale not in self.scales:
            return f"scales {_listed(self.scales)}, not {block.scale or 'none'}"
        if self.outer == "none" and block.outer or self.outer == "required" and not block.outer:
            return f"data types {'with' if self.outer == 'required' else 'without'} a tensor scale"
        if block.subtiles or block.sparsity or block.zero and not (self.zero and not block.zero_row.is_float):
            return f"plain tiles{' or integer zero points' if self.zero else ''}"
        return ""


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    kind: the scales it is for, "exponent" or "float" (as in rules.Rule).
    takes: the data types of one stack; None for every one of that kind.
    source: what values are taken for first, a key of SOURCES.
    rule: a scale rule, or None for the data type's own or where `scales` has none.
    zero_tile, nan_tile, inf_tile, tiny_tile: keys of the tables in scales.py.
    bottom: what values of tiles with code 0 are divided by, a key of BOTTOMS.
    scales: how scales are computed, a key of SCALES. quotient: how values are divided, a key of QUOTIENTS.
    rounding, overflow: of the elements. finish: what becomes of zeros and NaN, a key of FINISHES.
    tensor: whether the tensor scale that is kept is a "multiplier" or a "divisor" of the values.
    """

    name: str
    kind: str
    words: str
    clause: str
    ref: str = ""
    takes: Takes | None = None
    source: str = "exact"
    rule: str | None = None
    zero_tile: str = "lowest"
    nan_tile: str = "nan"
    inf_tile: str = "nan"
    tiny_tile: str = "clamp"
    bottom: str = "scale"
    scales: str = "exact"
    quotient: str = "exact"
    rounding: str = "rne"
    overflow: str = "sat"
    finish: str = "kept"
    tensor: str = "multiplier"

    def __post_init__(self):
        for field, allowed in _ALLOWED.items():
            value = getattr(self, field)
            if value not in allowed and not (field == "rule" and value is None):
                raise InputError(f"recipe {self.name!r}: {field} {value!r} is not known; "
                                 f"allowed are {', '.join(allowed)}")

    def scales_of(self, flat, tiles, block: Block, tensor_scale=None) -> Scales:
        """The scales of tiles in rows, (tiles, values)."""
        choices = Choices(RULES[self.rule or block.rule], self.zero_tile, self.nan_tile, self.inf_tile,
                          self.tiny_tile, self.bottom)
        return SCALES[self.scales](flat, tiles, block, choices, tensor_scale)

    def source_of(self, values):
        """What the recipe takes float32 or float64 values for."""
        convert = SOURCES[self.source]
        return convert(values) if convert else values

    def rounding_of(self, asked: str | None) -> str:
        """The element rounding: what was asked for, or the recipe's own. A stack has no other (REC-1)."""
        if self.takes is None:
            return self.rounding if asked is None else asked
        if asked not in (None, "rne", self.rounding):
            raise InputError(f"recipe {self.name!r} rounds elements by {self.rounding}, not by {asked}; "
                             f"{self.name},rounding={asked} is the same recipe with that rounding")
        return self.rounding


def _listed(names) -> str:
    return ", ".join(names[:-1]) + " and " * bool(names[1:]) + names[-1]


_ALLOWED = {"source": SOURCES, "rule": RULES, "zero_tile": ZERO_TILES | ZERO_TILES_OF_STACKS,
            "nan_tile": NAN_TILES | NAN_TILES_OF_STACKS, "inf_tile": INF_TILES | INF_TILES_OF_STACKS,
            "tiny_tile": TINY_TILES, "bottom": BOTTOMS, "scales": SCALES, "quotient": QUOTIENTS,
            "rounding": ROUNDINGS, "overflow": OVERFLOWS, "finish": FINISHES, "tensor": WORDS["tensor"]}


# ------------------------------------------------------------------------------------------------------------
# the table

_E2M1 = ("e2m1",)
_FIVE = ("e4m3fn", "e5m2", "e2m3", "e3m2", "e2m1")
_SIX = (*_FIVE, "mxint8")
_ONNX = (*(f"{sign}int{bits}" for bits in (2, 4, 8, 16) for sign in ("", "u")),
         "e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e2m1")
_FLOATS = ("binary32", "binary16", "bfloat16")


def _mx(name, words, clause, ref, elements=_FIVE, **more):
    return Recipe(name, "exponent", words, clause, ref, Takes(elements), "float32", **more)


def _nv(name, words, clause, ref, outer, scales, **more):
    takes = Takes(_E2M1, ("ue4m3",), outer)
    return Recipe(name, "float", words, clause, ref, takes, "float32", scales=scales, **more)


def _torchao(rule):
    words = f"torchao, to_mx in mode {rule.upper()}"
    return _mx(f"torchao_{rule}", words, "REC-9", "torchao 0.18.0", rule=rule, inf_tile="binade",
               bottom="normal")


def _tensorcast(mode):
    name = "tensorcast" + f"_{mode}" * (mode != "max")
    return _mx(name, f"TensorCast, scale mode {mode}", "REC-18", "TensorCast, branch main", _SIX,
               scales=name.replace("_", "-"), overflow="satsym")


def _tensorcast_triton(mode, rule):
    words = f"TensorCast's Triton kernels, mode {mode}"
    return Recipe(f"tensorcast_triton_{mode}", "exponent", words, "REC-19", "TensorCast, branch triton",
                  Takes(_FIVE), "normal", rule, scales="wrapped", finish="below")


def _triton(way):
    words = f"Triton, downcast_to_mxfp with ROUND_{way.upper()}"
    return _mx(f"triton_{way}", words, "REC-21", "Triton 018a674", ("e4m3fn", "e5m2", "e2m1"),
               scales=f"triton-{way}", quotient="triton")


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in [
    Recipe("ocp", "exponent", "OCP MX 6.3, with refq's choices for what it leaves open", "BLOCK-3",
           "OCP MX 6.3"),
    Recipe("exact", "float", "exact quotients, each rounded once", "BLOCK-9"),
    Recipe("hif4", "float", "exact quotients, halves away from zero", "RULE-9", "HiFloat4", rounding="rna"),
    # one stack each
    _mx("te_mxfp8", "TransformerEngine, MXFP8", "REC-7", "TransformerEngine", ("e4m3fn", "e5m2"),
        scales="reciprocal-up", nan_tile="ignored", inf_tile="largest", bottom="one",
        overflow="cuda-satfinite"),
    _nv("te_nvfp4", "TransformerEngine, NVFP4", "REC-8", "TransformerEngine", "required", "te-nvfp4",
        quotient="multiply", finish="below", tensor="divisor"),
    *map(_torchao, ("floor", "ceil", "even")),
    _mx("torchao_rceil", "torchao, to_mx in mode RCEIL", "REC-10", "torchao 0.18.0",
        scales="logarithm-up", inf_tile="largest", bottom="one"),
    _nv("torchao_nvfp4", "torchao, nvfp4_quantize", "REC-11", "torchao 0.18.0", "optional", "torchao-nvfp4",
        quotient="multiply", finish="nan-to-b"),
    _mx("modelopt_mxfp4", "ModelOpt, MXFP4QTensor", "REC-12", "ModelOpt 0.47.0", _E2M1,
        scales="logarithm-up", nan_tile="lost", inf_tile="lost", quotient="divide", rounding="rnz",
        finish="minus-zeros"),
    _mx("modelopt_mxfp8", "ModelOpt, MXFP8QTensor", "REC-12", "ModelOpt 0.47.0", ("e4m3fn",),
        scales="logarithm-up", nan_tile="lowest", inf_tile="largest"),
    _nv("modelopt_nvfp4", "ModelOpt, NVFP4QTensor", "REC-13", "ModelOpt 0.47.0", "required", "modelopt-nvfp4",
        quotient="divide", finish="below"),
    _mx("compressed_tensors_mx", "compressed-tensors, MX", "REC-14", "compressed-tensors 0.20.0",
        ("e4m3fn", "e2m3", "e2m1"), scales="carry", quotient="divide", finish="below-in-e2m1"),
    _nv("compressed_tensors_nvfp4", "compressed-tensors, NVFP4", "REC-15", "compressed-tensors 0.20.0",
        "required", "compressed-nvfp4", quotient="divide", finish="below-or-nan", tensor="divisor"),
    _mx("cudnn_mx", "cuDNN, Block Scale Quantize to MX", "REC-16", "cuDNN documentation", rule="rceil"),
    _nv("cudnn_nvfp4", "cuDNN, Block Scale Quantize to NVFP4", "REC-16", "cuDNN documentation", "one", "up"),
    _mx("microxcaling", "microxcaling, its PyTorch path", "REC-17", "microxcaling 7bc4195", _SIX,
        scales="logarithm-down", zero_tile="normal", quotient="half-up", overflow="satsym"),
    *map(_tensorcast, ("max", "midmax")),
    *(_tensorcast_triton(*mode) for mode in (("floor", "floor"), ("ceil", "ceil"), ("midmax", "midmax_ge"),
                                             ("option3", "even"), ("topbinade", "rceil"))),
    _mx("tosa", "TOSA CAST_TO_BLOCK_SCALED", "REC-20", "TOSA 1.1", _SIX, rule="tosa"),
    *map(_triton, ("up", "down")),
    _mx("ggml_mxfp4", "GGML, MXFP4", "REC-22", "GGML", _E2M1, scales="ggml", quotient="nearest-level"),
    _nv("ggml_nvfp4", "GGML, NVFP4", "REC-22", "GGML", "one", "ggml", quotient="nearest-level"),
    Recipe("onnx_quantizelinear", "float", "ONNX QuantizeLinear, with refq's scales", "REC-23",
           "ONNX QuantizeLinear-25", Takes(_ONNX, _FLOATS, zero=True), "float32",
           zero_tile="one", quotient="divide"),
]}

# Fields that a recipe's name may change: "ocp,rule=rceil,zero_tile=one" (Spec: BLOCK-16, REC-1).
CHANGEABLE = {"rule": RULES, "zero_tile": ZERO_TILES, "nan_tile": NAN_TILES, "inf_tile": INF_TILES,
              "tiny_tile": TINY_TILES, "rounding": ROUNDINGS, "overflow": OVERFLOWS}


def changeable(found: Recipe) -> tuple[str, ...]:
    """The fields that the name of a recipe may change; of a stack's no odd tiles (Spec: REC-1)."""
    if found.takes is None:
        return tuple(CHANGEABLE)
    return ("rule",) * (found.rule is not None) + ("rounding", "overflow")


def recipe(name) -> Recipe:
    """The recipe of that name, plain or with changed fields; a row is returned as it is.

    Raises InputError for unknown names, fields and values. Spec: REC-1.
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise InputError(f"a recipe is named by a string or given as a row, not {name!r}")
    plain, *changes = (part.strip() for part in name.split(","))
    if plain not in RECIPES:
        raise InputError(f"recipe {plain!r} is not known; allowed are {', '.join(RECIPES)}")
    found = RECIPES[plain]
    if not changes:
        return found
    for change in changes:
        field, equals, value = (part.strip() for part in change.partition("="))
        fit = changeable(RECIPES[plain])
        if field not in fit or not equals:
            raise InputError(f"recipe {name!r}: {change!r} is no change; allowed are {', '.join(fit)}, "
                             "each followed by = and a value")
        value = scale_rule(value).name if field == "rule" else value
        if value not in CHANGEABLE[field]:
            raise InputError(f"recipe {name!r}: {field} {value!r} is not known; "
                             f"allowed are {', '.join(CHANGEABLE[field])}")
        found = replace(found, **{field: value})
    base = RECIPES[plain]
    said = [f"{f.name}={getattr(found, f.name)}" for f in fields(found)
            if getattr(found, f.name) != getattr(base, f.name)]
    return replace(found, name=",".join([plain, *said]))


def recipe_of(block: Block, name=None) -> Recipe:
    """The recipe to quantise a data type with. Raises InputError for one that is not for it."""
    found = recipe(block.recipe if name is None else name)
    if found.takes and (refusal := found.takes.refusal(block)):
        raise InputError(f"recipe {found.name!r} is for {refusal}: it does not take {block.name}")
    if block.scale is None:
        return found
    kind = RULES[block.rule].kind
    if found.kind != kind:
        raise InputError(f"recipe {found.name!r} is for {found.kind} scales, but {block.name} has the {kind} "
                         f"scale {block.scale}")
    if found.rule and RULES[found.rule].kind != kind:
        raise InputError(f"recipe {found.name!r}: scale rule {found.rule} is not for the scale {block.scale} "
                         f"of {block.name}")
    return found


_ODD_TILES = ("zero_tile", "nan_tile", "inf_tile", "tiny_tile", "bottom")
_WORDS = WORDS | {field: _ALLOWED[field] for field in _ODD_TILES}


def describe(found: Recipe, field: str, block: Block) -> str:
    """One field of a recipe in words, as it concerns a data type."""
    value = getattr(found, field)
    if found.scales not in (BY_RULE if field == "rule" else BY_CHOICE if field in _ODD_TILES else SCALES):
        return "as its scales are computed"
    if field == "rule":
        rule = RULES[value or block.rule]
        return f"{rule.name}: {rule.words}"
    if field == "rounding":
        return f"{value}: {ROUNDINGS[value].words}"
    if field == "overflow":
        return f"{value}: {OVERFLOWS[value].ref or value}"
    return f"{value}: {_WORDS[field][value]}"

"""THE table of recipes: every remaining choice of one stack under one name (Spec: REC-1).

A recipe is data: the scale rule, what zero, NaN, infinite and tiny tiles become, how a value is divided by its
scale, how elements round and overflow. Where a stack prescribes float32 operations for its scales, a small
named function of this module performs them one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from refq.blocks.rows import Block
from refq.blocks.rules import RULES, scale_rule
from refq.blocks.scales import INF_TILES, NAN_TILES, TINY_TILES, ZERO_TILES, Choices, Scales, scales_of
from refq.errors import InputError
from refq.formats.policies import OVERFLOWS, ROUNDINGS


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    kind: the scales it is for, "exponent" or "float" (as in rules.Rule). rule: a scale rule, or None for the data
    type's own. zero_tile, nan_tile, inf_tile, tiny_tile: keys of the tables in scales.py.
    scales: how scales are computed, a key of SCALES; quotient: how values are divided, a key of QUOTIENTS;
    rounding, overflow: of the elements. finish: what becomes of zero codes, a key of FINISHES.
    tensor: whether the tensor scale that is kept is a "multiplier" or a "divisor" of the values.
    """

    name: str
    kind: str
    words: str
    clause: str
    ref: str = ""
    rule: str | None = None
    zero_tile: str = "lowest"
    nan_tile: str = "nan"
    inf_tile: str = "nan"
    tiny_tile: str = "clamp"
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
                          self.tiny_tile)
        return SCALES[self.scales](flat, tiles, block, choices, tensor_scale)


# ------------------------------------------------------------------------------------------------------------
# how scales are computed: (flat, tiles, block, choices, tensor scale) -> Scales

SCALES: dict[str, Callable] = {"exact": scales_of}


# ------------------------------------------------------------------------------------------------------------
# how values are divided: (values, divisors, room) -> quotients. "exact" is elements.py's own.

QUOTIENTS: dict[str, Callable | None] = {"exact": None}


# ------------------------------------------------------------------------------------------------------------
# what becomes of zero codes: (codes, values, element row), in place

FINISHES: dict[str, Callable | None] = {"kept": None}


_ALLOWED = {"rule": RULES, "zero_tile": ZERO_TILES, "nan_tile": NAN_TILES, "inf_tile": INF_TILES,
            "tiny_tile": TINY_TILES, "scales": SCALES, "quotient": QUOTIENTS, "rounding": ROUNDINGS,
            "overflow": OVERFLOWS, "finish": FINISHES, "tensor": ("multiplier", "divisor")}

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in [
    Recipe("ocp", "exponent", "OCP MX 6.3, with refq's choices for what it leaves open", "BLOCK-3", "OCP MX 6.3"),
    Recipe("exact", "float", "exact quotients, each rounded once", "BLOCK-9"),
    Recipe("hif4", "float", "exact quotients, halves away from zero", "RULE-9", "HiFloat4", rounding="rna"),
]}

# Fields that a recipe's name may change: "ocp,rule=rceil,zero_tile=one".
CHANGEABLE = ("rule", "zero_tile", "nan_tile", "inf_tile", "tiny_tile", "rounding", "overflow")


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
    for change in changes:
        field, equals, value = (part.strip() for part in change.partition("="))
        if field not in CHANGEABLE or not equals:
            raise InputError(f"recipe {name!r}: {change!r} is no change; allowed are {', '.join(CHANGEABLE)}, "
                             "each followed by = and a value")
        value = scale_rule(value).name if field == "rule" else value
        found = replace(found, **{field: value})
    base = RECIPES[plain]
    said = [f"{f.name}={getattr(found, f.name)}" for f in fields(found)
            if getattr(found, f.name) != getattr(base, f.name)]
    return replace(found, name=",".join([plain, *said]))


def recipe_of(block: Block, name=None) -> Recipe:
    """The recipe to quantise a data type with. Raises InputError for one that is not for it."""
    found = recipe(block.recipe if name is None else name)
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


def describe(found: Recipe, field: str, block: Block) -> str:
    """One field of a recipe in words, as it concerns a data type."""
    value = getattr(found, field)
    if field == "rule":
        rule = RULES[value or block.rule]
        return f"{rule.name}: {rule.words}"
    tables = {"zero_tile": ZERO_TILES, "nan_tile": NAN_TILES, "inf_tile": INF_TILES, "tiny_tile": TINY_TILES}
    if field in tables:
        return f"{value}: {tables[field][value]}"
    if field == "rounding":
        return f"{value}: {ROUNDINGS[value].words}"
    if field == "overflow":
        return f"{value}: {OVERFLOWS[value].ref or value}"
    return WORDS.get((field, value), str(value))


# What the keys of SCALES, QUOTIENTS and FINISHES mean.
WORDS: dict[tuple[str, str], str] = {
    ("scales", "exact"): "exact: the scale rule in exact arithmetic",
    ("quotient", "exact"): "exact: value / scale, rounded once into the element",
    ("finish", "kept"): "kept: zeros keep their sign",
    ("tensor", "multiplier"): "multiplier: values are multiplied by the stored tensor scale",
    ("tensor", "divisor"): "divisor: values are divided by the stored tensor scale",
}

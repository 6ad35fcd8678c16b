"""What becomes of each weight: the data type and method that a default and the rules give it."""

import difflib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from refq.blocks.quantize import quantize
from refq.blocks.rows import Block, data_type
from refq.diffusion.methods import METHODS, method_named
from refq.errors import InputError
from refq.formats.table import columns
from refq.models.weights import WeightSite

FLOAT = "float"             # in place of a data type: the weight stays as it is
DEFAULT = "default"
TRIAL = np.ones((2, 2), np.float32)     # an array that every data type can be cast to


@dataclass(frozen=True)
class Choice:
    """What a rule says: block None leaves the weight as it is. origin: the pattern that said so."""

    block: Block | None
    method: str
    origin: str = DEFAULT

    @property
    def name(self) -> str:
        """Of the data type."""
        return FLOAT if self.block is None else self.block.name

    @property
    def words(self) -> str:
        return self.name if self.block is None else f"{self.name}:{self.method}"


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that share one stored weight, quantised once. sites: in file order."""

    sites: tuple[WeightSite, ...]
    choice: Choice

    @property
    def first(self) -> WeightSite:
        return self.sites[0]

    @property
    def name(self) -> str:
        """The name of the first layer's node, or its key."""
        return self.first.node.title


@dataclass(frozen=True)
class Casting:
    """rounding, recipe: what `quantize` is given for every weight; None: the data type's own."""

    rounding: str | None = None
    recipe: str | None = None

    def __call__(self, array, block: Block, axis):
        return quantize(array, block, axis, self.rounding, self.recipe)


class Rules:
    """The default and the rules of one run, checked before a file is opened.

    dtype: a data type or "float". method: a key of METHODS. rules: "pattern=dtype" or "pattern=dtype:method",
    or pairs (pattern, "dtype[:method]"); of several that match a layer the last counts. keep_float: patterns
    of layers that stay as they are whatever the rules say. Patterns are globs over node names, output names
    and weight names. Raises InputError for unknown names.
    """

    def __init__(self, dtype, method: str, rules=(), keep_float=(), casting: Casting = Casting()):
        self.casting = casting
        self.default = self._choice(dtype, method, DEFAULT)
        written = [rules] if isinstance(rules, str) else rules
        self.rules = [self._parsed(rule, method) for rule in written]
        kept = [keep_float] if isinstance(keep_float, str) else keep_float
        self.rules += [Choice(None, method, pattern) for pattern in kept]

    def _parsed(self, rule, method: str) -> Choice:
        pattern, _, words = rule.rpartition("=") if isinstance(rule, str) else (rule[0], "=", rule[1])
        if not pattern or not words:
            raise InputError(f"rule {rule!r} is not 'pattern=dtype' or 'pattern=dtype:method'")
        name, _, own = words.rpartition(":")
        return self._choice(name, own, pattern) if own in METHODS else self._choice(words, method, pattern)

    def _choice(self, dtype, method: str, origin: str) -> Choice:
        method_named(method)
        if dtype == FLOAT:
            return Choice(None, method, origin)
        block = data_type(dtype)
        self.casting(TRIAL, block, -1)          # does it take the rounding and the recipe?
        return Choice(block, method, origin)

    @property
    def blocks(self) -> list[Block]:
        """Every data type that is named."""
        return [choice.block for choice in (self.default, *self.rules) if choice.block]

    def cast_words(self, candidates=()) -> dict[str, str]:
        """{"rounding": ..., "recipe": ...} of the data types named, for the report."""
        tried = [self.casting(TRIAL, block, -1) for block in (*candidates, *self.blocks)]
        return {"rounding": ", ".join(dict.fromkeys(q.rounding for q in tried)),
                "recipe": ", ".join(dict.fromkeys(q.recipe for q in tried if q.dtype.scale))}

    @property
    def listed(self) -> tuple[tuple[str, str], ...]:
        """(pattern, what it says) of every rule."""
        return tuple((choice.origin, choice.words) for choice in self.rules)

    def resolve(self, sites: Iterable[WeightSite]) -> list[tuple[WeightSite, Choice]]:
        """Every site with its choice; sites that cannot be quantised as chosen have no view, but a reason.

        Raises InputError for a pattern that matches no weight-bearing node.
        """
        sites = list(sites)
        for rule in self.rules:
            if not any(_matches(site, rule.origin) for site in sites):
                raise InputError(f"pattern {rule.origin!r} matches no weight-bearing node" +
                                 _candidates(sites, rule.origin))
        return [self._resolved(site) for site in sites]

    def _resolved(self, site: WeightSite) -> tuple[WeightSite, Choice]:
        matching = [rule for rule in self.rules if _matches(site, rule.origin)]
        choice = matching[-1] if matching else self.default
        return replace(site, view=None, reason=reason) if (reason := _refusal(site, choice)) else site, choice


def _refusal(site: WeightSite, choice: Choice) -> str:
    """Why a site that could be quantised is not; "" where it is, or where it could not anyway."""
    if site.view is None:
        return ""
    if choice.block is None:
        return "kept float" if choice.origin == DEFAULT else f"kept float by {choice.origin!r}"
    if site.tile_axis(choice.block) is None:
        return f"{choice.block.name} has tiles of two dimensions, its weight has one"
    return ""


def grouped(resolved: list[tuple[WeightSite, Choice]]) -> list[Group]:
    """The weights to quantise, in file order; layers of one weight that are to differ are weights apart.

    Where a rule gives a layer what another of the weight has by default, the rule holds for both: it stays.
    """
    members: dict[tuple, list[WeightSite]] = defaultdict(list)
    choices = {}
    for site, choice in resolved:
        if site.view:
            key = site.group, choice.words
            members[key].append(site)
            if key not in choices or choices[key].origin == DEFAULT:
                choices[key] = choice
    return [Group(tuple(sites), choices[key]) for key, sites in members.items()]


def table(resolved: list[tuple[WeightSite, Choice]]) -> str:
    """What becomes of every layer and by which rule, as text."""
    head = ("layer", "op", "weight", "becomes", "by")
    rows = [(site.node.title, site.node.op, "x".join(map(str, site.stored_shape)),
             choice.words if site.view else "as it is", choice.origin if site.view else site.reason)
            for site, choice in resolved]
    return columns([head, *rows])


def because(sites: list[WeightSite]) -> str:
    """Why a model has nothing to quantise, as the end of a sentence."""
    if not sites:
        return ": it has no layer whose weight is constant"
    reasons = [f"{site.node.op} {site.node.title!r}: {site.reason}" for site in sites]
    return "; " + "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")


def _matches(site: WeightSite, pattern: str) -> bool:
    """A name spelled out is meant even where it holds the brackets of a glob."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in site.names)


def _candidates(sites: list[WeightSite], pattern: str) -> str:
    names = sorted({name for site in sites for name in site.names})
    plain = pattern.strip("*?")
    near = difflib.get_close_matches(plain, names, 4, 0.4) or names[:4]
    return f"; names it could mean: {', '.join(map(repr, near))}" if near else ""

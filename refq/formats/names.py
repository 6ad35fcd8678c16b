"""Looking number formats up: every accepted spelling leads to one row, or is refused with the candidates."""

import difflib
import re
from functools import lru_cache

from refq.errors import InputError
from refq.formats.rows import FORMATS, Float, Int, Row, p3109

# Spellings that mean two things in the field (Spec: VAL-8).
AMBIGUOUS: dict[str, tuple[str, ...]] = {
    "e4m3": ("e4m3fn", "e4m3ieee", "e4m3fnuz"),
    "fp8": ("e4m3fn", "e5m2"),
    "float8": ("e4m3fn", "e5m2"),
    "fp6": ("e2m3", "e3m2"),
    "float6": ("e2m3", "e3m2"),
    "binary8p3": ("binary8p3se", "binary8p3sf", "e5m2fnuz"),
    "binary8p4": ("binary8p4se", "binary8p4sf", "e4m3fnuz"),
    "e5m3": ("ue5m3", "e5m3fn"),
}

_MINIFLOAT = re.compile(r"(u?)e(\d+)m(\d+)(?:b(\d+))?(ieee|fnuz|fn|finite|scale)?")
_P3109 = re.compile(r"binary(\d+)p(\d+)([su])([ef])|p3109_k(\d+)p(\d+)([su])([ef])")
_INTEGER = re.compile(r"(u?)int(\d+)")


def number_format(name) -> Row:
    """The row of a number format from any of its spellings; a row is returned as it is.

    name: a canonical name, an alias (ml_dtypes, ONNX, MLIR, torch), a P3109 name, or by rule
    `[u]eXmY[bZ](ieee|fn|fnuz|finite|scale)`. Case does not matter. Spec: VAL-8.
    Raises InputError for unknown and for ambiguous spellings, naming the candidates.
    """
    if isinstance(name, Row):
        return name
    if not isinstance(name, str):
        raise InputError(f"a number format is named by a string or given as a row, not {name!r}")
    key = name.strip().lower().removeprefix("torch.").removeprefix("ml_dtypes.").removeprefix("tensorproto.")
    row = aliases().get(key) or _by_rule(key)
    if row is not None:
        return row
    if key in AMBIGUOUS:
        raise InputError(f"number format {name!r} is ambiguous; say which: {', '.join(AMBIGUOUS[key])}")
    if (shape := _MINIFLOAT.fullmatch(key)) and not shape[5]:
        raise InputError(f"number format {name!r} does not say how its special codes work; say which: "
                         + ", ".join(key + rule for rule in ("ieee", "fn", "fnuz", "finite")))
    near = difflib.get_close_matches(key, list(aliases()), 4, 0.6)
    raise InputError(f"number format {name!r} is not known" + (f"; nearest names: {', '.join(near)}" if near else ""))


def aliases() -> dict[str, Row]:
    """Every spelling of the rows of the table, in lower case."""
    return _aliases(tuple(FORMATS.values()))


@lru_cache(maxsize=8)
def _aliases(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {spelling.lower(): row for row in rows for spelling in (row.name, *row.aka)}


@lru_cache(maxsize=1024)
def _by_rule(key: str) -> Row | None:
    if shape := _P3109.fullmatch(key):
        k, p, sign, domain = (part for part in shape.groups() if part is not None)
        return p3109(int(k), int(p), sign == "s", {"e": "extended", "f": "finite"}[domain])
    if shape := _INTEGER.fullmatch(key):
        if not 1 <= int(shape[2]) <= 32:
            raise InputError(f"integers of {shape[2]} bits are not number formats here; allowed are 1 to 32 bits")
        return Int(key, int(shape[2]), signed=not shape[1])
    shape = _MINIFLOAT.fullmatch(key)
    if shape is None or not shape[5]:
        return None
    exp, man, special = int(shape[2]), int(shape[3]), shape[5]
    if not 1 <= exp <= 11 or man > 52:
        raise InputError(f"number format {key!r}: allowed are 1 to 11 exponent bits and 0 to 52 trailing bits")
    bias = int(shape[4]) if shape[4] else 2 ** (exp - 1) - (special != "fnuz")
    unsigned = bool(shape[1]) or special == "scale"
    return Float(key, exp, man, bias, special, signed=not unsigned, tie="up" if special == "scale" else "even",
                 ref="by rule (VAL-8)")

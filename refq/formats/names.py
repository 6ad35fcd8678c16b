"""Looking number formats up: every accepted spelling leads to one row, or is refused with the candidates."""

import difflib
import re
from functools import lru_cache

from refq.errors import InputError
from refq.formats.listed import LNS, Exponent, Listed, Posit, Takum
from refq.formats.rows import FORMATS, LISTED, Float, Int, Row, p3109

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
    # libtakum's takums are logarithmic, Universal's are linear
    "takum8": ("takum_log8", "takum_linear8"),
    "takum16": ("takum_log16", "takum_linear16"),
    # TensorCast's parser says the first, its predefined constants are the second
    "tcast:binary8p3": ("tcast:e5m2b16inuz", "tcast:e5m2b16fnuz"),
    "tcast:binary8p4": ("tcast:e4m3b8inuz", "tcast:e4m3b8fnuz"),
    "tcast:binary8p5": ("tcast:e3m4b4inuz", "tcast:e3m4b4fnuz"),
}

# Few digits, so that no name costs memory or minutes.
_MINIFLOAT = re.compile(r"(u?)e(\d{1,4})m(\d{1,4})(?:b(\d{1,9}))?(ieee|fnuz|fn|finite|scale)?")
_P3109 = re.compile(r"binary(\d{1,4})p(\d{1,4})([su])([ef])|p3109_k(\d{1,4})p(\d{1,4})([su])([ef])")
_INTEGER = re.compile(r"(u|sm)?int(\d{1,4})(?:f(\d{1,4}))?")
_POSIT = re.compile(r"posit(\d{1,2})")
_TAKUM = re.compile(r"takum_(linear|log)(\d{1,2})")
_LNS = re.compile(r"lns(\d{1,2})f(\d{1,2})")
_EXPONENT = re.compile(r"pow2int(\d{1,2})")
_TENSORCAST = re.compile(r"tcast:(?:e(\d{1,4})m(\d{1,4})(?:b(\d{1,9}))?(fnuz|inuz|fn)?|(u?)int(\d{1,4}))")
LARGEST_BIAS = 1 << 15      # of P3109's formats


def number_format(name) -> Row:
    """The row of a number format from any of its spellings; a row is returned as it is.

    name: a canonical name, an alias (ml_dtypes, ONNX, MLIR, torch), a P3109 name, by rule
    `[u]eXmY[bZ](ieee|fn|fnuz|finite|scale)`, `[u|sm]intX[fY]` or like `posit12`, `takum_log12`, `lns8f3` and
    `pow2int5`, or TensorCast's spelling behind `tcast:`. Case does not matter.
    Raises InputError for unknown and for ambiguous spellings, naming the candidates. Spec: VAL-8.
    """
    if isinstance(name, Row):
        return name
    if not isinstance(name, str):
        raise InputError(f"a number format is named by a string or given as a row, not {name!r}")
    key = name.strip().lower().removeprefix("torch.").removeprefix("ml_dtypes.").removeprefix("tensorproto.")
    row = FORMATS.get(key) or LISTED.get(key) or aliases().get(key) or _by_rule(key)
    if row is not None:
        return row
    candidates = AMBIGUOUS.get(key)
    if shape := _MINIFLOAT.fullmatch(key):
        candidates = candidates or _spelled_out(key, *shape.groups())
    if candidates:
        raise InputError(f"number format {name!r} is ambiguous; say which: {', '.join(candidates)}")
    raise InputError(f"number format {name!r} is not known{nearest(key, aliases())}")


def nearest(key: str, known) -> str:
    """The end of a refusal: the known names that look like a key, or nothing."""
    near = difflib.get_close_matches(key, list(known), 4, 0.6)
    return f"; nearest names: {', '.join(near)}" if near else ""


def aliases() -> dict[str, Row]:
    """Every spelling of the rows of the table, in lower case."""
    return _aliases((*FORMATS.values(), *LISTED.values()))


@lru_cache(maxsize=8)
def _aliases(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {spelling.lower(): row for row in rows for spelling in (row.name, *row.aka)}


def _spelled_out(key: str, unsigned: str, exp: str, man: str, bias, special) -> list[str]:
    """What a spelling that says too little could mean. An fnuz without a bias has two in use (VAL-8)."""
    _check_size(key, int(exp), int(man))
    stem, half = f"{unsigned}e{exp}m{man}", 2 ** (int(exp) - 1)
    if special == "fnuz":
        return [f"{stem}b{half}fnuz", f"{stem}b{half - 1}fnuz (TensorCast's tcast:{stem}fnuz)"]
    stem += f"b{bias}" if bias else ""
    rules = ("scale", "fn", "finite") if man == "0" else ("ieee", "fn", "fnuz", "finite")
    suffixes = {"fnuz": "fnuz" if bias else f"b{half}fnuz"}
    return [stem + suffixes.get(rule, rule) for rule in rules if not (unsigned and rule == "fnuz")]


@lru_cache(maxsize=1024)
def _by_rule(key: str) -> Row | None:
    if shape := _P3109.fullmatch(key):
        k, p, sign, domain = (part for part in shape.groups() if part is not None)
        return p3109(int(k), int(p), sign == "s", {"e": "extended", "f": "finite"}[domain])
    if shape := _INTEGER.fullmatch(key):
        return _integer(shape[1] or "", int(shape[2]), int(shape[3] or 0))
    if row := _listed(key):
        return LISTED.get(row.name, row)
    if shape := _TENSORCAST.fullmatch(key):
        return _tensorcast(key, *shape.groups())
    shape = _MINIFLOAT.fullmatch(key)
    if shape is None or not shape[5] or (shape[5] == "fnuz" and not shape[4]):
        return None
    exp, bias = int(shape[2]), int(shape[4]) if shape[4] else None
    return _float(key, exp, int(shape[3]), bias, shape[5], signed=not shape[1] and shape[5] != "scale")


def _listed(key: str) -> Listed | None:
    """A listed format by rule, under its name without leading zeros."""
    if shape := _POSIT.fullmatch(key):
        return Posit(f"posit{int(shape[1])}", int(shape[1]), ref="Posit Standard 2022")
    if shape := _TAKUM.fullmatch(key):
        return Takum(f"takum_{shape[1]}{int(shape[2])}", int(shape[2]), shape[1], ref="takums (LIST-5)")
    if shape := _LNS.fullmatch(key):
        bits, frac = map(int, shape.groups())
        return LNS(f"lns{bits}f{frac}", bits, frac, ref="by rule (LIST-7)")
    if shape := _EXPONENT.fullmatch(key):
        return Exponent(f"pow2int{int(shape[1])}", int(shape[1]), ref="by rule (LIST-8)")
    return None


def _tensorcast(key: str, exp, man, bias, special, unsigned, bits) -> Row:
    """TensorCast's grammar.

    The default bias is 2^(E-1) - 1 under every suffix, `inuz` is P3109's rule, and a signed integer of K bits
    is sign and magnitude with one integer bit and no -0.
    """
    if bits and unsigned:
        return _integer("u", int(bits))
    if bits:
        return _float(key, 1, int(bits) - 2, 1, "fnuz")
    if man == "0" and not special:
        return _float(key, int(exp), 0, int(bias) if bias else None, "scale", signed=False)
    rule = {None: "ieee", "inuz": "p3109-extended"}.get(special, special)
    return _float(key, int(exp), int(man), int(bias) if bias else None, rule)


def _integer(kind: str, bits: int, frac: int = 0) -> Row:
    """An integer by rule: kind "", "u" or "sm" (sign and magnitude), `frac` of its bits behind the point."""
    if not 1 <= bits <= 32 or frac > bits:
        behind = f", {frac} of them behind the point," * bool(frac)
        raise InputError(f"integers of {bits} bits{behind} are not number formats here; allowed are 1 to 32 "
                         "bits, and no more behind the point")
    name = f"{kind}int{bits}" + f"f{frac}" * bool(frac)
    row = Int(name, bits, frac, kind != "u", "sign-magnitude" if kind == "sm" else "twos", "by rule (VAL-8)")
    same = (known for known in FORMATS.values() if not known.is_float and known.layout == row.layout)
    return next(same, row)


def _float(name: str, exp: int, man: int, bias: int | None, special: str, signed: bool = True) -> Row:
    """A float by rule, under its shortest spelling; the row of the table where it says the same."""
    _check_size(name, exp, man)
    usual = 2 ** (exp - 1) - 1
    bias = usual if bias is None else bias
    if bias > LARGEST_BIAS:
        raise InputError(f"number format {name!r}: its bias is too large; allowed are 0 to {LARGEST_BIAS}")
    scale = special == "scale"
    if not special.startswith("p3109"):
        sign = "" if signed or scale else "u"
        biased = "" if bias == usual and special != "fnuz" else f"b{bias}"
        name = f"{sign}e{exp}m{man}{biased}{special}"
    row = Float(name, exp, man, bias, special, signed, tie="up" if scale else "even", ref="by rule (VAL-8)")
    meaning = (row.layout, row.tie, row.special)
    same = (known for known in FORMATS.values() if (known.layout, known.tie, known.special) == meaning)
    return next(same, row)


def _check_size(name: str, exp: int, man: int):
    if not 1 <= exp <= 11 or not 0 <= man <= 52:
        raise InputError(f"number format {name!r}: allowed are 1 to 11 exponent bits "
                         "and 0 to 52 trailing bits")

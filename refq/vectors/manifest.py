"""manifest.json and formats.json: what the committed sets are, and the tables as plain data.

Spec: VEC-7.
"""

import json
from dataclasses import asdict

from refq.blocks.rows import DATA_TYPES
from refq.formats.listed import Irrational
from refq.formats.policies import OVERFLOWS, ROUNDINGS
from refq.formats.rows import FORMATS, LISTED
from refq.vectors import sets
from refq.vectors.vec import LICENCE, SHORT, VectorSet, digest


def entry(vectors: VectorSet) -> dict:
    """The manifest's facts about one set."""
    header, text = vectors.header, vectors.text()
    name = sets.parse(vectors.name)
    return {"name": vectors.name, "op": header.op, "src": header.src, "dst": header.dst,
            "round": header.round,
            "overflow": header.overflow or None, "recipe": header.recipe or None, "model": header.model,
            "clause": header.clause, "status": sets.status(name), "count": len(vectors), "bytes": len(text),
            "sha256": digest(text), "operands_sha256": digest(vectors.operand_lines()), "license": LICENCE}


def manifest(entries: list[dict]) -> str:
    """The text of manifest.json."""
    return _text({"manifest": 1, "generator": "refq", "license": LICENCE, "sets": entries})


def formats() -> str:
    """The text of formats.json: number formats, roundings, overflow rules and data types as plain data."""
    return _text({
        "formats": {row.name: _row(row) for row in FORMATS.values()},
        "listed": {row.name: _row(row) for row in LISTED.values()},
        "roundings": {rule.name: {"words": rule.words, "clause": rule.clause, "stochastic": rule.stochastic}
                      for rule in ROUNDINGS.values()},
        "overflows": {rule.name: asdict(rule) for rule in OVERFLOWS.values()},
        "data_types": {row.name: asdict(row) for row in DATA_TYPES.values()},
        "short_names": SHORT,
    })


def _row(row) -> dict:
    """A row's own fields and the derived ones a reader of vectors needs; values as exact text."""
    kind = row.kind if row.is_listed else "float" if row.is_float else "int"
    facts = {"kind": kind, **asdict(row), "bits": row.bits, "width": row.width,
             "max": row.max, "lowest": row.lowest, "min_positive": row.min_positive,
             "min_normal": row.min_normal,
             "code_of_one": row.code_of_one, "has_neg_zero": row.has_neg_zero}
    if row.width <= 8:
        facts |= {"nan_codes": row.nan_codes, "inf_codes": row.inf_codes}
    return {key: value if isinstance(value, (int, str, tuple, list, type(None))) else _fraction(value)
            for key, value in facts.items()}


def _fraction(value) -> str:
    """A dyadic as text: an integer, or significand*2^exponent; an irrational number in its own words."""
    if isinstance(value, Irrational):
        return str(value)
    if value.denominator == 1 and abs(value.numerator) < 1 << 64:
        return str(value.numerator)
    low = (value.numerator & -value.numerator).bit_length() - 1 - (value.denominator.bit_length() - 1)
    return f"{int(value / type(value)(2) ** low)}*2^{low}"


def _text(data: dict) -> str:
    """JSON with one row or set per line: small diffs, readable, the same bytes every time."""
    parts = []
    for key, value in data.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in value.items())
            parts.append(f" {json.dumps(key)}: {{\n{rows}\n }}")
        elif isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"

"""A Difference as a table for the terminal and as data for programs."""

from math import isfinite, isnan

import numpy as np

from refq.conformance.differences import TOP, Difference, Witness
from refq.formats.table import columns


def as_dict(found: Difference) -> dict:
    """Everything, for JSON: numbers that JSON cannot write are words ("nan", "inf")."""
    counts = found.counts
    return {
        "a": found.a.name, "b": found.b.name, "dtype": found.dtype.name, "differ": found.differ,
        "clauses": [found.a.clause, found.b.clause],
        "rules": [{"field": field, "a": a, "b": b} for field, a, b in found.rules],
        "witnesses": [{"kind": witness.kind, "values": [_plain(value) for value in witness.values],
                       "words": [_word(value) for value in witness.values],
                       "a": _plain(witness.a), "b": _plain(witness.b)} for witness in found.witnesses],
        "data": {"what": found.data, "tiles": counts.tiles, "values": counts.values,
                 "scales_differ": counts.scales, "codes_differ": counts.codes, "values_differ": counts.decoded,
                 "squared_error": [counts.error_a, counts.error_b],
                 "sqnr_db": [_plain(float(value)) for value in counts.sqnr]},
    }


def text(found: Difference) -> str:
    """Rules, witnesses and counts, one table each."""
    a, b, dtype = found.a.name, found.b.name, found.dtype.name
    if not found.differ and not found.rules:
        return f"{a} and {b} are the same on {dtype}."
    parts = [f"{a} and {b} on {dtype}" + ("" if found.differ else ": no difference found")]
    if found.rules:
        parts.append("rules that differ\n" + columns(
            [("rule", a, b), *((field.replace("_", " "), one, other) for field, one, other in found.rules)]))
    if found.witnesses:
        head = "the smallest tiles that show it" + (
            f" (the tensor's largest magnitude is {TOP:g})" if found.dtype.outer else "")
        parts.append(head + "\n" + columns(
            [("what differs", "tile", "float32 words", a, b),
             *((witness.kind, values(witness), " ".join(map(_word, witness.values)), side(witness.a),
                side(witness.b)) for witness in found.witnesses)]))
    parts.append(f"on {found.data}\n" + columns([("", "differ", "of", "share"), *_shares(found)]))
    parts.append(_cost(found))
    return "\n\n".join(parts)


def _shares(found: Difference):
    counts = found.counts
    for name, differ, whole in (("scales", counts.scales, counts.tiles), ("codes", counts.codes, counts.values),
                                ("decoded values", counts.decoded, counts.values)):
        yield name, f"{differ}", f"{whole}", f"{differ / max(whole, 1):.3%}"


def _cost(found: Difference) -> str:
    counts, (one, other) = found.counts, found.counts.sqnr
    if not isfinite(one) or not isfinite(other) or not counts.error_a:
        return f"squared error: {counts.error_a:.6g} with {found.a.name}, {counts.error_b:.6g} with {found.b.name}"
    return (f"squared error: {found.b.name} has {counts.error_b / counts.error_a:.4f} times that of "
            f"{found.a.name} (SQNR {other:.2f} dB against {one:.2f} dB)")



def values(witness: Witness) -> str:
    """A witness's values in decimals."""
    return " ".join(_short(value) for value in witness.values)


def side(made: dict) -> str:
    """What a recipe makes of a tile: tensor scale / scale / codes = values."""
    if "refused" in made:
        return "refused"
    outer = f"{made['tensor_scale']:.9g} / " if "tensor_scale" in made else ""
    return f"{outer}{made['scale']} / {' '.join(made['codes'])} = {' '.join(map(_short, made['values']))}"


def _short(value: float) -> str:
    return "nan" if isnan(value) else f"{value:.9g}"


def _word(value: float) -> str:
    return f"{int(np.float32(value).view(np.uint32)):08x}"


def _plain(value):
    """Lists and dicts with numbers that JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if not isinstance(value, float) or isfinite(value) else _short(value)

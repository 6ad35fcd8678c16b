"""Figures as grades, as text and as JSON: what the reports on models share.

An SQNR is a float in dB: inf where nothing was lost ("exact"), None where nothing was measured ("").
"""

import math

# SQNR in dB from which something has a grade, and the largest shares with one. Four-bit elements flush about
# a tenth of normally distributed weights, so that this alone is no alarm.
SQNR_GRADES = ((30.0, "good"), (18.0, "fair"), (12.0, "poor"))
SHARE_GRADES = {"saturated": ((0.002, "good"), (0.02, "fair"), (0.1, "poor")),
                "flushed": ((0.02, "good"), (0.2, "fair"), (0.4, "poor"))}
SAME_GRADES = ((0.995, "good"), (0.98, "fair"), (0.95, "poor"))   # share of rows with the same first choice
RATIO_GRADES = ((0.6, "good"), (0.95, "fair"), (1.0, "poor"))     # an error over that of direct cast
WORST = "bad"
EXACT = "exact"


def grade_sqnr(db: float | None) -> str:
    """The grade of an SQNR; "" of None."""
    return "" if db is None else next((grade for least, grade in SQNR_GRADES if db >= least), WORST)


def grade_same(share: float) -> str:
    """The grade of a share of rows in which two models agree."""
    return next((grade for least, grade in SAME_GRADES if share >= least), WORST)


def grade_share(kind: str, share: float) -> str:
    """kind: "saturated" or "flushed"."""
    return next((grade for most, grade in SHARE_GRADES[kind] if share <= most), WORST)


def grade_ratio(ratio: float | None) -> str:
    """The grade of an output error over that of direct cast; "" of None."""
    return "" if ratio is None else next((grade for most, grade in RATIO_GRADES if ratio <= most), WORST)


def decibels(db: float | None, unit: str = "") -> str:
    """An SQNR as text, the unit behind a number only: "18.2", "18.2 dB", "exact", ""."""
    if db is None:
        return ""
    return EXACT if db == math.inf else f"{db:.1f}{unit}"


def percent(share: float | None) -> str:
    """A share in per cent: "0", "<0.01", "0.35", "12.4"."""
    if share is None:
        return ""
    if share == 0:
        return "0"
    return "<0.01" if share < 1e-4 else f"{100 * share:.2f}" if share < 0.1 else f"{100 * share:.1f}"


def times(ratio: float | None) -> str:
    """A ratio of errors: "0.024", "0.24", "1.00", "31"; "" of None."""
    if ratio is None:
        return ""
    return f"{ratio:.3f}" if 0 < ratio < 0.1 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def size(count: int) -> str:
    """A number of bytes: "873 B", "1.24 MB" (powers of ten)."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} B"


def seconds(duration: float | None) -> str:
    """A time: "0.42 s", "37 s", "12 min 5 s", "3 h 20 min"; "" of None."""
    if duration is None:
        return ""
    if duration < 0.01:
        return "<0.01 s"
    if duration < 59.5:
        return f"{duration:.2g} s" if duration < 10 else f"{duration:.0f} s"
    whole = round(duration)
    return (f"{whole // 60} min {whole % 60} s" if whole < 3600
            else f"{whole // 3600} h {whole % 3600 // 60} min")


def count(number: int, word: str) -> str:
    """A number of things: "1 row", "1,200 batches"."""
    plural = f"{word}es" if word.endswith("ch") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def last_part(path: str) -> str:
    """The file's name in a path of any system."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def plain(value):
    """Dicts and lists of what JSON has; floats that are not finite become "inf", "-inf" and "nan"."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

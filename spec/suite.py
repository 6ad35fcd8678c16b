"""The conformance suite without refq and without numpy: golden vectors and devices judged by the oracle.

    python -m spec.suite                               every committed vectors/**/*.vec
    python -m spec.suite SET.vec ...                   these sets
    python -m spec.suite SET.vec --device 'COMMAND'    a device on a pipe, on these sets

A set's results are computed anew from the clauses; a set that differs is a mismatch, device or not. Format
rows, overflow rules and data types are read as data from vectors/formats.json. Grammar: spec/vectors.md;
verdicts: spec/checking.md. Exit codes: 0 pass, 1 mismatch, 2 bad input, 3 not a run.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from spec.oracle import blocks, listed, recipes, scalar

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
LONG = {"f64": "binary64", "f32": "binary32", "f16": "binary16", "bf16": "bfloat16"}
KEYS = "op src dst in out round overflow recipe model clause count license".split()
OPTIONAL = {"in", "out", "overflow", "recipe"}
PASS, MISMATCH, BAD, NOT_A_RUN = 0, 1, 2, 3


class Bad(Exception):
    """A set or a call that cannot be judged."""


class NotARun(Exception):
    """A device that did not answer every case once, in order."""


class Tables:
    """vectors/formats.json: formats, overflow rules and data types as plain data."""

    def __init__(self, path):
        data = json.loads(path.read_text())
        self.overflows, self.blocks = data["overflows"], data["data_types"]
        self.formats = {name: row for key in ("formats", "listed")
                        for row in data[key].values() for name in (*row["aka"], row["name"])}

    def format(self, token):
        """The format a name in a set stands for."""
        name = LONG.get(token, token)
        if name not in self.formats:
            raise Bad(f"number format {token!r} is not in formats.json")
        return self.formats[name]


class Field:
    """VEC-3: a fixed number of codes of one format, or of raw bits."""

    def __init__(self, text, tables):
        token, count = re.fullmatch(r"(.+?)(?:x([1-9]\d*))?", text).groups()
        raw = re.fullmatch(r"bits(\d+)", token)
        self.count, self.width = int(count or 1), int(raw[1]) if raw else tables.format(token)["width"]
        self.digits = -(-self.width // 4)

    def read(self, text):
        """The codes of a field, or None when the text is not such a field."""
        if not re.fullmatch(f"[0-9a-f]{{{self.digits * self.count}}}", text):
            return None
        codes = [int(text[i:i + self.digits], 16) for i in range(0, len(text), self.digits)]
        return codes if all(code < 1 << self.width for code in codes) else None

    def write(self, codes):
        return "".join(f"{code:0{self.digits}x}" for code in codes)


class Set:
    """One .vec file: header facts, fields, and the text of every case (VEC-2 to VEC-6)."""

    def __init__(self, path, tables):
        text = path.read_bytes().decode("ascii", "replace")
        if not text.endswith("\n") or "\r" in text:
            raise Bad("lines must end in LF, the last one included")
        self.header, *lines = text[:-1].split("\n")
        self.facts = self._facts(self.header)
        self.inputs = [Field(t, tables) for t in self.facts.get("in", self.facts["src"]).split(",")]
        self.outputs = [Field(t, tables) for t in self.facts.get("out", self.facts["dst"]).split(",")]
        self.cases = [self._case(line, number) for number, line in enumerate(lines, 2)]
        operands = [case[0] for case in self.cases]
        if operands != sorted(set(operands)):
            raise Bad("cases must be sorted by their operands, each once")
        if str(len(lines)) != self.facts["count"] or not lines:
            raise Bad(f"the header counts {self.facts['count']} cases, there are {len(lines)}")

    @staticmethod
    def _facts(header):
        pairs = [part.partition("=")[::2] for part in header.removeprefix("// refq-vec 1  ").split(" ")]
        facts = dict(pairs)
        wanted = [key for key in KEYS if key in facts]
        if not header.startswith("// refq-vec 1  ") or [k for k, _ in pairs] != wanted or \
                not set(KEYS) - OPTIONAL <= set(facts):
            raise Bad(f"the first line is not a header: {header[:80]!r}")
        return facts

    def _case(self, line, number):
        body = line.partition(" // ")[0].split("_")
        fields = self.inputs + self.outputs
        if len(body) != len(fields) or any(f.read(t) is None for f, t in zip(fields, body)):
            raise Bad(f"line {number} is not a case of this set: {line[:80]!r}")
        cut = len(self.inputs)
        return "_".join(body[:cut]), "_".join(body[cut:])

    def operands(self, text):
        """The codes of an operand line, one list per field."""
        return [field.read(part) for field, part in zip(self.inputs, text.split("_"))]

    def answer(self, text, tables):
        """The oracle's result fields for an operand line."""
        columns = ORACLE[self.facts["op"]](self, self.operands(text), tables)
        return "_".join(field.write(codes) for field, codes in zip(self.outputs, columns))


# --- operations -----------------------------------------------------------------------------------

def _rounding(facts):
    """(name, N): stochastic roundings are followed by their number of random bits."""
    name, width = re.fullmatch(r"(sr[abc])([1-9]\d*)|(.+)", facts["round"]).group(1, 2)
    return (name, int(width)) if name else (facts["round"], None)


def decode(code, fmt):
    """The scalar.Value of a code of any format of the tables."""
    if fmt["kind"] in ("float", "int"):
        return scalar.decode(code, fmt)
    value = listed.decode(code, fmt)
    if isinstance(value, listed.Power):
        raise Bad(f"{fmt['name']} {code:x} is irrational")
    if isinstance(value, str):
        return scalar.Value(value.removeprefix("-"), value.startswith("-"))
    return scalar.Value(scalar.NUMBER, value < 0 or listed.is_minus_zero(code, fmt), abs(value))


def encode(value, fmt, rounding, rule, overflows=None, random=None):
    """The code of a scalar.Value in any format of the tables."""
    if fmt["kind"] in ("float", "int"):
        return scalar.encode(value, fmt, rounding, rule, overflows, random)
    if rule["name"] not in ("sat", "nonsat"):
        raise Bad(f"{fmt['name']} is judged under the overflow rules sat and nonsat, not {rule['name']}")
    if value.kind == scalar.NUMBER:
        x = -value.magnitude if value.negative else value.magnitude
    else:
        x = "-inf" if value.negative and value.kind == scalar.INFINITE else value.kind
    return listed.encode(x, fmt, rounding, nonsat=rule["above"][0] != "max")


def _cast(this, operands, tables):
    facts, (rounding, width) = this.facts, _rounding(this.facts)
    value = decode(operands[0][0], tables.format(facts["src"]))
    random = (operands[1][0], width) if width else None
    rule = tables.overflows[facts["overflow"]]
    return [[encode(value, tables.format(facts["dst"]), rounding, rule, tables.overflows, random)]]


def _decode(this, operands, tables):
    """VAL-7: the value as a code of the destination, which must have it; every NaN is the canonical one."""
    target = tables.format(this.facts["dst"])
    value = decode(operands[0][0], tables.format(this.facts["src"]))
    code = encode(value, target, "rne", blocks.OUT)
    if value.kind != "nan" and decode(code, target) != value:
        raise Bad(f"{this.facts['dst']} does not have the value of {this.facts['src']} {operands[0][0]:x}")
    return [[code]]


def _quantize(this, operands, tables):
    facts, (rounding, _) = this.facts, _rounding(this.facts)
    block, source = tables.blocks[facts["dst"]], tables.format(facts["src"])
    names = block["element"], block["scale"], block["outer"]
    formats = {name: tables.format(name) for name in names if name}
    words = operands[-1]
    outer = operands[0][0] if len(operands) > 1 else None
    values, recipe = [decode(word, source) for word in words], facts["recipe"]
    if recipe in recipes.RECIPES:
        q = recipes.quantise(values, (len(words),), 0, block, formats, recipe, outer)
    else:
        q = blocks.quantise(values, (len(words),), 0, block, formats, rounding, recipe=recipe, outer=outer)
    return ([[q.outer]] if facts["model"] == "tensor" else []) + [q.scales, q.codes]


ORACLE = {"encode": _cast, "convert": _cast, "decode": _decode, "quantize": _quantize}


# --- judging --------------------------------------------------------------------------------------

def answers(command, this, seconds=600):
    """A device's result text per case, in order (CHECK-1 to CHECK-3). Raises NotARun."""
    reads = "\n".join([this.header] + [operand for operand, _ in this.cases]) + "\n"
    try:
        done = subprocess.run(shlex.split(command), input=reads, capture_output=True, text=True,
                              timeout=seconds)
    except OSError as error:
        raise Bad(f"the device does not start: {error}") from None
    except subprocess.TimeoutExpired:
        raise NotARun(f"no end after {seconds} seconds") from None
    if done.returncode:
        raise NotARun(f"the device ended with status {done.returncode}: {done.stderr[-200:]}")
    lines = [line.partition("//")[0].strip().lower() for line in done.stdout.splitlines()]
    lines = [line for line in lines if line]
    if len(lines) != len(this.cases):
        raise NotARun(f"{len(lines)} answers to {len(this.cases)} cases")
    shape = "_".join(f"[0-9a-fxz]{{{f.digits * f.count}}}" for f in this.outputs)
    for number, (line, (operand, _)) in enumerate(zip(lines, this.cases), 1):
        if not re.fullmatch(re.escape(operand) + "_" + shape, line):
            raise NotARun(f"answer {number} is {line[:80]!r}, not an answer to {operand[:60]}")
    return [line[len(operand) + 1:] for line, (operand, _) in zip(lines, this.cases)]


def judge(path, tables, command=None, show=5, say=print):
    """The exit code of one set, with a line per finding."""
    try:
        this = Set(path, tables)
        wanted = [this.answer(operand, tables) for operand, _ in this.cases]
        columns = {"the set": [result for _, result in this.cases]}
        if command:
            columns["the device"] = answers(command, this)
    except (Bad, KeyError, OSError) as error:
        say(f"{path}: bad input: {error}")
        return BAD
    except NotARun as error:
        say(f"{path}: not a run: {error}")
        return NOT_A_RUN
    wrong = [f"{path}: in {operand[:60]} {who} says {got}, the oracle {want} [{this.facts['clause']}]"
             for who, column in columns.items()
             for (operand, _), got, want in zip(this.cases, column, wanted) if got != want]
    for line in wrong[:show]:
        say(line)
    say(f"{path}: {f'{len(wrong)} wrong' if wrong else 'pass'}, {len(this.cases)} cases")
    return MISMATCH if wrong else PASS


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m spec.suite", description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", type=Path, help="set files; all committed ones if none is given")
    parser.add_argument("--device", help="command that reads operand lines and answers each with its result")
    chosen = parser.parse_args(arguments)
    paths = chosen.sets or sorted(VECTORS.rglob("*.vec"))
    try:
        tables = Tables(VECTORS / "formats.json")
    except (OSError, ValueError, KeyError) as error:
        print(f"bad input: vectors/formats.json: {error}")
        return BAD
    codes = [judge(path, tables, chosen.device) for path in paths] or [BAD]
    worst = next(code for code in (BAD, NOT_A_RUN, MISMATCH, PASS) if code in codes)
    print(f"{codes.count(PASS)} of {len(paths)} sets pass")
    return worst


if __name__ == "__main__":
    sys.exit(main())

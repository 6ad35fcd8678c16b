"""Hand-typed facts: the oracle and refq both agree with them, and with numpy and ml_dtypes on every code."""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.blocks.packing import pack_codes
from refq.formats import values
from refq.formats.policies import OVERFLOWS
from refq.formats.rows import FORMATS
from spec import suite
from spec.oracle import blocks, scalar
from tests.anchors import ANCHORS, P3109, value

RULES = {name: asdict(rule) for name, rule in OVERFLOWS.items()}
SPEC = Path(__file__).resolve().parent.parent / "spec"


def words(row):
    return asdict(row) | {"kind": "float" if row.is_float else "int"}


def signed(v):
    return -v.magnitude if v.negative else v.magnitude


def test_every_row_that_is_not_an_integer_has_anchors():
    assert not {name for name, row in FORMATS.items() if row.is_float} - set(ANCHORS)
    assert all(len(ANCHORS[name].values) >= 4 for name, row in FORMATS.items() if row.is_float)


@pytest.mark.parametrize("name", ANCHORS)
def test_values(name):
    row, anchor = FORMATS[name], ANCHORS[name]
    for code, text in anchor.values.items():
        decoded = scalar.decode(code, words(row))
        assert decoded.kind == scalar.NUMBER and signed(decoded) == value(text) == values.exact(row, code)
        if code & ((1 << row.layout.pad) - 1) == 0:
            assert scalar.encode(decoded, words(row), "rne", RULES["sat"]) == code


@pytest.mark.parametrize("name", ANCHORS)
def test_derived_facts(name):
    row, anchor = FORMATS[name], ANCHORS[name]
    assert row.max == value(anchor.max) == blocks._top(words(row))
    assert row.min_normal == (anchor.min_normal and value(anchor.min_normal))
    assert row.min_subnormal == (anchor.min_subnormal and value(anchor.min_subnormal))
    assert row.code_of_one == anchor.one
    assert (row.has_inf, row.has_nan, row.has_neg_zero) == (
        bool(anchor.inf), bool(anchor.nan), anchor.minus_zero is not None)
    assert sorted(row.inf_codes) == sorted(anchor.inf)
    if anchor.finite:
        assert row.count_finite == anchor.finite


@pytest.mark.parametrize("name", ANCHORS)
def test_special_codes(name):
    """NaN and infinity codes are the typed ones, of small formats exactly those; finite values counted."""
    row, anchor, w = FORMATS[name], ANCHORS[name], words(FORMATS[name])
    for first, last in anchor.nan:
        for code in {first, (first + last) // 2, last}:
            assert scalar.decode(code, w).kind == scalar.NAN and values.exact(row, code) == "nan"
    for code, negative in zip(anchor.inf, (False, True)):
        assert scalar.decode(code, w) == scalar.Value(scalar.INFINITE, negative)
    if anchor.minus_zero is not None:
        assert scalar.decode(anchor.minus_zero, w) == scalar.Value(scalar.NUMBER, True)
    if row.width <= 16:
        decoded = [scalar.decode(code, w) for code in range(1 << row.width)]
        typed = {code for first, last in anchor.nan for code in range(first, last + 1)}
        assert {code for code, v in enumerate(decoded) if v.kind == scalar.NAN} == typed
        assert {code for code, v in enumerate(decoded) if v.kind == scalar.INFINITE} == set(anchor.inf)
        assert len({signed(v) for v in decoded if v.kind == scalar.NUMBER}) == anchor.finite


@pytest.mark.parametrize("name", P3109)
def test_p3109_numbers(name):
    largest, one = P3109[name]
    row = refq.number_format(name)
    assert row.max == value(largest) == blocks._top(words(row))
    assert row.code_of_one == one and signed(scalar.decode(one, words(row))) == 1


NUMPY = {"binary16": np.float16, "bfloat16": ml_dtypes.bfloat16, "e5m2": ml_dtypes.float8_e5m2,
         "e4m3fn": ml_dtypes.float8_e4m3fn, "e4m3ieee": ml_dtypes.float8_e4m3, "e3m4": ml_dtypes.float8_e3m4,
         "e4m3fnuz": ml_dtypes.float8_e4m3fnuz, "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
         "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz, "e3m2": ml_dtypes.float6_e3m2fn,
         "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn, "e8m0": ml_dtypes.float8_e8m0fnu,
         "int2": ml_dtypes.int2, "int4": ml_dtypes.int4, "uint2": ml_dtypes.uint2, "uint4": ml_dtypes.uint4,
         "int8": np.int8, "uint16": np.uint16}


@pytest.mark.share(2)
@pytest.mark.parametrize("name", NUMPY)
def test_oracle_decodes_as_numpy(name):
    """Value, sign of zero, NaN and infinity of every code."""
    row, dtype = FORMATS[name], np.dtype(NUMPY[name])
    codes = np.arange(1 << row.width, dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        theirs = codes.view(dtype).astype(np.float64)
    for code, want in enumerate(theirs.tolist()):
        got = scalar.decode(code, words(row))
        if got.kind == scalar.NAN:
            assert want != want
        else:
            mine = scalar.exact(want)
            if mine.negative and not mine.magnitude and not row.has_neg_zero:
                mine = mine._replace(negative=False)
            assert mine == got, f"{name} {code:#x}: oracle {got}, numpy {want}"


# --- the pages of the specification ---------------------------------------------------------------

PAGES = {page.name: page.read_text() for page in sorted(SPEC.glob("*.md"))}
CLAUSE = re.compile(r"\b(?:VAL|ROUND|OVER|NAN|ZERO|CAST|LIST|BLOCK|RULE|REC|CB|SPARSE|TCAST|ROT|PACK|GGUF|ED|VEC|CHECK)"
                    r"-[1-9]\d*\b")


def rows_of(page, first):
    """The cells of the table whose first heading is `first`, as lists of words without ticks."""
    lines = PAGES[page].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    for line in lines[start:]:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def test_the_table_of_rows_is_the_hand_typed_one():
    """values.md lists the anchors: layout, largest value, smallest ones, code of 1.0, count (VAL-5)."""
    table = {name: rest for name, *rest in rows_of("values.md", "row")}
    assert set(table) == {name for name, row in FORMATS.items() if row.is_float}
    for name, (layout, bias, rule, most, code, normal, subnormal, one, finite) in table.items():
        row, anchor = FORMATS[name], ANCHORS[name]
        assert (layout, int(bias), rule) == (f"{row.exp}/{row.man}", row.bias, row.special)
        assert (most, normal, subnormal) == (anchor.max, anchor.min_normal, anchor.min_subnormal or "")
        assert value(anchor.max) == values.exact(row, int(code, 16))
        assert int(one, 16) == anchor.one and finite == str(anchor.finite or "")


def test_the_table_of_overflow_rules_is_the_one_in_use():
    """overflow.md lists every rule, word for word."""
    table = {name: rest for name, *rest in rows_of("overflow.md", "rule")}
    assert set(table) == set(OVERFLOWS)
    for name, (above, infinite, nan, nan_code, stop, negative, other, clause) in table.items():
        rule = OVERFLOWS[name]
        assert (above, infinite, nan) == tuple(map(", ".join, (rule.above, rule.infinite, rule.nan)))
        assert (nan_code, stop, negative) == (rule.nan_code, rule.stop, ", ".join(rule.negative))
        differs = [f"zero {rule.zero}"] * (rule.zero != "min")
        differs += [f"lowest {rule.lowest}"] * (rule.lowest != "full")
        assert other == ", ".join(differs + [f"{kind} → {to}" for kind, to in rule.exceptions])
        assert rule.nan_int == "zero"


def test_the_table_of_stacks():
    """Every cell of OVER-6's table, by oracle and refq."""
    spelled = {"+∞": "inf", "−NaN": "-nan", "NaN": "nan", "−1": "-1"}
    names = ["cuda-satfinite", "cuda-nosat", "cutlass", "ml_dtypes", "torch-2.8", "torch-2.15", "onnx-sat",
             "onnx-nosat"]
    cells = 0
    for what, *codes in rows_of("overflow.md", "source → target"):
        operands, target = what.split(" → ")
        for operand in operands.split(" or "):
            for rule, cell in ((rule, cell) for rule, cell in zip(names, codes) if cell):
                got = run(f"encode {target} rne {rule} {spelled.get(operand, operand)}")
                assert got == int(cell.split()[0], 16), (what, rule)
                cells += 1
    assert cells == 81


def test_every_cited_clause_exists_and_every_clause_is_listed():
    """Ids cited anywhere have a heading; README.md lists all headings but those of VEC and CHECK."""
    headings = {match[1] for page in PAGES.values() for match in re.finditer(r"^##+ (\w+-\d+) ", page, re.M)}
    cited = {(path.name, clause) for folder in ("refq", "spec", "tests")
             for path in (SPEC.parent / folder).rglob("*") if path.suffix in (".py", ".md")
             for clause in CLAUSE.findall(path.read_text())}
    assert {pair for pair in cited if pair[1] not in headings} == set()
    listed = set(CLAUSE.findall(PAGES["README.md"]))
    assert {h for h in headings if CLAUSE.fullmatch(h) and not h.startswith(("VEC", "CHECK"))} <= listed


# --- the worked examples of the specification -----------------------------------------------------
#
#     decode FORMAT CODE = VALUE                          encode FORMAT ROUNDING OVERFLOW VALUE = CODE
#     encode FORMAT ROUNDING(R/N) OVERFLOW VALUE = CODE   encode FORMAT ROUNDING OVERFLOW SOURCE:CODE = CODE
#     quantize TYPE VALUE ... = [CODE /] CODES / CODES    pack WIDTH CODES = BYTES
#
# VALUE is a, 2^b, a*2^b, sums of these, inf, -inf, nan, -nan or -0. Anything after "#" is a remark.

def source_value(text):
    if ":" in text:
        source, code = text.split(":")
        return scalar.decode(int(code, 16), words(refq.number_format(source)))
    sign, bare = text.startswith("-"), text.removeprefix("-")
    if bare in ("nan", "inf"):
        return scalar.Value(bare, sign)
    return scalar.Value(scalar.NUMBER, sign, abs(sum(value(term) for term in bare.split("+"))))


def examples():
    for page, text in PAGES.items():
        if page == "rotation.md":           # arrays in, arrays out: tests/test_rotation.py runs these
            continue
        for block in re.findall(r"^```example\n(.*?)^```", text, re.M | re.S):
            for line in block.splitlines():
                if line.partition("#")[0].strip():
                    yield page, line.partition("#")[0].strip()


def run(left):
    """The code of an `encode` example, on which oracle and refq must agree."""
    _, name, rounding, overflow, operand = left.split()
    rounding, random = re.fullmatch(r"(\w+)(?:\((\d+/\d+)\))?", rounding).groups()
    random = tuple(map(int, random.split("/"))) if random else None
    row, v = refq.number_format(name), source_value(operand)
    code = scalar.encode(v, words(row), rounding, RULES[overflow], RULES, random)
    source, word = operand.split(":") if ":" in operand else ("binary64", None)
    word = int(word, 16) if word else exact_word(v)
    keys = {"random_bits": random[0], "random_width": random[1]} if random else {}
    assert int(refq.convert(np.array(word, np.uint64), source, row, rounding, overflow, **keys)) == code
    return code


def exact_word(v):
    """The binary64 code of a value, which must be exact there."""
    word = scalar.encode(v, words(FORMATS["binary64"]), "rne", RULES["torch-2.8"])
    assert scalar.decode(word, words(FORMATS["binary64"]))[:3] == v[:3], "name a source that has this value"
    return word


def quantised(name, texts):
    """The code lists of a `quantize` example, on which oracle and refq must agree."""
    block = refq.data_type(name)
    formats = {n: words(refq.number_format(n)) for n in (block.element, block.scale, block.outer) if n}
    x = np.array([exact_word(source_value(text)) for text in texts], np.uint64).view(np.float64)
    want = blocks.quantise([source_value(t) for t in texts], x.shape, 0, asdict(block), formats)
    got = refq.quantize(x, name)
    assert got.codes.tolist() == want.codes and got.scales.tolist() == want.scales
    if block.outer:
        assert int(got.tensor_scale.view(np.uint32)) == want.outer
    return [[want.outer]] * (want.outer is not None) + [want.scales, want.codes]


@pytest.mark.parametrize("page, line", list(examples()))
def test_worked_example(page, line):
    """Every line of an example block in spec/*.md holds for the oracle and for refq."""
    left, _, result = line.partition(" = ")
    verb, name, *rest = left.split()
    if verb == "encode":
        assert run(left) == int(result, 16)
    elif verb == "quantize":
        assert quantised(name, rest) == [[int(c, 16) for c in part.split()] for part in result.split("/")]
    elif verb == "pack":
        codes = [int(code, 16) for code in rest]
        packed = bytes(pack_codes(np.array(codes, np.uint16), int(name)))
        assert packed == blocks.pack(codes, int(name)) == bytes.fromhex(result)
    else:
        assert verb == "decode"
        got = scalar.decode(int(rest[0], 16), words(refq.number_format(name)))
        want = source_value(result.strip())
        assert (got.kind, got.magnitude) == (want.kind, want.magnitude)
        assert got.negative == want.negative or got.kind == scalar.NAN


# --- the suite that needs no numpy ----------------------------------------------------------------

TABLES = suite.Tables(suite.VECTORS / "formats.json")
SET = suite.VECTORS / "encode/f32-e2m1/rne-sat/boundary.vec"
ECHO = """
import sys
answers = dict(line.split(" // ")[0].strip().rsplit("_", 1) for line in open(sys.argv[1]) if "_" in line[:12])
operands = sys.stdin.read().split("\\n")[1:-1]
for operand in {change}:
    print(operand + "_" + answers[operand])
"""


@pytest.mark.share(2)
@pytest.mark.parametrize("path", sorted(suite.VECTORS.rglob("*.vec")),
                         ids=lambda path: str(path.relative_to(suite.VECTORS)))
def test_committed_sets_are_what_the_oracle_says(path):
    assert suite.judge(path, TABLES, say=lambda line: None) == suite.PASS


def device(tmp_path, change="operands"):
    script = tmp_path / "device.py"
    script.write_text(ECHO.replace("{change}", change))
    return f"{sys.executable} {script} {SET}"


@pytest.mark.parametrize("change, code", [
    ("operands", suite.PASS), ("[]", suite.NOT_A_RUN), ("operands[:-1]", suite.NOT_A_RUN),
    ("operands + operands[-1:]", suite.NOT_A_RUN), ("operands[::-1]", suite.NOT_A_RUN),
    ("operands[:1] * len(operands)", suite.NOT_A_RUN)])
def test_devices(tmp_path, change, code):
    """Only one answer per case, in order, is a run (CHECK-3)."""
    assert suite.main([str(SET), "--device", device(tmp_path, change)]) == code


def test_wrong_answers_wrong_sets_and_bad_input(tmp_path, capsys):
    wrong = f"{sys.executable} -c \"import sys; [print(l.strip() + '_1') for l in list(sys.stdin)[1:]]\""
    assert suite.main([str(SET), "--device", wrong]) == suite.MISMATCH
    text, copy = SET.read_text(), tmp_path / "copy.vec"
    for change, code in [((text, text), suite.PASS), (("_7", "_6"), suite.MISMATCH),
                         (("\n", "\r\n"), suite.BAD), (("count=", "count=1"), suite.BAD),
                         (("dst=e2m1", "dst=e2m7"), suite.BAD), (("_7", "_x"), suite.BAD), ((text, ""), suite.BAD)]:
        copy.write_bytes(text.replace(*change).encode())
        assert suite.main([str(copy)]) == code, change
    assert suite.main([str(tmp_path / "none.vec")]) == suite.BAD
    assert suite.main([str(SET), "--device", str(tmp_path / "none")]) == suite.BAD
    capsys.readouterr()


def test_the_oracle_and_the_suite_need_only_the_standard_library():
    """Run where numpy and refq cannot be imported."""
    code = ("import sys; sys.modules['numpy'] = sys.modules['refq'] = None; "
            f"from spec import suite, cases; sys.exit(suite.main([{str(SET)!r}]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=SPEC.parent, capture_output=True)
    assert done.returncode == suite.PASS, done.stderr

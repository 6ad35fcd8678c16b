"""The committed vectors: grammar, names, completeness, and agreement with the oracle and with other
libraries."""

import doctest
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refq
from refq.blocks.rows import data_type
from refq.errors import InputError
from refq.formats import codec
from refq.formats.policies import OVERFLOWS, ROUNDINGS
from refq.formats.rows import FORMATS, LISTED
from refq.vectors import coverage, manifest, sets, vec
from refq.vectors.vec import Field, Header, format_of
from spec.oracle import blocks, recipes, scalar

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "vectors"
NAMES = sets.committed()
DETERMINISTIC = [name for name, rule in ROUNDINGS.items() if not rule.stochastic]


@cache
def committed(name):
    return vec.read(VECTORS / f"{name}.vec")


# --- the files ----------------------------------------------------------------------------------------------

def test_regenerating_changes_no_byte():
    run = subprocess.run([sys.executable, ROOT / "tools" / "regen.py", "--check"], capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_reading_and_writing_is_the_identity():
    for name in NAMES:
        text = (VECTORS / f"{name}.vec").read_bytes().decode("ascii")
        assert vec.parse(text).text() == text
        assert committed(name).name == name


def test_they_fit_in_five_megabytes():
    assert sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()) <= 5_000_000


def test_every_small_format_has_its_sets():
    for row in FORMATS.values():
        if row.width <= 8:
            assert any(name.startswith(f"decode/{row.name}-") for name in NAMES), row.name
            if row.is_float:
                assert f"encode/f32-{row.name}/rne-sat/boundary" in NAMES


# --- manifest and tables ------------------------------------------------------------------------------------

def conforms(value, schema, path="manifest"):
    """Check the parts of JSON Schema that manifest.schema.json uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}
    if "const" in schema:
        assert value == schema["const"], path
    if "enum" in schema:
        assert value in schema["enum"], path
    if "type" in schema:
        allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert isinstance(value, tuple(kinds[kind] for kind in allowed)), path
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{path}: {value}"
    if "minimum" in schema:
        assert value >= schema["minimum"], path
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), path
        for key, item in value.items():
            conforms(item, schema["properties"][key], f"{path}.{key}")
    if isinstance(value, list):
        assert len(value) >= schema.get("minItems", 0), path
        for index, item in enumerate(value):
            conforms(item, schema["items"], f"{path}[{index}]")


def test_manifest_conforms_to_its_schema_and_describes_the_files():
    listed = json.loads((VECTORS / "manifest.json").read_text())
    conforms(listed, json.loads((ROOT / "spec" / "manifest.schema.json").read_text()))
    assert [entry["name"] for entry in listed["sets"]] == NAMES
    for entry in listed["sets"]:
        data = (VECTORS / f"{entry['name']}.vec").read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), vec.digest(data.decode("ascii")))
        assert entry["count"] == len(committed(entry["name"]))


def test_a_changed_manifest_does_not_conform():
    schema = json.loads((ROOT / "spec" / "manifest.schema.json").read_text())
    for break_it in (lambda d: d["sets"][0].update(status="maybe"), lambda d: d["sets"][0].pop("sha256"),
                     lambda d: d["sets"][0].update(count=0), lambda d: d.update(extra=1)):
        listed = json.loads((VECTORS / "manifest.json").read_text())
        break_it(listed)
        with pytest.raises(AssertionError):
            conforms(listed, schema)


def test_formats_json_holds_every_table():
    tables = json.loads((VECTORS / "formats.json").read_text())
    assert set(tables["formats"]) == set(FORMATS) and set(tables["listed"]) == set(LISTED)
    assert set(tables["overflows"]) == set(OVERFLOWS)
    assert tables["formats"]["e4m3fn"]["max"] == "448" and tables["formats"]["e4m3fn"]["nan_codes"] == [0x7f,
        0xff]
    assert tables["formats"]["e8m0"]["max"] == "1*2^127"
    assert tables["data_types"]["nvfp4"]["outer"] == "float32"


def test_statuses():
    said = {entry["name"]: entry["status"]
            for entry in json.loads((VECTORS / "manifest.json").read_text())["sets"]}
    assert said["encode/f32-e4m3fn/rne-nonsat/boundary"] == "normative"
    # OFP8 does not convert from binary64
    assert said["encode/f64-e4m3fn/rne-sat/boundary"] == "refq-choice"
    assert said["encode/f32-e4m3fn/rtz-sat/boundary"] == "refq-choice"
    assert said["encode/f32-binary8p4se/rne-satnone/boundary"] == "normative"
    assert said["encode/f32-e5m2/rne-cuda-nosat/special"] == "vendor:nvidia"


# --- names and grammar --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "encode/f32-e4m3fn/rne-sat", "encode/f32-e4m3/rne-sat/boundary",
    "encode/binary32-e4m3fn/rne-sat/boundary",
    "encode/f32-float8_e4m3fn/rne-sat/boundary", "encode/f32-e4m3fn/rne-clip/boundary",
    "encode/f32-e4m3fn/near-sat/boundary",
    "encode/f32-e4m3fn/src-sat/stochastic", "encode/f32-e4m3fn/rne8-sat/boundary",
    "encode/f32-e4m3fn/src33-sat/stochastic",
    "encode/f32-e4m3fn/src8-sat/boundary", "encode/f32-e4m3fn/rne-sat/stochastic",
    "encode/f32-e4m3fn/rne-sat/everything",
    "encode/e5m2-e4m3fn/rne-sat/codes", "convert/f32-e4m3fn/rne-sat/codes", "decode/e4m3fn-f32/rne/codes",
    "decode/f32-f16/exact/codes",
    "decode/e5m2-e4m3fn/exact/codes", "decode/binary8p1uf-f16/exact/codes",
    "quantize/f32-mxfp8/rne-ocp/block",
    "quantize/f32-e4m3fn/rne-sat/block", "quantize/f32-mxfp4/rne-exact/block",
    "quantize/f32-mxfp4/rne-ocp/tensor",
    "encode/f32-binary32/rne-sat/boundary", "encode/f32-f32/rne-sat/boundary",
    "encode/f32-f64/rne-sat/boundary", "sort/f32-f16/rne-sat/codes"])
def test_names_that_are_refused(name):
    with pytest.raises(InputError):
        sets.generate(name)


def test_other_sets_generate_on_demand():
    for name, count in (("encode/f16-e2m1/rne-sat/all", 65536), ("encode/f32-e4m3fn/rne-sat/codes", 258),
                        ("decode/e8m0-bf16/exact/codes", 256), ("decode/e5m2-f16/exact/codes", 256),
                        ("encode/f64-bf16/rup-ieee/special", 136), ("convert/f16-e2m1/rne-sat/codes", None)):
        if count is None:
            with pytest.raises(InputError):
                sets.generate(name)
        else:
            vectors = sets.generate(name)
            assert vec.parse(vectors.text()).text() == vectors.text() and vectors.name == name
            assert len(vectors) == count or name.endswith("special")


def small() -> str:
    return sets.generate("convert/e2m1-e4m3fn/rne-sat/codes").text()


@pytest.mark.parametrize("line, change", [
    (1, lambda t: t.replace("refq-vec 1  op", "refq-vec 1 op")),
    (1, lambda t: t.replace("refq-vec 1", "refq-vec 2")),
    (1, lambda t: t.replace("op=convert src=e2m1", "src=e2m1 op=convert")),
    (1, lambda t: t.replace(" round=rne", "")),
    (1, lambda t: t.replace("model=", "shape=")), (1, lambda t: t.replace("src=e2m1", "src=e2m2")),
    (1, lambda t: t.replace("dst=e4m3fn", "dst=float8_e4m3fn")),
    (1, lambda t: t.replace("count=16", "count=016")),
    (17, lambda t: t.replace("count=16", "count=17")), (3, lambda t: t.replace("1_30", "1_3")),
    (3, lambda t: t.replace("1_30", "1_0x30")), (3, lambda t: t.replace("1_30", "1 30")),
    (3, lambda t: t.replace("1_30", "01_30")),
    (12, lambda t: t.replace("a_b8", "A_b8")), (12, lambda t: t.replace("a_b8", "a_B8")),
    (3, lambda t: t.replace("1_30", "1_30 //x")),
    (3, lambda t: t.replace("1_30", "1_30 // tail ")), (3, lambda t: t.replace("1_30", "1_30 ")),
    (3, lambda t: t.replace("1_30", "1_30 // é")),
    (4, lambda t: t.replace("1_30\n", "2_30\n")), (3, lambda t: t.replace("0_00\n", "0_00\n0_00\n")),
    (3, lambda t: t.replace("1_30", "")),
    (3, lambda t: t.replace("1_30", "// comment"))])
def test_the_reader_refuses(line, change):
    text = change(small())
    assert text != small()
    with pytest.raises(InputError, match=f"line {line}:"):
        vec.parse(text)


def test_the_reader_wants_lf():
    for text in (small().replace("\n", "\r\n"), small()[:-1], ""):
        with pytest.raises(InputError, match="LF"):
            vec.parse(text)


def test_the_reader_refuses_codes_wider_than_their_field(tmp_path):
    text = sets.generate("decode/e3m2-f32/exact/codes").text().replace("\n3f_", "\n7f_")
    with pytest.raises(InputError, match="6 bits"):
        vec.parse(text)
    with pytest.raises(InputError, match="cannot read"):
        vec.read(tmp_path / "none.vec")
    (tmp_path / "bytes.vec").write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="ASCII"):
        vec.read(tmp_path / "bytes.vec")


def test_fields_and_headers():
    assert str(Field.parse("e2m1x32")) == "e2m1x32"
    assert Field("e3m2").digits == 2 and Field("bits9").digits == 3
    assert Field.parse("mxint8") == Field("mxint8") and Field.parse("tf32").width == 32
    line = committed("quantize/f32-mxfp4/rne-ocp/block").header.line()
    assert " in=f32x32 out=e8m0,e2m1x32 " in line and Header.parse(line).line() == line


# --- coverage -----------------------------------------------------------------------------------------------

MIXED = ("e4m3fn", "e5m2", "e4m3fnuz", "e3m2", "e2m1", "e8m0", "ue5m3", "int4", "uint8", "smint4", "mxint8",
         "binary8p4se",
         "binary8p1uf", "binary4p2sf")


@pytest.mark.parametrize("target", MIXED)
@pytest.mark.parametrize("source", ["f16", "bf16"])
def test_boundary_is_complete_for_monotone_devices(source, target):
    """Wherever neighbouring source codes get different results, under any rule, both are in the set."""
    row = format_of(source)
    finite = np.arange(row.layout.inf + 1, dtype=np.uint16)
    for side in (finite, finite | np.uint16(0x8000)):
        taken = np.isin(side, coverage.boundary(row, FORMATS[target]))
        for rounding in DETERMINISTIC:
            for overflow in ("sat", "nonsat", "ieee", "satnone", "cuda-nosat", "ml_dtypes"):
                codes = codec.convert(side, row, FORMATS[target], rounding, overflow)
                steps = np.flatnonzero(codes[1:] != codes[:-1])
                assert taken[steps].all() and taken[steps + 1].all(), (rounding, overflow)


@pytest.mark.parametrize("target",
                         ["e4m3fn", "e5m2", "e2m1", "e8m0", "int8", "binary8p3se", "bfloat16", "tf32"])
def test_boundary_points_from_wide_sources(target):
    """Every value and midpoint within the source's range is there, exactly, with its neighbours."""
    if FORMATS[target].width > 16:
        with pytest.raises(InputError, match="16 bits"):
            coverage.boundary(FORMATS["binary64"], FORMATS[target])
        return
    codes = set(coverage.boundary(FORMATS["binary64"], FORMATS[target]).tolist())
    layout, largest = FORMATS[target].layout, FORMATS[target].layout.top_index + 1
    for index in range(0, largest + 1, 1 if largest < 1000 else 97):
        for significand, exponent in (layout.magnitude(index), coverage.midpoint(layout, index)):
            code = int(np.ldexp(float(significand), exponent).view(np.uint64))
            for near in (code - 1, code, code + 1):
                assert near < 0 or {near, near | 1 << 63} <= codes


def test_specials_are_everywhere():
    for name in NAMES:
        if name.startswith("encode/f32") and not name.endswith("stochastic"):
            codes = set(committed(name).operands[0].tolist())
            assert {0, 1 << 31, 1, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0x7fffffff,
                    0x7f7fffff} <= codes, name


def test_sources_must_be_ieee_style():
    with pytest.raises(InputError, match="cannot be the source"):
        coverage.boundary(FORMATS["e4m3fn"], FORMATS["e2m1"])


def test_stochastic_decisions_are_hit():
    """In every sampled gap both outcomes occur for the same operand with neighbouring random words."""
    vectors = committed("encode/f32-e4m3fn/src8-sat/stochastic")
    codes, random = vectors.operands
    results = vectors.results[0]
    flips = (codes[1:] == codes[:-1]) & (random[1:] == random[:-1] + 1) & (results[1:] != results[:-1])
    assert flips.sum() > 200


# --- the results --------------------------------------------------------------------------------------------

def words(row) -> dict:
    return asdict(row) | {"kind": "float" if row.is_float else "int"}


WORDS = {name: asdict(rule) for name, rule in OVERFLOWS.items()}


@cache
def facts(token):
    return scalar.facts(words(format_of(token)))


def oracle_cast(name, vectors):
    """Every case of an encode, convert or decode set by the oracle."""
    source, target = facts(name.src), facts(name.dst)
    rounding, width = ("rne", None) if name.op == "decode" else name.rounding
    overflow = WORDS[name.policy or "nonsat"]
    draws = vectors.operands[1].tolist() if width else [None] * len(vectors)
    return [scalar.encode(scalar.decode(code, source), target, rounding, overflow, WORDS,
                          width and (draw, width))
            for code, draw in zip(vectors.operands[0].tolist(), draws)]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("quantize")
                                  and not {sets.parse(name).src, sets.parse(name).dst} & set(LISTED)])
def test_every_committed_cast_is_the_oracles(name):
    vectors = committed(name)
    assert vectors.results[0].tolist() == oracle_cast(sets.parse(name), vectors)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("quantize")])
def test_every_committed_tile_is_the_oracles(name):
    vectors, parsed = committed(name), sets.parse(name)
    block = data_type(parsed.dst)
    formats = {token: words(refq.number_format(token)) for token in (block.element, block.scale, block.outer)
               if token}
    source = facts(parsed.src)
    for index, tile in enumerate(vectors.operands[-1].tolist()):
        values = [scalar.decode(code, source) for code in tile]
        outer = int(vectors.operands[0][index]) if len(vectors.operands) == 2 else None
        if parsed.policy in recipes.RECIPES:
            got = recipes.quantise(values, (len(tile),), 0, asdict(block), formats, parsed.policy, outer)
        else:
            got = blocks.quantise(values, (len(tile),), 0, asdict(block), formats, parsed.round,
                                  recipe=parsed.policy, outer=outer)
        assert got.codes == vectors.results[-1][index].tolist(), (index, tile)
        assert got.scales == np.atleast_1d(vectors.results[-2][index]).tolist(), index
        if parsed.model == "tensor":
            assert got.outer == int(vectors.results[0][index])


ML_DTYPES = {"e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2", "e4m3fnuz": "float8_e4m3fnuz",
             "e2m1": "float4_e2m1fn"}


@pytest.mark.parametrize("target", ML_DTYPES)
@pytest.mark.parametrize("overflow, model", [("ml_dtypes", "special"), ("nonsat", "boundary")])
def test_ml_dtypes_agrees(target, overflow, model):
    """Bit for bit under its own rule; under the non-saturating rule but for which NaN."""
    vectors = sets.generate(f"encode/f32-{target}/rne-{overflow}/{model}")
    with np.errstate(all="ignore"):
        theirs = vectors.operands[0].view(np.float32).astype(getattr(ml_dtypes,
            ML_DTYPES[target])).view(np.uint8)
    same = theirs == vectors.results[0]
    if overflow == "nonsat":
        same |= np.isnan(refq.decode(theirs, target)) & np.isnan(refq.decode(vectors.results[0], target))
        same |= np.isnan(vectors.operands[0].view(np.float32))
    assert same.all()


# --- vectors from data --------------------------------------------------------------------------------------

def test_vectors_from_weights():
    weights = np.random.default_rng(1).standard_normal((3, 70)).astype(np.float32)
    vectors = sets.from_weights("conv1", weights, "mxfp4", axis=1)
    assert vectors.name == "quantize/f32-mxfp4/rne-ocp/weights-conv1" and len(vectors) == 9
    q = refq.quantize(weights, "mxfp4", axis=1)
    cases = zip(vectors.operands[0].tolist(), *vectors.results)
    rows = {tuple(tile): (scale, tuple(codes)) for tile, scale, codes in cases}
    scale, codes = rows[tuple(weights[1, 32:64].view(np.uint32).tolist())]
    assert scale == q.scales[1, 1] and codes == tuple(q.codes[1, 32:64])
    # ragged: filled with zeros
    scale, codes = rows[tuple(weights[2, 64:].view(np.uint32).tolist()) + (0,) * 26]
    assert scale == q.scales[2, 2] and codes[:6] == tuple(q.codes[2, 64:]) and not any(codes[6:])
    assert vec.parse(vectors.text()).text() == vectors.text()
    with pytest.raises(InputError, match="cannot be generated"):
        sets.generate(vectors.name)


def test_two_level_weights_carry_the_tensor_scale():
    weights = np.random.default_rng(2).standard_normal((4, 32)).astype(np.float32)
    vectors = sets.from_weights("w", weights, "nvfp4")
    q = refq.quantize(weights, "nvfp4")
    assert set(vectors.operands[0].tolist()) == {int(q.tensor_scale.view(np.uint32))}
    assert sorted(vectors.results[0].tolist()) == sorted(q.scales.reshape(-1).tolist())


@pytest.mark.parametrize("dtype, columns",
                         [("int8", 1), ("int8_float32_tensor", 1), ("e4m3fn", 1), ("int4", 1)])
def test_weights_of_every_tiling(dtype, columns):
    weights = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float16)
    vectors = sets.from_weights("w", weights, dtype, limit=40)
    assert len(vectors.operands) == columns and len(vectors) <= 40
    assert vec.parse(vectors.text()).text() == vectors.text()


def test_weights_that_are_refused():
    for label, array in (("Conv 1", np.ones(4, np.float32)), ("w", np.ones(0, np.float32)),
                         ("w", np.ones(4, complex))):
        with pytest.raises(InputError):
            sets.from_weights(label, array, "mxfp4")


# --- other languages ----------------------------------------------------------------------------------------

def snippet(language: str) -> str:
    return re.search(f"```{language}\n(.*?)```", (VECTORS / "README.md").read_text(), re.DOTALL)[1]


def test_the_python_snippet_reads_a_set(monkeypatch):
    monkeypatch.chdir(VECTORS)
    scope = {}
    exec(snippet("python"), scope)
    vectors = committed("encode/f32-e4m3fn/rne-sat/boundary")
    assert scope["cases"] == list(zip(vectors.operands[0].tolist(), vectors.results[0].tolist()))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_c_snippet_reads_a_set(tmp_path):
    (tmp_path / "load.c").write_text(snippet("c"))
    subprocess.run(["cc", "-Wall", "-Werror", "-o", tmp_path / "load", tmp_path / "load.c"], check=True)
    run = subprocess.run([tmp_path / "load", VECTORS / "encode/f32-e4m3fn/rne-sat/boundary.vec"],
                         capture_output=True, text=True)
    assert run.stdout == f"{len(committed('encode/f32-e4m3fn/rne-sat/boundary'))} cases\n"


def test_the_verilog_snippet_has_the_right_depth():
    assert f"mem [0:{len(committed('encode/f32-e4m3fn/rne-sat/boundary')) - 1}]" in snippet("verilog")


# --- the spec's pages and the sweeps ------------------------------------------------------------------------

@pytest.mark.parametrize("page", ["vectors.md", "checking.md"])
def test_the_examples_of_the_spec_run(page):
    failed, tried = doctest.testfile(str(ROOT / "spec" / page), module_relative=False,
                                     optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert tried and not failed


def test_every_clause_cited_is_written():
    written = set(re.findall(r"^## ((?:VEC|CHECK)-\d+) ",
                             "\n".join((ROOT / "spec" / page).read_text()
                                       for page in ("vectors.md", "checking.md")), re.M))
    code = "\n".join(path.read_text() for folder in ("refq", "tools")
                     for path in (ROOT / folder).rglob("*.py"))
    assert set(re.findall(r"\b(?:VEC|CHECK)-\d+", code)) <= written
    assert written == {f"VEC-{n}" for n in range(1, 15)} | {f"CHECK-{n}" for n in range(1, 8)}


@cache
def sweep_tool():
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "tools" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SWEEPS = sorted((VECTORS / "sweeps").rglob("*.json"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(VECTORS / "sweeps")))
def test_a_block_of_every_sweep(path):
    found = json.loads(path.read_text())
    assert len(found["sha256"]) == 256 and path == VECTORS / "sweeps" / f"{found['name']}.json"
    name = sets.parse(f"{found['name']}/boundary")
    cast = sweep_tool().refq_cast(format_of(name.dst), name.round, name.policy)
    for block in (63, 191):
        assert sweep_tool().block_digest(block, cast) == found["sha256"][block]


def test_a_block_by_another_library():
    """Operands 43000000 to 43ffffff, 128 to 512: ties, the largest value and overflow of E4M3."""
    digests = json.loads((VECTORS / "sweeps/encode/f32-e4m3fn/rne-nonsat.json").read_text())["sha256"]
    def theirs(x):
        return x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert sweep_tool().block_digest(0x43, theirs) == digests[0x43]


def test_sweeping_stops_and_continues(tmp_path, monkeypatch):
    sweep, done = sweep_tool(), []
    monkeypatch.setattr(sweep, "block_digest", lambda block, cast: done.append(block) or f"{block:064x}")
    monkeypatch.setattr(sweep, "BLOCKS", 5)
    facts, path = {"name": "x"}, tmp_path / "x.json"
    sweep.save(path, facts | {"sha256": [f"{block:064x}" for block in range(3)]})
    sweep.sweep(facts, None, path)
    assert done == [3, 4] and len(json.loads(path.read_text())["sha256"]) == 5
    sweep.sweep({"name": "y"}, None, path)              # another sweep's file is not continued
    assert done == [3, 4, 0, 1, 2, 3, 4]


def test_sweep_exit_codes(tmp_path, capsys):
    assert sweep_tool().main(["e4m3"]) == 2 and sweep_tool().main(["tf32"]) == 2
    assert sweep_tool().main(["e2m1", "--round", "src"]) == 2
    assert sweep_tool().main(["e2m1", "--check", "-o", str(tmp_path / "none.json")]) == 2
    capsys.readouterr()


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_sweep_judges_a_c_function(tmp_path):
    body = "#include <string.h>\nvoid f(const float *x, unsigned char *y, size_t n) { memset(y, 0, n); }\n"
    (tmp_path / "zero.c").write_text(body)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "zero.so", tmp_path / "zero.c"], check=True)
    digests = json.loads((VECTORS / "sweeps/encode/f32-e4m3fn/rne-sat.json").read_text())["sha256"]
    cast = sweep_tool().library_cast(f"{tmp_path / 'zero.so'}:f", FORMATS["e4m3fn"])
    assert sweep_tool().compare(digests, cast, [0, 1, 63]) == [63]

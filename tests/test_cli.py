"""Every command: what it prints when used well, and exit 2 with one sentence when not."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refq
from refq import cli
from refq.blocks import show as blocks_show
from refq.blocks import table as blocks_table
from refq.formats.rows import FORMATS
from refq.models import example
from refq.vectors import sets, vec

SET = "decode/e2m1-f32/exact/codes"
CAST = "encode/f32-e2m1/rne-sat/special"
DEVICE = f"{sys.executable} -m refq device"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """run(*words) -> (exit code, standard output, standard error)."""
    def call(*words):
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:          # argparse
            code = stop.code
        return code, *capsys.readouterr()
    return call


def good(result):
    code, out, err = result
    assert code == 0 and err == "" and out.endswith("\n"), result
    return out


def left_behind(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- formats --------------------------------------------------------------------------------------

def test_formats_table(run):
    out = good(run("formats"))
    head, *lines = out.split("\n\ndata types")[0].splitlines()
    assert head.split()[:2] == ["format", "bits"]
    listed = {line.split()[0] for line in lines}
    assert {"binary32", "e4m3fn", "e8m0", "binary8p4se", "mxint8", "int1", "uint1", "smint2"} <= listed
    assert "mxfp4" in out and "nvfp4" in out and "17/4" not in out and "4.25" in out


def test_formats_as_json_say_everything(run):
    data = json.loads(good(run("formats", "--json")))
    assert {entry["format"] for entry in data["formats"]} >= set(FORMATS)
    e4m3 = next(entry for entry in data["formats"] if entry["format"] == "e4m3fn")
    assert (e4m3["bits"], e4m3["max"], e4m3["1.0"], e4m3["NaN"]) == ("8", "448", "0x38", "0x7f, 0xff")
    nvfp4 = next(entry for entry in data["data_types"] if entry["data type"] == "nvfp4")
    assert (nvfp4["element"], nvfp4["scale"], nvfp4["bits/value"]) == ("e2m1", "ue4m3", "4.5")


def test_formats_by_name(run):
    out = good(run("formats", "float8_e4m3fn", "mxfp4", "e3m3b5fn"))
    parts = [dict(re.split(r" {2,}", line, maxsplit=1) for line in part.splitlines() if "  " in line)
             for part in out.strip().split("\n\n")]
    assert [part.get("format") or part.get("data type") for part in parts] == ["e4m3fn", "mxfp4", "e3m3b5fn"]
    assert parts[0]["max"] == "448" and parts[1]["bits/value"] == "4.25"
    assert "FLOAT8E4M3FN" in parts[0]["also"]
    described = json.loads(good(run("formats", "e2m1", "--json")))
    assert [entry["format"] for entry in described] == ["e2m1"]


def test_formats_list_everything(run):
    out, data = good(run("formats")), json.loads(good(run("formats", "--json")))
    assert list(data) == ["formats", *blocks_table.SECTIONS]
    for section, title in blocks_table.SECTIONS.items():
        names = [next(iter(row.values())) for row in data[section]]
        part = out.split(f"\n\n{title}\n\n")[1].split("\n\n")[0]
        assert names and all(re.search(rf"^{re.escape(name)} ", part, re.MULTILINE) for name in names)
    gguf = {row["GGUF type"]: row for row in data["gguf"]}
    assert gguf["Q4_K"]["bits/value"] == "4.5" and gguf["Q4_K"]["encode"] == "decode only (search)"
    assert "number" in good(run("formats", "q4_k")) and "GGUF-13" in good(run("formats", "gguf:q8_0"))


# --- show -----------------------------------------------------------------------------------------

def pairs(out):
    return {line[:20].strip(): line[20:].strip() for line in out.splitlines()}


@pytest.mark.parametrize("text, code", [
    ("0x7e", "0x7e (448)"), ("0X7E", "0x7e (448)"), ("0b0111_1110", "0x7e (448)"), ("0x00", "0x00 (0)"),
    ("0xff", "0xff (NaN)")])
def test_show_a_code(run, text, code):
    told = pairs(good(run("show", "e4m3fn", text)))
    assert told["code"] == code and "fields" in told and "source" not in told


SHOWN = [        # words after `show e4m3fn`, the source as taken, the result
    (["464"], "0x43e80000 (464)", "0x7e (448)"),
    (["465", "--overflow", "nonsat"], "0x43e88000 (465)", "0x7f (NaN)"),
    (["1/3"], "11184811 * 2^-25", "0x2b (0.34375)"),
    (["0x1.dp+8"], "0x43e80000 (464)", "0x7e (448)"),
    (["1.0625", "--round", "rup"], "0x3f880000 (1.0625)", "0x39 (1.125)"),
    (["inf"], "(+Inf)", "0x7e (448)"),
    (["nan"], "0x7fc00000 (NaN)", "0x7f (NaN)"),
    (["-0"], "0x80000000 (-0)", "0x80 (-0)"),
    (["-0.0"], "(-0)", "0x80 (-0)"),
    (["-1"], "(-1)", "0xb8 (-1)"),
    (["-1/3"], "-11184811 * 2^-25", "0xab (-0.34375)"),
    (["-1e-5"], "(-", "0x80 (-0)"),
    (["-inf"], "0xff800000 (-Inf)", "0xfe (-448)"),
    (["-INF", "--overflow", "nonsat"], "(-Inf)", "0x7f (NaN)"),
    (["-nan"], "0xffc00000 (NaN)", "0x7f (NaN)"),
    (["-0x1.8p3", "--round", "rtz"], "(-12)", "0xd4 (-12)"),
    (["-.5"], "(-0.5)", "0xb0 (-0.5)"),
    (["--round", "rup", "-1.0625"], "(-1.0625)", "0xb8 (-1)"),
    (["1e-60"], "0x00000000 (0)", "0x00 (0)"),
    (["65519", "--source", "f16"], "binary16 0x7bff (65504)", "0x7e (448)"),
    (["1.05", "--round", "sra", "--random-bits", "0xf", "--random-width", "4"], "0x3f866666", "0x39 (1.125)"),
    (["1.05", "--round", "sra", "--random-bits", "0", "--random-width", "4"], "0x3f866666", "0x38 (1)"),
]


@pytest.mark.parametrize("words, source, result", SHOWN, ids=lambda part: str(part))
def test_show_a_value(run, words, source, result):
    told = pairs(good(run("show", "e4m3fn", *words)))
    assert source in told["source"] and told["result"] == f"e4m3fn {result}"
    assert told["because"] and re.fullmatch(r"[A-Z]+-\d+(, [A-Z]+-\d+)*", told["clauses"])


def test_show_notes_what_it_took(run):
    assert pairs(good(run("show", "int8", "0.1", "--source", "e2m1")))["taken as"] == "0, the nearest e2m1"


# --- plot -----------------------------------------------------------------------------------------

def test_plot(run, tmp_path):
    assert good(run("plot", "e2m1")) == "number-line.png\n"
    assert good(run("plot", "e2m1", "e8m0", "-o", "a.SVG")) == "a.SVG\n"
    assert left_behind(tmp_path) == ["a.SVG", "number-line.png"]
    assert (tmp_path / "number-line.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.SVG").read_bytes()[:1000]


def test_show_a_block(run):
    for name in ("mxfp4", "int4", "e4m3fn", "q4_0", "cb42f1346_e2m3fnuz_e8m0_t32s8"):
        assert good(run("show", name)) == blocks_show.show_block(name) + "\n"


def test_show_values_in_the_order_given(run):
    """Values below zero stay where they are, whatever options stand between."""
    out = good(run("show", "mxfp4", "1", "-7", "--recipe", "ocp,rule=rceil", "0.1", "-inf"))
    assert "0.1 is taken as 13421773 * 2^-27, the nearest binary32" in out
    lines = out.split("\n\n")[1].splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["1", "-7", "0.1", "-Inf"]
    out = good(run("show", "--round", "rtz", "mxfp4", "-1.4", "2.9"))
    assert [line.split()[-2] for line in out.split("\n\n")[1].splitlines()[1:]] == ["-1", "2"]
    random = ["--round", "sra", "--random-bits", "15", "--random-width", "4"]
    out = good(run("show", "mxfp4", "-1", "0.3", *random))
    assert [line.split()[-2] for line in out.split("\n\n")[1].splitlines()[1:]] == ["-1", "0.375"]


def test_show_takes_a_name_of_both_kinds_for_what_fits(run):
    """int4 is a number format and a data type: one operand is a number, several a block, none a drawing."""
    assert pairs(good(run("show", "int4", "3")))["result"] == "int4 0x3 (3)"
    assert pairs(good(run("show", "int4", "0xf")))["code"] == "0xf (-1)"
    assert "scale          binary16" in good(run("show", "int4", "3", "-7"))
    assert "scale binary16" in good(run("show", "int4"))
    assert "scale          e8m0" in good(run("show", "mxfp4", "3"))


# --- plot of blocks -------------------------------------------------------------------------------

def test_plot_blocks(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert good(run("plot", "mxfp4", "b4int3", "int4")) == "blocks.png\n"
    assert good(run("plot", "--blocks", "e4m3fn", "mxfp4", "-o", "x.svg")) == "x.svg\n"
    assert good(run("plot", "int4", "uint4", "-o", "line.png")) == "line.png\n"
    assert left_behind(tmp_path) == ["blocks.png", "line.png", "x.svg"]


# --- vectors --------------------------------------------------------------------------------------

def test_vectors_list(run):
    head, *lines = good(run("vectors", "list")).splitlines()
    assert head.split() == ["set", "clause", "status"]
    assert {line.split()[0] for line in lines} == set(sets.committed())
    found = json.loads(good(run("vectors", "list", "decode/*", "--json")))
    assert len(found) > 20
    decoding = [name for name in sets.committed() if name.startswith("decode/")]
    assert [entry["set"] for entry in found] == decoding


def test_vectors_gen(run, tmp_path):
    out = good(run("vectors", "gen", SET))
    assert out == sets.generate(SET).text() and out.startswith("// refq-vec 1  op=decode")
    assert good(run("vectors", "gen", SET, "-o", "x.vec")) == "x.vec: 16 cases\n"
    assert (tmp_path / "x.vec").read_bytes() == out.encode()
    operands = good(run("vectors", "gen", SET, "--operands")).splitlines()
    assert operands[0] == out.splitlines()[0] and operands[1:] == [f"{code:x}" for code in range(16)]


# --- check and device -----------------------------------------------------------------------------

def answers(change=lambda lines: lines):
    """The right answers of SET, changed."""
    lines = [line.split(" //")[0] for line in sets.generate(SET).text().splitlines()]
    return "\n".join([lines[0], *change(lines[1:])]) + "\n"


def wrong(lines):
    return [lines[0], lines[1].replace("3f000000", "3f400000"), *lines[2:]]


RUNS = [        # how the answers are changed, exit code, words of the verdict
    (lambda lines: lines, 0, r"^PASS  decode/e2m1-f32/exact/codes: 16 cases\n$"),
    (wrong, 1, r"(?s)^MISMATCH  decode/e2m1-f32/exact/codes: 1 of 16 cases differ.*3f400000.*VAL-"),
    (lambda lines: [], 3, "^NOT A RUN  .*empty: the device answered none of the 16 cases"),
    (lambda lines: lines[:-1], 3, "^NOT A RUN  .*short"),
    (lambda lines: lines[:2] + lines[1:], 3, "^NOT A RUN  .*repeated"),
    (lambda lines: lines[::-1], 3, "^NOT A RUN  .*out of order"),
    (lambda lines: ["hello", *lines], 3, "^NOT A RUN  .*malformed"),
    (lambda lines: [*lines, lines[-1]], 3, "^NOT A RUN  .*one too many"),
]


@pytest.mark.parametrize("change, code, words", RUNS)
def test_check_a_file_and_standard_input(run, monkeypatch, tmp_path, change, code, words):
    (tmp_path / "results").write_text(answers(change))
    (tmp_path / "set.vec").write_text(sets.generate(SET).text())
    for target in (SET, "set.vec"):
        got, out, err = run("check", target, "results")
        assert got == code and err == "" and re.search(words, out), out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answers(change).encode())))
    assert run("check", SET, "-")[0] == code
    verdict = json.loads(run("check", SET, "results", "--json")[1])
    assert verdict["exit_code"] == code and verdict["set"] == SET and verdict["cases"] == 16


def test_check_a_pipe(run):
    assert good(run("check", CAST, "--device", DEVICE)).startswith(f"PASS  {CAST}: ")
    assert good(run("check", "quantize/f32-mxfp4/rne-ocp/block", "--device", DEVICE)).startswith("PASS")
    code, out, err = run("check", SET, "--device", "exit 7")
    assert (code, err) == (3, "") and "the device ended with status 7" in out
    code, out, _ = run("check", SET, "--device", "sleep 30", "--timeout", "0.3")
    assert code == 3 and "did not finish within 0.3 seconds" in out
    code, out, _ = run("check", SET, "--device", f"{DEVICE} | sed s/_3f000000/_3f400000/", "--limit", "0")
    assert code == 1 and out == f"MISMATCH  {SET}: 1 of 16 cases differ\n  and 1 more\n"


def test_check_nan(run, tmp_path):
    (tmp_path / "set.vec").write_text((name := sets.generate("decode/e4m3fn-f32/exact/codes")).text())
    lines = [line.split(" //")[0].replace("_7fc00000", "_7fc00001") for line in name.text().splitlines()]
    (tmp_path / "results").write_text("\n".join(lines) + "\n")
    assert run("check", "set.vec", "results")[0] == 1
    code, out, _ = run("check", "set.vec", "results", "--nan", "any")
    assert code == 0 and "any NaN accepted" in out


def test_device(run, monkeypatch):
    vectors = sets.generate(CAST)
    monkeypatch.setattr(sys, "stdin", io.StringIO(vectors.operand_lines()))
    lines = [line.split(" //")[0] for line in vectors.text().splitlines()[1:]]
    assert good(run("device")).splitlines() == lines


# --- quantize -------------------------------------------------------------------------------------

@pytest.mark.parametrize("export", ["native", "portable", "float"])
def test_quantize_the_example(run, tmp_path, export):
    model = example.load().model_path
    code, out, before = run("quantize", model, "-o", "out.onnx", "--dtype", "mxfp6", "--export", export,
                            "--round", "rna", "--method", "rtn", "--keep-float", "*conv1*", "--rule",
                            "fc*=int8", "--json", "report.json", "--html", "report.html")
    assert code == 0 and "kept float by '*conv1*'" in before and "int8:rtn" in before
    assert left_behind(tmp_path) == ["out.onnx", "report.html", "report.json"]
    report = json.loads((tmp_path / "report.json").read_text())
    said = [report["settings"][key] for key in ("dtype", "export", "rounding")]
    assert said == ["mxfp6_e2m3", export, "rna"]
    assert "conv1" in out and "SQNR" in out and "<html" in (tmp_path / "report.html").read_text()
    if export != "float":
        assert (tmp_path / "out.onnx").stat().st_size < model.stat().st_size


# --- bad use: exit 2, one sentence on standard error, nothing else --------------------------------

MODEL = "MODEL"     # stands for the example's path
BAD = [
    (["formats", "e4m3fm"], "'e4m3fm' is not known"),
    (["formats", "fp8"], "ambiguous; say which"),
    (["formats", "e4m3fn", "zz", "--json"], "'zz' is not known"),
    (["show", "e4m3", "1"], "ambiguous; say which: e4m3fn"),
    (["show", "e4m3fn", "0x100"], "0x100 is not a e4m3fn code; allowed are"),
    (["show", "e4m3fn", "0b12"], "neither a code"),
    (["show", "e4m3fn", "0x_"], "neither a code"),
    (["show", "e4m3fn", "0x"], "neither a code"),
    (["show", "e4m3fn", "banana"], "neither a code"),
    (["show", "e4m3fn", "1/0"], "neither a code"),
    (["show", "e4m3fn", ""], "neither a code"),
    (["show", "e4m3fn", "-"], "neither a code"),
    (["show", "e4m3fn", "1e400"], r"1e\+400 is outside the range of the source format binary32"),
    (["show", "e4m3fn", "-1e400"], "outside the range"),
    (["show", "e4m3fn", "1e999999999"], "neither a code|outside the range"),
    (["show", "e4m3fn", "1e-999999999"], "neither a code|too"),
    (["show", "e4m3fn", "0x1p999999999"], "neither a code|outside"),
    (["show", "e4m3fn", "nan", "--source", "e2m1"], "the source format e2m1 has no NaN"),
    (["show", "e4m3fn", "1", "--source", "zz"], "'zz' is not known"),
    (["show", "e4m3fn", "1", "--round", "up"], "rounding 'up' is not known; allowed"),
    (["show", "e4m3fn", "1", "--overflow", "no"], "overflow rule 'no' is not known; allowed"),
    (["show", "e4m3fn", "1", "--round", "sra"], "needs random_bits"),
    (["show", "e4m3fn", "1", "--round", "sra", "--random-bits", "16", "--random-width", "4"],
     r"from 0 to 2\^4 - 1"),
    (["show", "e4m3fn", "1", "--random-bits", "1"], "'rne' takes no random_bits"),
    (["show", "e4m3fn", "1", "--round", "sra", "--random-bits", "x", "--random-width", "4"],
     "--random-bits"),
    (["show", "e4m3fn", "1", "--round", "sra", "--random-bits", "-1", "--random-width", "4"],
     "random.bits"),
    (["show"], "the following arguments are required: format"),
    (["show", "zz"], "'zz' is not known"),
    (["show", "q4_q"], "'q4_q' is not known"),
    (["show", "gguf:q4_q"], "'q4_q' is not known; try Q4_"),
    (["show", "fp8"], "ambiguous; say which: e4m3fn_float32_channel"),
    (["show", "e4m3fn", "1", "--recipe", "ocp"], "e4m3fn is a number format and takes no recipe"),
    (["show", "mxfp4", "--recipe", "ocp"], "--recipe is for values, and none are given"),
    (["show", "e2m1", "--random-bits", "1"], "--random-bits is for values, and none are given"),
    (["show", "mxfp4", "1", "0x7"], "0x7 is a code, and a block of mxfp4 is made from values"),
    (["show", "mxfp4", "banana"], "neither a code"),
    (["show", "mxfp4", "1", "-1e400"], "outside the range of the source format binary32"),
    (["show", "b4int3", "1", "2", "3", "4", "-5"], "a block of b4int3 holds 4 values, but 5 are given"),
    (["show", "mxfp4", "1", "--recipe", "exact"], "recipe 'exact' is for float scales, but mxfp4"),
    (["show", "mxfp4", "1", "--overflow", "sat"], "how mxfp4 overflows is in its recipe"),
    (["show", "mxfp4", "1", "--round", "sra"], "needs random_bits"),
    (["show", "q4_k", "1"], "the reference encoder of Q4_K is a search"),
    (["show", "q4_0", "1", "--round", "rtz"], "Q4_0 is encoded in one way"),
    (["show", "q4_0", *"1" * 33], "a block of Q4_0 holds 32 values, but 33 are given"),
    (["plot", "e2m1", "mxfp4"], "e2m1 is a number format, drawn as a number line, and mxfp4 is drawn as"),
    (["plot", "mxfp4", "zz"], "'zz' is not known"),
    (["plot", "mxfp4", "-o", "x.pdf"], ".png or .svg"),
    (["plot", *["mxfp4"] * 25], "25 blocks to draw; allowed are 1 to 24"),
    (["plot", "tf32"], "tf32 has 19 bits"),
    (["plot", "e2m1", "zz"], "'zz' is not known"),
    (["plot", "e2m1", "-o", "x.pdf"], ".png or .svg"),
    (["plot", "e2m1", "-o", "x"], ".png or .svg"),
    (["plot", "e2m1", "-o", "no/x.png"], "cannot write no/x.png: No such file"),
    (["plot"], "required"),
    (["vectors"], "required: list|gen"),
    (["vectors", "list", "zz*"], "no committed set matches 'zz\\*'"),
    (["vectors", "gen", "zz"], "'zz' is not a set name; it must look like"),
    (["vectors", "gen", "encode/f32-zz/rne-sat/codes"], "zz"),
    (["vectors", "gen", "encode/f32-e4m3fn/rne-sat/nosuch"], "nosuch"),
    (["vectors", "gen", SET, "-o", "no/x.vec"], "cannot write no/x.vec"),
    (["check", SET], "say what to check"),
    (["check", SET, "a", "--device", "b"], "say what to check"),
    (["check", SET, "missing"], "cannot read missing: No such file"),
    (["check", "missing.vec", "-"], "cannot read missing.vec"),
    (["check", "zz", "-"], "'zz' is not a set name"),
    (["check", SET, ".", ], "cannot read"),
    (["check", SET, "x", "--nan", "maybe"], "invalid choice"),
    (["check", SET, "x", "--limit", "-1"], "--limit"),
    (["check", SET, "x", "--limit", "many"], "--limit"),
    (["check", SET, "--device", "x", "--timeout", "-1"], "--timeout"),
    (["check", SET, "--device", "x", "--timeout", "nan"], "--timeout"),
    (["quantize", "missing.onnx", "-o", "out.onnx", "--method", "rtn"], "missing.onnx"),
    (["quantize", MODEL], "-o/--output"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--dtype", "mxfp5"], "'mxfp5' is not known"),
    (["quantize", MODEL, "-o", "out.onnx"], "no calibration data: give some .*or take method 'rtn'"),
    (["quantize", MODEL, "-o", "out.onnx", "--budget", "5"], "a budget needs data"),
    (["quantize", MODEL, "-o", "out.onnx", "--calibration", "none.npz"], "'none.npz' is no file, folder"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--rule", "conv1"], "is not 'pattern=dtype'"),
    (["quantize", MODEL, "-o", "out.onnx", "--calibration", "random", "--memory", "x"], "memory 'x' is no"),
    (["quantize", MODEL, "-o", "out.onnx", "--calibration", "random", "--resume"], "nothing to resume"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "magic"], "method 'magic' is not known"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--export", "tar"], "export|'tar'"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--round", "up"], "rounding 'up' is not known"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--recipe", "te"], "recipe 'te' is not known"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--keep-float", "zz*"], "pattern 'zz\\*' matches no"),
    (["quantize", MODEL, "-o", "no/out.onnx", "--method", "rtn"], "no"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--json", "no/r.json"], "no/r.json|no"),
    (["quantize", MODEL, "-o", "out.onnx", "--method", "rtn", "--html", "no/r.html"], "no/r.html|no"),
    (["demo", "-o", "file"], "file"),
    ([], "required: COMMAND"),
    (["nosuch"], "invalid choice: 'nosuch'"),
    (["formats", "--no"], "--no"),
]


@pytest.mark.parametrize("words, sentence", BAD, ids=lambda part: " ".join(part) if type(part) is list else 0)
def test_bad_use(run, tmp_path, words, sentence):
    (tmp_path / "file").write_text("kept")
    words = [str(example.load().model_path) if word == MODEL else word for word in words]
    code, out, err = run(*words)
    assert code == 2 and out == "" and re.search(sentence, err), (code, out[:200], err)
    assert "Traceback" not in err and (err.startswith("refq: ") or err.startswith("usage: "))
    assert err.count("\n") == 1 or err.startswith("usage: ")
    assert left_behind(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_a_vec_file_that_is_none(run, tmp_path):
    for data in (b"", b"hello\n", bytes(range(256)) * 9, sets.generate(SET).text().encode()[:-30]):
        (tmp_path / "x.vec").write_bytes(data)
        code, out, err = run("check", "x.vec", "x.vec")
        assert code == 2 and out == "" and err.startswith("refq: ") and "Traceback" not in err


def test_device_refuses_what_is_no_set(run, monkeypatch):
    for text in ("", "garbage\n", sets.generate(SET).operand_lines().replace("\n3\n", "\n33\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, out, err = run("device")
        assert code == 2 and err.startswith("refq: ") and "_" not in out


def test_help_of_every_command(run):
    for words in ([], *([name] for name in cli.COMMANDS), ["vectors", "list"], ["vectors", "gen"]):
        code, out, err = run(*words, "--help")
        assert code == 0 and err == "" and out.startswith("usage: refq")
    assert all(name in run("--help")[1] for name in cli.COMMANDS)
    assert good(run("--version")) == f"refq {refq.__version__}\n"


def test_an_interruption(run, monkeypatch):
    def stop(options):
        raise KeyboardInterrupt
    monkeypatch.setitem(cli.COMMANDS, "formats", (cli._build_formats, stop, "x"))
    code, out, err = run("formats")
    assert code == 130 and out == "" and err.startswith("refq: interrupted")


# --- as a process ---------------------------------------------------------------------------------

def process(*words, env=None, **more):
    """`python -m refq` with these words; by default its output as text."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60} | more
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run([sys.executable, "-m", "refq", *words], env=env, **more)


def test_as_a_module():
    done = process("show", "e4m3fn", "464")
    assert done.returncode == 0 and done.stderr == "" and "0x7e (448)" in done.stdout
    assert process("show", "e4m3", "464").returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="a shell")
def test_head_closes_the_pipe():
    for words in ("formats", f"vectors gen {CAST}"):
        command = f"set -o pipefail; {sys.executable} -m refq {words} | head -n 1"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stderr == "" and len(done.stdout.splitlines()) == 1
        assert done.returncode in (0, 141)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("words", [["show", "e4m3fn", "464"], ["vectors", "gen", CAST],
                                   ["check", SET, "results"]])
def test_nobody_reads_the_output(tmp_path, words):
    """Quiet, and never the code of a pass: a verdict that nobody could read is none."""
    (tmp_path / "results").write_text(answers(wrong))
    read, write = os.pipe()
    os.close(read)
    done = process(*words, stdout=write)
    os.close(write)
    assert done.stderr == "" and done.returncode == 141


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_any_terminal_encoding(encoding):
    wrong_device = f"{DEVICE} | sed s/_3f000000/_3f400000/"
    for words, code in ((["formats", "e5m2"], 0), (["check", SET, "--device", wrong_device], 1)):
        done = process(*words, env={"PYTHONIOENCODING": encoding})
        assert done.returncode == code and done.stderr == "" and len(done.stdout) > 50


@pytest.mark.parametrize("encoding, box", [
    ("ascii", "+--"), ("cp437", "+--"), ("latin-1", "+--"), ("utf-8", "┌──")])
def test_drawings_are_plain_where_the_terminal_is(encoding, box):
    done = process("show", "mxfp4", env={"PYTHONIOENCODING": encoding}, encoding="utf-8")
    assert done.returncode == 0 and done.stderr == "" and box in done.stdout
    assert done.stdout.isascii() == (box == "+--") and "\\u" not in done.stdout


def test_bytes_that_are_no_text_into_the_device():
    done = process("device", input=bytes(range(256)), text=False)
    assert done.returncode == 2 and done.stdout == b"" and done.stderr.startswith(b"refq: ")


def test_a_committed_set_is_what_gen_makes(run):
    name = "encode/f32-e2m1/rne-sat/boundary"
    assert name in sets.committed()
    committed = (ROOT / "vectors" / f"{name}.vec").read_text()
    assert good(run("vectors", "gen", name)) == committed
    assert len(vec.read(ROOT / "vectors" / f"{name}.vec")) == committed.count("\n") - 1 > 500
    assert np.uint32(int(committed.splitlines()[1].split("_")[0], 16)) == 0

"""Checking devices: verdicts, non-runs, pipes that misbehave, failure lines, and a real simulator."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import refq
from refq.cli import main
from refq.conformance import devices
from refq.conformance.check import MISMATCH, NOT_A_RUN, PASS, check
from refq.conformance.devices import Call, Pipe, Results, main_device
from refq.errors import InputError
from refq.vectors import sets, vec

ROOT = Path(__file__).resolve().parent.parent
SET = "encode/f32-e4m3fn/rne-sat/boundary"
SMALL = "convert/e2m1-e4m3fn/rne-sat/codes"
DEVICE = f"{sys.executable} -c \"import sys; sys.path.insert(0, {str(ROOT)!r}); " \
         "from refq.conformance.devices import main_device; main_device(sys.stdin, sys.stdout)\""


def encode(codes):
    return refq.encode(codes.view(np.float32), "e4m3fn")


def lines_of(name: str) -> list[str]:
    return [line.split(" //")[0] for line in sets.generate(name).text().splitlines()[1:]]


def verdict(tmp_path, name: str, lines: list[str], **options):
    (tmp_path / "results.vec").write_text("".join(f"{line}\n" for line in lines))
    return check(name, tmp_path / "results.vec", **options)


# --- verdicts -----------------------------------------------------------------------------------------------

def test_a_right_function_passes():
    judged = check(SET, encode)
    assert (judged.outcome, judged.exit_code, judged.failed) == (PASS, 0, 0)
    assert judged.text() == f"PASS  {SET}: {judged.cases} cases" and judged.cases == len(sets.generate(SET))


def test_a_wrong_function_is_a_mismatch():
    judged = check(SET, lambda codes: refq.encode(codes.view(np.float32), "e4m3fn", "rna"), limit=3)
    assert (judged.outcome, judged.exit_code, len(judged.failures)) == (MISMATCH, 1, 3)
    assert judged.failed > 100 and judged.text().endswith(f"and {judged.failed - 3} more")
    assert judged.failures[0].case == f"{SET}/{judged.failures[0].operand}"


def test_the_verdict_as_json():
    judged = json.loads(check(SET, lambda codes: encode(codes) ^ 1, limit=2).json())
    assert (judged["outcome"], judged["exit_code"], judged["failed"]) == ("mismatch", 1, judged["cases"])
    manifest = json.loads((ROOT / "vectors" / "manifest.json").read_text())
    entry = next(entry for entry in manifest["sets"] if entry["name"] == SET)
    assert (judged["set_sha256"], judged["operands_sha256"]) == (entry["sha256"], entry["operands_sha256"])


@pytest.mark.parametrize("change, reason", [
    (lambda lines: [], "empty"), (lambda lines: lines[:-1], "short"),
    (lambda lines: lines[:5] + lines[6:], "out of order"),
    (lambda lines: lines + lines[-1:], "one too many"), (lambda lines: lines[:3] + lines[2:], "is repeated"),
    (lambda lines: lines[:1] * len(lines), "is repeated"), (lambda lines: lines[::-1], "out of order"),
    (lambda lines: lines[:4] + ["garbage"] + lines[4:], "malformed"),
    (lambda lines: [line[:-1] for line in lines], "malformed"),
    (lambda lines: [line.split("_")[1] for line in lines], "malformed"),
    (lambda lines: [line.replace("_", " ") for line in lines], "malformed"),
    (lambda lines: ["", "// nothing"], "empty"),
    (lambda lines: [sets.generate("convert/e2m1-e5m2/rne-sat/codes").header.line(), *lines],
     "results of convert/e2m1-e5m2")])
def test_what_is_not_a_run(tmp_path, change, reason):
    judged = verdict(tmp_path, SMALL, change(lines_of(SMALL)))
    assert (judged.outcome, judged.exit_code) == (NOT_A_RUN, 3)
    assert reason in judged.problem and judged.text().startswith(f"NOT A RUN  {SMALL}: ")


def test_an_operand_of_another_set(tmp_path):
    lines = lines_of(SET)
    judged = verdict(tmp_path, SET, ["00000007_00" if i == 2 else line for i, line in enumerate(lines)])
    assert "is not in the set" in judged.problem


def test_a_set_judged_from_a_broken_header_is_not_a_run(tmp_path):
    judged = verdict(tmp_path, SMALL, ["// refq-vec 1  op=encode", *lines_of(SMALL)])
    assert judged.exit_code == 3


@pytest.mark.parametrize("change", [lambda text: text, str.upper, lambda text: text.replace("\n", "\r\n"),
                                    lambda text: "// written by a bench\n\n" + text,
                                    lambda text: text.replace("\n", " // note\n")])
def test_harmless_differences_of_a_results_file(tmp_path, change):
    (tmp_path / "results.txt").write_bytes(change("".join(f"{line}\n" for line in lines_of(SMALL))).encode())
    assert check(SMALL, Results(tmp_path / "results.txt")).passed


def test_a_set_file_passes_as_its_own_results(tmp_path):
    vectors = sets.generate(SMALL)
    vec.write(vectors, tmp_path / "set.vec")
    assert check(tmp_path / "set.vec", Results(str(tmp_path / "set.vec"))).passed
    assert check(str(tmp_path / "set.vec"), lambda codes: vectors.results[0]).passed


def test_unknown_bits_are_wrong_answers(tmp_path):
    lines = lines_of(SMALL)
    judged = verdict(tmp_path, SMALL, [*lines[:-1], lines[-1][:-2] + "xx"])
    assert judged.exit_code == 1 and "unknown bits" in judged.failures[0].line
    # an unknown operand answers nothing
    assert verdict(tmp_path, SMALL, ["x_00", *lines[1:]]).exit_code == 3


def test_nan_by_bits_or_by_class():
    def other_nan(codes):
        return refq.encode(codes.view(np.float32), "e4m3fn", overflow="torch-2.15")
    assert check(SET, other_nan).exit_code == 1
    assert check(SET, other_nan, nan="any").passed
    assert "any NaN accepted" in check(SET, other_nan, nan="any").text()
    assert check(SET, lambda codes: np.where(encode(codes) == 0x7e, 0x7f, encode(codes)).astype(np.uint8),
                 nan="any").exit_code == 1
    with pytest.raises(InputError, match="bits, any"):
        check(SET, encode, nan="none")


@pytest.mark.parametrize("target", ["encode/f32-e4m3/rne-sat/boundary", "nothing", "/nowhere/set.vec"])
def test_bad_sets_are_refused(target):
    with pytest.raises(InputError):
        check(target, encode)


# --- devices ------------------------------------------------------------------------------------------------

def test_refq_itself_as_a_device():
    for name in (SET, "decode/e8m0-f32/exact/codes", "encode/f32-e4m3fn/src8-sat/stochastic",
                 "quantize/f32-nvfp4/rne-exact/block",
                 "quantize/f32-nvfp4/rne-exact/tensor", "quantize/f32-mxfp6_e2m3/rne-ocp/block",
                 "encode/bf16-e2m1/rne-sat/boundary"):
        vectors, out = sets.generate(name), StringIO()
        main_device(StringIO(vectors.operand_lines()), out)
        assert out.getvalue().splitlines() == lines_of(name)


def test_refq_device_refuses_what_is_no_operand():
    vectors = sets.generate(SMALL)
    for text in (vectors.operand_lines() + "10\n", vectors.operand_lines() + "f_f\n", "0\n", ""):
        with pytest.raises(InputError):
            main_device(StringIO(text), StringIO())


def test_a_pipe():
    judged = check(SET, DEVICE)
    assert judged.passed, judged.text()


def test_a_big_set_through_a_device_that_buffers():
    name = "encode/f16-e2m1/rne-sat/all"
    buffer = f"{sys.executable} -c 'import sys; sys.stdout.write(sys.stdin.read())'"
    assert check(name, f"{DEVICE} | {buffer}").passed


def python(tmp_path, body: str, **options) -> Pipe:
    (tmp_path / "device.py").write_text(body)
    return Pipe(f"{sys.executable} {tmp_path / 'device.py'}", **options)


@pytest.mark.parametrize("body, reason", [
    ("", "empty"), ("import sys; sys.exit(7)", "ended with status 7"),
    ("import os; os.kill(os.getpid(), 9)", "died of signal 9"),
    ("import sys; sys.stdin.read(); print('hello')", "malformed"),
    ("import sys; sys.stdin.readline(); print(sys.stdin.readline().strip() + '_00')", "short"),
    ("import sys; sys.stderr.write('no licence found'); sys.exit(1)", "ended with status 1"),
    ("import os; os.close(0); print('x')", "malformed")])
def test_pipes_that_misbehave(tmp_path, body, reason):
    judged = check(SET, python(tmp_path, body))
    assert judged.exit_code == 3 and reason in judged.problem
    if "licence" in body:
        assert "no licence found" in judged.text()


def test_right_answers_from_a_device_that_then_fails_are_no_run(tmp_path):
    judged = check(SMALL, Pipe(DEVICE + "; exit 4"))
    assert judged.exit_code == 3 and "status 4" in judged.problem


def test_a_hanging_pipe_is_ended(tmp_path):
    start = time.monotonic()
    judged = check(SET, python(tmp_path, "import time, sys; print('x', flush=True); time.sleep(60)",
                               timeout=0.5))
    assert judged.exit_code == 3 and "within 0.5 seconds" in judged.problem and time.monotonic() - start < 10


def test_a_device_that_leaves_a_process_behind_is_no_hang(tmp_path):
    start = time.monotonic()
    assert check(SMALL, Pipe(f"sleep 60 & {DEVICE}")).passed and time.monotonic() - start < 30


def test_a_flooding_pipe_is_ended(tmp_path):
    start = time.monotonic()
    judged = check(SMALL, python(tmp_path, "while True: print('7' * 1000)", timeout=60))
    assert judged.exit_code == 3 and "bytes and was stopped" in judged.problem
    assert time.monotonic() - start < 20


def test_an_unknown_command():
    assert check(SMALL, "/nowhere/to/be/found").exit_code == 3


@pytest.mark.parametrize("function, reason", [
    (lambda codes: 1 / 0, "ZeroDivisionError"), (lambda codes: encode(codes)[:-1], "of shape"),
    (lambda codes: None, "object"),
    (lambda codes: encode(codes).astype(float), "float64"),
    (lambda codes: encode(codes).astype(int) - 1, "outside"),
    (lambda codes: encode(codes).astype(int) + 256, "outside"),
    (lambda codes: (encode(codes), encode(codes)), "2 result columns")])
def test_functions_that_misbehave(function, reason):
    judged = check(SET, Call(function, "mine"))
    assert judged.exit_code == 3 and reason in judged.problem and judged.device == "mine"


def test_a_function_cannot_change_the_set():
    vectors = sets.generate(SET)

    def rude(codes):
        answer = encode(codes)
        codes[:] = 0
        return answer
    assert check(vectors, rude).passed and vectors.text() == sets.generate(SET).text()


def test_what_is_no_device():
    with pytest.raises(InputError, match="not a device"):
        devices.as_device(7)
    with pytest.raises(InputError, match="cannot read"):
        check(SMALL, Path("/nowhere/results.vec"))


# --- failure lines ------------------------------------------------------------------------------------------

def failure(name: str, operand: str, got: str) -> str:
    """The failure line for one wrong answer."""
    vectors = sets.generate(name)
    place = vectors.operand_texts().index(operand)
    results = [*vectors.result_texts()]
    results[place] = got
    lines = [f"{a}_{b}" for a, b in zip(vectors.operand_texts(), results)]

    class Answers:
        def run(self, vectors):
            return devices.Run("test", lines)
    return check(vectors, Answers()).failures[0].line


@pytest.mark.parametrize("name, operand, got, parts", [
    (SET, "43e80001", "7f", ["encode f32->e4m3fn rne-sat  in 43e80001 (464.0000305",
                             "got 7f (NaN) want 7e (448)", "beyond", "448 and 480",
                             "[ROUND-2, OVER-1, OVER-2]", "refq show e4m3fn 0x1.d00002p+8"]),
    (SET, "43e80000", "7f", ["(464)", "half way", "the answer is NaN"]),
    (SET, "3a800000", "01", ["(0.0009765625)", "want 00 (0)", "half way", "1 value too large", "[ROUND-2]",
                             "refq show e4m3fn 0x1p-10"]),
    (SET, "80000000", "00", ["(-0)", "wrong sign of zero", "[ZERO-1]", "refq show e4m3fn -- -0.0"]),
    (SET, "ffc00000", "ff", ["(NaN)", "another nan code", "[NAN-1]", "refq show e4m3fn nan"]),
    (SET, "7f800000", "7f", ["(Inf)", "[OVER-2]"]),
    (SET, "ff7fffff", "ff", ["refq show e4m3fn -- -0x1.fffffep+127"]),
    ("encode/f64-e2m1/rne-sat/boundary", "3fd0000000000001", "0", ["--source binary64 0x1.0000000000001p-2"]),
    (SET, "3f800000", "b8", ["the answer has the wrong sign"]),
    ("encode/f32-e8m0/rne-sat/boundary", "3fc00000", "7f",
     ["want 80 (2)", "[ROUND-2, ROUND-6]", "refq show e8m0 0x1.8p+0"]),
    ("encode/f32-int4/rne-sat/boundary", "7fc00000", "8", ["[NAN-3]", "got 8 (-8) want 0 (0)"]),
    ("encode/f32-uint4/rne-sat/boundary", "bf800000", "f", ["[OVER-8]"]),
    ("encode/f32-e5m2/rtz-ieee/special", "7f7fffff", "7c",
     ["got 7c (Inf) want 7b (57344)", "refq show e5m2 --round rtz --overflow ieee 0x1.fffffep+127"]),
    ("encode/f32-e4m3fn/src8-sat/stochastic", "3f600800_ff", "01", ["random ff", "[ROUND-5]"]),
    ("decode/e4m3fn-f32/exact/codes", "05", "00000000",
     ["in 05 (0.009765625)", "a subnormal: 5 * 2^-9", "[VAL-2]", "refq show e4m3fn 0x5"]),
    ("decode/e8m0-f32/exact/codes", "ff", "7f800000", ["want 7fc00000 (NaN)", "[VAL-3, VAL-7]"]),
    ("decode/mxint8-f32/exact/codes", "80", "c3000000", ["integer -128 in units of 2^-6", "[VAL-4]"])])
def test_failure_lines(name, operand, got, parts, capsys):
    line = failure(name, operand, got)
    assert all(part in line for part in parts), line
    assert main(shlex.split(line[line.index("refq show"):])[1:]) == 0 and capsys.readouterr().out
    assert "\n" not in line and re.search(r"\[[A-Z]+-\d+(, [A-Z]+-\d+)*\]  refq show ", line)


def test_failure_lines_of_tiles():
    def off(columns, place):
        columns[place].reshape(len(columns[place]), -1)[60, -1] ^= 1
        return tuple(columns)
    for name, part, places in (("quantize/f32-mxfp4/rne-ocp/block", "element 31", (1,)),
                               ("quantize/f32-mxfp4/rne-ocp/block", " scale got", (0,)),
                               ("quantize/f32-nvfp4/rne-exact/block", "element 15", (1,))):
        vectors = sets.generate(name)
        judged = check(vectors, lambda *ops: off([column.copy() for column in vectors.results], places[0]))
        assert judged.failed == 1 and part in judged.failures[0].line and "[BLOCK-" in judged.failures[0].line


def test_every_case_of_every_kind_can_be_explained():
    """No failure line ever fails: all answers wrong, in many sets."""
    for name in ("encode/f32-e8m0/rne-nonsat/special", "encode/f32-binary8p1uf/rne-satnone/special",
                 "encode/f32-smint4/rup-satsym/special",
                 "encode/f64-e2m1/rne-ml_dtypes/special", "encode/f32-e4m3fnuz/rdn-onnx-sat/special",
                 "decode/e5m2-f32/exact/codes",
                 "encode/f32-e3m2/src2-sat/stochastic", "quantize/f32-mxint8/rne-ocp/block",
                 "quantize/f32-nvfp4/rne-exact/block",
                 "quantize/f32-nvfp4/rne-exact/tensor", "quantize/f32-int4/rne-exact/block"):
        vectors = sets.generate(name)
        judged = check(vectors, lambda *ops: tuple(column ^ np.ones((), column.dtype)
                                                   for column in vectors.results), limit=10 ** 6)
        assert judged.failed == len(judged.failures) == len(vectors)


# --- a simulator --------------------------------------------------------------------------------------------

CONVERTER = """
module converter(input [31:0] x, output [7:0] code);     // float32 to E4M3FN, nearest even, saturating
  wire nan = &x[30:23] && |x[22:0];
  wire [23:0] significand = {|x[30:23], x[22:0]};
  wire [7:0] exponent = x[30:23] == 0 ? 8'd1 : x[30:23];
  wire [7:0] shift = exponent >= 121 ? 8'd20 : (exponent < 115 ? 8'd26 : 8'd141 - exponent);
  wire [25:0] kept = significand >> shift;
  wire half = (significand >> (shift - 1)) & 1;
  wire sticky = |(significand & ((26'd1 << (shift - 1)) - 1)) || (exponent < 115 && |significand);
  wire up = ROUND;
  wire [11:0] index = (exponent >= 121 ? (exponent - 121) * 8 : 0) + kept[3:0] + up;
  assign code = nan ? 8'h7f : {x[31], index > 12'h7e ? 7'h7e : index[6:0]};
endmodule

module bench;
  parameter COUNT = 1;
  reg [39:0] mem [0:COUNT-1];
  reg [31:0] x;
  wire [7:0] code;
  integer i, file;
  converter dut(x, code);
  initial begin
    $readmemh("SET", mem);
    file = $fopen("RESULTS", "w");
    for (i = 0; i < COUNT; i = i + 1) begin
      x = mem[i][39:8];
      #1 $fdisplay(file, "%h_%h", x, code);
    end
    $finish;
  end
endmodule
"""


ECHO = """
module bench;
  reg [BITS-1:0] mem [0:COUNT-1];
  integer i, file;
  initial begin
    $readmemh("SET", mem);
    file = $fopen("RESULTS", "w");
    for (i = 0; i < COUNT; i = i + 1) $fdisplay(file, "FORM", SLICES);
    $finish;
  end
endmodule
"""
needs_simulator = pytest.mark.skipif(not shutil.which("iverilog") or not shutil.which("vvp"),
                                     reason="no Icarus Verilog")


def simulate(folder, text: str) -> None:
    """Compile and run a bench; the simulator must have nothing to say about the file it loads."""
    (folder / "bench.v").write_text(text)
    subprocess.run(["iverilog", "-g2005", "-o", folder / "bench", folder / "bench.v"], check=True)
    run = subprocess.run(["vvp", folder / "bench"], capture_output=True, text=True, check=True)
    assert "WARNING" not in run.stdout + run.stderr, run.stdout + run.stderr


@needs_simulator
@pytest.mark.parametrize("name", [
    "decode/e3m2-f32/exact/codes", "encode/f64-e2m1/rne-sat/boundary", "quantize/f32-nvfp4/rne-exact/tensor",
    "encode/f32-e4m3fn/src8-sat/stochastic", "quantize/f32-mxfp6_e3m2/rne-ocp/block"])
def test_every_kind_of_set_loads_into_a_simulator(tmp_path, name):
    """The words of a bench hold what the file says, field by field."""
    source, header = ROOT / "vectors" / f"{name}.vec", sets.generate(name).header
    sizes = [4 * field.digits * field.count for field in header.operand_fields + header.result_fields]
    ends = [sum(sizes[place:]) for place in range(len(sizes))]
    slices = ", ".join(f"mem[i][{end - 1}:{end - size}]" for end, size in zip(ends, sizes))
    facts = {"BITS": str(sum(sizes)), "COUNT": str(header.count), "SET": str(source),
             "RESULTS": str(tmp_path / "results.vec"),
             "FORM": "_".join(["%h"] * len(sizes)), "SLICES": slices}
    simulate(tmp_path, re.sub("|".join(facts), lambda match: facts[match[0]], ECHO))
    assert check(source, tmp_path / "results.vec").passed


@needs_simulator
@pytest.mark.parametrize("round_up, outcome",
                         [("half && (sticky || kept[0])", PASS), ("half", MISMATCH),
                          ("half && kept[0]", MISMATCH)])
def test_a_verilog_converter_in_a_simulator(tmp_path, round_up, outcome):
    """The committed file loads with $readmemh as it is; the simulator's answers are judged from its file."""
    source, results = ROOT / "vectors" / f"{SET}.vec", tmp_path / "results.vec"
    text = CONVERTER.replace("ROUND", round_up).replace("SET", str(source)).replace("RESULTS", str(results))
    text = text.replace("COUNT = 1", f"COUNT = {len(sets.generate(SET))}")
    simulate(tmp_path, text)
    assert check(source, results).outcome == outcome


def test_a_stack_s_set_names_its_clause():
    """A device that follows OCP against torchao's RCEIL: the failure cites the recipe, not the exact quotient."""
    def ocp(words):
        q = refq.quantize(words.view(np.float32), "mxfp4")
        return q.scales[:, 0], q.codes

    judged = check("quantize/f32-mxfp4/rne-torchao_rceil/block", ocp)
    assert judged.exit_code == 1 and judged.failed > 20
    assert all("[REC-10]" in line for line in judged.text().splitlines()[1:-1])

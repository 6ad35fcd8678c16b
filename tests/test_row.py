"""A new number format is one row: a row registered here appears in every part of refq without another line
changed."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import refq
from refq.cli import main
from refq.conformance.check import check
from refq.conformance.devices import main_device
from refq.formats import table
from refq.formats.rows import FORMATS, Float, registered
from refq.vectors import manifest, sets, vec

ROW = Float("e3m3test", exp=3, man=3, bias=3, special="fn", ref="a test", aka=("float7_test",))
SET = "encode/f32-e3m3test/rne-sat/boundary"


@pytest.fixture(autouse=True)
def row():
    with registered(ROW):
        yield
    assert ROW.name not in FORMATS


def test_codec():
    assert refq.number_format("e3m3test") is ROW and refq.number_format("FLOAT7_TEST") is ROW
    assert ROW.max == 28 and ROW.nan_codes == [0x3f, 0x7f]
    codes = refq.encode(np.float32([1, 1.0625, -30, np.nan, 1 / 64, -0.0]), "e3m3test")
    assert codes.tolist() == [0x18, 0x18, 0x7e, 0x3f, 0x00, 0x40]
    assert refq.encode(np.float32([29, 29.1]), "e3m3test", overflow="nonsat").tolist() == [0x3e, 0x3f]
    everything = np.arange(128, dtype=np.uint8)
    values = refq.decode(everything, "e3m3test")
    finite = ~np.isnan(values)
    assert np.array_equal(refq.encode(values, "e3m3test")[finite], everything[finite])


def test_vectors():
    assert {SET, "encode/f32-e3m3test/rne-nonsat/boundary",
            "decode/e3m3test-f32/exact/codes"} <= set(sets.committed())
    vectors = sets.generate(SET)
    assert vec.parse(vectors.text()).text() == vectors.text()
    # 29: half way from 28 to 30
    assert "41e80000_3e // tie at the overflow boundary" in vectors.text()
    assert len(sets.generate("decode/e3m3test-f32/exact/codes")) == 128
    assert len(sets.generate("convert/e3m3test-e2m1/rne-sat/codes")) == 128
    entry = manifest.entry(vectors)
    assert entry["name"] == SET and entry["status"] == "refq-choice"


def test_tables():
    tables = json.loads(manifest.formats())
    assert tables["formats"]["e3m3test"]["max"] == "28" and tables["formats"]["e3m3test"]["kind"] == "float"
    assert "| e3m3test | 7 | 1/3/3 | 3 | 28 |" in table.markdown()


def test_check():
    judged = check(SET, lambda codes: refq.encode(codes.view(np.float32), ROW, "rna"))
    assert judged.exit_code == 1 and "want" in judged.text() and "refq show e3m3test" in judged.text()
    assert check(SET, lambda codes: refq.encode(codes.view(np.float32), ROW)).passed
    vectors, out = sets.generate(SET), StringIO()
    main_device(StringIO(vectors.operand_lines()), out)
    assert out.getvalue().splitlines() == [line.split(" //")[0] for line in vectors.text().splitlines()[1:]]


def test_blocks():
    q = refq.quantize(np.float32([[1, 28, -3, 0.1]]), "e3m3test_e8m0_t32")
    assert q.codes[0, 1] == 0x3e and q.scales.tolist() == [[127]]
    assert len(sets.generate("quantize/f32-e3m3test_e8m0_t32/rne-ocp/block")) > 100


def test_command_line(capsys, tmp_path, monkeypatch):
    def run(*words) -> tuple[int, str]:
        return main(list(words)), capsys.readouterr().out

    for words, parts in (((["formats"]), ["e3m3test"]), (["formats", "e3m3test"], ["28"]),
                         (["show", "e3m3test", "0x3e"], ["28"]),
                         (["show", "e3m3test", "29"], ["0x3e"]), (["vectors", "list"], [SET]),
                         (["vectors", "gen", "decode/e3m3test-f32/exact/codes"], ["18_3f800000 // 1\n"])):
        code, text = run(*words)
        assert code == 0 and all(part in text for part in parts), words
    assert run("vectors", "gen", SET, "-o", str(tmp_path / "set.vec"))[0] == 0
    code, text = run("check", SET, str(tmp_path / "set.vec"))
    assert code == 0 and text.startswith("PASS")
    (tmp_path / "device.py").write_text("import sys\nsys.stdin.readline()\n"
                                        "for line in sys.stdin: print(line.strip() + '_00')\n")
    code, text = run("check", SET, "--device", f"{sys.executable} {tmp_path / 'device.py'}")
    assert code == 1 and text.startswith("MISMATCH")
    _, operands = run("vectors", "gen", SET, "--operands")
    monkeypatch.setattr(sys, "stdin", StringIO(operands))
    code, text = run("device")
    assert code == 0
    (tmp_path / "answers.vec").write_text(text)
    assert run("check", SET, str(tmp_path / "answers.vec"))[0] == 0


def test_the_pipeline_of_the_readme(tmp_path):
    """refq vectors gen SET --operands | refq device | refq check SET -, in real processes (on a row of the
    table)."""
    root, python = Path(__file__).resolve().parent.parent, sys.executable
    name = "encode/f32-e2m1/rne-sat/boundary"
    steps = (f"vectors gen {name} --operands", "device", f"check {name} -")
    line = " | ".join(f"{python} -m refq {step}" for step in steps)
    run = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0 and run.stdout.startswith(f"PASS  {name}"), run.stdout + run.stderr


@pytest.mark.parametrize("words, code", [
    (["check", SET], 2), (["check", "nonsense", "x.vec"], 2), (["check", SET, "/nowhere/x.vec"], 2),
    (["check", SET, "--device", "true"], 3),
    (["vectors", "gen", "encode/f32-nothing/rne-sat/boundary"], 2), (["show", "e3m3test", "0x80"], 2)])
def test_exit_codes(words, code, capsys):
    assert main(words) == code

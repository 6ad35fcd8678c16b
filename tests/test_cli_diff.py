"""refq diff on the command line: what it prints, its exit codes, the data it reads and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from refq.cli import main
from refq.models import example

MODEL = Path(example.__file__).with_name("fashion_cnn.onnx")

SAME, DIFFERENT, BAD = 0, 1, 2


def test_the_same(capsys):
    assert main(["diff", "ocp", "ocp", "--dtype", "mxfp4"]) == SAME
    assert capsys.readouterr().out == "ocp and ocp are the same on mxfp4.\n"
    assert main(["diff", "ocp,rule=rceil", "cudnn_mx", "--dtype", "mxfp4"]) == SAME


def test_text(capsys):
    assert main(["diff", "ocp", "torchao_rceil", "--dtype", "mxfp4"]) == DIFFERENT
    out = capsys.readouterr().out
    assert out.startswith("ocp and torchao_rceil on mxfp4\n") and "rules that differ" in out
    assert "the scale of an ordinary tile" in out and "3fe00000" in out and "SQNR" in out


def test_json(capsys):
    assert main(["diff", "ocp", "ocp,rule=ceil", "--dtype", "mxfp6_e2m3", "--json"]) == DIFFERENT
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "mxfp6_e2m3" and found["differ"] and found["rules"][0]["field"] == "rule"


def test_arrays(tmp_path, capsys):
    x = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    np.save(tmp_path / "w.npy", x)
    np.savez(tmp_path / "w.npz", a=x, b=x[:32])
    for name, tiles in (("w.npy", 64 * 3), ("w.npz", 96 * 3)):
        assert main(["diff", "ocp", "ocp,rule=rceil", "--dtype", "mxfp4", "--json",
                     "--input", str(tmp_path / name)]) == DIFFERENT
        data = json.loads(capsys.readouterr().out)["data"]
        assert data["tiles"] == tiles and 0 < data["scales_differ"] < tiles
    assert main(["diff", "ocp", "ocp,rule=rceil", "--dtype", "mxfp4", "--json", "--axis", "0",
                 "--input", str(tmp_path / "w.npy")]) == DIFFERENT
    assert json.loads(capsys.readouterr().out)["data"]["tiles"] == 96 * 2


def test_a_model(capsys):
    assert main(["diff", "ocp", "torchao_even", "--dtype", "mxfp4", "--input", str(MODEL)]) == DIFFERENT
    out = capsys.readouterr().out
    assert "224528" in out and "18.257%" in out         # all weights of its five layers


@pytest.mark.parametrize("words, said", [
    (["ocp", "opc"], "recipe 'opc' is not known"),
    (["ocp", "exact"], "'exact' is for float scales"),
    (["ocp", "ocp", "--input", "nowhere.npy"], "nowhere.npy is no file"),
    (["ocp", "ocp", "--input", __file__], "data comes as .npy, .npz or .onnx"),
    (["ocp", "ocp", "--input", str(MODEL), "--axis", "0"], "--axis goes with arrays")])
def test_refused(words, said, capsys):
    assert main(["diff", *words, "--dtype", "mxfp4"]) == BAD
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("content, said", [
    (b"", "cannot read arrays"), (b"\x93NUMPY", "cannot read arrays"), (b"text", "cannot read arrays")])
def test_broken_files(tmp_path, content, said, capsys):
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    assert main(["diff", "ocp", "ocp", "--dtype", "mxfp4", "--input", str(path)]) == BAD
    assert said in capsys.readouterr().err


def test_words_and_objects_are_no_weights(tmp_path, capsys):
    for array in (np.array(["a"]), np.zeros(0, np.float32), np.zeros(3, complex)):
        np.save(tmp_path / "w.npy", array)
        assert main(["diff", "ocp", "ocp", "--dtype", "mxfp4", "--input", str(tmp_path / "w.npy")]) == BAD
        assert "holds no numbers" in capsys.readouterr().err

"""The committed vectors kill every public bug, pass the correct codec, and are stronger than what missed the
bug."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mutants import MUTANTS, kills, weak_operands

from refq.vectors import sets, vec

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
NAMES = [sets.parse(name) for name in sets.committed()]


@cache
def committed(name):
    return vec.read(VECTORS / f"{name}.vec")


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_the_correct_codec_passes(name):
    vectors = committed(name)
    answers = sets.answer(vectors.header, vectors.operands)
    pairs = zip(answers, vectors.results, strict=True)
    assert all(np.array_equal(answer, golden) for answer, golden in pairs)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_committed_set_kills(mutant):
    spoken_to = [name for name in NAMES if mutant.applies(name)]
    assert spoken_to, "no committed set speaks to this mutant"
    assert any(kills(mutant, name, committed(name).operands, committed(name).results) for name in spoken_to)


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.misses],
                         ids=lambda mutant: mutant.name)
def test_a_weaker_set_misses(mutant):
    """Random or round-trip operands do not see the bug: the mutant is as subtle as its thread says."""
    def missed(name):
        operands = weak_operands(mutant.misses, name)
        return not kills(mutant, name, operands, sets.OPS[name.op].answer(name, operands))
    assert any(missed(name) for name in NAMES if mutant.applies(name))


def test_every_mutant_cites_its_source_once():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all("#" in mutant.thread or "measured" in mutant.thread for mutant in MUTANTS)


def test_the_kill_matrix_is_printed():
    tool = VECTORS.parent / "tools" / "kill_matrix.py"
    run = subprocess.run([sys.executable, tool, "--matrix"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants killed" in run.stdout

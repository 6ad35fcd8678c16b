"""Tensors whose data waits on disk: taken whole, given back whole, gone afterwards."""

import os
import sys
import tempfile

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx_models import tensor, weight

from refq.errors import InputError
from refq.models import spool as spools
from refq.models import tensors
from refq.models.spool import EXTERNAL_FROM, Spool
from refq.models.tensors import is_external, refer, reference

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
SMALL = np.zeros(EXTERNAL_FROM // 4 - 1, np.float32)


def three():
    return [tensor("w", weight(40, 30)), tensor("small", SMALL), tensor("v", weight(700, seed=3))]


def test_large_tensors_are_taken_and_given_back(tmp_path):
    stored, before = three(), three()
    with Spool(tmp_path / "q.onnx") as spool:
        spool.take(stored)
        assert [spool.holds(t) for t in stored] == [True, False, True] == [is_external(t) for t in stored]
        assert not any(t.raw_data for t in stored[::2]) and stored[1] == before[1]
        for old, new in zip(before, stored, strict=True):
            assert (new.name, new.data_type, new.dims) == (old.name, old.data_type, old.dims)
            assert b"".join(spool.pieces(new, tmp_path)) == old.raw_data
        spool.take(stored)          # a second time changes nothing
        assert b"".join(spool.pieces(stored[2], "")) == before[2].raw_data


def test_the_limit_is_where_the_data_file_begins():
    stored = [tensor("w", np.zeros(size, np.uint8)) for size in (EXTERNAL_FROM, EXTERNAL_FROM - 1)]
    with Spool() as spool:
        spool.take(stored)
        assert [spool.holds(t) for t in stored] == [True, False]


def test_new_objects_take_the_place_of_those_that_keep_their_memory():
    stored = three()
    before = list(stored)
    with Spool() as spool:
        spool.take(stored)
        assert stored[0] is not before[0] and stored[1] is before[1] and before[0].raw_data


def test_pieces_are_small(monkeypatch):
    monkeypatch.setattr(tensors, "PIECE", 1000)
    stored = three()
    with Spool() as spool:
        spool.take(stored)
        assert [len(piece) for piece in spool.pieces(stored[0], "")] == [1000] * 4 + [800]


def test_packed_types(tmp_path):
    stored = [T(name="w", data_type=T.INT4, dims=[4097], raw_data=bytes(range(256)) * 8 + b"\x07")]
    data = stored[0].raw_data
    with Spool() as spool:
        spool.take(stored)
        assert b"".join(spool.pieces(stored[0], "")) == data


def test_what_it_has_not_taken_is_read_where_it_is(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(4800))
    outside = T(name="w", data_type=T.FLOAT, dims=[1200])
    refer(outside, "w.bin", 0, 4800)
    with Spool() as spool:
        assert b"".join(spool.pieces(outside, tmp_path)) == bytes(4800)
        assert b"".join(spool.pieces(three()[1], tmp_path)) == SMALL.tobytes()


def test_a_model_from_outside_cannot_refer_to_it(tmp_path):
    stored = three()
    with Spool() as spool:
        spool.take(stored)
        guess = T(name="w", data_type=T.FLOAT, dims=[1200])
        refer(guess, f"refq-spool-{0:032x}", 0, 4800)
        with pytest.raises(InputError, match="does not exist"):
            list(spool.pieces(guess, tmp_path))
        with Spool() as other:
            assert not other.holds(stored[0])
        assert len({reference(t)["location"] for t in stored[::2]}) == 1


@posix
def test_no_name_in_any_folder(tmp_path):
    """Even a process that is killed leaves nothing."""
    with Spool(tmp_path / "q.onnx") as spool:
        spool.take(three())
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_it_is_gone_however_the_block_ends(tmp_path, error):
    stored = three()
    try:
        with Spool(tmp_path / "q.onnx") as spool:
            spool.take(stored)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        list(spool.pieces(stored[0], ""))


def test_nothing_is_made_before_something_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with Spool(tmp_path / "gone" / "q.onnx") as spool:
        spool.take([three()[1]])


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(spools.tempfile, "TemporaryFile", full)
    message = r"cannot keep the new weight 'w' \(4800 bytes\) in a temporary file in .*: No space left"
    with Spool(tmp_path / "q.onnx") as spool, pytest.raises(InputError, match=message):
        spool.take(three())

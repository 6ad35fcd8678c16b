"""Model files read without their large tensors, and written with data that comes from elsewhere."""

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_models import every_layer, feeds, model, node, run_onnxruntime, tensor, value, weight

from refq.models import example, files, wire
from refq.models.tensors import Folder, array_of, pieces, refer

BIG = weight(40, 30)        # 4800 bytes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(wire, "LARGE", 1000)


def everywhere():
    """A model with a tensor of BIG's size wherever ONNX can keep one, and the tensors' names."""
    body = helper.make_graph([node("Constant", [], ["c"], value=tensor("in_body", BIG)),
                              node("Add", ["c", "in_graph"], ["b"])], "body", [], [value("b", [40, 30])],
                             [tensor("of_body", BIG)])
    sparse = helper.make_sparse_tensor(tensor("of_sparse", BIG.ravel()),
                                       tensor("", np.arange(1200, dtype=np.int64)), [1200])
    nodes = [node("If", ["q"], ["z"], then_branch=body, else_branch=body),
             node("Constant", [], ["s"], sparse_value=sparse),
             node("Own", ["x"], ["y"], domain="own", many=[tensor("one", BIG), tensor("two", BIG)])]
    made = model(nodes, [value("x", [1]), value("q", [], T.BOOL)], {"z": [40, 30]},
                 {"in_graph": BIG, "tiny": BIG[0]},
                 opset=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)])
    inner = helper.make_function("own", "Own", ["x"], ["y"], [
        node("Constant", [], ["c"], value=tensor("in_function", BIG)), node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", 17)])
    made.functions.append(inner)
    training = made.training_info.add()
    training.algorithm.name = training.initialization.name = "t"
    training.algorithm.initializer.append(tensor("trained", BIG))
    return made


def save(proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return tmp_path / "m.onnx"


def joined(proto, directory):
    """What is written of a proto without its data."""
    return b"".join(part if isinstance(part, bytes) else b"".join(pieces(part, directory))
                    for part in wire.parts(proto.SerializeToString()))


def test_large_tensors_stay_in_the_file_wherever_they_are(tmp_path):
    proto = everywhere()
    path = save(proto, tmp_path)
    thin = wire.read(path)
    assert thin.ByteSize() < 6000 < 11 * BIG.nbytes < proto.ByteSize()
    before, after = list(files.tensors(proto)), list(files.tensors(thin))
    assert [t.name for t in before] == [t.name for t in after] and len(before) == 12
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(array_of(new, Folder.of(path)), numpy_helper.to_array(old))
        assert (new.data_location == T.EXTERNAL) == (len(old.raw_data) >= 1000), old.name


def test_what_was_taken_apart_comes_together_again(tmp_path):
    proto = everywhere()
    thin = wire.read(save(proto, tmp_path))
    whole = joined(thin, tmp_path)
    assert onnx.ModelProto.FromString(whole) == proto
    assert onnx.ModelProto.FromString(joined(proto, "")) == proto
    (tmp_path / "again.onnx").write_bytes(whole)
    assert onnx.load(tmp_path / "again.onnx") == proto
    files.embed(thin, Folder.of(tmp_path / "m.onnx"))
    assert thin == proto


def test_every_length_around_a_tensor_is_right(tmp_path):
    """Numbers take one byte more from 128, 16384 and 2097152 on, at every level."""
    for size in (*range(90, 132), *range(16340, 16390, 3), 2097100, 2097152):
        proto = model([node("Identity", ["x"], ["y"])], {"x": [1]}, {"y": [1]},
                      [T(name="w", data_type=T.UINT8, dims=[size], raw_data=bytes(size))])
        thin = onnx.ModelProto.FromString(proto.SerializeToString())
        refer(thin.graph.initializer[0], "w.bin", 0, size)
        (tmp_path / "w.bin").write_bytes(bytes(size))
        assert onnx.ModelProto.FromString(joined(thin, tmp_path)) == proto


def test_other_runtimes_read_what_is_written(tmp_path):
    proto = every_layer()[0]
    thin = wire.read(save(proto, tmp_path))
    (tmp_path / "again.onnx").write_bytes(joined(thin, tmp_path))
    onnx.checker.check_model(str(tmp_path / "again.onnx"), full_check=True)
    found = [run_onnxruntime(str(tmp_path / name), feeds(proto)) for name in ("m.onnx", "again.onnx")]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_a_real_model_file(tmp_path):
    path = example.load().model_path
    thin = wire.read(path)
    assert any(t.data_location == T.EXTERNAL for t in thin.graph.initializer)
    files.embed(thin, Folder.of(path))
    assert thin == onnx.load(path)


def test_the_word_location_in_other_places_does_no_harm():
    proto = model([node("Relu", ["location"], ["y"], name="location", doc_string="location" * 99)],
                  {"location": [1]}, {"y": [1]}, {"location_of_w": BIG})
    proto.metadata_props.add(key="location", value="location")
    assert onnx.ModelProto.FromString(joined(proto, "")) == proto


def test_of_two_values_of_a_field_the_last_counts(tmp_path):
    """As in protobuf, which also puts the parts of a message together that comes twice."""
    proto = model([node("Identity", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    first, last = tensor("w", BIG).SerializeToString(), T(raw_data=(2 * BIG).tobytes()).SerializeToString()
    graphs = [wire._field(7, wire._field(5, stored)) for stored in (first + last, first)]
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString() + b"".join(graphs))
    found = wire.read(tmp_path / "m.onnx").graph
    assert [np.array_equal(array_of(t, tmp_path), times * BIG)
            for t, times in zip(found.initializer, (2, 1), strict=True)] == [True, True]
    assert len(found.node) == 1


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05abc", b"\xff" * 12, b"\x3b\x00", b"\x09abc", b"\x0dabc",
                                  b"\x3a\x80", b"not a model at all, only text"])
def test_what_is_no_message_is_an_error(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(DecodeError):
        wire.read(tmp_path / "m.onnx")


def test_messages_within_each_other_without_end(tmp_path):
    """Graphs in attributes of nodes of graphs: refused before Python's own stack ends."""
    body = b"\x00" * 2000
    for _ in range(400):
        body = wire._field(6, body)         # AttributeProto.g
        body = wire._field(5, body)         # NodeProto.attribute
        body = wire._field(1, body)         # GraphProto.node
    (tmp_path / "m.onnx").write_bytes(wire._field(7, body))
    with pytest.raises(DecodeError, match="more than 100 messages within each other"):
        wire.read(tmp_path / "m.onnx")


def test_an_empty_file_is_an_empty_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    assert wire.read(tmp_path / "m.onnx") == onnx.ModelProto()

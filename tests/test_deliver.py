"""New weights proven when they are made, and proven again from the file that was written."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import numpy_helper
from onnx_models import every_layer, matmul_model, model, node, value, weight

from refq.blocks.quantize import quantize
from refq.blocks.rows import DATA_TYPES, data_type
from refq.errors import InputError
from refq.models import deliver, files
from refq.models.deliver import Proof, proof
from refq.models.export import STYLES, Tables, encode_weight, float_weight, plan, restored
from refq.models.graph import Graph
from refq.models.insert import insert
from refq.models.spool import Spool
from refq.models.weights import find_weights, read_weight

ROOT = Path(__file__).parent.parent


def prepared(proto, dtype="mxfp4", style="native", directory=""):
    """(graph at the opset that is needed, the weights' sites in groups, plan, tables)"""
    block = data_type(dtype)
    chosen = plan(block, style)
    needed = max(chosen.opset_for(block, site.view, site.stored_shape)
                 for site in find_weights(Graph(proto, directory)) if site.view)
    raised, reason = files.raise_opset(proto, needed, [])
    assert not reason
    graph, groups = Graph(raised, directory), {}
    for site in find_weights(graph):
        groups.setdefault(site.group, []).append(site)
    return graph, list(groups.values()), chosen, Tables(graph.unique)


def made(graph, site, dtype, chosen, tables):
    """(the matrix that must be read back, exported) of the weight of a site."""
    block = data_type(dtype)
    axes = site.view.axes(site.stored_shape) if isinstance(block.tile, tuple) else site.view.axis
    q = quantize(read_weight(graph, site), block, axes)
    where = (q, site.view, site.stored_shape, site.type, site.tensor)
    try:
        return restored(q, site.type), encode_weight(*where, chosen, tables)
    except InputError:
        return restored(q, site.type), float_weight(*where, tables)


def one(proto, dtype="mxfp4", style="native"):
    """What `proof` takes, for the first weight of a model."""
    graph, groups, chosen, tables = prepared(proto, dtype, style)
    effective, exported = made(graph, groups[0][0], dtype, chosen, tables)
    return effective, groups[0][0], exported, tables, graph.model.opset_import


def whole(path):
    """A model with all its data."""
    source = files.load(path)
    files.embed(source.model, source.directory)
    return source.model


def cast(model_input, target, dtype="mxfp4", style="native", spooled=True):
    """The weights of a model cast and delivered. Returns the model and its size."""
    source, done = files.load(model_input), []
    graph, groups, chosen, tables = prepared(source.model, dtype, style, source.directory)
    with Spool(target) as spool:
        for sites in groups:
            effective, exported = made(graph, sites[0], dtype, chosen, tables)
            proven = proof(effective, sites[0], exported, tables, graph.model.opset_import)
            if spooled:
                spool.take(exported.initializers)
            done.append(SimpleNamespace(sites=tuple(sites), exported=exported, proof=proven))
        read = {name for item in done for node in item.exported.nodes for name in node.input}
        graph.model.graph.initializer.extend(t for t in tables.initializers.values() if t.name in read)
        insert(graph, done)
        deliver.stamp(graph.model, {"dtype": dtype})
        size = deliver.deliver(graph.model, target, source, done, "", [], spool)
    return graph.model, size


MATRIX = matmul_model(weight(70, 40))
DIFFERS = "weight 'w' of 'layer' reads back differently from what was quantised; nothing was written"


# -- proofs --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DATA_TYPES)
def test_every_data_type_proves_what_it_is(dtype, style):
    values, _, exported, *_ = given = one(MATRIX, dtype, style)
    found = proof(*given)
    assert (found.shape, found.dtype) == ((70, 40), "float32") and re.fullmatch("[0-9a-f]{64}", found.digest)
    if exported.exact and not (values == 0).any():
        assert found == Proof.of(values)


@pytest.mark.parametrize("kind", [T.FLOAT16, T.BFLOAT16, T.DOUBLE], ids=T.DataType.Name)
@pytest.mark.parametrize("style", STYLES)
def test_other_float_types(kind, style):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    proto = model([node("MatMul", ["x", "w"], ["y"])], [value("x", [3, 70], kind)],
                  [value("y", [3, 40], kind)], {"w": weight(70, 40).astype(dtype)})
    assert proof(*one(proto, "mxfp4", style)).dtype == dtype.name


SOME = pytest.mark.parametrize("dtype, style", [("mxfp4", style) for style in STYLES] + [
    ("int8", "native"), ("nvfp4", "portable")])


@SOME
def test_a_wrong_byte_proves_nothing(dtype, style):
    given = one(MATRIX, dtype, style)
    first = given[2].initializers[0]
    first.raw_data = first.raw_data[:500] + bytes([first.raw_data[500] ^ 0x11]) + first.raw_data[501:]
    with pytest.raises(RuntimeError, match=DIFFERS):
        proof(*given)


def test_proofs_tell_shape_dtype_and_every_bit():
    zero = np.zeros((2, 3), np.float32)
    others = (zero.reshape(3, 2), zero.astype(np.float16), zero.astype(np.int32), -zero, zero + 1)
    assert len({Proof.of(array) for array in (zero, *others)}) == 6
    assert Proof.of(zero) == Proof.of(np.zeros((3, 2), np.float32).T) == Proof.of(zero.copy())
    assert Proof.of(np.float32(2)).shape == ()


# -- delivery ------------------------------------------------------------------------------------------------

@pytest.fixture(params=["embedded", "external"])
def where(request, monkeypatch):
    """Both places of the data."""
    monkeypatch.setattr(files, "EMBED_LIMIT", 1000 if request.param == "external" else files.EMBED_LIMIT)
    return request.param


@SOME
def test_spooled_or_not_the_result_is_the_same(tmp_path, where, dtype, style):
    written = {}
    for spooled in (True, False):
        folder = tmp_path / str(spooled)
        folder.mkdir()
        cast(MATRIX, folder / "q.onnx", dtype, style, spooled)
        written[spooled] = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert written[True] == written[False]
    assert sorted(written[True]) == ["q.onnx", "q.onnx.data"][:2 if where == "external" else 1]
    assert b"spool" not in written[True]["q.onnx"]
    memory = cast(MATRIX, None, dtype, style)[0]
    assert whole(tmp_path / "True" / "q.onnx") == memory


@SOME
def test_layers_of_every_kind(tmp_path, where, dtype, style):
    """Weights that are read as they are, reshaped, transposed, cut; several of one node."""
    proto = every_layer()[0]
    assert cast(proto, tmp_path / "q.onnx", dtype, style)[1] > 0
    assert whole(tmp_path / "q.onnx") == cast(proto, None, dtype, style)[0]


@SOME
@pytest.mark.parametrize("name, operand", [("one", 1), ("two", 1), ("turned", 0)])
def test_every_reader_of_a_shared_weight_is_looked_at(tmp_path, monkeypatch, name, operand, dtype, style):
    """Two read it as it is, one through a Transpose; the one that reads another weight is named."""
    nodes = [node("MatMul", ["x", "v"], ["a"], name="other"), node("MatMul", ["a", "w"], ["b"], name="one"),
             node("Gemm", ["b", "w"], ["c"], name="two"), node("Transpose", ["w"], ["t"]),
             node("MatMul", ["t", "z"], ["y"], name="turned")]
    proto = model(nodes, {"x": [3, 64], "z": [64, 5]}, {"c": [3, 64], "y": [64, 5]},
                  {"w": weight(64, 64), "v": weight(64, 64, seed=9)})
    readers = {n.name: n for n in cast(proto, tmp_path / "q.onnx", dtype, style)[0].graph.node if n.name}
    assert readers["one"].input[1] == readers["two"].input[1] != readers["turned"].input[0]

    def misdirect(model, *given):
        embed(model, *given)
        found = {n.name: n for n in model.graph.node if n.name}
        found[name].input[operand] = found["other"].input[1]
    embed = files.embed
    monkeypatch.setattr(files, "embed", misdirect)
    with pytest.raises(RuntimeError, match=f"weight '.*' of '{name}' reads back differently"):
        cast(proto, None, dtype, style)


def test_the_size_is_what_lies_on_the_disk(tmp_path, where):
    size = cast(MATRIX, tmp_path / "q.onnx")[1]
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    proto, size = cast(MATRIX, None)
    assert size == proto.ByteSize()


@pytest.mark.parametrize("target", ["q.onnx", None])
@pytest.mark.parametrize("style", STYLES)
def test_damage_on_the_way_is_found_in_what_was_written(tmp_path, monkeypatch, where, target, style):
    """The proof is from before the spool; the comparison reads the file."""
    pieces = Spool.pieces

    def damaged(self, tensor, directory):
        for number, piece in enumerate(pieces(self, tensor, directory)):
            wrong = self.holds(tensor) and not number
            yield piece[:77] + bytes([piece[77] ^ 1]) + piece[78:] if wrong else piece
    monkeypatch.setattr(Spool, "pieces", damaged)
    with pytest.raises(RuntimeError, match=DIFFERS):
        cast(MATRIX, target and tmp_path / target, style=style)
    assert os.listdir(tmp_path) == []


def test_a_model_too_large_for_memory_needs_a_path(tmp_path, monkeypatch):
    monkeypatch.setattr(deliver, "PROTO_LIMIT", 1000)
    with pytest.raises(InputError, match=r"has \d+ bytes; one in memory can have 1000: give a path"):
        cast(MATRIX, None)
    cast(MATRIX, tmp_path / "q.onnx")


def test_the_source_may_hold_large_tensors_anywhere(tmp_path, where, monkeypatch):
    """Of the model file itself or of a data file: what is left as it was comes along, in pieces."""
    monkeypatch.setattr(files.wire, "LARGE", 500)
    proto = model([node("MatMul", ["x", "w"], ["h"], name="layer"), node("Add", ["h", "b"], ["y"])],
                  {"x": [3, 70]}, {"y": [3, 40]}, {"w": weight(70, 40), "b": weight(3, 40, seed=5)})
    found = [cast(proto, None)[0]]
    onnx.save(proto, tmp_path / "m.onnx")
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    for name in ("m", "e"):
        cast(tmp_path / f"{name}.onnx", tmp_path / "q.onnx")
        found.append(whole(tmp_path / "q.onnx"))
    assert found[0] == found[1] == found[2]
    stored = {t.name: t for t in found[0].graph.initializer}
    assert np.array_equal(numpy_helper.to_array(stored["b"]), weight(3, 40, seed=5))


def test_the_checker_is_asked_about_the_result(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no good\nmore")
    monkeypatch.setattr(files.checker, "check_model", refuse)
    with pytest.raises(RuntimeError, match="onnx.checker refuses, nothing was written: no good$"):
        cast(MATRIX, tmp_path / "q.onnx")
    assert os.listdir(tmp_path) == []


# -- memory --------------------------------------------------------------------------------------------------

def hollow(folder, count, rows, columns):
    """A chain of matrices, all zeros, in a data file that takes no room on the disk."""
    size = rows * columns * 4
    stored = [T(name=f"w{i}", data_type=T.FLOAT, dims=[rows, columns]) for i in range(count)]
    for i, tensor in enumerate(stored):
        files.refer(tensor, "m.data", i * size, size)
    nodes = [node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    proto = model(nodes, {"x0": [1, rows]}, {f"x{count}": [1, columns]}, stored)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    with open(folder / "m.data", "wb") as file:
        file.truncate(count * size)
    return count * size


def peak(folder, code):
    """Megabytes that a process of its own takes at most, beyond what the imports take.

    Linux counts them for each program anew (VmHWM); ru_maxrss would begin with those of this one.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    text = f"""
        import re
        from refq.models import files
        def used():
            with open("/proc/self/status") as file:
                return int(re.search(r"VmHWM:\\s+(\\d+) kB", file.read())[1]) / 1024
        before = used()
        {code}
        print(used() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], cwd=folder, check=True, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return float(done.stdout)


COPY = "source = files.load('m.onnx'); files.write(source.model, 'q.onnx', source, lambda *given: None)"


@pytest.mark.parametrize("limit", [1, 10**10], ids=["external", "embedded"])
def test_copying_a_model_takes_a_few_pieces_of_memory(tmp_path, limit):
    size = hollow(tmp_path, 16, 2048, 2048)
    assert size == 2**28 and peak(tmp_path, f"files.EMBED_LIMIT = {limit}; {COPY}") < 24
    written = onnx.load(tmp_path / "q.onnx", load_external_data=False)
    assert bool(written.graph.initializer[0].external_data) == (limit == 1)


def test_a_model_of_one_file_stays_there(tmp_path):
    """Read, and written again, without ever being in memory."""
    hollow(tmp_path, 16, 2048, 2048)
    source = files.load(tmp_path / "m.onnx")
    files.write(source.model, tmp_path / "m.onnx", source, lambda *given: None)
    assert (tmp_path / "m.onnx").stat().st_size > 2**28
    (tmp_path / "m.data").unlink()
    assert peak(tmp_path, COPY) < 24
    assert (tmp_path / "q.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("embedded", [False, True], ids=["external", "one file"])
def test_the_memory_of_a_direct_cast_is_that_of_one_weight(tmp_path, embedded):
    """1.2 GB of weights in 48 matrices of 25 MB; of one of them a few copies are made."""
    hollow(tmp_path, 48, 2500, 2500)
    if embedded:
        source = files.load(tmp_path / "m.onnx")
        files.write(source.model, tmp_path / "m.onnx", source, lambda *given: None)
    cast = "import refq; refq.quantize_model('m.onnx', 'q.onnx', dtype='mxfp4', method='rtn')"
    assert peak(tmp_path, cast) < 300
    assert len(onnx.load(tmp_path / "q.onnx").graph.initializer) == 96

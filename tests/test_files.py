"""Writing files whole or not at all; models in files, with and without data files beside them."""

import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import numpy_helper
from onnx_models import matmul_model, model, node, weight

from refq import files
from refq.errors import InputError
from refq.files import write_whole
from refq.models import deliver
from refq.models import files as model_files
from refq.models.tensors import reference

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


@pytest.mark.parametrize("content", ["text\n", "a\r\nb … ×\n", b"\x00\xff", "", b"x" * 3_000_000],
                         ids=lambda content: repr(content)[:12])
def test_content_is_written_as_it_is(tmp_path, content):
    path, data = tmp_path / "file", content if isinstance(content, bytes) else content.encode("utf-8")
    for _ in range(2):      # the second time over the first
        assert write_whole(path, content) is None
        assert path.read_bytes() == data and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_paths_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ("plain", str(tmp_path / "string"), tmp_path / "path", "with blank and ü", ".hidden", "a" * 255)
    for path in paths:
        write_whole(path, "x")
    assert len(list(tmp_path.iterdir())) == 6 and (tmp_path / "plain").read_text() == "x"


@posix
def test_a_new_file_has_the_usual_rights(tmp_path):
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "x")
        assert os.umask(0o027) == 0o027         # and the mask of the process is as it was
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@posix
def test_an_old_file_keeps_its_rights(tmp_path):
    path = tmp_path / "private"
    path.write_text("old")
    path.chmod(0o600)
    write_whole(path, "new")
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o600


@posix
def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "real"]


@posix
def test_what_is_no_regular_file_is_written_not_replaced(tmp_path):
    """A pipe stays a pipe, as /dev/null and /dev/stdout must."""
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, "through the pipe")
    reader.join(10)
    assert got == [b"through the pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("place", ["missing/file", ".", "folder", "file/below"])
def test_places_that_cannot_be_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="^cannot write .*: [A-Z]"):
        write_whole(place, "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "folder").iterdir())


def test_a_name_too_long(tmp_path):
    with pytest.raises(InputError, match="^cannot write "):
        write_whole(tmp_path / ("a" * 300), "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fdopen", "replace", "chmod"])
def test_a_failure_halfway_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*arguments, **more):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(InputError, match="cannot write .*file: No space left on device"):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def stop(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_rights(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot write .*: Permission denied"):
        write_whole(tmp_path / "closed" / "file", "x")


# -- reading models ------------------------------------------------------------------------------------------

def test_a_proto_with_its_data_elsewhere(tmp_path, monkeypatch):
    """It does not say where, and the working directory is only where the process happens to be."""
    onnx.save_model(matmul_model(np.ones((64, 8), np.float32)), tmp_path / "m.onnx",
                    save_as_external_data=True, location="m.data", size_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the data of tensor 'w' is in another file.*give the model's path"):
        model_files.load(proto)
    assert model_files.load("m.onnx").path.name == "m.onnx"
    assert str(model_files.load(onnx.load("m.onnx")).directory) == ""


def test_a_model_without_nodes_computes_nothing():
    proto = matmul_model(np.ones((4, 4), np.float32))
    del proto.graph.node[:]
    with pytest.raises(InputError, match="the ModelProto has no nodes: it computes nothing"):
        model_files.load(proto)


@pytest.mark.parametrize("suffix", [".json", ".textproto"])
def test_text_formats_are_read_and_not_written(tmp_path, suffix):
    proto = matmul_model(weight(8, 4))
    onnx.save(proto, tmp_path / f"m{suffix}")
    source = model_files.load(tmp_path / f"m{suffix}")
    assert len(source.model.graph.node) == 1 and source.path.suffix == suffix
    with pytest.raises(InputError, match="models are written in the binary format; name it .onnx"):
        model_files.refuse_target(tmp_path / f"q{suffix}", source)


def test_a_model_is_checked_without_its_data(tmp_path, monkeypatch):
    """Where it lies in links, or is too large for the checker to read, what it says is about the model."""
    monkeypatch.setattr(model_files.wire, "LARGE", 500)
    proto = matmul_model(weight(64, 80))
    onnx.save(proto, tmp_path / "m.onnx")
    source = model_files.load(tmp_path / "m.onnx")
    assert source.model.graph.initializer[0].external_data
    before = source.model.SerializeToString()
    assert model_files.problem(source.model) == model_files.problem(source.model, source.path) == ""
    source.model.graph.node[0].op_type = "Unknown"
    assert "Unknown" in model_files.problem(source.model)
    monkeypatch.setattr(model_files, "CHECK_LIMIT", 0)
    assert "Unknown" in model_files.problem(source.model, source.path)
    source.model.graph.node[0].op_type = "MatMul"
    assert source.model.SerializeToString() == before


# -- writing models ------------------------------------------------------------------------------------------

def numbered(number, rows=64):
    """A model that can be told from others: its weight, its bias and a word that says which it is."""
    proto = model([node("MatMul", ["x", "w"], ["h"], name=f"layer{number}"), node("Add", ["h", "b"], ["y"])],
                  {"x": [3, rows]}, {"y": [3, 80]},
                  {"w": weight(rows, 80, seed=number), "b": weight(80, seed=number + 1)})
    deliver.stamp(proto, {"number": str(number)})
    return proto


def put(proto, path, verify=lambda *given: None):
    source = model_files.load(proto)
    return model_files.write(source.model, path, source, verify)


def number_of(path):
    """Which model lies there, its data checked to be its own."""
    source = model_files.load(path)
    model_files.embed(source.model, source.directory)
    number = int(source.model.graph.node[0].name.removeprefix("layer"))
    assert source.model.graph == numbered(number, source.model.graph.initializer[0].dims[0]).graph
    return number


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture
def external(monkeypatch):
    """Every model has a data file."""
    monkeypatch.setattr(model_files, "EMBED_LIMIT", 100)


def locations(path):
    proto = onnx.load(path, load_external_data=False)
    return {reference(tensor)["location"] for tensor in proto.graph.initializer if tensor.external_data}


def test_a_model_with_a_data_file(tmp_path, external):
    size = put(numbered(1), tmp_path / "q.onnx")
    assert names(tmp_path) == ["q.onnx", "q.onnx.data"] and number_of(tmp_path / "q.onnx") == 1
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    w, b = onnx.load(tmp_path / "q.onnx", load_external_data=False).graph.initializer
    assert reference(w) == {"location": "q.onnx.data", "offset": "0", "length": str(64 * 80 * 4)}
    assert not b.external_data and len(b.raw_data) == 320
    whole = onnx.load(tmp_path / "q.onnx")      # and onnx itself reads it
    assert np.array_equal(numpy_helper.to_array(whole.graph.initializer[0]), weight(64, 80, seed=1))


def test_every_tensor_begins_at_a_page(tmp_path, external):
    """Typed fields and packed types included; words and small tensors stay in the model."""
    stored = [T(name="f", data_type=T.FLOAT, dims=[300], float_data=range(300)),
              T(name="i", data_type=T.INT4, dims=[4099], raw_data=bytes(2050)),
              T(name="s", data_type=T.STRING, dims=[1], string_data=[b"word" * 999]),
              T(name="n", data_type=T.INT64, dims=[2], int64_data=[3, 4]),
              numpy_helper.from_array(weight(300), "w")]
    proto = model([node("Identity", [t.name], [f"y{t.name}"]) for t in stored], {}, {"yf": [300]}, stored)
    put(proto, tmp_path / "q.onnx")
    found = onnx.load(tmp_path / "q.onnx", load_external_data=False).graph.initializer
    places = {t.name: (reference(t)["offset"], reference(t)["length"]) for t in found if t.external_data}
    assert places == {"f": ("0", "1200"), "i": ("4096", "2050"), "w": ("8192", "1200")}
    source = model_files.load(tmp_path / "q.onnx")
    model_files.embed(source.model, source.directory)
    after = {t.name: numpy_helper.to_array(t) for t in source.model.graph.initializer}
    assert all(np.array_equal(numpy_helper.to_array(t), after[t.name]) for t in stored)


@posix
def test_the_files_of_a_model_have_the_usual_rights(tmp_path, external):
    mask = os.umask(0o027)
    try:
        put(numbered(1), tmp_path / "q.onnx")
    finally:
        os.umask(mask)
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o640] * 2


def test_the_same_model_again_is_the_same_files(tmp_path, external):
    found = []
    for _ in range(2):
        put(numbered(1), tmp_path / "q.onnx")
        found.append({file.name: file.read_bytes() for file in tmp_path.iterdir()})
    assert found[0] == found[1]


def test_a_new_model_takes_its_old_data_with_it(tmp_path, external, monkeypatch):
    """The data file of another content has another name, and the old one goes when nothing refers to it."""
    path, seen = tmp_path / "q.onnx", []
    for number in (1, 2, 3, 1, 1):
        put(numbered(number), path)
        (location,) = locations(path)
        seen.append(location)
        assert names(tmp_path) == ["q.onnx", location] and number_of(path) == number
    assert seen[0] == seen[2] == "q.onnx.data" and seen[1].startswith("q.onnx.") and len(seen[1]) == 20
    monkeypatch.setattr(model_files, "EMBED_LIMIT", 10**9)
    put(numbered(4), path)
    assert names(tmp_path) == ["q.onnx"] and number_of(path) == 4


def test_data_that_refq_did_not_write_is_left_alone(tmp_path, external):
    """Not overwritten, not removed: not a file by the name alone, not that of a model of somebody else."""
    path, other = tmp_path / "q.onnx", tmp_path / "q.onnx.data"
    other.write_bytes(b"mine")
    put(numbered(1), path)
    assert other.read_bytes() == b"mine" and len(names(tmp_path)) == 3 and number_of(path) == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    proto = numbered(2)
    del proto.metadata_props[:]
    onnx.save(proto, foreign / "q.onnx", save_as_external_data=True, location="q.onnx.data", size_threshold=0)
    put(numbered(3), foreign / "q.onnx")
    assert len(names(foreign)) == 3 and "q.onnx.data" in names(foreign) and number_of(foreign / "q.onnx") == 3


@posix
def test_only_what_lies_beside_the_model_is_removed(tmp_path, external):
    """A result whose data file was moved away and linked: the link is not followed."""
    path, moved = tmp_path / "q.onnx", tmp_path / "elsewhere"
    put(numbered(1), path)
    (tmp_path / "q.onnx.data").rename(moved)
    (tmp_path / "q.onnx.data").symlink_to("elsewhere")
    assert number_of(path) == 1
    put(numbered(2), path)
    assert moved.is_file() and number_of(path) == 2
    put(numbered(1), path)      # nor does a link stand for a file of the same content
    assert number_of(path) == 1 and not (tmp_path / next(iter(locations(path)))).is_symlink()


def test_a_data_file_that_the_source_needs_stays(tmp_path, external):
    """m.onnx is a copy of a result and refers to the same data file."""
    path, copy = tmp_path / "q.onnx", tmp_path / "m.onnx"
    put(numbered(1), path)
    put(numbered(2), path)      # now under a name with a digest
    copy.write_bytes(path.read_bytes())
    source = model_files.load(copy)
    proto = numbered(3)
    model_files.write(proto, path, source, lambda *given: None)
    assert number_of(path) == 3 and number_of(copy) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("before", [None, 1])
def test_an_interruption_leaves_the_old_model(tmp_path, external, monkeypatch, before, step, error):
    path = tmp_path / "q.onnx"
    if before:
        put(numbered(before), path)
    listed, replace, calls = names(tmp_path), os.replace, []

    def stop(*given):
        calls.append(given)
        if len(calls) > step:
            raise error
        replace(*given)
    monkeypatch.setattr(model_files.os, "replace", stop)
    with pytest.raises((KeyboardInterrupt, InputError)):
        put(numbered(2), path)
    assert len(calls) == step + 1 and names(tmp_path) == listed
    assert not before or number_of(path) == before


@posix
@pytest.mark.parametrize("step", range(5))
def test_a_process_killed_at_any_step_leaves_the_old_model_or_the_new(tmp_path, external, step):
    """Killed before or after a file is moved or removed, with nothing that could clean up."""
    path = tmp_path / "q.onnx"
    put(numbered(1), path)
    code = f"""
        import os, sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
        from pathlib import Path
        import test_files
        test_files.model_files.EMBED_LIMIT = 100
        steps = []
        def killed(call):
            def wrapped(*given, **more):
                steps.append(call)
                if len(steps) > {step}:
                    os._exit(9)
                return call(*given, **more)
            return wrapped
        os.replace, Path.unlink = killed(os.replace), killed(Path.unlink)
        test_files.put(test_files.numbered(2), {str(path)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == (9 if step < 3 else 0)
    assert number_of(path) == (1 if step < 2 else 2)
    put(numbered(3), path)      # and the next run is not hindered
    assert number_of(path) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_does_not_pass_the_check_is_not_moved(tmp_path, external, error):
    put(numbered(1), tmp_path / "q.onnx")

    def verify(proto, directory, path):
        assert names(path.parent) == sorted(["q.onnx", *locations(path)])
        assert directory.path == str(path.parent) and proto.graph.node[0].name == "layer2"
        raise error
    with pytest.raises(error):
        put(numbered(2), tmp_path / "q.onnx", verify)
    assert names(tmp_path) == ["q.onnx", "q.onnx.data"] and number_of(tmp_path / "q.onnx") == 1


def test_source_data_that_vanishes_while_it_is_copied(tmp_path, external):
    put(numbered(1), tmp_path / "m.onnx")
    source = model_files.load(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").write_bytes(bytes(100))
    with pytest.raises(InputError, match="tensor 'w' cannot be read: .* a file of 100 bytes, cut short"):
        model_files.write(source.model, tmp_path / "q.onnx", source, lambda *given: None)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_long_names_leave_room_for_the_work(tmp_path):
    put(numbered(1), tmp_path / ("a" * 250 + ".onnx"))
    assert len(names(tmp_path)) == 1

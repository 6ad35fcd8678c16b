"""Writing files whole or not at all; what a ModelProto may be that is read like a file."""

import os
import stat
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx_models import matmul_model

from refq import files
from refq.errors import InputError
from refq.files import write_whole
from refq.models import files as model_files

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
    assert model_files.load(onnx.load("m.onnx")).directory == ""


def test_a_model_without_nodes_computes_nothing():
    proto = matmul_model(np.ones((4, 4), np.float32))
    del proto.graph.node[:]
    with pytest.raises(InputError, match="the ModelProto has no nodes: it computes nothing"):
        model_files.load(proto)

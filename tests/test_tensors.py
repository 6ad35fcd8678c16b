"""Reading the data of tensors: what is refused of a stranger's model, what opens, what is mapped."""

import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnx_models import matmul_model, weight

from refq.errors import InputError
from refq.models import files, tensors, wire
from refq.models.engine import Engine
from refq.models.quantize import quantize_model
from refq.models.tensors import Folder, array_of, pieces, refer

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
W = weight(16, 8)
DATA = W.tobytes()          # 512 bytes


def stored(location="w.bin", offset=0, length=512, dims=(16, 8), type=T.FLOAT):
    made = T(name="w", data_type=type, dims=dims)
    refer(made, location, offset, length)
    return made


def refused(tensor, folder, message):
    """Both ways of reading refuse it in the same words, which name the tensor."""
    for read in (array_of, lambda *given: list(pieces(*given))):
        with pytest.raises(InputError, match=r"(?s)^the data of tensor 'w' cannot be read: .*" + message):
            read(tensor, folder)


@pytest.fixture
def room(tmp_path):
    """A folder "room" with a model's data in it, beside a secret."""
    (tmp_path / "secret").write_bytes(DATA)
    (tmp_path / "room" / "sub").mkdir(parents=True)
    (tmp_path / "room" / "w.bin").write_bytes(DATA)
    (tmp_path / "room" / "sub" / "w.bin").write_bytes(DATA)
    return tmp_path / "room"


# -- locations -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "sub/w.bin", "sub/../w.bin", "sub/./w.bin"])
def test_files_in_the_models_folder_and_below_are_read(room, location):
    for folder in (room, str(room), Folder(str(room)), Folder.of(room / "m.onnx")):
        assert np.array_equal(array_of(stored(location), folder), W)
    assert b"".join(pieces(stored(location), room)) == DATA


@pytest.mark.parametrize("location, message", [
    ("../secret", "'../secret' leads out of the model's folder; allowed is a file in '.*room' or below"),
    ("sub/../../secret", "leads out of the model's folder"),
    ("../room/w.bin", "leads out"), ("..", "leads out"),
    ("/etc/hostname", "'/etc/hostname' is no relative path; allowed is a file in '.*room' or below"),
    ("C:\\secret", "is no relative path"), ("\\\\server\\share", "is no relative path"),
    ("", "'' is no relative path"), ("w.bin\0.txt", "is no relative path"),
    (".", "'.' is no file: '.*room' is something else"), ("sub", "is something else"),
    ("none.bin", "'none.bin' is no file: '.*none.bin' does not exist"), ("a" * 300, "File name too long"),
    ("w.bin/x", "does not exist|Not a directory"),
])
def test_locations_that_are_refused(room, location, message):
    refused(stored(location), room, message)
    refused(stored(location), Folder.of(room / "m.onnx"), message)


def test_an_absolute_path_is_refused_even_into_the_own_folder(room):
    refused(stored(str(room / "w.bin")), room, "is no relative path")


def test_the_working_directory_is_not_where_a_proto_has_its_data(room, monkeypatch):
    monkeypatch.chdir(room)
    refused(stored(), "", "a ModelProto has none; give its path")
    assert np.array_equal(array_of(stored(), "."), W)


@posix
@pytest.mark.parametrize("link, to", [("out.bin", "../secret"), ("chain.bin", "out.bin"), ("dir", "..")])
def test_links_that_lead_out_are_refused(room, link, to):
    (room / "out.bin").symlink_to("../secret")
    if link != "out.bin":
        (room / link).symlink_to(to)
    location = "dir/secret" if link == "dir" else link
    for folder in (room, Folder.of(room / "m.onnx")):
        refused(stored(location), folder,
                f"'{location}' is a link that leads to '.*secret'; allowed is a file in '.*room' or below")


@posix
def test_links_that_stay_inside_are_followed(room):
    (room / "link.bin").symlink_to("sub/w.bin")
    (room / "dir").symlink_to("sub")
    for location in ("link.bin", "dir/w.bin"):
        assert np.array_equal(array_of(stored(location), room), W)


@posix
def test_a_folder_whose_name_begins_alike_is_outside(room):
    (room.parent / "roommate").mkdir()
    (room.parent / "roommate" / "w.bin").write_bytes(DATA)
    (room / "link.bin").symlink_to("../roommate/w.bin")
    refused(stored("link.bin"), room, "is a link that leads to '.*roommate")


@posix
def test_the_models_folder_may_be_a_link_itself(room):
    (room.parent / "alias").symlink_to("room")
    assert np.array_equal(array_of(stored(), Folder.of(room.parent / "alias" / "m.onnx")), W)


@posix
def test_links_in_a_circle_and_into_nothing(room):
    (room / "circle").symlink_to("circle")
    (room / "nothing").symlink_to("gone")
    refused(stored("circle"), room, "circle")
    refused(stored("nothing"), room, "'nothing' is no file: '.*gone' does not exist")


@posix
def test_hard_links_are_refused(room):
    """Where else the file lies cannot be known: it may be the secret."""
    os.link(room.parent / "secret", room / "hard.bin")
    refused(stored("hard.bin"), room, "'hard.bin' is one of 2 hard links to a file.*put a copy in its place")


@posix
def test_pipes_and_devices_are_refused_without_waiting(room):
    os.mkfifo(room / "pipe")
    refused(stored("pipe"), room, "'pipe' is no file: '.*pipe' is something else")


# -- the cache of a model hub --------------------------------------------------------------------------------

def hub(root, location="onnx/model.onnx_data"):
    """snapshots/<revision>/onnx/model.onnx and its data, both links into blobs. Returns the model's path."""
    snapshot, blobs = root / "snapshots" / "5f3c", root / "blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    proto = matmul_model(weight(64, 80))
    refer(proto.graph.initializer[0], "model.onnx_data", 4096, 64 * 80 * 4)
    (blobs / "a1").write_bytes(proto.SerializeToString())
    (blobs / "b2").write_bytes(bytes(4096) + weight(64, 80).tobytes())
    for name, blob in (("onnx/model.onnx", "a1"), (location, "b2")):
        (snapshot / name).symlink_to(f"../../../blobs/{blob}")
    return snapshot / "onnx" / "model.onnx"


@posix
def test_a_hub_cache_opens(tmp_path):
    path = hub(tmp_path)
    source = files.load(path)
    assert np.array_equal(array_of(source.model.graph.initializer[0], source.directory), weight(64, 80))
    assert source.size == sum(blob.stat().st_size for blob in (tmp_path / "blobs").iterdir())
    assert files.data_paths(source) == [(tmp_path / "blobs" / "b2").resolve()]
    with pytest.raises(onnx.checker.ValidationError):   # which is why refq reads for itself
        numpy_helper.to_array(source.model.graph.initializer[0], base_dir=str(path.parent))


@posix
def test_a_hub_cache_is_quantised(tmp_path):
    """The result is a plain file, the cache is as it was."""
    path = hub(tmp_path)
    before = {blob.name: blob.read_bytes() for blob in (tmp_path / "blobs").iterdir()}
    report = quantize_model(path, tmp_path / "q.onnx", dtype="int8", method="rtn")
    wanted = quantize_model(matmul_model(weight(64, 80)), dtype="int8", method="rtn")
    assert report.rows == wanted.rows and onnx.load(tmp_path / "q.onnx") == wanted.model
    assert before == {blob.name: blob.read_bytes() for blob in (tmp_path / "blobs").iterdir()}
    assert Engine(path).run({"x": np.ones((3, 64), np.float32)})["y"].shape == (3, 80)


@posix
def test_a_hub_cache_opens_its_blobs_only(tmp_path):
    """Not what lies beside the blobs; and the model's own location may not lead there either."""
    path = hub(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(4096 + 64 * 80 * 4))
    data = path.parent / "model.onnx_data"
    data.unlink()
    data.symlink_to("../../../secret")
    source = files.load(path)
    found = source.model.graph.initializer[0]
    refused(found, source.directory,
            "is a link that leads to '.*secret'; allowed is a file in '.*onnx' or '.*blobs' or below")
    refer(found, "../../../blobs/b2", 4096, 64 * 80 * 4)
    refused(found, source.directory, "leads out of the model's folder")


# -- offsets and lengths -------------------------------------------------------------------------------------

@pytest.mark.parametrize("offset, length, message", [
    (-4, 512, "its offset in 'w.bin' is '-4'; allowed are whole numbers from 0 on"),
    (0, -1, "its length in 'w.bin' is '-1'; allowed"), ("x", 512, "its offset in 'w.bin' is 'x'"),
    ("1.5", 512, "'1.5'"), ("1_0", 512, "'1_0'"), (" 1", 512, "' 1'"), ("", 512, "''"), ("²", 512, "'²'"),
    (0, 508, r"its length in 'w.bin' is 508; it must be 512 bytes, as its shape \[16, 8\] of FLOAT takes"),
    (0, 10**15, "its length in 'w.bin' is 10{15}; it must be 512 bytes"),
    (4, 512, "a file of 512 bytes, cut short or another one; it must have from offset 4 on 512 bytes"),
    (10**18, 512, "from offset 10{18} on"), ("9" * 5000, 512, "limit|from offset 9"),
])
def test_offsets_and_lengths_that_lie(room, offset, length, message):
    refused(stored(offset=offset, length=length), room, message)


def test_a_length_left_out_is_what_shape_and_type_say(room):
    (room / "long.bin").write_bytes(bytes(100) + DATA + b"more")
    tensor = stored("long.bin", 100)
    del tensor.external_data[2]
    assert np.array_equal(array_of(tensor, room), W)
    del tensor.external_data[1]
    assert array_of(tensor, room)[0, 0] == 0


@pytest.mark.parametrize("dims", [(2**40, 2**40), (10**18,), (17, 8)])
def test_shapes_beyond_the_file_cost_no_memory(room, dims):
    tensor = stored(dims=dims)
    refused(tensor, room, "its length in 'w.bin' is 512; it must be")
    del tensor.external_data[2]
    refused(tensor, room, "a file of 512 bytes, cut short or another one")


def test_truncated_and_missing_data(room):
    (room / "w.bin").write_bytes(DATA[:300])
    refused(stored(), room, "is a file of 300 bytes, cut short or another one")
    (room / "w.bin").unlink()
    refused(stored(), room, "'w.bin' is no file: '.*w.bin' does not exist")


@pytest.mark.parametrize("tensor, message", [
    (stored(dims=(-16, -8)), r"its shape is \[-16, -8\]; lengths are not negative"),
    (stored(type=T.STRING), "its type is STRING; data of numbers only can be external or raw"),
    (stored(type=T.UNDEFINED), "its type is UNDEFINED"), (T(name="w"), "UNDEFINED"),
    (stored(type=99), "99"),
    (T(name="w", data_type=T.FLOAT, dims=[3], raw_data=b"12345678"), "it holds 8 bytes; it must be 12 bytes"),
    (T(name="w", data_type=T.FLOAT, dims=[3], float_data=[1, 2]), "reshape"),
    (T(name="w", data_type=T.INT4, dims=[5], raw_data=b"12"), "it holds 2 bytes; it must be 3 bytes"),
    (T(name="w", data_type=T.FLOAT, dims=[1], raw_data=b"1234", segment=T.Segment(end=1)), "segment"),
])
def test_tensors_that_contradict_themselves(room, tensor, message):
    with pytest.raises(InputError, match=f"^the data of tensor 'w' cannot be read: .*{message}"):
        array_of(tensor, room)


# -- values --------------------------------------------------------------------------------------------------

TYPES = [kind for name, kind in T.DataType.items()
         if name not in ("UNDEFINED", "STRING") and kind in helper.get_all_tensor_dtypes()]


@pytest.mark.parametrize("kind", TYPES, ids=T.DataType.Name)
@pytest.mark.parametrize("offset", [0, 1, 4096 + 8])
def test_every_type_reads_as_onnx_reads_it(tmp_path, kind, offset):
    """Embedded and external, at any offset: in the dtypes that everything else counts on."""
    tensor = T(name="w", data_type=kind, dims=[5, 3])
    size = tensors.byte_size(tensor)
    top = 2 if kind == T.BOOL else 256
    tensor.raw_data = np.random.default_rng(kind).integers(0, top, size, np.uint8).tobytes()
    wanted = numpy_helper.to_array(tensor)
    (tmp_path / "w.bin").write_bytes(bytes(offset) + tensor.raw_data)
    external = stored("w.bin", offset, size, [5, 3], kind)
    for found in (array_of(tensor, ""), array_of(external, tmp_path)):
        assert found.dtype == wanted.dtype and found.shape == (5, 3) and not found.flags.writeable
        assert found.tobytes() == wanted.tobytes() and found.flags.aligned
    assert b"".join(pieces(external, tmp_path)) == b"".join(pieces(tensor, "")) == tensor.raw_data


@pytest.mark.parametrize("tensor", [
    T(name="w", data_type=T.FLOAT, dims=[2], float_data=[1, 2.5]),
    T(name="w", data_type=T.INT64, dims=[2, 1], int64_data=[-1, 2]),
    T(name="w", data_type=T.BFLOAT16, dims=[2], int32_data=[0x3f80, 0xbf80]),
    T(name="w", data_type=T.INT4, dims=[3], int32_data=[0x21, 0x0f]),
])
def test_values_in_typed_fields(tensor):
    found, wanted = array_of(tensor, ""), numpy_helper.to_array(tensor)
    assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes() and not found.flags.writeable
    assert b"".join(pieces(tensor, "")) == numpy_helper.from_array(wanted).raw_data


def test_strings_and_nothing(room):
    words = T(name="w", data_type=T.STRING, dims=[2], string_data=[b"a", b"b"])
    assert array_of(words, "").tolist() == ["a", "b"]
    for empty in (stored(dims=(0, 4), length=0), T(name="w", data_type=T.FLOAT, dims=[0, 4], raw_data=b""),
                  stored(dims=(0, 4), length=0, offset=512), T(name="w", data_type=T.FLOAT, dims=[0, 4])):
        assert array_of(empty, room).shape == (0, 4) and b"".join(pieces(empty, room)) == b""
    assert array_of(stored(dims=(), length=4), room).shape == ()


def test_external_data_is_mapped_not_read(tmp_path):
    """16 GB of zeros that no disk and no memory holds: a file with a hole."""
    size = 1 << 34
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(size)
    array = array_of(stored("w.bin", 0, size, (1 << 16, 1 << 16)), tmp_path)
    assert array.nbytes == size and not array[::4096, 0].any()
    first = next(iter(pieces(stored("w.bin", 0, size, (1 << 16, 1 << 16)), tmp_path)))
    assert len(first) == tensors.PIECE


# -- a truncated model file ----------------------------------------------------------------------------------

def test_every_cut_of_a_model_file_is_an_error_or_a_model_without_nodes(tmp_path, monkeypatch):
    whole = matmul_model(weight(64, 80)).SerializeToString()
    for large in (wire.LARGE, 64):
        monkeypatch.setattr(wire, "LARGE", large)
        for cut in (*range(0, 200, 3), *range(200, len(whole), 1997), len(whole) - 1):
            (tmp_path / "m.onnx").write_bytes(whole[:cut])
            with pytest.raises(InputError, match="is cut short|no IR version|has no nodes"):
                files.load(tmp_path / "m.onnx")

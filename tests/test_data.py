"""Data for models: every kind of source, batch by batch, and every refusal."""

import sys

import numpy as np
import pytest

from refq.errors import InputError
from refq.models import data

F4, I8 = np.dtype(np.float32), np.dtype(np.int64)
ONE = {"x": (F4, ["N", 3])}
TWO = {"x": (F4, ["N", 3]), "ids": (I8, ["N", None])}
X = np.arange(30, dtype=np.float32).reshape(10, 3)
IDS = np.arange(20).reshape(10, 2)


class Reader:
    """onnxruntime's convention."""

    def __init__(self, answers=None):
        self.answers = iter([{"x": X[:4]}, {"x": X[4:]}] if answers is None else answers)

    def get_next(self):
        return next(self.answers, None)


class Rewinding(Reader):
    def rewind(self):
        self.__init__()


def npz(folder, name="d.npz", save=np.savez, **arrays):
    save(folder / name, **arrays)
    return folder / name


def read(*args, **options):
    found = data.batches(*args, **options)
    return found, list(found)


def joined(parts, name="x"):
    return np.concatenate([part.feeds[name] for part in parts])


def refused(words, *args, **options):
    with pytest.raises(InputError) as error:
        read(*args, **options)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_in_batches(tmp_path, save):
    path = npz(tmp_path, save=save, x=X, ids=np.asfortranarray(IDS), labels=np.arange(10))
    found, parts = read(path, TWO, batch=4)
    assert [part.rows for part in parts] == [4, 4, 2] and found.total == 3 and found.notes == []
    assert np.array_equal(joined(parts), X) and np.array_equal(joined(parts, "ids"), IDS)
    assert np.concatenate([part.labels for part in parts]).tolist() == list(range(10))
    assert len(list(found)) == 3                                         # read again
    (whole,) = data.batches(str(path), TWO)
    assert whole.rows == 10


def test_one_batch_where_rows_differ(tmp_path):
    path = npz(tmp_path, x=X, scale=np.float32(2), y=np.arange(10))
    found, (part,) = read(path, {**ONE, "scale": (F4, [])}, batch=4)
    assert found.total == 1 and part.rows == 10 and part.feeds["scale"] == 2 and len(part.labels) == 10
    found, (part,) = read(npz(tmp_path, x=X, other=X[:4]), {**ONE, "other": (F4, None)})
    assert part.feeds["other"].shape == (4, 3)


def test_rows_that_the_model_fixes(tmp_path):
    fixed = {"x": (F4, [5, 3])}
    path = npz(tmp_path, x=X)
    assert [part.rows for part in data.batches(path, fixed)] == [5, 5]
    refused("takes 5 at a time", path, fixed, batch=2)
    refused("has 10 rows", path, {"x": (F4, [4, 3])})


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    _, parts = read(tmp_path / "x.npy", ONE, batch=7)
    assert [part.rows for part in parts] == [7, 3] and np.array_equal(joined(parts), X)
    refused("is one array", tmp_path / "x.npy", TWO)
    assert len(list(data.batches(tmp_path / "x.npy", TWO, optional=["ids"]))) == 1


def test_folder(tmp_path):
    for name, part in (("b.npz", X[4:]), ("a.npz", X[:4])):
        npz(tmp_path, name, x=part, label=np.arange(len(part)))
    (tmp_path / "README").write_text("not data")
    found, parts = read(tmp_path, ONE)
    assert found.total == 2 and np.array_equal(joined(parts), X) and [part.rows for part in parts] == [4, 6]
    refused("a folder's files are its batches", tmp_path, ONE, batch=2)
    npz(tmp_path, "c.npz", x=X)
    refused(["c.npz", "no labels"], tmp_path, ONE)
    npz(tmp_path, "c.npz", z=X)
    with pytest.raises(InputError, match="no input 'z'"):
        data.batches(tmp_path, ONE)                                      # before anything is read
    (tmp_path / "empty").mkdir()
    refused("no .npz file", tmp_path / "empty", ONE)


def test_readers(tmp_path, monkeypatch):
    assert np.array_equal(joined(data.batches(Reader, ONE)), X)
    again = data.batches(Reader, ONE)
    assert len(list(again)) == len(list(again)) == 2 and again.total is None
    once = data.batches(Reader(), ONE)
    assert len(list(once)) == 2
    with pytest.raises(InputError, match="only once"):
        list(once)
    rewinding = data.batches(Rewinding(), ONE)
    assert len(list(rewinding)) == len(list(rewinding)) == 2
    labelled = data.batches(Reader([{"x": X, "labels": np.arange(10)}]), ONE)
    assert next(iter(labelled)).labels.tolist() == list(range(10))
    (tmp_path / "my_reader.py").write_text(
        "import numpy as np\nclass A:\n    class B:\n        left = 2\n        def get_next(self):\n"
        "            self.left -= 1\n"
        "            return {'x': np.zeros((2, 3), np.float32)} if self.left >= 0 else None\n"
        "ready = A.B()\ndef broken():\n    raise KeyError('gone')\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for name in ("A.B", "ready"):
        assert len(list(data.batches(f"my_reader:{name}", ONE))) == 2
    assert sys.path == path
    refused("KeyError", "my_reader:broken", ONE)
    refused("cannot load", "my_reader:nothing", ONE)
    refused("cannot load", "no_such_module:x", ONE)
    refused("without get_next()", "my_reader:A.B.left", ONE)


def test_what_readers_may_not_give():
    refused("gave a list", Reader([[X]]), ONE)
    refused("not one batch", Reader([]), ONE)
    refused("no data", Reader([{"x": X[:0]}]), ONE)
    refused("has no get_next()", lambda: 7, ONE)
    refused("batches of 2 rows", Reader, ONE, batch=2)
    refused(["batch 1", "'z'"], Reader([{"x": X}, {"z": X}]), ONE)
    refused("no number", Reader([{"x": np.array(["a"])}]), ONE)


def test_random():
    shapes = {"x": (F4, ["N", 3]), "mask": (np.dtype(bool), [2]), "ids": (I8, [None, 4]), "more": (F4, None)}
    found, parts = read("random", shapes, optional=["more"])
    assert found.total == len(parts) == 8 and "seed" in found.notes[0]
    assert {name: array.shape for name, array in parts[0].feeds.items()} == {
        "x": (1, 3), "mask": (2,), "ids": (1, 4)}
    assert all(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(parts, found))
    assert not np.array_equal(parts[0].feeds["x"], parts[1].feeds["x"])
    refused("'more'", "random", shapes)
    refused("random data has the shapes", "random", ONE, batch=3)


def test_labels_from_elsewhere(tmp_path):
    path = npz(tmp_path, x=X, labels=np.zeros(10), target=np.arange(10))
    np.save(tmp_path / "l.npy", np.arange(10))
    for labels in ("target", tmp_path / "l.npy", str(npz(tmp_path, "l.npz", y=np.arange(10))), np.arange(10)):
        source = path if isinstance(labels, str) and labels == "target" else npz(tmp_path, "x.npz", x=X)
        parts = list(data.batches(source, ONE, batch=4, labels=labels))
        assert np.concatenate([part.labels for part in parts]).tolist() == list(range(10)), labels
    refused("no array 'other'", path, ONE, labels="other")
    refused("'x' is an input", path, ONE, labels="x")
    refused("no file 'gone.npy'", path, ONE, labels="gone.npy")
    source = npz(tmp_path, "x.npz", x=X)
    refused("9 labels, and more rows", source, ONE, labels=np.arange(9))
    refused("11 labels, and 10 rows", source, ONE, labels=np.arange(11))
    refused("labels are the only array", source, ONE,
            labels=npz(tmp_path, "two.npz", a=np.arange(10), b=np.arange(10)))
    refused("each row has one label", npz(tmp_path, x=X, y=np.arange(9)), ONE)
    refused("say which", npz(tmp_path, x=X, y=np.arange(10), label=np.arange(10)), ONE)


def test_dtypes(tmp_path):
    for kind in (np.uint8, np.int64, np.float16, np.float64, ">f4", bool):
        found, (part,) = read(npz(tmp_path, x=X.astype(kind)), ONE)
        assert part.feeds["x"].dtype == F4 and np.array_equal(part.feeds["x"], X.astype(kind))
        assert found.notes == []
    found, (part,) = read(npz(tmp_path, x=X / 3.0), ONE)
    assert found.notes == [] and part.feeds["x"].dtype == F4             # float32 / 3.0 is float32
    tenth = X.astype(np.float64) + 0.1
    found, parts = read(npz(tmp_path, x=tenth), ONE, batch=2)
    assert found.notes == ["input 'x' came as float64 and was rounded to float32"]
    assert np.array_equal(joined(parts), tenth.astype(np.float32))


@pytest.mark.parametrize("array, dtype, word", [
    (np.array([1e39]), F4, "1e+39"), (np.array([2**24 + 1]), F4, "16777217"), (np.array([1.5]), I8, "1.5"),
    (np.array([-1]), np.dtype(np.uint64), "-1"),
    (np.array([2**64 - 1], np.uint64), I8, "18446744073709551615"),
    (np.array([2]), np.dtype(bool), "2"), (np.array([300]), np.dtype(np.uint8), "300"),
    (np.array([2.0**63]), I8, "9.2"), (np.array([2**63 - 1]), F4, "9223372036854775807"),
    (np.array([np.inf]), I8, "inf"), (np.array([0, np.nan]), F4, "NaN, first at (1,)")])
def test_values_that_a_dtype_does_not_hold(array, dtype, word):
    with pytest.raises(InputError, match="the input") as error:
        data.fit_dtype(array, dtype, "the input")
    assert word in str(error.value)


def test_infinity_stays():
    cast, rounded = data.fit_dtype(np.array([-np.inf, 1.0]), F4, "x")
    assert cast.tolist() == [-np.inf, 1.0] and not rounded


def test_files_that_do_not_fit(tmp_path):
    refused(["'z'", "its inputs are 'x'"], npz(tmp_path, x=X, z=X), ONE)
    refused(["no array for input 'ids'", "it has 'x'"], npz(tmp_path, x=X), TWO)
    refused(["(10, 4)", "(N, 3)"], npz(tmp_path, x=np.zeros((10, 4), F4)), ONE)
    refused(["(10,)", "(N, 3)"], npz(tmp_path, x=np.zeros(10, F4)), ONE)
    refused("NaN, first at (1, 2)", npz(tmp_path, x=np.where(X == 5, np.nan, X)), ONE)
    refused("holds no data", npz(tmp_path, x=X[:0]), ONE)
    refused("holds no numbers", npz(tmp_path, x=np.array(["a"])), ONE)
    refused("holds no numbers", npz(tmp_path, x=np.array([{}], dtype=object)), ONE)
    same = {"x": (F4, ["N", "T"]), "ids": (I8, ["N", "T"])}
    refused(["'ids'", "(10, 2)", "T=3"], npz(tmp_path, x=X, ids=IDS), same)
    refused("no tensor of numbers", npz(tmp_path, x=X), {"x": None})
    refused("at least 1", npz(tmp_path, x=X), ONE, batch=0)


def test_files_that_are_none(tmp_path):
    path = npz(tmp_path, x=X)
    content = path.read_bytes()
    refused("is no file", tmp_path / "gone.npz", ONE)
    refused("data comes as", "nothing", ONE)
    for name, words, text in (("a.npz", "cannot read arrays", content[:100]), ("a.npz", "cannot read", b""),
                              ("a.txt", "data comes as", b"x"), ("a.npy", "cannot read arrays", b"junk")):
        (tmp_path / name).write_bytes(text)
        refused(words, tmp_path / name, ONE)
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    refused("cut short", tmp_path / "x.npy", ONE)
    place = content.index(X.tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1:])       # the archive's checksum is wrong
    refused("CRC", path, ONE)


def test_headers_that_lie(tmp_path):
    np.save(tmp_path / "x.npy", X)
    good = (tmp_path / "x.npy").read_bytes()
    for shape in (b"(99999999999, 3)", b"(-1, 3)"):
        bad = good.replace(b"(10, 3)", shape)
        (tmp_path / "x.npy").write_bytes(bad[:8] + bytes([bad[8] + len(bad) - len(good)]) + bad[9:])
        refused("cut short", tmp_path / "x.npy", ONE)


def test_damaged_files_are_refused_or_read(tmp_path):
    path = npz(tmp_path, save=np.savez_compressed, x=X)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(content), 150):
        path.write_bytes(content[:place] + bytes([rng.integers(256)]) + content[place + 1:])
        try:
            read(path, ONE)
        except InputError:
            pass


def test_one_batch_in_memory(tmp_path):
    import tracemalloc
    path = npz(tmp_path, save=np.savez_compressed, x=np.zeros((400_000, 3), np.float32))      # 4.8 MB
    tracemalloc.start()
    for _ in data.batches(path, ONE, batch=1000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000

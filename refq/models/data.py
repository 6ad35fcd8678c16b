"""Calibration and evaluation data for a model: files of arrays, a reader, or random numbers, batch by batch.

One batch is in memory at a time: arrays of .npz and .npy files are read row by row from the disk, compressed
ones too (only those in Fortran order are read whole).
"""

import importlib
import inspect
import math
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from refq.errors import InputError
from refq.files import load_arrays

ROWS = 32                                # of a batch, where nobody says how many
LABELS = ("labels", "label", "y")        # arrays of these names are labels where the model has no such input
RANDOM, RANDOM_BATCHES, SEED = "random", 8, 20240229
READER = re.compile(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)")
KINDS = "an .npz or .npy file, a folder of .npz files, module:object with get_next(), or random"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, eq=False)
class Batch:
    """feeds: input name -> array of the model's dtype. labels: what came with them, unchanged, or None.
    rows: length of the first input's first axis, 1 where it has none."""

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    rows: int


class Batches:
    """Data for a model, an iterable of Batch made by `batches`; every loop over it reads the data again.

    source: in words. total: the number of batches, None where only reading tells. notes: what a report should
    say about the data; complete after a loop. Loops raise InputError for data that does not fit the model.
    """

    def __init__(self, source: str, read: Callable, total: int | None, fit: Callable, labels, notes=()):
        self.source, self.total, self.notes = source, total, list(notes)
        self._read, self._fit, self._labels = read, fit, labels

    def __iter__(self) -> Iterator[Batch]:
        taken = count = labelled = 0
        for count, (where, arrays) in enumerate(self._read(), 1):
            feeds, labels, notes = self._fit(where, arrays)
            self.notes += [note for note in notes if note not in self.notes]
            rows = next((len(array) for array in feeds.values() if array.ndim), 1)
            if self._labels is not None:
                labels = self._labels[taken:taken + rows]
                if len(labels) < rows:
                    raise InputError(self._miscounted("more"))
            labelled += labels is not None
            if labelled not in (0, count):
                raise InputError(f"{where} has {'no labels' if labels is None else 'labels'}, unlike "
                                 "what came before; all batches have labels, or none")
            taken += rows
            yield Batch(feeds, labels, rows)
        if not count:
            raise InputError(f"{self.source} holds no data: not one batch came")
        if self._labels is not None and taken < len(self._labels):
            raise InputError(self._miscounted(str(taken)))

    def _miscounted(self, rows: str) -> str:
        return (f"there are {len(self._labels)} labels, and {rows} rows of data in {self.source}; "
                "each row has one")


def batches(source, inputs, batch=None, labels=None, optional=()) -> Batches:
    """The data that a model is calibrated or compared on.

    source: an .npz file of arrays by input name, or an .npy file for a model of one input: the first axis
    counts samples, cut into batches of `batch` rows (default 32, or as many as the model fixes) where all
    inputs have the same number of them, else everything is one batch. A folder of .npz files: each is one
    batch, in the order of their names. "module:object", or an object: one with get_next(), which gives a dict
    of arrays by input name and then None, or what makes one when called without arguments. "random": 8
    batches of seeded random numbers, lengths that the model leaves open being 1.

    inputs: name -> (dtype, dims) as Engine.inputs has them. optional: names of those that may be left out.
    labels: None: the array labels, label or y that comes with the inputs, if one does; or the name of another
    array; or an .npy or .npz file; or an array: one entry along the first axis for every row of data.

    Floats are rounded to the model's float type, which is noted; every other change of dtype must keep every
    value. Raises InputError, here or while reading, for a missing or damaged file, a wrong name, dtype or
    shape, NaN, and for data of no rows.
    """
    if batch is not None and batch < 1:
        raise InputError(f"a batch of {batch} rows is none; it must be at least 1")
    labels = _label_source(labels, inputs)
    fit = _Fit(inputs, frozenset(optional), labels if isinstance(labels, str) else None)
    ready = None if isinstance(labels, str) else labels
    if not isinstance(source, (str, os.PathLike)):
        return Batches(type(source).__name__, *_from_reader(source, type(source).__name__, batch), fit, ready)
    name, path = str(source), Path(source)
    if path.is_dir():
        return Batches(name, *_from_folder(path, batch, fit), fit, ready)
    if path.is_file():
        if path.suffix.lower() not in (".npz", ".npy"):
            raise InputError(f"{name}: data comes as {KINDS}")
        return Batches(name, *_from_file(path, batch, fit), fit, ready)
    if name == RANDOM:
        note = (f"the data is random (seed {SEED}): this shows that the model runs, not how good its answers "
                "are")
        return Batches(name, *_from_random(inputs, optional, batch), fit, ready, [note])
    if match := READER.fullmatch(name):
        return Batches(name, *_from_reader(_imported(*match.groups()), name, batch), fit, ready)
    raise InputError(f"{name!r} is no file, folder or module:object; data comes as {KINDS}")


def fit_dtype(array: np.ndarray, dtype: np.dtype, what: str) -> tuple[np.ndarray, bool]:
    """(array in that dtype, whether a value was rounded): floats are rounded to nearest even, other values
    must not change. Raises InputError, beginning with `what`, for arrays of no numbers, for NaN, and for
    values that dtype does not hold.
    """
    real = _is_float(array.dtype)
    if not real and array.dtype.kind not in "iub" and "int" not in array.dtype.name:
        raise InputError(f"{what} is {array.dtype}, which is no number; the model takes {dtype}")
    if real and np.isnan(array).any():
        place = tuple(map(int, np.argwhere(np.isnan(array))[0]))
        raise InputError(f"{what} has NaN, first at {place}; data must be numbers")
    if array.dtype == dtype:
        return array, False
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        back = cast.astype(array.dtype)
        same = back == array
    if real and _is_float(dtype):
        lost = (np.isfinite(array) & ~np.isfinite(cast)) if not same.all() else ~same
    else:
        lost = ~same | ((cast < 0) != (array < 0))
        if real or _is_float(dtype):            # beyond 64 bits what a cast gives depends on the machine
            lost |= ~(np.abs((array if real else cast).astype(np.float64)) < 2.0 ** 63)
    if lost.any():
        raise InputError(f"{what} is {array.dtype} with the value {array[lost].flat[0]}, which {dtype}, the "
                         "model's type, does not hold")
    return cast, not same.all()


# -- one batch against the model -----------------------------------------------------------------------------

@dataclass(frozen=True)
class _Fit:
    """Makes feeds of arrays by name. label: the name of the array with labels, None for any of LABELS."""

    inputs: dict
    optional: frozenset[str]
    label: str | None

    def __call__(self, where: str, arrays: dict) -> tuple[dict, np.ndarray | None, list[str]]:
        label = self.names(where, arrays)
        feeds, notes, lengths = {}, [], {}
        for name in (name for name in self.inputs if name in arrays):
            dtype, dims = self.declared(name)
            what = f"{where}: input {name!r}"
            feeds[name], rounded = fit_dtype(np.asarray(arrays[name]), dtype, what)
            if rounded:
                came = np.asarray(arrays[name]).dtype
                notes.append(f"input {name!r} came as {came} and was rounded to {dtype}")
            self.shape(what, feeds[name].shape, dims, lengths)
            if feeds[name].shape[:1] == (0,):
                raise InputError(f"{what} has shape {feeds[name].shape}: no data")
        return feeds, None if label is None else np.asarray(arrays[label]), notes

    def names(self, where: str, names) -> str | None:
        """The name among them that is the labels', None when none is; the others must be the inputs."""
        wanted = ", ".join(map(repr, self.inputs))
        spare = [name for name in names if name not in self.inputs]
        label = [name for name in spare if name == self.label or self.label is None and name in LABELS]
        if self.label and not label:
            raise InputError(f"{where} has no array {self.label!r} for the labels; it has "
                             f"{', '.join(map(repr, names))}")
        if len(label) > 1:
            raise InputError(f"{where} has {' and '.join(map(repr, label))}; say which are the labels")
        for name in spare:
            if name not in label and name not in LABELS:
                raise InputError(f"{where}: the model has no input {name!r}; its inputs are {wanted}")
        for name in self.inputs:
            if name not in names and name not in self.optional:
                raise InputError(f"{where} has no array for input {name!r}; it has "
                                 f"{', '.join(map(repr, names)) or 'none'}, and the inputs are {wanted}")
        return label[0] if label else None

    def declared(self, name: str) -> tuple:
        """(dtype, dims) of an input."""
        if self.inputs[name] is None:
            raise InputError(f"input {name!r} is no tensor of numbers; data can be given for such only")
        return self.inputs[name]

    @staticmethod
    def shape(what: str, shape: tuple, dims, lengths: dict) -> None:
        """Refuse a shape that is not as declared; `lengths`: those of named dims, to which it adds."""
        if dims is None:
            return
        wanted = [lengths.setdefault(dim, have) if isinstance(dim, str) else dim
                  for dim, have in zip(dims, shape)]
        if len(dims) != len(shape) or any(want not in (None, have) for want, have in zip(wanted, shape)):
            words = ", ".join("any" if dim is None else f"{dim}={lengths[dim]}" if dim in lengths
                              else str(dim) for dim in dims)
            raise InputError(f"{what} has shape {shape}; the model takes ({words})")


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or "float" in dtype.name       # those of ml_dtypes are of kind V


def _label_source(labels, inputs):
    """What was said of labels: an array, the name of one, or None."""
    if labels is None or not isinstance(labels, (str, os.PathLike)):
        return None if labels is None else np.atleast_1d(labels)
    path = Path(labels)
    if path.is_file():
        arrays = load_arrays(path)
        names = [name for name in arrays if len(arrays) == 1 or name in LABELS]
        if len(names) != 1:
            raise InputError(f"{path} has the arrays {', '.join(map(repr, arrays))}; labels are the only "
                             f"array of a file, or the one called {', '.join(LABELS[:-1])} or {LABELS[-1]}")
        if not arrays[names[0]].ndim:
            raise InputError(f"{path} holds one number; labels are an array, an entry for every row")
        return arrays[names[0]]
    if str(labels) in inputs:
        raise InputError(f"{str(labels)!r} is an input of the model; labels are another array")
    if path.suffix.lower() in (".npz", ".npy"):
        raise InputError(f"there is no file {str(labels)!r} with labels")
    return str(labels)


# -- files ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Header:
    """What the file says of an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def _from_file(path: Path, batch, fit: _Fit):
    """(reader, number of batches) of an .npz or .npy file, checked as far as its headers tell."""
    single = next((name for name in fit.inputs if name not in fit.optional), next(iter(fit.inputs), ""))
    with ExitStack() as stack:
        headers = {name: header for name, (header, _) in _opened(path, single, stack).items()}
    if path.suffix.lower() == ".npy" and len(set(fit.inputs) - fit.optional) > 1:
        raise InputError(f"{path} is one array, and the model has the inputs "
                         f"{', '.join(map(repr, fit.inputs))}; give an .npz file of arrays by these names")
    label = fit.names(str(path), headers)
    shapes = {name: header.shape for name, header in headers.items() if name in fit.inputs}
    size, rows = _cut(path, shapes, fit, batch)
    for name, shape in shapes.items():
        dims = fit.declared(name)[1]
        whole = dims if size is None or not dims else [None, *dims[1:]]
        if dims is not None and (len(whole) != len(shape) or any(
                isinstance(want, int) and want != have for want, have in zip(whole, shape))):
            raise InputError(f"{path}: input {name!r} has shape {shape}; the model takes "
                             f"({', '.join('any' if dim is None else str(dim) for dim in dims)})")
    if label is not None and size is not None and headers[label].shape[:1] != (rows,):
        raise InputError(f"{path}: {label!r} has shape {headers[label].shape}, and the inputs have {rows} "
                         "rows; each row has one label")
    kept = [*shapes, *([label] if label is not None else [])]

    def read():
        with ExitStack() as stack:
            opened = _opened(path, single, stack)
            pieces = {name: _pieces(path, name, *opened[name], size) for name in kept}
            for number, parts in enumerate(zip(*pieces.values())):
                where = str(path) if size is None else f"{path}, rows from {number * size}"
                yield where, dict(zip(pieces, parts))
    return read, 1 if size is None else -(-rows // size)


def _from_folder(folder: Path, batch, fit: _Fit):
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".npz")
    if not paths:
        raise InputError(f"the folder {folder} has no .npz file; each is one batch")
    _no_batch(batch, "a folder's files are its batches")
    for path in paths:                       # names first: an error after an hour would be a pity
        with ExitStack() as stack:
            fit.names(str(path), _opened(path, "", stack))

    def read():
        for path in paths:
            with ExitStack() as stack:
                opened = _opened(path, "", stack)
                arrays = {name: next(_pieces(path, name, *found, None)) for name, found in opened.items()}
            yield str(path), arrays
    return read, len(paths)


def _cut(path: Path, shapes: dict, fit: _Fit, batch) -> tuple[int | None, int]:
    """(rows of a batch, rows in all); None where everything is one batch."""
    lengths = {shape[:1] for shape in shapes.values()}
    if (0,) in lengths:
        raise InputError(f"{path} holds no data: the shapes are {shapes}")
    dims = {name: fit.declared(name)[1] for name in shapes}
    fixed = {dim[0] for dim in dims.values() if dim and isinstance(dim[0], int) and dim[0] > 0}
    if len(lengths) != 1 or () in lengths or len(fixed) > 1:
        return None, 1
    (rows,), size = lengths.pop(), fixed.pop() if fixed else None
    if size is None:
        return batch or ROWS, rows
    if batch not in (None, size):
        raise InputError(f"batches of {batch} rows: the model takes {size} at a time")
    if rows % size:
        raise InputError(f"{path} has {rows} rows, and the model takes {size} at a time; give a multiple")
    return size, rows


def _opened(path: Path, single: str, stack: ExitStack) -> dict:
    """Name -> (header, file that stands at the data) of the arrays of a file; an .npy file's is `single`."""
    try:
        if path.suffix.lower() == ".npy":
            files = {single: (stack.enter_context(open(path, "rb")), path.stat().st_size)}
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            files = {entry.filename.removesuffix(".npy"): (stack.enter_context(archive.open(entry)),
                                                           entry.file_size) for entry in archive.infolist()}
        return {name: (_header(path, name, *found), found[0]) for name, found in files.items()}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError, TokenError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read arrays from {path}: {error}") from None


def _header(path: Path, name: str, file, size: int) -> _Header:
    """The header of an array in a file of `size` bytes."""
    read = HEADERS.get(np.lib.format.read_magic(file))
    if read is None:
        raise InputError(f"{path}: array {name!r} is of no version of .npy that refq reads")
    header = _Header(*read(file))
    if header.dtype.kind not in "fiub":
        raise InputError(f"{path}: array {name!r} of dtype {header.dtype} holds no numbers")
    if min(header.shape, default=0) < 0 or math.prod(header.shape) * header.dtype.itemsize > size:
        raise InputError(f"{path}: array {name!r} of shape {header.shape} is cut short")
    return header


def _pieces(path: Path, name: str, header: _Header, file, size: int | None) -> Iterator[np.ndarray]:
    """The array in parts of `size` rows, or whole."""
    total = header.shape[0] if header.shape else 1
    step, row = (total, header.shape) if size is None else (size, header.shape[1:])
    if size is None or header.fortran:
        whole = _numbers(path, name, file, header.dtype, math.prod(header.shape), True)
        whole = whole.reshape(header.shape, order="F" if header.fortran else "C")
        if size is None:
            yield whole
            return
        yield from (whole[start:start + size] for start in range(0, total, size))
        return
    for start in range(0, total, step):
        rows = min(step, total - start)
        values = _numbers(path, name, file, header.dtype, rows * math.prod(row), start + rows == total)
        yield values.reshape(rows, *row)


def _numbers(path: Path, name: str, file, dtype: np.dtype, count: int, last: bool) -> np.ndarray:
    """The next `count` numbers of a file; `last`: to its end, where an archive knows its checksum."""
    try:
        data = file.read(count * dtype.itemsize)
        if last:
            file.read(1)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read array {name!r} from {path}: {error}") from None
    if len(data) < count * dtype.itemsize:
        raise InputError(f"{path}: array {name!r} is cut short")
    return np.frombuffer(data, dtype, count)


# -- readers and random numbers ------------------------------------------------------------------------------

def _imported(module: str, name: str):
    """The object that module:object names; modules of the working directory are found, too."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot load {module}:{name}: {error}") from None
    finally:
        sys.path.remove(here)


def _from_reader(found, name: str, batch):
    _no_batch(batch, "a reader's answers are its batches")
    makes = inspect.isclass(found) or not hasattr(found, "get_next")
    if makes and not callable(found):
        raise InputError(f"{name} is a {type(found).__name__} without get_next(); data comes as {KINDS}")
    used = []

    def read():
        reader = _called(found, name) if makes else found
        if not hasattr(reader, "get_next"):
            raise InputError(f"{name} made a {type(reader).__name__}, which has no get_next()")
        if used and not makes:
            if not hasattr(reader, "rewind"):
                raise InputError(f"{name} can be read only once; give what makes it (a class or function "
                                 "without arguments), or give it a method rewind()")
            reader.rewind()
        used.append(True)
        number = 0
        while (arrays := _called(reader.get_next, f"{name}: get_next()")) is not None:
            if not isinstance(arrays, dict):
                raise InputError(f"{name}: get_next() gave a {type(arrays).__name__}; it gives a dict of "
                                 "arrays by input name, and None at the end")
            yield f"{name}, batch {number}", arrays
            number += 1
    return read, None


def _called(function, what: str):
    """What it returns; whatever somebody else's code raises becomes an InputError."""
    try:
        return function()
    except Exception as error:
        words = " ".join(str(error).split())
        raise InputError(f"{what} failed: {type(error).__name__}: {words}") from error


def _from_random(inputs, optional, batch):
    _no_batch(batch, "random data has the shapes that the model declares")
    needed = {name: declared for name, declared in inputs.items() if name not in optional}
    for name, declared in needed.items():
        if declared is None or declared[1] is None:
            raise InputError(f"input {name!r} is not declared as a tensor of numbers with a shape, so that "
                             "no random data can be made; give data")

    def read():
        for number in range(RANDOM_BATCHES):
            rng = np.random.default_rng([SEED, number])
            drawn = {name: _drawn(rng, *declared) for name, declared in needed.items()}
            yield f"random batch {number}", drawn
    return read, RANDOM_BATCHES


def _drawn(rng, dtype: np.dtype, dims) -> np.ndarray:
    """Normal floats; whole numbers are 0 or 1, which every table of two rows has."""
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in dims)
    drawn = rng.standard_normal(shape) if _is_float(dtype) else rng.integers(0, 2, shape)
    return np.asarray(drawn).astype(dtype)


def _no_batch(batch, why: str) -> None:
    if batch is not None:
        raise InputError(f"batches of {batch} rows: {why}")

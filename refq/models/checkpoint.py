"""What a run has finished, kept in a folder beside its output until all is done, so that it can go on.

Every finished weight is one file, written to a temporary name and renamed. A fingerprint of the model, the
data, the settings and the libraries says what the run was; another run may not go on with it.
"""

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx

from refq.blocks.quantize import Quantized
from refq.errors import InputError
from refq.files import write_whole
from refq.models import files
from refq.models.solve import FIELDS, Coded, Errors
from refq.version import __version__

SUFFIX = ".refq-resume"
SETTINGS = "run.json"
NUMBERS = ("rows", "held", "seconds")


class Checkpoint:
    """The folder of one run.

    output: the model to be written. resume: whether to go on with a run that was interrupted. Raises
    InputError where there is one that finished a weight and resume is not said, and where there is none and
    it is. Without the record of its settings a folder holds no run: what else is in it is left from one that
    was over.
    """

    def __init__(self, output, resume: bool):
        self.folder, self.resume = Path(f"{output}{SUFFIX}"), resume
        self.record = self.folder / SETTINGS
        if not resume and self.record.is_file() and self._finished():
            raise InputError(f"{str(self.folder)!r} holds an unfinished run for this output; go on with it "
                             "by --resume, or remove the folder to begin anew")
        if resume and not self.record.is_file():
            raise InputError(f"there is nothing to resume: {str(self.folder)!r} holds no unfinished run")

    def begin(self, facts: dict[str, str]) -> None:
        """facts: name -> text of everything that decides the result. Raises InputError where the run to go on
        with had others, naming them."""
        if self.resume:
            _require_same(json.loads(self.record.read_text(encoding="utf-8")), facts, self.folder)
            return
        self.folder.mkdir(exist_ok=True)
        for path in self._finished():
            path.unlink()
        write_whole(self.record, json.dumps(facts, indent=1))

    def done(self) -> None:
        """The output is written: the folder is needed no more."""
        self.record.unlink()                # first, lest what is left by a kill be taken for another run's
        shutil.rmtree(self.folder)

    def _finished(self) -> list[Path]:
        return [*self.folder.glob("[0-9]*.npz")]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def save(self, number: int, coded: Coded) -> None:
        """Keep a finished weight. number: its place among the run's weights."""
        arrays = {name: array for name in FIELDS if (array := getattr(coded.q, name)) is not None}
        arrays |= {f"offsets{level}": array for level, array in enumerate(coded.q.offsets)}
        facts = {"errors": asdict(coded.errors)} | {name: getattr(coded, name) for name in NUMBERS}
        with io.BytesIO() as file:
            np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
            write_whole(self._path(number), file.getvalue())

    def load(self, number: int, direct: Quantized) -> Coded | None:
        """A weight that was finished, None for one that was not, or whose file a crash of the system cut
        short. direct: its direct cast."""
        try:
            with open(self._path(number), "rb") as file, np.load(file) as arrays:
                facts = json.loads(arrays["facts"].tobytes())
                fields = {name: arrays[name] for name in FIELDS if name in arrays}
                offsets = tuple(arrays[f"offsets{level}"] for level in range(len(direct.offsets)))
        except (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            return None
        q = replace(direct, offsets=offsets, **fields)
        return Coded(q, Errors(**facts.pop("errors")), **facts)


def _require_same(before: dict, now: dict, folder: Path) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        words = "; ".join(f"{name} was {before.get(name)}, now {now[name]}" for name in changed)
        raise InputError(f"{str(folder)!r} is of another run, which cannot be gone on with: {words}. Call "
                         "again as before, or remove the folder to begin anew")


def facts_of(source: files.Source, digest: str, settings: dict[str, str]) -> dict[str, str]:
    """What decides the result of a run. digest: of its data. settings: as they are told in a difference."""
    versions = {"refq": __version__, "numpy": np.__version__, "onnx": onnx.__version__}
    if settings["engine"] == "onnxruntime":
        import onnxruntime
        versions["onnxruntime"] = onnxruntime.__version__
    return {"model": _of_model(source), "data": digest, **settings,
            **{f"{name} version": version for name, version in versions.items()}}


def _of_model(source: files.Source) -> str:
    """The model's own bytes and those of its data files."""
    found = hashlib.sha256(source.model.SerializeToString(deterministic=True))
    for path in files.data_paths(source):
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                found.update(piece)
    return found.hexdigest()

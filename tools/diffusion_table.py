"""Error diffusion on real models: output errors layer by layer and what the models answer, as a page.

    python tools/diffusion_table.py -o spec/results.md
    python tools/diffusion_table.py --models glassllm --dtypes mxfp4,int4 --methods rtn,ed

Each cell of the tables is one call of refq.quantize_model, and is kept as JSON in the work folder: an
interrupted run continues where it stopped. Cells of another state of the sources are made anew. Models and
data are those of tools/real_models.py. Exit code 1 if a claim does not hold.
"""

import argparse
import hashlib
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import real_models  # noqa: E402
import refq  # noqa: E402

DTYPES = ("mxfp8", "mxfp4", "nvfp4", "int4", "int3_binary16_t32", "b4int3")
METHODS = ("rtn", "ed", "gptq", "qronos")
SOURCES = [*sorted((ROOT / "refq").rglob("*.py")), ROOT / "tools" / "real_models.py", real_models.TEXT]
VARIANTS = ("glassllm_tied",)   # models whose layers are those of another, and not counted twice
BELOW = 6                   # bits: claims are of data types with fewer
LEAST_SHARE = 0.95          # of layers on which ed must do better than direct cast
# On glassllm, of ed and of the best method: the median ratio of output errors as lengths, not squares
CLAIMED = {"mxfp4": (0.86, 0.79), "int4": (0.86, 0.79)}
NOISE = 2.0                 # standard errors by which two losses must differ to differ at all


@dataclass(frozen=True)
class Layer:
    """Output errors of one layer, sums of squares on rows held back: of direct cast, of the method, of what
    was kept; the quantised stream in front of it is the same for all three."""

    name: str
    kept: str
    rtn: float
    asked: float
    error: float

    @property
    def ratio(self) -> float:
        """The method's error over that of direct cast."""
        return self.asked / self.rtn if self.rtn else 1.0 if not self.asked else math.inf


@dataclass(frozen=True)
class Cell:
    """One model in one data type by one method. loss, rows: as in real_models.Score. seconds: to quantise."""

    model: str
    dtype: str
    method: str
    bits: float
    seconds: float
    layers: tuple[Layer, ...]
    loss: tuple[float, ...]
    rows: tuple[int, ...]
    figures: dict[str, float]

    @cached_property
    def ratios(self) -> list[float]:
        return [layer.ratio for layer in self.layers]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def geometric(self) -> float:
        return math.exp(statistics.fmean(math.log(max(ratio, 1e-300)) for ratio in self.ratios))

    @property
    def better(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.asked < layer.rtn]

    @classmethod
    def of(cls, facts: dict) -> "Cell":
        layers = tuple(Layer(**layer) for layer in facts["layers"])
        return cls(**facts | {"layers": layers, "loss": tuple(facts["loss"]), "rows": tuple(facts["rows"])})


@dataclass
class Results:
    """All cells of a run. floats: model name -> Score of the float model."""

    models: dict[str, real_models.RealModel]
    floats: dict[str, real_models.Score]
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)

    def of(self, model: str, dtype: str) -> list[Cell]:
        return [cell for key, cell in self.cells.items() if key[:2] == (model, dtype)]


# -- measuring -----------------------------------------------------------------------------------------------

def measure(real, dtype: str, method: str, reference) -> Cell:
    """Quantise a model and judge its answers. reference: the float model's."""
    real.calibration.rewind()
    began = time.perf_counter()
    report = refq.quantize_model(real.model, None, dtype=dtype, method=method, calibration=real.calibration,
                                 keep_float=real.keep_float, export="float", workers=1, progress=False)
    seconds = time.perf_counter() - began
    score = real.score(real.outputs(report.model), reference)
    return Cell(real.name, dtype, method, report.average_bits, seconds, layers(report),
                tuple(map(float, score.loss)), tuple(map(int, score.rows)), score.figures)


def layers(report) -> tuple[Layer, ...]:
    """The layers of a report whose output errors were measured; of those that share a weight the first."""
    return tuple(Layer(row.title, row.method, row.errors.rtn_error, row.errors.asked_error,
                       row.errors.error) for row in report.weights if row.errors is not None)


def difference(cell: Cell, other: Cell) -> tuple[float, float]:
    """(by how much the mean loss of `cell` is above that of `other`, standard error of that): both saw the
    same images, sequences or recordings, which are taken as drawn at random."""
    rows = np.array(cell.rows, np.float64)
    apart = np.array(cell.loss) - np.array(other.loss)
    mean = float(apart @ rows / rows.sum())
    count = len(rows)
    spread = float(np.sum((rows * (apart - mean)) ** 2)) * count / max(count - 1, 1)
    return mean, math.sqrt(spread) / float(rows.sum())


def run(options) -> Results:
    """Every cell asked for, from the work folder where it is there."""
    models = {name: real_models.load(name, options.wheel, options.work) for name in options.models}
    references = {name: real.outputs(real.model) for name, real in models.items()}
    results = Results(models, {name: real.score(references[name], references[name])
                               for name, real in models.items()})
    asked = [(name, dtype, method) for name in models for dtype in options.dtypes
             for method in options.methods]
    state = digest(SOURCES)
    bar = tqdm(asked, unit="cell", disable=None)
    for name, dtype, method in bar:
        bar.set_postfix_str(f"{name} {dtype} {method}")
        path = options.work / name / f"{dtype}-{method}.json"
        cell = stored(path, None if options.keep else state)
        if cell is None:
            cell = measure(models[name], dtype, method, references[name])
            store(path, state, cell)
        results.cells[name, dtype, method] = cell
    return results


def stored(path: Path, state: str | None) -> Cell | None:
    """The cell in a file; None where there is none of this state of the sources (None: of any)."""
    if not path.exists():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    return Cell.of(facts["cell"]) if state in (None, facts["sources"]) else None


def store(path: Path, state: str, cell: Cell) -> None:
    """Write a cell as a whole, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"sources": state, "cell": asdict(cell)}, indent=1), encoding="utf-8")
    os.replace(part, path)


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files."""
    found = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        found.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return found.hexdigest()


# -- claims --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Claim:
    """words: what is claimed. met: None: not measured. figures: what it rests on, line by line."""

    words: str
    met: bool | None
    figures: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return {True: "PASS", False: "FAIL", None: "not measured"}[self.met]


def claims(results: Results) -> list[Claim]:
    """Every claim on the cells that there are."""
    return [more_layers(results), *ratios(results), never_worse(results), within_noise(results)]


def claim(words: str, lines: list[tuple[bool, str]]) -> Claim:
    """A claim that holds where every line does."""
    return Claim(words, all(held for held, _ in lines) if lines else None,
                 tuple(text if held else f"{text} **FAIL**" for held, text in lines))


def more_layers(results: Results) -> Claim:
    lines = []
    for dtype in dict.fromkeys(dtype for _, dtype, _ in results.cells):
        cells = [cell for key, cell in results.cells.items()
                 if key[1:] == (dtype, "ed") and key[0] not in VARIANTS]
        if cells and cells[0].bits < BELOW:
            lines.append(share_of_layers(dtype, cells))
    return claim(f"`ed` has less output error than `rtn` on at least {100 * LEAST_SHARE:.0f} % of layers at "
                 f"every data type below {BELOW} bits.", lines)


def share_of_layers(dtype: str, cells: list[Cell]) -> tuple[bool, str]:
    """A line on how many layers a method does better on than direct cast, in all models."""
    count, better = sum(len(cell.layers) for cell in cells), sum(len(cell.better) for cell in cells)
    each = ", ".join(f"{cell.model} {len(cell.better)} of {len(cell.layers)}" for cell in cells)
    worse = [f"{cell.model} {layer.name} {layer.ratio:.2f}"
             for cell in cells for layer in cell.layers if layer not in cell.better]
    text = f"{dtype}: {100 * better / count:.0f} % ({each})"
    return better >= LEAST_SHARE * count, text + "; not " * bool(worse) + ", ".join(worse)


def ratios(results: Results) -> list[Claim]:
    ed, best = [], []
    for dtype, (most, most_of_best) in CLAIMED.items():
        cells = {cell.method: cell for cell in results.of("glassllm", dtype)}
        if "ed" in cells:
            ed.append(at_most(dtype, cells["ed"], most))
        if leader := best_of(cells.values()):
            best.append(at_most(dtype, leader, most_of_best))
    return [claim("`ed` on `glassllm`: the median over layers of the output error over that of `rtn`, both "
                  "as lengths, not squares.", ed),
            claim("The same of the best method there.", best)]


def at_most(dtype: str, cell: Cell, most: float) -> tuple[bool, str]:
    """A line of a claim on a median ratio of lengths."""
    root = math.sqrt(cell.median)
    text = f"{dtype}: `{cell.method}` {root:.3f} (claimed: {most:.2f}; square {cell.median:.3f})"
    return root <= most, text


def never_worse(results: Results) -> Claim:
    lines = []
    for model in results.models:
        cells = [cell for key, cell in results.cells.items() if key[0] == model and cell.method != "rtn"]
        kept = [(layer.error / layer.rtn if layer.rtn else float(layer.error > 0), layer, cell)
                for cell in cells for layer in cell.layers]
        if kept:
            ratio, layer, cell = max(kept, key=lambda found: found[0])
            direct = sum(layer.asked > layer.rtn for _, layer, _ in kept)
            lines.append((ratio <= 1, f"{model}: at most {ratio:.3f} ({layer.name}, {cell.dtype}, "
                                      f"`{cell.method}`); the method was worse on {direct} of {len(kept)}"))
    return claim("On no layer is the output error of what was kept above that of direct cast, by any method.",
                 lines)


def within_noise(results: Results) -> Claim:
    lines = []
    for model in results.models:
        found = []
        for dtype in dict.fromkeys(key[1] for key in results.cells if key[0] == model):
            cells = {cell.method: cell for cell in results.of(model, dtype)}
            leader = best_of(cells.values())
            if leader and "rtn" in cells:
                found.append((*difference(leader, cells["rtn"]), leader))
        if found:
            apart, error, leader = max(found, key=lambda one: one[0] / one[1] if one[1] else one[0])
            better = sum(apart < -NOISE * error for apart, error, _ in found)
            lines.append((apart <= NOISE * error,
                          f"{model}: {results.floats[model].measure} at worst {with_error(apart, error)} "
                          f"({leader.dtype}, `{leader.method}`); better by more than noise at {better} of "
                          f"{len(found)} data types"))
    return claim("The best method, the one of the lowest median output error, is never worse than `rtn` in "
                 f"what the model answers by more than noise: {NOISE:g} standard errors of the paired "
                 "difference.", lines)


def best_of(cells: Iterable[Cell]) -> Cell | None:
    """Of the methods that look at inputs the one of the lowest median ratio."""
    return min((cell for cell in cells if cell.method != "rtn" and cell.layers), key=lambda cell: cell.median,
               default=None)


# -- the page ------------------------------------------------------------------------------------------------

HEAD = """\
# Error diffusion on real models

Generated by `{command}`; do not edit. refq {version}, numpy {numpy}.
One thread; all but the seconds repeats.

Every line is one call of `refq.quantize_model`. **Output error**: of each layer ‖X Wᵀ − X̂ Q̂ᵀ‖² on
calibration rows that were held back, over that of direct cast (`rtn`) there; X̂ is what the layer meets
behind the layers that this line's method has quantised already, the same for both. *Median* and *geometric
mean* are over layers; *better*: layers on which the method has less than direct cast; elsewhere direct cast
is kept. The number after ± is the standard error of the difference to `rtn`, paired over
{units}. Bold: the lowest of its data type.

How models and data are made: `tools/real_models.py`. No model is judged on what it was calibrated on, but
`glassllm` has been trained on its text. The rows held back choose between a method and direct cast, so that on
them what is kept cannot be worse; what the models answer is measured on other data.
"""


def page(results: Results, command: str) -> str:
    """The results as Markdown."""
    units = ", ".join(dict.fromkeys(f"{real.unit}s" for real in results.models.values()))
    parts = [HEAD.format(command=command, version=refq.__version__, numpy=np.__version__, units=units)]
    parts.append("## Claims\n\n" + "\n".join(map(claim_lines, claims(results))))
    parts += [section(results, real) for real in results.models.values()]
    return "\n".join(parts)


def claim_lines(found: Claim) -> str:
    return "\n".join([f"**{found.verdict}** {found.words}\n", *(f"- {line}" for line in found.figures), ""])


FIGURES = {"nll": ("NLL", "{:.4f}"), "perplexity": ("perplexity", "{:.2f}"), "top1": ("top-1", "{:.4f}"),
           "rmse": ("RMSE", "{:.4f}")}


def section(results: Results, real) -> str:
    """The table of one model."""
    score = results.floats[real.name]
    names = list(score.figures)
    head = ["data type", "method", "median", "geo. mean", "better", *(FIGURES[name][0] for name in names),
            f"{score.measure} − `rtn`'s", "s"]
    lines = [head, ["---"] * 2 + ["--:"] * (len(head) - 2),
             ["float", "", "", "", "", *figures(score.figures, names), "", ""]]
    for dtype in dict.fromkeys(key[1] for key in results.cells if key[0] == real.name):
        lines += group(results.of(real.name, dtype), names)
    rows = f"{score.rows.sum():,} rows" if real.labels is None else f"{score.rows.sum():,} labels"
    title = f"## {real.name}\n\n{real.title}; judged on {len(score.rows):,} {real.unit}s, {rows}.\n"
    return "\n".join([title, *("| " + " | ".join(line) + " |" for line in lines), ""])


def group(cells: list[Cell], names: list[str]) -> list[list[str]]:
    """The lines of one data type; the lowest median and the lowest loss are bold."""
    direct = next((cell for cell in cells if cell.method == "rtn"), None)
    leader, surest = best_of(cells), min(cells, key=lambda cell: np.dot(cell.loss, cell.rows))
    lines = []
    for cell in cells:
        measured = ["1", "1", ""] if cell.method == "rtn" or not cell.layers else [
            bold(f"{cell.median:.3f}", cell is leader), f"{cell.geometric:.3f}",
            f"{len(cell.better)}/{len(cell.layers)}"]
        apart = "" if direct in (None, cell) else with_error(*difference(cell, direct))
        shown = figures(cell.figures, names)
        shown[0] = bold(shown[0], cell is surest)
        lines.append([cell.dtype, f"`{cell.method}`", *measured, *shown, apart, f"{cell.seconds:.1f}"])
    return lines


def figures(found: dict[str, float], names: list[str]) -> list[str]:
    return [FIGURES[name][1].format(found[name]) for name in names]


def with_error(mean: float, error: float) -> str:
    """Both with two digits of the error."""
    digits = 1 - math.floor(math.log10(error)) if error else 2
    return f"{mean:+.{max(digits, 0)}f} ± {error:.{max(digits, 0)}f}"


def bold(words: str, wanted: bool) -> str:
    return f"**{words}**" if wanted else words


# -- the command ---------------------------------------------------------------------------------------------

def listed(known):
    """An argparse type: names between commas, of those known if any are."""
    def parse(words: str) -> tuple[str, ...]:
        names = tuple(filter(None, words.split(",")))
        for name in names:
            if known and name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known; there are {', '.join(known)}")
        return names
    return parse


def arguments(argv):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--models", type=listed(real_models.MODELS), default=real_models.MODELS, help="names between commas")
    add("--dtypes", type=listed(()), default=DTYPES, help=f"data types (default {','.join(DTYPES)})")
    add("--methods", type=listed(METHODS), default=METHODS, help=f"of {','.join(METHODS)} (default all)")
    add("--wheel", type=Path, help="silero-vad's wheel; else pip fetches it into the work folder")
    add("--work", type=Path, default=ROOT / "build" / "diffusion_table",
        help="folder for cells (default build/diffusion_table)")
    add("--keep", action="store_true", help="take cells that other sources made, too")
    add("-o", "--output", type=Path, help="the page to write")
    return options.parse_args(argv)


def main(argv=None) -> int:
    """Exit code 0; 1 when a claim does not hold; 2 for bad input."""
    options = arguments(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        results = run(options)
    except (refq.InputError, ImportError) as error:
        print(f"diffusion_table: {error}", file=sys.stderr)
        return 2
    kept = {"--models": (options.models, real_models.MODELS), "--dtypes": (options.dtypes, DTYPES),
            "--methods": (options.methods, METHODS)}
    command = ["python", "tools/diffusion_table.py"]
    for name, (asked, default) in kept.items():
        command += [name, ",".join(asked)] if asked != default else []
    if options.output:
        path = options.output.resolve()
        command += ["-o", str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name]
    text = page(results, shlex.join(command))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    found = claims(results)
    print("\n".join(map(claim_lines, found)) if options.output else text)
    return 1 if any(each.met is False for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())

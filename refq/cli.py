"""The command line. Thin: every command calls one room of the house.

Exit codes: 0 done (`check`: pass, `diff`: the same), 1 the device or recipe differs, 2 bad input or usage,
3 not a run, 130 interrupted, 141 nobody read the output.
"""

import argparse
import json
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import refq
from refq.errors import InputError
from refq.files import load_arrays, write_whole
from refq.formats import show, table
from refq.formats.policies import OVERFLOWS, ROUNDINGS

DIFFERENT, BAD_INPUT, INTERRUPTED, UNREAD = 1, 2, 130, 141        # the last two as shells report signals
NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)
HUGE = re.compile(r"[ep][+-]?\d{5,}", re.IGNORECASE)     # exponents that would cost memory and minutes
CODE = re.compile("0x[0-9a-f]+(_[0-9a-f]+)*|0b[01]+(_[01]+)*", re.IGNORECASE)


def main(argv=None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(_operands_last(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):              # a terminal that knows no "…" still gets its answer
            stream.reconfigure(errors="backslashreplace")
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"refq: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:                             # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD                                   # never 0: a verdict nobody saw is no pass
    except UnicodeDecodeError:
        print("refq: the input is not text", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"refq: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("refq: interrupted; no file was left half written"
              + ("; --resume goes on from the last finished layer" if getattr(options, "calibration", None)
                 else ""), file=sys.stderr)
        return INTERRUPTED


def _operands_last(words: list[str]) -> list[str]:
    """`show` takes values such as -1/3 and -inf: behind `--` argparse does not take them for options."""
    if words[:1] != ["show"] or "--" in words:
        return words
    options, operands, rest = [], [], iter(words[1:])
    for word in rest:
        if not word.startswith("-") or word == "-" or NEGATIVE.match(word):
            operands.append(word)
        else:
            takes = "=" not in word and word not in ("-h", "--help")
            options += [word, *([value] if takes and (value := next(rest, None)) is not None else [])]
    return ["show", *options, "--", *operands]


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="refq", description="Bit-exact reference for low-precision number formats.",
        epilog="Exit codes: 0 done, 1 a device or recipe differs, 2 bad input, 3 not a run, 130 interrupted, "
               "141 nobody read the output.")
    top.add_argument("--version", action="version", version=f"refq {refq.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (build, run, words) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        command.set_defaults(run=run)
        build(command)
    return top


# -- formats, show, plot -------------------------------------------------------------------------------------

def _build_formats(command):
    add = command.add_argument
    add("name", nargs="*", help="formats, data types, GGUF types to describe in full (default: list all)")
    add("--json", action="store_true", help="as JSON")


def _formats(options) -> None:
    from refq.blocks import table as blocks
    if options.name:
        described = [_described(name) for name in options.name]
        text = "\n\n".join(_pairs(facts.items(), 14) for facts in described)
        print(_json(described) if options.json else text)
    elif options.json:
        print(_json({"formats": table.as_dicts(), **blocks.as_dicts()}))
    else:
        print(f"{table.text()}\n\n{blocks.text()}")


def _described(name: str) -> dict:
    from refq.blocks import anatomy
    from refq.blocks import table as blocks
    if row := _number_format(name):
        return dict(zip(table.HEAD, table.facts(row))) | {"also": ", ".join(row.aka)}
    kind = anatomy.block_kind(name)
    return blocks.data_type_facts(kind) if anatomy.is_data_type(kind) else blocks.gguf_facts(kind)


def _number_format(name: str):
    """The row of a number format, None for a name that is none."""
    try:
        return refq.number_format(name)
    except InputError:
        return None


def _build_show(command):
    add = command.add_argument
    add("format", help="a number format, e.g. e4m3fn, a data type, e.g. mxfp4, or a GGUF type, e.g. q4_k")
    add("code_or_value", nargs="*",
        help="of a number format: a code such as 0x7e, or a value such as 464, -0, 1/3, 0x1.dp+8, inf, nan; "
             "of a data type: values that become one block; none: a drawing of the bits of a block")
    add("--round", metavar="RULE", help=f"{', '.join(ROUNDINGS)} (default rne; of a data type its recipe's)")
    add("--overflow", metavar="RULE", help=f"of a number format: {', '.join(OVERFLOWS)} (default sat)")
    add("--recipe", help="of a data type: the recipe (default its own)")
    add("--source", default="binary32", help="format the values come from (default binary32)")
    add("--random-bits", type=_integer, help="the random operand of a stochastic rounding")
    add("--random-width", type=int, help="its number of bits")


def _integer(text: str) -> int:
    return int(text, 0)


def _show(options) -> None:
    """One operand of a number format is a number of it; several, or those of a data type, are a block."""
    row, texts = _number_format(options.format), options.code_or_value
    if row and len(texts) == 1:
        _show_number(options, row, texts[0])
    elif texts:
        _show_values(options, texts)
    else:
        _show_layout(options)


def _show_number(options, row, text: str) -> None:
    if options.recipe:
        raise InputError(f"{row.name} is a number format and takes no recipe; data types do")
    if CODE.fullmatch(text):
        lines = show.show_code(row, int(text, 0))
    else:
        source = refq.number_format(options.source)
        code, notes = show.source_code(source, _value(text))
        cast = show.show_cast(source, code, row, options.round or "rne", options.overflow or "sat",
                              options.random_bits, options.random_width)
        result = [(f"result {label}", words) for label, words in show.show_code(row, cast.code)[1:]]
        lines = [*notes, *cast.steps, *result]
    print(_pairs(lines, 20))


def _show_values(options, texts: list[str]) -> None:
    from refq.blocks import anatomy, one_block
    kind = anatomy.block_kind(options.format)
    if codes := [text for text in texts if CODE.fullmatch(text)]:
        raise InputError(f"{codes[0]} is a code, and a block of {kind.name} is made from values: "
                         "464, -0, 1/3, 0x1.dp+8, inf, nan")
    if options.overflow:
        raise InputError(f"how {kind.name} overflows is in its recipe: "
                         f"--recipe NAME,overflow={options.overflow}")
    source = refq.number_format(options.source)
    codes, notes = zip(*(show.source_code(source, _value(text)) for text in texts))
    for text, ((_, words),) in ((text, note) for text, note in zip(texts, notes) if note):
        print(f"{text} is taken as {words}")
    values = one_block.from_source(codes, source)
    print(one_block.show_values(kind, values, options.recipe, options.round, options.random_bits,
                                options.random_width))


def _show_layout(options) -> None:
    from refq.blocks import show as blocks
    changed = [name for name in ("round", "overflow", "recipe", "random_bits", "random_width")
               if getattr(options, name) is not None]
    if changed:
        raise InputError(f"--{changed[0].replace('_', '-')} is for values, and none are given")
    text = blocks.show_block(options.format)
    unicode = (sys.stdout.encoding or "ascii").lower().replace("-", "") in ("utf8", "utf8sig")
    print(text if unicode else blocks.plain(text))


def _value(text: str):
    """A Fraction, or a float for inf, nan and -0. Raises InputError."""
    try:
        if HUGE.search(text):
            raise OverflowError
        if re.search("inf|nan", text, re.IGNORECASE) or re.fullmatch(r"-0*\.?0*", text):
            return float(text)
        if "0x" in text.lower():
            number = float.fromhex(text)
            return Fraction(number) if number else number
        return Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{text!r} is neither a code (0x7e, 0b0111) nor a value "
                         "(464, -0, 1/3, 0x1.dp+8, inf, nan)") from None


def _build_plot(command):
    add = command.add_argument
    add("format", nargs="+", help="number formats of at most 12 bits: their number lines; "
                                  "or data types and GGUF block types: the bits of a block")
    add("-o", "--output", help="PNG or SVG file (default number-line.png or blocks.png)")
    add("--blocks", action="store_true", help="the bits of a block also where a name is a number format's")


def _plot(options) -> None:
    from refq.blocks import anatomy
    from refq.blocks.plot import block_layouts
    from refq.formats.plot import number_line
    lines = [] if options.blocks else [name for name in options.format if _number_format(name)]
    if len(lines) == len(options.format):
        print(number_line(lines, options.output or "number-line.png"))
        return
    kinds = [(name, anatomy.block_kind(name)) for name in options.format]
    numbers = [] if options.blocks else [name for name, kind in kinds if not anatomy.is_block(kind)]
    if numbers:
        others = [name for name, _ in kinds if name not in numbers]
        raise InputError(f"{numbers[0]} is a number format, drawn as a number line, and {others[0]} is "
                         "drawn as the bits of a block: draw them apart, or with --blocks both as bits")
    print(block_layouts([kind for _, kind in kinds], options.output or "blocks.png"))


# -- quantize ------------------------------------------------------------------------------------------------

def _build_quantize(command):
    command.epilog = ("The methods ed, gptq and qronos need calibration data. A run with data that is "
                      "interrupted goes on with --resume from its last finished layer, to the same bytes.")
    add = command.add_argument
    add("model", help="an ONNX model")
    add("-o", "--output", required=True, help="the quantised model to write")
    add("--dtype", default="mxfp4", metavar="NAME",
        help="data type (default mxfp4), as `refq formats` lists them; float: only what a --rule names; with "
             "--budget several, with commas between")
    add("--method", default="ed", metavar="NAME",
        help="ed: error diffusion (default); gptq, qronos: to compare with; rtn: direct cast, without data")
    add("--rule", action="append", default=[], metavar="PATTERN=DTYPE[:METHOD]",
        help="another data type, or float, for layers whose node, output or weight matches (repeatable; the "
             "last that matches counts)")
    add("--keep-float", action="append", default=[], metavar="PATTERN",
        help="leave layers as they are (repeatable)")
    add("--budget", type=float, metavar="BITS",
        help="average bits per weight: each layer gets one of the data types of --dtype (mxfp4, mxfp6, mxfp8 "
             "if it is one) by how much it disturbs the model's outputs")
    add("--export", default="native", help="native: packed standard types (default); portable: runs in "
                                           "onnxruntime on CPUs; float: dequantised weights, runs anywhere")
    add("--round", metavar="RULE", help="rounding of the elements (default: the recipe's, mostly rne)")
    add("--recipe", help="recipe of the data type (default: its own)")
    _add_data(command, "--calibration", "what the model meets", False)
    add("--memory", default="1G", metavar="BYTES",
        help="of activations kept in memory, as 512M (default 1G); beyond it they go to disk")
    add("--workers", type=int, metavar="N", help="threads (default: as many as processors)")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    _add_files(command)


def _quantize(options) -> None:
    _require_folders(options.json, options.html)
    report = refq.quantize_model(
        options.model, options.output, options.dtype, options.method, options.calibration, rules=options.rule,
        keep_float=options.keep_float, budget=options.budget, export=options.export, rounding=options.round,
        recipe=options.recipe, labels=options.labels, batch=options.batch, engine=options.engine,
        memory=options.memory, workers=options.workers, resume=options.resume, progress=sys.stderr.isatty(),
        say=lambda text: print(text, file=sys.stderr, flush=True))
    _deliver(report, options)


def _add_data(command, name: str, what: str, required: bool) -> None:
    """Options of data for a model and of who runs it."""
    add = command.add_argument
    add(name, required=required,
        help=f"{what}: an .npz file of arrays by input name, an .npy file, a folder of .npz files (each a "
             "batch), module:object with get_next(), or random")
    add("--labels", metavar="NAME|FILE",
        help="the right answers: an array of the data (default: labels, label or y), or an .npy or .npz file")
    add("--batch", type=int, metavar="N", help="rows of a batch (default 32, or what the model fixes)")
    add("--engine", default="numpy", help="numpy (default) or onnxruntime, where it is installed")


def _add_files(command) -> None:
    command.add_argument("--json", metavar="FILE", help="write the report as JSON")
    command.add_argument("--html", metavar="FILE", help="write the report as a page")


# -- compare -------------------------------------------------------------------------------------------------

def _build_compare(command):
    add = command.add_argument
    add("a", metavar="A.onnx", help="the model that is taken to be right")
    add("b", metavar="B.onnx", help="the model to compare it with")
    _add_data(command, "--data", "what both run on", True)
    _add_files(command)


def _compare(options) -> None:
    from refq.models.compare import compare_models
    _require_folders(options.json, options.html)
    report = compare_models(options.a, options.b, options.data, options.labels, options.engine, options.batch,
                            progress=sys.stderr.isatty())
    _deliver(report, options)


def _deliver(report, options) -> None:
    """A report in the files asked for, and as a table."""
    if options.json:
        write_whole(options.json, _json(report.to_json()) + "\n")
    if options.html:
        write_whole(options.html, report.to_html())
    print(report.table())


def _require_folders(*paths: str | None) -> None:
    """Before the work, so that nothing is left behind."""
    for path in paths:
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(f"cannot write {path}: its folder does not exist")


# -- diff ----------------------------------------------------------------------------------------------------

def _build_diff(command):
    add = command.add_argument
    add("a", metavar="RECIPE_A", help="a recipe, plain or with changed fields: ocp, torchao_even, "
                                      "ocp,rule=rceil; `refq formats` lists them")
    add("b", metavar="RECIPE_B", help="the recipe to compare it with")
    add("--dtype", required=True, help="data type that both quantise")
    add("--input", metavar="FILE",
        help="count on this data: an .npy or .npz array or the weights of an .onnx model (default: the data "
             "type's boundary set)")
    add("--axis", type=int,
        help="axis that tiles of an array run along (default: the last; models know theirs)")
    add("--json", action="store_true", help="as JSON")


def _diff(options) -> int:
    from refq.conformance import diff_report
    from refq.conformance.differences import diff
    arrays = None if options.input is None else _arrays(options.input, options.axis)
    found = diff(options.a, options.b, options.dtype, arrays, options.input or "")
    print(_json(diff_report.as_dict(found)) if options.json else diff_report.text(found))
    return DIFFERENT if found.differ else 0


def _arrays(path: str, axis: int | None):
    """(array, axis) of every array of a file."""
    kind = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise InputError(f"{path} is no file")
    if kind == ".onnx":
        if axis is not None:
            raise InputError("--axis goes with arrays; a model's layers say which axis they sum over")
        from refq.models.matrices import weight_matrices
        return [(matrix, along) for _, matrix, along in weight_matrices(path)]
    if kind not in (".npy", ".npz"):
        raise InputError(f"{path}: data comes as .npy, .npz or .onnx")
    return [(array, -1 if axis is None else axis) for array in load_arrays(path).values()]


# -- vectors, check, device ----------------------------------------------------------------------------------

def _build_vectors(command):
    actions = command.add_subparsers(title="actions", metavar="list|gen", required=True)
    listing = actions.add_parser("list", help="names of the committed sets, with clause and status")
    listing.add_argument("pattern", nargs="?", default="*",
                         help="glob over the names, e.g. 'encode/*e4m3fn*'")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_vectors_list)
    gen = actions.add_parser("gen", help="generate a set from its name")
    gen.add_argument("set", help="e.g. encode/f32-e4m3fn/rne-sat/boundary")
    gen.add_argument("-o", "--output", help="file to write (default: standard output)")
    gen.add_argument("--operands", action="store_true",
                     help="header and operands only, as a device reads them")
    gen.set_defaults(run=_vectors_gen)


def _vectors_list(options) -> None:
    from fnmatch import fnmatchcase

    from refq.vectors import sets
    names = [name for name in sets.committed() if fnmatchcase(name, options.pattern)]
    if not names:
        raise InputError(f"no committed set matches {options.pattern!r}; `refq vectors list` shows all")
    parsed = {name: sets.parse(name) for name in names}
    found = [{"set": name, "clause": sets.clause(parts), "status": sets.status(parts)}
             for name, parts in parsed.items()]
    print(_json(found) if options.json else _columns(found))


def _vectors_gen(options) -> None:
    from refq.vectors import sets
    vectors = sets.generate(options.set)
    text = vectors.operand_lines() if options.operands else vectors.text()
    if options.output:
        write_whole(options.output, text)
        print(f"{options.output}: {len(vectors)} cases")
    else:
        sys.stdout.write(text)


def _build_check(command):
    add = command.add_argument
    add("set", help="a set name (generated), or a .vec file")
    add("results", nargs="?", help="file of answers, `operands_results` a line; - for standard input")
    add("--device", metavar="COMMAND", help="command that reads header and operands and answers line by line")
    add("--nan", default="bits", choices=("bits", "any"),
        help="compare NaNs bit by bit (default), or accept any NaN")
    add("--limit", type=_count, default=10, metavar="N",
        help="failures to explain (default 10); all are counted")
    add("--timeout", type=_seconds, default=600, metavar="SECONDS",
        help="for the whole run of the device (default 600)")
    add("--json", action="store_true", help="the verdict as JSON")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a count; allowed are 0, 1, 2, ...")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time; allowed are seconds above 0")
    return number


def _check(options) -> int:
    from refq.conformance.check import check
    from refq.conformance.devices import Pipe, Results
    if bool(options.results) == bool(options.device):
        raise InputError("say what to check: a results file, or --device 'command', one of the two")
    device = Pipe(options.device, options.timeout) if options.device else Results(options.results)
    verdict = check(options.set, device, options.nan, options.limit)
    print(verdict.json() if options.json else verdict.text())
    return verdict.exit_code


def _build_device(command):
    """No options."""


def _device(options) -> None:
    from refq.conformance.devices import main_device
    main_device(sys.stdin, sys.stdout)


# -- demo ----------------------------------------------------------------------------------------------------

def _build_demo(command):
    command.add_argument("-o", "--output", default="refq-demo",
                         help="folder for models, vectors and pages (default refq-demo)")


def _demo(options) -> int:
    from tqdm import tqdm

    from refq import demo
    Path(options.output).mkdir(parents=True, exist_ok=True)
    form = "{l_bar}{bar:30}| {n_fmt}/{total_fmt} {desc} [{elapsed}]"
    with tqdm(total=1, bar_format=form, file=sys.stderr) as bar:
        def progress(step, steps, what):
            bar.total, bar.n = steps, step
            bar.set_description_str(what)
        _, verdicts = demo.run(options.output, progress, say=bar.write)
    return 0 if [verdict.exit_code for verdict in verdicts] == [0, 1] else 1


# -- text ----------------------------------------------------------------------------------------------------

def _json(data) -> str:
    return json.dumps(data, indent=1)


def _pairs(pairs, width: int) -> str:
    return "\n".join(f"{label:{width}}{text}" for label, text in pairs)


def _columns(records: list[dict]) -> str:
    return table.columns([tuple(records[0]), *(tuple(record.values()) for record in records)])


COMMANDS = {
    "formats": (_build_formats, _formats, "list number formats, data types, rules, recipes with their facts"),
    "show": (_build_show, _show, "explain a code, a value or a block and which rule decides; draw bits"),
    "plot": (_build_plot, _plot, "draw number lines of formats, or the bits of blocks (needs matplotlib)"),
    "diff": (_build_diff, _diff, "say where two recipes differ, by which rule, and what it costs"),
    "quantize": (_build_quantize, _quantize, "quantise the weights of an ONNX model"),
    "compare": (_build_compare, _compare, "say how far the outputs of two ONNX models lie apart on data"),
    "vectors": (_build_vectors, None, "list or generate golden-vector sets"),
    "check": (_build_check, _check, "judge a device against a golden-vector set"),
    "device": (_build_device, _device, "answer a set's operands on standard input: refq itself as a device"),
    "demo": (_build_demo, _demo, "run the main job on an embedded example, with pages to look at"),
}

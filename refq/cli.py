"""The command line. Thin: every command calls one room of the house.

Exit codes: 0 done (for `check`: pass), 1 the device differs, 2 bad input or usage, 3 not a run, 130 interrupted.
"""

import argparse
import json
import os
import re
import sys
from fractions import Fraction

import refq
from refq.errors import InputError
from refq.files import write_whole
from refq.formats import codec, show, table
from refq.formats.policies import OVERFLOWS, ROUNDINGS

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv=None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"refq: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:                             # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"refq: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("refq: interrupted; no file was left half written", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="refq", description="Bit-exact reference for low-precision number formats.",
                                  epilog="Exit codes: 0 done, 1 a device differs, 2 bad input, 3 not a run, 130 interrupted.")
    top.add_argument("--version", action="version", version=f"refq {refq.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (build, run, words) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        command.set_defaults(run=run)
        build(command)
    return top


# -- formats, show, plot ----------------------------------------------------------------------------------------

def _build_formats(command):
    command.add_argument("name", nargs="*", help="formats or data types to describe in full (default: the table of all)")
    command.add_argument("--json", action="store_true", help="as JSON")


def _formats(options) -> None:
    from refq.blocks.rows import DATA_TYPES
    if options.name:
        described = [_described(name) for name in options.name]
        print(json.dumps(described, indent=1) if options.json else
              "\n\n".join("\n".join(f"{key:14}{value}" for key, value in facts.items()) for facts in described))
    elif options.json:
        print(json.dumps({"formats": table.as_dicts(), "data_types": [_data_type_facts(row) for row in DATA_TYPES.values()]}, indent=1))
    else:
        print(table.text() + "\n\ndata types (an element format and what shares a scale)\n")
        print(table.columns([tuple(facts) for facts in _data_type_lines(DATA_TYPES.values())]))


def _described(name: str) -> dict:
    try:
        row = refq.number_format(name)
    except InputError:
        return _data_type_facts(refq.data_type(name))
    return dict(zip(table.HEAD, table.facts(row))) | {"also": ", ".join(row.aka)}


def _data_type_facts(row) -> dict:
    return {"data type": row.name, "element": row.element, "scale": row.scale or "", "tile": str(row.tile or ""), "rule": row.rule,
            "outer": row.outer or "", "bits/value": show.number(row.bits_per_value), "recipe": row.recipe, "source": row.ref,
            "also": ", ".join(row.aka)}


def _data_type_lines(rows):
    facts = [_data_type_facts(row) for row in rows]
    return [list(facts[0]), *(list(fact.values()) for fact in facts)]


def _build_show(command):
    command.add_argument("format", help="a number format, e.g. e4m3fn")
    command.add_argument("code_or_value", help="a code such as 0x7e, or a value such as 464, -0, 1/3, 0x1.dp+8, inf, nan")
    _policy_arguments(command)
    command.add_argument("--source", default="binary32", help="format the value comes from (default binary32)")
    command.add_argument("--random-bits", type=lambda text: int(text, 0), help="the random operand of a stochastic rounding")
    command.add_argument("--random-width", type=int, help="its number of bits")


def _policy_arguments(command):
    command.add_argument("--round", default="rne", metavar="RULE", help=f"{', '.join(ROUNDINGS)} (default rne)")
    command.add_argument("--overflow", default="sat", metavar="RULE", help=f"{', '.join(OVERFLOWS)} (default sat)")


def _show(options) -> None:
    row, text = refq.number_format(options.format), options.code_or_value
    if re.fullmatch(r"0[xb][0-9a-fA-F_]+", text):
        lines = show.show_code(row, int(text, 0))
    else:
        source = refq.number_format(options.source)
        code, note = show.source_code(source, _value(text))
        cast = show.show_cast(source, code, row, options.round, options.overflow, options.random_bits, options.random_width)
        lines = [*note, *cast.steps, *(("result " + label, text) for label, text in show.show_code(row, cast.code)[1:])]
    print("\n".join(f"{label:20}{text}" for label, text in lines))


def _value(text: str):
    """A Fraction, or a float for inf, nan and -0. Raises InputError."""
    try:
        if re.search("inf|nan", text, re.IGNORECASE) or re.fullmatch(r"-0*\.?0*", text):
            return float(text)
        if "0x" in text.lower():
            return Fraction(float.fromhex(text))
        return Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{text!r} is neither a code (0x7e, 0b0111) nor a value (464, -0, 1/3, 0x1.dp+8, inf, nan)") from None


def _build_plot(command):
    command.add_argument("format", nargs="+", help="number formats of at most 12 bits")
    command.add_argument("-o", "--output", default="number-line.png", help="PNG or SVG file (default number-line.png)")


def _plot(options) -> None:
    from refq.formats.plot import number_line
    print(number_line(options.format, options.output))


# -- quantize ---------------------------------------------------------------------------------------------------

def _build_quantize(command):
    command.add_argument("model", help="an ONNX model")
    command.add_argument("-o", "--output", required=True, help="the quantised model to write")
    command.add_argument("--dtype", default="mxfp4", help="data type (default mxfp4); `refq formats` lists them")
    command.add_argument("--method", default="rtn", help="rtn: direct cast (default)")
    command.add_argument("--export", default="native", help="native: packed standard types (default); portable: runs in "
                                                            "onnxruntime on CPUs; float: dequantised weights, runs anywhere")
    command.add_argument("--include", action="append", default=[], metavar="PATTERN", help="only weights that match (repeatable)")
    command.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="leave weights that match (repeatable)")
    command.add_argument("--round", default="rne", metavar="RULE", help="rounding of the elements (default rne)")
    command.add_argument("--recipe", help="recipe of the data type (default: its own)")
    command.add_argument("--json", metavar="FILE", help="write the report as JSON")
    command.add_argument("--html", metavar="FILE", help="write the report as a page")


def _quantize(options) -> None:
    report = refq.quantize_model(options.model, options.output, options.dtype, options.method, options.include,
                                 options.exclude, options.export, options.round, options.recipe, progress=sys.stderr.isatty())
    if options.json:
        write_whole(options.json, json.dumps(report.to_json(), indent=1) + "\n")
    if options.html:
        write_whole(options.html, report.to_html())
    print(report.table())


# -- vectors, check, device -------------------------------------------------------------------------------------

def _build_vectors(command):
    actions = command.add_subparsers(title="actions", metavar="list|gen", required=True)
    listing = actions.add_parser("list", help="names of the committed sets, with counts")
    listing.add_argument("pattern", nargs="?", default="*", help="glob over the names, e.g. 'encode/*e4m3fn*'")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_vectors_list)
    gen = actions.add_parser("gen", help="generate a set from its name")
    gen.add_argument("set", help="e.g. encode/f32-e4m3fn/rne-sat/boundary")
    gen.add_argument("-o", "--output", help="file to write (default: standard output)")
    gen.add_argument("--operands", action="store_true", help="header and operands only, as a device reads them")
    gen.set_defaults(run=_vectors_gen)


def _vectors_list(options) -> None:
    from fnmatch import fnmatchcase

    from refq.vectors import sets
    names = [name for name in sets.committed() if fnmatchcase(name, options.pattern)]
    if not names:
        raise InputError(f"no committed set matches {options.pattern!r}; `refq vectors list` shows all")
    found = [{"set": name, "clause": sets.clause(sets.parse(name)), "status": sets.status(sets.parse(name))} for name in names]
    print(json.dumps(found, indent=1) if options.json else
          table.columns([("set", "clause", "status"), *(tuple(entry.values()) for entry in found)]))


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
    command.add_argument("set", help="a set name (generated), or a .vec file")
    command.add_argument("results", nargs="?", help="file of answers, `operands_results` a line; - for standard input")
    command.add_argument("--device", metavar="COMMAND", help="command that reads header and operands and answers line by line")
    command.add_argument("--nan", default="bits", choices=("bits", "any"), help="compare NaNs bit by bit (default), or accept any NaN")
    command.add_argument("--limit", type=int, default=10, metavar="N", help="failures to explain (default 10); all are counted")
    command.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for the whole run of the device (default 600)")
    command.add_argument("--json", action="store_true", help="the verdict as JSON")


def _check(options) -> int:
    from refq.conformance.check import check
    from refq.conformance.devices import Pipe, Results
    if bool(options.results) == bool(options.device):
        raise InputError("say what to check: a results file, or --device 'command', one of the two")
    device = Pipe(options.device, options.timeout) if options.device else Results(options.results)
    verdict = check(options.set, device, options.nan, options.limit)
    print(verdict.json() if options.json else verdict.text())
    return verdict.exit_code


def _device(options) -> None:
    from refq.conformance.devices import main_device
    main_device(sys.stdin, sys.stdout)


# -- demo -------------------------------------------------------------------------------------------------------

def _build_demo(command):
    command.add_argument("-o", "--output", default="refq-demo", help="folder for models, vectors and pages (default refq-demo)")


def _demo(options) -> int:
    from tqdm import tqdm

    from refq import demo
    with tqdm(total=1, bar_format="{l_bar}{bar:30}| {n_fmt}/{total_fmt} {desc} [{elapsed}]", file=sys.stderr) as bar:
        def progress(step, steps, what):
            bar.total, bar.n = steps, step
            bar.set_description_str(what)
        scores, verdicts = demo.run(options.output, progress, say=lambda text: bar.write(text))
    return 0 if (verdicts[0].exit_code, verdicts[1].exit_code) == (0, 1) else 1


COMMANDS = {
    "formats": (_build_formats, _formats, "list number formats and data types with their derived facts"),
    "show": (_build_show, _show, "explain a code, or how a value becomes one and which rule decides"),
    "plot": (_build_plot, _plot, "draw the values of formats as number lines (needs matplotlib)"),
    "quantize": (_build_quantize, _quantize, "quantise the weights of an ONNX model"),
    "vectors": (_build_vectors, None, "list or generate golden-vector sets"),
    "check": (_build_check, _check, "judge a device against a golden-vector set"),
    "device": (lambda command: None, _device, "answer a set's operands on standard input: refq itself as a device"),
    "demo": (_build_demo, _demo, "run the main job on an embedded example, with pages to look at"),
}

if __name__ == "__main__":
    sys.exit(main())

"""Judging a device against a golden-vector set: pass, mismatch, or not a run.

A run must answer exactly the set's cases in the set's order; anything else is not a run, whatever the
answers say. Spec: CHECK-3 to CHECK-6.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from refq.conformance.devices import Run, as_device
from refq.conformance.explain import failure_line
from refq.errors import InputError
from refq.formats.values import NAN, exact
from refq.vectors import sets, vec
from refq.vectors.vec import Header, VectorSet, format_of

PASS, MISMATCH, NOT_A_RUN = "pass", "mismatch", "not a run"
EXIT_CODES = {PASS: 0, MISMATCH: 1, NOT_A_RUN: 3}      # 2 is bad input: an InputError
NAN_RULES = ("bits", "any")
UNKNOWN = re.compile("[xXzZ]")                          # digits a simulator prints for bits it does not know


@dataclass(frozen=True)
class Failure:
    """One case answered wrongly. case: set name and operands; line: the whole story in one line."""

    case: str
    operand: str
    got: str
    want: str
    line: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check; `failures` holds the first ones, `failed` counts all."""

    set: str
    device: str
    outcome: str
    cases: int
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    problem: str = ""
    errors: str = ""
    nan: str = "bits"
    operands_sha256: str = ""
    set_sha256: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == PASS

    @property
    def exit_code(self) -> int:
        """0 pass, 1 mismatch, 3 not a run (Spec: CHECK-4)."""
        return EXIT_CODES[self.outcome]

    def text(self) -> str:
        """For a terminal: the outcome first, then one line per failure."""
        loose = "" if self.nan == "bits" else ", any NaN accepted for a NaN"
        if self.outcome == NOT_A_RUN:
            tail = [f"  the device's error output ends: {line}" for line in self.errors.splitlines()[-5:]]
            return "\n".join([f"NOT A RUN  {self.set}: {self.problem}", *tail])
        if self.passed:
            return f"PASS  {self.set}: {self.cases} cases{loose}"
        rest = self.failed - len(self.failures)
        return "\n".join([f"MISMATCH  {self.set}: {self.failed} of {self.cases} cases differ{loose}",
                          *(f"  {failure.line}" for failure in self.failures),
                          *([f"  and {rest} more"] if rest else [])])

    def json(self) -> str:
        """The verdict as a JSON object."""
        from refq import __version__
        return json.dumps({"refq": __version__, **asdict(self), "exit_code": self.exit_code}, indent=1)


def load(target) -> VectorSet:
    """A set from a VectorSet, a path to a .vec file, or a set name. Raises InputError. Spec: CHECK-3."""
    if isinstance(target, VectorSet):
        return target
    if isinstance(target, Path) or str(target).endswith(".vec"):
        return vec.read(target)
    return sets.generate(str(target))


def check(target, device, nan: str = "bits", limit: int = 10) -> Verdict:
    """Run a device on a set and judge its answers.

    target: a VectorSet, a path to a .vec file, or a set name, which is generated.
    device: a command, a callable on code arrays, a path object of results, or one of devices.py.
    nan: "bits" compares NaNs bit by bit; "any" accepts every NaN code where a NaN is wanted (CHECK-5).
    limit: how many failures are explained; all are counted.
    Returns a Verdict. Raises InputError for a bad set, device or rule. Spec: CHECK-3.
    """
    if nan not in NAN_RULES:
        raise InputError(f"nan rule {nan!r} is not known; allowed are {', '.join(NAN_RULES)}")
    vectors = load(target)
    return judge(vectors, as_device(device).run(vectors), nan, limit)


def judge(vectors: VectorSet, run: Run, nan: str = "bits", limit: int = 10) -> Verdict:
    """The verdict on a device's lines. See `check`."""
    operands, wants = vectors.operand_texts(), vectors.result_texts()
    facts = dict(set=vectors.name, device=run.device, cases=len(vectors), nan=nan, errors=run.errors,
                 operands_sha256=vec.digest(vectors.operand_lines()), set_sha256=vec.digest(vectors.text()))
    gots, problem = _answers(vectors.header, operands, run.lines)
    problem = run.problem or problem
    if problem:
        return Verdict(outcome=NOT_A_RUN, problem=problem, **facts)
    wrong = [index for index, (got, want) in enumerate(zip(gots, wants))
             if got != want and not (nan == "any" and _same_but_nan(vectors.header, got, want))]
    failures = tuple(_failure(vectors.header, operands[index], gots[index], wants[index])
                     for index in wrong[:limit])
    return Verdict(outcome=MISMATCH if wrong else PASS, failed=len(wrong), failures=failures, **facts)


def _answers(header: Header, operands: list[str], lines: list[str]) -> tuple[list[str], str]:
    """(results in order, ""), or ([], why the lines are no run). Spec: CHECK-3."""
    shape = re.compile(f"({vec.pattern(header.operand_fields, '[0-9a-fA-F]')})_"
                       f"({vec.pattern(header.result_fields, '[0-9a-fA-FxXzZ]')})")
    gots: list[str] = []
    for number, line in enumerate(lines, 1):
        answer, _, _ = line.partition("//")
        answer = answer.strip()
        if line.startswith(vec.MAGIC) and (other := _header_name(line.rstrip())) != header.name:
            return [], f"line {number}: these are results of {other}"
        if not answer:
            continue
        matched = shape.fullmatch(answer)
        if not matched:
            return [], (f"line {number}: {answer[:80]!r} is malformed; expected operands_results in hex, "
                        f"as in {operands[0][:60]}_...")
        operand = matched[1].lower()
        if len(gots) == len(operands):
            return [], (f"line {number}: operand {operand[:60]} is one too many; "
                        f"the set has {len(operands)} cases")
        if operand != operands[len(gots)]:
            return [], f"line {number}: {_misplaced(operand, operands, len(gots))}"
        gots.append(matched[2].lower())
    if not gots:
        return [], f"empty: the device answered none of the {len(operands)} cases"
    if len(gots) < len(operands):
        return [], (f"short: the answers end after {len(gots)} of {len(operands)} cases, "
                    f"before operand {operands[len(gots)][:60]}")
    return gots, ""


def _header_name(line: str) -> str:
    try:
        return Header.parse(line).name
    except InputError as error:
        return f"an unreadable header ({error})"


def _misplaced(operand: str, operands: list[str], place: int) -> str:
    due = f"operand {operands[place][:60]} was due"
    if operand in operands[:place]:
        return f"operand {operand[:60]} is repeated; {due}"
    if operand in operands[place:]:
        return f"operand {operand[:60]} is out of order; {due}"
    return f"operand {operand[:60]} is not in the set; {due}"


def _same_but_nan(header: Header, got: str, want: str) -> bool:
    """Whether two results differ only in which NaN code stands for a NaN."""
    if UNKNOWN.search(got):
        return False
    for field, *texts in zip(header.result_fields, got.split("_"), want.split("_")):
        row, digits = format_of(field.token), field.digits
        pairs = [[int(text[i:i + digits], 16) for text in texts] for i in range(0, len(texts[0]), digits)]
        if any(a != b and (a >> row.width or {exact(row, a), exact(row, b)} != {NAN}) for a, b in pairs):
            return False
    return True


def _failure(header: Header, operand: str, got: str, want: str) -> Failure:
    line = failure_line(header, operand, got, want)
    return Failure(f"{header.name}/{operand}", operand, got, want, line)

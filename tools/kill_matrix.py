"""Print which committed vector sets kill which public bugs. Exit code 1 if a mutant survives them all.

    python tools/kill_matrix.py             one line per mutant: how many sets kill it, and which does best
    python tools/kill_matrix.py --matrix    the whole matrix, one column per family of sets
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mutants import MUTANTS, kills  # noqa: E402
from refq.vectors import sets, vec  # noqa: E402

FAMILIES = ("decode", "saturating", "nonsat", "sources", "roundings", "random", "policies", "convert",
            "quantize")


def matrix() -> dict[str, dict[str, int]]:
    """Mutant name -> set name -> number of cases it gets wrong, for every committed set it speaks to."""
    table = {mutant.name: {} for mutant in MUTANTS}
    for path in sorted((ROOT / "vectors").rglob("*.vec")):
        vectors = vec.read(path)
        name = sets.parse(vectors.name)
        for mutant in MUTANTS:
            if mutant.applies(name):
                table[mutant.name][str(name)] = kills(mutant, name, vectors.operands, vectors.results)
    return table


def family(name: str) -> str:
    """The column a set belongs to: encode sets by what is special about them, others by operation."""
    parsed = sets.parse(name)
    if parsed.op != "encode":
        return parsed.op
    if parsed.model != "boundary":
        return "random" if parsed.model == "stochastic" else "policies"
    if parsed.src != "f32" or parsed.round != "rne":
        return "sources" if parsed.src != "f32" else "roundings"
    return "saturating" if parsed.policy == "sat" else "nonsat"


def rows(table) -> list[str]:
    """One line per mutant."""
    lines = []
    for mutant in MUTANTS:
        hits = sorted(((count, name) for name, count in table[mutant.name].items() if count), reverse=True)
        best = f"{hits[0][0]:5} cases in {hits[0][1]}" if hits else "SURVIVES"
        share = f"{len(hits):3}/{len(table[mutant.name]):<3} sets"
        lines.append(f"{mutant.name:32} {share}  {best:58} {mutant.thread}")
    return lines


def grid(table) -> list[str]:
    """Mutants by families: wrong cases in the worst set, `.` where no set speaks to the mutant."""
    heads = [f"{head:>12}" for head in FAMILIES]
    lines = [f"{'wrong cases in the worst set':32}" + "".join(heads)]
    for mutant in MUTANTS:
        cells = []
        for head in FAMILIES:
            counts = [count for name, count in table[mutant.name].items() if family(name) == head]
            cells.append(f"{max(counts) if counts else '.':>12}")
        lines.append(f"{mutant.name:32}" + "".join(cells))
    return lines


def main(argv=None) -> int:
    """Exit code 0 when every mutant is killed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--matrix", action="store_true", help="mutants by set families")
    table = matrix()
    print("\n".join(grid(table) if options.parse_args(argv).matrix else rows(table)))
    dead = sum(any(counts.values()) for counts in table.values())
    asked = len({name for row in table.values() for name in row})
    print(f"\n{dead} of {len(MUTANTS)} mutants killed by {asked} sets")
    return 0 if dead == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())

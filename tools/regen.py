"""Regenerate golden vectors, their manifest, formats.json, and the tables in README.md and spec/.

    python tools/regen.py            write what differs, remove what no longer belongs
    python tools/regen.py --check    write nothing; list what differs and exit 1 if anything does

The bytes depend on the tables and the code alone.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from refq.blocks import table as blocks  # noqa: E402  (the repository's own refq, installed or not)
from refq.conformance import divergences  # noqa: E402
from refq.formats import table as formats  # noqa: E402
from refq.vectors import manifest, sets  # noqa: E402

VECTORS = ROOT / "vectors"
TABLE = "(<!-- {0}:begin -->\n).*?(<!-- {0}:end -->)"


def generated() -> Iterator[tuple[Path, str]]:
    """(path, text) of every generated file."""
    entries = []
    for name in sets.committed():
        vectors = sets.generate(name)
        entries.append(manifest.entry(vectors))
        yield VECTORS / f"{name}.vec", vectors.text()
    yield VECTORS / "manifest.json", manifest.manifest(entries)
    yield VECTORS / "formats.json", manifest.formats()
    yield from _pages()


def _pages() -> Iterator[tuple[Path, str]]:
    """The pages with generated tables, these filled in between their markers."""
    for name, tables in (("README.md", {"formats": formats.markdown, "data-types": blocks.markdown}),
                         ("spec/divergences.md", {"divergences": divergences.markdown})):
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        for marker, table in tables.items():
            filled = table().strip()
            place = re.compile(TABLE.format(marker), re.DOTALL)
            text = place.sub(lambda match: f"{match[1]}{filled}\n{match[2]}", text)
        yield path, text


def main(argv=None) -> int:
    """Exit code: 0 when the tree is as generated (or now is), 1 when --check found a difference."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = options.parse_args(argv).check
    files = {path: text.encode("utf-8") for path, text in generated()}
    stale = [path for path, data in files.items() if not path.exists() or path.read_bytes() != data]
    extra = [path for path in sorted(VECTORS.rglob("*.vec")) if path not in files]
    if check:
        for path in stale + extra:
            print(f"{'differs' if path in files else 'does not belong'}: {path.relative_to(ROOT)}")
        return 1 if stale or extra else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[path])
    for path in extra:
        path.unlink()
    size = sum(len(data) for path, data in files.items() if path.suffix == ".vec")
    print(f"{len(files)} files, {len(stale)} written, {len(extra)} removed; vectors {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

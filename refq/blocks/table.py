"""The tables of the block room as text: for `refq formats` and, generated, for the README."""

from refq.blocks.codebooks import CODEBOOKS
from refq.blocks.gguf import FITS, GGUF, Gguf
from refq.blocks.layouts import BLOCK_LAYOUTS, LAYOUTS, SCALE_LAYOUTS
from refq.blocks.recipes import RECIPES
from refq.blocks.rotation import ROTATIONS
from refq.blocks.rows import DATA_TYPES, Block
from refq.blocks.rules import RULES
from refq.formats.show import number
from refq.formats.table import columns

SECTIONS = {
    "data_types": "data types (an element format and what shares a scale)",
    "codebooks": "codebooks (element formats of several tables, of which a tile or subtile takes one)",
    "gguf": "GGUF block types",
    "layouts": "layouts of codes in memory, of block scales, and of blocks",
    "rotations": "rotations; by rule also hadamard_<size> and walsh_<size>, and with the ending _unscaled",
    "rules": "scale rules",
    "recipes": "recipes (every remaining choice of one stack)",
}
HEAD = ("data type", "element", "scale", "tile", "rule", "bits/value", "source")


def as_dicts() -> dict[str, list[dict]]:
    """Every section with its rows as facts, for JSON."""
    return {
        "data_types": [data_type_facts(row) for row in DATA_TYPES.values()],
        "codebooks": [{"codebook": row.name, "tables": str(len(row.tables)), "bits": str(row.width),
                       "table bits": str(row.meta_bits), "max": number(row.max), "source": row.ref}
                      for row in CODEBOOKS.values()],
        "gguf": [gguf_facts(row) for row in GGUF.values()],
        "layouts": [{"for": kind, "layouts": ", ".join(dict.fromkeys(row.name for row in table.values()))}
                    for kind, table in (("element codes", LAYOUTS), ("scale codes", SCALE_LAYOUTS),
                                        ("blocks", BLOCK_LAYOUTS))],
        "rotations": [{"rotation": row.name, "size": str(row.size), "order": row.order,
                       "signs": "its own" if row.signs else "given or none", "source": row.ref,
                       "clause": "ROT-1"} for row in ROTATIONS.values()],
        "rules": [{"rule": row.name, "for scales": row.kind, "clause": row.clause, "words": row.words,
                   "source": row.ref, "also": ", ".join(row.aka)} for row in RULES.values()],
        "recipes": [{"recipe": row.name, "for scales": row.kind, "clause": row.clause, "words": row.words,
                     "source": row.ref} for row in RECIPES.values()],
    }


def text() -> str:
    """Every section for a terminal."""
    sections = as_dicts() | {"data_types": [
        dict(zip(HEAD, _line([row]))) | {"recipe": row.recipe, "also": ", ".join(row.aka)}
        for row in DATA_TYPES.values()]}
    return "\n\n".join(f"{SECTIONS[name]}\n\n{_columns(records)}" for name, records in sections.items())


def _columns(records: list[dict]) -> str:
    return columns([tuple(records[0]), *(tuple(record.values()) for record in records)])


def data_type_facts(row: Block) -> dict:
    """One data type; everything derived (Spec: BLOCK-2, BLOCK-12)."""
    return {"data type": row.name, "element": row.element, "scale": row.scale or "",
            "tile": tile_text(row.tile), "rule": row.rule, "outer": row.outer or "",
            "with": ", ".join(_shared(row)),
            "bits/value": number(row.bits_per_value), "recipe": row.recipe, "source": row.ref,
            "also": ", ".join(row.aka)}


def gguf_facts(row: Gguf) -> dict:
    """One GGUF block type (Spec: GGUF-1, GGUF-9)."""
    return {"GGUF type": row.name, "number": str(row.number), "values": str(row.values),
            "bytes": str(row.bytes), "bits/value": number(row.bits_per_value),
            "encode": f"plain rounding: {FITS[row.fit]}" if row.encodes else "decode only (search)"}


def tile_text(tile) -> str:
    """A tile's size: 32, 16x16, channel."""
    return "x".join(map(str, tile)) if isinstance(tile, tuple) else str(tile or "")


def _shared(row: Block) -> list[str]:
    """What values share beside the scale, and what chooses among them."""
    parts = [f"zero point {row.zero}"] * bool(row.zero) + [f"{row.outer} a tensor"] * bool(row.outer)
    parts += [f"{bits}-bit offset a {tile_text(size)}" for size, bits in row.subtiles if bits]
    parts += [f"{row.meta_bits}-bit table choice a {tile_text(row.select_size)}"] * bool(row.meta_bits)
    return parts + (["{}:{} mask".format(*row.sparsity)] if row.sparsity else [])


# ------------------------------------------------------------------------------------------------------------
# the table of the README

def markdown() -> str:
    """The data types in few columns, those that differ in the tile only in one line; the names of all else."""
    lines = [HEAD, ["---"] * len(HEAD), *map(_line, _families())]
    lists = (f"- {title}: {', '.join(f'`{name}`' for name in names)}" for title, names in _lists())
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", *lists]) + "\n"


def _lists() -> list[tuple[str, list[str]]]:
    """What else there is: (title, names)."""
    encoded = [name for name, row in GGUF.items() if row.encodes]
    layouts = [row.name for table in (LAYOUTS, SCALE_LAYOUTS, BLOCK_LAYOUTS) for row in table.values()]
    return [("scale rules", list(RULES)), ("recipes", list(RECIPES)), ("rotations", list(ROTATIONS)),
            ("codebooks", list(CODEBOOKS)), ("layouts", list(dict.fromkeys(layouts))),
            ("GGUF blocks, encoded and decoded", encoded),
            ("GGUF blocks, decoded only (their encoders search)", [name for name in GGUF if name not in encoded])]


def _families() -> list[list[Block]]:
    """Each data type with those after it that differ from it in the tile only, and are called so."""
    families: dict[str, list[Block]] = {}
    for row in DATA_TYPES.values():
        base = row.name.rpartition("_")[0]
        related = base in families and _but_tile(families[base][0]) == _but_tile(row)
        families.setdefault(base if related else row.name, []).append(row)
    return list(families.values())


def _but_tile(row: Block) -> tuple:
    return row.element, row.scale, row.rule, row.recipe, _shared(row)


def _line(family: list[Block]) -> tuple[str, ...]:
    row = family[0]
    name = ", ".join([row.name, *(f"…{other.name.removeprefix(row.name)}" for other in family[1:])])
    return (name, row.element, ", ".join([row.scale or "", *_shared(row)]),
            _each(tile_text(part.tile) for part in family), row.rule,
            _each(number(part.bits_per_value) for part in family), row.ref)


def _each(words) -> str:
    return ", ".join(dict.fromkeys(words))

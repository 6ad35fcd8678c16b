"""The house: which room may use which, what loads when, and that what is public or cited is written down."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import refq

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, SPEC = ROOT / "refq", ROOT / "spec"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py"))}

# Which rooms each room may import. Everything may import errors, files and version.
BASE = {"errors", "files", "version"}
ROOMS = {
    "errors": set(), "version": set(), "files": {"errors"},
    "formats": set(),
    "blocks": {"formats"},
    "diffusion": {"formats", "blocks"},
    "models": {"formats", "blocks", "diffusion"},
    "vectors": {"formats", "blocks"},
    "conformance": {"formats", "blocks", "vectors"},
    "demo": {"formats", "blocks", "diffusion", "models", "vectors", "conformance"},
    "cli": {"formats", "blocks", "diffusion", "models", "vectors", "conformance", "demo"},
    "__main__": {"cli"},
}
PUBLIC_ROOT = {"__version__"}       # what a room may take from `refq` itself; the command line may take all
# Rooms that a simulator engineer or a kernel author uses: numpy and the standard library only, at any time
NUMPY_ONLY = ("errors", "files", "version", "formats", "blocks", "vectors", "conformance")
OPTIONAL = {"matplotlib": "formats.plot"}       # and where it may be used


def imports(path, module_level_only=False):
    """(absolute module, names taken from it) of every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    nodes = tree.body if module_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base, tuple(alias.name for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "refq"


def rooms_used(path):
    """The rooms that a file imports, submodules named in `from refq import x` included."""
    for module, names in imports(path):
        if module == "refq":
            yield from (name if f"refq.{name}" in MODULES else f"refq:{name}" for name in names or ["*"])
        elif module.startswith("refq."):
            yield room_of(module)


def test_the_files_are_where_the_tests_look():
    assert {"refq", "refq.formats.codec", "refq.blocks.quantize", "refq.cli"} <= set(MODULES)
    assert len(MODULES) > 30 and SPEC.is_dir()
    assert {room_of(module) for module in MODULES} - {"refq"} <= set(ROOMS), "a new room: add it to ROOMS"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "refq"])
def test_imports_go_one_way(module):
    room = room_of(module)
    allowed = ROOMS[room] | (BASE if room not in BASE else ROOMS[room]) | {room}
    whole = room in ("cli", "demo")
    for used in rooms_used(MODULES[module]):
        if used.startswith("refq:"):
            assert whole or used[5:] in PUBLIC_ROOT, f"{module} takes {used[5:]} from the root of the package"
        else:
            assert used in allowed, f"{module} imports {used}; {room} may import {sorted(allowed)}"


def test_the_rooms_have_no_circle():
    tuple(TopologicalSorter(ROOMS).static_order())


def test_modules_import_each_other_without_a_circle():
    """At module level, so that any of them can be imported first."""
    graph = {}
    for module, path in MODULES.items():
        used = set()
        for base, names in imports(path, module_level_only=True):
            used |= {name for name in (base, *(f"{base}.{name}" for name in names)) if name in MODULES}
        graph[module] = used - {module, "refq"}
    graph.pop("refq")
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"circle of imports: {' -> '.join(circle.args[1])}")
    assert len(order) == len(MODULES) - 1


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in NUMPY_ONLY])
def test_the_lower_rooms_need_numpy_only(module):
    for base, _ in imports(MODULES[module]):
        top = base.split(".")[0]
        if top in OPTIONAL:
            assert module == f"refq.{OPTIONAL[top]}"
        else:
            assert top in sys.stdlib_module_names | {"numpy", "refq"}, f"{module} imports {base}"


@pytest.mark.parametrize("path", sorted(SPEC.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_specification_needs_the_standard_library_only(path):
    for base, _ in imports(path):
        assert base.split(".")[0] in sys.stdlib_module_names | {"spec"}, f"{path.name} imports {base}"


def test_the_oracle_uses_nothing_beside_itself():
    files = sorted((SPEC / "oracle").glob("*.py"))
    assert len(files) >= 3
    for path in files:
        for base, _ in imports(path):
            assert base.startswith("spec.oracle") or base.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_the_package_uses_no_tests_tools_or_spec(module):
    used = {base.split(".")[0] for base, _ in imports(MODULES[module])}
    assert not used & {"spec", "tests", "tools", "pytest", "ml_dtypes", "gfloat", "torch"}


# --- what loads when --------------------------------------------------------------------------------------

HEAVY = {"onnx", "scipy", "ml_dtypes", "matplotlib", "tqdm", "onnxruntime", "torch", "google", "hypothesis"}


def loaded_by(statement):
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", [
    "import refq",
    "import refq; refq.decode(refq.encode([1.0], 'e4m3fn'), 'e4m3fn'); refq.quantize([1.0], 'nvfp4').pack()",
    "import refq.cli; refq.cli.main(['show', 'e4m3fn', '464'])",
    "import refq.conformance.check; refq.conformance.check.load('decode/e2m1-f32/exact/codes')",
])
def test_only_numpy_is_loaded(statement):
    loaded = loaded_by(statement)
    assert {"refq", "numpy"} <= loaded and not loaded & HEAVY


def test_onnx_is_loaded_by_what_needs_it():
    assert "onnx" in loaded_by("import refq; refq.quantize_model")


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__main__")])
def test_every_module_can_be_imported_first(module):
    """One interpreter per room would be slow: here all are loaded; the circle test above does the rest."""
    assert importlib.import_module(module).__name__ == module


def test_every_module_is_found_by_the_package():
    found = {info.name for info in pkgutil.walk_packages(refq.__path__, "refq.")} | {"refq"}
    assert found >= set(MODULES), "a folder without __init__.py?"


def test_the_public_names():
    assert len(set(refq.__all__)) == len(refq.__all__)
    for name in refq.__all__:
        assert getattr(refq, name) is not None
    assert callable(refq.quantize_model) and issubclass(refq.InputError, ValueError)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        refq.quantise


def test_no_bool_is_inverted_bit_by_bit():
    """`~True` is -2, and deprecated since Python 3.12: `not` for a row's own words, `~` for arrays."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
                name = getattr(node.operand, "attr", getattr(node.operand, "id", ""))
                bools = "has_|is_|signed|stochastic|neg_zero|nan_signed"
                assert not re.match(bools, name), f"{module}: ~{name}"


# --- words ------------------------------------------------------------------------------------------------

def public(tree):
    """(name, node) of the public functions and classes of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_explained(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = ["the module"] * (tree.body != [] and ast.get_docstring(tree) is None)
    names += [name for name, node in public(tree) if not (ast.get_docstring(node) or "").strip()]
    assert not names, f"{module}: no docstring: {', '.join(names)}"


@pytest.mark.parametrize("name", ["encode", "decode", "convert", "quantize", "dequantize", "number_format",
                                  "data_type"])
def test_the_public_functions_cite_their_clauses_and_errors(name):
    text = getattr(refq, name).__doc__
    assert re.search(r"Spec: [A-Z]+-\d", text) and re.search("InputError|errors as `encode`", text)


PREFIXES = ("VAL ROUND OVER NAN ZERO CAST LIST BLOCK RULE REC CB SPARSE TCAST ROT PACK GGUF ED MODEL VEC "
            "CHECK").split()
CITATION = re.compile(rf"\b(?:{'|'.join(PREFIXES)})-\d+\b")
HEADING = re.compile(rf"^#+ +({'|'.join(PREFIXES)})-(\d+)\b", re.MULTILINE)


def clauses():
    """Every clause id that is a heading of a page of the specification."""
    return [f"{prefix}-{number}" for path in sorted(SPEC.glob("*.md"))
            for prefix, number in HEADING.findall(path.read_text(encoding="utf-8"))]


def test_every_clause_has_one_heading():
    found = clauses()
    assert len(found) == len(set(found)), sorted(clause for clause in found if found.count(clause) > 1)
    assert {clause.split("-")[0] for clause in found} == set(PREFIXES)


@pytest.mark.parametrize("module", MODULES)
def test_every_clause_that_is_cited_exists(module):
    cited = set(CITATION.findall(MODULES[module].read_text(encoding="utf-8")))
    missing = sorted(cited - set(clauses()))
    assert not missing, f"{module} cites clauses that no page of spec/ has: {missing}"


def test_pages_cite_clauses_that_exist():
    known = set(clauses())
    pages = [*SPEC.glob("*.md"), *SPEC.rglob("*.py"), *ROOT.glob("t*/*.py")]
    assert len(pages) > 30
    cited = {(path.name, clause) for path in pages for clause in CITATION.findall(path.read_text("utf-8"))}
    assert not {(page, clause) for page, clause in cited if clause not in known}


def test_the_package_cites_every_part_of_the_specification():
    text = "".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    assert {citation.split("-")[0] for citation in CITATION.findall(text)} == set(PREFIXES)

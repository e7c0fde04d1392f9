"""The house: who may import whom, what is public, what is documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastbp

ROOT = Path(__file__).parents[1]
IN_KERNELS = {"kernel", "merged", "intrinsic", "device"}  # decorators
PACKAGE = ROOT / "fastbp"
# Each file imports only from rows above it (see docs/design.md, which lists the same).
HOUSE = [
    "errors",
    "files",
    "interrupts",
    "polynomials",
    "scalars",
    "ops",
    "nodes",
    "program",
    "lowering",
    "chains",
    "plan",
    "backends.threads",
    "backends.gpu",
    "backends.array",
    "backends.llvm",
    "backends.division",
    "backends.cpu.caches",
    "backends.cpu.target",
    "backends.cpu.words",
    "backends.cpu.chain_words",
    "backends.cpu.compiling",
    "backends.cpu.vectors",
    "backends.cpu.simd",
    "backends.cpu.bf16",
    "backends.cpu.gemm",
    "backends.cpu.few_columns",
    "backends.cpu.one_row",
    "backends.cpu.few_rows",
    "backends.cpu.kernels",
    "backends.cpu.side_process",
    "backends.cpu.loading",
    "backends.cpu.chain",
    "backends.cpu.claims",
    "backends.cpu.machine",
    "backends.cpu.probes",
    "backends.cpu.team",
    "backends.cpu.schedule",
    "backends.cpu.chain_table",
    "backends.cpu.in_place",
    "backends.cpu.straight_elements",
    "backends.cpu.straight_products",
    "backends.cpu.straight",
    "backends.cpu.binding",
    "backends.cpu.cross_entropy",
    "backends.cpu.executable",
    "backends.cuda.codes",
    "backends.cuda.table",
    "backends.cuda.tiles",
    "backends.cuda.ptx",
    "backends.cuda.simulator",
    "backends.cuda.twins",
    "backends.cuda.device",
    "backends.cuda.blas",
    "backends.cuda.operands",
    "backends.cuda.gemm",
    "backends.cuda.tensor_cores",
    "backends.cuda.elementwise",
    "backends.cuda.rowwise",
    "backends.cuda.chain_table",
    "backends.cuda.rows",
    "backends.cuda.blocks",
    "backends.cuda.kernels",
    "backends.cuda.keeping",
    "backends.cuda.offline",
    "backends.cuda.binding",
    "backends.cuda.streams",
    "backends.cuda.launching",
    "backends.cuda.executable",
    "backends",
    "arrays",
    "graph",
    "losses",
    "optim",
    "functional",
    "trees",
    "tracing",
    "functions",
    "transform",
    "initialisation",
    "layers",
    "feeding",
    "history",
    "progress",
    "training",
    "layered",
    "network",
    "data",
    "checks",
    "layout",
    "pictures",
    "measure",
    "explain",
    "cli",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__") if name != "__init__" else ""
        if path.read_text().strip():
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = set(modules())
    return {name.removeprefix("fastbp.") for name in found} & known


def test_the_house_lists_every_module():
    assert set(modules()) - {""} == set(HOUSE)


@pytest.mark.parametrize("name", HOUSE)
def test_imports_go_upwards(name):
    above = set(HOUSE[: HOUSE.index(name)])
    assert imported(modules()[name]) - {name} <= above


def test_design_shows_the_same_house():
    text = (ROOT / "docs" / "design.md").read_text()
    places = [text.index(f"`{name.replace('.', '/')}.py`") for name in HOUSE if name != "backends"]
    assert places == sorted(places)


def test_all_is_what_is_documented():
    """Every public name has a heading in docs/api.md, or stands in the first cell of a row; and no others do."""
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^#+ `fastbp\.(\w+)", text, re.MULTILINE))
    for cell in re.findall(r"^\| (`fastbp\.[^|]*)\|", text, re.MULTILINE):
        documented |= set(re.findall(r"`fastbp\.(\w+)", cell))
    assert documented == set(fastbp.__all__)
    for name in fastbp.__all__:
        assert hasattr(fastbp, name)


@pytest.mark.parametrize("name", ["", *HOUSE])
def test_public_things_have_docstrings(name):
    """By the source alone: not every module can be imported everywhere.

    What is inside kernels is not public; a twin in the simulator says what its intrinsic says.
    """
    path = modules()[name] if name else PACKAGE / "__init__.py"
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            inside = {d.id for d in node.decorator_list if isinstance(d, ast.Name)} & IN_KERNELS
            assert ast.get_docstring(node) or inside or name == "backends.cuda.twins", f"{name}.{node.name}"


def test_no_paths_of_a_machine():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert not re.search("/(home|root|work)/", path.read_text()), path


def choices_of_tuples(source: str) -> list[int]:
    """Lines where code chooses between tuples: by an expression, or by an unpacked name that both branches bind.

    Not by ``bf16``, which is known when a kernel is compiled: only one branch is left then.
    """
    tree = ast.parse(source)
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    unpacked = {a.value.id for a in assigned if isinstance(a.targets[0], ast.Tuple) and isinstance(a.value, ast.Name)}

    def bound(branch: list[ast.stmt]) -> dict[str, bool]:
        made = [b for b in branch if isinstance(b, ast.Assign) and isinstance(b.targets[0], ast.Name)]
        return {b.targets[0].id: isinstance(b.value, ast.Tuple) for b in made}

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp) and any(isinstance(side, ast.Tuple) for side in (node.body, node.orelse)):
            found.append(node.lineno)
        if isinstance(node, ast.If) and not (isinstance(node.test, ast.Name) and node.test.id == "bf16"):
            one, other = bound(node.body), bound(node.orelse)
            found += [node.lineno for name in one.keys() & other.keys() if one[name] or other[name] or name in unpacked]
    return found


@pytest.mark.parametrize("name", ["gemm", "tensor_cores", "elementwise", "rowwise", "operands", "kernels"])
def test_gpu_kernels_choose_no_tuples(name):
    """CUDA 13.0's NVVM optimises a kernel of blocks with such a choice for minutes, without an end in sight."""
    source = (PACKAGE / "backends" / "cuda" / f"{name}.py").read_text()
    assert choices_of_tuples(source) == []
    assert choices_of_tuples("x = (a, b) if c else (d, e)") == [1]
    assert choices_of_tuples("if c:\n    x = a, b\nelse:\n    x = f()") == [1]
    assert choices_of_tuples("if c:\n    x = f()\nelse:\n    x = g()\na, b = x") == [1]

"""The house is kept: imports point down its floors, files and functions stay short, tests stand where the code does."""

import ast
import pathlib

import pytest
from test_imports import MODULES, imports

ROOT = pathlib.Path(__file__).parents[1]
LONGEST_FILE, LONGEST_BODY, TESTS_A_LINE = 400, 60, 0.7

# From the ground up; a package imports itself, and those below.
CORE = (
    ("ranges",),
    ("types",),
    ("returns", "linear", "lookup", "models", "ascent"),
    ("preferences",),
    ("rollout",),
    ("exact",),
    ("run",),
    ("measure", "gradients", "lanes", "checkpoint"),
    ("algorithms",),
)
EXPERIMENTS = (
    ("files", "output"),
    ("statistics",),
    ("settings", "report"),
    ("runs",),
    ("claims",),
    ("commands",),
    ("__main__", "__init__"),
)


def storeys(floors) -> dict[str, int]:
    return {name: height for height, names in enumerate(floors) for name in names}


def climbing(package: str, floors, modules) -> list[str]:
    """Imports that do not point down: `importer -> imported`."""
    height, found = storeys(floors), []
    for module, tree in modules.items():
        home = module.split(".")
        if home[0] != package:
            continue
        own = home[1]
        for name in imports(tree):
            where = name.split(".")
            inside = where[0] == package and len(where) > 1 and where[1] in height and where[1] != own
            if inside and height[where[1]] >= height[own]:
                found.append(f"{module} -> {name}")
    return found


@pytest.mark.parametrize(("package", "floors"), [("bilevel", CORE), ("experiments", EXPERIMENTS)])
def test_imports_point_down(package, floors):
    homes = {module.split(".")[1] for module in MODULES if module.startswith(f"{package}.")}
    assert homes - {"__init__"} <= storeys(floors).keys(), "a package without a floor"
    assert climbing(package, floors, MODULES) == []


def test_an_import_that_climbs_is_seen():
    planted = {"experiments.statistics.rates": ast.parse("from experiments.runs.driver import train")}
    assert "experiments.statistics.rates -> experiments.runs.driver" in climbing("experiments", EXPERIMENTS, planted)


def bodies(tree):
    """(name, lines of the body without its docstring) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            has_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            body = node.body[1:] if has_text else node.body
            if body:
                yield node.name, body[-1].end_lineno - body[0].lineno + 1


@pytest.mark.parametrize("module", MODULES)
def test_no_file_and_no_function_is_long(module):
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert path.read_text().count("\n") <= LONGEST_FILE
    assert [name for name, lines in bodies(MODULES[module]) if lines > LONGEST_BODY] == []


def lines_of(folder: str) -> int:
    return sum(path.read_text().count("\n") for path in (ROOT / folder).rglob("*.py"))


def test_experiments_have_seven_tenths_of_a_line_of_tests_a_line():
    assert lines_of("tests/experiments") >= TESTS_A_LINE * lines_of("experiments")


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_tests_stand_where_the_code_does(path):
    where = path.relative_to(ROOT / "tests")
    if len(where.parts) > 1:
        assert (ROOT / where.parent).is_dir(), f"{where.parent} is no folder of the code"

"""Imports point down, each foreign package lives where it should, and what is public is documented."""

import ast
import importlib
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(path for package in ("envs", "bilevel", "experiments") for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in FILES}


def imports(tree: ast.Module) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(name: str) -> set[str]:
    return {module for module, tree in MODULES.items() if any(x.split(".")[0] == name for x in imports(tree))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    ours = {x for x in imports(MODULES[module]) if x.split(".")[0] in ("envs", "bilevel", "experiments")}
    if module.startswith("envs"):
        assert all(x.startswith("envs") for x in ours)
    if module.startswith("bilevel"):
        assert not any(x.startswith("experiments") for x in ours)
    if module.startswith("bilevel.") and not module.startswith("bilevel.algorithms"):
        assert not any(x.startswith("bilevel.algorithms") for x in ours)
    if module.startswith("bilevel.algorithms."):
        assert not any(x.startswith("bilevel.algorithms") for x in ours)
    if module == "bilevel.types":
        assert all(x.startswith(("envs.base", "bilevel.ranges")) for x in ours)
    if module == "bilevel.ranges":
        assert not ours


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_can_be_imported(module):
    importlib.import_module(module)


def test_no_module_imports_itself_in_a_circle():
    graph = {module: imports(tree) & MODULES.keys() for module, tree in MODULES.items()}
    order = []
    while len(order) < len(graph):
        ready = [module for module, needs in graph.items() if module not in order and needs <= {*order}]
        assert ready, f"a circle among {sorted(graph.keys() - {*order})}"
        order += ready


def test_foreign_packages_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [x for extra in project["optional-dependencies"].values() for x in extra]
    declared = {re.split(r"[<>=\[-]", x)[0] for x in project["dependencies"] + extras}
    ours = {"envs", "bilevel", "experiments"}
    for module, tree in MODULES.items():
        foreign = {x.split(".")[0] for x in imports(tree)} - sys.stdlib_module_names - ours
        assert {{"yaml": "pyyaml"}.get(name, name) for name in foreign} <= declared, module


def test_each_foreign_package_lives_in_one_place():
    assert importers("distrax") == {"bilevel.models"}
    assert importers("orbax") == {"bilevel.checkpoint"}
    assert importers("gymnax") == {"envs.gymnax"}
    assert importers("brax") == {"envs.brax"}


def test_no_module_sets_the_precision_or_configures_jax_but_the_command_line():
    users = {module for module, tree in MODULES.items() if "config.update" in ast.unparse(tree)}
    assert users == {"experiments.__main__"}
    users = {module for module, tree in MODULES.items() if "enable_x64(" in ast.unparse(tree)}
    assert all(module.startswith("experiments.") for module in users)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module):
    tree = MODULES[module]
    assert not tree.body or ast.get_docstring(tree)
    methods = [node for home in tree.body if isinstance(home, ast.ClassDef) for node in home.body]
    for node in tree.body + methods:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name

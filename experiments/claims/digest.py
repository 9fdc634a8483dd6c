"""What a computation depends on: the digest of all the code that it reaches, definition by definition.

Reached is what a definition names (functions, classes, constants, through imports within `PACKAGES`), what those name, and
so on, and the statements with an effect of every module that is imported on the way. Of each counts its syntax tree without
docstrings, comments and annotations; of a package from elsewhere, its version.

What is reached through an attribute of something that is passed in is not seen: a class counts where its object is made.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("bilevel", "envs", "experiments")
ALWAYS = ("jax", "jaxlib", "numpy")  # packages whose versions count wherever they are used
EFFECTS, WHOLE = "<effects>", "<whole>"  # in place of a name: a module's statements with an effect, and all it defines

Place = tuple[str, str]  # a module, and a name in it; or a name and a keyword of its call, as in CLAIM.measure


@dataclasses.dataclass(frozen=True, eq=False)  # looked up by identity
class Module:
    """The statements of a module, without docstrings and annotations."""

    name: str
    named: dict[str, list[ast.stmt]]  # name -> the statements that bind it
    imports: dict[str, Place]  # name -> the place that it is imported from, in a statement of its own
    effects: list[ast.stmt]  # the statements that do something else than to bind names
    needs: list[Place]  # modules that are imported when this one is


def digest(*places: Place) -> str:
    """Returns twelve hexadecimal digits that change with what is `reached` from those places."""
    return hashlib.sha256(json.dumps(reached(*places), sort_keys=True).encode()).hexdigest()[:12]


def reached(*places: Place) -> dict[str, str]:
    """Returns what is reached from those places, by place: syntax trees, where an import leads, versions of packages.

    Raises:
        LookupError: nothing is defined there.
    """
    found, waiting, seen = {package: _version(package) for package in ALWAYS}, [*places], set()
    module_of = functools.cache(lambda name: _parsed(name, _source(name)))  # as the files are now
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        module, name = place
        if _is_followed(module):
            text, following = _examined(module_of(module), name)
            found |= {":".join(place): text} if text else {}
            waiting += following
        elif (package := module.partition(".")[0]) not in sys.stdlib_module_names and package not in found:
            found[package] = _version(package)
    if missing := [f"{module} defines no {name}" for module, name in places if f"{module}:{name}" not in found]:
        raise LookupError("; ".join(missing))
    return found


@functools.lru_cache(maxsize=2**14)
def _examined(module: Module, name: str) -> tuple[str, list[Place]]:
    """Returns the text that stands in the digest for a name of a module, and the places that it leads to."""
    if name == WHOLE:
        return "", [(module.name, other) for other in (EFFECTS, *module.named)]
    if name == EFFECTS:
        return _dumped(module.effects), [*module.needs, *_named_by(module.effects, module)]
    if name in module.imports:
        return ":".join(module.imports[name]), [module.imports[name], (module.name, EFFECTS)]
    name, _, keyword = name.partition(".")
    statements = module.named.get(name, [])
    if keyword:
        calls = [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)]
        statements = [ast.Expr(x.value) for call in calls[:1] for x in call.keywords if x.arg == keyword]
    return _dumped(statements), [*_named_by(statements, module), (module.name, EFFECTS)]


def _dumped(statements: list[ast.stmt]) -> str:
    return "\n".join(map(ast.dump, statements))


def _version(package: str) -> str:
    """Returns the version of a package from elsewhere, which is named as it is imported; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ", ".join(importlib.metadata.version(name) for name in sorted({*_distributions().get(package, [])}))


_distributions = functools.cache(importlib.metadata.packages_distributions)  # of the names that differ


def _named_by(statements: list[ast.stmt], module: Module) -> Iterator[Place]:
    """Yields the places that statements of a module refer to."""
    for statement in statements:
        names = _global_names(symtable.symtable(ast.unparse(statement), module.name, "exec"))
        for name, attribute in _names_with_attributes(statement):
            if name not in names or name not in module.named:
                continue  # local, or built in
            origin, what = module.imports.get(name, ("", ""))
            if what == WHOLE and attribute and _is_followed(origin):
                yield _place(origin, attribute)  # of a whole module, only what is taken
            else:
                yield module.name, name
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from _origins(node, module.name).values()


def _names_with_attributes(statement: ast.stmt) -> set[Place]:
    """Returns every name in a statement with the attribute that is taken of it, or with ""."""
    nodes = [*ast.walk(statement)]
    dotted = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    inside = {id(node.value) for node in dotted}
    alone = {(node.id, "") for node in nodes if isinstance(node, ast.Name) and id(node) not in inside}
    return alone | {(node.value.id, node.attr) for node in dotted}


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Returns the names that a statement at the top of a module takes from the module, by the statement's symbol table."""
    top = table.get_type() == "module"
    own = {x.get_name() for x in table.get_symbols() if x.is_referenced() and (top or x.is_global())}
    return own.union(*map(_global_names, table.get_children()))


@functools.lru_cache(maxsize=1024)
def _parsed(name: str, source: bytes) -> Module:
    """Returns a module of `PACKAGES`, read from its source."""
    parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
    found = Module(name, {}, {}, [], [(parent, EFFECTS) for parent in parents])
    for statement in _bare(ast.parse(source)).body:
        origins = [_origins(x, name) for x in ast.walk(statement) if isinstance(x, ast.Import | ast.ImportFrom)]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found.imports.update(origins[0])
        if not isinstance(statement, ast.FunctionDef):
            found.needs.extend((origin, EFFECTS) for x in origins for origin, _ in x.values() if _is_followed(origin))
        names, more = _bound(statement)
        for bound in names:
            found.named.setdefault(bound, []).append(statement)
        if more:
            found.effects.append(statement)
    return found


def _source(module: str) -> bytes:
    return _file(module).read_bytes()


def _bound(statement: ast.stmt) -> tuple[set[str], bool]:
    """Returns the names that a statement binds, and whether it does something else too; a block does what is in it."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}, False
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}, False
        case ast.Assign(targets=targets):
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            names = {part.id for part in parts if isinstance(part, ast.Name)}
            return names, len(names) < len(parts)
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            return {name}, False
        case ast.If() | ast.Try() | ast.With():
            blocks = [statement, *getattr(statement, "handlers", [])]
            inner = [_bound(x) for block in blocks for x in ast.iter_child_nodes(block) if isinstance(x, ast.stmt)]
            return set().union(*(names for names, _ in inner)), any(more for _, more in inner)
    return set(), not isinstance(statement, ast.Pass)


def _origins(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, Place]:
    """Returns where the names that an import statement binds in a module come from."""
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.partition(".")[0]: (alias.name, WHOLE) for alias in node.names}
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    return {alias.asname or alias.name: _place(origin, alias.name) for alias in node.names}


def _place(module: str, name: str) -> Place:
    """Returns the place of a name of a module, or the whole of the module that is called so."""
    return (f"{module}.{name}", WHOLE) if _is_followed(module) and _file(f"{module}.{name}") else (module, name)


def _is_followed(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _file(module: str) -> Path | None:
    """Returns the file of a module of `PACKAGES`, without importing it; None if there is no such module."""
    package, *names = module.split(".")
    home = Path(importlib.util.find_spec(package).origin).parent.joinpath(*names)
    return next((path for path in (home / "__init__.py", home.with_name(f"{home.name}.py")) if path.is_file()), None)


def _bare(tree: ast.Module) -> ast.Module:
    """Takes away docstrings, other texts that stand alone, and annotations; the tree itself."""
    for node in ast.walk(tree):
        match node:
            case ast.arg():
                node.annotation = None
            case ast.AnnAssign():
                node.annotation = ast.Constant(...)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                node.returns = None
        if isinstance(getattr(node, "body", None), list):
            node.body = [x for x in node.body if not _is_text(x)] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    expression = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(expression, ast.Constant) and isinstance(expression.value, str)

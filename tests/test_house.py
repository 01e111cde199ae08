"""What keeps the house one that a newcomer can read: short files and signatures, no import circle, no shadowed name."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import graphprune as gp

HOME = Path(gp.__file__).parent
LINES, PARAMETERS = 400, 8

LONG_SIGNATURES: dict[str, str] = {}
"""Functions with more parameters that are no public keyword wrappers, with the reason."""

PRINTING = "a report is printed by modules that know all reports; they are imported when one is printed"
LATE: dict[tuple[str, str], str] = {
    ("graphprune.report.data", "graphprune.report.terminal"): PRINTING,
    ("graphprune.report.curves", "graphprune.report.terminal"): PRINTING,
    (
        "graphprune.hosts.torch.host",
        "graphprune.hosts.torch.module",
    ): "a host is asked for the module that it and another make",
}
"""Imports in functions that close a circle, with the reason."""


@cache
def modules() -> dict[str, Path]:
    """The modules of the package, by name."""
    found = {}
    for path in sorted(HOME.rglob("*.py")):  # a link to the passes is not followed by all versions of Python
        found[".".join(path.relative_to(HOME.parent).with_suffix("").parts)] = path
    for path in sorted((HOME / "passes").glob("*.py")):
        found[f"graphprune.passes.{path.stem}"] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


def test_all_files_are_looked_at():
    assert len(modules()) > 300
    assert {"graphprune", "graphprune.passes.verify", "graphprune.hosts.torch.ops.rows"} <= modules().keys()


def test_no_file_is_long():
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > LINES} == {}


# -- parameters ----------------------------------------------------------------------------------------------------


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods by qualified name."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}.{child.name}" if isinstance(child, ast.ClassDef | ast.FunctionDef) else prefix
            if isinstance(child, ast.FunctionDef):
                yield name, child
            yield from inside(child, name)

    return inside(tree(module), module)


def n_parameters(function: ast.FunctionDef) -> int:
    """Parameters but for the instance or the class."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    more = [each for each in (given.vararg, given.kwarg) if each is not None]
    return len(names) - (names[:1] in (["self"], ["cls"])) + len(more)


def wrappers() -> set[str]:
    """Where the public functions are."""
    public = {name: getattr(gp, name) for name in gp.__all__}
    return {f"{each.__module__}.{name}" for name, each in public.items() if inspect.isfunction(each)}


def test_no_signature_is_long():
    found = {name: n_parameters(each) for module in modules() for name, each in functions(module)}
    long = {name: n for name, n in found.items() if n > PARAMETERS}
    assert {name: n for name, n in long.items() if name not in wrappers() and name not in LONG_SIGNATURES} == {}
    assert [name for name in LONG_SIGNATURES if name not in long] == [], "no longer an exception"


def test_parameters_are_counted():
    source = "class A:\n    def f(self, a, /, b, *c, d=1, **e): ...\ndef g(a): ...\n"
    found = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.FunctionDef)]
    assert [n_parameters(each) for each in found] == [1, 5]


# -- imports -------------------------------------------------------------------------------------------------------


def imports(module: str, *, late: bool) -> Iterator[str]:
    """The modules that a module imports, for checkers alone or not; in functions only where ``late``."""

    def inside(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and not late:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from inside(child)

    for node in inside(tree(module)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{each.name}" for each in node.names]
            yield from (name if name in modules() else str(node.module) for name in names)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that lie on a circle: what is left when modules that import none of the others go, and so on."""
    left = {name: {other for other in found if other in graph and other != name} for name, found in graph.items()}
    for _ in range(2):  # and then modules that none of the others imports
        while gone := {name for name, found in left.items() if not found}:
            left = {name: found - gone for name, found in left.items() if name not in gone}
        left = {name: {other for other, found in left.items() if name in found} for name in left}
    return sorted(left)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c", "os"}, "c": {"b"}, "d": {"a"}, "e": set()}) == ["b", "c"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_import_circle():
    graph = {module: {*imports(module, late=True)} for module in modules()}
    for begin, end in LATE:
        assert end in graph[begin], f"{begin} no longer imports {end}"
        assert end not in imports(begin, late=False)
        graph[begin].discard(end)
    assert circles(graph) == []


# -- names ---------------------------------------------------------------------------------------------------------

ROOMS = {"statistics": "a package of many modules, of which none is run by its path: all imports are absolute"}
"""Names that Python itself has for something else, with the reason."""


def test_no_module_of_the_package_has_the_name_of_a_public_function_or_of_another_package():
    own = {name.partition(".")[2] for name in modules() if name.count(".") == 1}
    assert sorted(own & {*gp.__all__}) == []
    assert sorted(own & {*sys.stdlib_module_names, *packages_distributions()} - {"graphprune", "passes"}) == sorted(
        ROOMS
    )


@pytest.mark.parametrize("name", [name for name in gp.__all__ if not name.startswith("_")])
def test_a_public_name_stays_what_it_is_when_modules_are_imported(name):
    found = getattr(gp, name)
    importlib.import_module(found.__module__ if hasattr(found, "__module__") else "graphprune.api")
    assert getattr(gp, name) is found

"""What is imported when: a command pays for what it uses. No seconds are measured here, ``tools/bench`` does that."""

import ast
import importlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import graphprune as gp
from graphprune import compensation, defaults
from graphprune.hosts.late import late_import
from graphprune.planning import share

HEAVY = {"sympy", "networkx", "onnx_ir", "onnxruntime", "torch", "matplotlib", "onnx", "pydantic"}


def loaded_after(code, *arguments):
    """What a new interpreter has imported of HEAVY after some code; the code must end by itself, or by SystemExit."""
    program = f"""
import json, sys
sys.argv = ["graphprune", *{list(arguments)!r}]
try:
{textwrap.indent(textwrap.dedent(code), "    ")}
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({HEAVY!r} & set(sys.modules))), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


COMMAND = "from graphprune.cli import main; main()"


@pytest.mark.parametrize(
    ("code", "arguments", "unused"),
    [
        ("import graphprune; graphprune.GraphpruneError, dir(graphprune)", (), HEAVY | {"numpy"}),
        (COMMAND, ("--version",), HEAVY),
        (COMMAND, ("inspect", "MODEL"), {"sympy", "networkx", "torch", "matplotlib", "onnxruntime"}),
    ],
    ids=["import", "version", "inspect"],
)
def test_what_is_not_used_is_not_imported(code, arguments, unused):
    model = str(Path(gp.__file__).parent / "demo" / "demo_net.onnx")
    loaded, said = loaded_after(code, *(model if each == "MODEL" else each for each in arguments))
    assert set() == loaded & unused
    assert ("version" in str(arguments)) == (said == f"{gp.__version__}\n")


def test_the_watch_sees_an_import():
    assert {"networkx"} == loaded_after("import networkx")[0] & {"networkx", "torch"}


# -- the public names ----------------------------------------------------------------------------------------------


def declared():
    """The public names and where type checkers see them come from."""
    tree = ast.parse(Path(gp.__file__).read_text())
    block = next(each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    return {alias.name: each.module for each in block.body for alias in each.names}


def test_checkers_and_the_interpreter_see_the_same_names():
    assert {*declared(), "__version__"} == set(gp.__all__)
    for name, module in declared().items():
        assert getattr(importlib.import_module(module), name) is getattr(gp, name), name


def test_dir_lists_every_public_name():
    assert set(gp.__all__) <= set(dir(gp))


@pytest.mark.parametrize("name", ["sweep", "sensitivity"])
def test_a_function_is_not_replaced_by_the_module_of_its_name(name):
    code = f"""
    import graphprune.commands.curves, graphprune.session
    from graphprune import {name}
    assert graphprune.{name} is {name}
    print(type({name}).__name__)
    """
    assert not (Path(gp.__file__).parent / f"{name}.py").exists()
    assert loaded_after(code)[1] == "function\n"


def test_modules_are_attributes():
    assert loaded_after("import graphprune as gp; print(gp.api.__name__)")[1] == "graphprune.api\n"


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError) as error:
        gp.prun  # noqa: B018
    assert str(error.value) == "module 'graphprune' has no attribute 'prun'"
    assert not hasattr(gp, "__wrapped__")


def test_names_are_spoken_of_without_what_they_stand_for():
    built_in = loaded_after("from graphprune.importance import CRITERIA; print(*CRITERIA)")[1].split()
    assert tuple(built_in) == defaults.CRITERIA
    assert share.ALLOCATIONS == defaults.ALLOCATIONS
    assert (*compensation.METHODS, compensation.NORMS) == defaults.COMPENSATIONS


# -- a module that stands in for another until it is used ----------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A package on the path that counts its imports, and a module that imports it."""
    (tmp_path / "made_late").mkdir()
    (tmp_path / "made_late" / "__init__.py").write_text("from made_late.inner import Number\nimport made_late.inner\n")
    (tmp_path / "made_late" / "inner.py").write_text("import made_late\nclass Number: ...\n")
    (tmp_path / "made_user.py").write_text(
        "import made_late\nis_number = lambda x: isinstance(x, made_late.Number)\nnew = lambda: made_late.Number()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("made_")]:
        del sys.modules[name]


def test_late_imports_at_first_use(made):
    with late_import("made_late"):
        import made_user
    assert not [name for name in sys.modules if name.startswith("made_late")]
    assert made_user.is_number(made_user.new())
    import made_late

    assert isinstance(made_user.new(), made_late.Number)
    assert type(made_late) is type(sys)


@pytest.mark.parametrize("statement", ["import made_late", "from made_late import Number", "import made_late.inner"])
def test_others_get_the_real_module(made, statement):
    with late_import("made_late"):
        import made_user
    scope = {}
    exec(statement, scope)
    import made_late

    assert scope.get("made_late", made_late) is made_late
    assert scope.get("Number", made_late.Number) is made_late.Number
    assert made_user.is_number(made_late.Number())


@pytest.mark.parametrize("statement", ["from made_late import Number", "import made_late.inner", "import made_user"])
def test_what_looks_into_it_at_once_gets_the_real_module(made, statement):
    with late_import("made_late"):
        exec(statement)
        import made_user

        assert made_user.is_number(made_user.new())
    import made_late

    assert isinstance(made_user.new(), made_late.Number)


def test_what_is_imported_already_stays(made):
    import made_late

    with late_import("made_late"):
        import made_user
    assert made_user.made_late is made_late is sys.modules["made_late"]


def test_a_submodule_may_come_late(made):
    (made / "made_late" / "apart.py").write_text("value = 3\n")
    (made / "made_late" / "__init__.py").write_text("from made_late import apart\nuse = lambda: apart.value\n")
    with late_import("made_late.apart"):
        import made_late
    assert "made_late.apart" not in sys.modules
    assert made_late.use() == sys.modules["made_late.apart"].value == 3


def test_what_is_not_there_is_missing_as_ever():
    with pytest.raises(ModuleNotFoundError), late_import("made_nowhere"):
        import made_nowhere  # noqa: F401


def test_an_error_on_the_way_leaves_nothing(made):
    with pytest.raises(ZeroDivisionError), late_import("made_late"):
        1 / 0  # noqa: B018
    assert "made_late" not in sys.modules


SYMBOLS = """
import onnx_ir as ir
assert str(ir.SymbolicDim("n") + 1) == "n + 1", ir.SymbolicDim("n") + 1
import sympy
from sympy import Symbol
assert type(sympy) is type(ir) and sympy.Symbol is Symbol
assert ir.SymbolicDim(Symbol("n") * 2).value == "2*n"
"""


@pytest.mark.parametrize(
    "code",
    [
        "import graphprune.hosts, sys\nassert 'sympy' not in sys.modules" + SYMBOLS,
        "import sympy, graphprune.hosts" + SYMBOLS,
        "import onnx_ir, graphprune.hosts" + SYMBOLS,
        "import graphprune.hosts\nimport torch.fx.experimental.symbolic_shapes as shapes, sympy\n"
        "assert shapes.sympy is sympy" + SYMBOLS,
    ],
    ids=["first", "after sympy", "after onnx_ir", "before torch"],
)
def test_symbolic_sizes_work(code):
    assert "sympy" in loaded_after(code)[0]

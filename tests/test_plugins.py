"""Plug-ins: one registry for all kinds, and an example package that is installed and found."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from test_cli import run, small_model

import graphprune as gp
from graphprune import importance, ops, passes, registry
from graphprune.errors import GraphpruneWarning, OptionError, TargetError
from graphprune.hosts.plugins import HOSTS, HostKind
from graphprune.importance import CRITERIA
from graphprune.opening import open_host
from graphprune.passes import all_passes
from graphprune.pipeline.passes import Pass
from graphprune.planning import share
from graphprune.registry import Registry

EXAMPLE = Path(__file__).parent / "plugin_example"


# -- a package -----------------------------------------------------------------------------------------------------


def installed(folder):
    """Installs the example into a folder as an installer does: the module, and what is said of the package."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (about / "entry_points.txt").write_text("\n".join(groups))
    shutil.copy(EXAMPLE / "graphprune_example.py", folder)
    return folder


CODE = """
import json, sys
import graphprune as gp
from graphprune import ops
from graphprune.importance import CRITERIA
from graphprune.ir.printing import print_rule
from graphprune.passes import all_passes
from graphprune.planning.share import METHODS

assert "example-largest" in CRITERIA and "example-alike" in METHODS and "example-count" in all_passes()
assert "graphprune_example" not in sys.modules  # names are known before anything is imported
scale = ops.lookup("com.example::Scale")
rule = scale(ops.Call("com.example::Scale", ((2, 24), (24,)), ((2, 24),)))
result = gp.prune(
    "net.mlp.json",
    pipeline="fold-constants,analyze,score{criterion=example-largest},allocate{macs=0.6 align=1 "
    "allocation=example-alike},slice-groups,remove-dead-nodes,verify,example-count{word=weights}",
)
print(json.dumps({
    "rule": print_rule(rule),
    "kept": [[row.kept, row.size] for row in result.report.groups],
    "macs": result.report.cost("macs").fraction,
    "proof": [check.name for check in result.report.proof if check.passed],
    "notes": list(result.report.notes),
}))
"""


def test_an_example_package_is_installed_and_found(tmp_path):
    folder = installed(tmp_path / "site")
    (tmp_path / "net.mlp.json").write_text(json.dumps({"widths": [8, 24, 16, 4]}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rule"] == "n c, c -> n c"
    (a, wide), (b, narrow) = found["kept"]
    assert (wide, narrow) == (24, 16)
    assert wide - a == narrow - b > 0  # equal steps
    assert found["macs"] <= 0.6
    assert found["proof"] == ["masked", "permutation", "onnxruntime"]
    weights = 8 * a + a * b + b * 4
    assert f"the model holds {weights} weights" in found["notes"]


def test_without_the_package_there_is_nothing_of_it(tmp_path):
    (tmp_path / "net.mlp.json").write_text("{}")
    assert "example-largest" not in CRITERIA
    with pytest.raises(OptionError, match="^unknown pass 'example-count'"):
        gp.prune(tmp_path / "net.mlp.json", pipeline="analyze,example-count")


# -- the registry --------------------------------------------------------------------------------------------------


class Package:
    def __init__(self, name):
        self.name = name


def entries(monkeypatch, *found):
    """Lets packages bring ``(name, object, package)``; an object as text is where it would be imported from."""
    made = []
    for name, value, package in found:
        entry = EntryPoint(name, value if isinstance(value, str) else f"nowhere:{name}", "group")
        vars(entry)["dist"] = Package(package)
        if not isinstance(value, str):
            vars(entry)["load"] = lambda value=value: value
        made.append(entry)
    monkeypatch.setattr(registry, "entry_points", lambda group: tuple(made))


def test_names_in_order_and_what_they_stand_for(monkeypatch):
    entries(monkeypatch, ("zeta", 3, "a"))
    table = Registry("number", {"two": 2, "one": 1}, group="group")
    table.register("four", 4)
    assert list(table) == ["two", "one", "zeta", "four"]
    assert dict(table) == {"two": 2, "one": 1, "zeta": 3, "four": 4}
    assert len(table) == 4
    with pytest.raises(OptionError) as caught:
        table.find("for")
    assert str(caught.value) == "unknown number 'for' (did you mean 'four'?); expected one of four, one, two, zeta"
    del table["four"]
    assert "four" not in table
    with pytest.raises(KeyError):
        table["four"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", "'one' is a built-in number; give yours another name"),
        ("zeta", "there is a number 'zeta' already; give yours another name, or say replace=True if it is to take the place of that one"),
        ("four", "there is a number 'four' already; give yours another name, or say replace=True if it is to take the place of that one"),
        ("", "a number needs a name"),
    ],
)  # fmt: skip
def test_nothing_is_replaced_without_a_word(monkeypatch, name, message):
    entries(monkeypatch, ("zeta", 3, "a"))
    table = Registry("number", {"one": 1}, group="group")
    table.register("four", 4)
    table.register("four", 4)  # the same again
    with pytest.raises(OptionError) as caught:
        table.register(name, 5)
    assert str(caught.value) == message
    if name in ("zeta", "four"):
        table.register(name, 5, replace=True)
        assert table[name] == 5


def test_a_function_that_is_defined_again_is_the_same():
    table = Registry("function", {})

    def cell():
        def mine():
            return np.zeros(3)

        return mine

    table.register("mine", cell())
    table.register("mine", cell())
    with pytest.raises(OptionError, match="^there is a function 'mine' already"):
        table.register("mine", lambda: 3)
    arrays = Registry("array", {})
    arrays.register("a", np.zeros(3))
    with pytest.raises(OptionError, match="^there is an array 'a' already"):
        arrays.register("a", np.zeros(3))


def test_plugins_that_take_a_name_are_left_out_with_a_warning(monkeypatch):
    entries(monkeypatch, ("one", 7, "other"), ("new", 8, "b"), ("new", "elsewhere:new", "c"))
    table = Registry("number", {"one": 1}, group="group")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert dict(table) == {"one": 1, "new": 8}
    assert [str(each.message) for each in told] == [
        "the number 'new' of package 'c' is left out, for that of 'b' has its name; uninstall the package, or ask its "
        "author for another name",
        "the number 'one' of package 'other' is left out, for a built-in one has its name; uninstall the package, or "
        "ask its author for another name",
    ]
    assert {each.category for each in told} == {GraphpruneWarning}


def test_a_broken_plugin_harms_only_who_asks_for_it(monkeypatch, tmp_path):
    (tmp_path / "broken_plugin.py").write_text("raise SystemExit('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    entries(monkeypatch, ("broken", "broken_plugin:thing", "bad"), ("wrong", 3, "bad"))
    table = Registry("pass", {}, group="graphprune.passes", plugin=passes._plugin)
    assert list(table) == ["broken", "wrong"]
    for name, message in (
        ("broken", "the pass 'broken' of package 'bad' cannot be imported (broken_plugin:thing): SystemExit: no licence; mend or uninstall the package"),
        ("wrong", "the pass 'wrong' of package 'bad' is none: a 'int' is no class of passes; mend or uninstall the package"),
    ):  # fmt: skip
        with pytest.raises(OptionError) as caught:
            table.find(name)
        assert str(caught.value) == message


def test_a_broken_pass_is_listed_with_the_reason(monkeypatch):
    table = Registry("pass", dict(list(all_passes().items())[:2]), group="graphprune.passes", plugin=passes._plugin)
    entries(monkeypatch, ("broken", "no_such_module:thing", "bad"))
    monkeypatch.setattr("graphprune.passes._REGISTRY", table)
    rows = json.loads(run("passes", "--json").stdout)["passes"]
    assert [row["name"] for row in rows] == ["select", "fold-constants", "broken"]
    assert rows[-1]["doc"].startswith("the pass 'broken' of package 'bad' cannot be imported (no_such_module:thing): ")


@pytest.mark.parametrize(
    ("table", "value", "reason"),
    [
        (CRITERIA, 3, "a 'int' is neither a function nor a Criterion"),
        (share.METHODS, 3, "a 'int' is neither a function nor an Allocation"),
        (HOSTS, open_host, "a 'function' is no HostKind"),
        (all_passes(), Pass, "its name is ''"),
    ],
    ids=["criterion", "allocation", "host", "pass"],
)
def test_what_a_plugin_is_not(table, value, reason):
    with pytest.raises(TypeError) as caught:
        table._plugin("thing", value)
    assert str(caught.value) == reason


# -- what users register -------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return small_model(tmp_path / "m.onnx")


def test_a_criterion(model):
    importance.register("test-first", lambda e: {g.name: -np.arange(float(g.size)) + g.size for g in e.analysis.groups})
    try:
        plan = gp.prune(model, target="macs=0.5", criterion="test-first", verify=False).plan
        assert list(plan.parameters["first.weight"][1]) == list(range(8))
        with pytest.raises(OptionError, match="^there is a criterion 'test-first' already"):
            importance.register("test-first", lambda e: {})
    finally:
        del CRITERIA["test-first"]
    with pytest.raises(OptionError, match="^'l2' is a built-in criterion"):
        importance.register("l2", lambda e: {})


def test_an_allocation(model):
    given = []

    def half(problem):
        given.append(problem)
        return np.where(problem.model.full > 8, 8, problem.model.full)

    share.register("test-half", half)
    try:
        result = gp.prune(model, target="macs=0.5", allocation="test-half", verify=False)
        assert [row.kept for row in result.report.groups] == [8]
        assert given[0].allowed == {"first.weight[1]"}
        with pytest.raises(TargetError, match="what allocation 'test-half' keeps does not meet the target 'macs=0.2'"):
            gp.prune(model, target="macs=0.2", allocation="test-half", verify=False)
        for wrong, message in ((0.5, "no whole number"), (0, "fewer than 1 unit"), (99, "more than all")):
            share.register("test-half", lambda problem, n=wrong: np.full(1, n), replace=True)
            with pytest.raises(OptionError, match=message):
                gp.prune(model, target="macs=0.5", allocation="test-half", verify=False)
        share.register("test-half", half, needs="losses", replace=True)
        text = "analyze,score,allocate{macs=0.5 allocation=test-half},slice-groups"
        with pytest.raises(OptionError, match="^allocation 'test-half' shares the budget by losses on calibration"):
            gp.prune(model, pipeline=text, verify=False)
        options = {"target": "macs=0.5", "allocation": "test-half", "calibration": "random", "verify": False}
        assert "measure-losses" in [name for name, _ in gp.prune(model, **options).report.seconds]
        assert given[-1].losses.keys() == given[-1].allowed
    finally:
        del share.METHODS["test-half"]


def test_a_pass(model):
    @dataclass(frozen=True)
    class Mine(Pass):
        name: ClassVar[str] = "test-mine"
        word: str = "a"

        def run(self, state):
            return state

    passes.register(Mine)
    try:
        text = "analyze,test-mine{word='b c'},score,allocate{macs=0.5},slice-groups"
        assert "test-mine" in [name for name, _ in gp.prune(model, pipeline=text, verify=False).report.seconds]
    finally:
        del all_passes()["test-mine"]

    @dataclass(frozen=True)
    class Odd(Mine):
        what: complex = 1j

    with pytest.raises(OptionError) as caught:
        passes.register(Odd)
    assert str(caught.value) == (
        "option 'what' of pass 'test-mine' is of type '<class 'complex'>', which no text can say; take bool, int, float, "
        "str, a tuple of one of them, or passes"
    )
    assert "test-mine" not in all_passes()


def test_a_rule():
    ops.register("test::plugin", "n c -> n c")
    ops.register("test::plugin", "n c -> n c")
    try:
        with pytest.raises(OptionError, match="^there is a rule 'test::plugin' already; .* replace=True"):
            ops.register("test::plugin", "n c -> c n")
        ops.register("test::plugin", "n c -> c n", replace=True)
        assert "test::plugin" in ops.registered()
    finally:
        del ops._ROWS["test::plugin"]


def test_a_host(model, tmp_path):
    HOSTS.register(
        "test-linked", HostKind(lambda given: isinstance(given, dict), lambda given, **_: open_host(given["at"]))
    )
    try:
        assert gp.analyze({"at": model}).groups
        assert gp.analyze(model).groups
    finally:
        del HOSTS["test-linked"]
    with pytest.raises(gp.ModelError, match="^cannot open a model of type 'dict'"):
        gp.analyze({"at": model})

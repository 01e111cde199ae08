"""The tools: every module imports, shadows nothing, and has a command in its docstring that parses."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

import tools

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tools"
PATHS = sorted(path for path in FOLDER.rglob("*.py"))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_command(path):
    return "if __name__ ==" in path.read_text(encoding="utf-8")


MODULES = [dotted(path) for path in PATHS]
COMMANDS = [dotted(path) for path in PATHS if is_command(path)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What a tool sets for its process is gone after a test."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "1" if name != "TRANSFORMERS_VERBOSITY" else "error")


@pytest.mark.filterwarnings("default")  # what libraries warn of when they are imported is theirs
@pytest.mark.parametrize("module", MODULES)
def test_it_imports(module):
    assert importlib.import_module(module).__doc__


def names_shadowed(stems, path):
    """Those of some names that are modules elsewhere on a path; folders without a file of their own are none."""
    found = {}
    for stem in stems:
        spec = importlib.machinery.PathFinder.find_spec(stem, path)
        if stem in sys.builtin_module_names or (spec is not None and spec.origin is not None):
            found[stem] = spec and spec.origin
    return found


def own_names(folder):
    stems = {path.stem for path in folder.rglob("*.py") if not path.stem.startswith("__")}
    return stems | {path.name for path in folder.rglob("*") if (path / "__init__.py").exists()}


def _is_ours(path):
    return path.is_relative_to(ROOT) and not path.is_relative_to(Path(sys.prefix).resolve())


def outside():
    """The path without this repository, and its tests' folders; a virtual environment may lie inside of it."""
    there = [each for each in sys.path if each and not _is_ours(Path(each).resolve())]
    return [*there, str(ROOT), str(ROOT / "tests"), *map(str, (ROOT / "tests").glob("**/"))]


def test_no_name_shadows_another():
    assert len(own_names(FOLDER)) > 40
    assert names_shadowed(own_names(FOLDER), outside()) == {}


@pytest.mark.parametrize("name", ["json", "numpy", "torch", "onnx_cases", "sys"])
def test_a_shadow_is_seen(name):
    assert list(names_shadowed([name, "no_such_module"], outside())) == [name]


def test_well_known_names_are_not_taken():
    """Packages that many have, whether or not they are installed here."""
    known = {
        "coverage",
        "test",
        "tests",
        "utils",
        "build",
        "profile",
        "resource",
        "statistics",
        "fuzzywuzzy",
        "atheris",
    }
    assert not known & own_names(FOLDER)


class Parsed(Exception):
    """A tool has made its parser."""


def parser_of(module, monkeypatch):
    def stop(self, *_):
        raise Parsed(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as found:
        importlib.import_module(module).main()
    monkeypatch.undo()
    return found.value.args[0]


def commands_in(doc):
    """The commands that a docstring shows."""
    return [line.strip() for line in doc.splitlines() if re.match(r"\s*python -m tools\.", line)]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("module", COMMANDS)
def test_the_command_of_the_docstring(module, monkeypatch, capsys):
    doc = importlib.import_module(module).__doc__
    called = f"python -m {module.removesuffix('.__main__')}"
    shown = [line for line in commands_in(doc) if line == called or line.startswith(f"{called} ")]
    assert shown, f"the docstring of {module} shows no '{called}'"
    parser = parser_of(module, monkeypatch)
    assert parser.prog == called
    known = {each for action in parser._actions for each in action.option_strings}
    for line in commands_in(doc):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) <= known, line
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help"])
    assert ended.value.code == 0
    assert called in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tools.bench.memory", "--only small --threads 1 --json memory.jsonl"),
        ("tools.bench.startup", "--only version inspect-small --repeat 5 --json startup.jsonl"),
        ("tools.coverage_sweep.architectures", "--only bert 'llama*' --jobs 2 --no-onnx --table table.md"),
        ("tools.fuzz.__main__", "--count 1000 --kinds onnx --record fuzz.jsonl"),
        ("tools.mutations.__main__", "--seeds 3 --json records.jsonl --faults unit,order"),
        ("tools.proofs.decoders", "--only llama mamba2 --target params=0.5"),
        ("tools.quality.__main__", "--models plcmos --recipes default --ratios 0.7 --batches 4"),
    ],
)
def test_a_command_line(module, line, monkeypatch):
    parser = parser_of(module, monkeypatch)
    assert parser.parse_args(shlex.split(line))
    with pytest.raises(SystemExit):
        parser.parse_args(["--no-such-option"])


def test_the_benchmarks_have_names():
    from tools.bench.__main__ import BENCHMARKS

    commands = {name.removeprefix("tools.bench.") for name in COMMANDS if name.startswith("tools.bench.")}
    assert set(BENCHMARKS) == commands - {"__main__"}


def test_a_benchmark_by_its_name(monkeypatch):
    from tools.bench import __main__ as bench

    monkeypatch.setattr(sys, "argv", ["bench", "startup", "--only", "nothing"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert str(ended.value.code).startswith("no case is called 'nothing'; there are version, help")


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *FOLDER.rglob("*.md")]
SOURCES = [
    path for folder in ("graphprune", "passes", "tests", "tools") for path in (ROOT / folder).rglob("*.py")
    if path.name not in ("test_tools.py", "test_runner.py", "test_citations.py")  # they name what there is not
]  # fmt: skip


def missing_in(text):
    """Tools that a text names and that there are not."""
    for name in re.findall(r"python\s+-m\s+(tools(?:\.\w+)+)", text):
        file = ROOT / Path(*(part for part in name.split(".") if part not in ("FOLDER", "NAME")))
        if not any(each.exists() for each in (file.with_suffix(".py"), file / "__main__.py", file / "__init__.py")):
            yield name
    for name in re.findall(r"(?<![\w/])tools/[\w/]+(?:\.(?:py|md|txt|jsonl?))?", text):
        if not (ROOT / name).exists():
            yield name
    yield from re.findall(r"python\s+tools/\S*", text)  # a tool is a module


def test_tools_that_are_named_exist():
    found = {path: list(missing_in(path.read_text(encoding="utf-8"))) for path in [*DOCUMENTS, *SOURCES]}
    assert {str(path.relative_to(ROOT)): names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`python -m tools.coverage --only bert`", ["tools.coverage"]),
        ("`python\ntools/check`", ["python\ntools/check`"]),
        ("see `tools/coverage.md`", ["tools/coverage.md"]),
        ("`python -m tools.bench latency`, `tools/quality/table.txt`, `tools/fuzz`", []),
    ],
)
def test_a_tool_that_there_is_not_is_seen(text, expected):
    assert list(missing_in(text)) == expected


def test_the_helpers_of_the_tests_are_on_the_path():
    assert Path(tools.TESTS) == ROOT / "tests"
    assert str(tools.TESTS) in sys.path

"""All that documents and docstrings point at exists: pages, sections, anchors, files, options, names."""

import re
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

import graphprune as gp
from graphprune.analysis.kinds import KINDS
from graphprune.cli import app
from graphprune.hosts import host
from graphprune.importance import CRITERIA
from graphprune.importance.differentiable import Differentiable
from graphprune.passes import PASSES
from graphprune.planning.share import METHODS
from graphprune.recipe import RECIPES

HOME = Path(__file__).parents[1]
sys.path.append(str(HOME))
from tools import reference  # noqa: E402

PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", HOME / "CHANGELOG.md", *sorted((HOME / "docs").glob("*.md"))]
SOURCES = [p for room in ("graphprune", "passes", "tools", "tests") for p in sorted((HOME / room).rglob("*.py"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

CITED = re.compile(r"docs/(\w+\.md)(?:[,:]\s*(?:#\s*|``\s*)?\"?([A-Z][\w\s-]*?)\"?(?=[.,;)`]|\Z))?")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```[\w ]+\n.*?^\1```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
NAMED = re.compile(r"(?<![\w/.*-])((?:[\w.-]+/)+[\w.-]*\w|[\w-]+\.(?:py|md|toml))(?![\w/(*])")
"""What may be the name of a file: with a folder, or with a suffix of files that the repository holds."""


def text_of(path):
    return path.read_text(encoding="utf-8")


def titles(page):
    return re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)


def anchors(page):
    """As GitHub makes them of titles."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles(page)}


# -- citations in code ---------------------------------------------------------------------------------------------


def wrong_citations(text):
    """Pages and sections that a text cites and that are not there."""
    wrong = []
    for name, section in CITED.findall(re.sub(r"\s*\n\s*#?\s*", " ", text)):
        page = HOME / "docs" / name
        if not page.is_file():
            wrong.append(f"docs/{name}")
        elif section and not any(section.strip().startswith(title) for title in titles(page)):
            wrong.append(f"docs/{name}, {section}")
    return wrong


def test_what_the_code_cites_is_there():
    found = {str(path.relative_to(HOME)): wrong_citations(text_of(path)) for path in SOURCES if path != Path(__file__)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    cited = [each for path in SOURCES for each in CITED.findall(text_of(path))]
    assert sum(bool(section) for _, section in cited) >= 12


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("As in DepGraph (docs/methods.md, Norms of coupled groups).", []),
        ("See docs/methods.md, Runs of\n    sub-models.", []),
        ("See docs/methods.md, Runs of\n    models.", ["docs/methods.md, Runs of models"]),
        ("# see docs/method.md", ["docs/method.md"]),
        ("see docs/onnx.md, Weights", ["docs/onnx.md, Weights"]),
    ],
)
def test_a_wrong_citation_is_found(text, wrong):
    assert wrong_citations(text) == wrong


def test_no_code_cites_a_page_without_its_folder():
    names = {page.name for page in (HOME / "docs").glob("*.md")} | {"data.md", "design.md", "field.md", "style.md"}
    loose = re.compile(rf"(?<![\w/])(?:{'|'.join(sorted(re.escape(name) for name in names))})")
    rooms = [path for path in SOURCES if path.parts[len(HOME.parts)] in ("graphprune", "passes")]
    assert [str(path.relative_to(HOME)) for path in rooms if loose.search(text_of(path))] == []


FILE = re.compile(r"(?<![\w/.])((?:tests|tools|docs|graphprune|passes)/[\w/]+\.(?:py|md|txt|json|toml))")
OBJECT = re.compile(r":(?:mod|class|func|data|attr|meth|exc):`~?\.?(graphprune\.[\w.]+)`")


def missing_object(dotted):
    """Whether a name is not in the module that it says, by the words of its file."""
    words = dotted.replace("graphprune.passes", "passes").split(".")
    for n in range(len(words), 0, -1):
        folder = HOME.joinpath(*words[:n])
        file = folder.with_suffix(".py") if folder.with_suffix(".py").is_file() else folder / "__init__.py"
        if file.is_file():
            return not re.search(rf"\b{words[n]}\b" if n < len(words) else "", text_of(file))
    return True


def wrong_names(text):
    """Files and objects that a text of code names and that are not there."""
    files = [name for name in FILE.findall(text) if not (HOME / name).exists()]
    return files + [name for name in OBJECT.findall(text) if missing_object(name)]


def test_files_and_objects_that_the_code_names_are_there():
    rooms = [path for path in SOURCES if not path.is_relative_to(HOME / "tests")]  # those plant names that are wrong
    found = {str(path.relative_to(HOME)): wrong_names(text_of(path)) for path in rooms}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_wrong_name_is_found():
    text = "tests/none.py tests/conftest.py :func:`graphprune.prune` :mod:`graphprune.ir.none` :func:`~graphprune.ops.regster`"
    assert wrong_names(text) == ["tests/none.py", "graphprune.ir.none", "graphprune.ops.regster"]


# -- links, files, options in documents ----------------------------------------------------------------------------


def broken_links(page, text):
    broken = []
    for target in LINK.findall(FENCED.sub("", text)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name) if name else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    return broken


@pages
def test_links_lead_somewhere(page):
    assert broken_links(page, text_of(page)) == []


def test_a_broken_link_is_found():
    text = "[a](docs/walk.md) [b](docs/none.md) [c](docs/guide.md#plans) [d](docs/guide.md#plan) [e](https://x.org)"
    assert broken_links(HOME / "README.md", text) == ["docs/none.md", "docs/guide.md#plan"]


MADE = {"photos", "sensitivity", "front", "smaller"}
"""Folders of the examples."""
ELSEWHERE = {"importlib/metadata", "pyproject.toml", "metrics.py"}


@cache
def rooms():
    return [HOME, *(HOME / name for name in ("docs", "graphprune", "tests", "graphprune/hosts"))]


def missing_files(text):
    """Names in code quotes that look like files of the repository, and are not."""
    prose = FENCED.sub("", text)
    found = []
    for quoted in re.findall(r"`([^`]+)`", prose):
        for name in NAMED.findall(quoted):
            if name.split("/")[0] in MADE or name in ELSEWHERE or name.startswith(("http", "text/")):
                continue
            if not any((room / name).exists() for room in rooms()):
                found.append(name)
    return found


@pages
def test_named_files_exist(page):
    text = text_of(page)
    missing = [name for name in missing_files(text) if not any(path.name == name for path in SOURCES)]
    assert missing == []


def test_a_missing_file_is_found():
    text = "`passes/nothing.py` and `docs/walk.md`, `python -m pytest tests/none/test_x.py`, `photos/`"
    assert missing_files(text) == ["passes/nothing.py", "tests/none/test_x.py"]


@cache
def command_options():
    command = typer.main.get_command(app)
    found = {option for one in command.commands.values() for p in one.params for option in p.opts}
    return found | {option for p in command.params for option in p.opts} | {"--help", "--version"}


def tool_options(text):
    """Options of the tools that a page names: what their code says."""
    code = ""
    for package in re.findall(r"python -m (tools[\w.]*)", text):
        folder = HOME / package.replace(".", "/")
        code += "".join(map(text_of, [*folder.glob("*.py")] if folder.is_dir() else [folder.with_suffix(".py")]))
    return set(OPTION.findall(code))


def unknown_options(text):
    known = command_options() | tool_options(text)
    known |= {"--update-golden"} if "--update-golden" in text_of(HOME / "tests" / "conftest.py") else set()
    return sorted(set(OPTION.findall(text)) - known)


@pages
def test_named_options_exist(page):
    assert unknown_options(text_of(page)) == []


def test_an_unknown_option_is_found():
    assert unknown_options("`--target` `--tagret` | --- | `python -m tools.fuzz --count 3 --cuont`") == [
        "--cuont", "--tagret",
    ]  # fmt: skip


@pages
def test_commands_of_tools_exist(page):
    text = " ".join(text_of(page).split())
    assert re.findall(r"python (tools/\S+)", text) == [], "tools are packages: python -m tools.NAME"
    for package in re.findall(r"python -m (tools[\w.]*)", text):
        at = HOME / package.replace(".", "/")
        assert (at / "__main__.py").is_file() or at.with_suffix(".py").is_file(), package
    for name in re.findall(r"python -m tools\.bench (\w+)", text):
        assert (HOME / "tools" / "bench" / f"{name}.py").is_file(), name


def test_every_table_of_numbers_has_its_command():
    for section in re.split(r"^## ", text_of(HOME / "docs" / "benchmarks.md"), flags=re.MULTILINE)[1:]:
        assert re.search(r"python\s(-m )?tools[./]\w", section), section.splitlines()[0]


def test_what_hosts_offer_is_what_the_page_says():
    text = text_of(HOME / "docs" / "adding.md")
    for part in (host.Model, host.Runnable, host.Refittable, Differentiable):
        (row,) = re.findall(rf"^\| `{part.__name__}` \| ([^|]+) \|", text, re.MULTILINE)
        assert [name for name in re.findall(r"`(\w+)`", row) if name not in vars(part)] == []


# -- completeness --------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert (HOME / "README.md").stat().st_size <= 10_240


def test_every_page_is_linked_from_the_readme():
    linked = set(LINK.findall(text_of(HOME / "README.md")))
    assert {f"docs/{page.name}" for page in (HOME / "docs").glob("*.md")} <= linked


ALL = {
    "public names": gp.__all__,
    "commands": list(typer.main.get_command(app).commands),
    "options": None,
    "criteria": list(CRITERIA),
    "allocations": list(METHODS),
    "recipes": list(RECIPES),
    "passes": [each.name for each in PASSES],
    "kinds": list(KINDS),
}


@pytest.mark.parametrize("what", ALL)
def test_all_that_users_can_name_is_in_the_documents(what):
    text = "\n".join(text_of(page) for page in PAGES if page.name != "CHANGELOG.md")
    names = ALL[what] if ALL[what] is not None else sorted(command_options() - {"--help", "-o"})
    assert [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)] == []


def test_every_room_is_in_the_architecture():
    table = re.findall(r"^\| (`.+?) \| ", text_of(HOME / "docs" / "architecture.md"), re.MULTILINE)
    named = {name.split("/")[0] for row in table for name in re.findall(r"`([\w/]+)`", row)}
    rooms = {p.parent.name for p in (HOME / "graphprune").glob("*/__init__.py")}
    assert sorted(rooms - named) == []
    assert [
        name for name in named if not any((HOME / "graphprune" / f"{name}{end}").exists() for end in ("", ".py"))
    ] == []


def test_the_glossary_is_in_order():
    words = re.findall(r"^\| ([^|]+?) \| (?!meaning|---)", text_of(HOME / "docs" / "glossary.md"), re.MULTILINE)
    assert words == sorted(set(words), key=str.lower)
    assert len(words) > 60


def test_the_reference_is_of_today():
    """Else: python -m tools.reference."""
    assert text_of(reference.PAGE) == reference.text()

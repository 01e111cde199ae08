"""The documents are run, block by block: what they show is what comes out.

``sh`` blocks are commands of graphprune, ``python`` blocks run one after the other with the names that went before,
``text`` is what the block before it prints, a block that begins with the name of a file is that file, and an ``excerpt``
stands in the file that it names. ``notation`` is not run.
"""

import contextlib
import io
import re
import shlex
import sys
import textwrap
import tomllib
from functools import partial
from pathlib import Path

import pytest
from docs_nets import prepare
from typer.testing import CliRunner

from graphprune.cli import app
from graphprune.profiling import profile
from graphprune.runtime import sessions

HOME = Path(__file__).parents[1]
DOCS = HOME / "docs"
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^( *)```([\w ]+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./]+\.(?:py|toml))\n")
RUN = {
    "walk": 12, "guide": 7, "recipes": 4, "training": 2, "adding": 6, "architecture": 1, "onnx": 2, "README": 2, "checkpoints": 4,
}  # fmt: skip
"""How many blocks of each page run at least."""


def blocks(path):
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [(kind, textwrap.dedent(text)) for _, kind, text in found]


def shell(text):
    """What the commands print; each has to succeed."""
    shown = ""
    for line in text.replace("\\\n", " ").strip().splitlines():
        if not (words := shlex.split(line, comments=True)):
            continue
        program, *arguments = words
        assert program == "graphprune", f"the pages are about graphprune, not '{line}'"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}{result.stderr}"
        shown += result.stdout
    return shown


def python(text, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "page.md", "exec", dont_inherit=True), names)
    return out.getvalue()


def flat(text):
    """Without what tables add and break."""
    return " ".join(re.sub(r"[│┃━─]", " ", text).split())


def excerpt(text):
    """The lines of an excerpt that are not in the file that it names."""
    named = FILE.match(text)
    lines = {flat(line) for line in (HOME / named[1]).read_text(encoding="utf-8").splitlines()}
    return [line for line in text.splitlines()[1:] if flat(line) not in lines]


def walk(path, names=None):
    """Runs the blocks in the present folder; gives what was promised and did not come."""
    names = {"__name__": "walk", **(names or {})}
    shown, missing, ran = "", [], 0
    for kind, text in blocks(path):
        if kind == "notation":
            continue
        if kind.endswith(" excerpt"):
            missing += excerpt(text)
            continue
        if kind == "text":
            missing += [line for line in text.splitlines() if flat(line) not in flat(shown)]
            continue
        ran += 1
        if named := FILE.match(text):
            Path(named[1]).write_text(text, encoding="utf-8")
        elif kind == "toml":
            tomllib.loads(text)
        else:
            assert kind in ("sh", "python"), f"nobody knows what to do with a block of '{kind}'"
            shown = shell(text) if kind == "sh" else python(text, names)
    return ran, missing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, whose modules are imported and forgotten, as are things that the pages register."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (path := getattr(sys.modules[name], "__file__", None)) and Path(path).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def brief(monkeypatch):
    """Measures for an instant only: nothing here looks at how fast something is."""
    monkeypatch.setattr(profile, "SECONDS", 1.0)
    measure = sessions.measure
    monkeypatch.setattr(sessions, "measure", lambda *a, seconds=1, **k: measure(*a, seconds=min(seconds, 0.05), **k))


@pytest.fixture
def forgotten(monkeypatch):
    """What pages register is gone behind them."""
    from graphprune import ops
    from graphprune.hosts.plugins import HOSTS
    from graphprune.importance import CRITERIA
    from graphprune.passes import all_passes
    from graphprune.planning.share import METHODS

    for table in (ops._ROWS, HOSTS, CRITERIA, all_passes(), METHODS):
        monkeypatch.setattr(table, "_registered", dict(table._registered))


@pytest.mark.filterwarnings("default")  # as for a reader: what libraries warn of is theirs
@pytest.mark.usefixtures("brief", "forgotten")
def test_the_walk(folder):
    pytest.importorskip("torch")
    ran, missing = walk(DOCS / "walk.md")
    assert missing == []
    assert ran >= RUN["walk"]
    assert {"net.onnx", "smaller.onnx", "plan.json", "faster.onnx", "trained.onnx"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("brief", "forgotten")
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "walk"], ids=lambda page: page.stem)
def test_a_page(page, folder):
    if not (wanted := RUN.get(page.stem, 0)):
        assert walk(page) == (0, []), "a page that runs blocks stands in RUN"
        return
    pytest.importorskip("torch")
    ran, missing = walk(page, prepare(folder))
    assert missing == []
    assert ran >= wanted


def test_all_blocks_are_fenced():
    """But for the commands that set the project up, which other files quote."""
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        assert "```" not in text, page.name
        indented = [line for line in re.findall(r"(?<=\n\n) {4}(.*)", text) if "python3 -m venv" not in line]
        assert indented == [], page.name


def wrong(folder, text):
    (folder / "wrong.md").write_text(text)
    return partial(walk, folder / "wrong.md")


def test_a_walk_that_is_not_true_is_found(folder):
    with pytest.raises(AssertionError, match="graphprune nothing"):
        wrong(folder, "```python\nprint('one')\n```\n\n```text\none\ntwo\n```\n\n```sh\ngraphprune nothing\n```\n")()
    assert wrong(folder, "```python\nprint('one')\n```\n\n```text\none\ntwo\n```\n")() == (1, ["two"])
    assert wrong(folder, "1. x\n\n   ```toml excerpt\n   # pyproject.toml\n   [project]\n   [no]\n   ```\n")() == (
        0,
        ["[no]"],
    )
    with pytest.raises(AssertionError, match="nobody knows what to do with a block of 'pyhton'"):
        wrong(folder, "```pyhton\nprint('one')\n```\n")()


def test_the_readme_leads_to_the_walk():
    assert "](docs/walk.md)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")

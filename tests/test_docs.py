"""The walk of the docs is run, block by block: what it shows is what comes out."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graphprune.cli import app

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(path):
    return [(kind, text) for kind, text in BLOCK.findall(path.read_text(encoding="utf-8"))]


def shell(text):
    """What the commands print; each has to succeed."""
    shown = ""
    for line in text.replace("\\\n", " ").strip().splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "graphprune", f"the walk is about graphprune, not '{line}'"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}{result.stderr}"
        shown += result.stdout
    return shown


def python(text, names):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "walk.md", "exec"), names)
    return out.getvalue()


def flat(text):
    """Without what tables add and break."""
    return " ".join(re.sub(r"[│┃━─]", " ", text).split())


def walk(path):
    """Runs the blocks in the present folder; gives what was promised and did not come."""
    names = {"__name__": "walk"}
    shown, missing, ran = "", [], 0
    for kind, text in blocks(path):
        if kind == "text":
            missing += [line for line in text.splitlines() if flat(line) not in flat(shown)]
            continue
        ran += 1
        if named := FILE.match(text):
            Path(named[1]).write_text(text, encoding="utf-8")
        else:
            shown = shell(text) if kind == "sh" else python(text, names)
    return ran, missing


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, whose modules are imported and forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("net", "gated", "mended"):
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("default")  # as for a reader: what libraries warn of is theirs
def test_the_walk(folder):
    pytest.importorskip("torch")
    ran, missing = walk(DOCS / "walk.md")
    assert missing == []
    assert ran >= 12
    assert {"net.onnx", "smaller.onnx", "plan.json", "faster.onnx", "trained.onnx"} <= {
        p.name for p in folder.iterdir()
    }


def test_a_walk_that_is_not_true_is_found(folder):
    (folder / "wrong.md").write_text(
        "```python\nprint('one')\n```\n\n```text\none\ntwo\n```\n\n```sh\ngraphprune nothing\n```\n"
    )
    with pytest.raises(AssertionError, match="graphprune nothing"):
        walk(folder / "wrong.md")
    (folder / "wrong.md").write_text("```python\nprint('one')\n```\n\n```text\none\ntwo\n```\n")
    assert walk(folder / "wrong.md") == (1, ["two"])


def test_the_readme_leads_to_the_walk():
    assert "](docs/walk.md)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")

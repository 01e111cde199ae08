"""Sweeps: each case in a process of its own, within limits, recorded as it comes; a killed run goes on."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tools.bench.runner import Sweep, arguments, error_line, parser_of, run

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks, whatever has threads here

DOC = "What is swept.\n\n    python -m tools.bench.swept [--only NAME ...] [--json FILE]\n"
CASES = [{"name": name, "size": 3} for name in ("right", "refused", "crashes", "hangs", "nan")]


def measure(record):
    name = record["name"]
    record["stage"] = "begun"
    if name == "refused":
        raise LookupError("no such thing\n  in /usr/lib/site-packages/thing.py")
    if name == "broken":
        record["stage"] = "half"
        raise RuntimeError("broken")
    if name == "crashes":
        os._exit(7)
    if name == "hangs":
        subprocess.run(["sleep", "60"], check=False)
    record.update(stage="measured", value=float("nan") if name == "nan" else 1.5)


def line(record):
    return f"{record['name']}: {record.get('error') or record['value']}"


def table(records):
    return "\n".join(f"{record['name']} {record.get('value')}" for record in records)


SWEEP = Sweep(("name", "size"), measure, line, table, fork=True, quiet=True)


def options(*words, seconds=30):
    return arguments(DOC, seconds=seconds).parse_args(list(words))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("right", {"stage": "measured", "value": 1.5}),
        ("refused", {"stage": "begun", "error": "LookupError: no such thing in thing.py"}),
        ("broken", {"stage": "half", "error": "RuntimeError: broken"}),
        ("crashes", {"error": "the process ended with status 7"}),
        ("nan", {"stage": "measured", "value": "nan"}),
    ],
)
def test_what_becomes_of_a_case(tmp_path, name, expected):
    file = tmp_path / "records.jsonl"
    (found,) = run(SWEEP, [{"name": name, "size": 3}], options("--json", str(file)))
    assert expected.items() <= found.items()
    assert found["size"] == 3
    assert "python" in found["versions"]
    assert ("where" in found) == (name == "broken")
    assert json.loads(file.read_text()) == found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("right", {"stage": "measured", "value": 1.5}),
        ("refused", {"stage": "begun", "error": "LookupError: no such thing in thing.py"}),
        ("crashes", {"error": "the process ended with status 7"}),
    ],
)
def test_a_fresh_process(name, expected):
    (found,) = run(replace(SWEEP, fork=False), [{"name": name, "size": 3}], options(seconds=60))
    assert expected.items() <= found.items()


def test_a_case_that_takes_too_long_is_ended(capsys):
    begin = time.monotonic()
    (found,) = run(SWEEP, CASES, options("--only", "hang*", seconds=1))
    assert found["error"] == "took longer than 1 s"
    assert time.monotonic() - begin < 20
    assert capsys.readouterr().out == "[1/1] hangs: took longer than 1 s\nhangs None\n"


def test_what_has_a_record_is_not_run_again(tmp_path, capsys):
    words = ("--json", str(tmp_path / "records.jsonl"), "--only", "r*")
    run(SWEEP, CASES, options(*words))
    assert capsys.readouterr().out.startswith("[1/2] right: 1.5\n[2/2] refused: LookupError")
    for more, expected in (((), "right"), (("--retry",), "[1/1] refused"), (("--again",), "[1/2] right")):
        run(SWEEP, CASES, options(*words, *more))
        assert capsys.readouterr().out.startswith(expected)
    run(SWEEP, [{"name": "right", "size": 4}], options(*words))
    assert capsys.readouterr().out.startswith("[1/1] right")


def test_the_table_of_a_file_has_all_records(tmp_path, capsys):
    words = ("--json", str(tmp_path / "records.jsonl"))
    run(SWEEP, CASES, options(*words, "--only", "right", "nan"))
    capsys.readouterr()
    run(SWEEP, CASES, options(*words, "--only", "nan", "--table", str(tmp_path / "table.txt")))
    assert capsys.readouterr().out == ""
    assert (tmp_path / "table.txt").read_text() == "right 1.5\nnan nan\n"


def test_several_at_a_time(capsys):
    cases = [{"name": f"right{i}", "size": 3} for i in range(5)]
    found = run(SWEEP, cases, options("--jobs", "3"))
    assert [record["name"] for record in found] == [case["name"] for case in cases]
    assert all(record["value"] == 1.5 for record in found)


def test_a_name_that_there_is_not():
    with pytest.raises(SystemExit) as error:
        run(SWEEP, CASES, options("--only", "right", "left*"))
    assert error.value.code == "no case is called 'left*'; there are right, refused, crashes, hangs, nan"


def test_a_limit_of_memory(capsys):
    sweep = Sweep(("name",), hungry, line, table, fork=True, quiet=True)
    (found,) = run(sweep, [{"name": "hungry"}], options("--memory", "8"))
    assert found["error"].startswith("MemoryError")


def hungry(record):
    record["value"] = len(bytearray(9 << 30))


KILLED = """
import sys, os
sys.path[:0] = {path!r}
from test_runner import CASES, SWEEP, options, run
run(SWEEP, CASES, options("--only", "hangs"))
"""


def test_cases_end_with_the_run():
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(path=path)], stdout=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    sleeping: list[str] = []
    while not sleeping and time.monotonic() < until:
        time.sleep(0.05)
        for child in children.read_text().split():
            sleeping += Path(f"/proc/{child}/task/{child}/children").read_text().split()
    assert sleeping
    process.kill()
    process.communicate()
    while any(_runs(each) for each in sleeping) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(each) for each in sleeping)


def _runs(process):
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_program_is_that_of_the_docstring():
    assert parser_of(DOC).prog == "python -m tools.bench.swept"
    with pytest.raises(AssertionError):
        parser_of("What is swept.")


def test_an_error_in_one_line():
    assert error_line(ValueError("a\n \x1b[31mb\x1b[0m")) == "ValueError: a b"
    assert len(error_line(ValueError("x" * 900))) == 300

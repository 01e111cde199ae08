"""Records of benchmarks: a killed run goes on, two runs share a file, a table is what the records say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.bench.records import Records, sources_digest, table, timed

ROOT = Path(__file__).resolve().parents[2]
KEY = ("model", "budget")
KEYS = [{"model": model, "budget": budget} for model in ("a", "b") for budget in (0.9, 0.5)]
KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tools.bench.records import Records, timed
records = Records(Path({path!r}), ("model", "budget"))
for key in records.missing({keys!r}):
    if len(records) == 2:
        with open({path!r}, "a") as file:
            file.write('{{"model": "b", "bud')
        os._exit(9)
    records.add(timed(key, lambda: {{"value": 1.0}}))
"""


def test_a_killed_run_goes_on(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    script = KILLED.format(root=str(ROOT), path=str(path), keys=KEYS)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not path.read_text().endswith("\n")
    records = Records(path, KEY)
    assert list(records.missing(KEYS)) == KEYS[2:]
    for key in list(records.missing(KEYS)):
        records.add(timed(key, lambda: {"value": 2.0}))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["model"], line["budget"], line["value"]) for line in lines] == [
        ("a", 0.9, 1.0), ("a", 0.5, 1.0), ("b", 0.9, 2.0), ("b", 0.5, 2.0),
    ]  # fmt: skip
    assert list(Records(path, KEY).missing(KEYS)) == []


def test_two_runs_share_a_file(tmp_path):
    one, two = (Records(tmp_path / "records.jsonl", KEY) for _ in range(2))
    one.add({**KEYS[0], "value": 1})
    two.add({**KEYS[1], "value": 2})
    one.add({**KEYS[2], "value": 3})
    assert [record["value"] for record in Records(tmp_path / "records.jsonl", KEY)] == [1, 2, 3]


def test_a_long_torn_line_is_cut_off(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(KEYS[0]) + "\n" + "x" * 10000)
    Records(path, KEY).add(KEYS[1])
    assert list(Records(path, KEY)) == KEYS[:2]
    path.write_text("x" * 10000)
    Records(path, KEY).add(KEYS[1])
    assert list(Records(path, KEY)) == [KEYS[1]]


def test_a_later_record_replaces_an_earlier_one(tmp_path):
    records = Records(tmp_path / "records.jsonl", KEY)
    for value in (1, 2):
        records.add({**KEYS[0], "value": value})
    assert records.get(KEYS[0]) == {**KEYS[0], "value": 2}
    assert len(records) == len(Records(records.path, KEY)) == 1
    assert list(records.missing(KEYS[:1], lambda record: record.get("value") == 3)) == KEYS[:1]


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(KEYS[0]) + "\n[1]\n")
    with pytest.raises(ValueError) as error:
        Records(path, KEY)
    assert str(error.value) == f"line 2 of '{path}' is no JSON object: '[1]'; delete it"


def test_what_is_no_number_is_not_written(tmp_path):
    records = Records(tmp_path / "records.jsonl", KEY)
    with pytest.raises(ValueError):
        records.add({**KEYS[0], "value": float("nan")})
    assert not records.path.exists()
    assert len(records) == 0


def test_an_error_is_a_record():
    def fails():
        raise RuntimeError("no such thing\nand more")

    record = timed({"model": "a"}, fails)
    assert record["error"] == "RuntimeError: no such thing"
    assert record["model"] == "a"
    assert record["seconds"] >= 0
    assert "numpy" in record["versions"]


def test_the_digest_follows_the_sources(tmp_path):
    source = tmp_path / "graphprune" / "a.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    before = sources_digest(tmp_path)
    source.write_text("x = 2\n")
    assert len(before) == 12
    assert before != sources_digest(tmp_path)


def test_table():
    rows = [("resnet20", 0.91462, None), ("a", "failed", 12)]
    assert table(("model", "90%", "80%"), rows) == (
        "model        90%  80%\nresnet20  0.9146\na         failed   12"
    )  # fmt: skip

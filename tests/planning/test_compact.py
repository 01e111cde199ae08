"""Plans in files: long lists of positions are short, equal ones stand once, and what strangers write is bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import graphprune as gp
from graphprune.bounds import bounded
from graphprune.planning.compact import PLAIN, Written
from graphprune.planning.plan import GroupPlan, PruningPlan

SIZE = 4096
EVEN = tuple(range(0, SIZE, 2))
RUN = tuple(range(1000, 3000))


def plan(kept: tuple[int, ...]) -> PruningPlan:
    axes = {"a": {0: kept}, "b": {1: kept}}
    return PruningPlan("x", (GroupPlan("g", "neuron", SIZE, kept),), axes, {"a": (SIZE, 2), "b": (2, SIZE)})


@pytest.mark.parametrize(
    ("kept", "written"),
    [
        (tuple(range(PLAIN)), None),
        (RUN, [[1000, 2999]]),
        ((*range(400), 500, *range(600, SIZE)), [[0, 399], 500, [600, 4095]]),
        (EVEN, "bits:qqqq"),
    ],
)
def test_lists_in_a_file(kept: tuple[int, ...], written: Any, tmp_path: Path) -> None:
    plan(kept).save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    if written is None:
        assert data["format"] == 3
        assert data["groups"][0]["kept"] == data["parameters"]["b"]["1"] == list(kept)
    else:
        assert (data["format"], len(data["positions"])) == (4, 1)
        found = data["positions"][0]
        assert found[: len(written)] == written
        assert data["groups"][0]["kept"] == data["parameters"]["a"]["0"] == data["parameters"]["b"]["1"] == "@0"
    assert PruningPlan.load(tmp_path / "plan.json") == plan(kept)


def test_plain_lists_are_read(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan(EVEN).to_dict()))
    assert PruningPlan.load(tmp_path / "plan.json") == plan(EVEN)


def test_a_plan_of_a_large_model_is_small(tmp_path: Path) -> None:
    layers = 80
    kept = [tuple(i for i in range(28_672) if (i * (2 * n + 3)) % 10 < 7) for n in range(layers)]
    axes = {f"layers.{n}.mlp.{name}": {int(name == "down"): kept[n]} for n in range(layers) for name in ("up", "down")}
    groups = tuple(GroupPlan(f"layers.{n}.mlp.up[0]", "neuron", 28_672, kept[n]) for n in range(layers))
    whole = PruningPlan("x", groups, axes, dict.fromkeys(axes, (28672, 28672)))
    whole.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").stat().st_size < 1_000_000
    assert PruningPlan.load(tmp_path / "plan.json") == whole


WRONG = (
    ([[0, SIZE]], "are not a rising sequence within 0..4095"),
    ([[5, 3]], "are not a rising sequence within 0..4095"),
    ([[0, 5], [5, 9]], "are not a rising sequence within 0..4095"),
    ("bits:/w==!", "expected base64"),
    ("bits:" + "/" * 8000, "are not a rising sequence within 0..4095"),
    ("@0", "got '@0', expected a list of whole numbers"),
    ("bytes:", "got 'bytes:', expected a list of whole numbers"),
    ([[0, 1, 2]], r"got \[0, 1, 2\], expected a whole number"),
)


@pytest.mark.parametrize(("found", "message"), WRONG)
def test_wrong_lists_are_refused(found: Any, message: str) -> None:
    data = {**plan(RUN).to_dict(), "format": 4}
    data = Written().data(data) | {"positions": [found]}
    with pytest.raises(gp.PlanError, match=message):
        PruningPlan.from_dict(data)


@pytest.mark.parametrize("found", [[[0, 10**9 - 1]], "bits:" + "/" * 1_000_000])
def test_short_texts_stand_for_no_more_than_memory_holds(found: Any) -> None:
    data = {
        "fingerprint": "x", "format": 4, "groups": [{"name": "g", "kind": "neuron", "size": 10**9, "kept": "@0"}],
        "parameters": {}, "positions": [found],
    }  # fmt: skip
    with bounded(memory=36_000_000), pytest.raises(gp.PlanError, match="than there is memory for"):
        PruningPlan.from_dict(data)


@pytest.mark.parametrize("place", ["@7", "@-1", "@x", "@", 7])
def test_places_that_are_not_there(place: Any) -> None:
    data = plan(RUN).to_dict()
    data["groups"][0]["kept"] = place
    with pytest.raises(gp.PlanError, match="the plan is malformed"):
        PruningPlan.from_dict(data)

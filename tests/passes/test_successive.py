"""An allocation goes on from the plan of an earlier one: what is gone stays gone, and all targets are met."""

from __future__ import annotations

from typing import Any

import pytest
from test_demands import kept, session

import graphprune as gp
from graphprune.errors import TargetError

BEGIN = "{}analyze,score{{{} blocks=l2}},{},slice-groups,remove-blocks,remove-dead-nodes"


def pruned(*steps: str, select: str = "", score: str = "criterion=l1") -> Any:
    return session().prune(pipeline=BEGIN.format(select, score, ",".join(steps)))


FIRST = "allocate{macs=0.6 align=1 allocation=uniform}"
SECOND = "allocate{params=0.5 align=1 allocation=global}"


def test_the_second_begins_where_the_first_ends() -> None:
    other = "score{criterion=random seed=3}"  # by which other units would go
    first, both, alone = (
        kept(pruned(FIRST)),
        pruned(FIRST, other, SECOND),
        kept(pruned(SECOND.replace("global", "uniform"), score="criterion=random seed=3")),
    )
    found = kept(both)
    assert all({*found[name]} <= {*units} for name, units in first.items())
    assert any({*alone[name]} - {*units} for name, units in first.items())
    costs = {name: both.report.cost(name) for name in ("macs", "params")}
    assert costs["macs"].fraction <= 0.6
    assert 0.45 < costs["params"].fraction <= 0.5
    assert {name: cost.requested / cost.before for name, cost in costs.items()} == pytest.approx(
        {"macs": 0.6, "params": 0.5}
    )
    assert both.plan.options["targets"] == ["macs=0.6", "params=0.5"]
    again = gp.apply(session().host.source, both.plan, session().host.example[0])
    assert all(check.passed for check in again.report.proof)


def test_what_is_met_already_stays_as_it_is() -> None:
    assert kept(pruned("allocate{macs=0.5 align=1}", "allocate{params=0.9 align=1}")) == kept(
        pruned("allocate{macs=0.5 align=1}")
    )


def test_layers_first_and_widths_then() -> None:
    result = pruned("allocate{layers=1}", "allocate{macs=0.4 align=1}")
    assert len(result.plan.blocks) == 1
    assert 0.35 < result.report.cost("macs").fraction <= 0.4
    gone = {name for block in result.plan.blocks for name in block.tensors}
    assert all(name.rpartition("[")[0] not in gone for name in kept(result))


@pytest.mark.parametrize("allocation", ["isomorphic", "dp", "kwon"])
def test_units_that_were_named_stay_so(allocation: str) -> None:
    result = pruned(FIRST, f"allocate{{macs=0.5 align=1 allocation={allocation}}}", select="select{keep=mid=0-11},")
    assert kept(result)["mid.weight[0]"] == [*range(12)]
    assert 0.4 < result.report.cost("macs").fraction <= 0.5


def test_what_the_second_cannot_meet_is_said() -> None:
    with pytest.raises(TargetError, match="^target 'params=0.05' cannot be met: "):
        pruned(FIRST, "allocate{params=0.05}")

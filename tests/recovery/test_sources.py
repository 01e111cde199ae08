"""Shares of data sources in recovery."""

from __future__ import annotations

import math

import pytest

import graphprune as gp
from graphprune.recovery.sources import Sources

REFERENCE = {"web": 3.0, "code": 2.0, "talk": 2.5}


def test_shares_follow_what_was_lost() -> None:
    sources = Sources(REFERENCE, eta=1.0, floor=0.0)
    sources.update({"web": 3.0, "code": 2.0 + math.log(3), "talk": 2.5})
    assert sources.shares == pytest.approx({"web": 0.2, "code": 0.6, "talk": 0.2})
    sources.update(REFERENCE)  # nothing is lost any more: they stay
    assert sources.shares == pytest.approx({"web": 0.2, "code": 0.6, "talk": 0.2})


def test_no_source_is_given_up() -> None:
    sources = Sources(REFERENCE, eta=1.0, floor=0.3)
    for _ in range(200):
        sources.update({"web": 3.0, "code": 5.0, "talk": 1.0})  # to be better than the dense model is no loss
    assert min(sources.shares.values()) >= 0.1
    assert sources.shares["code"] > 0.7
    assert sources.shares["web"] == pytest.approx(sources.shares["talk"])
    assert sum(sources.shares.values()) == pytest.approx(1.0)


def test_a_step_draws_by_its_number_alone() -> None:
    sources = Sources(REFERENCE, floor=0.0)
    sources.update({"web": 3.0, "code": 12.0, "talk": 2.5})
    drawn = [sources.draw(16, step) for step in range(3)]
    assert drawn == [sources.draw(16, step) for step in range(3)]
    assert all(sum(each.values()) == 16 and each["code"] >= 14 for each in drawn)
    again = Sources(REFERENCE)
    again.load_state_dict(sources.state_dict())
    assert again.draw(16, 1) == drawn[1]


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(gp.OptionError, match="there are 0 sources"):
        Sources({})
    with pytest.raises(gp.OptionError, match="the loss of source 'code' is None"):
        Sources(REFERENCE).update({"web": 1.0, "talk": 1.0})

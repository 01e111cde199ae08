"""The ``dp`` allocation against brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planning import residual

from graphprune.errors import OptionError, TargetError
from graphprune.planning import knapsack
from graphprune.planning.allocation import Limits, levels_of
from graphprune.planning.cost import build_cost_model
from graphprune.planning.knapsack import Frontier, allocate_by_error
from graphprune.planning.target import parse_targets

numbers = st.floats(0, 100, allow_nan=False)
curves = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=5)


def totals(choice, costs, errors):
    return tuple(sum(table[i] for table, i in zip(tables, choice, strict=True)) for tables in (costs, errors))


@settings(max_examples=200, deadline=None)
@given(groups=curves, budget=st.floats(0, 500))
def test_the_choice_is_as_good_as_the_best_of_all(groups, budget):
    costs = [np.array([cost for cost, _ in group]) for group in groups]
    errors = [np.array([error for _, error in group]) for group in groups]
    every = [totals(choice, costs, errors) for choice in product(*(range(len(group)) for group in groups))]
    within = [error for cost, error in every if cost <= budget]
    found = Frontier(costs, errors, budget).within(budget)
    if not within:
        assert found is None or totals(found, costs, errors)[0] <= budget + 1e-9
        return
    cost, error = totals(found, costs, errors)
    assert cost <= budget + 1e-9 * max(1, budget)
    assert error <= min(within) + 1e-9


def test_thinned_choices_stay_within_the_budget_and_near_the_best(monkeypatch):
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(12)) for _ in range(12)]
    errors = [np.sort(rng.random(12))[::-1] for _ in range(12)]
    exact = totals(Frontier(costs, errors, 5.0).within(5.0), costs, errors)
    monkeypatch.setattr(knapsack, "BUCKETS", 200)
    thinned = totals(Frontier(costs, errors, 5.0).within(5.0), costs, errors)
    assert exact[0] <= 5.0 + 1e-9
    assert thinned[0] <= 5.0 + 1e-9
    assert exact[1] <= thinned[1] <= exact[1] * 1.05


def regret(fraction, seed):
    """By how much the error is above the least possible one; ``None`` where the targets cannot be met at all."""
    analysis = residual()[1]
    model = build_cost_model(analysis)
    rng = np.random.default_rng(seed)
    errors = {g.name: np.sort(rng.random(g.size + 1))[::-1] for g in model.groups}
    limits = Limits(align=4, max_ratio=1.0)
    targets = parse_targets({"macs": fraction, "params": min(1.0, fraction + 0.1)})

    def met(counts):
        return all(model.cost(t.metric, counts) <= t.limit(model.cost(t.metric)) * (1 + 1e-9) for t in targets)

    def error_of(counts):
        return sum(errors[g.name][int(n)] for g, n in zip(model.groups, counts, strict=True))

    every = [np.array(each, dtype=float) for each in product(*(levels_of(g, limits) for g in model.groups))]
    within = [error_of(counts) for counts in every if met(counts)]
    try:
        counts = allocate_by_error(model, errors, targets, limits=limits, allowed=frozenset(errors))
    except TargetError:
        assert not within
        return None
    assert met(counts)
    return error_of(counts) - min(within)


def test_products_are_linearised_and_the_true_costs_are_met_with_the_least_error():
    found = [regret(fraction, seed) for fraction in (0.01, 0.3, 0.5, 0.7, 0.9, 1.0) for seed in range(8)]
    above = [each for each in found if each is not None]
    assert len(above) == 40
    assert above == pytest.approx([0] * 40, abs=1e-12)


def test_groups_need_error_curves():
    model = build_cost_model(residual()[1])
    names = frozenset(group.name for group in model.groups)
    with pytest.raises(OptionError) as error:
        allocate_by_error(model, {}, parse_targets("macs=0.5"), limits=Limits(), allowed=names)
    first = model.groups[0]
    assert str(error.value) == (
        f"group '{first.name}' of {first.size} units needs an error curve of {first.size + 1} values, got none"
    )

"""Dimension expressions: normal form and index maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.dims import ONE, Factor, Product, Sum, concat, factors_of, positions, product, resized, unit_of


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda a, b, c: product(a, ONE, b), "(a:2 b:3)"),
        (lambda a, b, c: product(a), "a:2"),
        (lambda a, b, c: product(), "1"),
        (lambda a, b, c: product(product(a, b), c), "(a:2 b:3 c:4)"),
        (lambda a, b, c: concat(concat(a, b), c), "(a:2+b:3+c:4)"),
        (lambda a, b, c: product(concat(a, b), c), "((a:2 c:4)+(b:3 c:4))"),
        (lambda a, b, c: product(c, concat(a, b)), "(c:4 (a:2+b:3))"),
        (lambda a, b, c: concat(a), "a:2"),
        (lambda a, b, c: concat(concat(), b), "b:3"),
    ],
)
def test_normal_form(build, expected):
    assert repr(build(Factor("a", 2), Factor("b", 3), Factor("c", 4))) == expected


def test_positions_of_a_product_are_row_major():
    h, d = Factor("h", 2), Factor("d", 3)
    assert positions(product(h, d), {d: np.array([0, 2])}).tolist() == [0, 2, 3, 5]
    assert positions(product(h, d), {h: np.array([1])}).tolist() == [3, 4, 5]


def test_positions_of_a_sum_are_offset():
    a, b = Factor("a", 2), Factor("b", 2)
    assert positions(concat(a, b), {b: np.array([1])}).tolist() == [0, 1, 3]


def test_positions_follow_the_order_given():
    a = Factor("a", 3)
    assert positions(a, {a: np.array([2, 0, 1])}).tolist() == [2, 0, 1]


def test_unit_of_names_the_unit_of_each_position():
    h, d = Factor("h", 2), Factor("d", 3)
    assert unit_of(product(h, d), h).tolist() == [0, 0, 0, 1, 1, 1]
    assert unit_of(product(h, d), d).tolist() == [0, 1, 2, 0, 1, 2]
    assert unit_of(concat(h, d), d).tolist() == [-1, -1, 0, 1, 2]


@st.composite
def dims(draw, depth: int = 3):
    """Random expressions over fresh factors."""
    if depth == 0 or draw(st.booleans()):
        return Factor("f", draw(st.integers(2, 4)))
    parts = draw(st.lists(dims(depth - 1), min_size=1, max_size=3))
    return (product if draw(st.booleans()) else concat)(*parts)


@given(dims(), st.randoms(use_true_random=False))
def test_index_maps_agree_with_each_other(dim, random):
    factors = list(dict.fromkeys(factors_of(dim)))
    kept = {
        factor: np.array(sorted(random.sample(range(factor.size), random.randint(1, factor.size))))
        for factor in factors
    }
    index = positions(dim, kept)
    assert len(index) == resized(dim, {factor: len(units) for factor, units in kept.items()})
    assert (np.diff(index) > 0).all()
    expected = np.ones(dim.size, bool)
    for factor in factors:
        unit = unit_of(dim, factor)
        expected &= (unit < 0) | np.isin(unit, kept[factor])
    assert np.flatnonzero(expected).tolist() == index.tolist()


@given(dims())
def test_expressions_stay_in_normal_form(dim):
    def check(part):
        if isinstance(part, Product):
            assert len(part.parts) > 1
            assert not isinstance(part.parts[0], Sum)
            assert not any(isinstance(inner, Product) or inner.size == 1 for inner in part.parts)
        if isinstance(part, Sum):
            assert len(part.parts) > 1
            assert not any(isinstance(inner, Sum) for inner in part.parts)
        if not isinstance(part, Factor):
            for inner in part.parts:
                check(inner)

    check(dim)

"""Unification of dimension expressions."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.analysis.solver import Reason, Solver
from graphprune.errors import RuleError
from graphprune.ir.dims import ONE, Factor, Product, Sum, concat, factors_of, positions, product


def factors(**sizes):
    return [Factor(name, size) for name, size in sizes.items()]


def test_factor_with_factor():
    solver, (a, b) = Solver(), factors(a=4, b=4)
    solver.unify(a, b)
    assert solver.resolve(a) is solver.resolve(b)


def test_a_fixed_factor_fixes_the_other_and_the_first_reason_stays():
    solver, (a, b) = Solver(), factors(a=4, b=4)
    solver.fix(a, Reason("first"))
    solver.fix(b, Reason("second"))
    solver.unify(b, a)
    assert solver.fixed[solver.resolve(b)] == Reason("first")


def test_refinement_carries_flags_into_the_parts():
    solver, (c, h, d) = Solver(), factors(c=12, h=3, d=4)
    solver.fix(c, Reason("why"))
    solver.normalize(c, Reason("norm"))
    solver.label(c, "channel")
    solver.unify(c, product(h, d))
    assert solver.fixed == {h: Reason("why"), d: Reason("why")}
    assert set(solver.normalized) == {h, d}
    assert solver.labels == {h: {"channel"}, d: {"channel"}}


def test_rotate_half_pairs_the_halves():
    solver, (d,) = Solver(), factors(d=8)
    left, right = solver.cut(d, 4)
    solver.unify(concat(left, right), concat(right, left))
    assert repr(solver.resolve(d)) == "(d0:4+d0:4)" or repr(solver.resolve(d)) == "(d1:4+d1:4)"


def test_fused_qkv_shares_heads_and_dims():
    solver, (qkv, three, h, d) = Solver(), factors(qkv=36, three=3, h=3, d=4)
    solver.unify(qkv, product(three, h, d))
    parts = factors(q=12, k=12, v=12)
    solver.unify(concat(*parts), qkv)
    assert {repr(solver.resolve(part)) for part in parts} == {"(h:3 d:4)"}
    assert repr(solver.resolve(three)) == "(1+1+1)"


def test_sums_are_cut_at_the_union_of_their_boundaries():
    solver, (a, b, c, d) = Solver(), factors(a=2, b=4, c=4, d=2)
    solver.unify(concat(a, b), concat(c, d))
    assert solver.resolve(concat(a, b)) == solver.resolve(concat(c, d))
    assert len(solver.resolve(c).parts) == 2


def test_products_split_by_their_common_divisor():
    solver, (a, b, c, d) = Solver(), factors(a=12, b=5, c=4, d=15)
    solver.unify(product(a, b), product(c, d))
    assert repr(solver.resolve(product(a, b))) == repr(solver.resolve(product(c, d)))
    assert [part.size for part in solver.resolve(product(a, b)).parts] == [4, 3, 5]


def test_minor_parts_are_matched_where_majors_cannot():
    solver, (a, b, x, c, d, y) = Solver(), factors(a=2, b=3, x=8, c=3, d=2, y=8)
    solver.unify(product(a, b, x), product(c, d, y), "node")
    assert solver.resolve(x) is solver.resolve(y)
    assert {factor.name for factor in solver.fixed} == {"a", "b", "c", "d"}


def test_what_cannot_be_aligned_is_fixed_with_the_reason():
    solver, (a, b, h, d) = Solver(), factors(a=3, b=9, h=3, d=4)
    solver.unify(concat(a, b), product(h, d), "view_7")
    assert {str(reason) for reason in solver.fixed.values()} == {
        "dimensions '(a:3+b:9)' and '(h:3 d:4)' cannot be aligned (node 'view_7')"
    }
    assert set(solver.fixed) == {a, b, h, d}


def test_unequal_sizes_are_an_error():
    solver, (a, b) = Solver(), factors(a=4, b=5)
    with pytest.raises(RuleError) as error:
        solver.unify(a, b, "add_1")
    assert str(error.value) == "cannot couple dimensions of sizes 4 and 5 at node 'add_1'; its rule or a shape is wrong"


def test_one_meets_one():
    solver = Solver()
    solver.unify(ONE, ONE)
    assert solver.fixed == {}


@st.composite
def equal_pairs(draw):
    """Two random expressions of the same size over fresh factors, with the size at most 48."""

    def build(size, depth):
        if depth == 0 or size < 4 or draw(st.booleans()):
            return ONE if size == 1 else Factor("f", size)
        divisors = [n for n in range(2, size) if size % n == 0]
        if divisors and draw(st.booleans()):
            major = draw(st.sampled_from(divisors))
            return product(build(major, depth - 1), build(size // major, depth - 1))
        at = draw(st.integers(1, size - 1))
        return concat(build(at, depth - 1), build(size - at, depth - 1))

    size = draw(st.integers(4, 48))
    return build(size, 3), build(size, 3)


@settings(max_examples=300)
@given(st.lists(equal_pairs(), min_size=1, max_size=4))
def test_after_unification_both_sides_keep_the_same_positions(pairs):
    """Whatever units are removed from factors that are not fixed, both sides keep the same positions."""
    solver = Solver()
    for a, b in pairs:
        solver.unify(a, b)
    rng = np.random.default_rng(0)
    for a, b in pairs:
        left, right = solver.resolve(a), solver.resolve(b)
        free = [f for f in dict.fromkeys((*factors_of(left), *factors_of(right))) if f not in solver.fixed]
        kept = {f: np.sort(rng.choice(f.size, max(1, f.size // 2), replace=False)) for f in free}
        assert positions(left, kept).tolist() == positions(right, kept).tolist()
        assert not any(isinstance(dim, Product | Sum) and not dim.parts and dim.size > 1 for dim in (left, right))


def test_a_chain_of_many_factors_is_followed_to_its_end():
    solver, chain = Solver(), [Factor("f", 4) for _ in range(5000)]
    for a, b in pairwise(chain):
        solver.unify(a, b)
    assert solver.resolve(chain[0]) is solver.resolve(chain[-1]) is chain[-1]

"""The notation of coupling rules."""

import pytest

from graphprune.errors import RuleError
from graphprune.ir.notation import parse_rule
from graphprune.ir.printing import print_rule
from graphprune.rules import contraction, indexing, joining, layout, normalization, pointwise, reduction

RULES = {
    "linear": (contraction.linear((8, 3), (5, 3), (5,)), "n0 ci, co ci, co -> n0 co; macs n0 co ci; label ci=neuron co=neuron"),
    "grouped conv": (
        contraction.conv((2, 6, 8, 8), (4, 3, 3, 3), None, (2, 4, 6, 6), groups=2),
        "n (g ci) s0 s1, (g co) ci k0 k1, _ -> n (g co) o0 o1; fixed s0 s1 k0 k1 o0 o1; macs n g co ci k0 k1 o0 o1; "
        "size groups=g; label g=channel ci=channel co=channel",
    ),
    "depthwise conv": (
        contraction.conv((2, 6, 8), (6, 1, 3), (6,), (2, 6, 6), groups=6),
        "n g s0, g 1 k0, g -> n g o0; fixed s0 k0 o0; macs n g 1 1 k0 o0; size groups=g; label g=channel",
    ),
    "gqa": (
        contraction.sdpa((2, 8, 5, 16), (2, 2, 5, 16), (2, 2, 5, 4), (1, 1, 5, 5), scale=None),
        "b0 (h r) q d, b0 h k d, b0 h k v, 1 1 q k -> b0 (h r) q v; fixed k; macs b0 (h r) q k d; macs b0 (h r) q k v; "
        "pin scale=0.25; label h=head r=query-head d=qk-dim v=value-dim",
    ),
    "split heads": (layout.reshape((2, 5, 12), (2, 5, 3, 4)), "f f_1 (f_2 f_3) -> f f_1 f_2 f_3; carry 0"),
    "reshape of nothing": (layout.reshape((2, 0, 4, 6), (2, 0, 24)), "f0 f1 f f_1 -> f0 f1 (f f_1); carry 0"),
    "flattened nothing": (layout.reshape((0, 4), (0,)), "x0 x1 -> y0; fixed x0 x1 y0; carry 0"),
    "concat": (joining.joined([(2, 3, 8), (2, 4, 8)], 1), "x0 p0 x2, x0 p1 x2 -> x0 p0+p1 x2; carry 0 1"),
    "slice": (joining.sliced((2, 9), 1, 2, -3, stop_slot=("end", None)), "x0 a+b+c -> x0 b; size end=-c; carry 0"),
    "layer norm": (normalization.layer_norm((2, 5, 8), 1, [(8,), (8,)]), "n0 n1 c0, c0, c0 -> n0 n1 c0; normalized c0"),
    "group norm": (
        normalization.group_norm((2, 8, 4), 4, [(8,), (8,)], slot="num_groups"),
        "n (g c) s0, (g c), (g c) -> n (g c) s0; normalized c s0; size num_groups=g; label g=norm-group c=channel",
    ),
    "broadcast": (pointwise.pointwise([(2, 3, 4, 4), (3, 1, 1)], (2, 3, 4, 4)), "x0 x1 x2 x3, x1 1 1 -> x0 x1 x2 x3"),
    "mean": (reduction.reduce((2, 3, 4), [2], keep=True, statistic="mean", op="mean"), "x0 x1 x2 -> x0 x1 1; normalized x2"),
    "gather": (indexing.gather((4, 6, 3), (2, 5), 1), "x0 x1 x2, i0 i1 @x1 -> x0 i0 i1 x2; label x0=neuron x2=neuron; carry 0"),
    "top-k": (
        indexing.topk((2, 6), 3, 1, reason="chosen"),
        "x0 x1 -> x0 k, x0 k @x1; fixed k; label x1=chosen; choice x1; least x1=3",
    ),
    "expand": (layout.expand((2, 1, 4), (2, 3, 4), slot="size"), "r0 1 r2 -> r0 r1 r2; size size[0]=r0; size size[1]=r1; size size[2]=r2; label r1=repeat; carry 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_golden_text(name):
    rule, expected = RULES[name]
    assert print_rule(rule) == expected


@pytest.mark.parametrize("name", RULES)
def test_text_round_trip(name):
    text = print_rule(RULES[name][0], sizes=True)
    assert print_rule(parse_rule(text), sizes=True) == text


def test_sizes_follow_from_shapes():
    rule = parse_rule("b (h d), h -> b h d", [(2, 12), (3,)])
    assert print_rule(rule, sizes=True) == "b:2 (h:3 d:4), h -> b h d"


@pytest.mark.parametrize(
    ("text", "operands", "message"),
    [
        ("n c", None, "no '->' in rule 'n c'; expected 'operands -> results'"),
        ("n (c -> n", None, "unclosed '(' in 'n (c' of rule 'n (c -> n'"),
        ("n ? -> n", None, "cannot read '?' in rule 'n ? -> n'; expected names, '1', '(', ')' or '+'"),
        ("n -> n; fix n", None, "unknown clause 'fix' in rule 'n -> n; fix n'; expected one of fixed, normalized, macs, size, pin, label, choice, ordered, least, multiple, write, carry, rank, compare"),
        ("n c -> c", [(2,)], "rule 'n c -> c' gives operand 0 2 axes, but its shape is [2]"),
        ("(h d) -> h d", [(12,)], "the size of 'd' in rule '(h d) -> h d' does not follow from the shapes; give it by name"),
        ("c, c -> c", [(2,), (3,)], "rule 'c, c -> c' gives operand 1 the shape [2], but it is [3]"),
        ("c:2 -> c:3", None, "factor 'c' has two sizes, 2 and 3, in rule 'c:2 -> c:3'"),
        ("c -> c; fixed d", [(2,)], "unknown factor 'd' in a clause of rule 'c -> c; fixed d'"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(text, operands, message):
    with pytest.raises(RuleError) as error:
        parse_rule(text, operands)
    assert str(error.value) == message


def test_reshape_to_another_number_of_elements_is_refused() -> None:
    with pytest.raises(
        RuleError, match=r"^a reshape of \[7, 4\] cannot give \[49, 2\]: a size is only known at run time$"
    ):
        layout.reshape((7, 4), (49, 2))

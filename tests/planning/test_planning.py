"""Cost model, targets, allocation, selection and the plan."""

from itertools import pairwise

import numpy as np
import pytest
from graphs import RESIDUAL, gqa_attention, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.analysis.groups import analyze_graph
from graphprune.errors import OptionError, PlanError, TargetError
from graphprune.importance import Evidence, criterion
from graphprune.importance.criteria import normalized
from graphprune.ir.text import parse_graph
from graphprune.planning.allocation import ORDERS, Limits, allocate, levels_of, step_of
from graphprune.planning.cost import build_cost_model
from graphprune.planning.plan import PruningPlan, fingerprint, make_plan
from graphprune.planning.problem import Problem
from graphprune.planning.select import chosen_groups, protected_axes
from graphprune.planning.share import SEARCHES, error_curve, share
from graphprune.planning.target import Target, parse_targets


def residual():
    graph = parse_graph(RESIDUAL)
    return graph, analyze_graph(graph)


# -- costs -------------------------------------------------------------------------------------------------------


def macs_by_hand(stream, inside):
    return 2 * 64 * (stream * 3 * 9 + inside * stream * 2) + 2 * 10 * stream


@pytest.mark.parametrize(("stream", "inside"), [(16, 24), (8, 24), (16, 16), (5, 7)])
def test_cost_model_counts_any_plan(stream, inside):
    model = build_cost_model(residual()[1])
    counts = np.array([stream, inside], float)
    parameters = stream * 27 + inside * stream * 2 + 10 * stream
    assert model.costs(counts) == {"macs": macs_by_hand(stream, inside), "params": parameters, "bytes": 4 * parameters}


def test_cost_of_attention_counts_heads_and_dims():
    model = build_cost_model(analyze_graph(gqa_attention()))
    kv, repeat, qk, value = 1, 3, 8, 12
    tokens, width = 10, 64
    projections = tokens * width * (kv * repeat * qk + kv * qk + kv * value + kv * repeat * value)
    attention = 2 * kv * repeat * 25 * (qk + value)
    assert model.cost("macs", np.array([kv, repeat, qk, value], float)) == projections + attention


def test_shares_say_what_a_group_is_part_of():
    shares = build_cost_model(residual()[1]).shares("params")
    total = 16 * 27 + 24 * 16 * 2 + 160
    assert shares["stem.weight[0]"] == pytest.approx(1.0)
    assert shares["a.weight[0]"] == pytest.approx(24 * 16 * 2 / total)


# -- targets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs=0.5", Target("macs", 0.5)),
        ("macs=50%", Target("macs", 0.5)),
        ("params=2M", Target("params", 2e6)),
        ("bytes=1.5MiB", Target("bytes", 1.5 * 2**20)),
        ("params=0.0005k", Target("params", 0.5, absolute=True)),
    ],
)
def test_targets_as_text(text, expected):
    assert parse_targets(text) == (expected,)


def test_a_target_as_text_is_exact():
    (target,) = parse_targets({"params": 11_047_424.0})
    assert parse_targets(str(target)) == (target,)


def test_a_small_number_with_a_unit_is_no_fraction():
    (target,) = parse_targets("params=0.0005k")
    assert (target.limit(1000), str(target)) == (0.5, "params=0.0005k")
    assert parse_targets(str(target)) == (target,)
    (fraction,) = parse_targets("params=0.5")
    assert fraction.limit(1000) == 500


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            "speed=0.5",
            "unknown target 'speed'; expected one of macs, params, bytes, latency, active_params, kv_cache, as in 'macs=0.5'",
        ),
        ("macs=half", "cannot read 'half' of target 'macs'; expected a fraction like 0.5 or 50%, or a number like 2M"),
        ("macs=200%", "target 'macs=200%' asks for more than the original has; expected at most 100%"),
        ("macs=0", "target 'macs=0' keeps nothing; expected a number above 0"),
        ("macs=-1", "cannot read '-1' of target 'macs'; expected a fraction like 0.5 or 50%, or a number like 2M"),
        ([], "no target given; expected one like 'macs=0.5', which keeps half of the multiply-accumulates"),
    ],
)
def test_bad_targets(targets, message):
    with pytest.raises(TargetError) as error:
        parse_targets(targets)
    assert str(error.value) == message


# -- allocation --------------------------------------------------------------------------------------------------


def scored(analysis, name="l2", seed=0):
    values = weights(analysis.graph, seed)
    return normalized(criterion(name).score(Evidence(analysis, values.__getitem__, seed)))


def allocated(analysis, targets, allocation="isomorphic", allowed=None, **limits):
    model = build_cost_model(analysis)
    names = frozenset(group.name for group in analysis.groups) if allowed is None else allowed
    counts = allocate(
        model, scored(analysis), parse_targets(targets), allocation=allocation, limits=Limits(**limits), allowed=names
    )
    return model, counts


@pytest.mark.parametrize("allocation", ORDERS)
@settings(max_examples=40, deadline=None)
@given(fraction=st.floats(0.35, 1.0), align=st.sampled_from([1, 2, 4, 8]), metric=st.sampled_from(["macs", "params"]))
def test_targets_are_met_within_one_alignment_step(allocation, fraction, align, metric):
    analysis = residual()[1]
    model, counts = allocated(analysis, {metric: fraction}, allocation, align=align, max_ratio=1.0)
    limit = fraction * model.cost(metric)
    assert model.cost(metric, counts) <= limit * (1 + 1e-9)
    for i, group in enumerate(model.groups):
        levels = levels_of(group, Limits(align=align, max_ratio=1.0))
        assert counts[i] in levels
        if counts[i] < group.size:
            more = counts.copy()
            more[i] = levels[levels.index(int(counts[i])) - 1]
            assert model.cost(metric, more) > limit


def test_uniform_keeps_the_same_fraction_everywhere():
    _, counts = allocated(residual()[1], "macs=0.3", "uniform", align=1)
    assert counts[0] / 16 == pytest.approx(counts[1] / 24, abs=1 / 16)


def test_global_takes_the_least_important_units():
    analysis = residual()[1]
    scores = {"stem.weight[0]": np.full(16, 10.0), "a.weight[0]": np.linspace(0, 1, 24)}
    model = build_cost_model(analysis)
    counts = allocate(
        model, scores, parse_targets("macs=0.7"), allocation="global", limits=Limits(align=1), allowed=frozenset(scores)
    )
    assert counts[0] == 16
    assert counts[1] < 24


def test_zscore_spares_groups_whose_units_are_alike():
    analysis = residual()[1]
    names = [group.name for group in analysis.groups]
    scores = {names[0]: np.full(16, 0.1), names[1]: np.concatenate([np.full(8, 1.0), np.full(16, 5.0)])}
    model = build_cost_model(analysis)
    target = parse_targets({"macs": model.cost("macs", np.array([16.0, 16.0]))})
    counts = allocate(model, scores, target, allocation="zscore", limits=Limits(align=8), allowed=frozenset(names))
    assert counts.tolist() == [16, 16]


def test_log_ramp_cuts_later_groups_of_a_kind_more():
    analysis = residual()[1]
    names = [group.name for group in analysis.groups]
    scores = {group.name: np.ones(group.size) for group in analysis.groups}
    model = build_cost_model(analysis)
    counts = allocate(
        model,
        scores,
        parse_targets("macs=0.5"),
        allocation="log-ramp",
        limits=Limits(align=1),
        allowed=frozenset(names),
    )
    gone = 1 - counts / model.full
    assert analysis.groups[0].kind == analysis.groups[1].kind
    assert gone[1] == pytest.approx(2 * gone[0], abs=0.1)


def test_several_targets_hold_together():
    model, counts = allocated(residual()[1], {"macs": 0.8, "params": 0.4}, align=1)
    assert model.cost("macs", counts) <= 0.8 * model.cost("macs")
    assert model.cost("params", counts) <= 0.4 * model.cost("params")


def test_only_allowed_groups_are_touched():
    _, counts = allocated(residual()[1], "macs=0.8", allowed=frozenset(["a.weight[0]"]), align=1)
    assert counts[0] == 16
    assert counts[1] < 24


def test_an_unmeetable_target_says_what_is_left():
    with pytest.raises(TargetError) as error:
        allocated(residual()[1], "macs=0.01", max_ratio=0.5)
    full, lowest = macs_by_hand(16, 24), macs_by_hand(8, 16)
    assert str(error.value) == (
        f"target 'macs=0.01' cannot be met: at least {lowest:,} of {full:,} multiply-accumulates "
        f"({lowest / full:.1%}) remain, {full * 0.01:,.0f} are allowed"
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"align": 0}, "align is 0; expected 1 or more"),
        ({"min_units": 0}, "min_units is 0; expected 1 or more"),
        ({"max_ratio": 1.5}, "max_ratio is 1.5; expected a fraction above 0 and at most 1"),
    ],
)
def test_bad_limits(limits, message):
    with pytest.raises(OptionError) as error:
        Limits(**limits)
    assert str(error.value) == message


def test_alignment_counts_positions_and_yields_to_narrow_groups():
    stream, inside = residual()[1].groups
    assert [step_of(inside, align) for align in (1, 8, 16)] == [1, 8, 8]
    assert levels_of(stream, Limits(align=8, max_ratio=0.9)) == [16, 8]
    heads = {group.kind: group for group in analyze_graph(gqa_attention()).groups}
    assert step_of(heads["kv-group"], 8) == 1
    assert levels_of(inside, Limits(align=8, min_units=16)) == [24, 16]


# -- importance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_over_all_sites_of_a_unit(name, power):
    graph, analysis = residual()
    values = weights(graph)
    expected = (
        (np.abs(values["stem.weight"]) ** power).sum((1, 2, 3))
        + (np.abs(values["a.weight"]) ** power).sum((0, 2, 3))
        + (np.abs(values["b.weight"]) ** power).sum((1, 2, 3))
        + (np.abs(values["fc.weight"]) ** power).sum(0)
    ) ** (1 / power)
    scores = criterion(name).score(Evidence(analysis, values.__getitem__))
    np.testing.assert_allclose(scores["stem.weight[0]"], expected, rtol=1e-5)


def test_norms_of_heads_gather_their_positions():
    graph = gqa_attention()
    analysis = analyze_graph(graph)
    values = weights(graph)
    scores = criterion("l1").score(Evidence(analysis, values.__getitem__))
    expected = (
        np.abs(values["wq"]).reshape(2, -1).sum(1)
        + np.abs(values["wk"]).reshape(2, -1).sum(1)
        + np.abs(values["wv"]).reshape(2, -1).sum(1)
        + np.abs(values["wo"]).reshape(64, 2, 64).sum((0, 2))
    )
    np.testing.assert_allclose(scores["wq[0]"], expected, rtol=1e-5)


def test_scores_follow_a_permutation_of_the_units():
    graph, analysis = residual()
    values = weights(graph)
    order = np.random.default_rng(1).permutation(24)
    permuted = {**values, "a.weight": values["a.weight"][order], "b.weight": values["b.weight"][:, order]}
    before = criterion("l2").score(Evidence(analysis, values.__getitem__))["a.weight[0]"]
    after = criterion("l2").score(Evidence(analysis, permuted.__getitem__))["a.weight[0]"]
    np.testing.assert_allclose(after, before[order], rtol=1e-6)


def test_random_scores_follow_the_seed():
    analysis = residual()[1]
    one, same, other = (criterion("random").score(Evidence(analysis, {}.__getitem__, seed)) for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_an_unknown_criterion_is_an_error():
    with pytest.raises(OptionError) as error:
        criterion("magic")
    assert str(error.value).startswith("unknown criterion 'magic'; expected one of act-rms, act-var, apoz,")


# -- selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["channel"], ["stem.weight[0]", "a.weight[0]"]),
        (["a.weight[0]"], ["a.weight[0]"]),
        (["fc"], ["stem.weight[0]"]),
        (["a*"], ["stem.weight[0]", "a.weight[0]"]),
        (["a*[0]"], ["a.weight[0]"]),
        (["*.weight[1]"], ["stem.weight[0]", "a.weight[0]"]),
        ([], ["stem.weight[0]", "a.weight[0]"]),
    ],
)
def test_only_selects_by_kind_name_and_tensor(only, expected):
    assert [group.name for group in chosen_groups(residual()[1], only)] == expected


def test_only_that_selects_nothing_is_an_error():
    with pytest.raises(OptionError) as error:
        chosen_groups(residual()[1], ["head"])
    assert str(error.value) == "'head' of only selects no group; the kinds in this model are: channel"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", [("a.weight", None)]),
        ("*.weight[1]", [("stem.weight", 1), ("a.weight", 1), ("b.weight", 1), ("fc.weight", 1)]),
        ("channel", []),
    ],
)
def test_protect_patterns(pattern, expected):
    graph = residual()[0]
    assert [(name, axis) for name, axis, _ in protected_axes(graph, [pattern])] == expected


def test_a_protect_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(
        OptionError,
        match=r"^protect pattern 'layer9' \(did you mean 'layer'\?\) matches no stored tensor and no kind of group; ",
    ):
        protected_axes(residual()[0], ["layer9"])


# -- the plan ----------------------------------------------------------------------------------------------------


def test_plan_lists_kept_positions_of_every_cut_axis():
    analysis = residual()[1]
    plan = make_plan(analysis, {analysis.groups[1].factor: np.array([0, 2, 5])})
    assert plan.to_dict()["parameters"] == {"a.weight": {"0": [0, 2, 5]}, "b.weight": {"1": [0, 2, 5]}}
    assert plan.to_dict()["shapes"] == {
        "stem.weight": [16, 3, 3, 3], "a.weight": [24, 16, 1, 1], "b.weight": [16, 24, 1, 1], "fc.weight": [10, 16],
    }  # fmt: skip


def test_plan_round_trip(tmp_path):
    analysis = residual()[1]
    plan = make_plan(analysis, {analysis.groups[0].factor: np.array([1, 3])}, {"targets": ["macs=0.5"]})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_plans_compose_by_original_index():
    graph, analysis = residual()
    first = make_plan(analysis, {analysis.groups[1].factor: np.array([0, 2, 5, 7, 9])})
    smaller = parse_graph(RESIDUAL.replace("24", "5"))
    second_analysis = analyze_graph(smaller)
    second = make_plan(
        second_analysis,
        {second_analysis.groups[1].factor: np.array([1, 4]), second_analysis.groups[0].factor: np.array([0, 15])},
    )
    both = first.then(second)
    at_once = make_plan(
        analysis, {analysis.groups[1].factor: np.array([2, 9]), analysis.groups[0].factor: np.array([0, 15])}
    )
    assert both.fingerprint == fingerprint(graph)
    assert both.parameters == at_once.parameters
    assert both.shapes == at_once.shapes
    assert {group.name: group.kept for group in both.groups} == {group.name: group.kept for group in at_once.groups}


def test_plans_that_do_not_follow_each_other_are_refused():
    analysis = residual()[1]
    plan = make_plan(analysis, {analysis.groups[1].factor: np.array([0, 2, 5])})
    with pytest.raises(PlanError) as error:
        plan.then(plan)
    assert str(error.value) == (
        "the later plan was made on another model: 'a.weight' has shape [3, 16, 1, 1] after this plan, it says "
        "[24, 16, 1, 1]; make it on the result of this plan"
    )


def test_a_plan_whose_parameters_contradict_its_groups_is_refused():
    analysis = residual()[1]
    data = make_plan(analysis, {analysis.groups[1].factor: np.array([0, 2, 5])}).to_dict()
    data["parameters"]["a.weight"]["0"] = [0, 2, 6]
    with pytest.raises(PlanError) as error:
        PruningPlan.from_dict(data).kept_of(analysis)
    assert str(error.value) == "what the plan keeps of 'a.weight' does not follow from its groups; make the plan anew"


def test_a_protected_name_may_be_the_name_of_a_kind():
    graph = parse_graph(RESIDUAL.replace("a.weight", "head.weight"))
    assert [name for name, _, _ in protected_axes(graph, ["head"])] == ["head.weight"]


def test_a_protected_axis_must_exist():
    with pytest.raises(OptionError) as error:
        protected_axes(residual()[0], ["fc.weight[7]"])
    assert str(error.value) == "protect pattern 'fc.weight[7]' names axis 7, 'fc.weight' has 2 axes, from 0"


def test_a_plan_for_another_model_is_refused():
    analysis = residual()[1]
    plan = make_plan(analysis, {analysis.groups[0].factor: np.array([1, 3])})
    other = analyze_graph(gqa_attention())
    with pytest.raises(PlanError, match="^the plan belongs to another model: its fingerprint is "):
        plan.kept_of(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a list, expected an object; give the file that --plan-out wrote"),
        ('{"format": 99}', "the plan has format 99, this graphprune reads format 3; update one of them"),
        ('{"format": 1}', "the plan is malformed (KeyError: 'fingerprint'); expected what --plan-out writes"),
        (
            '{"format":1,"fingerprint":"x","groups":[{"name":"g","kind":"channel","size":4,"kept":[2,1]}],"parameters":{}}',
            "the kept indices of 'g' are not a rising sequence within 0..3; make the plan anew",
        ),
    ],
)
def test_malformed_plans(tmp_path, content, message):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(PlanError) as error:
        PruningPlan.load(path)
    assert message in str(error.value)


def test_a_missing_plan_is_an_error(tmp_path):
    with pytest.raises(PlanError) as error:
        PruningPlan.load(tmp_path / "none.json")
    assert str(error.value) == (
        f"cannot read plan '{tmp_path / 'none.json'}': No such file or directory; give the file that --plan-out wrote"
    )


# -- searches --------------------------------------------------------------------------------------------------------


def mlp_graph(widths: tuple[int, ...]):
    """Linear layers one after the other."""
    names = ["x", *(f"h{i}" for i in range(1, len(widths)))]
    lines = [f"input x float32 2x{widths[0]}"]
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        lines += [f"parameter w{i} float32 {after}x{before}", f"computed h{i} float32 2x{after}"]
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        rule = f"n:2 ci:{before}, co:{after} ci -> n co; macs n co ci; label ci=neuron co=neuron"
        lines.append(f"l{i}: h{i} = linear({names[i - 1]}, w{i}) : {rule}")
    return parse_graph("\n".join([*lines, f"output {names[-1]}"]))


def searched(allocation: str, fitness=None, *, fraction: float = 0.6, seed: int = 0):
    analysis = analyze_graph(mlp_graph((12, 32, 48, 24, 8)))
    rng = np.random.default_rng(seed)
    scores = {group.name: rng.exponential(size=group.size) * rng.uniform(0.1, 10) for group in analysis.groups}
    model = build_cost_model(analysis)
    targets = parse_targets({"macs": fraction})
    options = {"limits": Limits(align=4), "allowed": frozenset(scores)}
    counts = share(Problem(model, scores, targets, fitness=fitness, **options), allocation)
    lost = sum(error_curve(scores[g.name])[int(n)] for g, n in zip(model.groups, counts, strict=True))
    assert model.cost("macs", counts) <= fraction * model.cost("macs")
    assert all(n in levels_of(g, options["limits"]) for g, n in zip(model.groups, counts, strict=True))
    return counts, lost


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_errors_is_least_with_dp(seed):
    lost = {name: searched(name, seed=seed)[1] for name in ("dp", "global", "uniform", "isomorphic", "kwon")}
    assert lost["dp"] <= min(lost.values()) + 1e-9


@pytest.mark.parametrize("allocation", SEARCHES)
def test_searches_never_end_worse_than_they_begin(allocation):
    seen = []

    def fitness(counts):
        seen.append(float(((counts - np.array([8, 48, 20])) ** 2).sum()))  # what dp does not know
        return seen[-1]

    counts, _ = searched(allocation, fitness)
    assert len(seen) > 5
    assert float(((counts - np.array([8, 48, 20])) ** 2).sum()) == min(seen) < seen[0]


def test_a_search_without_data_says_so():
    with pytest.raises(OptionError, match="'spdy' runs the model and needs calibration data"):
        searched("spdy")
    with pytest.raises(OptionError, match="unknown allocation 'fair'"):
        searched("fair")

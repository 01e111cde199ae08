"""The default shares the budget as the finished model loses least, on inputs that neither scores nor refit have seen."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
from test_measured import X, chain

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.compensation.sequential import compensate
from graphprune.data.batches import open_batches
from graphprune.errors import OptionError, TargetError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.importance import Evidence
from graphprune.importance.at_once import adopted_at_once, refitted_at_once
from graphprune.importance.context import readings
from graphprune.importance.held_out import far_behind, judge, preferred
from graphprune.importance.loss import Standard
from graphprune.importance.trials import read_with_biases, refitted
from graphprune.passes import Allocate, ChooseAllocation, all_passes, choosing
from graphprune.passes.choose_allocation import few_inputs, sentence
from graphprune.pipeline.edits import slice_edits
from graphprune.pipeline.needs import check
from graphprune.pipeline.passes import run_pipeline
from graphprune.pipeline.state import State
from graphprune.pipeline.text import parse_pipeline
from graphprune.planning.share import error_curve
from graphprune.statistics.collect import collect
from graphprune.statistics.holdout import split_batches

TARGET = {"macs": 0.7}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("model") / "chain.onnx")


@pytest.fixture
def measured(model):
    """The state before the allocation."""
    host = OnnxHost.load(model)
    passes = parse_pipeline(
        "fold-constants,analyze,calibrate{holdout=true},score{criterion=obs},measure-losses", all_passes()
    )
    return run_pipeline(passes, State(host, batches=open_batches({"x": X}, host)))


def misled(state):
    """The state with the losses of the two branches taken for each other's."""
    first, second = state.losses
    return replace(state, losses={first: state.losses[second], second: state.losses[first]})


def choose(*names, target="macs=0.7", rung="affine"):
    return ChooseAllocation(
        tuple((Allocate((target,), name, align=1),) for name in names or ("measured", "isomorphic", "dp")), rung
    )


# -- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({"a": [1.0, 1.0], "b": [0.5, 0.5]}, "b"),
        ({"a": [0.5, 0.5], "b": [1.0, 1.0]}, "a"),
        ({"a": [1.0, 2.0, 3.0], "b": [0.9, 1.9, 2.9]}, "b"),  # always ahead, though batches differ by more
        ({"a": [1.0, 2.0, 3.0], "b": [3.0, 1.0, 1.9]}, "a"),  # ahead by chance only
        ({"a": [1.0], "b": [0.9]}, "b"),
        ({"a": [np.nan, 1.0], "b": [9.0, 9.0]}, "b"),
        ({"a": [1.0, 1.0], "b": [np.inf, 0.0]}, "a"),
        ({"a": [1.0, 1.0], "b": [0.5, 0.5], "c": [0.2, 0.2]}, "c"),
        ({"a": [np.nan], "b": [np.nan]}, "a"),
    ],
)
def test_the_first_is_taken_unless_another_is_better_by_more_than_chance(losses, best):
    assert preferred({name: np.array(each) for name, each in losses.items()}) == best


def test_losses_are_those_of_refits_on_other_batches(measured, monkeypatch):
    monkeypatch.setattr("graphprune.passes.choose_allocation.FAR", np.inf)
    found = choose().run(measured)
    noted = found.plan.options["candidates"]
    assert list(noted)[:2] == ["measured", "isomorphic"]
    fit, held = split_batches(len(measured.batches))
    compared = 0
    for allocation, loss in noted.items():
        planned = Allocate(("macs=0.7",), allocation, align=1).run(measured)
        host = measured.host.edited(slice_edits(measured.analysis, planned.kept))
        batches = [measured.batches[i] for i in fit]
        host, _ = compensate(measured.host, host, measured.analysis, planned.kept, batches)
        losses = []
        for i in held:
            want, have = (each.run(measured.batches[i])["y"].astype(float) for each in (measured.host, host))
            losses.append(np.square(have - want).mean() / want.var())
        if loss is not None:
            compared += 1
            assert loss == pytest.approx(np.mean(losses), rel=1e-3)
    assert compared >= 2
    assert found.plan.options["allocation"] == min((n for n in noted if noted[n]), key=noted.get)


def test_a_candidate_is_gone_before_the_next_is_refitted(measured, monkeypatch):
    """Each has all the weights of a model of its own."""
    made, refit = [], ChooseAllocation._refitted

    def noted(*given):
        gc.collect()
        assert not any(each() for each in made)
        host = refit(*given)
        made.append(weakref.ref(host))
        return host

    monkeypatch.setattr("graphprune.passes.choose_allocation.FAR", np.inf)
    monkeypatch.setattr(ChooseAllocation, "_refitted", noted)
    choose().run(measured)
    assert len(made) >= 2


def test_what_misleads_one_allocation_does_not_mislead_the_choice(measured):
    right, wrong = choose().run(measured), choose().run(misled(measured))
    assert right.plan.options["allocation"] == "measured"
    assert wrong.plan.options["allocation"] != "measured"
    taken = next(note for note in wrong.notes if "ways to share" in note)
    assert "'measured'" not in taken.split("was taken")[0]


def test_a_candidate_that_is_far_behind_is_not_refitted(measured, monkeypatch):
    monkeypatch.setattr("graphprune.passes.choose_allocation.FAR", 1.5)
    refits = []
    module = "graphprune.passes.choose_allocation.compensate"
    monkeypatch.setattr(module, lambda *args, **kwargs: refits.append(1))
    found = choose("measured", "isomorphic").run(misled(measured))
    assert found.plan.options["candidates"] == {"measured": None, "isomorphic": None}
    assert found.plan.options["allocation"] == "isomorphic"
    assert refits == []
    assert found.notes[-1] == (
        "of 2 ways to share the budget 'isomorphic' was taken; before a full refit the others were far behind"
    )


@pytest.mark.parametrize("rung", ["none", "mean"])
def test_without_a_refit_of_weights_all_are_tried_as_they_will_be(measured, rung):
    noted = choose("measured", "isomorphic", rung=rung).run(misled(measured)).plan.options["candidates"]
    assert noted["isomorphic"] < noted["measured"]


def test_equal_plans_are_tried_once_and_one_alone_not_at_all(measured, monkeypatch):
    module = "graphprune.passes.choose_allocation.judge"
    monkeypatch.setattr(module, lambda *args: pytest.fail("a single candidate was tried"))
    state = replace(measured, losses={name: error_curve(scores) for name, scores in measured.scores.items()})
    found = choose("dp", "measured").run(state)
    assert found.plan.options["allocation"] == "dp"
    assert "candidates" not in found.plan.options
    assert found.notes == ()


def test_sentences():
    assert sentence({"dp": 0.125, "measured": 0.25}, "dp", 3) == (
        "of 3 ways to share the budget 'dp' was taken: its refitted model loses 0.125 on inputs that scores and this "
        "refit have not seen ('measured' loses 0.25, the others were far behind)"
    )


@pytest.mark.parametrize(
    ("read", "held", "said"),
    [(0.1, 0.149, False), (0.1, 0.16, True), (1e-6, 9e-5, False), (0.2, 0.1, False), (np.nan, 1.0, False)],
)
def test_more_inputs_are_asked_for_where_a_refit_does_worse_on_others(read, held, said):
    note = (
        f"refitted to 48 inputs, the model loses {read:.3g} on them and {held:.3g} on others: more inputs would help "
    )
    assert few_inputs(read, held, 48) == ([f"{note}(--samples, --calibration)"] if said else [])


def test_few_inputs_are_noticed(model):
    rng = np.random.default_rng(2)
    notes = {}
    for n in (16, 480):
        x = rng.normal(size=(n, 8)).astype(np.float32)
        options = {"calibration": {"x": x}, "samples": n, "verify": False, "align": 1}
        notes[n] = gp.prune(model, target={"macs": 0.5}, **options).report.notes
    assert any("more inputs would help" in note for note in notes[16])
    assert not any("more inputs would help" in note for note in notes[480])


def test_errors(measured):
    with pytest.raises(TargetError, match=r"^target 'macs=0.01' cannot be met"):
        choose(target="macs=0.01").run(measured)
    with pytest.raises(OptionError, match=r"^'choose-allocation' needs calibration data; give some"):
        choose().run(replace(measured, batches=None))
    with pytest.raises(OptionError) as error:
        parse_pipeline("choose-allocation", all_passes())[0].check()
    assert str(error.value) == (
        "'choose-allocation' chooses among plans, and has none; give it candidates, as in "
        '\'choose-allocation{candidates="allocate{macs=0.5 allocation=dp}"|"allocate{macs=0.5}"}\''
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("analyze,CHOICE", "pass 'allocate' needs scores; put 'score' before it in the pipeline"),
        ("analyze,score,CHOICE", "allocation 'measured' shares the budget by losses on calibration data; give some "),
    ],
)
def test_what_its_candidates_need_is_asked_for_before_anything_runs(text, message):
    passes = parse_pipeline(text.replace("CHOICE", str(choose())), all_passes())
    with pytest.raises(OptionError) as error:
        check(passes, {"calibration"}, complete=True)
    assert str(error.value).startswith(message)


# -- in the pipeline -----------------------------------------------------------------------------------------------


def test_it_is_the_default_and_a_named_allocation_is_taken_as_it_is(model, tmp_path):
    options = {"target": TARGET, "align": 1, "calibration": {"x": X}, "verify": False}
    result = gp.prune(model, **options)
    assert any("ways to share the budget" in note for note in result.report.notes)
    assert "choose-allocation" in dict(result.report.seconds)
    result.plan.save(tmp_path / "plan.json")
    assert gp.PruningPlan.load(tmp_path / "plan.json").options["candidates"] == result.plan.options["candidates"]
    assert gp.prune(model, **options).plan == result.plan
    for allocation in ("measured", "isomorphic"):
        named = gp.prune(model, allocation=allocation, **options)
        assert named.plan.options["allocation"] == allocation
        assert "candidates" not in named.plan.options
        assert "choose-allocation" not in dict(named.report.seconds)


def test_it_has_a_text():
    for each in (choose(), choose("dp", rung="ols")):
        assert parse_pipeline(str(each), all_passes()) == (each,)
    text = 'choose-allocation{candidates="allocate{macs=0.5 allocation=dp}"|"allocate{macs=0.5}"}'
    assert [each.allocation for (each,) in parse_pipeline(text, all_passes())[0].candidates] == ["dp", "isomorphic"]


def test_a_latency_is_met_by_one_allocation():
    for targets, chosen in ((("latency=0.5",), False), (("macs=0.5",), True), ((), False)):
        (each,) = choosing((Allocate(targets, blocks="1"),), "affine")
        assert isinstance(each, ChooseAllocation) == chosen


# -- what it is made of --------------------------------------------------------------------------------------------


def test_refits_at_once_are_those_of_trials(model):
    host = OnnxHost.load(model)
    analysis = analyze_graph(host.graph())
    statistics = collect(host, analysis, [{"x": X[:120]}])
    evidence = Evidence(analysis, host.read, statistics=statistics, host=host)
    wanted, consumers = read_with_biases(host, statistics)
    kept, changes = {}, {}
    for number, group in enumerate(analysis.groups):
        gone = np.arange(3 + number, 20)
        kept[group.factor] = np.setdiff1d(np.arange(group.size), gone)
        changes |= refitted(wanted, list(readings(evidence, statistics, group)), consumers, gone)

    def cut(host):
        return host.edited(slice_edits(analysis, kept))

    found = adopted_at_once(host, refitted_at_once(evidence, kept), cut)
    assert found.graph().values["0.out"].shape == (15, 8)
    unseen = {"x": X[120:]}
    np.testing.assert_allclose(found.run(unseen)["y"], wanted.replaced(changes).run(unseen)["y"], atol=1e-5)
    plain = np.abs(cut(host).run(unseen)["y"] - host.run(unseen)["y"]).mean()
    assert np.abs(found.run(unseen)["y"] - host.run(unseen)["y"]).mean() < 0.7 * plain


def test_weights_that_others_read_are_cut_and_not_copied():
    """Such as the table of a tied head, which would be held twice over."""
    rng = np.random.default_rng(0)
    first, tied = (", ".join(f"{each:.3f}" for each in rng.standard_normal(n)) for n in (60, 36))
    host = OnnxHost.load(
        onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[4, 5] x) => (float[4, 3] y) <float[5, 12] first = {{{first}}}, float[12, 3] tied = {{{tied}}}>
        {{ a = MatMul(x, first) b = Relu(a) c = MatMul(b, tied) d = Tanh(a) e = MatMul(d, tied) y = Add(c, e) }}""")
    )
    analysis, inputs = analyze_graph(host.graph()), {"x": rng.standard_normal((4, 5)).astype(np.float32)}
    evidence = Evidence(analysis, host.read, statistics=collect(host, analysis, [inputs]), host=host)
    (group,) = analysis.groups
    kept = {group.factor: np.arange(7)}
    found = refitted_at_once(evidence, kept)
    assert (found.weights, found.biases) == ({}, {})
    plain = host.edited(slice_edits(analysis, kept))
    adopted = adopted_at_once(host, found, lambda dense: dense.edited(slice_edits(analysis, kept)))
    np.testing.assert_array_equal(plain.run(inputs)["y"], adopted.run(inputs)["y"])


def test_a_judge_holds_as_many_outputs_as_it_may(model):
    host = OnnxHost.load(model)
    batches = [{"x": X[i : i + 8]} for i in range(0, 80, 8)]
    pruned = gp.prune(model, target=TARGET, verify=False).host
    losses = judge(host, batches)(pruned)
    assert losses.mean() == pytest.approx(
        Standard(host.run, ((each, None) for each in batches), host.graph()).loss(pruned.run)
    )
    n_bytes = 8 * 8 * 4
    assert [len(judge(host, batches, n * n_bytes)(pruned)) for n in (0, 1, 3, 99)] == [8, 8, 24, 80]
    single = [judge(host, [{"x": X[i : i + 1]}])(pruned) for i in range(8)]  # relative to another variance
    ratio = np.concatenate(single) / losses[:8]
    variances = [np.var(host.run({"x": X[i : i + 1]})["y"]) for i in range(8)]
    np.testing.assert_allclose(ratio, np.var(host.run({"x": X[:8]})["y"]) / variances, rtol=1e-4)


def test_who_is_far_behind():
    losses = {"a": [1.0, 1.2], "b": [9.0, 9.5], "c": [0.0, 9.0], "d": [np.nan, 1.0]}
    assert far_behind({name: np.array(each) for name, each in losses.items()}, 3.0) == {"b", "d"}
    assert far_behind({"a": np.array([np.nan])}, 3.0) == set()


def test_part_of_the_batches(model):
    host = OnnxHost.load(model)
    batches = open_batches({"x": X[:20], "labels": np.arange(20)}, host, batch_size=8)
    part = batches.part([0, 2])
    assert [len(each["x"]) for each in part] == [8, 4]
    np.testing.assert_array_equal(part[1]["x"], batches[2]["x"])
    np.testing.assert_array_equal(part.labels, [*range(8), *range(16, 20)])

"""What passes need of each other: told before anything runs, and true of what they do when they run."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
from graphs import save_net

import graphprune as gp
from graphprune.data.batches import open_batches
from graphprune.errors import GraphpruneError, OptionError, ProofError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.passes import (
    PASSES,
    Allocate,
    Analyze,
    Calibrate,
    Compensate,
    ExchangeUnits,
    FoldConstants,
    MeasureLosses,
    ProtectSensitive,
    RemoveBlocks,
    RemoveDeadNodes,
    Score,
    Select,
    SliceGroups,
    Verify,
    all_passes,
)
from graphprune.pipeline import keys
from graphprune.pipeline.needs import check, given, needed
from graphprune.pipeline.passes import Compound, Pass, have, parse_pipeline, run_pipeline
from graphprune.pipeline.state import State

X = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)


def net(path):
    """8 -> 24 -> 16 -> 4."""
    rng, widths = np.random.default_rng(0), (8, 24, 16, 4)
    nodes, weights = [], {}
    for i in range(3):
        weights[f"w{i}"] = rng.normal(size=widths[i : i + 2])
        nodes.append(
            onnx.helper.make_node("MatMul", [f"r{i - 1}" if i else "x", f"w{i}"], ["y" if i == 2 else f"a{i}"], f"m{i}")
        )
        if i < 2:
            nodes.append(onnx.helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu{i}"))
    return save_net(path, nodes, weights, (8, 4))


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return OnnxHost.load(net(tmp_path_factory.mktemp("net") / "net.onnx"))


def read(text):
    return parse_pipeline(text, all_passes())


FULL = (
    "select{protect-ratio=0.4},fold-constants,analyze,calibrate{holdout=true},score{criterion=obs},protect-sensitive,"
    "measure-losses,allocate{macs=0.6 align=1 allocation=measured},exchange-units,slice-groups,remove-blocks,"
    "remove-dead-nodes,verify,compensate"
)


def test_the_whole_pipeline_runs(host):
    passes = read(FULL)
    there = check(passes, {keys.CALIBRATION}, complete=True)
    state = run_pipeline(passes, State(host, batches=open_batches({"x": X}, host)))
    assert there >= have(state) - {keys.CALIBRATION}
    assert have(state) >= {keys.PLAN, keys.SLICED, keys.PROOF, keys.REFIT, keys.LOSSES, keys.PROTECTION, keys.PRODUCTS}


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("analyze", "'calibrate' needs an analysis; put 'analyze' before it in the pipeline"),
        ("calibrate{holdout=true}", "criterion 'obs' needs statistics; put 'calibrate' before 'score' in the pipeline"),
        ("score{criterion=obs}", "pass 'protect-sensitive' needs scores; put 'score' before it in the pipeline"),
        ("measure-losses", "allocation 'measured' shares the budget by losses on calibration data; give some (calibration=..., --calibration DATA), and put 'measure-losses' before 'allocate' in a pipeline"),
        ("allocate{macs=0.6 align=1 allocation=measured}", "'exchange-units' needs a plan; put 'allocate' before it in the pipeline"),
        ("slice-groups", "pass 'verify' needs a model that is cut as planned; put 'slice-groups' before it in the pipeline"),
        ("protect-sensitive", "pass 'select' asks for the names of sensitive groups, and no pass behind it gives that; put 'protect-sensitive' after it in the pipeline"),
    ],
)  # fmt: skip
def test_the_missing_pass_is_named(absent, message):
    with pytest.raises(OptionError) as caught:
        check(read(FULL.replace(f"{absent},", "", 1)), {keys.CALIBRATION}, complete=True)
    assert str(caught.value) == message


def test_the_whole_pipeline_needs_data():
    with pytest.raises(OptionError) as caught:
        check(read(FULL))
    assert str(caught.value) == "'calibrate' needs calibration data; give some (calibration=..., --calibration PATH)"


FOLDED = "fold-constants,analyze,"
CUT = FOLDED + "score,allocate{macs=0.6},slice-groups"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FOLDED}score,score{{criterion=l1}},allocate{{macs=0.6}},slice-groups", "'score' and 'score' both make scores, and nothing between them uses what the first makes; leave one of them out"),
        ("select{only=a},select{only=b},analyze", "'select' and 'select' both make a selection, and nothing between them uses what the first makes; leave one of them out"),
        ("analyze,select{only=a},score", "pass 'select' comes after 'analyze' and has to come before it; change their order"),
        (f"{CUT},slice-groups", "the model has been cut since the analysis; keep one 'slice-groups' after each 'analyze' in the pipeline"),
        (f"{CUT},exchange-units", "'exchange-units' needs calibration data; give some (calibration=..., --calibration PATH)"),
        (f"{CUT},score", "pass 'score' comes after 'slice-groups' and has to come before it; change their order"),
        (f"{CUT},allocate{{macs=0.5}}", "pass 'allocate' comes after 'slice-groups' and has to come before it; change their order"),
        (f"{CUT},remove-blocks,remove-blocks", "pass 'remove-blocks' runs twice, and the second time cannot work; leave one of them out"),
        (f"{FOLDED}score{{blocks=l2}},allocate{{blocks=1}},remove-blocks,slice-groups", "pass 'slice-groups' comes after 'remove-blocks' and has to come before it; change their order"),
        (f"{FOLDED}score{{blocks=l2}},allocate{{blocks=1}},slice-groups", "pass 'allocate' asks for a model without the blocks that go, and no pass behind it gives that; put 'remove-blocks' after it in the pipeline"),
        (f"{FOLDED}score,allocate{{blocks=1}},slice-groups", "blocks have no scores; put 'score{blocks=l2}' before 'allocate' in the pipeline"),
        (f"{FOLDED}score,allocate{{latency=0.6}},slice-groups", "a latency target needs a profile; prune with graphprune.prune, or give State.latency"),
        (f"{CUT},analyze,allocate{{macs=0.3}},slice-groups", "pass 'allocate' needs scores; put 'score' before it in the pipeline"),
        (f"{CUT},analyze", "the pipeline made no plan; it needs 'analyze', 'score' and 'allocate'"),
        (f"{FOLDED}score,allocate{{macs=0.6}}", "the pipeline plans a cut and does not make it; put 'slice-groups' after 'allocate' in it"),
    ],
)  # fmt: skip
def test_orders_that_cannot_work(text, message):
    with pytest.raises(OptionError) as caught:
        check(read(text), complete=True)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        f"{CUT},verify",
        f"{CUT},remove-dead-nodes,remove-dead-nodes,verify,verify",
        f"{FOLDED}score{{criterion=l1}},protect-sensitive,score,allocate{{macs=0.6}},slice-groups",
        f"{CUT},analyze,score,allocate{{macs=0.3}},slice-groups,verify",
        f"{FOLDED}allocate{{remove=a}},slice-groups,remove-blocks",
        f"{FOLDED}score,allocate{{macs=0.6}},slice-groups,compensate{{rung=none}}",
    ],
)
def test_orders_that_work(text):
    check(read(text), complete=True)


def test_data_and_a_refit():
    data = {keys.CALIBRATION}
    refit = f"{CUT},verify,compensate"
    check(read(refit), data, complete=True)
    with pytest.raises(OptionError, match="^compensation needs calibration data; give some "):
        check(read(refit))
    for wrong, message in (
        (f"{refit},compensate", "pass 'compensate' runs twice, and the second time cannot work; leave one of them out"),
        (f"{refit},verify", "pass 'verify' comes after 'compensate' and has to come before it; change their order"),
    ):
        with pytest.raises(OptionError) as caught:
            check(read(wrong), data)
        assert str(caught.value) == message


@pytest.mark.parametrize("name", ["exchange-units", "measure-losses", "protect-sensitive", "calibrate", "score"])
def test_what_looks_at_the_whole_model_comes_before_the_cut(name):
    passes = read(f"{FOLDED}calibrate,score,allocate{{macs=0.6}},slice-groups,{name}")
    with pytest.raises(OptionError) as caught:
        check(passes, {keys.CALIBRATION})
    assert (
        str(caught.value) == f"pass '{name}' comes after 'slice-groups' and has to come before it; change their order"
    )


POOL = (
    Select(protect=("w1[1]",)),
    FoldConstants(),
    Analyze(),
    Calibrate(),
    Calibrate(products=False),
    Score(),
    Score("wanda"),
    Score("obs"),
    ProtectSensitive(0.3),
    MeasureLosses(),
    Allocate(("macs=0.8",), align=1),
    Allocate(("macs=0.7",), "measured", 1),
    ExchangeUnits(),
    SliceGroups(),
    RemoveBlocks(),
    RemoveDeadNodes(),
    Verify(),
    Compensate(),
)


def test_what_the_check_lets_through_runs(host):
    """Random pipelines, grown pass by pass as long as the check agrees: none lacks anything when it runs."""
    rng, batches, lengths = random.Random(0), open_batches({"x": X}, host), []
    assert {type(each) for each in POOL} <= set(PASSES)
    for _ in range(12):
        passes = []
        for each in rng.choices(POOL, k=70):
            try:
                check([*passes, each], {keys.CALIBRATION})
            except OptionError:
                continue
            passes.append(each)
        there, state = frozenset({keys.CALIBRATION}), State(host, batches=batches)
        for each in passes:
            there = check([each], there)
            state = each.run(state)
            if keys.SLICED in there:
                state.require_sliced()
            assert have(state) <= there | {keys.PRODUCTS}, (each.name, passes)  # statistics are kept with the data
            assert there <= have(state), (each.name, passes)
        lengths.append(len(passes))
    assert np.mean(lengths) > 12


@pytest.mark.parametrize(
    "each", [*POOL, Score("random", blocks="bi"), Allocate(("latency=0.5",), "spdy", blocks="2")], ids=str
)
def test_what_only_some_options_need_is_said(each):
    assert each.needs <= type(each)().needs | set(type(each).may_need)
    assert each.needs | each.gives | each.before | each.spoils | each.uses <= set(keys.KEYS)


@dataclass(frozen=True)
class Own(Pass):
    """A pass that says what it does."""

    name: ClassVar[str] = "own"
    wants: str = "own-thing"
    gives: ClassVar[frozenset[str]] = frozenset({"scores"})

    @property
    def needs(self):
        return frozenset({self.wants})

    def run(self, state):
        return Score("l1").run(state)


def test_a_pass_of_the_user_may_name_keys_of_its_own():
    with pytest.raises(OptionError) as caught:
        check([Analyze(), Own(), Allocate(("macs=0.5",)), SliceGroups()])
    assert str(caught.value) == "pass 'own' needs 'own-thing'; no pass before it gives that"
    check([Analyze(), Own("analysis"), Allocate(("macs=0.5",)), SliceGroups()], complete=True)
    check([Analyze(), Own(), Allocate(("macs=0.5",)), SliceGroups()], {"own-thing"}, complete=True)


@dataclass(frozen=True)
class Loop(Compound):
    """Runs passes twice, from where it begins."""

    name: ClassVar[str] = "loop"
    passes: tuple[Pass, ...] = ()

    def run(self, state):
        run_pipeline(self.passes, state)
        return run_pipeline(self.passes, state)


LOOP = Loop((Allocate(("macs=0.6",)), SliceGroups()))


def test_passes_inside_of_passes(host):
    check([Analyze(), Score(), LOOP, Verify()], complete=True)
    assert (LOOP.needs, LOOP.gives) == ({"analysis", "scores"}, {"plan", "sliced"})
    assert (LOOP.before, LOOP.asks) == ({"sliced", "shallower"}, set())
    with pytest.raises(OptionError) as caught:
        check([Analyze(), Score(blocks="l2"), Loop((Allocate(blocks="1"), SliceGroups()))], complete=True)
    assert str(caught.value) == (
        "pass 'loop' asks for a model without the blocks that go, and no pass behind it gives that; put "
        "'remove-blocks' after it in the pipeline"
    )
    with pytest.raises(OptionError) as caught:
        check([Analyze(), Score(), LOOP, LOOP])
    assert str(caught.value) == (
        "pass 'allocate' comes after 'slice-groups' and has to come before it; change their order (inside of 'loop')"
    )
    with pytest.raises(OptionError) as caught:
        check([Analyze(), LOOP, Verify()], complete=True)
    assert str(caught.value) == "pass 'allocate' needs scores; put 'score' before it in the pipeline (inside of 'loop')"
    with pytest.raises(GraphpruneError, match="^unknown allocation 'isomorfic'"):
        check([Loop((Allocate(("macs=0.6",), "isomorfic"),))])
    assert needed([Analyze(), Score("wanda"), *LOOP.passes, Verify()]) == {keys.CALIBRATION, keys.STATISTICS}
    assert given(LOOP.passes) == {keys.PLAN, keys.SLICED}


def test_dumps_and_times_of_passes_inside_of_passes(host):
    dumped = []
    passes = [Analyze(), Score(), LOOP, Verify()]
    state = run_pipeline(passes, State(host), dump_after=["slice-groups", "loop"], dump=dumped.append, verify_each=True)
    assert [text.partition("\n")[0] for text in dumped] == ["# after slice-groups"] * 2 + ["# after loop"]
    assert [name for name, _ in state.seconds] == ["analyze", "score", "allocate", "slice-groups", "loop", "verify"]
    with pytest.raises(OptionError) as caught:
        run_pipeline(passes, State(host), dump_after=["slice-group"])
    assert str(caught.value) == (
        "cannot dump after 'slice-group' (did you mean 'slice-groups'?); the passes are analyze, score, loop, "
        "allocate, slice-groups, verify"
    )


def test_a_broken_model_inside_of_a_pass_is_found(host):
    class Breaks(Pass):
        name = "breaks"

        def run(self, state):
            from graphprune.hosts.edits import Edits

            return State(state.host.edited(Edits(slices={"w1": {0: np.arange(3)}}, shapes={"w1": (3, 16)})))

    with pytest.raises(ProofError, match="^the model is broken after pass 'breaks': "):
        run_pipeline([Loop((Breaks(),))], State(host), verify_each=True)


def test_a_wrong_pipeline_is_refused_before_a_model_is_opened():
    seen = []
    with pytest.raises(OptionError, match="^'score' and 'score' both make scores"):
        gp.prune(
            "no-such-file.onnx",
            target="macs=0.5",
            pipeline="analyze,score,score,allocate,slice-groups",
            progress=seen.append,
        )
    assert seen == []

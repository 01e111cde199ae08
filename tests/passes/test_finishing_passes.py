"""Passes that meet a latency, and those that look at the result: each by itself, on both hosts."""

import gc
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from test_latency import elements, net
from torch import nn

from graphprune.errors import ModelError, OptionError, OutputError, ProofError
from graphprune.evaluation import open_evaluation
from graphprune.hosts.export import exported
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes import (
    Allocate,
    CheckExport,
    Evaluate,
    MeasureLatency,
    MeetLatency,
    RebuildModule,
    RemoveDeadNodes,
    SliceGroups,
    Verify,
    all_passes,
    meeting_latency,
)
from graphprune.pipeline import keys
from graphprune.pipeline.needs import check
from graphprune.pipeline.passes import parse_pipeline, print_pipeline, run_pipeline
from graphprune.pipeline.state import State
from graphprune.planning.latency import Profile
from graphprune.profiling.profile import cut, make_profile


def read(text):
    return parse_pipeline(text, all_passes())


CUT = "fold-constants,analyze,score,allocate{params=0.6 align=1},slice-groups,remove-blocks,remove-dead-nodes,verify"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.hidden = nn.Linear(8, 24), nn.Linear(24, 4), 24

    def forward(self, x):
        return self.down(torch.relu(self.up(x)).view(-1, self.hidden))


class Unexportable(Net):
    def forward(self, x):
        return super().forward(torch.special.bessel_j0(x))


@cache
def pruned(kind):
    if kind == "onnx":
        host = OnnxHost.load(net())
    else:
        torch.manual_seed(0)
        host = TorchHost.trace((Net if kind == "torch" else Unexportable)().eval(), (torch.randn(3, 8),))
    return run_pipeline(read(CUT), State(host))


def n_parameters(host):
    return sum(value.n_elements for value in host.graph().stored)


# -- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_the_export_is_checked_and_the_file_kept_for_the_next_pass(kind):
    before = pruned(kind)
    state = run_pipeline([CheckExport()], before)
    assert [each.name for each in state.checks] == [*[each.name for each in before.checks], "onnxruntime"]
    assert state.checks[-1].passed
    path = state.export.path
    assert exported(state) == (state, path)
    assert OnnxHost.load(path).metadata["graphprune.targets"] == "params=0.6"
    del state
    gc.collect()
    assert not path.parent.exists()


def test_a_file_of_another_host_is_not_taken(tmp_path):
    state = run_pipeline([CheckExport()], pruned("onnx"))
    again, path = exported(replace(state, host=state.host.without_dead_nodes()))
    assert path != state.export.path
    assert again.export is not state.export


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_wrong_file_is_found(kind, monkeypatch):
    state = pruned(kind)
    name = next(value.name for value in state.host.graph().stored if len(value.shape) > 1)
    wrong = state.host.replaced({name: np.asarray(state.host.read(name), np.float32) * 1.01})
    save = type(state.host).save_onnx
    monkeypatch.setattr(type(state.host), "save_onnx", lambda self, *args, **options: save(wrong, *args, **options))
    with pytest.raises(ProofError, match="^the proof 'onnxruntime' failed"):
        run_pipeline([CheckExport()], state)


def test_what_cannot_be_exported_is_noted_or_refused():
    state = run_pipeline([CheckExport()], pruned("unexportable"))
    (note,) = state.notes
    assert note.startswith("there is no ONNX file, and onnxruntime has not checked the result: ")
    assert "cannot write" not in note
    assert "onnxruntime" not in [each.name for each in state.checks]
    for each in (CheckExport(required=True), MeasureLatency()):
        with pytest.raises(OutputError, match="^torch.onnx cannot export the model"):
            run_pipeline([each], pruned("unexportable"))


def test_what_onnxruntime_cannot_run_is_noted_or_refused(monkeypatch):
    def refuse(host, path, *_):
        raise ModelError(f"onnxruntime cannot run '{path}': no kernel")

    monkeypatch.setattr("graphprune.passes.check_export.file_parity", refuse)
    (note,) = run_pipeline([CheckExport()], pruned("torch")).notes
    assert note == "onnxruntime has not checked the ONNX file: onnxruntime cannot run it: no kernel"
    for kind, each in (("torch", CheckExport(required=True)), ("onnx", CheckExport())):
        with pytest.raises(ModelError, match="^onnxruntime cannot run"):
            run_pipeline([each], pruned(kind))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_latency_is_measured(kind):
    state = run_pipeline([CheckExport(), MeasureLatency(seconds=0.02)], pruned(kind))
    assert 1 in state.latencies
    assert all(len(each) == 2 and min(each) > 0 for each in state.latencies.values())
    assert run_pipeline([MeasureLatency(seconds=0.02)], pruned(kind)).latencies.keys() == state.latencies.keys()


# -- the module and the metric -----------------------------------------------------------------------------------


def test_the_module_is_rebuilt():
    state = run_pipeline([RebuildModule()], pruned("torch"))
    assert type(state.module) is Net
    assert sum(p.numel() for p in state.module.parameters()) == n_parameters(state.host)
    assert [(row.path, row.before) for row in state.attributes] == [("hidden", 24)]
    assert state.plan.options["attributes"].keys() == {"hidden"}
    plain = run_pipeline([RebuildModule(proof=False)], pruned("torch"))
    assert plain.checks == pruned("torch").checks
    assert run_pipeline([RebuildModule()], pruned("onnx")).module is None


def labelled(run):
    return {"size": n_parameters(run.host), "own": float(run.module is not None)}


def test_a_metric_is_measured_before_and_after(monkeypatch):
    state = pruned("torch")
    whole = n_parameters(state.original)
    given = replace(state, evaluation=open_evaluation(labelled, state.opened))
    after = run_pipeline([RebuildModule(), Evaluate()], given)
    assert after.metrics == {"size": (whole, n_parameters(state.host)), "own": (1.0, 1.0)}
    named = run_pipeline([Evaluate(f"{__name__}:labelled")], state)
    assert named.metrics["size"] == after.metrics["size"]
    with pytest.raises(OptionError) as caught:
        run_pipeline([Evaluate()], state)
    assert str(caught.value) == "pass 'evaluate' needs a metric; give one (evaluate=..., --eval)"


def test_what_looks_at_the_result_comes_behind_what_makes_it():
    finish = "check-export,measure-latency,rebuild-module,evaluate"
    have = {keys.EVALUATION, keys.CALIBRATION}
    check(read(f"{CUT},compensate,{finish}"), have, complete=True)
    for name in finish.split(","):
        with pytest.raises(OptionError) as caught:
            check(read(f"{CUT},{name},compensate"), have)
        assert (
            str(caught.value) == f"pass 'compensate' comes after '{name}' and has to come before it; change their order"
        )
        with pytest.raises(OptionError, match=f"^pass '{name}' needs a plan; put 'allocate' before it"):
            check(read(f"analyze,{name}"), have)


# -- meeting a latency -------------------------------------------------------------------------------------------


@cache
def profiled():
    host = OnnxHost.load(net())
    return host, make_profile(host, cut(host), measure=elements, whole=lambda: 10.0)


FLAT = "fold-constants,analyze,score,allocate{targets=latency=0.6 align=2},slice-groups,remove-dead-nodes,verify"


def test_a_flat_pipeline_with_a_latency_target():
    passes = meeting_latency(read(FLAT))
    text = (
        'fold-constants,analyze,score,meet-latency{passes="allocate{targets=latency=0.6 align=2},slice-groups,'
        'remove-dead-nodes"},verify'
    )
    assert print_pipeline(passes) == text
    assert read(text) == passes
    assert meeting_latency(passes) == passes
    assert meeting_latency(read(CUT)) == read(CUT)
    check(passes, complete=True)


def clocked(monkeypatch, fractions):
    given, seconds = iter(fractions), []

    def timed(threads, provider, wanted):
        seconds.append(wanted)
        return lambda before, after: (20.0, 20.0 * next(given))

    monkeypatch.setattr("graphprune.passes.meet_latency.timed", timed)
    return seconds


def test_the_pass_repeats_until_the_target_is_met(monkeypatch):
    host, profile = profiled()
    seconds = clocked(monkeypatch, [0.75, 0.59])
    state = run_pipeline(meeting_latency(read(FLAT)), State(host, profile=profile), verify_each=True)
    assert [each.measured for each in state.attempts] == pytest.approx([0.75, 0.59])
    assert seconds == [3.0]
    assert state.plan.options["targets"] == ["latency=0.6"]
    assert state.notes[-1].startswith(
        "latency: 60.0% of the original was asked for; 2 allocations measured 75.0%, 59.0%"
    )
    assert [name for name, _ in state.seconds] == [
        "fold-constants", "analyze", "score", "allocate", "slice-groups", "remove-dead-nodes", "meet-latency", "verify",
    ]  # fmt: skip
    assert all(each.passed for each in state.checks)


def test_rounds_are_an_option(monkeypatch):
    host, profile = profiled()
    clocked(monkeypatch, [0.75, 0.7])
    first, meet = read("analyze,score"), MeetLatency((Allocate(("latency=0.6",), align=2), SliceGroups()), rounds=1)
    state = run_pipeline([*first, meet], State(host, profile=profile))
    assert [each.measured for each in state.attempts] == [0.75]


def test_a_profile_of_another_machine_is_taken_at_its_word(monkeypatch):
    host, profile = profiled()
    data = profile.to_dict()
    data["machine"]["cpu"] = "a small board"
    clocked(monkeypatch, [])
    state = run_pipeline(meeting_latency(read(FLAT)), State(host, profile=Profile.from_dict(data)))
    assert [each.measured for each in state.attempts] == [None]
    assert "latency is predicted for another machine (a small board" in state.notes[-1]


def test_without_a_profile_one_is_made(monkeypatch):
    host, profile = profiled()
    asked = []

    def make(opened, pieces, how, *, advance):
        asked.append((opened is host, how.align, how.quick))
        advance(1, 3)
        return profile

    monkeypatch.setattr("graphprune.passes.meet_latency.make_profile", make)
    clocked(monkeypatch, [0.59])
    run_pipeline(meeting_latency(read(FLAT)), State(host))
    assert asked == [(True, 2, True)]


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("meet-latency", "'meet-latency' repeats no 'allocate' with a latency target; give it one, as in 'meet-latency{passes="),
        ('meet-latency{passes="allocate{macs=0.5},slice-groups"}', "'meet-latency' repeats no 'allocate' with a latency target;"),
        ('meet-latency{passes="allocate{latency=0.6}"}', "'meet-latency' measures what its passes cut, and none does; give it 'slice-groups', too"),
        ('meet-latency{rounds=0 passes="allocate{latency=0.6},slice-groups"}', "rounds is 0; expected 1 or more"),
    ],
)  # fmt: skip
def test_passes_that_no_latency_follows_from(passes, message):
    with pytest.raises(OptionError) as caught:
        check(read(f"analyze,score,{passes}"))
    assert str(caught.value).startswith(message)


def test_what_it_needs_and_gives():
    meet = MeetLatency((Allocate(("latency=0.6",)), SliceGroups(), RemoveDeadNodes()))
    assert meet.needs == {keys.ANALYSIS, keys.SCORES}
    assert meet.gives == {keys.PLAN, keys.SLICED}
    with pytest.raises(OptionError) as caught:
        check([*read("analyze"), meet, Verify()])
    assert str(caught.value) == (
        "pass 'allocate' needs scores; put 'score' before it in the pipeline (inside of 'meet-latency')"
    )

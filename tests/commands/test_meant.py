"""What is nearly right is told what may be meant; and what is wrong is refused before the work."""

import sys

import numpy as np
import pytest
from test_cli import DEMO, bad, error_of, run, small_model

import graphprune as gp
from graphprune.errors import GraphpruneError, OptionError, TargetError
from graphprune.planning.target import parse_targets
from graphprune.suggest import meant, nearest

WHAT = "macs, params, bytes, latency, active_params, kv_cache, as in 'macs=0.5'"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("flops=0.5", f"unknown target 'flops' (did you mean 'macs=0.5'?); expected one of {WHAT}"),
        ("FLOPs=50%", f"unknown target 'FLOPs' (did you mean 'macs=50%'?); expected one of {WHAT}"),
        ("flops=3G", f"unknown target 'flops' (did you mean 'macs=1.5G'?); expected one of {WHAT}"),
        ("mac=0.5", f"unknown target 'mac' (did you mean 'macs'?); expected one of {WHAT}"),
        ("parameters=1M", f"unknown target 'parameters' (did you mean 'params'?); expected one of {WHAT}"),
        ("size=1MB", f"unknown target 'size' (did you mean 'bytes'?); expected one of {WHAT}"),
        ("time=5ms", f"unknown target 'time' (did you mean 'latency'?); expected one of {WHAT}"),
        ("0.5", f"target '0.5' does not say what it is about (did you mean 'macs=0.5'?); expected one of {WHAT}"),
        ("50%", f"target '50%' does not say what it is about (did you mean 'macs=50%'?); expected one of {WHAT}"),
        ("5ms", f"target '5ms' does not say what it is about (did you mean 'latency=5ms'?); expected one of {WHAT}"),
        ("2MB", f"target '2MB' does not say what it is about (did you mean 'bytes=2MB'?); expected one of {WHAT}"),
        (0.5, "cannot read target 0.5 (did you mean 'macs=0.5'?); expected one like 'macs=0.5' or {'macs': 0.5}"),
    ],
)
def test_targets(target, message):
    with pytest.raises(TargetError) as caught:
        parse_targets(target)
    assert str(caught.value) == message


@pytest.mark.parametrize(("metric", "whole"), [("macs", "17047936"), ("params", "271402"), ("bytes", "1085640")])
def test_a_percentage_that_was_written_as_a_number(metric, whole):
    for number in (50, 99.5):
        share = f"{number / int(whole):.2g}"
        with pytest.raises(TargetError) as caught:
            gp.prune(DEMO, target=f"{metric}={number}")
        assert str(caught.value) == (
            f"target '{metric}={number}' is a number, and {share} of the {whole} {metric} of the model; did you mean "
            f"'{metric}={number / 100}' or '{metric}={number}%'?"
        )


def test_a_small_number_of_a_small_model_is_one(tmp_path):
    model = small_model(tmp_path / "m.onnx", width=8)  # 104 parameters
    result = gp.prune(model, target="params=90", align=1, verify=False)
    assert result.report.cost("params").after <= 90


CHOICES = {
    "criterion": ("obss", "obs"),
    "allocation": ("isomorfic", "isomorphic"),
    "compensation": ("affin", "affine"),
    "block_criterion": ("ablatio", "ablation"),
    "metric": ("acuracy", "accuracy"),
    "only": ("kind:chanel", "kind:channel"),
    "protect": ("kind:hed", "kind:head"),
}


@pytest.mark.parametrize("option", CHOICES)
def test_choices_are_refused_before_a_model_is_opened(option):
    wrong, right = CHOICES[option]
    seen = []
    data = {"image": np.ones((8, 1, 28, 28), np.float32)}
    more = {"evaluate": {**data, "labels": np.zeros(8)}} if option == "metric" else {}
    with pytest.raises(OptionError) as caught:
        gp.prune(DEMO, target="macs=0.5", calibration=data, progress=seen.append, **{option: wrong}, **more)
    assert f"'{wrong}' (did you mean '{right}'?)" in str(caught.value)
    assert not seen or option == "metric"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "chanel"}, "'chanel' (did you mean 'channel'?) of only selects no group; the kinds in this model are: channel"),
        ({"protect": "steem"}, "protect pattern 'steem' (did you mean 'stem'?) matches no stored tensor and no kind of group;"),
        ({"remove_blocks": "nothing"}, "'nothing' names no residual branch that can be removed;"),
        ({"target": "macs=50"}, "target 'macs=50' is a number"),
        ({"max_ratio": 3.0}, "max_ratio is 3.0; expected a fraction above 0 and at most 1"),
        ({"protect_ratio": 3.0}, "protect_ratio is 3; expected a fraction of the groups, at least 0, below 1"),
        ({"align": 0}, "align is 0; expected 1 or more"),
    ],
)  # fmt: skip
def test_what_no_data_are_needed_for_is_refused_before_they_are_read(options, message):
    def data():
        raise AssertionError("it was read")
        yield

    with pytest.raises(GraphpruneError) as caught:
        gp.prune(DEMO, **{"target": "macs=0.5", "calibration": data(), **options})
    assert str(caught.value).startswith(message)


FOLDED = "fold-constants,analyze"


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (f"{FOLDED},calibrate,allocate,slice-groups", "pass 'allocate' needs scores; put 'score' before it in the pipeline"),
        (
            f"{FOLDED},calibrate{{products=false}},score{{criterion=obs}},allocate,slice-groups",
            "criterion 'obs' needs products of activations; put 'calibrate{products=true}' before 'score'",
        ),
        (f"{FOLDED},score{{criterion=wanda}},allocate,slice-groups", "criterion 'wanda' needs statistics; put 'calibrate' before 'score' in the pipeline"),
        ("score,allocate,slice-groups", "pass 'score' needs an analysis; put 'analyze' before it in the pipeline"),
        (f"{FOLDED},score,compensate,allocate,slice-groups", "'compensate' needs a plan; put 'allocate' before it in the pipeline"),
        (f"{FOLDED},score,allocate{{allocation=measured}},slice-groups", "allocation 'measured' shares the budget by losses on calibration data; "),
        (f"{FOLDED},score,allocate,slice-groups,compensate{{rung=affin}}", "unknown compensation 'affin' (did you mean 'affine'?); expected one of "),
        (f"{FOLDED},scor,allocate", "unknown pass 'scor' (did you mean 'score'?) in pipeline "),
    ],
)  # fmt: skip
def test_pipelines_are_checked_before_a_model_is_opened(pipeline, message):
    seen = []
    with pytest.raises(OptionError) as caught:
        gp.prune(DEMO, target="macs=0.5", calibration="random", pipeline=pipeline, progress=seen.append)
    assert str(caught.value).startswith(message)
    assert not seen


def test_a_pass_of_the_user_may_make_what_others_need():
    from graphprune.passes import Allocate, Analyze, FoldConstants, Score, SliceGroups
    from graphprune.pipeline.passes import Pass

    class Own(Pass):
        name = "own"

        def run(self, state):
            return Score("l1").run(state)

    passes = [FoldConstants(), Analyze(), Own(), Allocate(("macs=0.5",)), SliceGroups()]
    assert gp.prune(DEMO, pipeline=passes, verify=False).report.cost("macs").fraction < 0.51


def test_samples_without_data(tmp_path):
    options = (DEMO, "-o", tmp_path / "o.onnx", "--target", "macs=0.5", "--samples", "10")
    assert bad(tmp_path, *options) == (
        "--samples says how many calibration inputs are used, and there are none; did you mean '--calibration DATA "
        "--samples 10'?"
    )
    with pytest.raises(OptionError, match="did you mean calibration='random' with samples=10, or data of yours"):
        gp.prune(DEMO, target="macs=0.5", samples=10)
    run("sensitivity", small_model(tmp_path / "m.onnx"), "--samples", "2")  # made-up inputs, then


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "safetensors"])
def test_files_of_weights_are_no_models(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    for data in (None, b"PK\x03\x04..."):
        if data:
            path.write_bytes(data)
        assert error_of("inspect", path) == (
            f"'{path}' is a file of weights, or of a pickled module, and has no graph that can be pruned; did you mean a "
            "function that builds the model and loads them, such as 'net:build', or the .onnx file that "
            "torch.onnx.export writes of it?"
        )


def test_an_onnx_model_of_another_name_is_one(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(DEMO.read_bytes())
    assert len(gp.analyze(path).groups) == len(gp.analyze(DEMO).groups)


def test_a_module_without_a_factory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text("class Net: pass\ndef _helper(): pass\ndef build(): return Net()\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "nets.py").write_text("1 +")
    head = "is no file of a model and names no function; did you mean"
    tail = "? Expected the path of an .onnx file, or 'package.module:factory'"
    for name in ("mynet", "mynet.py"):
        assert error_of("inspect", name) == f"'{name}' {head} 'mynet:build' or 'mynet:Net'{tail}"
    made = "a function that returns a model, such as"
    assert error_of("inspect", "pkg.nets") == f"'pkg.nets' {head} {made} 'pkg.nets:build'{tail}"
    assert error_of("inspect", "nothing") == f"'nothing' {head} {made} 'nothing:build'{tail}"
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    assert error_of("inspect", "mynet:biuld") == (
        "module 'mynet' has no 'biuld' (did you mean 'build'?); expected a function that returns a model"
    )


def test_a_model_whose_name_has_no_suffix_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(DEMO.read_bytes())
    assert gp.analyze("model").groups


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--preprocess", "resise=8", "--calibration", "random"], "'resise' (did you mean 'resize'?)"),
        (["--shape", "imge=1x1x28x28"], "'imge' (did you mean 'image'?)"),
        (["--preprocess", "fit=crp", "--calibration", "random"], "'fit=crp' (did you mean 'fit=crop'?)"),
        (["--dump-after", "slice-group"], "'slice-group' (did you mean 'slice-groups'?)"),
        (["--bound", "memry=8G"], "'memry' (did you mean 'memory'?)"),
    ],
)
def test_other_words(tmp_path, arguments, word):
    assert word in bad(tmp_path, DEMO, "-o", tmp_path / "o.onnx", "--target", "macs=0.5", *arguments)


def test_nearest():
    assert nearest("L2", ["l1", "l2"]) == ("l2",)
    assert nearest("zz", ["l1", "l2"]) == ()
    assert meant("zz", ["l1"]) == "'zz'"


def test_a_sweep_and_a_sensitivity_begin_with_right_options():
    seen = []
    for wrong in ({"criterion": "obss"}, {"only": "kind:chanel"}):
        with pytest.raises(OptionError, match="did you mean"):
            gp.sensitivity(DEMO, progress=seen.append, **wrong)
        with pytest.raises(OptionError, match="did you mean"):
            gp.sweep(DEMO, targets=["macs=0.5"], progress=seen.append, **wrong)
    for wrong in ({"allocation": "isomorfic"}, {"compensation": "affin"}, {"max_ratio": 3.0}, {"samples": 9}):
        with pytest.raises(OptionError):
            gp.sweep(DEMO, targets=["macs=0.5"], progress=seen.append, **wrong)
    assert seen == []

"""What a report says beside the costs: input sizes, how far outputs moved, what was left whole, widths, titles."""

import json
import re
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graphs import save_net
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

import graphprune as gp
from graphprune.analysis.groups import Group
from graphprune.analysis.solver import Reason
from graphprune.cli import app
from graphprune.data.batches import open_batches
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.sizes import Stated, bind, stated
from graphprune.hosts.onnx.titles import titles
from graphprune.ir.dims import Factor
from graphprune.ir.graph import Graph, Node, Value
from graphprune.planning.whole import PARTS, ROUTES, SHIFTS, left_whole
from graphprune.profiling.profile import cut, make_profile
from graphprune.report import movement as moving
from graphprune.report.data import inspect_analysis
from graphprune.report.inputs import InputRow, describe_inputs
from graphprune.report.movement import OutputMove, movement
from graphprune.report.terminal import as_text, render_inspection, render_report

# -- sizes of inputs ---------------------------------------------------------------------------------------------------

IMGSZ, BATCH = "metadata 'imgsz'", "metadata 'batch'"


def detector(metadata, shape=("batch", 3, "height", "width"), *, channels_last=False):
    """Two convolutions with a stride of 2: 3 -> 16 -> 8."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(16, 3, 3, 3)).astype(np.float32), "a"),
        numpy_helper.from_array(rng.normal(size=(8, 16, 3, 3)).astype(np.float32), "b"),
    ]
    nodes = [
        *([helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2])] if channels_last else []),
        helper.make_node("Conv", ["x" if channels_last else "images", "a"], ["h"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"], pads=[1] * 4, strides=[2, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


ULTRALYTICS = {
    "imgsz": "[320, 320]",
    "stride": "32",
    "batch": "1",
    "names": "{0: 'person', 1: 'car'}",
    "task": "detect",
}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (ULTRALYTICS, Stated((1, BATCH), None, (320, IMGSZ), (320, IMGSZ))),
        ({"imgsz": "640"}, Stated(None, None, (640, IMGSZ), (640, IMGSZ))),
        ({"imgsz": "(480, 640)"}, Stated(None, None, (480, IMGSZ), (640, IMGSZ))),
        (
            {"input_size": "[3, 224, 192]"},
            Stated(None, None, (224, "metadata 'input_size'"), (192, "metadata 'input_size'")),
        ),
        (
            {"input_shape": "1x224x192x3"},
            Stated(None, None, (224, "metadata 'input_shape'"), (192, "metadata 'input_shape'")),
        ),
        (
            {"Image_Size": '{"width": 96, "height": 128}', "channels": "1"},
            Stated(
                None, (1, "metadata 'channels'"), (128, "metadata 'Image_Size'"), (96, "metadata 'Image_Size'")
            ),
        ),
        ({"height": "100", "width": "50"}, Stated(None, None, (100, "metadata 'height'"), (50, "metadata 'width'"))),
        (
            {"stride": "48"},
            Stated(None, None, *[(96, "assumed, a multiple of metadata 'stride'")] * 2),
        ),
        ({"stride": "32"}, Stated()),  # 64 is a multiple
        ({"imgsz": "[0, 0]", "batch": "0"}, Stated()),
        ({"imgsz": "[1000000, 1000000]", "batch": "99999"}, Stated()),
        ({"imgsz": "[20000, 20000]"}, Stated()),
        ({"imgsz": "[-1, 320]", "batch": "one"}, Stated()),
        ({"imgsz": "__import__('os')"}, Stated()),
        ({"imgsz": "[" * 500}, Stated()),
        ({}, Stated()),
    ],
)  # fmt: skip
def test_metadata_state_sizes(metadata, expected):
    assert stated(metadata) == expected


@pytest.mark.parametrize(
    ("shape", "given", "sizes", "sources"),
    [
        (
            ("n", 3, "h", "w"),
            {},
            (1, 3, 320, 320),
            (BATCH, "declared by the file", IMGSZ, IMGSZ),
        ),
        (("n", None, None, None), {}, (1, 3, 320, 320), (BATCH, "assumed", IMGSZ, IMGSZ)),
        ((1, 3, 96, "w"), {}, (1, 3, 96, 320), (*["declared by the file"] * 3, IMGSZ)),
        (("n", "h", "w", 3), {}, (1, 320, 320, 3), (BATCH, IMGSZ, IMGSZ, "declared by the file")),
        (
            ("n", 3, "h", "w"),
            {"images": (2, 3, 32, 48)},
            (2, 3, 32, 48),
            ("given (--shape)", "declared by the file", *["given (--shape)"] * 2),
        ),
        ((1, 13, "h", "w"), {}, (1, 13, 320, 320), (*["declared by the file"] * 2, IMGSZ, IMGSZ)),
        (("n", "length"), {}, (1, 16), (BATCH, "assumed")),  # no image
        (("n", "c", "length"), {}, (1, 16, 16), (BATCH, "assumed", "assumed")),
        (("n", 3, "t", "h", "w"), {}, (1, 3, 64, 64, 64), (BATCH, "declared by the file", *["assumed"] * 3)),
    ],
)
def test_dynamic_axes_have_the_size_that_the_file_states(shape, given, sizes, sources):
    binding = bind(detector(ULTRALYTICS, shape), given)
    assert binding.shapes == {"images": sizes}
    assert binding.sources == {"images": sources}


def test_a_cache_beside_an_image_is_none():
    model = detector(ULTRALYTICS)
    model.graph.input.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, (None, 8, "length", 64)))
    binding = bind(model, {})
    assert binding.shapes == {"images": (1, 3, 320, 320), "past": (1, 8, 64, 64)}
    assert binding.sources["past"] == (BATCH, "declared by the file", "assumed", "declared by the file")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [(ULTRALYTICS, (2, 3, 160, 160)), ({}, (3, 3, 128, 128)), ({"imgsz": "[32, 512]"}, (3, 3, 64, 256))],
)
def test_a_proof_at_other_sizes_takes_no_larger_images(metadata, expected):
    assert OnnxHost.load(detector(metadata)).at_other_sizes().bound == {"images": expected}


def test_costs_are_counted_at_the_sizes_stated(tmp_path):
    path = tmp_path / "detector.onnx"
    onnx.save(detector(ULTRALYTICS), path)
    result = gp.prune(path, target={"macs": 0.5})
    assert result.report.cost("macs").before == 160 * 160 * 16 * 27 + 80 * 80 * 8 * 144
    (row,) = result.report.to_dict()["inputs"]
    assert row == {
        "name": "images",
        "dtype": "float32",
        "sizes": (1, 3, 320, 320),
        "sources": (BATCH, "declared by the file", IMGSZ, IMGSZ),
        "dynamic": (0, 2, 3),
    }
    line = "inputs: images 1x3x320x320 (1 metadata 'batch', 3 declared by the file, 320x320 metadata 'imgsz')"
    assert line in str(result.report)
    shown = CliRunner().invoke(app, ["inspect", str(path)]).stdout
    assert line in " ".join(shown.split())
    inspected = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert inspected["inputs"][0]["sizes"] == [1, 3, 320, 320]
    assert inspected["costs"]["macs"] == result.report.cost("macs").before


def test_an_image_with_colours_last_runs_at_the_sizes_stated():
    model = detector(ULTRALYTICS, ("n", "h", "w", 3), channels_last=True)
    assert OnnxHost.load(model).run(OnnxHost.load(model).example_inputs())["y"].shape == (1, 8, 80, 80)


def test_sizes_that_are_assumed_are_shown_as_such():
    report = gp.prune(detector({}), target={"macs": 0.5}).report
    line = "inputs: images 2x3x64x64 (2 assumed, 3 declared by the file, 64x64 assumed); --shape gives others"
    assert line in str(report)


def test_many_inputs_are_cut_short():
    rows = [InputRow(f"x{i}", "float32", (1, 2), ("declared by the file",) * 2) for i in range(9)]
    assert describe_inputs(rows).endswith("x3 1x2 (declared by the file); and 5 more (--json lists all)")
    assert describe_inputs([InputRow("t", "int64", (), ())]) == "t scalar"


# -- how far outputs moved -----------------------------------------------------------------------------------------------


class Fake:
    """A host that gives these outputs, one after the other."""

    kind = "onnx"
    given_example = False

    def __init__(self, *outputs, shape=(2, 2), inputs=None):
        self.left, self.shape = list(outputs), shape
        self.inputs = inputs or {"x": np.zeros((2, 3), np.float32)}

    def graph(self):
        values = {name: Value(name, array.shape, str(array.dtype), "input") for name, array in self.inputs.items()}
        values |= {"y": Value("y", self.shape), "table": Value("table", (5, 4), kind="parameter")}
        node = Node("look", "Gather", ("table", next(iter(self.inputs))), ("y",))
        return Graph(values, (node,), tuple(self.inputs), ("y",))

    def example_inputs(self, seed=0):
        return {name: array + array.dtype.type(seed) for name, array in self.inputs.items()}

    def run(self, inputs):
        return {"y": self.left.pop(0)}


A = np.array([[1, 0], [0, 1]], np.float32)
TOKENS = {"ids": np.zeros((1, 2), np.int64)}


@pytest.mark.parametrize(
    ("before", "after", "shape", "inputs", "error", "agreement"),
    [
        (A, A, (2, 2), None, 0.0, 1.0),
        (A, np.array([[0, 1], [0, 1]], np.float32), (2, 2), None, 2**0.5, 0.5),  # changes 1, 1; spread 4 * 0.25
        (A + 100, A + 100.5, (2, 2), None, 1.0, 1.0),  # a shift by one standard deviation
        (A[:, :1], A[:, :1] / 2, (2, 1), None, 2**-0.5, None),  # one column are no classes
        (np.array([np.nan, 0, 2], np.float32), np.array([1, 0, 1], np.float32), (3,), None, 2**-0.5, None),
        (np.ones(3, np.float32), np.zeros(3, np.float32), (3,), None, None, None),  # no spread to compare with
        (np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0]), (4,), None, None, 0.5),  # labels
        (np.eye(5, dtype=np.float32)[None, :2], np.eye(5, dtype=np.float32)[None, 1:3], (1, 2, 5), TOKENS, 1.58, 0.0),
        (np.eye(4, dtype=np.float32)[None, :2], np.eye(4, dtype=np.float32)[None, 1:3], (1, 2, 4), TOKENS, 1.63, None),
    ],
)
def test_how_far_an_output_moved(before, after, shape, inputs, error, agreement):
    hosts = Fake(before, shape=shape, inputs=inputs), Fake(after, shape=shape, inputs=inputs)
    (move,) = movement(*hosts, None, held=False, macs=1e12).outputs
    assert (move.name, move.agreement) == ("y", agreement)
    assert move.error == (None if error is None else pytest.approx(error, rel=0.01))


def test_more_is_run_where_it_is_cheap():
    def samples(macs):
        return movement(Fake(*[A] * 4), Fake(*[A] * 4), None, held=False, macs=macs).samples

    assert [samples(macs) for macs in (1e6, 2e10, 1e12)] == [8, 4, 2]


class Picky(Fake):
    """A host of which random inputs ask too much."""

    kind = "torch"
    given_example = True

    def run(self, inputs):
        if inputs["x"].any():
            raise RuntimeError("an index is out of range")
        return super().run(inputs)


def test_inputs_that_the_model_does_not_take_cost_no_result():
    found = movement(Picky(A), Picky(A), None, held=False, macs=1.0)
    assert (found.inputs, found.samples) == ("example inputs", 2)
    assert movement(Picky(A), Picky(A), None, held=False, macs=1.0, seed=1) is None


def test_a_file_that_was_not_drawn_may_be_broken():
    class Broken:
        random, batch_size = False, 8

        def unseen(self, most):
            return (self.read(i) for i in range(most))

        def read(self, i):
            raise gp.OptionError("cannot read image 'x.png'")

    assert movement(Fake(A), Fake(A), Broken(), held=False, macs=1.0) is None


def classifier(path):
    """8 -> 64 -> 5 classes, of random weights."""
    rng = np.random.default_rng(0)
    weights = {
        "first.weight": rng.normal(size=(8, 64)),
        "first.bias": rng.normal(size=64),
        "second.weight": rng.normal(size=(64, 5)),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first.weight"], ["a"]),
        helper.make_node("Add", ["a", "first.bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "second.weight"], ["y"]),
    ]
    return save_net(path, nodes, weights, (8, 5), TensorProto.FLOAT)


def run_file(path, x):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: each[None]})[0] for each in x])


@pytest.mark.parametrize(
    ("n", "options", "inputs"),
    [
        (300, {}, moving.UNSEEN),
        (300, {"compensation": "none"}, moving.UNSEEN),
        (64, {}, moving.CALIBRATION),
        (64, {"compensation": "none"}, moving.HELD),
        (0, {}, moving.RANDOM),
    ],
)
def test_the_report_says_on_what_outputs_moved(tmp_path, n, options, inputs):
    path = classifier(tmp_path / "net.onnx")
    data = np.random.default_rng(1).normal(size=(n, 8)).astype(np.float32)
    calibration = {"calibration": data, "samples": 64} if n else {}
    report = gp.prune(path, target={"params": 0.3}, **calibration, **options).report
    assert report.moved.inputs == inputs
    assert report.moved.made_up == (n == 0)
    text = " ".join(str(report).split())
    assert "structure proven" in text
    assert "the proof is of the structure, not of accuracy" in text
    assert ("such inputs say little about yours" in text) == (n == 0)
    (output,) = json.loads(json.dumps(report.to_dict()))["moved"]["outputs"]
    assert output["name"] == "y"
    assert 0 < output["error"] < 2
    assert 0.2 < output["agreement"] < 1


def test_outputs_moved_as_far_as_the_files_say(tmp_path):
    path = classifier(tmp_path / "net.onnx")
    x = np.random.default_rng(1).normal(size=(128, 8)).astype(np.float32)
    result = gp.prune(path, target={"params": 0.3}, criterion="random", calibration=x, samples=64, compensation="none")
    result.save_onnx(tmp_path / "small.onnx")
    batches = open_batches(x, OnnxHost.load(path), samples=64)
    unseen = np.concatenate([batch["x"] for batch in batches.unseen(8)])
    drawn = {each.tobytes() for batch in batches for each in batch["x"]}
    assert not drawn.intersection(each.tobytes() for each in unseen)
    before, after = (run_file(tmp_path / name, unseen) for name in ("net.onnx", "small.onnx"))
    (move,) = result.report.moved.outputs
    assert result.report.moved.samples == len(unseen) == 64
    assert move.error == pytest.approx(float(np.sqrt(((after - before) ** 2).mean()) / before.std()), rel=1e-4)
    assert move.agreement == (before.argmax(1) == after.argmax(1)).mean() < 1
    assert (
        f"outputs moved on 64 samples of the calibration data that pruning has not seen: {100 * move.error:.2g} %"
        in (" ".join(str(result.report).split()))
    )


def test_with_a_metric_no_advice_is_given(tmp_path):
    path = classifier(tmp_path / "net.onnx")
    report = gp.prune(path, target={"params": 0.3}, evaluate=lambda run: 1.0).report
    assert "outputs moved on 8 random inputs" in str(report)
    assert "not of accuracy" not in str(report)


def test_a_sentence_for_several_outputs():
    moves = tuple(OutputMove(f"y{i}", error, None) for i, error in enumerate((0.0, 0.00001, 0.25, 3.0, 0.1)))
    assert str(moving.Movement(moving.RANDOM, 8, made_up=True, outputs=moves)) == (
        "outputs moved on 8 random inputs: 'y0' 0 % of their spread; 'y1' less than 0.1 % of their spread; "
        "'y2' 25 % of their spread; 'y3' 300 % of their spread; and 1 more (--json lists all)"
    )


def test_without_a_proof_nothing_is_run():
    report = gp.prune(detector({}), target={"macs": 0.5}, verify=False).report
    assert report.moved is None
    assert "outputs moved" not in str(report)


# -- targets that are met already ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("macs=20M", "the model already meets 'macs=20 M' (it has 11.5 k multiply-accumulates); nothing was pruned"),
        ("params=1.0", "the model already meets 'params=1' (it has 1.58 k parameters); nothing was pruned"),
        ("latency=5ms", "the model already meets 'latency=5ms' (it takes 0.2 ms); nothing was pruned"),
        ("macs=0.5", None),
    ],
)
def test_a_target_that_prunes_nothing_says_so(monkeypatch, target, said):
    monkeypatch.setattr(
        "graphprune.passes.meet_latency.timed", lambda threads, provider, seconds: lambda before, after: (0.2, 0.2)
    )
    model = detector({}, (1, 3, 8, 8))
    host = OnnxHost.load(model)
    profile = make_profile(host, cut(host), measure=lambda models, _: [0.1] * len(models), whole=lambda: 0.2)
    options = {"profile": profile} if target.startswith("latency") else {}
    result = gp.prune(model, target=target, **options)
    assert [note for note in result.report.notes if "already" in note] == ([said] if said else [])
    assert (result.plan.groups == ()) == (said is not None)


def test_nothing_pruned_is_no_error(tmp_path):
    path = classifier(tmp_path / "net.onnx")
    done = CliRunner().invoke(app, ["prune", str(path), "-o", str(tmp_path / "s.onnx"), "--target", "macs=20M"])
    assert done.exit_code == 0
    assert "note: the model already meets 'macs=20 M'" in " ".join(done.stdout.split())


# -- what was left whole, and widths ----------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Two linear layers around a layer of attention: residual width, heads and parts of heads, neurons."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.layer(self.first(x)))


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    return gp.prune(Layer().eval(), (torch.randn(2, 5, 6),), target={"macs": 0.7})


def test_kinds_that_are_left_out_by_default_are_listed(layer):
    total = sum(parameter.numel() for parameter in Layer().parameters())
    width = total - 48 - 24 - 3  # all but the biases of the projection, of the neurons and of the last layer
    attention = 48 * 16 + 48 + 16 * 16
    rows = [(row.kind, row.groups, row.params_share, row.reason) for row in layer.report.whole]
    assert rows == [
        ("width", 1, pytest.approx(width / total), SHIFTS),
        ("qk-dim", 1, pytest.approx(attention / total), PARTS),
    ]
    text = " ".join(str(layer.report).split())
    assert f"left whole: width, 1 group, {width / total:.1%} of the parameters; by default" in text
    assert "(to cut it, name it: --only width)" in text


def group(name, kind, normalized=None):
    return Group(name, kind, Factor(name, 4), (), normalized)


GROUPS = (
    group("a", "neuron"),
    group("b", "qk-dim"),
    group("c", "width", Reason("a mean")),
    group("d", "expert", Reason("a router")),
)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (set(), {"b": PARTS, "c": SHIFTS, "d": ROUTES}),
        ({"a"}, {"b": PARTS, "c": SHIFTS, "d": ROUTES}),
        ({"a", "b"}, {"c": SHIFTS, "d": ROUTES}),
        ({"a", "c"}, {"d": ROUTES}),
        ({"a", "c", "d"}, {}),
    ],
)
def test_a_kind_that_was_tried_is_not_left_out(cut, expected):
    assert left_whole(GROUPS, cut, GROUPS) == expected


def test_sensitive_groups_are_left_out():
    found = left_whole(GROUPS[:3], set(), GROUPS[:3], sensitive={"a"})
    assert found == {"a": "found to be sensitive (protect-ratio)", "c": SHIFTS}


def test_what_the_user_left_out_is_listed():
    torch.manual_seed(0)
    model, example = Layer().eval(), (torch.randn(2, 5, 6),)
    reasons = {}
    for options in ({"only": "neuron"}, {"protect": "kind:head"}, {"only": "width"}):
        report = gp.prune(model, example, target={"macs": 0.9}, verify=False, **options).report
        reasons[str(options)] = {row.kind: row.reason for row in report.whole}
    assert reasons["{'only': 'neuron'}"]["head"] == "not named in 'only'"
    assert reasons["{'protect': 'kind:head'}"]["head"] == "protected"
    assert "width" not in reasons["{'only': 'width'}"]


def test_widths_are_those_of_the_module(layer):
    before, after = Layer().state_dict(), layer.module.state_dict()
    assert {row.name: (row.before, row.after) for row in layer.report.widths} == {
        name: (tuple(tensor.shape), tuple(after[name].shape)) for name, tensor in before.items()
    }
    assert any(row.changed for row in layer.report.widths)
    assert [row["name"] for row in layer.report.to_dict()["widths"]] == list(before)
    full = as_text(render_report(layer.report, title="net", full=True))
    kept = after["layer.linear1.weight"].shape[0]
    assert re.search(rf"layer.linear1.weight +│ +24x16 │ +{kept}x16", full)
    assert "last.weight " not in full
    assert "widths of stored weights" not in str(layer.report)


def test_weights_that_go_with_a_block_are_left_out():
    torch.manual_seed(0)
    report = gp.prune(Layer().eval(), (torch.randn(2, 5, 6),), remove_blocks="layer.linear2", verify=False).report
    gone = {row.name for row in report.widths if row.after is None}
    assert gone == {f"layer.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert "left out" in as_text(render_report(report, title="net", full=True))


def test_full_is_an_option(tmp_path):
    path = classifier(tmp_path / "net.onnx")
    plan = tmp_path / "plan.json"
    command = ["prune", str(path), "-o", str(tmp_path / "s.onnx"), "--target", "params=0.5", "--plan-out", str(plan)]
    done = CliRunner().invoke(app, [*command, "--full"])
    assert re.search(r"first.weight +│ +8x64 │ +8x32", done.stdout)
    again = ["apply", str(path), "--plan", str(plan), "-o", str(tmp_path / "t.onnx"), "--full"]
    assert re.search(r"first.weight +│ +8x64 │ +8x32", CliRunner().invoke(app, again).stdout)


# -- names -----------------------------------------------------------------------------------------------------------------


def one_node(name, weight, metadata=(), of_model=()):
    node = helper.make_node("MatMul", ["x", weight], ["y"], name)
    for key, value in metadata:
        node.metadata_props.add(key=key, value=value)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), weight)],
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, dict(of_model))
    return model


SCOPES = ("pkg.torch.onnx.name_scopes", "['', 'encoder', 'encoder.0.mlp', 'linear']")
NAMESPACE = ("namespace", ": pkg.Net/encoder: pkg.Encoder/encoder.0.mlp: torch.nn.Linear/linear: aten.linear.default")
ORIGINS = ("graphprune.origins", '{"fingerprint":"f","tensors":{"val_7":["encoder.0.mlp.weight",[1,0]]}}')


@pytest.mark.parametrize(
    ("model", "title"),
    [
        (one_node("node_MatMul_3", "val_7", [SCOPES]), "encoder.0.mlp (MatMul)"),
        (one_node("node_MatMul_3", "val_7", [NAMESPACE]), "encoder.0.mlp (MatMul)"),
        (one_node("node_MatMul_3", "val_7", [SCOPES], [ORIGINS]), "encoder.0.mlp.weight"),
        (one_node("node_MatMul_3", "val_7", [SCOPES], [("graphprune.origins", "{")]), "encoder.0.mlp (MatMul)"),
        (one_node("/layer1/layer1.0/fc/MatMul", "onnx::MatMul_12"), "layer1.0.fc (MatMul)"),
        (one_node("/MatMul", "onnx::MatMul_12"), None),  # the model itself
        (one_node("classifier", "12"), "classifier (MatMul)"),
        (one_node("MatMul_3", "val_7"), None),
        (one_node("", "val_7", [("pkg.torch.onnx.name_scopes", "['', 'linear']")]), None),
        (one_node("node_MatMul_3", "fc.weight", [SCOPES]), None),  # names of its own
        (one_node("node_MatMul_3", "fc1_weight", [SCOPES]), None),
    ],
)
def test_tensors_without_a_name_are_known_by_where_they_are_read(model, title):
    assert list(titles(model).values()) == ([title] if title else [])


def test_titles_are_shown_and_plans_keep_the_names_of_the_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net.onnx"
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(2, 3, 8),), path, dynamo=True, verbose=False, external_data=False)
    vague = [tensor.name for tensor in onnx.load(path).graph.initializer if re.fullmatch(r"val_\d+", tensor.name)]
    assert vague
    result = gp.prune(path, target={"params": 0.5})
    assert {row.name: row.title for row in result.report.widths if row.name in vague} == {
        name: f"{scope} (MatMul)" for name, scope in zip(vague, ("0", "2"), strict=True)
    }
    assert set(vague) <= result.plan.parameters.keys()
    (group,) = result.report.groups
    rows = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)["groups"]
    assert [(row["name"], row["title"]) for row in rows] == [(group.name, group.title)]
    inspection = inspect_analysis(gp.analyze(path)).to_dict()
    (blocker,) = (row for row in inspection["blockers"] if row["axes"][0] == f"{vague[0]}[0]")
    assert blocker["title"] == "0 (MatMul)[0]"
    assert f"{vague[0]}[0] = 0 (MatMul)" in as_text(render_inspection(inspect_analysis(gp.analyze(path)), title="net"))
    shown = CliRunner().invoke(app, ["explain", str(path), vague[0]]).stdout
    assert f"{vague[0]}[1] = 0 (MatMul)" in shown


def test_a_file_that_graphprune_exported_is_known_by_the_module(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    gp.export_onnx(net, (torch.randn(2, 3, 8),), tmp_path / "net.onnx")
    analysis = gp.analyze(tmp_path / "net.onnx")
    known = {value.title or value.name for value in analysis.graph.stored if value.kind == "parameter"}
    assert known == set(net.state_dict())

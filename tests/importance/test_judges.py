"""How outputs are compared: found on the graph, said by the user, with the same numbers in NumPy and in torch."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

import graphprune as gp
from graphprune import defaults
from graphprune.errors import OptionError
from graphprune.executor import losses
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.importance.final import finals_of
from graphprune.importance.judge import Asked, Judge, judges_for, known_losses, parse_losses
from graphprune.importance.loss import Standard
from graphprune.ir.graph import Graph, Node, Value
from graphprune.planning.plan import PruningPlan

SCORES, NOTHING = "taken for scores: one row of a last layer for each sample", "nothing on the graph says otherwise"


def model(body, outputs, inputs="float[4, 6] x"):
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net ({inputs}) => ({outputs})
    <float[6, 5] w = {{{", ".join(str(round(0.1 * (i * i % 11) - 0.4, 2)) for i in range(30))}}},
     float[7, 6] table = {{{", ".join(str(round(0.1 * (i % 13) - 0.5, 2)) for i in range(42))}}}, float[5] b = {{0,1,2,3,4}},
     float s = {{2.0}}, int64[2] flat = {{-1, 10}}> {{ {body} }}"""
    return OnnxHost.load(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("body", "outputs", "found"),
    [
        ("y = MatMul(x, w)", "float[4, 5] y", [("y", "kl", 1, None, SCORES)]),
        ("z = MatMul(x, w) a = Add(z, b) y = Mul(a, s)", "float[4, 5] y", [("y", "kl", 1, None, SCORES)]),
        ("z = MatMul(x, w) y = Tanh(z)", "float[4, 5] y", [("y", "mse", -1, None, NOTHING)]),
        ("y = Relu(x)", "float[4, 6] y", [("y", "mse", -1, None, NOTHING)]),
        ("z = MatMul(x, w) y = Softmax <axis = 0> (z)", "float[4, 5] y", [("y", "kl", 0, None, "found: softmax at the end")]),
        (
            "z = MatMul(x, w) a = LogSoftmax(z) y = Transpose(a)", "float[5, 4] y",
            [("y", "kl", 0, None, "found: log-softmax at the end")],
        ),
        ("z = MatMul(x, w) a = Softmax(z) y = Reshape(a, flat)", "float[2, 10] y", [("y", "mse", -1, None, NOTHING)]),
        ("z = MatMul(x, w) y = Sigmoid(z)", "float[4, 5] y", [("y", "bce", -1, None, "found: sigmoid at the end")]),
        (
            "z = MatMul(x, w) a = Sigmoid(z) y = Concat <axis = 1> (z, a)", "float[4, 10] y",
            [("y", "mse", -1, (1, 0, 5), NOTHING), ("y", "bce", -1, (1, 5, 10), "found: sigmoid at the end")],
        ),
        (
            "z = MatMul(x, w) a = Sigmoid(z) c = Sigmoid(x) d = Concat <axis = 1> (a, c) y = Transpose(d)",
            "float[11, 4] y", [("y", "bce", -1, None, "found: sigmoid at the end")],
        ),
        (
            "z = MatMul(x, w) a = Sigmoid(z) d = Concat <axis = 1> (z, a) y = Transpose(d)", "float[10, 4] y",
            [("y", "mse", -1, (0, 0, 5), NOTHING), ("y", "bce", -1, (0, 5, 10), "found: sigmoid at the end")],
        ),
        (
            "z = MatMul(x, w) n = ReduceL2 <axes = [1]> (z) y = Div(z, n)", "float[4, 5] y",
            [("y", "cosine", 1, None, "found: vectors of length one")],
        ),
        (
            "z = MatMul(x, w) q = Mul(z, z) t = ReduceSumSquare <axes = [1]> (z) r = Sqrt(t) y = Div(z, r)",
            "float[4, 5] y", [("y", "cosine", 1, None, "found: vectors of length one")],
        ),
        (
            "z = MatMul(x, w) n = ReduceL2 <axes = [1]> (x) y = Div(z, n)", "float[4, 5] y",
            [("y", "mse", -1, None, NOTHING)],
        ),
        ("z = MatMul(x, w) y = LpNormalization(z)", "float[4, 5] y", [("y", "cosine", 1, None, "found: vectors of length one")]),
        (  # two results: neither row is taken for scores, since one may be boxes
            "y = MatMul(x, w) a = Relu(x) v = MatMul(a, w) u = Sigmoid(v)", "float[4, 5] y, float[4, 5] u",
            [("y", "mse", -1, None, NOTHING), ("u", "bce", -1, None, "found: sigmoid at the end")],
        ),
        (  # what another output is made of is judged by that one
            "y = MatMul(x, w) v = Relu(y) u = Softmax(v)", "float[4, 5] u, float[4, 5] y",
            [("u", "kl", 1, None, "found: softmax at the end")],
        ),
        (  # but the first counts
            "y = Relu(x) u = MatMul(y, w)", "float[4, 6] y, float[4, 5] u",
            [("y", "mse", -1, None, NOTHING), ("u", "kl", 1, None, SCORES)],
        ),
    ],
)  # fmt: skip
def test_what_the_graph_says(body, outputs, found):
    judges = judges_for(model(body, outputs))
    assert [(each.output, each.kind, each.axis, each.part, each.why) for each in judges] == found


def test_tokens_are_classes_wherever_a_table_of_them_is():
    host = model(
        "e = Gather(table, x) t = Transpose(table) y = MatMul(e, t)", "float[2, 3, 7] y", inputs="int64[2, 3] x"
    )
    (judge,) = judges_for(host)
    assert (judge.kind, judge.axis) == ("kl", 2)
    assert str(judge) == "'y' by KL of classes over axis 2 (found: as many as tokens are looked up in)"


class Ends(nn.Module):
    """Every ending at once, as torch writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.boxes, self.scores = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.conv(x).relu()
        p = y.flatten(2).transpose(1, 2)
        return {
            "boxes": self.boxes(p),
            "classes": self.scores(p).softmax(-1).transpose(1, 2).reshape(-1, 2, 4, 4),
            "mixed": torch.cat([self.boxes(p), self.scores(p).sigmoid()], -1),
            "vector": functional.normalize(y.mean((2, 3)), dim=-1),
        }


@pytest.fixture(scope="module")
def ends():
    torch.manual_seed(0)
    return TorchHost.trace(Ends().eval(), (torch.randn(2, 3, 4, 4),)).folded()


EXPECTED = [
    ("mse", -1, None), ("kl", 1, None), ("mse", -1, (2, 0, 4)), ("bce", -1, (2, 4, 6)), ("cosine", 1, None),
]  # fmt: skip


def test_both_hosts_find_the_same(ends, tmp_path):
    ends.save_onnx(tmp_path / "ends.onnx")
    for host in (ends, OnnxHost.load(tmp_path / "ends.onnx").folded()):
        assert [(each.kind, each.axis, each.part) for each in judges_for(host)] == EXPECTED


def test_torch_prepares_what_numpy_prepares(ends):
    batch = ends.example_inputs(0)
    outputs = ends.run(batch)
    tensors = [torch.from_numpy(each) for each in outputs.values()]
    for judge in judges_for(ends):
        got = losses.prepared(tensors[judge.at], judge).numpy()
        np.testing.assert_allclose(got, judge.prepared(outputs), rtol=1e-5, atol=1e-5)


def test_gradients_see_the_logits_and_not_probabilities():
    """A softmax at the end changes no score: the gradients of its logarithm are those of the logits."""

    class Net(nn.Module):
        def __init__(self, end: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.second, self.end = nn.Linear(6, 12), nn.Linear(12, 4), end

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.end(self.second(self.first(x).relu()))

    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    labels = np.arange(32) % 4
    ends = (nn.Identity(), nn.Softmax(-1), nn.LogSoftmax(-1))
    for data in (x, {"x": x.numpy(), "labels": labels}):
        sessions = [gp.Session(Net(end).eval(), (x,), data=gp.Inputs(data, samples=32)) for end in ends]
        for criterion in ("taylor", "fisher", "taylor-elem", "path-taylor"):
            passes = f"fold-constants,analyze,calibrate,score{{criterion={criterion}}},allocate{{params=0.6 align=1}}"
            states = [session.prune(pipeline=f"{passes},slice-groups", verify=False).state for session in sessions]
            scores = [next(iter(state.scores.values())) for state in states]
            for other in scores[1:]:
                np.testing.assert_allclose(other, scores[0], rtol=2e-3, err_msg=criterion)


def test_a_second_output_counts_relative_to_its_spread(ends):
    """Boxes a thousand times larger weigh as much as before."""
    host, batch = ends, [{"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}]
    changed = host.replaced({"boxes.weight": host.read("boxes.weight") * 1.1})
    losses = []
    for scale in (1.0, 1000.0):

        def run(inputs, of, scale=scale):
            outputs = of.run(inputs)
            return {**outputs, "boxes": outputs["boxes"] * np.float32(scale)}

        standard = Standard(lambda i: run(i, host), ((each, None) for each in batch), host.graph())
        losses.append(standard.loss(lambda i: run(i, changed)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ()),
        ("kl", (Asked("kl"),)),
        ("kl:1", (Asked("kl", 1),)),
        (["mse", "scores=bce"], (Asked("mse"), Asked("bce", None, "scores"))),
        ({"a=b": "cosine:-1"}, (Asked("cosine", -1, "a=b"),)),
        (("a=b=auto",), (Asked("auto", None, "a=b"),)),
    ],
)
def test_reading_a_loss(given, expected):
    assert parse_losses(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "klx",
            "unknown loss 'klx' (did you mean 'kl'?); expected one of auto, kl, bce, mse, cosine, of one output as in "
            "'scores=bce', with the axis of the classes as in 'kl:1'",
        ),
        ("mse:1", "loss 'mse:1' names an axis, which only kl and cosine have; leave it out"),
        ("kl:one", "cannot read the axis of loss 'kl:one'; expected a number, as in 'kl:1'"),
        (["a=kl", "a=mse"], "two losses are given of output 'a'; leave one of them out"),
        (["kl", "mse"], "two losses are given of all outputs; leave one of them out"),
    ],
)
def test_a_loss_that_cannot_be_read_is_refused_before_a_model_is_opened(given, message):
    with pytest.raises(OptionError) as error:
        gp.prune("no such file", target="macs=0.5", calibration="random", loss=given)
    assert str(error.value) == message
    with pytest.raises(OptionError) as error:
        gp.sensitivity("no such file", loss=given)
    assert str(error.value) == message
    with pytest.raises(OptionError) as error:
        gp.sweep("no such file", targets=["macs=0.5"], calibration="random", loss=given)
    assert str(error.value) == message


def test_a_loss_needs_inputs():
    with pytest.raises(OptionError, match="there are no inputs to compare them on"):
        gp.prune("no such file", target="macs=0.5", loss="kl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "boxs=mse",
            "the model has no output 'boxs' (did you mean 'boxes'?) to give a loss for; its outputs are 'boxes', 'classes', "
            "'mixed', 'vector'",
        ),
        (
            "9=mse",
            "the model has no output '9' to give a loss for; its outputs are 'boxes', 'classes', 'mixed', 'vector'",
        ),
        ("boxes=kl:3", "output 'boxes' has 3 axes and none that is 3; give an axis from 0 to 2, as in 'kl:1'"),
    ],
)
def test_a_loss_of_what_is_not_there_is_refused(ends, given, message):
    with pytest.raises(OptionError) as error:
        known_losses(parse_losses(given), ends)
    assert str(error.value) == message


def test_whole_numbers_have_no_loss():
    host = model("z = MatMul(x, w) y = Softmax(z) i = ArgMax(z)", "float[4, 5] y, int64[1, 5] i")
    with pytest.raises(
        OptionError, match="output 'i' holds int64, and a loss is of floating-point numbers; leave it out"
    ):
        known_losses(parse_losses("i=kl"), host)


def test_what_the_user_says_counts(ends):
    asked = known_losses(parse_losses({"boxes": "kl:1", "2": "mse", "vector": "auto", "classes": "kl"}), ends)
    judges = judges_for(ends, asked)
    assert [(each.name, each.kind, each.axis, each.why) for each in judges] == [
        ("boxes", "kl", 1, "as given"),
        ("classes", "kl", 1, "as given"),
        ("mixed", "mse", -1, "as given"),
        ("vector", "cosine", 1, "found: vectors of length one"),
    ]
    assert judges[1].final is not None  # still a softmax, before which it is judged
    assert {each.kind for each in judges_for(ends, known_losses(parse_losses("mse"), ends))} == {"mse"}


def test_the_names_are_those_of_the_options():
    assert {each.kind for each in (Judge("y", 0, kind) for kind in defaults.LOSSES[1:])} == {
        "kl",
        "bce",
        "mse",
        "cosine",
    }
    assert [parse_losses(each)[0].kind for each in defaults.LOSSES] == list(defaults.LOSSES)


def test_joins_of_joins_are_followed_once() -> None:
    """Each value twice in the next one: thirty of them have a thousand million ways to the first."""
    values, nodes = {"y0": Value("y0", (1, 4), kind="input")}, []
    for i in range(30):
        values[f"y{i + 1}"] = Value(f"y{i + 1}", (1, 4 << (i + 1)))
        nodes.append(Node(f"join{i}", "Concat", (f"y{i}", f"y{i}"), (f"y{i + 1}",), role="join"))
    graph = Graph(values, tuple(nodes), ("y0",), ("y30",))
    assert [each.kind for each in finals_of(graph, "y30")] == [""]


@pytest.mark.parametrize(
    ("rows", "shape", "found"),
    [
        (24, (2, 3, 24), ("kl", 2)),  # steps of a reader of characters
        (23, (2, 3, 23), ("mse", -1)),  # 23 values of 6 inputs may be values
        (24, (3, 2, 24), ("kl", 2)),
        (24, (2, 24, 3), ("kl", 1)),
        (24, (2, 24, 24), ("mse", -1)),  # which axis is that of the classes?
        (24, (2, 3, 4, 6), ("mse", -1)),  # taken apart
    ],
)
def test_many_more_rows_than_inputs_are_scores_at_each_step(rows, shape, found):
    steps = shape[0] * int(np.prod(shape[1:])) // rows // 2
    turned = shape == (2, 24, 3)
    body = "z = MatMul(x, v) " + (
        "y = Transpose <perm = [0, 2, 1]> (z)" if turned else "a = Add(z, c) y = Reshape(a, to)"
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[2, {steps}, 6] x) => (float{list(shape)} y)
    <float[6, {rows}] v = {{{", ".join(["0.5"] * 6 * rows)}}}, float[{rows}] c = {{{", ".join(["1"] * rows)}}},
     int64[{len(shape)}] to = {{{", ".join(map(str, shape))}}}> {{ {body} }}"""
    (judge,) = judges_for(OnnxHost.load(onnx.parser.parse_model(text)))
    assert (judge.kind, judge.axis) == found
    if found[0] == "kl":
        assert judge.why == "found: a last layer with many more rows than inputs"


def test_a_plan_is_applied_with_the_losses_that_it_was_made_with():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    example, data = (torch.randn(4, 6),), [torch.randn(4, 6) for _ in range(4)]
    made = gp.prune(net, example, target={"macs": 0.5}, calibration=data, loss={"output": "cosine"})
    judged = "'output' by cosine distance over axis 1 (as given)"
    for plan in (made.plan, PruningPlan.from_dict(made.plan.to_dict())):
        again = gp.apply(net, plan, example, calibration=data)
        assert [each.judged for each in again.report.moved.losses] == [judged]
        assert (judged,) == again.report.losses == made.report.losses
    recipe = {**made.plan.recipe, "judge": {"loss": ["logits=mse"]}}
    report = gp.apply(net, replace(made.plan, recipe=recipe), example, calibration=data).report
    assert report.losses == (
        "'output' by KL of classes over axis 1 (taken for scores: one row of a last layer for each sample)",
    )
    assert [note for note in report.notes if "when the plan was made" in note] == [
        "outputs are compared as the graph says, not as when the plan was made: the model has no output 'logits' to "
        "give a loss for; its outputs are 'output'"
    ]

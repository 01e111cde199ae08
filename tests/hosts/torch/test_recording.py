"""A recorded forward is the exported one, group by group; what it is not sure of is exported, or stays the user's class."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import ModelError, OutputError
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.program import Program
from graphprune.hosts.torch.recording.forward import Recording, record
from graphprune.hosts.torch.recording.operators import Unrecordable
from graphprune.hosts.torch.trace import export, split_example
from graphprune.hosts.torch.untouched import Looked, untouched
from graphprune.ir.dims import Dim, Factor

X = (torch.randn(6, 8),)
TABLE = torch.linspace(1, 2, 16)


class Net(nn.Module):
    """Two hidden layers, and something between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.register_buffer("steps", torch.zeros(16))
        self.table = torch.linspace(0, 1, 16)

    def forward(self, x):
        return self.c(F.relu(self.b(self.between(F.relu(self.a(x))))))

    def between(self, h):
        return h


def recorded(model: nn.Module, example: Any = X) -> Recording:
    with untouched(model) as looked:
        return record(model, split_example(example), looked)


def form(dim: Dim, factor: Factor) -> Any:
    if isinstance(dim, Factor):
        return "units" if dim == factor else dim.size
    return type(dim).__name__, tuple(form(part, factor) for part in dim.parts)


def groups(program: Program) -> Counter[Any]:
    """What the analysis finds, without the names that a front end gives to nodes and constants."""
    program = program.folded()
    names, found = program.tied, Counter[Any]()
    for group in analyze_graph(program.graph()).groups:
        sites = Counter(
            (min(names[site.tensor]), site.axis, form(site.dim, group.factor))
            for site in group.sites
            if not site.tensor.startswith(("lifted_", "_folded"))
        )
        found[group.kind, group.size, group.exact, group.ordered is None, group.minimum, frozenset(sites.items())] += 1
    return found


# -- the same as the exporter ------------------------------------------------------------------------------------------


class InPlace(Net):
    def between(self, h):
        h.mul_(2).add_(1)
        return F.relu(h, inplace=True)


class WrittenPart(Net):
    def between(self, h):
        h[:, :5] = 2 * h[:, :5]
        h[:, 7].zero_()
        return h


class WrittenThroughViews(Net):
    def between(self, h):
        turned = h.view(6, 4, 4).transpose(1, 2)
        turned[:, 1] += 1.0
        return h


class WrittenChunks(Net):
    def between(self, h):
        first, second = h.chunk(2, 1)
        first.mul_(3)
        second.clamp_(max=0.5)
        return h + torch.cat([second, first], 1)


class ReadAfterWrite(Net):
    def between(self, h):
        before = h.view(-1)
        h.add_(1)
        return before.view(6, 16)


class WrittenBehind(Net):
    def between(self, h):
        h.data.clamp_(max=0.5)
        return h


class Masked(Net):
    def between(self, h):
        return h.masked_fill_(h > 1, 0.0)


class Counted(Net):
    def between(self, h):
        self.steps += 1
        return h * (1 + self.steps)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(16, 16)
        self.again.weight = self.b.weight

    def between(self, h):
        return self.again(h)


class Attention(Net):
    def between(self, h):
        q = h.view(2, 3, 4, 4).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(6, 16)


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batch = nn.LayerNorm(16), nn.BatchNorm1d(16)

    def between(self, h):
        return self.batch(self.norm(h)) + F.batch_norm(h, None, None, training=True)


class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def between(self, h):
        return self.lstm(h[None])[0][0]


class Tables(Net):
    def between(self, h):
        return h * self.table + torch.tensor([0.1] * 16) + torch.arange(16.0)


class Shuffled(Net):
    def between(self, h):
        return F.channel_shuffle(h[:, :, None, None], 4).flatten(1) + h[:, [0]]


SAME = (
    InPlace, WrittenPart, WrittenThroughViews, WrittenChunks, ReadAfterWrite, Masked, Counted, Tied,
    Attention, Normed, Recurrent, Tables, Shuffled,
)  # fmt: skip


@pytest.mark.parametrize("net", SAME, ids=lambda net: net.__name__)
def test_groups_and_outputs_are_those_of_the_exporter(net: type[Net]) -> None:
    model = net().eval()
    recording = recorded(model)
    assert recording.doubts == ()
    ours, theirs = Program.of(recording), Program.of(export(model, split_example(X)))
    assert groups(ours) == groups(theirs)
    assert groups(ours)
    with untouched(model, runs=True), torch.no_grad():
        expected = model(X[0].clone())
    for program in (ours, theirs):
        (got,) = program.run(program.example_inputs()).values()
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_written_behind_autograd_is_recorded() -> None:
    model = WrittenBehind().eval()
    program = Program.of(recorded(model))
    (got,) = program.run(program.example_inputs()).values()
    np.testing.assert_allclose(got, model(X[0]).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert groups(program) == groups(Program.of(recorded(Net().eval())))


def test_inputs_outputs_and_names_are_those_of_the_exporter() -> None:
    class Named(Net):
        def forward(self, x, opt=None, *, flag=True, **more):
            return {"y": super().forward(x * more["scale"]), "rest": [opt["a"] if flag else None, None, 3]}

    example = {"x": X[0], "opt": {"a": torch.ones(1)}, "scale": torch.ones(8)}
    model = Named().eval()
    ours, theirs = Program.of(recorded(model, example)), Program.of(export(model, split_example(example)))
    for program in (ours, theirs):
        assert [name for name, _ in program.signature.inputs] == ["x", "opt_a", "scale"]
        assert program.output_names == ("y", "rest.0")
        assert program.module(**example)["rest"][1:] == [None, 3]


# -- what is left as it was --------------------------------------------------------------------------------------------


def test_inputs_that_are_written_to_are_put_back() -> None:
    class Writing(Net):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x = torch.randn(6, 8)
    before = x.clone()
    recording = recorded(Writing().eval(), (x,))
    assert torch.equal(x, before)
    (node,) = (node for node in recording.graph.nodes if node.target is torch.ops.aten.copy_.default)
    assert node.args[0].op == "placeholder"


def test_methods_of_tensors_are_put_back() -> None:
    names = ("numpy", "tolist", "data", "__dlpack__")
    before = {name: getattr(torch.Tensor, name) for name in names}, set(vars(torch.Tensor))
    recorded(Net().eval())
    assert ({name: getattr(torch.Tensor, name) for name in names}, set(vars(torch.Tensor))) == before


# -- values that leave the graph ---------------------------------------------------------------------------------------


def test_constants_that_lie_nowhere_in_the_module_stay_whole() -> None:
    keep = {"t": torch.linspace(1, 2, 16)}

    class Outside(Net):
        def between(self, h):
            return h * keep["t"]

    free = {group.name for group in gp.analyze(Net().eval(), X).groups}
    analysis = gp.analyze(Outside().eval(), X)
    assert free - {group.name for group in analysis.groups} == {"a.weight[0]"}
    assert any("outside of its module" in reason.text for reason in analysis.fixed.values())


class Numpy(Net):
    def between(self, h):
        return h - torch.from_numpy(h.detach().numpy().mean(1, keepdims=True))


class Listed(Net):
    def between(self, h):
        return h - torch.tensor(h.mean(1, keepdim=True).tolist())


class Reassigned(Net):
    def forward(self, x):
        self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.5)
        return super().forward(x)


@pytest.mark.parametrize("net", [Numpy, Listed], ids=lambda net: net.__name__)
def test_values_that_leave_the_graph_are_noticed(net: type[Net]) -> None:
    assert recorded(net().eval()).doubts[0].startswith("values leave the graph at test_recording.py line ")


def test_a_class_that_computes_with_what_left_the_graph_does_not_come_back() -> None:
    with pytest.raises(ModelError, match=r"so that only your class may come back, but .* its outputs differ"):
        gp.prune(Numpy().eval(), X, target="params=0.6")


def test_a_weight_that_is_given_other_memory_is_not_recorded() -> None:
    with pytest.raises(Unrecordable, match="is given other memory"):
        recorded(Reassigned().eval())


# -- code that decides by values ---------------------------------------------------------------------------------------


class FloatBranch(Net):
    def between(self, h):
        return h * 2 if h.sum() > 0 else h - 1


class Waiting(Net):
    def between(self, h):
        n = 0
        while h.abs().amax() > 1e-3 and n < 3:
            h, n = h * 0.5, n + 1
        return h


class Early(Net):
    def between(self, h):
        for _ in range(4):
            h = h + torch.tanh(h)
            if float(h.std()) < 1e-3:
                break
        return h


class Sorted(Net):
    def forward(self, x):
        order = sorted(range(len(x)), key=lambda i: float(x[i].sum()))
        return super().forward(x[order])


class Checked(Net):
    def between(self, h):
        if not torch.allclose(h, h):
            raise ValueError
        assert torch.isfinite(h).all()
        return h


class Experts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(2))

    def between(self, h):
        weights, at = self.gate(h).softmax(-1).topk(2, -1)
        out = torch.zeros_like(h)
        for i in at.unique().tolist():
            rows, place = torch.where(at == i)
            out[rows] += self.experts[i](h[rows]) * weights[rows, place, None]
        return h + out


class Ragged(Net):
    def forward(self, x):
        kept = x[x[:, 0] > -1e3]
        return super().forward(kept)[: int((x[:, 0] > -1e3).sum())]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        if bool((x.sum() > 0).item()):
            return torch.relu(self.layer(x))
        return torch.tanh(self.layer(x))


class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(Inner())

    def between(self, h):
        return self.inner(h)


@pytest.mark.parametrize(
    "net", [FloatBranch, Waiting, Early, Sorted, Checked, Experts, Ragged, Scripted], ids=lambda net: net.__name__
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_that_decides_by_values_is_pruned_as_its_class(net: type[Net], tmp_path: Any) -> None:
    model = net().eval()
    with pytest.raises(ModelError):
        export(model, split_example(X))
    result = gp.prune(model, X, target="params=0.7", align=1)
    assert type(result.module) is net
    assert {check.name for check in result.report.proof if check.passed} == {"masked", "permutation"}
    assert any(row.kept < row.size for row in result.report.groups)
    assert any("decides by values what it computes" in note for note in result.report.notes)
    with pytest.raises(OutputError, match="which a file cannot"):
        result.host.save_onnx(tmp_path / "net.onnx")


def test_a_way_that_leaves_parameters_out_is_refused() -> None:
    class TwoWays(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(16, 16)

        def between(self, h):
            return h if h.sum() > 0 else self.other(h)

    with pytest.raises(ModelError, match="torch.export cannot trace 'TwoWays'"):
        TorchHost.trace(TwoWays().eval(), X)


def test_values_of_constants_decide_without_a_doubt() -> None:
    class Sized(Net):
        def between(self, h):
            return h[:, : int(self.table.numel() * self.table.amax().item())]

    assert recorded(Sized().eval()).doubts == ()


def test_the_looked_at_module_holds_what_is_known() -> None:
    model = Tables().eval()
    assert id(model.table) in {id(each.tensor) for each in Looked(model).tensors}

"""Models and calls as strangers write them: what once failed, pruned nothing, or was said wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch_proof import prove

import graphprune as gp
from graphprune.hosts.torch.module import sliced_module
from graphprune.runtime.sessions import run_file

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Some function of a hidden width and a layer, between two linear ones."""

    def __init__(self, function: Callable[[torch.Tensor, nn.Linear], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
        self.function = function

    def forward(self, x):
        return self.c(self.function(F.relu(self.a(x)), self.b))


def _negative_is_zero(h: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    h = layer(h)
    h[h < 0] = 0
    return h


def _rows_are_set(h: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    h = layer(h)
    h[h[:, 0] > 0.1] = -1.5
    return h + h.sum()


@pytest.mark.parametrize(
    "function",
    [
        lambda h, layer: torch.tensordot(h, layer.weight, dims=([1], [1])),
        lambda h, layer: torch.inner(h, layer.weight),
        lambda h, layer: torch.vstack((h, layer(h)))[:3],
        lambda h, layer: layer(h) - torch.quantile(layer(h).detach() * 0 + 1, 0.5),
        _negative_is_zero,
    ],
    ids=["tensordot", "inner", "vstack", "quantile of everything", "assignment by a mask"],
)
def test_composed_operators_are_taken_apart(function: Callable[..., torch.Tensor]) -> None:
    assert "a.weight[0]" in {group.name for group in prove(Between(function), X).groups}


def test_rows_that_a_mask_sets_are_a_choice() -> None:
    proof = prove(Between(_rows_are_set), X)
    assert not any("mask" in reason for reason in proof.reasons("b.weight[0]"))


class Cell(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = cell(8, 16), nn.Linear(16, 2)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_lose_hidden_units_and_stay_cells(cell: type[nn.Module]) -> None:
    model = Cell(cell)
    proof = prove(model, torch.randn(2, 3, 8))
    made = sliced_module(model, proof.host, proof.pruned)
    module, reason = made.module, " ".join(made.notes)
    assert reason == ""
    assert (module.cell.hidden_size, module.cell.input_size) == (8, 8)
    assert tuple(module.cell.weight_hh.shape)[1] == 8


def test_bags_of_embeddings() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.out = nn.EmbeddingBag(30, 16), nn.Linear(16, 3)

        def forward(self, words, offsets):
            return self.out(self.table(words, offsets))

    example = (torch.tensor([1, 9, 2, 9, 3]), torch.tensor([0, 2]))
    result = gp.prune(Bags(), example, target={"params": 0.6}, align=1, export=True)
    assert isinstance(result.module, Bags)
    assert result.module.table.embedding_dim < 16
    assert [check.name for check in result.report.proof] == ["masked", "permutation", "onnxruntime"]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("trained", [False, True])
def test_normed_weights_keep_the_class(norm: Callable[[nn.Module], nn.Module], *, trained: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        norm(nn.Conv1d(4, 16, 3)), nn.ReLU(), norm(nn.Conv1d(16, 16, 3)), nn.ReLU(), nn.Conv1d(16, 4, 1)
    )
    x = torch.randn(2, 4, 20)
    if trained:
        model(x).sum().backward()
    proof = prove(model, x)
    made = sliced_module(model, proof.host, proof.pruned)
    module, reason = made.module, " ".join(made.notes)
    assert reason == ""
    assert isinstance(module, nn.Sequential)
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        ((nn.Linear(8, 256), nn.Unflatten(1, (16, 4, 4)), nn.Conv2d(16, 3, 1)), (2, 8)),
        ((nn.Linear(8, 4096), nn.Unflatten(1, (16, 16, 16)), nn.Conv2d(16, 3, 1)), (2, 8)),
        ((nn.Conv1d(2, 16, 3), nn.InstanceNorm1d(16), nn.Conv1d(16, 3, 1)), (2, 2, 9)),
        ((nn.Linear(8, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3)), (2, 8)),
    ],
    ids=["unflatten", "unflatten to equal sizes", "instance norm", "layer norm"],
)
def test_layers_whose_sizes_show_in_no_tensor(layers: tuple[nn.Module, ...], x: tuple[int, ...]) -> None:
    model, example = nn.Sequential(*layers), torch.randn(x)
    proof = prove(model, example)
    made = sliced_module(model, proof.host, proof.pruned)
    module, reason = made.module, " ".join(made.notes)
    assert reason == ""
    assert module(example).shape == model(example).shape  # without a warning


def test_a_model_that_draws_random_numbers() -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.mean, self.spread, self.out = (nn.Linear(*n) for n in ((8, 32), (32, 6), (32, 6), (6, 8)))

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.out(self.mean(h) + self.spread(h).exp() * torch.randn(x.shape[0], 6))

    result = gp.prune(Sampler(), X, target={"macs": 0.5}, align=1, export=True)
    assert isinstance(result.module, Sampler)
    assert [check.name for check in result.report.proof] == ["masked", "permutation"]
    assert result.report.notes == (
        "onnxruntime has not checked the ONNX file: the model draws random numbers (aten.randn.default), which "
        "onnxruntime draws differently; hand them in as an input, or draw only in training mode",
    )


def test_a_float64_model_whose_operators_onnxruntime_lacks() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).double()
    result = gp.prune(model, X.double(), target={"macs": 0.5}, export=True)
    assert result.module[0].weight.dtype == torch.float64
    assert [check.name for check in result.report.proof] == ["masked", "permutation"]
    (note,) = result.report.notes
    assert note == (
        "onnxruntime has not checked the ONNX file: onnxruntime cannot load it: [ONNXRuntimeError] : 9 : "
        "NOT_IMPLEMENTED : Could not find an implementation for Erf(13) node with name ''; it has few operators in "
        "float64 and none of other domains; export a float32 model or another opset"
    )


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 16, 3, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3, bias=False),
        nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8, 4, bias=False),
    )  # fmt: skip


def test_the_report_counts_the_biases_that_refits_add() -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 2, 12, generator=generator) for _ in range(6)]
    result = gp.prune(_net(), data[0], target={"macs": 0.5}, calibration=data)
    assert result.module[7].bias is not None
    tensors = (*result.module.parameters(), *(b for b in result.module.buffers() if b.is_floating_point()))
    assert result.report.cost("params").after == sum(p.numel() for p in result.module.parameters())
    assert result.report.cost("bytes").after == sum(t.numel() * t.element_size() for t in tensors)


def test_reports_print_as_tables() -> None:
    model, x = _net(), torch.randn(4, 2, 12)
    result = gp.prune(model, x, target={"macs": 0.5}, export=True)
    text = str(result.report)
    assert str(result) == text
    assert " MACs       │ 30.5 k │ 9.09 k │ 29.8% │   50.0%" in text.splitlines()
    assert "passed  file = pruned model" in text
    assert len(repr(result)) < 3000
    assert "macs=0.7" in str(gp.sweep(model, x, targets=["macs=0.7"], latency=False))
    assert "0.weight[0] │ channel" in str(gp.sensitivity(model, x))


def test_one_pattern_may_be_a_text() -> None:
    model, x = _net(), torch.randn(4, 2, 12)
    result = gp.prune(model, x, target={"macs": 0.8}, protect="0", only="channel", align=1)
    assert [row.name for row in result.report.groups] == ["3.weight[0]"]
    assert len(gp.analyze(model, x, protect="channel").groups) == len(gp.analyze(model, x).groups)
    assert {row.group for row in gp.sensitivity(model, x, only="3.weight").rows} == {"0.weight[0]", "3.weight[0]"}


def refused(error: type[gp.GraphpruneError], call: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_arguments_of_wrong_types_are_one_clear_error() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    result = gp.prune(model, X, target={"macs": 0.5}, verify=False)
    number: Any = 0.5
    assert refused(gp.TargetError, lambda: gp.prune(model, X, target=number)) == (
        "cannot read target 0.5 (did you mean 'macs=0.5'?); expected one like 'macs=0.5' or {'macs': 0.5}"
    )
    pair: Any = [("macs", 0.5)]
    assert refused(gp.TargetError, lambda: gp.prune(model, X, target=pair)) == (
        "cannot read target ('macs', 0.5); expected one like 'macs=0.5' or {'macs': 0.5}"
    )
    table: Any = {"a": 1}
    assert refused(gp.PlanError, lambda: gp.apply(model, table, X)) == (
        "a 'dict' is no plan; give a PruningPlan or the path of its JSON file"
    )
    assert refused(gp.OptionError, lambda: gp.verify(model, result.module, result.plan, X)) == (
        "verify takes the path of an ONNX file, got a 'Sequential'; write one with result.save_onnx"
    )
    assert refused(gp.ModelError, lambda: gp.prune(model, torch.zeros(2, 8, dtype=torch.long), target="macs=0.5")) == (
        "the traced model does not run: mat1 and mat2 must have the same dtype, but got Long and Float; give example "
        "inputs of the types and values that the model takes"
    )
    assert refused(gp.TargetError, lambda: gp.sweep(model, X, targets=[number])) == (
        "cannot read target 0.5 (did you mean 'macs=0.5'?); expected one like 'macs=0.5' or {'macs': 0.5}"
    )


def test_what_cannot_be_traced_says_what_to_do() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Parameter(torch.ones(32, 8)), nn.Linear(8, 4)

        def forward(self, x):
            return self.out(x + self.table[: x.shape[1]])

    dynamic = ({1: torch.export.Dim("s")},)
    call = lambda: gp.prune(Positions(), torch.ones(2, 5, 8), target="macs=0.5", dynamic_shapes=dynamic)  # noqa: E731
    assert refused(gp.ModelError, call) == (
        "torch.export cannot trace 'Positions' with these dynamic_shapes: Not all values of s = L['x'].size()[1] in "
        "the specified range satisfy the generated guard 2 <= L['x'].size()[1] and L['x'].size()[1] <= 32; take bounds "
        "for which that holds (Dim(name, min=..., max=...)), or Dim.AUTO"
    )

    @dataclass
    class Output:
        logits: torch.Tensor

    class Wrapped(nn.Linear):
        def forward(self, x):
            return Output(super().forward(x))

    assert refused(gp.ModelError, lambda: gp.prune(Wrapped(8, 4), X, target="macs=0.5")) == (
        "torch.export cannot trace 'Wrapped': it returns a 'Output', whose tensors it cannot find; call "
        "torch.export.register_dataclass(Output) before, or return a tuple or a dict"
    )

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"class": nn.Linear(8, 4), "box": nn.Linear(8, 4)})

        def forward(self, x):
            return self.heads["class"](x), self.heads["box"](x)

    assert refused(gp.ModelError, lambda: gp.prune(Heads(), X, target="macs=0.5")) == (
        "'heads.class.weight' lies in a module that is named 'class', a word of Python's own, of which torch.fx cannot "
        "make code; give the module another name"
    )


def test_a_model_on_the_meta_device_can_be_planned() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
    for options in ({}, {"criterion": "random"}):
        assert refused(gp.ModelError, lambda options=options: gp.prune(model, x, target="macs=0.5", **options)) == (
            "the model is on the meta device, where weights have no values to read or to run with; load its weights, "
            "or make a plan by criterion='random' with verify=False"
        )
    result = gp.prune(model, x, target="macs=0.5", criterion="random", verify=False)
    assert next(result.module.parameters()).is_meta
    with torch.device("cpu"):
        whole = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    assert gp.apply(whole, result.plan, torch.randn(2, 8)).report.cost("macs").fraction <= 0.5


def test_what_is_made_in_inference_mode_can_be_trained() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.inference_mode():
        result = gp.prune(model, X, target="macs=0.5")
    result.module(X).sum().backward()
    assert result.module[0].weight.grad is not None


def test_distances_and_outputs_that_are_no_tensors_reach_onnx() -> None:
    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encode, self.prototypes = nn.Linear(8, 16), nn.Parameter(torch.randn(5, 16))

        def forward(self, x, scale=1.0):
            return {"distance": torch.cdist(self.encode(x), self.prototypes), "scale": scale, "none": None}

    result = gp.prune(Prototypes(), {"x": X, "scale": 2.0}, target="macs=0.5", export=True)
    assert [check.name for check in result.report.proof] == ["masked", "permutation", "onnxruntime"]
    assert isinstance(result.module, Prototypes)


@pytest.mark.parametrize("baked", [False, True])
def test_a_fine_tuned_module_is_what_save_onnx_writes(tmp_path, *, baked: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

        def forward(self, x):
            h = self.norm(self.a(x)).relu()
            if baked and h.shape[1] != 16:
                raise ValueError("not 16 wide")
            return self.b(h)

    result = gp.prune(Net(), X, target="macs=0.5")
    module, path = result.module, tmp_path / "trained.onnx"
    assert isinstance(module, Net) != baked
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        optimizer.step()
    result.save_onnx(path)
    module.eval()
    (written,) = run_file(path, {"x": X.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(written), module(X).detach(), rtol=1e-4, atol=1e-5)
    module.b = nn.Linear(8, 5)
    assert refused(gp.OutputError, lambda: result.save_onnx(path)) == (
        "'b.weight' of the module has shape [5, 8], not [4, 8]: it was changed after pruning; write it as it is now "
        "with graphprune.export_onnx(result.module, example_inputs, path)"
    )


def test_a_plan_with_dynamic_shapes_is_restored_and_verified(tmp_path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.qkv, self.out = nn.Embedding(20, 8), nn.Linear(8, 48), nn.Linear(16, 4)

        def forward(self, ids):
            b, s = ids.shape
            q, k, v = self.qkv(self.table(ids)).view(b, s, 3, 4, -1).permute(2, 0, 3, 1, 4)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, -1))

    ids, given = (torch.arange(10).reshape(2, 5),), {"dynamic_shapes": ({1: torch.export.Dim("s")},)}
    result = gp.prune(Heads(), ids, target="macs=0.6", **given)
    result.save_state(tmp_path)
    again = gp.restore(Heads(), tmp_path, ids, **given)
    longer = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(again.eval()(longer), result.module.eval()(longer))
    result.save_onnx(tmp_path / "model.onnx")
    assert all(check.passed for check in gp.verify(Heads(), tmp_path / "model.onnx", result.plan, ids, **given))

"""The torch host: tracing without side effects, folding, naming, running, exporting."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_proof import prove

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import ModelError, OutputError, PlanError, ProofError
from graphprune.hosts.edits import Edits, SizeEdit
from graphprune.hosts.torch.graph import build_graph
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.ops.table import ROWS
from graphprune.hosts.torch.slice import sliced
from graphprune.rules.call import facts


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale=None):
        y = self.down(self.dropout(F.relu(self.norm(self.up(x)))))
        return {"logits": y if scale is None else y * scale, "parts": (x, y)}


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def test_names_of_inputs_outputs_and_parameters() -> None:
    host = TorchHost.trace(Mlp(), {"x": X, "scale": torch.tensor(2.0)})
    graph = host.graph()
    assert graph.inputs == ("x", "scale")
    assert host.output_names == ("logits", "parts.0", "parts.1")
    assert list(host.run(host.example_inputs())) == ["logits", "parts.0", "parts.1"]
    stored = {value.name: value.kind for value in graph.stored}
    assert stored == {
        "up.weight": "parameter", "up.bias": "parameter", "down.weight": "parameter", "down.bias": "parameter",
        "norm.weight": "parameter", "norm.bias": "parameter", "norm.running_mean": "constant", "norm.running_var": "constant",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x + 1, ("output",)),
        (lambda x: (x + 1, [x + 2]), ("output_0", "output_1.0")),
        (lambda x: {"a": x + 1}, ("a",)),
    ],
)
def test_output_names(function: Callable[[Any], Any], names: tuple[str, ...]) -> None:
    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    assert TorchHost.trace(Net(), X).output_names == names


def test_one_tensor_given_twice_is_two_inputs() -> None:
    class Net(nn.Module):
        def forward(self, a, b):
            return a - 2 * b

    host = TorchHost.trace(Net(), (X, X))
    got = host.run({"a": X.numpy(), "b": np.zeros((2, 6), np.float32)})["output"]
    assert np.array_equal(X.numpy(), got)


def test_trace_leaves_the_model_as_it_was() -> None:
    model = Mlp().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    TorchHost.trace(model, (X,))
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_run_equals_the_model() -> None:
    model = Mlp().eval()
    host = TorchHost.trace(model, (X,))
    assert np.array_equal(model(X)["logits"].detach().numpy(), host.run({"x": X.numpy()})["logits"])


def test_run_in_float64_is_the_model_in_float64() -> None:
    model = Mlp().eval()
    host = TorchHost.trace(model, (X,))
    got = host.run({"x": X.numpy()}, double=True)["logits"]
    assert got.dtype == np.float64
    assert np.allclose(model.double()(X.double())["logits"].detach().numpy(), got, rtol=1e-12)


def test_edits_leave_the_host_as_it_was() -> None:
    proof = prove(Mlp(), (X,))
    assert proof.host.tensor("up.weight").shape == (8, 6)
    assert proof.pruned.tensor("up.weight").shape == (4, 6)
    assert proof.pruned.tensor("down.bias") is proof.host.tensor("down.bias")


def test_pruned_graph_has_the_shapes_of_a_fresh_trace() -> None:
    pruned = prove(Mlp(), (X,)).pruned
    fresh = TorchHost.trace(pruned.module, (X,))
    assert {v.shape for v in fresh.graph().values.values()} == {v.shape for v in pruned.graph().values.values()}


def test_module_can_be_called_and_trained() -> None:
    module = prove(Mlp(), (X,)).pruned.module
    module.train()
    module.eval()
    module(X)["logits"].sum().backward()
    assert module.up.weight.grad.shape == (4, 6)


def test_exported_program_is_taken() -> None:
    program = torch.export.export(Mlp().eval(), (X,), strict=False)
    host = TorchHost.trace(program)
    assert host.source is None
    assert [group.size for group in analyze_graph(host.graph()).groups] == [8]


def test_failure_to_export() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):  # a layer stays out of sight, whichever way it takes
            return self.a(x) if x.sum() > 0 else self.b(x)

    with pytest.raises(ModelError) as caught:
        TorchHost.trace(Branching(), (X,))
    assert str(caught.value).startswith("torch.export cannot trace 'Branching': GuardOnDataDependentSymNode: ")
    assert re.search(
        r"; a size or a branch depends on the values of a tensor at test_torch_host\.py line \d+: take it from Python "
        r"numbers or from shapes there, or pass an ExportedProgram of your own$",
        str(caught.value),
    )


def test_settings_that_cannot_be_traced_are_replaced_and_put_back() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(
                use_cache=True, _attn_implementation="flex_attention", _experts_implementation="eager"
            )
            self.a = nn.Linear(6, 4)
            self.a.config = SimpleNamespace(_attn_implementation="eager")

        def forward(self, x):
            seen.append((*vars(self.config).values(), *vars(self.a.config).values()))
            return self.a(x)

    seen: list[tuple[object, ...]] = []
    model = Net()
    TorchHost.trace(model, (X,))
    assert set(seen) == {(False, "sdpa", "batched_mm", "eager")}
    assert tuple(vars(model.config).values()) == (True, "flex_attention", "eager")
    assert model.a.config._attn_implementation == "eager"


def test_missing_example() -> None:
    with pytest.raises(
        ModelError, match="^a module needs example inputs to be traced; pass a tuple or a mapping of tensors$"
    ):
        TorchHost.trace(Mlp())


def test_edits_of_another_model() -> None:
    host = TorchHost.trace(Mlp(), (X,))
    with pytest.raises(PlanError, match="^the model has no stored tensor 'other'; the plan belongs to another model$"):
        host.edited(Edits(slices={"other": {0: np.arange(2)}}))
    with pytest.raises(PlanError, match="^the model has no node 'other'; the plan belongs to another model$"):
        host.edited(Edits(sizes=(SizeEdit("other", "size", 0, 2, 1),)))


def test_location_is_the_users_line() -> None:
    (node,) = (node for node in TorchHost.trace(Mlp(), (X,)).graph().nodes if node.op == "aten.relu.default")
    assert node.location.startswith("test_torch_host.py line ")


def test_tables_are_folded_and_sliced() -> None:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            steps = 10000 ** (-torch.arange(0, 8, 2) / 8)
            angles = torch.arange(x.shape[0])[:, None] * steps
            q = self.q(x)
            left, right = q.chunk(2, -1)
            return self.out(
                torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)
            )

    model = Rope()
    unfolded = analyze_graph(TorchHost.trace(model, (X,)).graph())
    assert unfolded.groups == ()
    proof = prove(model, (X,))
    assert [group.size for group in proof.groups] == [4]


def test_fill_keeps_its_free_axes() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(self.a(x) + torch.ones(2, 8))

    proof = prove(Biased(), (X,))
    assert "aten.ones.default" in [node.op for node in proof.pruned.graph().nodes]
    assert [group.size for group in proof.groups] == [8]


def test_example_inputs_at_random_keep_types_and_ranges() -> None:
    class Net(nn.Module):
        def forward(self, ids, mask, x):
            return ids + mask + x.sum()

    host = TorchHost.trace(Net(), (torch.tensor([[5, 9, 7]]), torch.ones(1, 3, dtype=torch.long), X))
    first, second = host.example_inputs(), host.example_inputs(3)
    assert first["ids"].tolist() == [[5, 9, 7]]
    assert 5 <= second["ids"].min() <= second["ids"].max() <= 9
    assert second["mask"].tolist() == [[1, 1, 1]]
    assert second["x"].dtype == np.float32
    assert not np.array_equal(first["x"], second["x"])
    assert np.array_equal(second["x"], host.example_inputs(3)["x"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, (8,)),
        lambda x: F.rms_norm(x, (8,)),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x - x.mean(),
        lambda x: x / x.var(-1, keepdim=True),
        lambda x: x / x.std(-1, keepdim=True),
        lambda x: x / torch.var_mean(x, -1, keepdim=True)[0],
        lambda x: x / torch.std_mean(x, -1, keepdim=True, correction=0)[0],
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: F.group_norm(x, 2),
        lambda x: F.normalize(x),
    ],
)
def test_masked_normalizers(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(function(self.a(x)))

    assert prove(Net(), (X,)).groups


def test_masked_instance_norm() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 4), nn.InstanceNorm1d(2, affine=True)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    proof = prove(Net(), (torch.randn(3, 2, 6),))
    assert [group.exact for group in proof.groups] == [False]


def _masked_norm(net: nn.Module, mask: np.ndarray) -> np.ndarray:
    """The output where the channels that a norm reads are masked."""
    host = TorchHost.trace(net, (X,))
    graph, names = build_graph(host.program, host.tensors)
    (node,) = (node for node in host.program.nodes if "group_norm" in str(node.target))
    (norm,) = (each for each in graph.nodes if "group_norm" in each.op)
    masks = {name: {1: mask} for name in (graph.nodes[0].results[0], names[node.args[0]], norm.results[0])}
    return next(iter(host.run_masked(host.example_inputs(), masks).values()))


MASK = np.array([True] * 3 + [False] + [True] * 2 + [False] * 2)


def test_statistic_without_a_masked_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "aten.native_group_norm.default"
    monkeypatch.setitem(ROWS, name, replace(facts(ROWS[name]), masked=""))
    with pytest.raises(
        ProofError, match=r"^'aten.native_group_norm.default' \(node 'native_group_norm'\) takes a statistic"
    ):
        _masked_norm(_native(), MASK)


def test_a_norm_of_groups_is_masked_under_both_names() -> None:
    """Each counts the kept channels of a group only, as a norm of these alone does."""
    native = _native()
    composite = nn.Sequential(native.a, nn.GroupNorm(2, 8, affine=False), native.b)
    found = _masked_norm(native, MASK)
    np.testing.assert_allclose(found, _masked_norm(composite, MASK), rtol=1e-5, atol=1e-6)
    hidden = native.a(X).detach()
    parts = [hidden[:, :3], hidden[:, 4:6]]
    normed = [(x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt() for x in parts]
    wanted = torch.cat(normed, 1) @ native.b.weight[:, [0, 1, 2, 4, 5]].T + native.b.bias
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


def _native() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.b(torch.ops.aten.native_group_norm(self.a(x), None, None, 2, 8, 1, 2, 1e-5)[0])

    return Net()


def test_bfloat16() -> None:
    host = TorchHost.trace(Mlp().bfloat16(), (X.bfloat16(),))
    assert host.graph().values["up.weight"].dtype == "bfloat16"
    assert host.read("up.weight").dtype == np.float32
    assert host.run(host.example_inputs())["logits"].dtype == np.float32


def test_meta_device() -> None:
    with torch.device("meta"):
        host = TorchHost.trace(Mlp(), (torch.randn(2, 6),)).folded()
    assert [group.size for group in analyze_graph(host.graph()).groups] == [8]
    with pytest.raises(OutputError, match="^a model on the 'meta' device has no weights to write; load them first$"):
        host.save_onnx(Path("never.onnx"))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def test_onnx_file(tmp_path: Path) -> None:
    pruned = prove(Mlp(), {"x": X}, {"x": {0: torch.export.Dim("batch", min=2, max=64)}}).pruned
    path = tmp_path / "model.onnx"
    pruned.save_onnx(path, {"graphprune": "test"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]
    session = _session(path)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_outputs()] == ["logits", "parts.0", "parts.1"]
    assert session.get_modelmeta().custom_metadata_map == {"graphprune": "test"}
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    assert np.allclose(pruned.run({"x": x})["logits"], session.run(["logits"], {"x": x})[0], atol=1e-5)


def test_onnx_file_of_a_broken_model_is_not_written(tmp_path: Path) -> None:
    @torch.library.custom_op("graphprune_tests::opaque", mutates_args=())
    def opaque(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    opaque.register_fake(torch.empty_like)

    class Net(nn.Module):
        def forward(self, x):
            return opaque(x)

    host = TorchHost.trace(Net(), (X,))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="^torch.onnx cannot export the model: "):
        host.save_onnx(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_module_that_onnxruntime_cannot_run_is_pruned_nevertheless() -> None:
    result = gp.prune(Mlp().bfloat16(), (X.bfloat16(),), target="params=0.7", align=1, export=True)
    assert [check.name for check in result.report.proof] == ["masked", "permutation"]
    assert result.module is not None
    assert result.report.notes[-1].startswith(
        "onnxruntime has not checked the ONNX file: onnxruntime cannot load it: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED"
    )
    with pytest.raises(ModelError, match="^onnxruntime cannot load .* NOT_IMPLEMENTED"):
        gp.prune(Mlp().bfloat16(), (X.bfloat16(),), target="params=0.7", align=1, latency=True)


def test_onnx_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.hosts.torch.onnx_export.EXTERNAL_BYTES", 16)
    path = tmp_path / "model.onnx"
    TorchHost.trace(Mlp().eval(), {"x": X}).save_onnx(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert _session(path).run(["logits"], {"x": X.numpy()})[0].shape == (2, 4)
    assert onnx.load(path, load_external_data=False).ir_version <= 10


def _config(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, **more,
    }  # fmt: skip


def test_llama_with_grouped_queries() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_config(num_key_value_heads=2)))
    proof = prove(model, {"input_ids": torch.randint(0, 97, (2, 7))})
    assert sorted(group.kind for group in proof.groups) == [
        "kv-group", "kv-group", "neuron", "neuron", "query-head", "query-head", "rotary-pair", "value-dim", "value-dim", "width",
    ]  # fmt: skip
    assert proof.host.output_names == ("logits",)
    assert model.config.use_cache is True
    assert proof.group("model.rotary_emb.inv_freq[0]").kind == "rotary-pair"


def test_bert() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**_config()))
    ids = torch.randint(0, 97, (2, 7))
    proof = prove(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert {group.kind for group in proof.groups} == {"head", "qk-dim", "value-dim", "neuron"}
    assert proof.host.output_names == ("last_hidden_state", "pooler_output")


def test_an_input_may_be_named_like_a_builtin(tmp_path: Path) -> None:
    """fx renames the argument ``input`` of an ``nn.Sequential``; users and the exported file do not."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    result = gp.prune(model, (torch.randn(2, 6),), target={"macs": 0.5})
    result.save_onnx(tmp_path / "model.onnx")
    assert list(result.host.example_inputs()) == ["input"]
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input] == ["input"]


def test_patches_of_transformers_make_a_model_traceable() -> None:
    module = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", reason="optional")
    pytest.importorskip("transformers.exporters", reason="transformers before 5.23 has none")
    config = module.Qwen2_5_VLVisionConfig(
        depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=8, patch_size=4, window_size=16
    )
    model = module.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    torch.manual_seed(0)
    proof = prove(model, {"hidden_states": torch.randn(32, 96), "grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]])}, n=1)
    assert len(proof.host.example[1]) > 2  # lengths and positions that the forward would compute
    assert {"head", "rotary-pair", "neuron"} <= {group.kind for group in proof.groups}


def test_cut_tensors_have_storages_of_their_own() -> None:
    old = {
        "w": torch.nn.Parameter(torch.randn(6, 5, 4, 3).to(memory_format=torch.channels_last), requires_grad=False),
        "half": torch.randn(8, 4).bfloat16(),
        "t": torch.nn.Parameter(torch.randn(7, 3).t()),
        "n": torch.arange(9),
        "z": torch.nn.Parameter(torch.randn(5, 4, dtype=torch.complex64)),
    }
    rng = np.random.default_rng(0)
    slices = {name: {i: rng.permutation(n)[: n - 1] for i, n in enumerate(t.shape)} for name, t in old.items()}
    new = sliced(old, slices)
    for name, tensor in new.items():
        expected = old[name].detach()
        for axis, index in slices[name].items():
            expected = expected.index_select(axis, torch.from_numpy(index))
        assert torch.equal(expected, tensor)
        assert (type(old[name]), old[name].requires_grad) == (type(tensor), tensor.requires_grad)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert tensor.data_ptr() % 64 == 0

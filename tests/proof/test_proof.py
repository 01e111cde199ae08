"""A proof that cannot look away: planted faults of each kind fail it, right results of the same nets pass it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import graphprune as gp
from graphprune.analysis.groups import analyze_graph
from graphprune.errors import ProofError
from graphprune.hosts.parity import file_parity
from graphprune.hosts.torch.host import TorchHost
from graphprune.passes.slice_groups import slice_edits
from graphprune.passes.verify import verify
from graphprune.proof.compare import TOLERANCES, Rounding, compare, deviation, varies


def f32(*values):
    return np.array(values, np.float32)


# -- comparing ---------------------------------------------------------------------------------------------------------

BOXES, SCORES = np.linspace(100, 640, 40).reshape(10, 4), np.linspace(1e-3, 2e-3, 80).reshape(10, 8)
LARGE = f32(*np.linspace(1, 2, 40)).reshape(5, 8)


@pytest.mark.parametrize(
    ("want", "change", "passes"),
    [
        (np.hstack([BOXES, SCORES]).astype(np.float32), lambda y: y * (1 + 2e-7), True),
        (np.hstack([BOXES, SCORES]).astype(np.float32), lambda y: np.hstack([y[:, :4], y[:, 4:] * 1.001]), False),
        (np.hstack([SCORES, BOXES]).astype(np.float32), lambda y: np.hstack([y[:, :8] * 1.001, y[:, 8:]]), False),
        (np.vstack([BOXES, BOXES * 1e-9]).astype(np.float32), lambda y: np.vstack([y[:10], y[10:] * 1.001]), False),
        (LARGE, lambda y: y + f32(*np.eye(40)[7]).reshape(5, 8) * 1e-3, False),
        (f32(*np.r_[1e-6, np.linspace(1, 2, 40)]), lambda y: y + f32(*np.eye(41)[20]) * 1e-6, True),
        (f32(3, 2, np.inf), lambda y: y, True),
        (f32(3, 2, np.nan), lambda y: y, True),
        (f32(3, 2, np.nan), lambda y: f32(3, 2, 1), False),
        (f32(3, 2, 1), lambda y: f32(3, np.nan, 1), False),
    ],
)
def test_every_part_counts(want, change, passes):
    check = compare("masked", {"y": want}, {"y": change(want).astype(np.float32)})
    assert check.passed == passes, check


def test_noise_that_was_measured_is_accepted_where_it_was():
    want, noise = np.ones((20, 4)), np.zeros((20, 4))
    noise[:, 1] = 1e-3
    rounding = Rounding(1e-10, noise=2)
    there, elsewhere = want.copy(), want.copy()
    there[3, 1] += 1e-3
    elsewhere[3, 2] += 1e-3
    assert deviation(want, there, rounding, noise).excess == pytest.approx(0.5)
    assert deviation(want, elsewhere, rounding, noise).excess > 1e6


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (f32(1, 2, 3), True),
        (f32(1, 1, 1), False),
        (f32(1, 1.00001, 1), False),
        (f32(1e-9, 2e-9, 3e-9), True),
        (f32(np.nan, np.nan), False),
        (np.zeros((0, 3), np.float32), False),
        (f32(0), False),
        (f32(3), True),
        (np.array([1, 1]), False),
        (np.array([1, 2]), True),
    ],
)
def test_what_says_anything(value, says):
    assert varies(value) == says


# -- wrong rules, wherever they hide -------------------------------------------------------------------------------------

flip = torch.library.custom_op(
    "proof::flip", lambda x: x.flip(1).clone(), mutates_args=(), schema="(Tensor x) -> Tensor"
)
flip.register_fake(lambda x: torch.empty_like(x))
gp.ops.register("proof::flip", "n c -> n c")


class Branch(nn.Module):
    """A stream and a branch in which an operator may have a wrong rule, with what may hide it."""

    def __init__(self, place: str, *, wrong: bool) -> None:
        super().__init__()
        self.place, self.wrong = place, wrong
        self.stem, self.up, self.down, self.head = (nn.Linear(*s) for s in ((6, 24), (24, 32), (32, 24), (24, 8)))
        if place.startswith("zero"):
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)
        if place.startswith("scale"):
            self.gamma = nn.Parameter(torch.full((24,), float(place.split()[1])))
        if place == "saturated":
            nn.init.constant_(self.head.bias, 40.0)
        if place == "dead":
            nn.init.constant_(self.head.bias, -40.0)

    def op(self, x: torch.Tensor) -> torch.Tensor:
        return flip(x) if self.wrong else x * 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.up(x).relu()
        if self.place not in ("zero after",):
            y = self.op(y)
        y = self.down(y)
        if self.place == "zero after":
            y = self.op(y)
        if self.place.startswith("scale"):
            y = y * self.gamma
            if self.place.endswith("after"):
                y = self.op(y)
        if self.place == "constant":
            y = y * 1e-12
        y = self.head(x + y)
        match self.place:
            case "saturated":
                return torch.sigmoid(y)
            case "dead":
                return y.relu()
            case "nan":
                return (y - y) / (y - y)
            case "argmax":
                return y.argmax(1)
            case "beside":
                return torch.cat([y, 1e7 * self.stem(x[:, :6])], 1)
        return y


PLACES = (
    "plain", "beside", "scale 1e-5", "scale 1e-8", "scale 1e-12", "scale 1e-12 after", "zero before", "zero after",
    "constant", "saturated", "dead", "nan", "argmax",
)  # fmt: skip
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def pruned(model: nn.Module, x: torch.Tensor = X, **options):
    options = {"target": "params=0.6", "align": 1, "criterion": "random", "latency": False, **options}
    return gp.prune(model, (x,), **options)


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_rule_is_seen_wherever_it_hides(place):
    torch.manual_seed(1)
    with pytest.raises(ProofError, match=r"the proof '(masked|permutation)' failed .* in (value|output)"):
        pruned(Branch(place, wrong=True).eval())


def halved(model: nn.Module, x: torch.Tensor = X):
    host = TorchHost.trace(model.eval(), (x,)).folded()
    analysis = analyze_graph(host.graph())
    kept = {group.factor: np.arange(0, group.size, 2) for group in analysis.groups}
    return host, host.edited(slice_edits(analysis, kept)), analysis, kept


@pytest.mark.parametrize("place", PLACES)
def test_right_rules_pass_there(place):
    torch.manual_seed(1)
    checks = verify(*halved(Branch(place, wrong=False)))
    assert all(check.passed and not check.unproven for check in checks), checks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrong", [True, False])
def test_other_precisions(dtype, wrong):
    for place in ("plain", "scale 1e-5", "zero after", "argmax"):
        torch.manual_seed(1)
        checks = verify(*halved(Branch(place, wrong=wrong).to(dtype), X.to(dtype)))
        assert all(check.passed for check in checks) != wrong, checks


# -- what cannot be seen -------------------------------------------------------------------------------------------------


class Blind(nn.Module):
    """Nothing that any weight does reaches a number that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x * 0) * 0)) * 0


def test_a_proof_that_sees_nothing_fails_unless_that_is_accepted():
    with pytest.raises(ProofError) as error:
        pruned(Blind().eval())
    assert "the proof 'masked' says nothing (pruned = masked original, also in 2 values inside;" in str(error.value)
    assert "--accept-unproven" in str(error.value)
    result = pruned(Blind().eval(), verify="accept-unproven")
    masked = result.report.proof[0]
    assert (masked.passed, masked.unproven) == (True, ("up.weight[0]",))
    assert any(note.startswith("not proven on the example input") for note in result.report.notes)
    assert result.report.to_dict()["proof"][0]["unproven"] == ("up.weight[0]",)


# -- wrong tensors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("up.weight", lambda w: np.roll(w, 1, axis=0)),
        ("up.weight", lambda w: np.concatenate([w[:1] * 1.01, w[1:]])),
        ("up.bias", lambda b: b + np.eye(len(b), dtype=b.dtype)[3] * 1e-6),
        ("down.weight", lambda w: w * 1.01 + 1e-9),
        ("stem.weight", lambda w: np.concatenate([w[1:2], w[1:]])),
    ],
)
@pytest.mark.parametrize("place", ["plain", "scale 1e-12", "zero before", "dead"])
def test_one_wrong_unit_is_seen(tensor, change, place):
    torch.manual_seed(2)
    host, smaller, analysis, kept = halved(Branch(place, wrong=False))
    wrong = smaller.replaced({tensor: change(smaller.read(tensor))})
    assert not verify(host, wrong, analysis, kept)[0].passed


# -- files ---------------------------------------------------------------------------------------------------------------


def edited_files(path: Path, change):
    """For every matrix of a file its name and a file with a fault in it."""
    model = onnx.load(path)
    names = [t.name for t in model.graph.initializer if len(t.dims) > 1 and t.data_type in (1, 10)]
    for name in names:
        again = onnx.ModelProto()
        again.CopyFrom(model)
        tensor = next(t for t in again.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
        target = path.with_name("wrong.onnx")
        onnx.save(again, target)
        yield name, target


def one_unit(w):
    w = w.copy()
    w[0] = w[1]
    return w


@pytest.mark.parametrize("change", [one_unit, lambda w: (w * 1.01).astype(w.dtype)], ids=["unit", "scale"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_faults_of_a_file_are_seen(tmp_path, dtype, change):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    host = TorchHost.trace(model.eval().to(dtype), (X.to(dtype),)).folded()
    path = tmp_path / "model.onnx"
    host.save_onnx(path)
    inputs = host.example_inputs()
    assert file_parity(host, path, inputs).passed
    seen = [name for name, wrong in edited_files(path, change) if not file_parity(host, wrong, inputs).passed]
    assert len(seen) == 3


def test_half_precision_is_not_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes)).eval().half()
    ids = {"input_ids": torch.randint(3, 64, (1, 8))}
    result = gp.prune(model, ids, target="params=0.6", allocation="uniform", export=True)
    passed = [check.name for check in result.report.proof if check.passed]
    assert passed[:3] == ["masked", "permutation", "onnxruntime"]


def test_tolerances_by_precision():
    assert TOLERANCES == {2: 2e-2, 4: 1e-5, 8: 1e-10}
    check = compare("masked", {"y": f32(1, 2)}, {"y": f32(1, 2)})
    assert (check.passed, replace(check, informative=False).passed) == (True, False)


# -- quantised files -----------------------------------------------------------------------------------------------------


def quantised() -> onnx.ModelProto:
    """Convolutions between quantised values, with biases in floating point, which onnxruntime quantises itself."""
    rng, nodes, stored = np.random.default_rng(0), [], {"s": np.float32(0.05), "z": np.uint8(128)}

    def add(op, inputs, output, **attributes):
        nodes.append(onnx.helper.make_node(op, inputs, [output], output, **attributes))

    def conv(x, name, o, i, k, out):
        w = (rng.standard_normal((o, i, k, k)) / np.sqrt(i * k * k)).astype(np.float32)
        stored.update({name: w, f"{name}_s": (np.abs(w).reshape(o, -1).max(1) / 127).astype(np.float32)})
        stored.update(
            {f"{name}_z": np.zeros(o, np.int8), f"{name}_b": (rng.standard_normal(o) * 0.1).astype(np.float32)}
        )
        add("QuantizeLinear", [x, "s", "z"], f"{x}_q")
        add("DequantizeLinear", [f"{x}_q", "s", "z"], f"{x}_d")
        add("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], f"{name}_q", axis=0)
        add("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], f"{name}_d", axis=0)
        add("Conv", [f"{x}_d", f"{name}_d", f"{name}_b"], out)

    conv("x", "w1", 32, 3, 3, "c1")
    add("Relu", ["c1"], "r1")
    conv("r1", "w2", 48, 32, 3, "c2")
    add("Relu", ["c2"], "r2")
    conv("r2", "w3", 5, 48, 1, "y")
    graph = onnx.helper.make_graph(
        nodes, "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 16, 16])], [onnx.helper.make_tensor_value_info("y", 1, [1, 5, 12, 12])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_what_the_runtime_moves_of_the_original_is_no_fault_of_a_quantised_file(tmp_path):
    result = gp.prune(quantised(), target={"macs": 0.5})
    check = result.report.proof[-1]
    assert (check.name, check.passed, check.difference) == ("onnxruntime", True, 0.0)
    path = tmp_path / "model.onnx"
    result.save_onnx(path)
    inputs = result.host.example_inputs()
    for change in (one_unit, lambda w: (w * 1.01).astype(w.dtype)):
        wrong = [name for name, file in edited_files(path, change) if not file_parity(result.host, file, inputs).passed]
        assert len(wrong) == 3

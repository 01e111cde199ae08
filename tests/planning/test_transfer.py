"""A module and its exports have the same groups, and a plan of the module applies to its file."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from test_cli import error_of, run
from torch import nn

import graphprune as gp
from graphprune.errors import OptionError, PlanError
from graphprune.hosts.torch.trace import quiet
from graphprune.planning.plan import GroupPlan
from graphprune.planning.transfer import METADATA, Origin, read_origins, write_origins
from graphprune.proof.compare import compare
from graphprune.report.data import inspect_analysis

transformers = pytest.importorskip("transformers")


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.an = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.b, self.bn = nn.Conv2d(24, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c, self.d = nn.Conv2d(16, 32, 3, 2, 1, groups=4), nn.Conv2d(16, 32, 1, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.n(self.stem(x)))
        x = F.relu(self.bn(self.b(F.relu(self.an(self.a(x))))) + x)
        return self.head(F.relu(self.c(x) + self.d(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.g = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(4, 16)
        self.up, self.c, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.silu(self.a(x))
        return self.out(F.silu(self.c(torch.cat([self.up(F.silu(self.g(self.b(a)))), a], 1))))


class Lstm(nn.Module):
    def __init__(self, n: int = 1) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(5, 6), nn.Linear(16, 3)
        self.lstm = nn.LSTM(6, 8, num_layers=n, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.o(self.lstm(self.i(x))[0])


class First(nn.Module):
    """What a transformers model returns first, so that both exporters take it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, return_dict=False)[0]


IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


def nets() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, use_cache=False, **SIZES))
    found = {
        "resnet": (ResNet(), (IMAGE,)),
        "llama": (First(llama), (IDS,)),
        "lstm": (Lstm(), (torch.randn(2, 7, 5),)),
        "unet": (UNet(), (IMAGE,)),
    }
    return {name: (model.eval(), example) for name, (model, example) in found.items()}


NETS = nets()


class Exports:
    """The nets' files, each exported when it is first asked for: ``resnet.onnx`` by graphprune, ``resnet-script.onnx``
    by the older exporter of torch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, file: str) -> Path:
        path = self.folder / file
        if not path.exists():
            model, example = NETS[file.removesuffix(".onnx").removesuffix("-script")]
            if file.endswith("-script.onnx"):
                with quiet(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.onnx.export(model, example, str(path), dynamo=False)
            else:
                gp.export_onnx(model, example, path)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def summary(analysis: gp.Analysis) -> list[tuple[Any, ...]]:
    """Kind, units and share of the MACs of every group and block, sorted, and roughly that of the parameters.

    The share of the parameters differs a little: exporters fold batch norms, and a file does not tell a buffer from a
    weight.
    """
    inspection = inspect_analysis(analysis)
    rows = [(row["kind"], row["units"], row["macs_share"], row["params_share"]) for row in inspection.groups]
    rows += [(row["kind"], 1, row["macs_share"], row["params_share"]) for row in inspection.blocks]
    return [
        (kind, units, pytest.approx(macs, abs=1e-9), pytest.approx(params, abs=0.03))
        for kind, units, macs, params in sorted(rows)
    ]


@pytest.mark.parametrize("file", [*NETS, "resnet-script", "lstm-script", "unet-script"])
def test_a_module_and_its_exports_have_the_same_groups(files: Exports, file: str) -> None:
    model, example = NETS[file.removesuffix("-script")]
    expected, found = gp.analyze(model, example), gp.analyze(files / f"{file}.onnx")
    plain = [
        tuple(value.expected if hasattr(value, "expected") else value for value in row) for row in summary(expected)
    ]
    assert summary(found) == plain


@pytest.mark.parametrize("name", NETS)
def test_a_plan_of_the_module_applies_to_its_file(files: Exports, name: str) -> None:
    model, example = NETS[name]
    blocks = None if name in ("lstm", "unet") else 1
    result = gp.prune(model, example, target={"macs": 0.6}, align=1, blocks=blocks, verify=False)
    applied = gp.apply(files / f"{name}.onnx", gp.PruningPlan.from_dict(result.plan.to_dict()))  # proven
    inputs = dict(zip(applied.host.example_inputs(), result.host.example_inputs().values(), strict=True))
    check = compare("", result.host.run(result.host.example_inputs()), applied.host.run(inputs), tolerance=1e-4)
    assert check.passed, check
    assert applied.report.cost("macs").fraction == pytest.approx(result.report.cost("macs").fraction, abs=1e-9)
    assert len(applied.plan.groups) == len(result.plan.groups)
    assert sorted(g.kept for g in applied.plan.groups) == sorted(g.kept for g in result.plan.groups)
    assert applied.plan.made_on == "onnx"
    again = gp.apply(files / f"{name}.onnx", applied.plan, verify=False)  # it is a plan of the file now
    assert again.plan == applied.plan


def test_a_plan_applies_to_a_foreign_export_where_names_are_kept(files: Exports) -> None:
    model, example = NETS["unet"]
    result = gp.prune(model, example, target={"macs": 0.6}, align=1, verify=False)
    applied = gp.apply(files / "unet-script.onnx", result.plan, verify=False)
    inputs = dict(zip(applied.host.example_inputs(), result.host.example_inputs().values(), strict=True))
    assert compare("", result.host.run(result.host.example_inputs()), applied.host.run(inputs), tolerance=1e-4).passed


@cache
def planned(name: str) -> gp.PruningPlan:
    """A plan of a net that keeps 60 % of the MACs."""
    return gp.prune(*NETS[name], target={"macs": 0.6}, align=1, verify=False).plan


def rejection(path: Path, plan: gp.PruningPlan) -> str:
    with pytest.raises(PlanError) as caught:
        gp.apply(path, plan, verify=False)
    return str(caught.value)


def test_wrong_plans_are_refused(files: Exports, tmp_path: Path) -> None:
    plan = planned("resnet")
    other = planned("unet")
    source, origins = read_origins(_metadata(files / "resnet.onnx"))
    assert source == plan.fingerprint
    assert rejection(files / "resnet.onnx", other) == (
        f"the plan belongs to another model: its fingerprint is '{other.fingerprint}', the file was exported from a module "
        f"with fingerprint '{source}'; make a plan on that module"
    )
    assert rejection(files / "lstm-script.onnx", plan) == (
        "the plan belongs to another model: it was made on a module, and the file has no tensor 'stem.weight' of shape "
        "[16, 3, 3, 3] or any other that it cuts; export the module with 'graphprune export'"
    )
    first = gp.apply(files / "resnet.onnx", plan, verify=False)
    first.save_onnx(tmp_path / "pruned.onnx")
    assert re.fullmatch(
        r"tensor '.*' of the file has shape \[.*\], which does not fit '.*' of shape \[.*\] in the plan; apply the plan to the "
        "file of the unpruned module",
        rejection(tmp_path / "pruned.onnx", plan),
    )
    _rewrite(
        files / "resnet.onnx",
        tmp_path / "few.onnx",
        write_origins(source, {"head.weight": Origin("head.weight", (0, 1))}),
    )
    assert re.fullmatch(
        r"no tensor of group '.*' of the file \(\d+ units\) is known by its name in the plan; export the module with "
        "'graphprune export', or make a plan on the file itself",
        rejection(tmp_path / "few.onnx", plan),
    )
    swapped = {**origins, "an": origins["a.weight"]}
    swapped["b.weight"] = replace(origins["b.weight"], axes=(1, 0, 2, 3))
    _rewrite(files / "resnet.onnx", tmp_path / "swapped.onnx", write_origins(source, swapped))
    assert "does not fit 'b.weight'" in rejection(tmp_path / "swapped.onnx", plan)
    _rewrite(files / "resnet.onnx", tmp_path / "broken.onnx", "{}")
    assert rejection(tmp_path / "broken.onnx", plan) == (
        f"the metadata '{METADATA}' of the file is malformed: 'tensors'; export the file anew"
    )
    onnx_plan = replace(plan, made_on="onnx")
    assert rejection(files / "resnet.onnx", onnx_plan).startswith(
        "the plan belongs to another model: its fingerprint is "
    )


def test_axes_that_are_coupled_in_another_way_are_refused(files: Exports) -> None:
    """The module has changed since the export: its fingerprint is the file's by force."""
    plan = planned("resnet")
    parameters = {name: dict(axes) for name, axes in plan.parameters.items()}
    del parameters["b.weight"]
    assert rejection(files / "resnet.onnx", replace(plan, parameters=parameters)) == (
        "what the plan keeps of 'b.weight' cannot be kept of 'b.weight' in the file, whose axes are coupled in another "
        "way; make a plan on the file itself"
    )
    extra = GroupPlan("more", "channel", 5, (0, 1))
    assert rejection(files / "resnet.onnx", replace(plan, groups=(*plan.groups, extra))) == (
        f"group '{extra.name}' of the plan ({extra.size} units) cannot be found in the file: none of its tensors kept its name; "
        "export the module with 'graphprune export', which writes the names into the file"
    )


def test_a_block_that_the_file_does_not_have(files: Exports) -> None:
    plan = gp.prune(*NETS["resnet"], blocks=1, verify=False).plan
    lost = replace(plan, blocks=(replace(plan.blocks[0], tensors=("head.weight",)),))
    assert rejection(files / "resnet.onnx", lost) == (
        f"block '{plan.blocks[0].name}' of the plan cannot be found in the file by the names of its tensors; make a plan on "
        "the file itself"
    )


def test_attributes_count_for_the_fingerprint() -> None:
    """Another stride gives other sizes of results, but the same weights and operators."""

    class Net(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.slope = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1), slope

        def forward(self, x):
            return self.b(F.leaky_relu(self.a(x), self.slope))

    plan = gp.prune(Net(0.1).eval(), (IMAGE,), target={"macs": 0.6}, verify=False).plan
    gp.apply(Net(0.1).eval(), plan, (IMAGE[:1, :, :8, :8],), verify=False)  # not the sizes of the example
    with pytest.raises(PlanError) as caught:
        gp.apply(Net(0.2).eval(), plan, (IMAGE,), verify=False)
    assert str(caught.value).startswith("the plan belongs to another model: its fingerprint is ")


def test_export_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))\n"
        "    return model.eval(), (torch.randn(2, 8),)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path, plan = tmp_path / "model.onnx", tmp_path / "plan.json"
    run("export", "zoo:build", "-o", path)
    run("prune", "zoo:build", "-o", tmp_path / "a.onnx", "--target", "macs=0.5", "--plan-out", plan, "--no-latency")
    run("apply", path, "--plan", plan, "-o", tmp_path / "b.onnx", "--no-latency")
    run("verify", path, tmp_path / "a.onnx", "--plan", plan)
    a, b = ([t.dims for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer] for name in "ab")
    assert sorted(map(tuple, a)) == sorted(map(tuple, b))
    assert json.loads(plan.read_text())["made_on"] == "torch"
    assert error_of("export", path, "-o", tmp_path / "c.onnx") == (
        "the model is an ONNX file already; export takes a PyTorch model"
    )
    with pytest.raises(OptionError):
        gp.export_onnx(path, None, tmp_path / "c.onnx")


def test_values_that_several_tensors_share_say_nothing(tmp_path: Path) -> None:
    """Equal biases of two layers are one initializer of the file; it tells of neither."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
            with torch.no_grad():
                for layer in self.layers:
                    layer.bias.fill_(0.5)

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    model, x = Net().eval(), torch.randn(2, 8)
    gp.export_onnx(model, (x,), tmp_path / "m.onnx")
    _, origins = read_origins(_metadata(tmp_path / "m.onnx"))
    assert {"layers.0.weight", "layers.1.weight", "layers.2.weight"} <= {origin.name for origin in origins.values()}
    result = gp.prune(model, (x,), target={"macs": 0.6}, align=1, verify=False)
    applied = gp.apply(tmp_path / "m.onnx", result.plan, verify=False)
    got = next(iter(applied.host.run({"x": x.numpy()}).values()))
    assert np.allclose(result.module(x).detach().numpy(), got, atol=1e-6)


def _metadata(path: Path) -> str:
    return next(entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA)


def _rewrite(path: Path, to: Path, text: str) -> None:
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == METADATA).value = text
    onnx.save(model, to)

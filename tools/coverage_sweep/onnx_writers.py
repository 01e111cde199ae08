"""What writes ONNX files: both exporters of PyTorch, and what onnxruntime makes of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tools.coverage_sweep.onnx_nets import torch_models


def export(name: str, exporter: str, sizes: str, path: Path) -> list[np.ndarray]:
    """Writes what a PyTorch exporter makes of a model; returns the example inputs."""
    import torch

    class Positional(torch.nn.Module):
        """Takes its inputs in order, which is all that the older exporter can do."""

        def __init__(self, net, names):
            super().__init__()
            self.net, self.names = net, names

        def forward(self, *values):
            out = self.net(**dict(zip(self.names, values, strict=True)))
            return out if isinstance(out, torch.Tensor) else out.to_tuple()

    torch.manual_seed(0)
    net, inputs, dynamic = torch_models()[name]()
    net = net.eval()
    if exporter == "script" and "input_ids" in inputs and "attention_mask" not in inputs:
        # without a mask transformers looks for packed sequences, with an operator that this exporter does not know
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        dynamic["attention_mask"] = dynamic["input_ids"]
    values = tuple(inputs.values())
    single = name in ("mlp", "resnet", "mobilenet", "encoder", "lstm", "gru")
    if exporter == "dynamo":
        options: dict = {"dynamo": True, "verbose": False, "external_data": False}
        if sizes == "dynamic":
            axes = {key: dict.fromkeys(dynamic.get(key, {}), torch.export.Dim.DYNAMIC) for key in inputs}
            options["dynamic_shapes"] = tuple(axes.values()) if single else axes
    else:
        options = {"dynamo": False, "opset_version": 18, "input_names": list(inputs)}
        if sizes == "dynamic":
            options["dynamic_axes"] = dynamic
    if single:
        torch.onnx.export(net, values, str(path), **options)
    elif exporter == "dynamo":
        torch.onnx.export(net, (), str(path), kwargs=inputs, **options)
    else:
        torch.onnx.export(Positional(net, list(inputs)).eval(), values, str(path), **options)
    return [value.numpy() for value in values]


def optimised(source: Path, level: str, path: Path) -> None:
    """Writes what onnxruntime's offline optimisation makes of a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def fused(source: Path, kind: str, path: Path) -> None:
    """Writes what onnxruntime's transformer tool makes of a model."""
    from onnxruntime.transformers import optimizer

    optimizer.optimize_model(str(source), model_type=kind, num_heads=4, hidden_size=32, opt_level=0).save_model_to_file(
        str(path)
    )


def quantised(source: Path, how: str, path: Path) -> None:
    """Writes what onnxruntime's quantisation makes of a model."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    from graphprune.hosts.onnx.host import OnnxHost

    if how == "dynamic":
        q.quantize_dynamic(str(source), str(path), per_channel=True)
        return
    if how.startswith("nbits"):
        quantizer = MatMulNBitsQuantizer(str(source), bits=4, block_size=16, is_symmetric=how == "nbits-symmetric")
        quantizer.process()
        onnx.save(quantizer.model.model, path)
        return
    host = OnnxHost.load(source)

    class Reader(q.CalibrationDataReader):
        def __init__(self):
            self.left = [host.example_inputs(seed) for seed in range(2)]

        def get_next(self):
            return self.left.pop() if self.left else None

    forms = {"qdq": q.QuantFormat.QDQ, "qoperator": q.QuantFormat.QOperator}
    form, _, channels = how.partition("-")
    q.quantize_static(str(source), str(path), Reader(), quant_format=forms[form], per_channel=channels == "channel")


def filled(path: Path) -> onnx.ModelProto:
    """A light model of onnx with random weights in place of those that it computes from their shapes."""
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            shape = constants[node.input[0]]
            array = np.abs(rng.standard_normal(tuple(shape))).astype(np.float32)
            if len(shape) > 1:
                array = (rng.standard_normal(tuple(shape)) * np.prod(shape[1:]) ** -0.5).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model

"""Prunes half of every group of many ONNX files, proves the results, and writes a table.

The files: what both PyTorch exporters make of small models, with static and dynamic sizes; the same after
onnxruntime's offline optimisation; the same quantised by onnxruntime (QDQ, QOperator, dynamic, 4-bit weights); the
light models of the installed onnx (their weights, which they compute, filled with random numbers); and every file
below the folders that are given. Each runs in a process of its own, with limits of memory and time. It resumes: rows
that are in the table's JSON file beside it are not run again. Not a test: it takes half an hour.

    python tools/coverage_onnx.py [--folder DIR ...] [--only TEXT] [--again | --failed] [--seconds 300] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

MEMORY_BYTES = 8 << 30
EXPORTS = Path(tempfile.gettempdir()) / "coverage_onnx"
"""Where exported files stay: the same one is optimised and quantised in several ways."""
LOOKUPS = {"Gather": (0,), "EmbedLayerNormalization": (2, 3, 4)}
"""Operators that look rows up, and the positions of their tables."""
COLUMNS = "loaded", "analysed", "pruned", "proven", "share", "groups", "analysis s", "total s", "barriers"


# -- models to export --------------------------------------------------------------------------------------------


def torch_models() -> dict[str, Callable[[], tuple]]:  # noqa: C901  (a table of small builders)
    """Small models with random weights: name -> builder of (module, inputs by name, dynamic axes by input)."""

    def sequential(*layers, shape, dynamic):
        import torch

        return lambda: (torch.nn.Sequential(*[layer() for layer in layers]), {"x": torch.randn(shape)}, {"x": dynamic})

    def resnet():
        import torch
        from torch import nn

        class Block(nn.Module):
            def __init__(self, i, o, stride):
                super().__init__()
                self.a, self.b = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.Conv2d(o, o, 3, 1, 1, bias=False)
                self.n, self.m = nn.BatchNorm2d(o), nn.BatchNorm2d(o)
                self.down = nn.Conv2d(i, o, 1, stride) if i != o else nn.Identity()

            def forward(self, x):
                return (self.m(self.b(self.n(self.a(x)).relu())) + self.down(x)).relu()

        net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), Block(16, 16, 1),
                            Block(16, 32, 2),
                            Block(32, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))  # fmt: skip
        return net, {"x": torch.randn(2, 3, 32, 32)}, {"x": {0: "batch"}}

    def mobilenet():
        import torch
        from torch import nn

        def unit(i, o, stride):
            return nn.Sequential(nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.Hardswish(),
                                 nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6())  # fmt: skip

        net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), unit(16, 32, 1), unit(32, 32, 2), unit(32, 64, 1),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))  # fmt: skip
        return net, {"x": torch.randn(2, 3, 32, 32)}, {"x": {0: "batch", 2: "height", 3: "width"}}

    def recurrent(kind):
        def build():
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.cell = getattr(nn, kind)(12, 16, num_layers=2, bidirectional=kind == "LSTM", batch_first=True)
                    self.out = nn.Linear(32 if kind == "LSTM" else 16, 7)

                def forward(self, x):
                    return self.out(self.cell(x)[0])

            return Net(), {"x": torch.randn(2, 10, 12)}, {"x": {0: "batch"}}

        return build

    def encoder():
        import torch
        from torch import nn

        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5))
        return net, {"x": torch.randn(2, 12, 32)}, {"x": {0: "batch", 1: "length"}}

    def language(name, model, **config):
        def build():
            import torch
            import transformers

            settings = transformers.AutoConfig.for_model(name, **config)
            settings.use_cache = False
            net = getattr(transformers, model)._from_config(settings, attn_implementation="eager")
            ids = torch.randint(3, 60, (2, 16))
            inputs, dynamic = {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}}
            if settings.is_encoder_decoder:
                inputs["decoder_input_ids"] = torch.randint(3, 60, (2, 16))
                dynamic["decoder_input_ids"] = {0: "batch", 1: "length"}
            elif name in ("bert", "distilbert", "roberta"):
                inputs["attention_mask"] = torch.ones(2, 16, dtype=torch.long)
                dynamic["attention_mask"] = {0: "batch", 1: "length"}
            return net, inputs, dynamic

        return build

    def image(name, model, **config):
        def build():
            import torch
            import transformers

            settings = transformers.AutoConfig.for_model(name, **config)
            net = getattr(transformers, model)._from_config(settings)
            size = getattr(settings, "image_size", 64)
            return net, {"pixel_values": torch.randn(2, 3, size, size)}, {"pixel_values": {0: "batch"}}

        return build

    def whisper():
        import torch
        import transformers

        settings = transformers.WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, num_mel_bins=16, max_source_positions=20,
            max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        settings.use_cache = False
        net = transformers.WhisperModel._from_config(settings, attn_implementation="eager")
        inputs = {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": torch.randint(3, 60, (2, 8))}
        return net, inputs, {"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch"}}

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {**small, "intermediate_size": 64, "max_position_embeddings": 64}
    eyes = {**small, "num_hidden_layers": 4, "intermediate_size": 128, "image_size": 32, "patch_size": 4}
    eyes.pop("vocab_size")
    from torch import nn

    return {
        "mlp": sequential(lambda: nn.Linear(12, 32), nn.GELU, lambda: nn.Linear(32, 6), shape=(2, 12),
                          dynamic={0: "batch"}),
        "resnet": resnet,
        "mobilenet": mobilenet,
        "lstm": recurrent("LSTM"),
        "gru": recurrent("GRU"),
        "encoder": encoder,
        "bert": language("bert", "BertModel", **heads),
        "distilbert": language("distilbert", "DistilBertModel", vocab_size=100, dim=32, n_layers=2, n_heads=4,
                               hidden_dim=64, max_position_embeddings=64),
        "gpt2": language("gpt2", "GPT2Model", vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                         bos_token_id=1, eos_token_id=2),
        "llama": language("llama", "LlamaForCausalLM", **heads, num_key_value_heads=2),
        "qwen2": language("qwen2", "Qwen2ForCausalLM", **heads, num_key_value_heads=2),
        "gemma": language("gemma", "GemmaForCausalLM", **heads, num_key_value_heads=1, head_dim=8),
        "phi3": language("phi3", "Phi3ForCausalLM", **heads, num_key_value_heads=2, pad_token_id=0),
        "opt": language("opt", "OPTModel", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32),
        "gpt-neox": language("gpt_neox", "GPTNeoXModel", **heads),
        "t5": language("t5", "T5Model", vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        "bart": language("bart", "BartModel", vocab_size=100, d_model=32, encoder_layers=2, decoder_layers=2,
                         encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
                         max_position_embeddings=64),
        "whisper": whisper,
        "vit": image("vit", "ViTModel", **eyes),
        "convnext": image("convnext", "ConvNextModel", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]),
        "swin": image("swin", "SwinModel", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
                      window_size=4),
    }  # fmt: skip


RATE = np.array(16000, np.int64)
FITTING: dict[str, tuple] = {
    "silero_vad_16k_op15": ((1, 576), (2, 1, 128), RATE),
    "silero_vad_16k_sequence": (),
    "silero_vad_openvino": (),
    "silero_vad_half": ((1, 576), (2, 1, 128)),
    "silero_vad_op18_ifless": ((1, 576), RATE, (2, 1, 128)),
    "silero_vad": ((1, 576), (2, 1, 128), RATE),
}
"""Shapes (or values) of the inputs of real files, where random ones of any size do not fit; by part of the name."""

TORCH = [
    "mlp",
    "resnet",
    "mobilenet",
    "lstm",
    "gru",
    "encoder",
    "bert",
    "distilbert",
    "gpt2",
    "llama",
    "qwen2",
    "gemma",
    "phi3",
    "opt",
    "gpt-neox",
    "t5",
    "bart",
    "whisper",
    "vit",
    "convnext",
    "swin",
]
OPTIMISED = "mobilenet", "resnet", "lstm", "encoder", "bert", "gpt2", "llama", "t5", "whisper", "vit"
QUANTISED = "mlp", "resnet", "mobilenet", "lstm", "encoder", "bert", "llama", "vit"


HOW = "qdq", "qdq-channel", "qoperator", "qoperator-channel", "nbits-symmetric", "dynamic", "nbits"


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


# -- one file ----------------------------------------------------------------------------------------------------


def made(case: str, folders: list[Path], work: Path):
    """The model of a case (a path, or a message in memory), and example inputs in order."""
    kind, _, rest = case.partition(":")
    if kind == "file":
        path = next(path for folder in folders for path in files(folder) if title(path) == rest)
        shapes = next((shapes for text, shapes in FITTING.items() if text in rest), ())
        rng = np.random.default_rng(0)
        return path, [one if isinstance(one, np.ndarray) else rng.standard_normal(one, np.float32) for one in shapes]
    if kind == "light":
        return filled(light() / f"{rest}.onnx"), []
    name, exporter, sizes, *stages = rest.split("/")
    path = EXPORTS / f"{name}-{exporter}-{sizes}.onnx"
    arrays = path.with_suffix(".npz")
    if not arrays.exists():
        EXPORTS.mkdir(exist_ok=True)
        np.savez(arrays.with_suffix(".new.npz"), *export(name, exporter, sizes, path))
        arrays.with_suffix(".new.npz").rename(arrays)
    example = list(np.load(arrays).values())
    for stage in stages:
        what, _, how = stage.partition("=")
        new = work / f"{what}.onnx"
        {"ort": optimised, "fuse": fused, "quant": quantised}[what](path, how, new)
        path = new
    return path, example


def prune_half(model, example: list[np.ndarray] | dict[str, np.ndarray], row: dict) -> None:
    """Fills a row of the table, as far as it gets.

    Args:
        model: A path or a message.
        example: Values of the inputs, in order or by name (exporters drop inputs that are not used); empty for any.
        row: What was reached.
    """
    from graphprune.analysis.groups import analyze_graph
    from graphprune.hosts.onnx.host import OnnxHost
    from graphprune.passes.slice_groups import slice_edits
    from graphprune.passes.verify import verify
    from graphprune.planning.blockers import list_blockers

    names = [value.name for value in OnnxHost.load(model).proto.graph.input] if example else []
    if not isinstance(example, dict):
        example = dict(zip(names, example, strict=True))
    given = {name: example[name] for name in names}
    host = OnnxHost.load(model, given=given).folded().without_dead_nodes()
    row["loaded"] = "yes"
    graph = host.graph()
    begin = time.perf_counter()
    analysis = analyze_graph(graph)
    row["analysis s"] = round(time.perf_counter() - begin, 3)
    row["analysed"] = "yes"
    tables = embeddings(graph)
    weights = {v.name: v.n_elements for v in graph.stored if v.kind == "parameter" and v.name not in tables}
    inside = {site.tensor for group in analysis.groups for site in group.sites}
    row["share"] = round(sum(n for name, n in weights.items() if name in inside) / max(1, sum(weights.values())), 3)
    row["groups"] = len(analysis.groups)
    barriers = Counter(node.reason for node in graph.nodes if node.rule is None)
    row["barriers"] = "; ".join(f"{n}x {reason}" for reason, n in barriers.most_common(3))
    row["blockers"] = [f"{blocker.share:.1%} {blocker.reason}" for blocker in list_blockers(analysis)[:4]]
    rng = np.random.default_rng(0)
    kept = {
        group.factor: np.sort(rng.choice(group.size, group.at_least(group.size // 2), replace=False))
        for group in analysis.groups
    }
    pruned = host.edited(slice_edits(analysis, kept)).without_dead_nodes()
    row["pruned"] = "yes"
    checks = verify(host, pruned, analysis, kept)
    row["checks"] = {check.name: [check.difference, check.note] for check in checks}
    row["proven"] = "yes" if all(check.passed for check in checks) else "NO"
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_onnx(Path(folder) / "pruned.onnx")
        again = OnnxHost.load(Path(folder) / "pruned.onnx").run(host.example_inputs())
    row["saved"] = all(
        np.allclose(again[name], array, 1e-5, 1e-6 * float(np.abs(array).max(initial=0)), equal_nan=True)
        for name, array in pruned.run(host.example_inputs()).items()
    )


def embeddings(graph) -> set[str]:
    """Tables in which rows are looked up: the share of what can be pruned is one of the other parameters."""
    made = {result: node for node in graph.nodes for result in node.results}
    found = set()
    for node in graph.nodes:
        for position in LOOKUPS.get(node.op, ()):
            name = node.operands[position]
            if name in made and made[name].op == "DequantizeLinear":
                name = made[name].operands[0]
            if name in graph.values and graph.values[name].stored and len(graph.values[name].shape) == 2:
                found.add(name)
    return found


def run_one(case: str, folders: list[Path]) -> None:
    """Prints the row of one case as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    row: dict = {}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        try:
            model = made(case, folders, Path(work))
        except Exception as error:  # noqa: BLE001  (whatever the exporter or the quantiser raises)
            row["made"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        else:
            begin = time.perf_counter()
            try:
                prune_half(*model, row)
            except Exception as error:  # noqa: BLE001  (the row says what and where)
                step = next((name for name in COLUMNS[:4] if name not in row), "saved")
                row[step] = "NO"
                row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    row["total s"] = round(time.perf_counter() - begin, 1)
    print("ROW " + json.dumps(row))


# -- all files ---------------------------------------------------------------------------------------------------


def light() -> Path:
    """Where the installed onnx keeps its light models."""
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def files(folder: Path) -> list[Path]:
    """The ONNX files below a folder."""
    return sorted(folder.rglob("*.onnx"))


def title(path: Path) -> str:
    """A file's name, for the table."""
    return path.stem


def cases(folders: list[Path]) -> Iterator[str]:
    """All cases, by name."""
    yield from (f"light:{path.stem}" for path in files(light()))
    yield from (f"file:{title(path)}" for folder in folders for path in files(folder))
    for name in TORCH:
        for exporter in ("dynamo", "script"):
            for sizes in ("static", "dynamic"):
                yield f"torch:{name}/{exporter}/{sizes}"
    for name in OPTIMISED:
        yield f"torch:{name}/script/dynamic/ort=extended"
        yield f"torch:{name}/dynamo/static/ort=basic"
    for name, kind in (("bert", "bert"), ("gpt2", "gpt2"), ("llama", "gpt2"), ("vit", "vit"), ("t5", "bert")):
        for exporter in ("dynamo", "script"):
            yield f"torch:{name}/{exporter}/static/fuse={kind}"
    for name in QUANTISED:
        for how in HOW if name in ("resnet", "bert", "llama") else HOW[1::2]:
            yield f"torch:{name}/dynamo/static/quant={how}"
    for name in ("resnet", "mobilenet", "bert"):
        yield f"torch:{name}/dynamo/static/quant=qdq/ort=extended"
        yield f"torch:{name}/dynamo/static/quant=dynamic/ort=extended"


def measured(case: str, folders: list[Path], seconds: int) -> dict:
    """The row of a case, from a process of its own."""
    command = [sys.executable, __file__, "--one", case, *(part for folder in folders for part in ("--folder", folder))]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {seconds} s"}
    found = re.findall(r"^ROW (.*)$", done.stdout, re.MULTILINE)
    if found:
        return dict(json.loads(found[-1]))
    return {"error": f"died with status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1][:200]}"}


def table(rows: dict[str, dict]) -> str:
    """The rows as text."""
    lines = [f"{'case':58}" + "".join(f"{name:>11}" for name in COLUMNS[:-1]) + "  barriers, or what went wrong"]
    for case, row in rows.items():
        if "made" in row:
            lines.append(f"{case:58}  not made: {row['made']}")
            continue
        cells = "".join(f"{row.get(name, '-')!s:>11}" for name in COLUMNS[:-1])
        lines.append(f"{case:58}{cells}  {row.get('error') or row.get('barriers', '')}".rstrip())
    made_rows = [row for row in rows.values() if "made" not in row]
    counts = {name: sum(row.get(name) == "yes" for row in made_rows) for name in COLUMNS[:4]}
    whole = sum(row.get("share", 0) >= 0.8 for row in made_rows)
    lines.append(
        f"\n{len(rows)} cases, {len(made_rows)} made; "
        + ", ".join(f"{name} {n}" for name, n in counts.items())
        + f"; {whole} with at least 80 % of the parameters in groups,\nembeddings apart"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, action="append", default=[])
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--again", action="store_true", help="run cases that are in the table already")
    parser.add_argument("--failed", action="store_true", help="run again what is not proven")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "coverage_onnx.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".txt"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.folder)
        return
    rows: dict[str, dict] = json.loads(options.state.read_text()) if options.state.exists() else {}
    for case in cases(options.folder):
        known = rows.get(case)
        stale = known is None or options.again or (options.failed and known.get("proven") != "yes")
        if options.only in case and stale:
            rows[case] = measured(case, options.folder, options.seconds)
            row = rows[case]
            print(f"{case:58} {row.get('proven', '-'):4} {row.get('share', '-')} {row.get('total s', '-')} s "
                  f"{row.get('made') or row.get('error') or row.get('barriers', '')}", flush=True)  # fmt: skip
            options.state.write_text(json.dumps(rows, indent=1) + "\n")
    rows = {case: rows[case] for case in cases(options.folder) if case in rows}
    options.out.write_text(table(rows))


if __name__ == "__main__":
    main()

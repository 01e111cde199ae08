"""Whether a pruned file is as fast as a model of the same widths that was built from scratch and exported.

Each model is pruned uniformly, so that its class can be instantiated at the pruned widths; both are exported by the
same exporter and run interleaved in onnxruntime. The ratio is pruned / scratch, median over rounds; 1 is perfect.

    python tools/bench_latency.py [--rounds 5] [--seconds 2] [--json bench_latency.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers as hf

import graphprune as gp
from graphprune.hosts.torch.host import TorchHost
from graphprune.runtime import sessions as runtime


def resnet50():
    """Half of all channels: the class at half of its widths."""
    image = {"pixel_values": torch.randn(1, 3, 224, 224)}
    whole = hf.ResNetConfig()
    half = hf.ResNetConfig(embedding_size=32, hidden_sizes=[n // 2 for n in whole.hidden_sizes])
    return hf.ResNetForImageClassification(whole), hf.ResNetForImageClassification(half), image, ("channel",)


def bert_base():
    """Half of all FFN neurons: the class at half of its intermediate size."""
    tokens = {"input_ids": torch.randint(0, 1000, (1, 64))}
    whole, half = hf.BertConfig(num_hidden_layers=4), hf.BertConfig(num_hidden_layers=4, intermediate_size=1536)
    return (
        hf.BertForSequenceClassification(whole),
        hf.BertForSequenceClassification(half),
        tokens,
        ("*.intermediate.dense.weight[0]",),
    )


def llama():
    """Half of all FFN neurons of a grouped-query decoder."""
    tokens = {"input_ids": torch.randint(0, 1000, (1, 64))}
    shape = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
             "vocab_size": 4000, "use_cache": False}  # fmt: skip
    whole, half = (hf.LlamaConfig(**shape, intermediate_size=n) for n in (1408, 704))
    return hf.LlamaForCausalLM(whole), hf.LlamaForCausalLM(half), tokens, ("*.mlp.up_proj.weight[0]",)


MODELS = {"resnet50": resnet50, "bert-4-layers": bert_base, "llama-4-layers": llama}


def prune_like(model, scratch, inputs, only, path: Path):
    """Prunes every group of the kinds to half and checks that the widths are those of the scratch model."""
    target = sum(p.numel() for p in scratch.parameters())
    result = gp.prune(
        model, inputs, target={"params": float(target)}, allocation="uniform", only=only, align=1, verify=False
    )
    left = result.report.cost("params").after
    if left != target:
        raise SystemExit(f"pruned to {left:,.0f} parameters instead of {target:,}: the widths differ")
    result.save_onnx(path)


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = {}
    print(f"{'model':16}{'whole, ms':>12}{'pruned, ms':>12}{'scratch, ms':>12}{'pruned/scratch':>16}")
    for name, build in MODELS.items():
        model, scratch, inputs, only = build()
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{which}.onnx" for which in ("whole", "pruned", "scratch")]
            host = TorchHost.trace(model.eval(), inputs)
            host.save_onnx(paths[0])
            prune_like(model, scratch.eval(), inputs, only, paths[1])
            TorchHost.trace(scratch, inputs).save_onnx(paths[2])
            feed = host.example_inputs()
            rounds = []
            for _ in range(options.rounds):
                (latency,) = runtime.measure(paths, [feed] * 3, threads=(1,), seconds=options.seconds, most_runs=1000)
                rounds.append(latency.milliseconds)
        ratio = statistics.median(pruned / other for _, pruned, other in rounds)
        times = [statistics.median(column) for column in zip(*rounds, strict=True)]
        rows[name] = {"whole_ms": times[0], "pruned_ms": times[1], "scratch_ms": times[2], "ratio": ratio}
        print(f"{name:16}{times[0]:12.2f}{times[1]:12.2f}{times[2]:12.2f}{ratio:16.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

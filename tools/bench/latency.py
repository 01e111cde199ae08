"""Whether a pruned file is as fast as a model of the same widths that was built from scratch and exported.

Each model is pruned uniformly, so that its class can be instantiated at the pruned widths; both are exported by the
same exporter and run interleaved in onnxruntime. The ratio is pruned / scratch, median over rounds; 1 is perfect.

    python -m tools.bench.latency [--rounds 5] [--clocked 2] [--only NAME ...] [--json latency.jsonl]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf

import graphprune as gp
from graphprune.hosts.torch.host import TorchHost
from graphprune.runtime import sessions as runtime
from tools.bench.records import Record
from tools.bench.runner import Sweep, arguments, run


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
        raise AssertionError(f"pruned to {left:,.0f} parameters instead of {target:,}: the widths differ")
    result.save_onnx(path)


def measure(record: Record) -> None:
    """Exports the three files of a model and runs them, interleaved."""
    torch.manual_seed(0)
    model, scratch, inputs, only = MODELS[record["model"]]()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{which}.onnx" for which in ("whole", "pruned", "scratch")]
        host = TorchHost.trace(model.eval(), inputs)
        host.save_onnx(paths[0])
        prune_like(model, scratch.eval(), inputs, only, paths[1])
        TorchHost.trace(scratch, inputs).save_onnx(paths[2])
        feeds = [host.example_inputs()] * len(paths)
        rounds = []
        for _ in range(record["rounds"]):
            (latency,) = runtime.measure(paths, feeds, threads=(1,), seconds=record["clocked"], most_runs=1000)
            rounds.append(latency.milliseconds)
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    record.update(zip(("whole_ms", "pruned_ms", "scratch_ms"), times, strict=True))
    record["ratio"] = statistics.median(pruned / other for _, pruned, other in rounds)


def line(record: Record) -> str:
    """A record as a row of the table."""
    if "error" in record:
        return f"{record['model']:16} {record['error']}"
    times = "".join(f"{record[f'{which}_ms']:12.2f}" for which in ("whole", "pruned", "scratch"))
    return f"{record['model']:16}{times}{record['ratio']:16.3f}"


def table(records: list[Record]) -> str:
    """All rows."""
    head = f"{'model':16}{'whole, ms':>12}{'pruned, ms':>12}{'scratch, ms':>12}{'pruned/scratch':>16}"
    return "\n".join([head, *map(line, records)])


def main() -> int:
    """Runs the benchmark and prints a table; 1 if a case has failed."""
    parser = arguments(__doc__, seconds=1800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clocked", type=float, default=2, help="seconds of a round")
    options = parser.parse_args()
    how = {"rounds": options.rounds, "clocked": options.clocked}
    sweep = Sweep(("model", *how), measure, line, table)
    found = run(sweep, [{"model": name, **how} for name in MODELS], options)
    return int(any("error" in record for record in found))


if __name__ == "__main__":
    sys.exit(main())
